"""Several processes of the service over one database, for tests of what one machine cannot show."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.directory import Directory
from tests.patience import PATIENCE, wait_for
from tests.postgres import fresh_database
from tests.running import ROOT, RunningService, environ_of

Json = dict[str, Any]


class RunningWorker:
    """`python worker.py` in a process of its own; keyword arguments are its settings."""

    def __init__(self, directory_url: str, **settings: Any) -> None:
        environ = environ_of(directory_url, settings)
        self._folder = tempfile.TemporaryDirectory()
        self._log = Path(self._folder.name) / "output"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "worker.py"], cwd=ROOT, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    @property
    def output(self) -> str:
        """All that it has logged."""
        return self._log.read_text()

    def wait_until_working(self) -> None:
        """Return when it takes batches."""
        wait_for(lambda: self.output, lambda output: "working, on up to" in output)

    def has_taken_up(self, batch_id: str) -> bool:
        """Whether it lives and has taken up the batch."""
        return self.process.poll() is None and f"batch={batch_id}] taken up" in self.output

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it with this signal, or kill it when it stays for a minute more; return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def __enter__(self) -> RunningWorker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.send(signal.SIGCONT)  # else it could not end
        self.stop()
        self._folder.cleanup()


class Cluster:
    """So many web processes and workers over one directory and a database of their own, or that at `database_url`."""

    def __init__(
        self, directory: Directory, webs: int = 1, workers: int = 2, database_url: str = "", **settings: Any
    ) -> None:
        self.directory = directory
        self.database_url = database_url
        self._settings = {"embedded_workers": 0} | settings
        self._counts = webs, workers
        self.webs: list[RunningService] = []
        self.workers: list[RunningWorker] = []

    def __enter__(self) -> Cluster:
        self._stack = ExitStack()
        if not self.database_url:
            self.database_url = self._stack.enter_context(fresh_database())
        webs, workers = self._counts
        for _ in range(webs):
            self.add_web()
        for _ in range(workers):
            self.add_worker()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in [web.process for web in self.webs] + [worker.process for worker in self.workers]:
            if process.poll() is None:  # all of them end at the same time
                process.send_signal(signal.SIGCONT)
                process.terminate()
        self._stack.close()

    def add_web(self, **settings: Any) -> RunningService:
        """Start one more web process."""
        web = RunningService(self.directory.url, database_url=self.database_url, **self._settings | settings)
        self.webs.append(self._stack.enter_context(web))
        return web

    def add_worker(self, **settings: Any) -> RunningWorker:
        """Start one more worker."""
        worker = RunningWorker(self.directory.url, database_url=self.database_url, **self._settings | settings)
        self.workers.append(self._stack.enter_context(worker))
        return worker

    def upload(self, content: bytes, web: int = 0) -> str:
        """Upload a file to one of the web processes without waiting; returns the batch's id."""
        answer = self.webs[web].upload(content, {"Prefer": "respond-async"})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["batch_id"])

    def batch(self, batch_id: str, web: int = 0) -> Json:
        """The batch as one of the web processes tells it."""
        batch: Json = self.webs[web].get(f"/batches/{batch_id}").json()
        return batch

    def ended(self, batch_id: str, seconds: float = PATIENCE, web: int = 0) -> Json:
        """The batch as soon as it has ended."""
        return self.when(batch_id, lambda batch: batch["status"] != "processing", seconds, web)

    def when(self, batch_id: str, holds: Callable[[Json], bool], seconds: float = PATIENCE, web: int = 0) -> Json:
        """The batch as soon as something holds of it."""
        return wait_for(lambda: self.batch(batch_id, web), holds, seconds)

    def worker_of(self, batch_id: str, seconds: float = PATIENCE) -> RunningWorker:
        """The worker that has taken the batch up and lives."""
        return wait_for(lambda: [it for it in self.workers if it.has_taken_up(batch_id)], bool, seconds)[0]
