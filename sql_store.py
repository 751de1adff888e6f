"""The store in a database, by SQLAlchemy Core: an SQLite file, used by one process."""

from __future__ import annotations

import fcntl
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from sqlalchemy import Connection, RowMapping, bindparam, create_engine, event, insert, make_url, select, text, update
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from batch import Batch, BatchStatus, Goal, IdempotencyKey, Row, RowStatus, WaitingFor, utc_now
from schema import NewerSchemaError, batch_table, bring_up_to_date, row_table
from store import BatchNotFoundError, KeyTakenError, StoreError, WrongStatusError

BUSY_MILLISECONDS = 10_000
# A process that was killed may hold its file for a moment longer.
LOCK_SECONDS = 3.0

_UPDATE_ROW = (
    update(row_table)
    .where(row_table.c.batch_id == bindparam("of_batch"), row_table.c.row == bindparam("number"))
    .values({name: bindparam(name) for name in ("name", "address", "phone", "status", "hospital_id", "error_message")})
)


class SqliteStore:
    """Batches and their rows in an SQLite file. What is stored is on the disk when the call returns."""

    def __init__(self, url: str) -> None:
        self._path = Path(make_url(url).database or "")
        self._engine = create_engine(url, pool_size=16)
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

    def add(self, batch: Batch) -> None:
        """Keep a new batch with all its rows. Raises `KeyTakenError`."""
        try:
            with self._write() as connection:
                connection.execute(insert(batch_table).values(_batch_values(batch)))
                connection.execute(insert(row_table), [_row_values(batch.batch_id, row) for row in batch.rows])
        except IntegrityError:
            key = batch.idempotency_key
            other = self.find_key(key.owner, key.key) if key else None
            if other is None:
                raise
            raise KeyTakenError(other) from None

    def get(self, batch_id: str) -> Batch:
        """The batch as it stands now. Raises `BatchNotFoundError`."""
        with self._read() as connection:
            return _get(connection, batch_id)

    def save(self, batch_id: str, rows: Iterable[Row] = (), **changes: Any) -> None:
        """Replace those rows (told by their number) and set those fields of the batch. Raises `BatchNotFoundError`."""
        with self._write() as connection:
            _save_rows(connection, batch_id, rows)
            values = changes or {"batch_id": batch_id}  # without changes, to see whether it is there
            done = connection.execute(update(batch_table).where(batch_table.c.batch_id == batch_id).values(values))
            if not done.rowcount:
                raise BatchNotFoundError(batch_id)

    def begin(self, batch_id: str, statuses: Iterable[BatchStatus], goal: Goal, rows: Iterable[Row] = ()) -> Batch:
        """Begin another run. Raises `BatchNotFoundError` and `WrongStatusError`."""
        rows = list(rows)
        with self._write() as connection:
            batch = _get(connection, batch_id)
            if batch.status not in statuses:
                raise WrongStatusError(batch)
            batch = batch.begun(goal, rows, utc_now())
            _save_rows(connection, batch_id, rows)
            connection.execute(
                update(batch_table).where(batch_table.c.batch_id == batch_id).values(_batch_values(batch))
            )
            return batch

    def find_key(self, owner: str, key: str) -> Batch | None:
        """The batch that was made under this idempotency key, None without one."""
        found = select(batch_table).where(batch_table.c.key_owner == owner, batch_table.c.idempotency_key == key)
        with self._read() as connection:
            return next(iter(_with_rows(connection, connection.execute(found).mappings().all())), None)

    def unfinished(self) -> list[Batch]:
        """The batches that a run works on, or worked on when the service ended, oldest first."""
        found = select(batch_table).where(batch_table.c.status == BatchStatus.PROCESSING).order_by(batch_table.c.number)
        with self._read() as connection:
            return _with_rows(connection, connection.execute(found).mappings().all())

    def page(self, limit: int, *, status: BatchStatus | None = None, after: str | None = None) -> list[Batch]:
        """Up to `limit` batches, newest first. Raises `BatchNotFoundError` when there is no batch `after`."""
        found = select(batch_table).order_by(batch_table.c.number.desc()).limit(limit)
        if status is not None:
            found = found.where(batch_table.c.status == status)
        with self._read() as connection:
            if after is not None:
                number = connection.scalar(select(batch_table.c.number).where(batch_table.c.batch_id == after))
                if number is None:
                    raise BatchNotFoundError(after)
                found = found.where(batch_table.c.number < number)
            return _with_rows(connection, connection.execute(found).mappings().all())

    def find_same_rows(self, digest: str) -> str | None:
        """The id of the newest batch whose `rows_digest` is this and that was not rolled back, None without one."""
        found = (
            select(batch_table.c.batch_id)
            .where(batch_table.c.rows_digest == digest, batch_table.c.status != BatchStatus.ROLLED_BACK)
            .order_by(batch_table.c.number.desc())
            .limit(1)
        )
        with self._read() as connection:
            return connection.scalar(found)

    def check(self) -> None:
        """Return when the store can be read. Raises `StoreError` otherwise."""
        with self._read() as connection:
            connection.execute(text("SELECT 1"))

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
        with self._writing, _told_as_store_error(), self._writer.begin() as connection:
            yield connection

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with _told_as_store_error(), self._engine.connect() as connection:
            yield connection


