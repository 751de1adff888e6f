"""The whole service in this process, over a real directory: quick in all its waits, its patience adjustable."""

from __future__ import annotations

import csv
import io
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any

import pytest
import requests
from flask import Flask
from werkzeug.test import TestResponse

from app import create_app
from batch import Batch
from service import service
from settings import Settings
from tests.directory import Directory
from tests.patience import PATIENCE, wait_for

# Cases of a table that are carried out at the same time.
SIDE_BY_SIDE = 5
BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
AT_ONCE = {"Prefer": "respond-async"}

# Werkzeug parses Python for every route, and the parser of Python 3.11 may fail with a SystemError, "AST constructor
# recursion depth mismatch", when several threads use it at the same time.
_MAKING_AN_APP = threading.Lock()

Json = dict[str, Any]


class LocalService:
    """The Flask app with its store and runner; keyword arguments are settings. Leaving the ``with`` block stops it.

    Every call may be made from any thread and answers as the service would over HTTP.
    """

    def __init__(self, directory: Directory, **settings: Any) -> None:
        values: dict[str, Any] = {
            "hospital_api_base_url": directory.url,
            "directory_create_limit": None,
            "directory_delay_seconds": 0.3,
            "directory_retry_seconds": 0.1,
            "directory_timeout_seconds": 30.0,
            "sync_wait_seconds": PATIENCE,
        } | settings
        with _MAKING_AN_APP:
            self.app: Flask = create_app(Settings(**values))
        self.parts = service(self.app)
        self.parts.start()

    def __enter__(self) -> LocalService:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.parts.stop()

    def call(self, method: str, path: str, headers: dict[str, str] | None = None, **request: Any) -> TestResponse:
        """Any call."""
        return self.app.test_client().open(path, method=method, headers=headers, **request)

    def upload(
        self, content: bytes, headers: dict[str, str] | None = None, path: str = "/hospitals/bulk", **fields: str
    ) -> TestResponse:
        """Upload a CSV."""
        return self.call("POST", path, headers, data=_form(content, fields))

    def resume(
        self, batch_id: str, content: bytes | None = None, headers: dict[str, str] | None = None, **fields: str
    ) -> TestResponse:
        """Resume a batch, with a results file if there is one."""
        form = None if content is None else _form(content, fields)
        return self.call("POST", f"/batches/{batch_id}/resume", headers, data=form)

    def roll_back(self, batch_id: str, headers: dict[str, str] | None = None) -> TestResponse:
        """Roll a batch back."""
        return self.call("DELETE", f"/batches/{batch_id}", headers)

    def batch(self, batch_id: str) -> Json:
        """The batch as it stands now."""
        return answered(self.call("GET", f"/batches/{batch_id}"))

    def stored(self, batch_id: str) -> Batch:
        """The batch as the store has it."""
        return self.parts.store.get(batch_id)

    def results(self, batch_id: str, query: str = "") -> bytes:
        """The results file."""
        answer = self.call("GET", f"/batches/{batch_id}/results.csv{query}")
        assert answer.status_code == 200, answer.text
        return bytes(answer.data)

    def started(self, content: bytes) -> str:
        """Upload without waiting; returns the batch's id."""
        answer = self.upload(content, AT_ONCE)
        assert answer.status_code == 202, answer.text
        return str(answer.get_json()["batch_id"])

    def ended(self, batch_id: str) -> Json:
        """The batch as soon as it has ended."""
        return self.when(batch_id, lambda batch: batch["status"] != "processing")

    def when(self, batch_id: str, holds: Callable[[Json], bool]) -> Json:
        """The batch as soon as something holds of it."""
        return wait_for(lambda: self.batch(batch_id), holds)


def _form(content: bytes, fields: dict[str, str]) -> Json:
    return {"file": (io.BytesIO(content), "hospitals.csv"), **fields}


def answered(answer: TestResponse, status: int = 200) -> Json:
    """The JSON object of an answer, which has this status."""
    assert answer.status_code == status, answer.text
    body: Json = answer.get_json()
    return body


def problem(answer: TestResponse, status: int, words: str = "") -> Json:
    """The problem document of a refusal."""
    body = answered(answer, status)
    assert answer.mimetype == "application/problem+json"
    assert list(body)[:4] == ["type", "title", "status", "detail"]
    assert words in body["detail"], body
    return body


def at_once(times: int, call: Callable[[], TestResponse]) -> list[TestResponse]:
    """What several of the same call answer when they come at the same moment."""
    together = threading.Barrier(times)

    def one(_: int) -> TestResponse:
        together.wait(PATIENCE)
        return call()

    with ThreadPoolExecutor(times) as pool:
        return list(pool.map(one, range(times)))


def creates(directory: Directory) -> int:
    """How many creates have come to the directory."""
    return len(directory.calls("create"))


