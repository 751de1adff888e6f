"""Fifty uploads at once, a thousand creates in flight: together they take little longer than one create."""

from __future__ import annotations

from collections.abc import Iterator

from bench.harness import (
    CREATE_SECONDS,
    ROWS,
    BarePool,
    Figure,
    seconds_of,
    servers,
    together,
    unlimited_directory,
    upload,
)

UPLOADS = 50


def measure() -> Iterator[Figure]:
    """Fifty uploads of 20 rows, and a bare pool with a thread for each of the same rows."""
    with servers(unlimited_directory(CREATE_SECONDS), {"max_concurrent_creates": 1000}) as (directory, service):
        ours = seconds_of(lambda: together(UPLOADS, lambda: upload(service)))
        bare = BarePool(directory, UPLOADS * ROWS)
        pool = seconds_of(lambda: bare.create_batches(UPLOADS))
        yield Figure("50 x 20 rows at once, over one create of 5 s", ours / CREATE_SECONDS, at_most=1.3)
        yield Figure("the same in a bare pool of 1,000 threads", pool / CREATE_SECONDS)
