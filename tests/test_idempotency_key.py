"""`Idempotency-Key`: the same key with the same file answers for the batch that the first one made."""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from tests.directory import Directory
from tests.hospitals import assert_exactly_once, csv_of
from tests.local_service import (
    AT_ONCE,
    BROWSER,
    LocalService,
    answered,
    at_once,
    creates,
    csv_from,
    problem,
    sqlite_url,
    table_of,
)
from tests.running import RunningService

ROWS = 4
CSV = csv_of(ROWS)
KEY = {"Idempotency-Key": "a key"}
REJECT_ONE = [{"kind": "error", "status": 422, "call": "create"}]


@pytest.fixture(params=["memory", "sqlite"])
def service(directory: Directory, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[LocalService]:
    url = sqlite_url(tmp_path) if request.param == "sqlite" else None
    with LocalService(directory, database_url=url) as service:
        yield service


def kill(service: RunningService) -> None:
    """Kill the whole service, its worker too, which would else go on for a moment."""
    pid = service.process.pid
    workers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for process in (pid, *map(int, workers)):
        os.kill(process, signal.SIGKILL)


def assert_same(service: LocalService, directory: Directory, batch_id: str) -> None:
    """An upload under the key answers for this batch as it is, and starts nothing."""
    before = service.batch(batch_id)
    directory.forget_calls()
    assert answered(service.upload(CSV, KEY)) == before
    assert len(service.call("GET", "/batches").get_json()) == 1
    assert directory.calls() == []


class TestOneBatch:
    def test_ten_equal_uploads_at_once_make_one(self, service: LocalService, directory: Directory) -> None:
        directory.settings(create_seconds=0.3)
        answers = [answer.get_json() for answer in at_once(10, lambda: service.upload(CSV, KEY))]
        [batch_id] = {answer["batch_id"] for answer in answers}
        assert_exactly_once(directory, service.ended(batch_id))
        assert creates(directory) == ROWS
        assert len(directory.calls("activate")) == 1
        assert len(service.call("GET", "/batches").get_json()) == 1

    def test_ten_files_at_once_under_one_key_make_one(self, service: LocalService, directory: Directory) -> None:
        files = [csv_of(ROWS, f"Hospital of {number}") for number in range(10)]

        def upload() -> TestResponse:
            return service.upload(files.pop(), KEY)

        answers = at_once(10, upload)
        assert sorted(answer.status_code for answer in answers) == [200] + [422] * 9
        [batch] = [answer.get_json() for answer in answers if answer.status_code == 200]
        assert_exactly_once(directory, batch)
        assert creates(directory) == ROWS
        for answer in answers:
            if answer.status_code == 422:
                problem(answer, 422, batch["batch_id"])

    def test_ten_keys_at_once_make_ten(self, service: LocalService, directory: Directory) -> None:
        keys = [f"key {number}" for number in range(10)]

        def upload() -> TestResponse:
            return service.upload(CSV, {"Idempotency-Key": keys.pop()})

        batches = [answered(answer) for answer in at_once(10, upload)]
        assert len({batch["batch_id"] for batch in batches}) == 10
        assert creates(directory) == 10 * ROWS

    def test_without_a_key_every_upload_makes_one(self, service: LocalService, directory: Directory) -> None:
        batches = [answered(service.upload(CSV)) for _ in range(2)]
        assert batches[0]["batch_id"] != batches[1]["batch_id"]
        assert creates(directory) == 2 * ROWS

    def test_a_batch_that_still_runs_is_waited_for_as_any_other(
        self, service: LocalService, directory: Directory
    ) -> None:
        directory.settings(create_seconds=2)
        first = answered(service.upload(CSV, KEY | AT_ONCE), 202)
        again = service.upload(CSV, KEY | AT_ONCE)
        assert answered(again, 202)["batch_id"] == first["batch_id"]
        assert again.headers["Location"] == f"/batches/{first['batch_id']}"
        batch = answered(service.upload(CSV, KEY))
        assert batch["batch_id"] == first["batch_id"]
        assert_exactly_once(directory, batch)
        assert creates(directory) == ROWS

    def test_a_browser_is_sent_to_the_page_of_the_first(self, service: LocalService, directory: Directory) -> None:
        batch = answered(service.upload(CSV, KEY))
        answer = service.upload(CSV, KEY | BROWSER)
        assert (answer.status_code, answer.headers["Location"]) == (303, f"/batches/{batch['batch_id']}")

    def test_the_second_of_two_at_once_waits_like_the_first(
        self, directory: Directory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with LocalService(directory) as service:
            store, save = service.parts.store, service.parts.store.save

            def save_slowly(batch_id: str, rows: Any = (), **fields: Any) -> None:
                time.sleep(0.1)
                save(batch_id, rows, **fields)

            monkeypatch.setattr(store, "save", save_slowly)
            with ThreadPoolExecutor(1) as pool:
                first = pool.submit(service.upload, CSV, KEY)
                while store.find_key("", "a key") is None:
                    time.sleep(0.001)
                second = service.upload(CSV, KEY)
                assert answered(second) == answered(first.result())

    def test_an_upload_that_another_one_overtook_needs_no_room(
        self, directory: Directory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        directory.settings(create_seconds=0.4)
        with LocalService(directory, max_running_batches=1) as service:
            first = answered(service.upload(CSV, KEY | AT_ONCE), 202)
            find_key, before = service.parts.store.find_key, [None]  # looked up a moment before
            monkeypatch.setattr(
                service.parts.store, "find_key", lambda owner, key: before.pop() if before else find_key(owner, key)
            )
            assert answered(service.upload(CSV, KEY))["batch_id"] == first["batch_id"]


class TestEndedBatches:
    def test_one_that_was_completed_answers(self, service: LocalService, directory: Directory) -> None:
        batch = answered(service.upload(CSV, KEY))
        assert_exactly_once(directory, batch)
        assert_same(service, directory, batch["batch_id"])

    def test_one_that_failed_answers_and_is_not_tried_again(self, service: LocalService, directory: Directory) -> None:
        directory.faults(REJECT_ONE)
        batch = answered(service.upload(CSV, KEY))
        assert batch["status"] == "failed"
        assert_same(service, directory, batch["batch_id"])

    def test_one_that_was_interrupted_answers(self, service: LocalService, directory: Directory) -> None:
        directory.faults([{"kind": "error", "call": "list", "times": None}])
        batch = answered(service.upload(CSV, KEY))
        assert batch["status"] == "interrupted"
        assert_same(service, directory, batch["batch_id"])

    def test_one_that_was_rolled_back_answers(self, service: LocalService, directory: Directory) -> None:
        batch = answered(service.upload(CSV, KEY))
        answered(service.roll_back(batch["batch_id"]))
        assert_same(service, directory, batch["batch_id"])
        assert directory.hospitals() == []

    def test_one_whose_rows_were_mended_answers_to_the_file_it_was_made_of(
        self, service: LocalService, directory: Directory
    ) -> None:
        directory.faults(REJECT_ONE)
        batch_id = answered(service.upload(CSV, KEY))["batch_id"]
        [record] = table_of(service.results(batch_id, "?status=failed"))
        answered(service.resume(batch_id, csv_from([record | {"name": "Mended"}])))
        assert_same(service, directory, batch_id)


class TestAnotherUpload:
    @pytest.mark.parametrize(
        "content",
        [
            csv_of(ROWS, "Other"),
            csv_of(ROWS - 1),
            CSV + b"\n",
            CSV.replace(b"\n", b"\r\n"),
            b"\xef\xbb\xbf" + CSV,
            b"no,csv,at,all",
            b"x",
        ],
    )
    def test_another_file_is_refused_and_starts_nothing(
        self, service: LocalService, directory: Directory, content: bytes
    ) -> None:
        batch = answered(service.upload(CSV, KEY))
        directory.forget_calls()
        problem(service.upload(content, KEY), 422, f"which is batch {batch['batch_id']}")
        assert directory.calls() == []
        assert_same(service, directory, batch["batch_id"])

    @pytest.mark.parametrize(("first", "second"), [("", "utf-8"), ("utf-8", ""), ("utf-8", "latin-1")])
    def test_another_encoding_is_another_upload(
        self, service: LocalService, directory: Directory, first: str, second: str
    ) -> None:
        batch = answered(service.upload(CSV, KEY, encoding=first))
        problem(service.upload(CSV, KEY, encoding=second), 422, "use a new key")
        assert answered(service.upload(CSV, KEY, encoding=first)) == batch
        assert creates(directory) == ROWS

    def test_the_bytes_that_name_an_encoding_are_no_encoding(self, service: LocalService, directory: Directory) -> None:
        # What is digested tells the encoding from the file that follows it.
        answered(service.upload(CSV, KEY, encoding="utf-8"))
        problem(service.upload(b"utf-8\n" + CSV, KEY), 422)

    def test_another_name_of_the_file_is_the_same_upload(self, directory: Directory) -> None:
        with LocalService(directory) as service:
            batch = answered(service.upload(CSV, KEY))
            form = {"file": (io.BytesIO(CSV), "other.csv")}
            assert answered(service.call("POST", "/hospitals/bulk", KEY, data=form)) == batch


class TestKeys:
    @pytest.mark.parametrize("key", ["k", "k" * 255, "a b", '"quoted"', "'; DROP TABLE batches; --", "\u00e9\u00ff"])
    def test_any_key_up_to_255_characters_is_taken(self, service: LocalService, directory: Directory, key: str) -> None:
        headers = {"Idempotency-Key": key}
        batch = answered(service.upload(CSV, headers))
        assert answered(service.upload(CSV, headers)) == batch
        other = answered(service.upload(CSV, {"Idempotency-Key": key[:-1] + "_"}))
        assert other["batch_id"] != batch["batch_id"]

    @pytest.mark.parametrize("key", ["", "k" * 256, "k" * 5000])
    def test_a_key_of_another_length_is_refused(self, service: LocalService, directory: Directory, key: str) -> None:
        problem(service.upload(CSV, {"Idempotency-Key": key}), 400, "`Idempotency-Key` must have 1 to 255 characters")
        assert service.call("GET", "/batches").get_json() == []
        assert directory.calls() == []

    @pytest.mark.parametrize(
        "content", [b"", b"name,address\n", b"name,address\nAlpha,\n", csv_of(21), b"PK\x05\x06", CSV + b"\xff"]
    )
    def test_a_file_that_is_refused_uses_up_no_key(
        self, service: LocalService, directory: Directory, content: bytes
    ) -> None:
        for _ in range(2):
            problem(service.upload(content, KEY), 400)
        assert_exactly_once(directory, answered(service.upload(CSV, KEY)))

    def test_an_upload_that_finds_no_room_uses_up_no_key(self, directory: Directory) -> None:
        directory.settings(create_seconds=2)
        with LocalService(directory, max_running_batches=1) as service:
            other = service.started(csv_of(1, "Other"))
            problem(service.upload(CSV, KEY), 503, "Too many batches")
            service.ended(other)
            directory.settings(create_seconds=0.05)
            batch = answered(service.upload(csv_of(ROWS, "Another"), KEY))
        assert_exactly_once(directory, batch)

    def test_a_key_counts_for_uploads_alone(self, service: LocalService, directory: Directory) -> None:
        assert answered(service.upload(CSV, KEY, path="/hospitals/bulk/validate"))["valid"] is True
        directory.faults(REJECT_ONE)
        other_id = answered(service.upload(csv_of(ROWS, "Other")))["batch_id"]
        assert answered(service.resume(other_id, headers=KEY))["status"] == "completed"
        assert answered(service.roll_back(other_id, KEY))["status"] == "rolled_back"
        assert answered(service.upload(CSV, KEY))["batch_id"] != other_id


class TestForgetting:
    def test_a_key_survives_a_restart_with_a_database(self, directory: Directory, tmp_path: Path) -> None:
        with LocalService(directory, database_url=sqlite_url(tmp_path)) as service:
            batch = answered(service.upload(CSV, KEY))
        with LocalService(directory, database_url=sqlite_url(tmp_path)) as service:
            assert_same(service, directory, batch["batch_id"])
            problem(service.upload(csv_of(1), KEY), 422)

    def test_a_key_is_forgotten_with_its_batch_in_memory(self, directory: Directory) -> None:
        batches = []
        for _ in range(2):
            with LocalService(directory) as service:
                batches.append(answered(service.upload(CSV, KEY))["batch_id"])
        assert batches[0] != batches[1]
        assert creates(directory) == 2 * ROWS

    def test_a_key_goes_when_its_batch_is_no_longer_kept(self, directory: Directory) -> None:
        with LocalService(directory, keep_batches=1) as service:
            first = answered(service.upload(CSV, KEY))
            answered(service.upload(csv_of(1, "Other")))
            again = answered(service.upload(csv_of(2, "Another"), KEY))
            assert again["batch_id"] != first["batch_id"]

    def test_a_key_survives_a_kill(self, directory: Directory, tmp_path: Path) -> None:
        directory.settings(create_seconds=0.5)
        with RunningService(directory.url, database_url=sqlite_url(tmp_path)) as service:
            first = service.upload(CSV, KEY | AT_ONCE)
            assert first.status_code == 202
            kill(service)
        directory.settings(create_seconds=0)
        with RunningService(directory.url, database_url=sqlite_url(tmp_path)) as service:
            batch = service.upload(CSV, KEY).json()
            assert batch["batch_id"] == first.json()["batch_id"]
            assert_exactly_once(directory, batch)
            assert service.upload(csv_of(1), KEY).status_code == 422
