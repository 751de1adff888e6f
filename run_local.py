"""`make run`: the embedded directory and the service under gunicorn on this machine, until Ctrl-C ends both."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import requests

from settings import SettingsError, load_settings

HERE = Path(__file__).parent
HOST = "127.0.0.1"
START_SECONDS = 20.0
# gunicorn lets go of what it serves for 20 s.
STOP_SECONDS = 25.0

WELCOME = """
The page:      http://{host}:{port}/
Or with curl:  curl -F file=@sample_hospitals.csv http://{host}:{port}/hospitals/bulk
The directory: {directory}/hospitals/ (embedded; it forgets everything when it ends)

Ctrl-C ends both.
"""


class StartError(Exception):
    """Something did not start; the text says what."""


def main() -> int:
    """Serve until told to stop; 0 when both ended cleanly, 1 when one did not start or ended by itself."""
    # Ctrl-C also where a shell that started this in the background had it ignored.
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, signal.default_int_handler)
    try:
        port = load_settings().port
        with ExitStack() as stack:
            directory, url = stack.enter_context(_running_directory())
            service = stack.enter_context(_running_service(url, port))
            print(WELCOME.format(host=HOST, port=port, directory=url), flush=True)
            return _wait_for_either(directory, service)
    except KeyboardInterrupt:
        return 0
    except (SettingsError, StartError) as error:
        print(error, file=sys.stderr)
        return 1


@contextmanager
def _running_directory() -> Iterator[tuple[subprocess.Popen[str], str]]:
    with _running("-m", "embedded_directory", stdout=subprocess.PIPE) as process:
        # It says in its first line where it is, or ends and has said on stderr why.
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            raise StartError("The embedded directory did not start; EMBEDDED_DIRECTORY_PORT=9001 sets another port.")
        yield process, line.split()[-1]


@contextmanager
def _running_service(directory: str, port: int) -> Iterator[subprocess.Popen[str]]:
    _check_port(port)
    environ = {"TRUSTED_HOSTS": f"{HOST},localhost", "DATABASE_URL": "sqlite:///hospitals.db"} | os.environ
    environ["HOSPITAL_API_BASE_URL"] = directory
    with _running("-m", "gunicorn", "app:app", "--bind", f"{HOST}:{port}", environ=environ) as process:
        give_up_at = time.monotonic() + START_SECONDS
        while not _is_healthy(port):
            if process.poll() is not None or time.monotonic() > give_up_at:
                raise StartError("The service did not start; what it wrote above says why.")
            time.sleep(0.1)
        yield process


@contextmanager
def _running(
    *arguments: str, environ: Mapping[str, str] | None = None, stdout: int | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run Python with these arguments, in a session of its own, so that Ctrl-C reaches it through here alone."""
    process = subprocess.Popen(  # noqa: S603 - fixed commands
        [sys.executable, *arguments],
        cwd=HERE,
        env=environ or os.environ,
        stdout=stdout,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.kill()
            process.wait()
        if process.stdout:
            process.stdout.close()


def _check_port(port: int) -> None:
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        raise StartError(f"Port {port} cannot be used ({error.strerror}); PORT={port + 1} sets another one.") from error


def _is_healthy(port: int) -> bool:
    try:
        return requests.get(f"http://{HOST}:{port}/health", timeout=1).ok
    except requests.RequestException:
        return False


def _wait_for_either(directory: subprocess.Popen[str], service: subprocess.Popen[str]) -> int:
    while directory.poll() is None and service.poll() is None:
        time.sleep(0.5)
    return 1


if __name__ == "__main__":
    sys.exit(main())
