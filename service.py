"""What the routes work with: the parts of one running service, found on the Flask app."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from flask import Flask, current_app

from runner import BatchRunner
from settings import WORKER_THREADS, Settings
from store import Store

_EXTENSION = "hospital_bulk"


class Places(threading.Semaphore):
    """A semaphore that tells how many of its places are taken."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self._count = count

    @property
    def taken(self) -> int:
        """How many have it at this moment."""
        return self._count - self._value


@dataclass(frozen=True, slots=True)
class Service:
    """The parts of one service.

    A caller who waits holds a thread, and so does one who follows a stream: at most half of the threads may wait, at
    most a quarter stream.
    """

    settings: Settings
    store: Store
    runner: BatchRunner
    waiting_places: Places = field(default_factory=lambda: Places(WORKER_THREADS // 2))
    stream_places: Places = field(default_factory=lambda: Places(WORKER_THREADS // 4))
    # A file of a megabyte takes 50 MB of memory while it is read, and a quarter of a second of one core. Who waits for
    # that holds a thread, so of those with large files only some may.
    reading_places: Places = field(default_factory=lambda: Places(2))
    large_places: Places = field(default_factory=lambda: Places(WORKER_THREADS // 8))
    # To wake up, the directory takes longer than anybody waits who only asks whether it is there.
    knocking_places: Places = field(default_factory=lambda: Places(4))
    _starting: threading.Lock = field(default_factory=threading.Lock)
    _started: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Open the store and go on with the batches that ran when the service ended; only the first call does.

        Raises `StoreError`.
        """
        if self._started.is_set():
            return
        with self._starting:
            if not self._started.is_set():
                self.store.open()
                self.runner.take_up()
                self._started.set()

    def stop(self) -> None:
        """End what runs and let go of the store; returns when that is done, in about 10 s."""
        self.runner.stop()
        self.store.close()


def attach(app: Flask, parts: Service) -> None:
    """Give `app` the parts it serves with."""
    app.extensions[_EXTENSION] = parts


def service(app: Flask | None = None) -> Service:
    """The parts of the service that answers the current request, or of `app`."""
    parts = (app or current_app).extensions[_EXTENSION]
    assert isinstance(parts, Service)  # noqa: S101 - set by attach() alone
    return parts
