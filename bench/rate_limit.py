"""More uploads than the directory's own limit takes at once: nothing is refused, and no time is lost."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator

from bench.harness import CREATE_SECONDS, ROWS, Figure, servers, together, upload
from tests.directory import Directory
from tests.running import RunningService

UPLOADS = 3
LIMIT, WINDOW_SECONDS = 30, 60
DIRECTORY = {"create_seconds": CREATE_SECONDS, "create_limit": f"{LIMIT}/{WINDOW_SECONDS}"}
# The service's defaults; RunningService would set shorter waits and no limit.
SERVICE = {"directory_create_limit": "30/60", "directory_delay_seconds": 10, "directory_retry_seconds": 5}


def measure() -> Iterator[Figure]:
    """Three uploads of 20 rows, first together, then one after another, each against a fresh directory."""
    # At best 30 creates leave at once and 30 when the window ends.
    yield from _measure("together", _together, at_best=WINDOW_SECONDS + CREATE_SECONDS)
    # At best the second ends with the first creates of the next window, which has room for all of the third.
    yield from _measure("one after another", _in_turn, at_best=WINDOW_SECONDS + 2 * CREATE_SECONDS)


def _measure(how: str, work: Callable[[RunningService], list[float]], at_best: float) -> Iterator[Figure]:
    with servers(DIRECTORY, SERVICE) as (directory, service):
        started_at = time.perf_counter()
        uploads = work(service)
        whole = time.perf_counter() - started_at
        name = f"{UPLOADS} x {ROWS} rows {how} at 30 creates a minute"
        yield Figure(f"{name}: the whole, over {at_best:g} s", whole / at_best, at_most=1.1)
        yield Figure(f"{name}: the first, over one create", min(uploads) / CREATE_SECONDS, at_most=1.1)
        yield Figure(f"{name}: calls refused", _refused(directory), at_most=0)
        yield Figure(f"{name}: rows missing or doubled", _rows_astray(directory), at_most=0)


def _together(service: RunningService) -> list[float]:
    return together(UPLOADS, lambda: upload(service))


def _in_turn(service: RunningService) -> list[float]:
    return [upload(service) for _ in range(UPLOADS)]


def _refused(directory: Directory) -> int:
    return sum(call["status"] == 429 for call in directory.calls())


def _rows_astray(directory: Directory) -> int:
    names = Counter(hospital["name"] for hospital in directory.hospitals() if hospital["active"])
    return abs(UPLOADS * ROWS - len(names)) + sum(count - 1 for count in names.values())
