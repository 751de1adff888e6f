"""Clients of `/batches/{id}/events`: one that reads what comes, and many that only hold their streams open."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import requests

from tests.patience import PATIENCE
from tests.running import RunningService


@dataclass(frozen=True, slots=True)
class Event:
    """One event, or a comment, which has no data; `seconds` after the stream was opened."""

    kind: str
    data: dict[str, Any]
    seconds: float


class Follower:
    """A client that follows a batch; leaving the ``with`` block hangs up."""

    def __init__(self, service: RunningService, batch_id: str) -> None:
        self._opened = time.monotonic()
        self.answer = requests.get(f"{service.url}/batches/{batch_id}/events", stream=True, timeout=PATIENCE)
        self._lines = self.answer.iter_lines(chunk_size=1, decode_unicode=True)

    def __enter__(self) -> Follower:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.answer.close()

    def __iter__(self) -> Iterator[Event]:
        """The events as they come, until the service ends the stream."""
        kind = ""
        for line in self._lines:
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                yield Event(kind, json.loads(value), time.monotonic() - self._opened)
            elif not name and value:
                yield Event("comment", {}, time.monotonic() - self._opened)
            else:
                assert line == "", f"An event stream has no such line: {line!r}"


class Followers:
    """So many clients that hold a stream of this batch open; leaving the ``with`` block hangs up."""

    def __init__(self, service: RunningService, batch_id: str, count: int) -> None:
        self._followers = [Follower(service, batch_id) for _ in range(count)]
        assert all(follower.answer.status_code == 200 for follower in self._followers)

    def __enter__(self) -> Followers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for follower in self._followers:
            follower.answer.close()
