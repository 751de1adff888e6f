"""The store in an SQLite file, used by one process."""

from __future__ import annotations

import fcntl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from sqlalchemy import Connection, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError

from schema import NewerSchemaError, bring_up_to_date
from sql_store import SqlStore, told_as_store_error
from store import StoreError

BUSY_MILLISECONDS = 10_000
# A process that was killed may hold its file for a moment longer.
LOCK_SECONDS = 3.0


class SqliteStore(SqlStore):
    """Batches and their rows in an SQLite file. What is stored is on the disk when the call returns."""

    def __init__(self, url: str) -> None:
        self._path = Path(make_url(url).database or "")
        # What hospitals are called is for no log.
        self._engine = create_engine(url, pool_size=16, hide_parameters=True)
        event.listen(self._engine, "connect", _set_pragmas)
        event.listen(self._engine, "begin", _begin)
        self._writer = self._engine.execution_options(writes=True)
        # SQLite has one writer at a time; here writers queue up instead of each trying until it is its turn.
        self._writing = threading.Lock()
        self._lock_file: TextIO | None = None

    def open(self) -> None:
        """Take the file for this process and bring its tables up to date. Raises `StoreError`."""
        try:
            self._take_file()
            self._bring_up_to_date()
        except StoreError:
            self.close()
            raise

    def _bring_up_to_date(self) -> None:
        try:
            with self._writer.begin() as connection:
                bring_up_to_date(connection)
        except NewerSchemaError as error:
            raise StoreError(
                f"{self._path} was written by a newer version of this service (schema {error.version}): "
                "start that version, or name another file in DATABASE_URL."
            ) from error
        except DBAPIError as error:
            raise StoreError(f"{self._path} cannot be used as the database: {error.orig}.") from error

    def close(self) -> None:
        """Let go of the file."""
        self._engine.dispose()
        if self._lock_file is not None:
            self._lock_file.close()
            self._lock_file = None

    def _take_file(self) -> None:
        file = self._path.resolve()  # whatever links lead to it
        # The lock ends with the process, however it ends; SQLite's own would not outlast a transaction.
        try:
            self._lock_file = file.with_name(f"{file.name}.lock").open("w")
        except OSError as error:
            raise StoreError(f"{self._path} cannot be used as the database: {error.strerror}.") from error
        give_up_at = time.monotonic() + LOCK_SECONDS
        while not _lock(self._lock_file):
            if time.monotonic() > give_up_at:
                raise StoreError(
                    f"{self._path} is in use by another process of this service: stop that one first, "
                    "or name another file in DATABASE_URL."
                )
            time.sleep(0.1)

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with self._writing, told_as_store_error(), self._writer.begin() as connection:
            yield connection

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with told_as_store_error(), self._engine.connect() as connection:
            yield connection


def _lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _set_pragmas(connection: DBAPIConnection, _: object) -> None:
    # Transactions are begun below, not by the driver.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin(connection: Connection) -> None:
    # A transaction that reads first and writes later fails when another wrote in between; this one waits instead.
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
