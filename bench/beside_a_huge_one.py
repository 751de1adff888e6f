"""A small batch beside a huge one: it waits for the creates in flight, never for the rows that wait."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from bench.harness import Figure, servers, unlimited_directory, upload

CREATE_SECONDS = 1.0
HUGE_ROWS = 300
# At which point of the huge batch's creates the small one comes: just after they left, half way, just before the end.
MOMENTS = (0.1, 0.5, 0.9)


def measure() -> Iterator[Figure]:
    """At worst it comes just after 30 creates left and takes two creates' time; in line it would take ten."""
    with servers(unlimited_directory(CREATE_SECONDS), {"max_concurrent_creates": 30, "max_csv_rows": HUGE_ROWS}) as (
        _,
        service,
    ):
        alone = upload(service)
        with ThreadPoolExecutor(1) as pool:
            huge = pool.submit(upload, service, HUGE_ROWS)
            beside = []
            for moment in MOMENTS:
                time.sleep(CREATE_SECONDS * moment)
                beside.append(upload(service))
            if huge.done():
                raise RuntimeError("The huge batch ended before the small ones: nothing was measured.")
            huge.result()
        yield Figure("20 rows beside 300, over 20 alone: the worst", max(beside) / alone, at_most=2.1)
        yield Figure("  the best", min(beside) / alone)