def assert_promise(directory: Directory, batch: Json) -> None:
    """Hold a batch that has ended against the directory: what its status promises is so there."""
    listed = directory.hospitals(batch["batch_id"])
    rows = batch["hospitals"]
    statuses = Counter(row["status"] for row in rows)
    assert batch["completed_at"] is not None
    assert batch["estimated_seconds"] is None
    assert batch["waiting_for"] is None
    assert batch["processed_hospitals"] == statuses["created"] + statuses["created_and_activated"]
    assert batch["failed_hospitals"] == statuses["failed"]
    assert batch["batch_activated"] is (batch["status"] == "completed")
    match batch["status"]:
        case "completed":
            assert Counter(it["name"] for it in listed) == Counter(row["name"] for row in rows)
            assert {it["id"]: it["name"] for it in listed} == {row["hospital_id"]: row["name"] for row in rows}
            assert all(it["active"] for it in listed)
            assert statuses == {"created_and_activated": len(rows)}
            assert batch["error_message"] is None
        case "failed":
            assert not any(it["active"] for it in listed)
            created = {row["hospital_id"] for row in rows if row["status"] == "created"}
            assert created <= {it["id"] for it in listed}
            assert batch["error_message"]
        case "rolled_back":
            assert listed == []
            assert statuses.keys() <= {"deleted", "pending", "failed"}
        case "interrupted":
            assert batch["error_message"]
        case other:
            raise AssertionError(f"It has not ended: {other}")


def restart_empty(directory: Directory) -> None:
    """The directory restarts: it holds nothing, and ids count from 1 again."""
    directory.faults([{"kind": "restart", "call": "root"}])
    with pytest.raises(requests.ConnectionError):
        requests.get(directory.url, timeout=PATIENCE)
    directory.faults([])
    assert directory.hospitals() == []


def put_in(directory: Directory, name: str, batch_id: str | None = None, **fields: str | None) -> int:
    """Somebody else creates a hospital, also under a batch of ours; returns its id."""
    body = {"name": name, "address": "Elsewhere", "phone": None, "creation_batch_id": batch_id} | fields
    answer = requests.post(f"{directory.url}/hospitals/", json=body, timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["id"])


def put_in_again(directory: Directory, hospital: Json) -> int:
    """Somebody else creates the same hospital under the same batch once more."""
    return put_in(
        directory,
        hospital["name"],
        hospital["creation_batch_id"],
        address=hospital["address"],
        phone=hospital["phone"],
    )


Work = Callable[[str, Directory], None]


class SideBySide:
    """Carries out the cases of tables at the same time, each over a directory of its own, as they mostly wait.

    `tables` says what is to be done for the cases of each test; they are those that this run of pytest has chosen,
    and their names are the parameter `how` of the test.
    """

    def __init__(self, request: pytest.FixtureRequest, tables: Mapping[str, Work]) -> None:
        self._chosen: list[tuple[Work, str]] = []
        for item in request.session.items:
            work = tables.get(getattr(item, "originalname", ""))
            if work is not None and isinstance(item, pytest.Function):
                self._chosen.append((work, str(item.callspec.params["how"])))
        self._free: SimpleQueue[Directory] = SimpleQueue()
        self._directories: list[Directory] = []
        self._done: dict[tuple[Work, str], Future[None]] = {}

    def __enter__(self) -> SideBySide:
        self._pool = ThreadPoolExecutor(SIDE_BY_SIDE)
        self._directories += self._pool.map(lambda _: Directory(), self._chosen[:SIDE_BY_SIDE])
        for directory in self._directories:
            self._free.put(directory)
        self._done = {case: self._pool.submit(self._carry_out, *case) for case in self._chosen}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for future in self._done.values():
            future.cancel()
        list(self._pool.map(lambda _: self._free.get().stop(), self._directories))
        self._pool.shutdown()

    def result(self, work: Work, how: str) -> None:
        """Return when the case has come out right, and raise what went wrong in it otherwise."""
        self._done[work, how].result()

    def _carry_out(self, work: Work, how: str) -> None:
        directory = self._free.get()
        try:
            directory.reset()
            work(how, directory)
        finally:
            self._free.put(directory)


def lose_patience(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Give a directory that lets nothing in up after so many seconds."""
    for module in ("retries", "create_hold", "pacing", "rounds"):
        monkeypatch.setattr(f"{module}.PATIENCE_SECONDS", seconds)


def table_of(content: bytes) -> list[dict[str, str]]:
    """The records of a CSV, as any program would read them."""
    return list(csv.DictReader(io.StringIO(content.decode(), newline="")))


def csv_from(
    records: Sequence[dict[str, str]], encoding: str = "utf-8", delimiter: str = ",", line_end: str = "\r\n"
) -> bytes:
    """A CSV of these records, as a spreadsheet saves it."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(records[0]), delimiter=delimiter, lineterminator=line_end)
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue().encode(encoding)


def sqlite_url(folder: Path) -> str:
    """The setting for a database in this folder."""
    return f"sqlite:///{folder / 'hospitals.db'}"
