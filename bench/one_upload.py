"""One upload of 20 rows takes as long as one create: all its rows are in flight together."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

import requests

from bench.harness import CREATE_SECONDS, Figure, seconds_of, servers, upload

TIMES = 2


def measure() -> Iterator[Figure]:
    """Upload and a bare create in turn, against the deployed directory's 5 s without its limits."""
    with servers({"create_seconds": CREATE_SECONDS}, {}) as (directory, service):
        uploads, creates = [], []
        for _ in range(TIMES):
            uploads.append(upload(service))
            creates.append(seconds_of(lambda: _create(directory.url)))
        yield Figure("one upload of 20 rows, over one create of 5 s", median(uploads) / median(creates), at_most=1.05)


def _create(url: str) -> None:
    requests.post(f"{url}/hospitals/", json={"name": "A", "address": "B"}, timeout=60).raise_for_status()
