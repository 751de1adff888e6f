"""`python -m bench.cluster_chaos [rounds] [seed]` attacks a cluster at random moments, and counts what is lost.

Two web processes, one with workers of its own, and two workers over a PostgreSQL server made for it. Uploads come all
the time, each under a key of its own and sent again until it is answered; some batches are rolled back from the other
web process while they run. Each round kills, stops or freezes a process, or restarts the database. By default 20 rounds
of some 15 seconds; the exit status is 0 when no row was lost or doubled and no batch is left half active.
"""

from __future__ import annotations

import os
import random
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import requests

from bench.harness import print_counts
from tests.cluster import Cluster, RunningWorker
from tests.directory import Directory
from tests.hospitals import csv_of
from tests.patience import wait_for
from tests.postgres import OwnServer

ROUNDS, SEED = 20, 1
ROUND_SECONDS = (2.0, 10.0)
FROZEN_SECONDS = (16.0, 22.0)  # longer than a worker may be silent
AWAY_SECONDS = (0.0, 6.0)
MOST_ROWS = 12
PAUSE_SECONDS = (0.2, 1.4)
CREATE_SECONDS = 0.8
SETTINGS = {
    "directory_delay_seconds": 1.5,
    "directory_retry_seconds": 0.2,
    "directory_create_limit": "40/1",
    "max_running_batches": 1000,
}
ROLLED_BACK_OF_TEN = 2
RESUMES = 3
PATIENCE_SECONDS = 240.0

ASYNC = {"Prefer": "respond-async"}
ROUND = "{:>5}  {:<16} {:>6} {:>8} {:>8} {:>8} {:>8}"


@dataclass(slots=True)
class Uploads:
    """The files that were sent, by their keys; `batch_ids` of those answered, `removed` those rolled back."""

    random: random.Random
    cluster: Cluster
    rows: dict[str, int] = field(default_factory=dict)
    batch_ids: dict[str, str] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)

    def send_until(self, over: threading.Event) -> None:
        """Send one file after another, to either web process, first again those that had no answer."""
        while not over.wait(self.random.uniform(*PAUSE_SECONDS)):
            for key in self.rows.keys() - self.batch_ids.keys():
                self.send(key)
            key = f"File {len(self.rows)}"
            self.rows[key] = self.random.randint(1, MOST_ROWS)
            web = self.send(key)
            if key in self.batch_ids and self.random.randrange(10) < ROLLED_BACK_OF_TEN:
                self.removed.add(key)
                time.sleep(self.random.uniform(0, 2 * CREATE_SECONDS))
                self.remove(key, 1 - web)

    def send(self, key: str) -> int:
        """Send a file once to one of the web processes, and return which; one that dies leaves it unanswered."""
        web = self.random.randrange(2)
        with suppress(requests.RequestException):
            headers = {**ASYNC, "Idempotency-Key": key}
            answer = self.cluster.webs[web].upload(csv_of(self.rows[key], key), headers)
            if answer.status_code in (200, 202):
                self.batch_ids[key] = answer.json()["batch_id"]
        return web

    def remove(self, key: str, web: int) -> None:
        """Ask once for a batch to be rolled back."""
        with suppress(requests.RequestException):
            url = f"{self.cluster.webs[web].url}/batches/{self.batch_ids[key]}"
            requests.delete(url, headers=ASYNC, timeout=30)


class Attacks:
    """What is done to the cluster, one at a time; returns when as many processes live as before."""

    def __init__(self, cluster: Cluster, server: OwnServer, draw: random.Random) -> None:
        self._cluster = cluster
        self._server = server
        self._random = draw
        self.all: dict[str, tuple[Callable[[], None], int]] = {
            "kill -9 worker": (lambda: self._end(signal.SIGKILL), 4),
            "SIGTERM worker": (lambda: self._end(signal.SIGTERM), 1),
            "freeze worker": (self._freeze, 2),
            "kill -9 web": (self._kill_web, 2),
            "restart database": (self._restart, 2),
        }

    def _worker(self) -> RunningWorker:
        return self._random.choice(self._cluster.workers)

    def _end(self, number: signal.Signals) -> None:
        worker = self._worker()
        self._cluster.workers.remove(worker)
        worker.stop(number)
        self._cluster.add_worker()

    def _freeze(self) -> None:
        worker = self._worker()
        worker.send(signal.SIGSTOP)
        time.sleep(self._random.uniform(*FROZEN_SECONDS))
        worker.send(signal.SIGCONT)

    def _kill_web(self) -> None:
        number = self._random.randrange(2)
        web = self._cluster.webs[number]
        web.process.kill()  # its worker ends when it sees that
        worker = int(re.findall(r"Booting worker with pid: (\d+)", web.output)[-1])
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
        new = self._cluster.add_web(embedded_workers=2 * number)
        self._cluster.webs.remove(new)
        self._cluster.webs[number] = new

    def _restart(self) -> None:
        self._server.stop()
        time.sleep(self._random.uniform(*AWAY_SECONDS))
        self._server.start()


