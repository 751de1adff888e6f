"""`python -m bench.kill [rounds] [seed]` kills a real service at random moments, and counts what is lost and doubled.

Uploads come all the time, each under a key of its own and sent again until it is answered. By default 50 rounds, in
about 5 minutes; the exit status is 0 when no row was lost or doubled and no batch is left half active.
"""

from __future__ import annotations

import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from bench.harness import print_counts
from tests.directory import Directory
from tests.hospitals import csv_of
from tests.patience import wait_for
from tests.running import RunningService, is_gone

ROUNDS, SEED = 50, 1
LONGEST_LIFE_SECONDS = 5.0
MOST_ROWS = 12
PAUSE_SECONDS = (0.2, 1.4)
CREATE_SECONDS = 0.8
SERVICE = {"directory_delay_seconds": 1.5, "directory_retry_seconds": 0.2, "directory_create_limit": "40/1"}
# How a life ends, and how often of ten times.
ENDS = {"kill -9": 6, "kill -9 worker": 2, "SIGTERM": 2}
RESUMES = 3
PATIENCE_SECONDS = 180.0

ASYNC = {"Prefer": "respond-async"}
ROUND = "{:>5}  {:<15} {:>6} {:>8} {:>8} {:>8} {:>8} {:>8}"


@dataclass(slots=True)
class Uploads:
    """The files that were sent, by their keys; `batch_ids` of those that were answered."""

    random: random.Random
    rows: dict[str, int] = field(default_factory=dict)
    batch_ids: dict[str, str] = field(default_factory=dict)

    def send_until(self, over: threading.Event, service: RunningService) -> None:
        """Send one file after another, first again those that had no answer."""
        for key in self.rows.keys() - self.batch_ids.keys():
            self.send(key, service)
        while not over.wait(self.random.uniform(*PAUSE_SECONDS)):
            key = f"File {len(self.rows)}"
            self.rows[key] = self.random.randint(1, MOST_ROWS)
            self.send(key, service)

    def send(self, key: str, service: RunningService) -> None:
        """Send a file once; a service that is killed meanwhile leaves it unanswered."""
        with suppress(requests.RequestException):
            answer = service.upload(csv_of(self.rows[key], key), {**ASYNC, "Idempotency-Key": key})
            if answer.status_code in (200, 202):
                self.batch_ids[key] = answer.json()["batch_id"]


def end(service: RunningService, how: str) -> float:
    """End a life of the service, or only its worker; return how many seconds that took."""
    started_at = time.monotonic()
    if how == "SIGTERM":
        status = service.stop()
        if status != 0:
            raise RuntimeError(f"The service ended with {status}.")
        return time.monotonic() - started_at
    worker = int(re.findall(r"Booting worker with pid: (\d+)", service.output)[-1])
    if how == "kill -9":
        service.process.kill()
        service.process.wait()
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: is_gone(worker), bool, PATIENCE_SECONDS)
    if how == "kill -9":
        service.stop()
    else:
        wait_for(lambda: _is_healthy(service), bool, PATIENCE_SECONDS)
    return time.monotonic() - started_at


def live(directory: Directory, settings: dict[str, Any], uploads: Uploads, rounds: int) -> tuple[RunningService, float]:
    """Go through the rounds; return the last service, alive, and how long a SIGTERM took at most."""
    print(ROUND.format("round", "ended by", "after", "files", "running", "done", "creates", "took"), flush=True)
    draw = random.Random(uploads.random.random())
    slowest_stop = 0.0
    service = RunningService(directory.url, **settings)
    for number in range(1, rounds + 1):
        over = threading.Event()
        sending = threading.Thread(target=uploads.send_until, args=(over, service))
        sending.start()
        seconds = draw.uniform(0, LONGEST_LIFE_SECONDS)
        time.sleep(seconds)
        statuses = Counter(batch["status"] for batch in _batches(service))
        how = draw.choices(list(ENDS), list(ENDS.values()))[0]
        took = end(service, how)
        over.set()
        sending.join()
        if how == "SIGTERM":
            slowest_stop = max(slowest_stop, took)
        if how != "kill -9 worker":
            service = RunningService(directory.url, **settings)
        line = (number, how, f"{seconds:.2f}", len(uploads.rows), statuses["processing"], statuses["completed"],
                len(directory.calls("create")), f"{took:.2f}")  # fmt: skip
        print(ROUND.format(*line), flush=True)
    return service, slowest_stop


