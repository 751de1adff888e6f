"""What a run knows of its batch: the rows as they stand, and how they reach the store."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from batch import Batch, BatchStatus, Row, RowStatus, WaitingFor, utc_now
from metrics import ROWS, WAITED_SECONDS
from reconcile import Found
from store import RunStore, StoreError

logger = logging.getLogger(__name__)

# An expected end that moves by less is as good as before.
WORTH_STORING = timedelta(seconds=0.5)


class Ledger:
    """The rows of one batch, kept by the thread that runs it; changes are gathered, and stored by `save()`.

    `report()` alone may be called from other threads: outcomes wait there until `take_reports()`. `waited_seconds` is
    how long this run stood still so far.
    """

    def __init__(self, batch: Batch, store: RunStore) -> None:
        self.batch = batch
        self._store = store
        self._rows = {row.row: row for row in batch.rows}
        self._unsaved: set[int] = set()
        self._reports: deque[Row] = deque()
        self._waiting_for = batch.waiting_for
        self._expected_end = batch.created_at  # long ago, so that the first estimate is told
        self.waited_seconds = 0.0
        self._stands_still: tuple[WaitingFor, float] | None = None

    @property
    def rows(self) -> list[Row]:
        """All rows, in their order."""
        return list(self._rows.values())

    @property
    def missing(self) -> list[Row]:
        """The rows that are still to be created."""
        return [row for row in self._rows.values() if row.status is RowStatus.PENDING]

    @property
    def failed(self) -> list[Row]:
        """The rows that were given up."""
        return [row for row in self._rows.values() if row.status is RowStatus.FAILED]

    def report(self, row: Row) -> None:
        """Hand in what became of a row."""
        self._reports.append(row)

    def take_reports(self) -> None:
        """Enter what was handed in."""
        while self._reports:
            row = self._reports.popleft()
            self._enter(replace(row, error_message=_storable(row.error_message)))

    def fail(self, rows: Iterable[Row], message: str) -> None:
        """Give these rows up."""
        for row in rows:
            self._enter(replace(row, status=RowStatus.FAILED, error_message=_storable(message)))

    def adopt(self, found: Found) -> None:
        """Take what a listing found for what is there; a row that was created and is not there is missing again."""
        for row in self.rows:
            hospital = found.rows.get(row.row)
            if hospital is not None:
                self._enter(replace(row, status=RowStatus.CREATED, hospital_id=hospital.id, error_message=None))
            elif row.in_directory:
                self._enter(replace(row, status=RowStatus.PENDING, hospital_id=None))

    def all_became(self, status: RowStatus) -> None:
        """Enter that every row that is in the directory is now in this state there."""
        for row in self.rows:
            if row.in_directory:
                self._enter(replace(row, status=status))

    def wait_for(self, what: WaitingFor | None, seconds_left: float) -> None:
        """Store what the batch waits for, and in how many seconds it should end by what is known now.

        A store that does not answer is passed over: what it missed it is told the next time.
        """
        self._count_wait(what)
        now = utc_now()
        expected_end = now + timedelta(seconds=seconds_left)
        # One that is overdue stays so; it does not move on with the time.
        overdue = not seconds_left and self._expected_end <= now
        moved = not overdue and abs(expected_end - self._expected_end) > WORTH_STORING
        if self._unsaved or what is not self._waiting_for or moved:
            try:
                self.save(waiting_for=what, expected_end=expected_end)
            except StoreError as error:
                logger.warning("not stored: %s", error)
            else:
                self._waiting_for, self._expected_end = what, expected_end

    def end(self, status: BatchStatus, message: str | None) -> None:
        """Store how the run ended; `batch` is then the batch as it was left."""
        self._count_wait(None)
        now = utc_now()
        changes: dict[str, Any] = {
            "status": status,
            "error_message": _storable(message),
            "batch_activated": status is BatchStatus.COMPLETED,
            "completed_at": now,
            "earlier_seconds": self.batch.processing_seconds(now),
            "run_started_at": None,
            "waiting_for": None,
            "expected_end": None,
        }
        self.save(**changes)
        self.batch = replace(self.batch, rows=tuple(self.rows), **changes)

    def save(self, **changes: Any) -> None:
        """Store the rows that changed, and these fields of the batch."""
        self._store.save(self.batch.batch_id, [self._rows[number] for number in sorted(self._unsaved)], **changes)
        self._unsaved.clear()

    def _count_wait(self, what: WaitingFor | None) -> None:
        now = time.monotonic()
        if self._stands_still is not None:
            waited_for, since = self._stands_still
            WAITED_SECONDS[waited_for].inc(now - since)
            self.waited_seconds += now - since
        if what is not None and (self._stands_still is None or self._stands_still[0] is not what):
            logger.info("waits for %s", what)
        self._stands_still = None if what is None else (what, now)

    def _enter(self, row: Row) -> None:
        before = self._rows[row.row]
        if row.status is not before.status:
            ROWS[row.status].inc()
        if row != before:
            self._rows[row.row] = row
            self._unsaved.add(row.row)


def _storable(message: str | None) -> str | None:
    """The message without what no text on disk or on the wire can hold: the directory's words may have any."""
    return None if message is None else message.encode("utf-8", "replace").decode().replace("\0", "?")
