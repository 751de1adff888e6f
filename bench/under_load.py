"""Whether the service answers while crowds upload, watch and dawdle, and whether its memory stays what it is."""

from __future__ import annotations

import itertools
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import requests

from bench.harness import ROWS, Figure, servers, together, unlimited_directory
from tests.hospitals import csv_of
from tests.raw_http import post
from tests.running import RunningService

CROWD = 200
WATCHED_SECONDS = 25.0
ANSWER_SECONDS = 0.1
ASKED = ("/health", "/batches/{batch}", "/metrics")
# The service's defaults, where RunningService would set others.
SERVICE = {"directory_create_limit": "30/60", "directory_delay_seconds": 10, "directory_retry_seconds": 5}

BATCHES, WARMED_UP = 10_000, 3_000
CLIENTS = 8


def measure() -> Iterator[Figure]:
    """Two hundred of each kind of client at once; then ten thousand batches, one after another, kept in memory."""
    yield from _measure_answers()
    yield from _measure_memory()


def _measure_answers() -> Iterator[Figure]:
    with servers({"create_seconds": 5, "create_limit": "30/60"}, SERVICE) as (_, service):
        first = service.upload(csv_of(ROWS), {"Prefer": "respond-async"}).json()["batch_id"]
        paths = [path.format(batch=first) for path in ASKED]
        with _crowds(service, first) as uploads:
            slowest = _slowest_answers(service, paths)
        for path, seconds in zip(ASKED, slowest, strict=True):
            name = f"{path} beside 3 x {CROWD} clients: the slowest answer, over 100 ms"
            yield Figure(name, seconds / ANSWER_SECONDS, at_most=1)
        counts = Counter(uploads)
        yield Figure(f"  of {CROWD} uploads: taken (200 or 202)", counts[200] + counts[202])
        yield Figure("  refused for now (503 with Retry-After)", counts[503])
        yield Figure("  answered otherwise, or not at all", CROWD - counts[200] - counts[202] - counts[503], at_most=0)


@contextmanager
def _crowds(service: RunningService, batch_id: str) -> Iterator[list[int]]:
    """Clients that upload, that watch a batch, and that send half of what they should, until the block is left.

    The list gets the status of each upload's answer.
    """
    ended, statuses = threading.Event(), list[int]()
    with ExitStack() as stack:
        for number in range(CROWD):
            stack.enter_context(_slow_client(service, number))
        pool = stack.enter_context(ThreadPoolExecutor(2 * CROWD))
        stack.callback(ended.set)
        for _ in range(CROWD):
            pool.submit(lambda: statuses.append(_status_of_upload(service)))
            pool.submit(_watch, service, batch_id, ended)
        time.sleep(1)  # until all have come
        yield statuses
        ended.set()


@contextmanager
def _slow_client(service: RunningService, number: int) -> Iterator[None]:
    """Half a head, or a whole one with half of its body, and then nothing."""
    parts = urlsplit(service.url)
    whole = post("/hospitals/bulk", b"x" * 5_000, "Content-Type: multipart/form-data; boundary=x", length=10_000)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
        connection.sendall(whole[:60] if number % 2 else whole)
        yield


def _status_of_upload(service: RunningService) -> int:
    answer = service.upload(csv_of(ROWS, f"Hospital {uuid.uuid4()}"), {"Prefer": f"wait={WATCHED_SECONDS:g}"})
    return answer.status_code if answer.status_code != 503 or "Retry-After" in answer.headers else 0


def _watch(service: RunningService, batch_id: str, ended: threading.Event) -> None:
    with requests.get(f"{service.url}/batches/{batch_id}/events", stream=True, timeout=20) as stream:
        for _ in stream.iter_lines():
            if ended.is_set():
                return


def _slowest_answers(service: RunningService, paths: list[str]) -> list[float]:
    """Ask for each path in turn, ten times a second, on a connection of its own; the slowest answer to each."""
    slowest = [0.0] * len(paths)
    give_up_at = time.monotonic() + WATCHED_SECONDS
    for number in itertools.cycle(range(len(paths))):
        if time.monotonic() > give_up_at:
            return slowest
        started_at = time.perf_counter()
        service.get(paths[number]).raise_for_status()
        slowest[number] = max(slowest[number], time.perf_counter() - started_at)
        time.sleep(0.1)
    return slowest


def _measure_memory() -> Iterator[Figure]:
    with servers(unlimited_directory(0), {}) as (directory, service):
        content = csv_of(2)
        before = _memory_after(service, content, WARMED_UP)
        directory.forget_calls()
        after = _memory_after(service, content, BATCHES - WARMED_UP)
        yield Figure(f"memory after {BATCHES:,} batches, over that after {WARMED_UP:,}", after / before, at_most=1.05)
        yield Figure("  in MiB", after / 1024)


def _memory_after(service: RunningService, content: bytes, batches: int) -> int:
    """Upload so many files from several clients; the memory of the service then, in KiB."""
    numbers = iter(range(batches))
    session = threading.local()

    def client() -> None:
        session.own = requests.Session()
        for _ in numbers:
            answer = session.own.post(f"{service.url}/hospitals/bulk", files={"file": ("a.csv", content)}, timeout=60)
            answer.raise_for_status()

    together(CLIENTS, client)
    return sum(_resident(child) for child in _children(service.process.pid))


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _resident(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
