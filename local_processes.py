"""The processes that `make run` and `make run-cluster` start on this machine, and end when they end themselves."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from pathlib import Path

import requests

from settings import SettingsError

HERE = Path(__file__).parent
HOST = "127.0.0.1"
START_SECONDS = 20.0
# gunicorn lets go of what it serves for 20 s.
STOP_SECONDS = 25.0

Process = subprocess.Popen[str]


class StartError(Exception):
    """Something did not start; the text says what."""


def serve(start: Callable[[ExitStack], Sequence[Process]]) -> int:
    """Start processes, and end them all when told to, or when one that `start` returns has ended.

    They are told by Ctrl-C, by SIGTERM, or by closing the terminal. What `start` enters on the stack is left then.
    Returns the exit status: 0 when told to, 1 otherwise.
    """
    # Ctrl-C also where a shell that started this in the background had it ignored.
    for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signal_number, signal.default_int_handler)
    try:
        with ExitStack() as stack:
            processes = start(stack)
            while all(process.poll() is None for process in processes):
                time.sleep(0.5)
            return 1
    except KeyboardInterrupt:
        return 0
    except (SettingsError, StartError) as error:
        print(error, file=sys.stderr)
        return 1


@contextmanager
def running_directory() -> Iterator[tuple[Process, str]]:
    """An embedded directory and its address. Raises `StartError`."""
    with running("-m", "embedded_directory", stdout=subprocess.PIPE) as process:
        # It says in its first line where it is, or ends and has said on stderr why.
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            raise StartError("The embedded directory did not start; EMBEDDED_DIRECTORY_PORT=9001 sets another port.")
        yield process, line.split()[-1]


@contextmanager
def running_service(port: int, environ: Mapping[str, str]) -> Iterator[Process]:
    """The service under gunicorn, on this machine alone, when it answers. Raises `StartError`."""
    _check_port(port)
    with running("-m", "gunicorn", "app:app", "--bind", f"{HOST}:{port}", environ=environ) as process:
        give_up_at = time.monotonic() + START_SECONDS
        while not _is_healthy(port):
            if process.poll() is not None or time.monotonic() > give_up_at:
                raise StartError("The service did not start; what it wrote above says why.")
            time.sleep(0.1)
        yield process


@contextmanager
def running(*arguments: str, environ: Mapping[str, str] | None = None, stdout: int | None = None) -> Iterator[Process]:
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
        reason = os.strerror(error.errno or 0)
        raise StartError(f"Port {port} cannot be used ({reason}); PORT={port + 1} sets another one.") from error
    except OverflowError as error:
        raise StartError(f"There is no port {port}; PORT=8000 sets others.") from error


def _is_healthy(port: int) -> bool:
    with requests.Session() as session:
        session.trust_env = False  # no proxy leads to this machine
        try:
            # With TRUSTED_HOSTS this host may be refused.
            return session.get(f"http://{HOST}:{port}/health", timeout=1).status_code < HTTPStatus.INTERNAL_SERVER_ERROR
        except requests.RequestException:
            return False
