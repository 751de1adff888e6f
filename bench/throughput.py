"""Rows a second when the directory answers at once: what the service itself costs, against a bare pool.

Both have as many threads as `MAX_CONCURRENT_CREATES` is by default, and take turns on the same directory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median

from bench.harness import ROWS, BarePool, Figure, seconds_of, servers, together, unlimited_directory, upload
from tests.directory import Directory

THREADS = 30
TURNS = 5
CLIENTS, UPLOADS_EACH = 8, 10
HUGE_ROWS = 3000


def measure() -> Iterator[Figure]:
    """Two shapes of load: uploads of 20 rows from several clients, and one upload of some thousand rows."""
    settings = {"max_concurrent_creates": THREADS, "max_csv_rows": HUGE_ROWS}
    with servers(unlimited_directory(0), settings) as (directory, service):

        def client() -> None:
            for _ in range(UPLOADS_EACH):
                upload(service)

        yield from _compare(
            directory, lambda: together(CLIENTS, client), batches=CLIENTS * UPLOADS_EACH, rows=ROWS, clients=CLIENTS
        )
        yield from _compare(directory, lambda: upload(service, HUGE_ROWS), batches=1, rows=HUGE_ROWS, clients=1)


def _compare(
    directory: Directory, ours: Callable[[], object], *, batches: int, rows: int, clients: int
) -> Iterator[Figure]:
    bare, quicker = BarePool(directory, THREADS), BarePool(directory, THREADS, trust_env=False)
    peers = (lambda: bare.create_batches(batches, rows), lambda: quicker.create_batches(batches, rows))
    turns = [[seconds_of(work) for work in (ours, *peers)] for _ in range(1 + TURNS)]
    # The first turn warms them up.
    our_rate, bare_rate, quicker_rate = (batches * rows / median(times) for times in zip(*turns[1:], strict=True))
    name = f"{batches} x {rows:,} rows from {clients} clients: rows a second"
    yield Figure(f"{name}, over a bare pool's", our_rate / bare_rate, at_least=0.8)
    yield Figure("  over those of a bare pool without trust_env", our_rate / quicker_rate)
    yield Figure("  rows a second of the service", our_rate)
    yield Figure("  rows a second of the bare pool", bare_rate)
