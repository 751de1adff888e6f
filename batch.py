"""The plain data of the service: a batch, its rows, and the names of the states they can be in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum


class RowStatus(StrEnum):
    """What is known of one row in the directory."""

    PENDING = "pending"
    CREATED = "created"
    CREATED_AND_ACTIVATED = "created_and_activated"
    FAILED = "failed"
    DELETED = "deleted"


class BatchStatus(StrEnum):
    """`processing` while a run works on the batch; every other status is how the last run ended."""

    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    ROLLED_BACK = "rolled_back"


class Goal(StrEnum):
    """What a run works towards: every row active in the directory, or none there at all."""

    ACTIVATE = "activate"
    REMOVE = "remove"


class WaitingFor(StrEnum):
    """Why a batch that is processing stands still."""

    WAKE = "wake"
    RATE_LIMIT = "rate_limit"
    DIRECTORY = "directory"
    DELAY = "delay"


@dataclass(frozen=True, slots=True)
class Row:
    """One hospital of a batch. `row` counts from 1 in the order of the file; `phone` is None when there is none."""

    row: int
    name: str
    address: str
    phone: str | None
    status: RowStatus = RowStatus.PENDING
    hospital_id: int | None = None
    error_message: str | None = None

    @property
    def in_directory(self) -> bool:
        """Whether the row is in the directory, as far as is known."""
        return self.status in (RowStatus.CREATED, RowStatus.CREATED_AND_ACTIVATED)

    def made_pending(self) -> Row:
        """The row as it is before it is tried again."""
        return replace(self, status=RowStatus.PENDING, hospital_id=None, error_message=None)


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """The key that an upload came under, unique for its `owner`, and the digest of all that was uploaded with it."""

    owner: str
    key: str
    upload_digest: str


@dataclass(frozen=True, slots=True)
class Batch:
    """One upload and how far it has come. Times are aware and in UTC; a new state is a new object."""

    batch_id: str
    filename: str
    rows: tuple[Row, ...]
    created_at: datetime
    status: BatchStatus = BatchStatus.PROCESSING
    goal: Goal = Goal.ACTIVATE
    completed_at: datetime | None = None
    batch_activated: bool = False
    error_message: str | None = None
    waiting_for: WaitingFor | None = None
    # When the run that is under way started, and when it should end by what is known now.
    run_started_at: datetime | None = None
    expected_end: datetime | None = None
    idempotency_key: IdempotencyKey | None = None
    # Of `rows_digest`, to find the same rows again.
    rows_digest: str = ""
    # The time that runs before this one took, in seconds.
    earlier_seconds: float = 0.0

    @property
    def ended(self) -> bool:
        """Whether no run works on the batch any more."""
        return self.status is not BatchStatus.PROCESSING

    @property
    def processed(self) -> int:
        """How many rows are in the directory."""
        return sum(row.in_directory for row in self.rows)

    @property
    def failed(self) -> int:
        """How many rows failed."""
        return sum(row.status is RowStatus.FAILED for row in self.rows)

    def processing_seconds(self, now: datetime) -> float:
        """How long the batch was worked on, in seconds, summed over its runs and counting up while one works."""
        if self.run_started_at is None:
            return self.earlier_seconds
        return self.earlier_seconds + max(0.0, (now - self.run_started_at).total_seconds())

    def estimated_seconds(self, now: datetime) -> float | None:
        """How many seconds are left by what is known now; None when the batch has ended."""
        if self.ended or self.expected_end is None:
            return None
        return max(0.0, (self.expected_end - now).total_seconds())

    def with_rows(self, rows: Iterable[Row]) -> Batch:
        """The batch with those rows, told by their number, in place of its own."""
        changed = {row.row: row for row in rows}
        if not changed:
            return self
        return replace(self, rows=tuple(changed.get(row.row, row) for row in self.rows))

    def begun(self, goal: Goal, rows: Iterable[Row], now: datetime) -> Batch:
        """The batch at the start of another run at `now`, with those rows in place of its own."""
        batch = self.with_rows(rows)
        return replace(
            batch,
            rows_digest=rows_digest(batch.rows),
            status=BatchStatus.PROCESSING,
            goal=goal,
            completed_at=None,
            batch_activated=False,
            error_message=None,
            run_started_at=now,
            expected_end=now,
        )


def utc_now() -> datetime:
    """The time now, aware, in UTC."""
    return datetime.now(UTC)


def rows_digest(rows: Iterable[Row]) -> str:
    """The same text for the same hospitals in any order, another one for others."""
    hospitals = sorted((row.name, row.address, row.phone or "") for row in rows)
    return hashlib.sha256(json.dumps(hospitals).encode()).hexdigest()
