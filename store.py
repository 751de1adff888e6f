"""Where batches and their rows are kept: the few operations that every store offers, and the in-memory dict."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import Any, Protocol

from batch import Batch, BatchStatus, Goal, Row, utc_now


class StoreError(Exception):
    """The store cannot be used; the text says why, and what to do."""


class BatchNotFoundError(LookupError):
    """No batch has the id that is its text."""


class KeyTakenError(Exception):
    """Another batch was made under this idempotency key: `batch`."""

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch.batch_id)
        self.batch = batch


class WrongStatusError(Exception):
    """The batch is not in a status from which this can begin: `batch`."""

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch.batch_id)
        self.batch = batch


class TooManyBatchesError(Exception):
    """As many batches run as `MAX_RUNNING_BATCHES` allows, or the service stops: try again later."""


class TakenOverError(Exception):
    """Another process runs the batch now: this one may neither store nor send anything more of it."""


class GoalChangedError(Exception):
    """Another process wants the batch removed: how it was brought to its old goal is not to be stored."""


class RunStore(Protocol):
    """What one run asks of a store."""

    def save(self, batch_id: str, rows: Iterable[Row] = (), **changes: Any) -> None:
        """Replace those rows (told by their number) and set those fields of the batch.

        Raises `BatchNotFoundError` and, where several processes share the store, `TakenOverError` and, for a new
        status, `GoalChangedError`.
        """


class Store(RunStore, Protocol):
    """What the service asks of a store. Every operation is atomic and may be called from any thread."""

    def open(self) -> None:
        """Make it ready for use. Raises `StoreError`."""

    def close(self) -> None:
        """Let go of what it holds."""

    def add(self, batch: Batch) -> None:
        """Keep a new batch with all its rows. Raises `KeyTakenError`."""

    def get(self, batch_id: str) -> Batch:
        """The batch as it stands now. Raises `BatchNotFoundError`."""

    def begin(self, batch_id: str, statuses: Iterable[BatchStatus], goal: Goal, rows: Iterable[Row] = ()) -> Batch:
        """Begin another run of a batch that has ended in one of `statuses`, with those rows replaced.

        Raises `BatchNotFoundError` and `WrongStatusError`: of several that begin at once, one does.
        """

    def find_key(self, owner: str, key: str) -> Batch | None:
        """The batch that was made under this idempotency key, None without one."""

    def unfinished(self) -> list[Batch]:
        """The batches that a run works on, or worked on when the service ended, oldest first."""

    def page(self, limit: int, *, status: BatchStatus | None = None, after: str | None = None) -> list[Batch]:
        """Up to `limit` batches, newest first, of one status or any; from the one that follows `after` on.

        Raises `BatchNotFoundError` when there is no batch `after`.
        """

    def find_same_rows(self, digest: str) -> str | None:
        """The id of the newest batch whose `rows_digest` is this and that was not rolled back, None without one."""

    def check(self) -> None:
        """Return when the store can be read. Raises `StoreError` otherwise."""


class MemoryStore:
    """Batches in a dict, newest last. The oldest ended ones are dropped when more than `keep` have ended."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._batches: dict[str, Batch] = {}
        self._keys: dict[tuple[str, str], str] = {}
        self._ended: dict[str, None] = {}  # a dict for its order: the first to end is the first to go
        self._lock = threading.Lock()

    def open(self) -> None:
        """A dict is always ready."""

    def close(self) -> None:
        """Nothing is held."""

    def add(self, batch: Batch) -> None:
        """Keep a new batch with all its rows. Raises `KeyTakenError`."""
        with self._lock:
            if batch.idempotency_key is not None:
                key = (batch.idempotency_key.owner, batch.idempotency_key.key)
                if key in self._keys:
                    raise KeyTakenError(self._batches[self._keys[key]])
                self._keys[key] = batch.batch_id
            self._batches[batch.batch_id] = batch

    def get(self, batch_id: str) -> Batch:
        """The batch as it stands now. Raises `BatchNotFoundError`."""
        with self._lock:
            return self._find(batch_id)

    def save(self, batch_id: str, rows: Iterable[Row] = (), **changes: Any) -> None:
        """Replace those rows (told by their number) and set those fields of the batch. Raises `BatchNotFoundError`."""
        with self._lock:
            batch = self._find(batch_id)
            batch = self._batches[batch_id] = replace(batch.with_rows(rows), **changes)
            self._drop_oldest(batch)

    def begin(self, batch_id: str, statuses: Iterable[BatchStatus], goal: Goal, rows: Iterable[Row] = ()) -> Batch:
        """Begin another run. Raises `BatchNotFoundError` and `WrongStatusError`."""
        with self._lock:
            batch = self._find(batch_id)
            if batch.status not in statuses:
                raise WrongStatusError(batch)
            batch = self._batches[batch_id] = batch.begun(goal, rows, utc_now())
            self._ended.pop(batch_id, None)
            return batch

    def find_key(self, owner: str, key: str) -> Batch | None:
        """The batch that was made under this idempotency key, None without one."""
        with self._lock:
            batch_id = self._keys.get((owner, key))
            return None if batch_id is None else self._batches[batch_id]

    def unfinished(self) -> list[Batch]:
        """The batches that a run works on: none is left of a service that ended."""
        with self._lock:
            return [batch for batch in self._batches.values() if not batch.ended]

    def page(self, limit: int, *, status: BatchStatus | None = None, after: str | None = None) -> list[Batch]:
        """Up to `limit` batches, newest first. Raises `BatchNotFoundError` when there is no batch `after`."""
        with self._lock:
            if after is not None:
                self._find(after)
            newest_first = iter(list(reversed(self._batches.values())))
        if after is not None:
            for batch in newest_first:
                if batch.batch_id == after:
                    break
        return list(islice((batch for batch in newest_first if status in (None, batch.status)), limit))

    def find_same_rows(self, digest: str) -> str | None:
        """The id of the newest batch whose `rows_digest` is this and that was not rolled back, None without one."""
        with self._lock:
            for batch in reversed(self._batches.values()):
                if batch.rows_digest == digest and batch.status is not BatchStatus.ROLLED_BACK:
                    return batch.batch_id
        return None

    def check(self) -> None:
        """A dict can always be read."""

    def _find(self, batch_id: str) -> Batch:
        try:
            return self._batches[batch_id]
        except KeyError:
            raise BatchNotFoundError(batch_id) from None

    def _drop_oldest(self, batch: Batch) -> None:
        if batch.ended:
            self._ended.setdefault(batch.batch_id)
        while len(self._ended) > self._keep:
            oldest = next(iter(self._ended))
            del self._ended[oldest]
            key = self._batches.pop(oldest).idempotency_key
            if key is not None:
                del self._keys[key.owner, key.key]
