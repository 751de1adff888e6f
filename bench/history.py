"""What keeping the history on disk costs an upload of 20 rows, against a directory of 1 s."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from bench.harness import Figure, servers, upload
from tests.running import RunningService

TIMES = 9


def measure() -> Iterator[Figure]:
    """Uploads to a service with an SQLite file and to one without, in turn, over the same directory."""
    with (
        tempfile.TemporaryDirectory() as folder,
        servers({"create_seconds": 1}, {}) as (directory, in_memory),
        RunningService(directory.url, database_url=f"sqlite:///{Path(folder) / 'history.db'}") as on_disk,
    ):
        turns = [(upload(on_disk), upload(in_memory)) for _ in range(1 + TIMES)]
    # The first turn warms them up.
    ours, without = (median(times) for times in zip(*turns[1:], strict=True))
    yield Figure("one upload of 20 rows kept in SQLite, over one kept in memory", ours / without, at_most=1.05)
