"""An embedded directory in a process of its own, for tests that need a real one."""

import json
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

from tests.patience import PATIENCE, wait_for

ROOT = Path(__file__).parent.parent
PREFIX = "EMBEDDED_DIRECTORY_"
READY = "Embedded Hospital Directory on "
TEST_SETTINGS = {
    "port": 0,
    "create_seconds": 0.05,
    "create_limit": "",
    "other_limit": "",
    "root_limit": "",
}


class Directory:
    """Starts the directory on a free port; keyword arguments are its settings, under their names in small letters.

    In tests a create takes 0.05 s and nothing is limited, unless said otherwise. Leaving the ``with`` block, or
    ``stop()``, ends the process.
    """

    def __init__(self, **settings: Any) -> None:
        self._settings = TEST_SETTINGS | settings
        self._output = tempfile.TemporaryDirectory()
        self._log = Path(self._output.name) / "output"
        self._last_output = ""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "embedded_directory"],
                cwd=ROOT,
                env=_environment(self._settings),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.url = self._wait_for_url()

    def __enter__(self) -> "Directory":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def output(self) -> str:
        """All that the process has written to standard output and standard error."""
        return self._log.read_text() if self._log.exists() else self._last_output

    def faults(self, rules: list[dict[str, Any]]) -> None:
        """Put fault rules in force instead of those before."""
        self._control("PUT", "faults", json=rules)

    def calls(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Return the journal, in order of arrival, of one kind of call or of all."""
        calls: list[dict[str, Any]] = self._control("GET", "calls", params={"kind": kind}).json()
        return calls

    def forget_calls(self) -> None:
        """Empty the journal."""
        self._control("DELETE", "calls")

    def hospitals(self, batch_id: str | None = None) -> list[dict[str, Any]]:
        """Return the hospitals it holds, of one batch or all; unlimited, and not in the journal."""
        hospitals: list[dict[str, Any]] = self._control("GET", "hospitals", params={"batch_id": batch_id}).json()
        return hospitals

    def settings(self, **changes: Any) -> None:
        """Change settings for the calls to come."""
        self._control("PUT", "settings", json=changes)

    def reset(self, **settings: Any) -> None:
        """Empty it, end its faults, and go back to the settings of its start, but for those given."""
        self._control("POST", "reset")
        if settings:
            self.settings(**settings)

    def stop(self) -> int:
        """End the process with SIGTERM and return its exit status."""
        return self.end(signal.SIGTERM)

    def end(self, number: signal.Signals) -> int:
        """End the process with this signal, or SIGKILL when it stays for a minute more; return its exit status."""
        self._process.send_signal(number)
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
        return self._ended()

    def kill(self) -> int:
        """End the process with SIGKILL."""
        return self.end(signal.SIGKILL)

    def _ended(self) -> int:
        status = self._process.wait()
        if self._log.exists():
            self._last_output = self._log.read_text()
            self._output.cleanup()
        return status

    def wait_until_called(self, kind: str, count: int = 1) -> None:
        """Return as soon as so many calls of this kind have come."""
        wait_for(lambda: self.calls(kind), lambda calls: len(calls) >= count)

    def wait_until_back(self) -> None:
        """Return as soon as it takes connections again."""
        wait_for(self._listens)

    def _listens(self) -> bool:
        try:
            self.calls()
        except requests.ConnectionError:
            return False
        return True

    def _control(self, method: str, name: str, **request: Any) -> requests.Response:
        response = requests.request(method, f"{self.url}/_embedded/{name}", timeout=PATIENCE, **request)
        if not response.ok:
            raise ValueError(f"{method} {name}: {response.status_code} {response.text}")
        return response

    def _wait_for_url(self) -> str:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self._process.poll() is None:
            for line in self.output.splitlines(keepends=True):
                if line.startswith(READY) and line.endswith("\n"):
                    return line.removeprefix(READY).strip()
            time.sleep(0.01)
        self.kill()
        raise RuntimeError(f"The embedded directory did not start: {self.output}")


def _environment(settings: dict[str, Any]) -> dict[str, str]:
    """Return this process's environment with these settings and no others of the directory."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return kept | {PREFIX + name.upper(): _text(value) for name, value in settings.items()}


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list) else "" if value is None else str(value)
