"""Whatever dies, freezes or goes away under a cluster: every batch is complete once, and nobody is left waiting."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import psycopg
import pytest
import requests

from tests.cluster import Cluster, Json, RunningWorker
from tests.directory import ROOT, Directory
from tests.hospitals import assert_exactly_once, csv_of
from tests.patience import PATIENCE, wait_for
from tests.postgres import fresh_database
from tests.uploads import creates

# A worker is dead when it was silent for 15 s, which is looked for every 5 s; then what it may have sent is waited out.
TAKEN_OVER_SECONDS = 60.0
# The directory still carries out what it was sent for so long, though whoever sent it is dead.
CREATE_SECONDS = 1.0
CREATE_DELAY = 1.5
ROWS = 6
# Two of its creates go out at once: it is to be under way for as long as another worker takes to start.
FROZEN_ROWS = 16
CREATE_SECONDS_MEANWHILE = 4.0
ASYNC = {"Prefer": "respond-async"}
TAKEN_OVER = "another process has taken the batch over"

# The story alone takes most of a minute.
pytestmark = pytest.mark.timeout(300)


@dataclass
class Story:
    """Three workers, of which one was killed and one was frozen, each with a batch it was running; how those ended."""

    directory: Directory
    killed: Json
    frozen: Json
    rolled_back: Json
    afterwards: Json
    seconds: float
    frozen_worker: RunningWorker
    sent_after_thaw: list[str]


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    with (
        Directory(create_seconds=CREATE_SECONDS) as directory,
        Cluster(
            directory,
            webs=2,
            workers=0,
            directory_delay_seconds=CREATE_DELAY,
            max_concurrent_creates=2,
        ) as cluster,
    ):
        freezing = cluster.add_worker(embedded_workers=1)
        directory.settings(create_seconds=CREATE_SECONDS_MEANWHILE)
        frozen_id = cluster.upload(csv_of(FROZEN_ROWS, "Frozen"))
        cluster.worker_of(frozen_id)
        dying = cluster.add_worker(embedded_workers=2)
        dying.wait_until_working()
        directory.settings(create_seconds=CREATE_SECONDS)
        killed_id, removed_id = cluster.upload(csv_of(ROWS, "Killed")), cluster.upload(csv_of(ROWS, "Removed"))
        for batch_id in (frozen_id, killed_id):
            cluster.when(batch_id, lambda batch: batch["processed_hospitals"] > 0)
        started_at = time.monotonic()
        dying.process.kill()
        freezing.send(signal.SIGSTOP)
        living = cluster.add_worker()
        requests.delete(f"{cluster.webs[1].url}/batches/{removed_id}", headers=ASYNC, timeout=PATIENCE)
        killed, frozen, removed = (
            cluster.ended(it, 2 * TAKEN_OVER_SECONDS) for it in (killed_id, frozen_id, removed_id)
        )
        seconds = time.monotonic() - started_at
        # One that starts strikes the silent off the list of workers; then the frozen one is the only one left.
        last = cluster.add_worker()
        last.wait_until_working()
        time.sleep(1)
        assert [last.stop(), living.stop()] == [0, 0]
        before = len(directory.calls())
        freezing.send(signal.SIGCONT)
        wait_for(lambda: TAKEN_OVER in freezing.output)
        time.sleep(1)
        sent_after_thaw = [call["kind"] for call in directory.calls()[before:] if call["method"] != "GET"]
        afterwards = cluster.webs[0].upload(csv_of(1, "Afterwards")).json()
        yield Story(directory, killed, frozen, removed, afterwards, seconds, freezing, sent_after_thaw)


class TestWorkersThatDie:
    def test_the_batch_of_a_worker_that_was_killed_is_complete_within_a_minute(self, story: Story) -> None:
        assert_exactly_once(story.directory, story.killed)
        assert story.seconds < TAKEN_OVER_SECONDS

    def test_so_is_the_batch_of_a_worker_that_was_frozen(self, story: Story) -> None:
        assert_exactly_once(story.directory, story.frozen)

    def test_neither_has_one_create_too_many(self, story: Story) -> None:
        for batch in (story.killed, story.frozen):
            names = Counter(it["name"] for it in story.directory.hospitals(batch["batch_id"]))
            assert set(names.values()) == {1}
            assert creates(story.directory, batch["batch_id"]) == batch["total_hospitals"]

    def test_one_that_was_rolled_back_meanwhile_is_gone(self, story: Story) -> None:
        assert story.rolled_back["status"] == "rolled_back"
        assert story.directory.hospitals(story.rolled_back["batch_id"]) == []

    def test_a_worker_that_comes_back_sends_nothing_more_of_what_others_took(self, story: Story) -> None:
        assert story.sent_after_thaw == []
        assert TAKEN_OVER in story.frozen_worker.output
        assert story.frozen_worker.process.poll() is None

    def test_it_works_on_for_others(self, story: Story) -> None:
        assert_exactly_once(story.directory, story.afterwards)
        assert f"batch={story.afterwards['batch_id']}] taken up" in story.frozen_worker.output


class TestWorkersThatStop:
    def test_a_worker_that_is_told_to_stop_gives_its_batch_back_at_once(self) -> None:
        with (
            Directory(create_seconds=CREATE_SECONDS) as directory,
            Cluster(directory, webs=1, workers=2, max_concurrent_creates=2, directory_delay_seconds=100) as cluster,
        ):
            batch_id = cluster.upload(csv_of(2 * ROWS))
            worker = cluster.worker_of(batch_id)
            cluster.when(batch_id, lambda batch: batch["processed_hospitals"] >= 2)
            assert worker.stop() == 0
            # Nothing was left unknown: there is no delay to wait out.
            assert_exactly_once(directory, cluster.ended(batch_id))
            assert creates(directory) == 2 * ROWS
            assert [f"batch={batch_id}] taken up" in it.output for it in cluster.workers] == [True, True]

    def test_a_web_process_that_dies_takes_nothing_with_it(self) -> None:
        with Directory(create_seconds=2.0) as directory, Cluster(directory, webs=2, workers=1) as cluster:
            batch_id = cluster.upload(csv_of(ROWS), web=0)
            cluster.worker_of(batch_id)
            cluster.webs[0].process.kill()
            assert_exactly_once(directory, cluster.ended(batch_id, web=1))
            assert creates(directory) == ROWS

    def test_a_web_process_with_workers_of_its_own_gives_back_what_they_run(self) -> None:
        with (
            Directory(create_seconds=CREATE_SECONDS) as directory,
            Cluster(directory, webs=2, workers=0, embedded_workers=1, max_concurrent_creates=2) as cluster,
        ):
            ids = [cluster.upload(csv_of(ROWS, name)) for name in ("one", "other")]
            cluster.when(ids[1], lambda _: creates(directory) >= 3)
            assert cluster.webs[0].stop() == 0
            for batch_id in ids:
                assert_exactly_once(directory, cluster.ended(batch_id, web=1))
            assert creates(directory) == 2 * ROWS


class TestRunCluster:
    def test_ctrl_c_leaves_nothing_behind(self) -> None:
        with fresh_database() as url:
            port = _two_free_ports()
            environ = {"DATABASE_URL": url, "PORT": str(port), "EMBEDDED_DIRECTORY_PORT": "0", "PATH": "/usr/bin:/bin"}
            process = subprocess.Popen(
                [sys.executable, "run_cluster.py"],
                cwd=ROOT,
                env=environ,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line)
                if "Ctrl-C" in line:
                    break
            assert lines, "It did not start"
            pids = _descendants(process.pid)
            answer = requests.post(
                f"http://127.0.0.1:{port}/hospitals/bulk",
                files={"file": ("hospitals.csv", csv_of(2), "text/csv")},
                headers=ASYNC,
                timeout=PATIENCE,
            )
            assert answer.status_code == 202
            assert len(pids) == 1 + 2 * 2 + 3  # the directory; gunicorn and its worker, twice; the workers
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 0
            process.stdout.close()
            assert [pid for pid in pids if _is_there(pid)] == []
            with psycopg.connect(url) as connection:
                found = connection.execute("SELECT count(*) FROM procrastinate_jobs WHERE status = 'doing'").fetchone()
            assert found == (0,)


def _two_free_ports() -> int:
    """The first of two ports in a row that nobody uses, below those that connections take by themselves."""
    for port in random.sample(range(20_000, 30_000, 2), 50):
        with (
            suppress(OSError),
            socket.create_server(("127.0.0.1", port)),
            socket.create_server(("127.0.0.1", port + 1)),
        ):
            return port
    raise AssertionError("No port is free.")


def _descendants(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "--ppid", str(pid), "-o", "pid="], capture_output=True, check=False).stdout
    children = [int(child) for child in listed.split()]
    return children + [below for child in children for below in _descendants(child)]


def _is_there(pid: int) -> bool:
    return subprocess.call(["ps", "-p", str(pid)], stdout=subprocess.DEVNULL) == 0
