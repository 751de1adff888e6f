"""How long an upload's caller waits, over real HTTP: until the batch ends, or as little as it prefers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from batch import BatchStatus
from settings import WORKER_THREADS
from tests.directory import Directory
from tests.hospitals import assert_exactly_once, csv_of
from tests.local_service import LocalService
from tests.patience import PATIENCE, wait_for
from tests.running import RunningService

CSV = csv_of(2)
BATCH_KEYS = [
    "batch_id",
    "total_hospitals",
    "processed_hospitals",
    "failed_hospitals",
    "processing_time_seconds",
    "batch_activated",
    "hospitals",
    "status",
    "filename",
    "created_at",
    "completed_at",
    "error_message",
    "waiting_for",
    "estimated_seconds",
]


@pytest.fixture(scope="module")
def service(shared_directory: Directory) -> Iterator[RunningService]:
    with RunningService(shared_directory.url, max_concurrent_creates=100) as running:
        yield running


@pytest.fixture(scope="module")
def impatient_service(shared_directory: Directory) -> Iterator[RunningService]:
    """It lets nobody wait for longer than 0.2 s."""
    with RunningService(shared_directory.url, sync_wait_seconds=0.2) as running:
        yield running


def when_ended(service: RunningService, path: str) -> dict[str, Any]:
    """The batch at this path as soon as it has ended."""
    batch: dict[str, Any] = wait_for(lambda: service.get(path).json(), lambda it: it["status"] != "processing")
    return batch


def test_an_upload_is_answered_when_the_batch_has_ended(service: RunningService, directory: Directory) -> None:
    answer = service.upload(CSV)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert {"Location", "Retry-After", "Preference-Applied"}.isdisjoint(answer.headers)
    batch = answer.json()
    assert_exactly_once(directory, batch)
    assert list(batch) == BATCH_KEYS
    assert [list(row) for row in batch["hospitals"]] == [["row", "hospital_id", "name", "status", "error_message"]] * 2
    assert service.get(f"/batches/{batch['batch_id']}").text == answer.text


def test_a_batch_that_failed_is_answered_with_200_too(service: RunningService, directory: Directory) -> None:
    directory.faults([{"kind": "error", "status": 422, "call": "create", "times": 1}])
    answer = service.upload(CSV)
    assert answer.status_code == 200
    assert answer.json()["status"] == "failed"
    assert answer.json()["batch_activated"] is False
    assert (answer.json()["processed_hospitals"], answer.json()["failed_hospitals"]) == (1, 1)


def test_who_does_not_want_to_wait_is_told_where_to_look(service: RunningService, directory: Directory) -> None:
    directory.settings(create_seconds=2)
    answer = service.upload(CSV, headers={"Prefer": "respond-async"})
    assert answer.status_code == 202
    assert answer.headers["Preference-Applied"] == "respond-async"
    assert answer.headers["Retry-After"].isdigit()
    assert int(answer.headers["Retry-After"]) >= 1
    batch = answer.json()
    assert answer.headers["Location"] == f"/batches/{batch['batch_id']}"
    assert list(batch) == BATCH_KEYS
    assert batch["status"] == "processing"
    assert batch["completed_at"] is None
    assert batch["estimated_seconds"] >= 0
    assert {row["status"] for row in batch["hospitals"]} == {"pending"}
    assert_exactly_once(directory, when_ended(service, answer.headers["Location"]))


def test_who_does_not_wait_is_told_when_to_come_back(directory: Directory) -> None:
    directory.settings(create_seconds=2)
    with RunningService(directory.url) as service:
        answer = service.upload(CSV, headers={"Prefer": "respond-async"})
        # Until one was measured, a create is taken to need 5 s.
        assert 2 < answer.json()["estimated_seconds"] <= 5
        assert answer.headers["Retry-After"] in ("3", "4", "5")


@pytest.mark.parametrize(
    ("prefer", "status", "applied"),
    [
        ("wait=0", 202, "wait=0"),
        ("wait=60", 200, "wait=60"),
        ("wait=60, respond-async", 200, "respond-async, wait=60"),
        ("respond-async, wait=0", 202, "respond-async, wait=0"),
        ("respond-async; q=1, handling=lenient", 202, "respond-async"),
        ("wait=99999", 200, "wait=300"),
        ("wait", 200, None),
        ("wait=-1", 200, None),
        ("wait=0.5", 200, None),
        ("wait=soon", 200, None),
        ("respond-async=yes", 200, None),
        (",;=,", 200, None),
        ("return=minimal", 200, None),
    ],
)
def test_a_caller_waits_as_it_prefers(
    service: RunningService, directory: Directory, prefer: str, status: int, applied: str | None
) -> None:
    directory.settings(create_seconds=0.2 if status == 200 else 2)
    answer = service.upload(CSV, headers={"Prefer": prefer})
    assert answer.status_code == status
    assert answer.headers.get("Preference-Applied") == applied
    when_ended(service, f"/batches/{answer.json()['batch_id']}")


def test_a_wait_in_seconds_ends_when_they_are_over(service: RunningService, directory: Directory) -> None:
    directory.settings(create_seconds=5)
    started_at = time.monotonic()
    answer = service.upload(CSV, headers={"Prefer": "wait=1"})
    assert answer.status_code == 202
    assert time.monotonic() - started_at >= 1
    assert answer.headers["Preference-Applied"] == "wait=1"
    assert_exactly_once(directory, when_ended(service, answer.headers["Location"]))


@pytest.mark.parametrize(
    ("prefer", "applied"), [(None, None), ("wait=60", "wait=0"), ("respond-async", "respond-async")]
)
def test_nobody_waits_longer_than_the_setting_allows(
    impatient_service: RunningService, directory: Directory, prefer: str | None, applied: str | None
) -> None:
    directory.settings(create_seconds=2)
    answer = impatient_service.upload(CSV, headers={"Prefer": prefer} if prefer else None)
    assert answer.status_code == 202
    assert answer.headers.get("Preference-Applied") == applied
    assert_exactly_once(directory, when_ended(impatient_service, answer.headers["Location"]))


def test_when_half_of_the_threads_wait_the_next_upload_is_answered_at_once(
    service: RunningService, directory: Directory
) -> None:
    places, more = WORKER_THREADS // 2, 6
    directory.settings(create_seconds=6, threads=0)
    csv = csv_of(1)

    def upload(_: int) -> tuple[int, str]:
        answer = service.upload(csv)
        return answer.status_code, answer.json()["status"]

    with ThreadPoolExecutor(places + more) as clients:
        answers = clients.map(upload, range(places + more))
        assert service.get("/health").status_code == 200
        assert Counter(answers) == {(200, "completed"): places, (202, "processing"): more}
    for batch in service.get("/batches?status=processing").json():
        when_ended(service, f"/batches/{batch['batch_id']}")
    assert all(batch["status"] == "completed" for batch in service.get("/batches?limit=70").json())


def test_who_has_begun_a_batch_is_told_of_it_although_it_was_forgotten_meanwhile(directory: Directory) -> None:
    with LocalService(directory, keep_batches=1) as service:
        first = service.started(csv_of(1))
        service.parts.runner.wait(first, PATIENCE)
        service.upload(csv_of(1, "Another"))
        assert service.call("GET", f"/batches/{first}").status_code == 404
        # As the request does that began it, were it so slow.
        assert service.parts.runner.wait(first, 0).status is BatchStatus.COMPLETED
