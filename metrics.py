"""What is counted and timed, for Prometheus: each is counted in the one place where it happens.

They count since the process started, for all apps in it. What is going on at the moment is read from the parts of one
service by `live_metrics`. Whoever counts on a busy path takes the child for its labels once, here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum

from prometheus_client import Counter, Histogram, disable_created_metrics

from batch import BatchStatus, RowStatus, WaitingFor
from directory_errors import DirectoryError, NotLetIn, NotSent, RateLimited, Rejected

# When each series began is of no use to a person on call, and would double the answer.
_disable: Callable[[], None] = disable_created_metrics
_disable()


class Create(StrEnum):
    """How a create ended."""

    CREATED = "created"
    REJECTED = "rejected"
    NOT_LET_IN = "not_let_in"
    UNKNOWN = "unknown"


class Again(StrEnum):
    """Why a call is made again."""

    NOT_SENT = "not_sent"
    RATE_LIMITED = "rate_limited"
    UNKNOWN = "unknown_outcome"


class UnsureCall(StrEnum):
    """What was asked of the directory when the outcome became unknown."""

    CREATE = "create"
    ACTIVATE = "activate"
    DELETE = "delete"


class Settled(StrEnum):
    """What a later listing showed of an unknown outcome."""

    DONE = "done"
    NOT_DONE = "not_done"
    DOUBLE = "double"


_batches = Counter(
    "hospital_bulk_batches",
    "Runs of batches that ended, by how: `failed` and `interrupted` wait for somebody to resume or roll them back.",
    ["outcome"],
)
BATCHES: dict[BatchStatus, Counter] = {
    status: _batches.labels(status) for status in BatchStatus if status is not BatchStatus.PROCESSING
}

_rows = Counter(
    "hospital_bulk_rows",
    "Rows by the state they came to; `pending` are those that the directory no longer had and that go out again.",
    ["outcome"],
)
ROWS = {status: _rows.labels(status) for status in RowStatus}

_create_seconds = Histogram(
    "hospital_bulk_create_seconds",
    "How long one create took at the directory, by outcome; 5 s is usual there, over 20 s it was waking up.",
    ["outcome"],
    buckets=(0.1, 0.5, 1, 2, 4, 5, 5.5, 6, 8, 10, 15, 20, 30, 45, 60, 90, 120),
)
CREATE_SECONDS = {outcome: _create_seconds.labels(outcome) for outcome in Create}

CREATES_REFUSED = Counter(
    "hospital_bulk_creates_refused",
    "Creates that the directory answered 429: somebody else uses its limit, or DIRECTORY_CREATE_LIMIT is too high.",
)

_again = Counter(
    "hospital_bulk_calls_tried_again",
    "Calls to the directory, creates included, that are made again, by why the one before did not do.",
    ["reason"],
)
TRIED_AGAIN = {reason: _again.labels(reason) for reason in Again}

_unknown = Counter(
    "hospital_bulk_unknown_outcomes",
    "Calls to the directory of which nobody knew whether they were carried out: lost or late answers, 5xx, garbage.",
    ["call"],
)
UNKNOWN = {call: _unknown.labels(call) for call in UnsureCall}

_settled = Counter(
    "hospital_bulk_unknown_outcomes_settled",
    "Unknown outcomes that a listing has settled: it was done, it was not done, or the hospital was there twice.",
    ["call", "outcome"],
)
SETTLED = {
    (call, outcome): _settled.labels(call, outcome)
    for call in UnsureCall
    for outcome in Settled
    if call is UnsureCall.CREATE or outcome is not Settled.DOUBLE
}

DOUBLES_REMOVED = Counter(
    "hospital_bulk_doubles_removed",
    "Hospitals that were in the directory twice under one batch and were deleted there.",
)

_waited = Counter(
    "hospital_bulk_batches_waited_seconds",
    "Seconds that batches stood still, added up over batches, by what they waited for.",
    ["waiting_for"],
)
WAITED_SECONDS = {what: _waited.labels(what) for what in WaitingFor}

FILES_REFUSED = Counter(
    "hospital_bulk_files_refused",
    "Files refused because of errors in them, uploaded or sent to resume a batch.",
)

HTTP_REQUESTS = Counter(
    "hospital_bulk_http_requests",
    "Requests answered, by method, by address as a pattern (`none`: there is nothing there; `unread`: the request was "
    "refused before it was here as a whole) and by status.",
    ["method", "endpoint", "status"],
)
HTTP_SECONDS = Histogram(
    "hospital_bulk_http_request_seconds",
    "How long requests took until the last byte of the answer; uploads wait for their batch, streams for its end.",
    ["method", "endpoint"],
    buckets=(0.005, 0.025, 0.1, 0.5, 1, 2.5, 5, 6, 8, 10, 30, 60, 120, 300),
)


@contextmanager
def timed_create() -> Iterator[None]:
    """Time the create made inside, and count how it ended by what it raises."""
    started_at, outcome = time.perf_counter(), Create.UNKNOWN
    try:
        yield
        outcome = Create.CREATED
    except NotLetIn as error:
        outcome = Create.NOT_LET_IN
        if isinstance(error, RateLimited):
            CREATES_REFUSED.inc()
        raise
    except Rejected:
        outcome = Create.REJECTED
        raise
    finally:
        CREATE_SECONDS[outcome].observe(time.perf_counter() - started_at)


def count_again(error: DirectoryError) -> None:
    """Count that a call is made again after this error."""
    match error:
        case NotSent():
            TRIED_AGAIN[Again.NOT_SENT].inc()
        case RateLimited():
            TRIED_AGAIN[Again.RATE_LIMITED].inc()
        case _:
            TRIED_AGAIN[Again.UNKNOWN].inc()
