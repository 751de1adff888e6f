"""What the routes work with: the parts of one running service, found on the Flask app."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from flask import Flask, current_app

from runner import Runner
from settings import WORKER_THREADS, Settings
from store import Store

_EXTENSION = "hospital_bulk"


@dataclass(frozen=True, slots=True)
class Service:
    """The parts of one service.

    A caller who waits holds a thread, and so does one who follows a stream: at most half of the threads may wait, at
    most a quarter stream.
    """

    settings: Settings
    store: Store
    runner: Runner
    waiting_places: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(WORKER_THREADS // 2))
    stream_places: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(WORKER_THREADS // 4))
    # A file of a megabyte takes 50 MB of memory while it is read, for a fraction of a second.
    reading_places: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(2))
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
