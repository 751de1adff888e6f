"""What takes long holds few threads, whoever asks for it, so that all others are answered."""

from __future__ import annotations

import io
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.directory import Directory
from tests.hospitals import csv_of
from tests.local_service import LocalService, problem
from tests.patience import wait_for
from tests.running import RunningService

CALLERS = 200


def test_many_who_ask_whether_a_silent_directory_is_there_leave_threads_for_others() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=CALLERS) as silent, ThreadPoolExecutor(CALLERS) as pool:
        host, port = silent.getsockname()
        with RunningService(f"http://{host}:{port}") as service:
            asked = [pool.submit(service.get, "/ready?directory=true") for _ in range(CALLERS)]
            # All are told at once that others are finding out, but for the few that are.
            wait_for(lambda: sum(future.done() for future in asked) >= CALLERS - 4)
            started_at = time.monotonic()
            assert service.get("/health").ok
            # Those few wait for 10 s.
            assert time.monotonic() - started_at < 9
            assert service.stop() == 0  # which ends also those who still wait
        answers = [future.result() for future in asked]
    assert Counter(answer.status_code for answer in answers) == {503: CALLERS}
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in answers)


@pytest.fixture
def full_of_large_files(directory: Directory) -> LocalService:
    service = LocalService(directory)
    while service.parts.large_places.acquire(blocking=False):
        pass
    return service


@pytest.mark.parametrize("path", ["/hospitals/bulk", "/hospitals/bulk/validate"])
def test_when_many_large_files_are_read_another_is_told_to_come_again(
    full_of_large_files: LocalService, path: str
) -> None:
    with full_of_large_files as service:
        large = {"file": (io.BytesIO(b"a,b\n" * 20_000), "large.csv")}
        refusal = service.call("POST", path, data=large)
        problem(refusal, 503, "large files")
        assert int(refusal.headers["Retry-After"]) > 0


def test_a_small_file_is_read_beside_any_number_of_large_ones(full_of_large_files: LocalService) -> None:
    with full_of_large_files as service:
        assert service.upload(csv_of(3)).status_code == 200


def test_a_batch_is_resumed_without_a_file_beside_any_number_of_large_ones(
    full_of_large_files: LocalService, directory: Directory
) -> None:
    directory.faults([{"kind": "error", "status": 422, "call": "create"}])
    with full_of_large_files as service:
        failed = service.upload(csv_of(1)).get_json()
        assert service.call("POST", f"/batches/{failed['batch_id']}/resume").get_json()["status"] == "completed"


def test_a_large_file_gives_its_place_back(directory: Directory) -> None:
    with LocalService(directory) as service:
        for _ in range(30):
            assert service.upload(b"a,b\n" * 20_000, path="/hospitals/bulk/validate").status_code == 200
        assert service.parts.large_places.taken == 0
