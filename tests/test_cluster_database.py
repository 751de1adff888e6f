"""A cluster whose database restarts, is away or hangs: callers are told, runs go on, and what is told to stop stops."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from tests.cluster import Cluster, RunningWorker
from tests.directory import Directory
from tests.events import Follower
from tests.hospitals import assert_exactly_once, csv_of
from tests.patience import PATIENCE, wait_for
from tests.postgres import OwnServer
from tests.running import RunningService
from tests.uploads import creates

CREATE_SECONDS = 1.0
ROWS = 6
# A host kills what has not ended 30 s after it was told to.
STOP_SECONDS = 30.0


def stop_without_database(take_away: Callable[[OwnServer], None]) -> float:
    """How many seconds a worker takes to end that is told to, with creates in flight and no database."""
    with (
        OwnServer() as server,
        Directory(create_seconds=100.0) as directory,
        Cluster(directory, webs=1, workers=1, database_url=server.url) as cluster,
    ):
        batch_id = cluster.upload(csv_of(ROWS))
        cluster.when(batch_id, lambda _: creates(directory) == ROWS)
        cluster.webs[0].process.kill()
        take_away(server)
        started_at = time.monotonic()
        cluster.workers[0].stop()
        return time.monotonic() - started_at


class TestTheDatabaseAway:
    def test_it_restarts_in_the_middle_and_nothing_is_lost_or_doubled(self) -> None:
        with (
            OwnServer() as server,
            Directory(create_seconds=CREATE_SECONDS) as directory,
            Cluster(directory, webs=1, workers=1, database_url=server.url, max_concurrent_creates=2) as cluster,
        ):
            ids = [cluster.upload(csv_of(rows, name)) for rows, name in ((20, "one"), (20, "other"))]
            cluster.when(ids[0], lambda batch: batch["processed_hospitals"] > 0)
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(cluster.webs[0].upload, csv_of(2, "who waits"))
                wait_for(lambda: len(cluster.webs[0].get("/batches").json()) == 3)
                server.stop()
                for _ in range(3):
                    refused = cluster.webs[0].upload(csv_of(1, "refused"))
                    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
                    assert "database does not answer" in refused.json()["detail"]
                    assert cluster.webs[0].get("/ready").status_code == 503
                    assert cluster.webs[0].get("/health").status_code == 200
                time.sleep(4)  # about as long as a lease
                server.start()
                assert_exactly_once(directory, cluster.webs[0].upload(csv_of(1, "new")).json())
                # The new one did not have to wait for the old ones, whose worker went on as before.
                assert "processing" in [cluster.batch(batch_id)["status"] for batch_id in ids]
                assert_exactly_once(directory, waiting.result(PATIENCE).json())
            for batch_id in ids:
                assert_exactly_once(directory, cluster.ended(batch_id))
            assert creates(directory) == 20 + 20 + 2 + 1
            assert directory.calls("delete_batch") == directory.calls("delete_one") == []
            [worker] = cluster.workers
            assert worker.output.count("taken up, run 1") == 4
            assert "taken up, run 2" not in worker.output

    def test_a_stream_goes_on_when_it_is_back(self) -> None:
        with (
            OwnServer() as server,
            Directory(create_seconds=CREATE_SECONDS) as directory,
            Cluster(directory, webs=1, workers=1, database_url=server.url, max_concurrent_creates=1) as cluster,
        ):
            batch_id = cluster.upload(csv_of(ROWS))
            with Follower(cluster.webs[0], batch_id) as follower, ThreadPoolExecutor(1) as pool:
                events = pool.submit(lambda: list(follower))
                cluster.when(batch_id, lambda batch: batch["processed_hospitals"] > 0)
                server.stop()
                time.sleep(3)
                server.start()
                told = events.result(60)
            assert (told[0].kind, told[-1].kind) == ("batch", "batch")
            assert_exactly_once(directory, told[-1].data)
            assert {event.data["row"] for event in told if event.kind == "row"} == set(range(1, ROWS + 1))
            assert "Traceback" not in cluster.webs[0].output

    def test_health_and_metrics_answer_while_it_hangs_and_creates_wait_for_it(self) -> None:
        settings: dict[str, Any] = {"embedded_workers": 1, "directory_create_limit": "2/1"}
        with (
            OwnServer() as server,
            Directory(create_seconds=0.1) as directory,
            Cluster(directory, workers=0, database_url=server.url, **settings) as cluster,
        ):
            [web] = cluster.webs
            batch_id = cluster.upload(csv_of(ROWS))
            cluster.when(batch_id, lambda batch: batch["waiting_for"] == "rate_limit")
            server.freeze()
            asked_until = time.monotonic() + 5
            while time.monotonic() < asked_until:
                for path in ("/health", "/metrics"):
                    # A create that waits for its token gives the database up after 10 s.
                    assert requests.get(web.url + path, timeout=6).status_code == 200
            server.go_on()
            assert_exactly_once(directory, cluster.ended(batch_id))

    def test_a_worker_that_is_told_to_stop_meanwhile_ends_in_time(self) -> None:
        with ThreadPoolExecutor(2) as pool:
            away, frozen = pool.map(stop_without_database, (OwnServer.stop, OwnServer.freeze))
        assert away < STOP_SECONDS
        assert frozen < STOP_SECONDS

    @pytest.mark.parametrize("how", ["away", "hangs"])
    def test_a_worker_that_starts_without_it_says_so_and_ends(self, how: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = 1 if how == "away" else silent.getsockname()[1]
            settings = {"database_url": f"postgresql://nobody:secret@127.0.0.1:{port}/none"}
            with RunningWorker("http://127.0.0.1:1", **settings) as worker:
                assert worker.process.wait(PATIENCE) == 1
                [line] = [line for line in worker.output.splitlines() if "DATABASE_URL" in line]
                assert line.startswith("The database of DATABASE_URL cannot be used: connection")
                assert "Traceback" not in worker.output
                assert "secret" not in worker.output
            with pytest.raises(
                RuntimeError, match="The database of DATABASE_URL cannot be used: connection"
            ) as refusal:
                RunningService("http://127.0.0.1:1", **settings)
            assert "Traceback" not in str(refusal.value)

    def test_a_web_process_too(self) -> None:
        with pytest.raises(RuntimeError, match="The database of DATABASE_URL cannot be used: connection") as refusal:
            RunningService("http://127.0.0.1:1", database_url="postgresql://nobody@127.0.0.1:1/none")
        assert "Traceback" not in str(refusal.value)

    def test_a_worker_needs_a_database_that_others_share(self) -> None:
        with RunningWorker("http://127.0.0.1:1", database_url="sqlite:///none.db") as worker:
            assert worker.process.wait(PATIENCE) == 1
            assert worker.output.startswith("A worker runs what web processes put into a PostgreSQL database")
