"""The service under real gunicorn in a process of its own, for tests of sockets, threads and signals."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import requests

from tests.patience import PATIENCE

ROOT = Path(__file__).parent.parent
READY = "Listening at: "


def environ_of(directory_url: str, settings: dict[str, Any]) -> dict[str, str]:
    """The environment of a process with these settings over that directory, and with no others of this process."""
    values = {
        "hospital_api_base_url": directory_url,
        "directory_create_limit": "",
        "directory_delay_seconds": 0.3,
        "directory_retry_seconds": 0.1,
    } | settings
    environ = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return environ | {name.upper(): str(value) for name, value in values.items()}


class RunningService:
    """`gunicorn app:app` on a free port of this machine, over the directory at `directory_url`.

    Keyword arguments are its settings, under their names in small letters; anything else of this process's
    environment that could be one is left out. Leaving the ``with`` block ends it.
    """

    # Where its code is.
    folder = ROOT

    def __init__(self, directory_url: str, **settings: Any) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._log = Path(self._folder.name) / "output"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "app:app", "--bind", "127.0.0.1:0"],
                cwd=self.folder,
                env=environ_of(directory_url, settings),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.url = self._wait_for_url()

    def __enter__(self) -> RunningService:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def output(self) -> str:
        """All that it has logged."""
        return self._log.read_text()

    def upload(
        self, content: bytes, headers: dict[str, str] | None = None, path: str = "/hospitals/bulk", **fields: str
    ) -> requests.Response:
        """Upload a CSV and return the answer."""
        files = {"file": ("hospitals.csv", io.BytesIO(content), "text/csv")}
        return requests.post(self.url + path, files=files, data=fields, headers=headers, timeout=100)

    def get(self, path: str, **headers: str) -> requests.Response:
        """GET a path of the service."""
        return requests.get(self.url + path, headers=headers, timeout=PATIENCE)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it with this signal, or kill it when it stays for a minute more; return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        self._folder.cleanup()
        return status

    def _wait_for_url(self) -> str:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.process.poll() is None:
            if READY in self.output:
                url = self.output.split(READY, 1)[1].split()[0]
                if self._is_healthy(url):
                    return url
            time.sleep(0.05)
        output = self.output
        self.stop(signal.SIGKILL)
        raise RuntimeError(f"The service did not start: {output}")

    def _is_healthy(self, url: str) -> bool:
        try:
            # With TRUSTED_HOSTS this host may be refused.
            return requests.get(f"{url}/health", timeout=PATIENCE).status_code < 500
        except requests.RequestException:
            return False


def is_gone(pid: int) -> bool:
    """Whether a process has ended, even when nobody has asked for its status yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
