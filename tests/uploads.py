"""The service without its web side, in this process: uploads over a real directory, quick in all its waits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any

import requests

from batch import Batch, BatchStatus, Row, RowStatus, WaitingFor, utc_now
from runner import Runner
from settings import Settings
from store import MemoryStore
from tests.directory import Directory
from tests.patience import PATIENCE, wait_for


def hospitals(count: int, tag: str = "Hospital") -> tuple[Row, ...]:
    """So many rows, named after `tag`; every third has no phone."""
    return tuple(
        Row(number, f"{tag} {number}", f"{number} Main Street", None if number % 3 == 0 else f"555-{number:04}")
        for number in range(1, count + 1)
    )


class Uploads:
    """A runner with a store in memory, over a directory or whatever answers at an address instead of one.

    Keyword arguments are settings. Leaving the ``with`` block stops it.
    """

    def __init__(self, directory: Directory | str, **settings: Any) -> None:
        values: dict[str, Any] = {
            "hospital_api_base_url": directory if isinstance(directory, str) else directory.url,
            "directory_create_limit": None,
            "directory_delay_seconds": 0.3,
            "directory_retry_seconds": 0.1,
            "directory_timeout_seconds": 30.0,
        } | settings
        self.store = MemoryStore(1000)
        self.runner = Runner(Settings(**values), self.store)

    def __enter__(self) -> Uploads:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.runner.stop()

    def start(self, count: int = 6, tag: str = "Hospital") -> str:
        """Begin a batch of so many rows and return its id."""
        return self.runner.start("hospitals.csv", hospitals(count, tag))

    def ended(self, batch_id: str) -> Batch:
        """The batch when it has ended."""
        batch = self.runner.wait(batch_id, PATIENCE)
        assert batch.ended, batch
        return batch

    def upload(self, count: int = 6, tag: str = "Hospital") -> Batch:
        """Upload a batch and return it when it has ended."""
        return self.ended(self.start(count, tag))

    def resume(self, batch_id: str) -> Batch:
        """Resume a batch and return it when it has ended again."""
        self.runner.resume(batch_id)
        return self.ended(batch_id)

    def when(self, batch_id: str, holds: Callable[[Batch], bool]) -> Batch:
        """The batch as soon as something holds of it while it runs."""
        return wait_for(lambda: self._running(batch_id), holds)

    def _running(self, batch_id: str) -> Batch:
        batch = self.store.get(batch_id)
        assert not batch.ended, f"It ended before: {batch}"
        return batch

    def when_waiting_for(self, batch_id: str, what: WaitingFor) -> Batch:
        """The batch as soon as it says that it waits for `what`."""
        return self.when(batch_id, lambda batch: batch.waiting_for is what)


def add_foreign(directory: Directory, name: str, batch_id: str | None = None) -> int:
    """Somebody else creates a hospital, also under a batch of ours; returns its id."""
    body = {"name": name, "address": "Elsewhere", "phone": None, "creation_batch_id": batch_id}
    answer = requests.post(f"{directory.url}/hospitals/", json=body, timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["id"])


def creates(directory: Directory, batch_id: str | None = None) -> int:
    """How many creates have come to the directory, of one batch or of all."""
    return sum(batch_id in (None, call["batch_id"]) for call in directory.calls("create"))


def assert_promise(directory: Directory, batch: Batch) -> None:
    """Hold an ended batch against the directory: `completed` is there exactly, any other has nothing active."""
    listed = directory.hospitals(batch.batch_id)
    assert batch.ended
    assert batch.completed_at is not None
    assert batch.waiting_for is None
    assert batch.estimated_seconds(utc_now()) is None
    assert batch.batch_activated is (batch.status is BatchStatus.COMPLETED)
    assert (batch.error_message is None) is (batch.status is BatchStatus.COMPLETED)
    for row in batch.rows:
        assert (row.error_message is None) is (row.status is not RowStatus.FAILED), row
        assert (row.hospital_id is None) is (not row.in_directory), row
    if batch.status is BatchStatus.COMPLETED:
        assert Counter(map(_facts, listed)) == Counter((row.name, row.address, row.phone) for row in batch.rows)
        assert all(hospital["active"] for hospital in listed)
        assert all(row.status is RowStatus.CREATED_AND_ACTIVATED for row in batch.rows)
        assert {row.name: row.hospital_id for row in batch.rows} == {it["name"]: it["id"] for it in listed}
    elif batch.status is BatchStatus.FAILED:
        assert not any(hospital["active"] for hospital in listed)
        ids = {hospital["id"] for hospital in listed}
        assert {row.hospital_id for row in batch.rows if row.in_directory} <= ids
    else:
        assert batch.status is BatchStatus.INTERRUPTED, batch


def _facts(hospital: dict[str, Any]) -> tuple[str, str, str | None]:
    return hospital["name"], hospital["address"], hospital["phone"]
