"""What the measurements share: a figure, the two servers, files of hospitals, clocks, and the bare pool."""

from __future__ import annotations

import resource
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import requests
from requests.adapters import HTTPAdapter

from tests.directory import Directory
from tests.hospitals import csv_of
from tests.running import RunningService

T = TypeVar("T")

ROWS = 20
CREATE_SECONDS = 5.0
OPEN_FILES = 8192


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured, as a ratio or a count. Without a bound it is there to compare with."""

    what: str
    measured: float
    at_most: float | None = None
    at_least: float | None = None

    @property
    def must_reach(self) -> str:
        """The bound in words."""
        if self.at_most is not None:
            return f"at most {self.at_most:g}"
        return "-" if self.at_least is None else f"at least {self.at_least:g}"

    @property
    def verdict(self) -> str:
        """Whether the bound was kept, empty without one."""
        if self.at_most is not None:
            return "ok" if self.measured <= self.at_most else "MISSED"
        if self.at_least is not None:
            return "ok" if self.measured >= self.at_least else "MISSED"
        return ""


def allow_open_files() -> None:
    """Let this process and those it starts open a thousand connections and more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextmanager
def servers(directory: dict[str, Any], service: dict[str, Any]) -> Iterator[tuple[Directory, RunningService]]:
    """An embedded directory with these settings, and the service under gunicorn over it with those."""
    with Directory(**directory) as running_directory, RunningService(running_directory.url, **service) as running:
        yield running_directory, running


def unlimited_directory(create_seconds: float) -> dict[str, Any]:
    """Settings of a directory that bounds nothing, and keeps connections while those who use it take turns."""
    return {
        "create_seconds": create_seconds,
        "batch_size": 0,
        "threads": 0,
        "max_hospitals": 1_000_000,
        "keep_alive_seconds": 600,
    }


def print_counts(counts: dict[str, int], must_be_none: int) -> bool:
    """Print what was counted; whether any of the first `must_be_none`, which must all be 0, is not."""
    print()
    for number, (what, found) in enumerate(counts.items()):
        verdict = "" if number >= must_be_none else "MUST BE 0" if found else "ok"
        print(f"{what:<42} {found:>6}  {verdict}")
    return any(list(counts.values())[:must_be_none])


def seconds_of(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    started_at = time.perf_counter()
    work()
    return time.perf_counter() - started_at


def upload(service: RunningService, rows: int = ROWS) -> float:
    """Upload a file of so many hospitals and return how long it took until all were active."""
    content = csv_of(rows, f"Hospital {uuid.uuid4()}")
    started_at = time.perf_counter()
    answer = service.upload(content)
    seconds = time.perf_counter() - started_at
    batch = answer.json()
    if answer.status_code != 200 or batch["status"] != "completed":
        batch.pop("hospitals", None)
        raise RuntimeError(f"An upload did not complete: {answer.status_code} {batch}")
    return seconds


def together(times: int, work: Callable[[], T]) -> list[T]:
    """Do `work` so many times at once, each on a thread of its own, and return what each returned."""
    with ThreadPoolExecutor(times) as pool:
        return [future.result() for future in [pool.submit(work) for _ in range(times)]]


class BarePool:
    """The least that fills a directory: a pool of threads, one session of requests, no care for what goes wrong.

    A session looks through the environment for proxies before every call; without `trust_env` it is quicker by a third.
    """

    def __init__(self, directory: Directory, threads: int, *, trust_env: bool = True) -> None:
        self._url = directory.url
        self._pool = ThreadPoolExecutor(threads)
        self._session = requests.Session()
        self._session.trust_env = trust_env
        self._session.mount("http://", HTTPAdapter(pool_maxsize=threads))

    def create_batches(self, batches: int, rows: int = ROWS) -> None:
        """Create so many batches of so many hospitals, all rows at once, and activate each."""
        batch_ids = [str(uuid.uuid4()) for _ in range(batches)]
        hospitals = [(batch_id, row) for batch_id in batch_ids for row in range(rows)]
        for _ in self._pool.map(self._create_one, hospitals):
            pass
        for batch_id in batch_ids:
            self._session.patch(f"{self._url}/hospitals/batch/{batch_id}/activate").raise_for_status()

    def _create_one(self, hospital: tuple[str, int]) -> None:
        batch_id, row = hospital
        fields = {
            "name": f"Hospital {batch_id} {row}",
            "address": f"{row} Main Street",
            "phone": f"555-{row:04}",
            "creation_batch_id": batch_id,
        }
        answer = self._session.post(f"{self._url}/hospitals/", json=fields)
        answer.raise_for_status()
        answer.json()