def finish(service: RunningService, uploads: Uploads) -> int:
    """Bring everything to its end; return how many batches did not get there by themselves and were resumed."""
    for key in uploads.rows.keys() - uploads.batch_ids.keys():
        uploads.send(key, service)
    resumed: set[str] = set()
    for _ in range(1 + RESUMES):
        wait_for(lambda: not _batches(service, "processing"), bool, PATIENCE_SECONDS)
        unfinished = [batch["batch_id"] for batch in _batches(service) if batch["status"] != "completed"]
        resumed.update(unfinished)
        for batch_id in unfinished:
            requests.post(f"{service.url}/batches/{batch_id}/resume", headers=ASYNC, timeout=30)
    return len(resumed)


def count(directory: Directory, service: RunningService, uploads: Uploads) -> dict[str, int]:
    """What the directory holds against what was uploaded; the first of these must be 0."""
    held = directory.hospitals()
    copies = Counter(hospital["name"] for hospital in held)
    active = {(hospital["creation_batch_id"], hospital["name"]) for hospital in held if hospital["active"]}
    wanted = {
        (uploads.batch_ids.get(key), f"{key} {number}") for key, rows in uploads.rows.items() for number in range(rows)
    }
    states: dict[str, set[bool]] = {}
    for hospital in held:
        states.setdefault(hospital["creation_batch_id"], set()).add(hospital["active"])
    known = {batch["batch_id"] for batch in _batches(service)}
    calls = directory.calls()
    # A create that a kill cut off before its body was never read; one over the limit was not done.
    creates = sum(it["kind"] == "create" and it["batch_id"] is not None and it["status"] != 429 for it in calls)
    return {
        "rows lost": len(wanted - active),
        "rows doubled": sum(copies.values()) - len(copies),
        "batches half active": sum(len(each) > 1 for each in states.values()),
        "batches not completed": len(known) - len(_batches(service, "completed")),
        "batches that the service does not know": len(states.keys() - known),
        "batches beyond the files": len(known) - len(uploads.rows),
        "creates beyond the rows": creates - len(wanted),
        "doubles that were tidied up": sum(it["kind"] == "delete_one" for it in calls),
        "batches deleted to begin again": sum(it["kind"] == "delete_batch" for it in calls),
        "files": len(uploads.rows),
        "rows": len(wanted),
    }


MUST_BE_NONE = 6


def main(rounds: int = ROUNDS, seed: int = SEED) -> int:
    """Run it all; 0 when what must be none is none."""
    uploads = Uploads(random.Random(seed))
    started_at = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, Directory(create_seconds=CREATE_SECONDS) as directory:
        settings = {**SERVICE, "database_url": f"sqlite:///{Path(folder) / 'hospitals.db'}"}
        service, slowest_stop = live(directory, settings, uploads, rounds)
        with service:
            resumed = finish(service, uploads)
            counts = count(directory, service, uploads)
    failed = print_counts(counts, MUST_BE_NONE)
    print(f"{'batches that had to be resumed':<42} {resumed:>6}")
    print(f"{'seconds until a SIGTERM had ended it':<42} {slowest_stop:>6.1f}  at most")
    print(f"{'seconds in all':<42} {time.monotonic() - started_at:>6.0f}")
    return 1 if failed else 0


def _batches(service: RunningService, status: str = "") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    path = f"/batches?limit=200&status={status}"
    while path:
        answer = service.get(path)
        found += answer.json()
        path = answer.links.get("next", {}).get("url", "")
    return found


def _is_healthy(service: RunningService) -> bool:
    with suppress(requests.RequestException):
        return service.get("/health").ok
    return False


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:3])))