def attack(cluster: Cluster, server: OwnServer, uploads: Uploads, rounds: int) -> None:
    """Go through the rounds, while files are uploaded."""
    print(ROUND.format("round", "attack", "after", "files", "running", "done", "creates"), flush=True)
    draw = random.Random(uploads.random.random())
    attacks = Attacks(cluster, server, draw)
    over = threading.Event()
    sending = threading.Thread(target=uploads.send_until, args=(over,))
    sending.start()
    try:
        for number in range(1, rounds + 1):
            seconds = draw.uniform(*ROUND_SECONDS)
            time.sleep(seconds)
            statuses = Counter(batch["status"] for batch in _batches(cluster))
            how = draw.choices(list(attacks.all), [weight for _, weight in attacks.all.values()])[0]
            attacks.all[how][0]()
            line = (number, how, f"{seconds:.1f}", len(uploads.rows), statuses["processing"], statuses["completed"],
                    len(cluster.directory.calls("create")))  # fmt: skip
            print(ROUND.format(*line), flush=True)
    finally:
        over.set()
        sending.join()


def finish(cluster: Cluster, uploads: Uploads) -> tuple[int, int]:
    """Bring everything to its end; return how many batches had to be resumed, and to be rolled back once more."""
    for key in uploads.rows.keys() - uploads.batch_ids.keys():
        uploads.send(key)
    resumed: set[str] = set()
    removed_again: set[str] = set()
    for _ in range(1 + RESUMES):
        wait_for(lambda: not _batches(cluster, "processing"), bool, PATIENCE_SECONDS)
        left = {batch["batch_id"]: batch["status"] for batch in _batches(cluster)}
        for key, batch_id in uploads.batch_ids.items():
            if key in uploads.removed and left[batch_id] != "rolled_back":
                removed_again.add(batch_id)
                uploads.remove(key, 0)
            elif key not in uploads.removed and left[batch_id] != "completed":
                resumed.add(batch_id)
                url = f"{cluster.webs[0].url}/batches/{batch_id}/resume"
                requests.post(url, headers=ASYNC, timeout=30)
    return len(resumed), len(removed_again)


def count(cluster: Cluster, uploads: Uploads) -> dict[str, int]:
    """What the directory holds against what was uploaded; the first of these must be 0."""
    held = cluster.directory.hospitals()
    copies = Counter(hospital["name"] for hospital in held)
    active = {(hospital["creation_batch_id"], hospital["name"]) for hospital in held if hospital["active"]}
    wanted = {
        (uploads.batch_ids.get(key), f"{key} {number}")
        for key, rows in uploads.rows.items()
        if key not in uploads.removed
        for number in range(rows)
    }
    removed = {uploads.batch_ids[key] for key in uploads.removed}
    states: dict[str, set[bool]] = {}
    for hospital in held:
        states.setdefault(hospital["creation_batch_id"], set()).add(hospital["active"])
    statuses = {batch["batch_id"]: batch["status"] for batch in _batches(cluster)}
    names = Counter(call["batch_id"] for call in cluster.directory.calls("create"))
    all_rows = {uploads.batch_ids[key]: rows for key, rows in uploads.rows.items() if key in uploads.batch_ids}
    calls = cluster.directory.calls()
    return {
        "rows lost": len(wanted - active),
        "rows doubled": sum(times - 1 for times in copies.values()),
        "batches half active": sum(len(each) > 1 for each in states.values()),
        "rows of batches that were rolled back": sum(it["creation_batch_id"] in removed for it in held),
        "batches not as they should end": sum(
            status != ("rolled_back" if batch_id in removed else "completed") for batch_id, status in statuses.items()
        ),
        "batches beyond the files, or unknown": len(statuses.keys() ^ set(uploads.batch_ids.values())),
        "creates beyond the rows": sum(max(0, times - all_rows.get(it, 0)) for it, times in names.items()),
        "doubles that were tidied up": sum(it["kind"] == "delete_one" for it in calls),
        "files": len(uploads.rows),
        "files rolled back": len(removed),
        "rows": sum(all_rows.values()),
    }


MUST_BE_NONE = 6


def main(rounds: int = ROUNDS, seed: int = SEED) -> int:
    """Run it all; 0 when what must be none is none."""
    started_at = time.monotonic()
    with (
        OwnServer() as server,
        Directory(create_seconds=CREATE_SECONDS) as directory,
        Cluster(directory, webs=0, workers=2, database_url=server.url, **SETTINGS) as cluster,
    ):
        for embedded in (0, 2):
            cluster.add_web(embedded_workers=embedded)
        uploads = Uploads(random.Random(seed), cluster)
        attack(cluster, server, uploads, rounds)
        resumed, removed_again = finish(cluster, uploads)
        counts = count(cluster, uploads)
    failed = print_counts(counts, MUST_BE_NONE)
    print(f"{'batches that had to be resumed':<42} {resumed:>6}")
    print(f"{'roll backs that had to be said again':<42} {removed_again:>6}  most were never answered")
    print(f"{'seconds in all':<42} {time.monotonic() - started_at:>6.0f}")
    return 1 if failed else 0


def _batches(cluster: Cluster, status: str = "") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    path = f"/batches?limit=200&status={status}"
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while path:
        answer = cluster.webs[0].get(path)
        if (
            time.monotonic() < give_up_at and answer.status_code == HTTPStatus.SERVICE_UNAVAILABLE
        ):  # the database has only just come back
            time.sleep(0.5)
            continue
        answer.raise_for_status()
        found += answer.json()
        path = answer.links.get("next", {}).get("url", "")
    return found


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:3])))
