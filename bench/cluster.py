"""How many batches a cluster completes over 1, 2 and 4 workers, and what it costs when one of them dies or is stopped.

Only when it is named (`python -m bench cluster`): it needs a PostgreSQL server and takes some 4 minutes.
"""

from __future__ import annotations

import signal
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from bench.harness import ROWS, Figure, unlimited_directory
from tests.cluster import Cluster
from tests.directory import Directory
from tests.hospitals import csv_of
from tests.postgres import server

WORKERS = (1, 2, 4)
BATCHES_A_WORKER = 40
CREATE_SECONDS = 1.0
SETTINGS: dict[str, Any] = {"max_concurrent_creates": 100, "max_running_batches": 1000}
TIMES = 3
# A create is half done when its worker dies.
MOMENT_SECONDS = 0.5
# The directory's own delay of the deployed one is part of what a death costs.
DELAY_SECONDS = 10.0
IDLE_SECONDS = 10.0


def measure() -> Iterator[Figure]:
    """Batches a minute, seconds lost, and what the database is asked meanwhile."""
    try:
        server()
    except pytest.skip.Exception as none:
        print(f"cluster: {none} Nothing was measured.", file=sys.stderr)
        return
    for workers in WORKERS:
        yield Figure(f"batches of {ROWS} rows a minute over {workers} workers, 4 at once in each", throughput(workers))
    with Directory(**unlimited_directory(CREATE_SECONDS)) as directory:
        yield Figure("seconds of one batch that nothing disturbs", seconds_of_one(directory, None))
        yield Figure("  seconds more when its worker is told to stop", lost_seconds(directory, signal.SIGTERM))
        yield Figure("  seconds more when its worker is killed -9", lost_seconds(directory, signal.SIGKILL))
        idle, one_batch = transactions(directory)
        yield Figure("transactions a second of a worker that waits", idle)
        yield Figure(f"transactions of a batch of {ROWS} rows", one_batch)


def throughput(workers: int) -> float:
    """How many batches a minute are completed, from the first upload to the last end."""
    with (
        Directory(**unlimited_directory(CREATE_SECONDS)) as directory,
        Cluster(directory, webs=1, workers=workers, **SETTINGS) as cluster,
    ):
        batches = BATCHES_A_WORKER * workers
        for worker in cluster.workers:
            worker.wait_until_working()
        _upload(cluster)
        started_at = time.monotonic()
        ids = [cluster.upload(csv_of(ROWS, str(uuid.uuid4()))) for _ in range(batches)]
        for batch_id in ids:
            _completed(cluster, batch_id)
        return 60 * batches / (time.monotonic() - started_at)


def seconds_of_one(directory: Directory, number: signal.Signals | None) -> float:
    """How long a batch takes whose worker gets this signal half way through a create, at most of some times."""
    worst = 0.0
    with Cluster(directory, webs=1, workers=2, directory_delay_seconds=DELAY_SECONDS, **SETTINGS) as cluster:
        for _ in range(TIMES):
            for worker in cluster.workers:
                worker.wait_until_working()
            _upload(cluster)
            started_at = time.monotonic()
            batch_id = cluster.upload(csv_of(ROWS, str(uuid.uuid4())))
            if number is not None:
                worker = cluster.worker_of(batch_id)
                time.sleep(MOMENT_SECONDS)
                worker.process.send_signal(number)
            _completed(cluster, batch_id)
            worst = max(worst, time.monotonic() - started_at)
            if number is not None:
                cluster.workers.remove(worker)
                cluster.add_worker()
    return worst


def lost_seconds(directory: Directory, number: signal.Signals) -> float:
    """How much longer a batch takes at most whose worker gets this signal."""
    return seconds_of_one(directory, number) - seconds_of_one(directory, None)


def transactions(directory: Directory) -> tuple[float, float]:
    """The database's transactions a second while a worker has nothing to do, and those that one batch adds."""
    with Cluster(directory, webs=1, workers=1, **SETTINGS) as cluster:
        _upload(cluster)
        before = _transactions(cluster)
        time.sleep(IDLE_SECONDS)
        idle = (_transactions(cluster) - before) / IDLE_SECONDS
        before, started_at = _transactions(cluster), time.monotonic()
        cluster.webs[0].upload(csv_of(ROWS, str(uuid.uuid4())))
        time.sleep(1.0)  # the statistics come late
        return idle, _transactions(cluster) - before - idle * (time.monotonic() - started_at)


def _transactions(cluster: Cluster) -> int:
    with psycopg.connect(cluster.database_url, autocommit=True) as connection:
        connection.execute("SELECT pg_stat_force_next_flush()")
        found = connection.execute(
            "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
        ).fetchone()
    return int(found[0]) if found else 0


def _upload(cluster: Cluster) -> None:
    _completed(cluster, cluster.upload(csv_of(ROWS, str(uuid.uuid4()))))


def _completed(cluster: Cluster, batch_id: str) -> None:
    batch = cluster.ended(batch_id, 120)
    if batch["status"] != "completed":
        raise RuntimeError(f"A batch did not complete: {batch}")
