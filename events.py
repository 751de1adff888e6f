"""A batch as a stream of server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator

from batch import Batch, utc_now
from batch_json import batch_json, row_json
from store import BatchNotFoundError, Store, StoreError

logger = logging.getLogger(__name__)

# How often the store is read, and after how long without a change something is sent all the same, in seconds: that
# keeps proxies from closing the connection, and shows when the caller has left.
READ_EVERY_SECONDS = 0.5
HEARTBEAT_SECONDS = 5.0


def batch_events(batch: Batch, store: Store, stopping: threading.Event) -> Iterator[str]:
    """`batch`, then a `row` for each that changes and `progress` as it goes on, and `batch` again at the end.

    Of a batch that has ended `batch` alone. The stream ends with the batch, or when the service stops; while the store
    does not answer it waits.
    """
    yield _event("batch", batch_json(batch, utc_now()))
    sent_at = time.monotonic()
    while not batch.ended and not stopping.wait(READ_EVERY_SECONDS):
        before = batch
        try:
            batch = store.get(batch.batch_id)
        except BatchNotFoundError:
            return  # it ended and was dropped in between, as KEEP_BATCHES wants
        except StoreError as error:
            logger.warning("a stream waits: %s", error)
        events = "" if batch is before else "".join(_changes(before, batch))
        if not events and time.monotonic() - sent_at >= HEARTBEAT_SECONDS:
            events = ": still here\n\n"
        if events:
            yield events
            sent_at = time.monotonic()


def _changes(before: Batch, batch: Batch) -> Iterator[str]:
    for old, row in zip(before.rows, batch.rows, strict=True):
        if row != old:
            yield _event("row", row_json(row))
    if batch.ended:
        yield _event("batch", batch_json(batch, utc_now()))
    elif (batch.waiting_for, batch.expected_end) != (before.waiting_for, before.expected_end):
        yield _event("progress", batch_json(batch, utc_now(), with_hospitals=False))


def _event(kind: str, data: object) -> str:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"