@contextmanager
def _told_as_store_error() -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        raise StoreError(f"The database does not answer: {error.orig}. Nothing was done; try it again.") from error


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


def _get(connection: Connection, batch_id: str) -> Batch:
    found = connection.execute(select(batch_table).where(batch_table.c.batch_id == batch_id)).mappings().all()
    if not found:
        raise BatchNotFoundError(batch_id)
    return _with_rows(connection, found)[0]


def _save_rows(connection: Connection, batch_id: str, rows: Iterable[Row]) -> None:
    values = [_row_values(batch_id, row) for row in rows]
    for value in values:
        value["of_batch"], value["number"] = value.pop("batch_id"), value.pop("row")
    if values:
        connection.execute(_UPDATE_ROW, values)


def _with_rows(connection: Connection, found: Sequence[RowMapping]) -> list[Batch]:
    ids = [record["batch_id"] for record in found]
    rows_of: dict[str, list[Row]] = {batch_id: [] for batch_id in ids}
    listed = select(row_table).where(row_table.c.batch_id.in_(ids)).order_by(row_table.c.batch_id, row_table.c.row)
    for record in connection.execute(listed).mappings():
        rows_of[record["batch_id"]].append(_row(record))
    return [_batch(record, tuple(rows_of[record["batch_id"]])) for record in found]


def _batch_values(batch: Batch) -> dict[str, Any]:
    key = batch.idempotency_key
    return {
        "batch_id": batch.batch_id,
        "filename": batch.filename,
        "status": batch.status,
        "goal": batch.goal,
        "created_at": batch.created_at,
        "completed_at": batch.completed_at,
        "batch_activated": batch.batch_activated,
        "error_message": batch.error_message,
        "waiting_for": batch.waiting_for,
        "run_started_at": batch.run_started_at,
        "expected_end": batch.expected_end,
        "earlier_seconds": batch.earlier_seconds,
        "rows_digest": batch.rows_digest,
        "key_owner": key.owner if key else None,
        "idempotency_key": key.key if key else None,
        "upload_digest": key.upload_digest if key else None,
    }


def _batch(record: RowMapping, rows: tuple[Row, ...]) -> Batch:
    values = dict(record)
    key = values.pop("key_owner"), values.pop("idempotency_key"), values.pop("upload_digest")
    del values["number"]
    return Batch(
        **values
        | {
            "rows": rows,
            "status": BatchStatus(record["status"]),
            "goal": Goal(record["goal"]),
            "waiting_for": WaitingFor(record["waiting_for"]) if record["waiting_for"] else None,
            "idempotency_key": IdempotencyKey(*key) if key[1] is not None else None,
        }
    )


def _row_values(batch_id: str, row: Row) -> dict[str, Any]:
    return {
        "batch_id": batch_id,
        "row": row.row,
        "name": row.name,
        "address": row.address,
        "phone": row.phone,
        "status": row.status,
        "hospital_id": row.hospital_id,
        "error_message": row.error_message,
    }


def _row(record: RowMapping) -> Row:
    values = dict(record)
    del values["batch_id"]
    return Row(**values | {"status": RowStatus(record["status"])})
