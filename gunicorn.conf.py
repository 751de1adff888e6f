"""How gunicorn serves the service: one process with threads, since what runs is kept in memory.

With PostgreSQL several of these are started beside each other.
"""

import os
import resource
import signal
import sys
import threading
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType
from typing import cast

sys.path.insert(0, str(Path(__file__).parent))

from flask import Flask
from gunicorn.arbiter import Arbiter
from gunicorn.workers.base import Worker

from logs import logging_config
from service import Service, service
from settings import WORKER_THREADS, SettingsError, load_settings
from store import StoreError

try:
    settings = load_settings()
except SettingsError as error:
    # Here, before there is a worker, it ends gunicorn with a sentence; in the app it would be a stack trace.
    sys.exit(str(error))
bind = f"0.0.0.0:{settings.port}"
logconfig_dict = logging_config(settings.log_level, settings.log_format)
# WEB_CONCURRENCY would set more, and each process would have batches and a rate limit of its own.
workers = 1
worker_class = "serving.gunicorn_worker.Worker"
threads = WORKER_THREADS
# One that waits for its client costs a file and little memory.
worker_connections = 4096
# It would write past the socket that keeps what a slow client does not take.
sendfile = False
graceful_timeout = 20
# PROXY_COUNT says whether proxies are believed; by itself gunicorn believes any caller on this machine.
forwarded_allow_ips = ""
# It would be written into the home directory.
control_socket_disable = True

MASTER_GONE_SECONDS = 0.5


def when_ready(_: Arbiter) -> None:
    """Ignore what would start a second worker, which could not have what the first one holds."""
    _ignore(signal.SIGHUP, signal.SIGTTIN, signal.SIGUSR2)


def post_worker_init(worker: Worker) -> None:
    """Start the service, and stop it first when gunicorn is told to stop: callers who wait are answered then."""
    _allow_open_files()
    # Not an Event: a second signal inside its set() would wait for ever for the lock that the first one holds.
    told_to_stop: SimpleQueue[int] = SimpleQueue()
    parts = service(cast(Flask, worker.app.callable))
    master = os.getppid()

    def stop_when_told() -> None:
        while os.getppid() == master:  # a worker whose master was killed ends too
            try:
                told_to_stop.get(timeout=MASTER_GONE_SECONDS)
                break
            except Empty:
                continue
        parts.stop()

    def handle(number: int, frame: FrameType | None) -> None:
        # A signal may come at any moment, so nothing is done here but to say so. Ctrl-C, which reaches the worker
        # too, would otherwise end it at once.
        told_to_stop.put(number)
        worker.handle_exit(number, frame)

    threading.Thread(target=stop_when_told, name="stop", daemon=True).start()
    for signal_number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(signal_number, handle)
    # What is sent to the whole group, as when a terminal is closed, would end it at once or have it stand still.
    _ignore(signal.SIGHUP, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU)
    if worker.alive:  # and was not told to stop while it loaded
        _start(parts, worker)


def _ignore(*signal_numbers: signal.Signals) -> None:
    for signal_number in signal_numbers:
        signal.signal(signal_number, signal.SIG_IGN)


def _start(parts: Service, worker: Worker) -> None:
    try:
        parts.start()
    except StoreError as error:
        worker.log.error("%s", error)
        sys.exit(Arbiter.WORKER_BOOT_ERROR)  # any other status would have it started again, for ever


def _allow_open_files() -> None:
    """Each create in flight has a connection; the usual soft limit of 1,024 is too low for a thousand of them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
