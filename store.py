"""Where batches and their rows are kept: the few operations that every store offers, and the in-memory dict."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import Any, Protocol

from batch import Batch, BatchStatus, Row


class BatchNotFoundError(LookupError):
    """No batch has this id."""


class Store(Protocol):
    """What the service asks of a store. Every operation is atomic and may be called from any thread."""

    def add(self, batch: Batch) -> None:
        """Keep a new batch with all its rows."""

    def get(self, batch_id: str) -> Batch:
        """The batch as it stands now. Raises `BatchNotFoundError`."""

    def save(self, batch_id: str, rows: Iterable[Row] = (), **changes: Any) -> None:
        """Replace those rows (told by their number) and set those fields of the batch. Raises `BatchNotFoundError`."""

    def page(self, limit: int, *, status: BatchStatus | None = None, after: str | None = None) -> list[Batch]:
        """Up to `limit` batches, newest first, of one status or any; from the one that follows `after` on.

        Raises `BatchNotFoundError` when there is no batch `after`.
        """

    def find_same_rows(self, digest: str) -> str | None:
        """The id of the newest batch whose `rows_digest` is this and that was not rolled back, None without one."""

    def check(self) -> None:
        """Return when the store can be read; raise otherwise."""


class MemoryStore:
    """Batches in a dict, newest last. The oldest ended ones are dropped when more than `keep` have ended."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._batches: dict[str, Batch] = {}
        self._ended: dict[str, None] = {}  # a dict for its order: the first to end is the first to go
        self._lock = threading.Lock()

    def add(self, batch: Batch) -> None:
        """Keep a new batch with all its rows."""
        with self._lock:
            self._batches[batch.batch_id] = batch

    def get(self, batch_id: str) -> Batch:
        """The batch as it stands now. Raises `BatchNotFoundError`."""
        with self._lock:
            return self._find(batch_id)

    def save(self, batch_id: str, rows: Iterable[Row] = (), **changes: Any) -> None:
        """Replace those rows (told by their number) and set those fields of the batch. Raises `BatchNotFoundError`."""
        with self._lock:
            batch = self._find(batch_id)
            if rows:
                kept = list(batch.rows)
                for row in rows:
                    kept[row.row - 1] = row
                changes["rows"] = tuple(kept)
            batch = self._batches[batch_id] = replace(batch, **changes)
            self._drop_oldest(batch)

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
        if not batch.ended:
            self._ended.pop(batch.batch_id, None)  # it runs again
            return
        self._ended.setdefault(batch.batch_id)
        while len(self._ended) > self._keep:
            oldest = next(iter(self._ended))
            del self._ended[oldest], self._batches[oldest]
