"""A database of its own for a test, in a real PostgreSQL, or a server of its own that may be restarted.

Where there is no server and none can be made, such tests are skipped.
"""

from __future__ import annotations

import atexit
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from types import TracebackType

import psycopg
import pytest

from cluster.postgres_store import PostgresStore
from cluster.queue import defer, make_queue
from settings import load_settings

SERVER = os.environ.get("TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432")
PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
# PostgreSQL refuses to run as root.
UNPRIVILEGED = "postgres"


@cache
def server() -> str:
    """The server for the tests of this process: `TEST_POSTGRES` where it answers, else one that ends with them."""
    try:
        psycopg.connect(f"{SERVER}/postgres", connect_timeout=20).close()
    except psycopg.OperationalError:
        own = OwnServer()
        atexit.register(own.close)
        own.start()
        return own.url.rpartition("/")[0]
    return SERVER


@contextmanager
def fresh_database() -> Iterator[str]:
    """An empty database, as a value for DATABASE_URL; it is gone afterwards."""
    name = f"hospital_test_{uuid.uuid4().hex}"
    with psycopg.connect(f"{server()}/postgres", connect_timeout=20, autocommit=True) as administration:
        administration.execute(f"CREATE DATABASE {name}".encode())
        try:
            yield f"{server()}/{name}"
        finally:
            administration.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def store_at(url: str) -> PostgresStore:
    """The store on this database, as the service makes it; not yet open."""
    settings = load_settings({"DATABASE_URL": url})
    return PostgresStore(settings.database_url or "", make_queue, defer, settings.max_running_batches)


@pytest.fixture(scope="module")
def database_url() -> Iterator[str]:
    """A database for one file of tests."""
    with fresh_database() as url:
        yield url


@pytest.fixture
def store(database_url: str) -> Iterator[PostgresStore]:
    """The store in that database, open and empty."""
    with closing(store_at(database_url)) as store:
        store.open()
        make_empty(database_url)
        yield store


def make_empty(url: str) -> None:
    """Delete everything that is in the tables of this database."""
    with psycopg.connect(url) as connection:
        connection.execute(
            "DELETE FROM rows; DELETE FROM batches; DELETE FROM recent_creates;"
            "DELETE FROM procrastinate_jobs; DELETE FROM procrastinate_workers"
        )


class OwnServer:
    """A PostgreSQL server for one test, in a folder of its own, that may be stopped and started again.

    Its connections are trusted, and it does not wait for the disk: what it has committed outlives it, not the machine.
    """

    def __init__(self) -> None:
        if not PROGRAMS or (os.getuid() == 0 and not shutil.which("runuser")):
            pytest.skip("There is no PostgreSQL server, and no initdb under /usr/lib/postgresql to make one.")
        self._folder = tempfile.TemporaryDirectory()
        self._data = Path(self._folder.name) / "data"
        if os.getuid() == 0:
            os.chown(self._folder.name, pwd.getpwnam(UNPRIVILEGED).pw_uid, -1)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.url = f"postgresql://{UNPRIVILEGED}@127.0.0.1:{self._port}/postgres"
        self._run("initdb", "--username", UNPRIVILEGED, "--auth", "trust", "--no-sync")

    def __enter__(self) -> OwnServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop it and delete all that it had."""
        self.stop()
        self._folder.cleanup()

    def start(self) -> None:
        """Start it; returns when it answers."""
        options = f"-p {self._port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        self._run("pg_ctl", "start", "--wait", "--log", f"{self._data}/log", "--options", options)

    def stop(self) -> None:
        """Stop it as if it had been killed, when it runs."""
        self.go_on()
        if self._processes():
            self._run("pg_ctl", "stop", "--wait", "--mode", "immediate")

    def freeze(self) -> None:
        """Have it neither answer nor refuse, until it is stopped or let go on."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it answer again."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._processes():
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, number)

    def _processes(self) -> list[int]:
        file = self._data / "postmaster.pid"
        if not file.exists():
            return []
        postmaster = file.read_text().split()[0]
        listed = subprocess.run(["ps", "--ppid", postmaster, "-o", "pid="], capture_output=True, check=False).stdout
        return [int(postmaster), *map(int, listed.split())]

    def _run(self, program: str, *arguments: str) -> None:
        as_user = ["runuser", "-u", UNPRIVILEGED, "--"] if os.getuid() == 0 else []
        command = [*as_user, str(PROGRAMS[-1] / program), "--pgdata", str(self._data), *arguments]
        # Whatever it leaves running keeps what it inherits, so that is no pipe.
        with tempfile.TemporaryFile() as output:
            status = subprocess.call(
                command, cwd=self._folder.name, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
            output.seek(0)
            assert status == 0, output.read().decode()
