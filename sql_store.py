"""Batches and their rows in a database, by SQLAlchemy Core: what SQLite and PostgreSQL have in common."""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from sqlalchemy import Connection, RowMapping, bindparam, insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from batch import Batch, BatchStatus, Goal, IdempotencyKey, Row, RowStatus, WaitingFor, utc_now
from schema import batch_table, row_table
from store import BatchNotFoundError, KeyTakenError, StoreError, WrongStatusError

_UPDATE_ROW = (
    update(row_table)
    .where(row_table.c.batch_id == bindparam("of_batch"), row_table.c.row == bindparam("number"))
    .values({name: bindparam(name) for name in ("name", "address", "phone", "status", "hospital_id", "error_message")})
)


class SqlStore(ABC):
    """What every store in a database does. What is stored is on the disk when the call returns.

    Where the database does not answer, every operation raises `StoreError`.
    """

    @abstractmethod
    def _write(self) -> AbstractContextManager[Connection]:
        """A transaction that may write."""

    @abstractmethod
    def _read(self) -> AbstractContextManager[Connection]:
        """A connection to read with."""

    def _on_begun(self, connection: Connection, batch: Batch, before: Batch | None) -> None:  # noqa: B027 - most do not
        """Do what belongs to the beginning of a run, in the transaction that stores it: by default nothing.

        `before` is the batch as its last run left it, None for a new one.
        """

    def add(self, batch: Batch) -> None:
        """Keep a new batch with all its rows. Raises `KeyTakenError`."""
        try:
            with self._write() as connection:
                connection.execute(insert(batch_table).values(_batch_values(batch)))
                connection.execute(insert(row_table), [_row_values(batch.batch_id, row) for row in batch.rows])
                self._on_begun(connection, batch, None)
        except IntegrityError:
            key = batch.idempotency_key
            other = self.find_key(key.owner, key.key) if key else None
            if other is None:
                raise
            raise KeyTakenError(other) from None

    def get(self, batch_id: str) -> Batch:
        """The batch as it stands now. Raises `BatchNotFoundError`."""
        with self._read() as connection:
            return get_batch(connection, batch_id)

    def save(self, batch_id: str, rows: Iterable[Row] = (), **changes: Any) -> None:
        """Replace those rows (told by their number) and set those fields of the batch. Raises `BatchNotFoundError`."""
        with self._write() as connection:
            save_rows(connection, batch_id, rows)
            values = changes or {"batch_id": batch_id}  # without changes, to see whether it is there
            done = connection.execute(update(batch_table).where(batch_table.c.batch_id == batch_id).values(values))
            if not done.rowcount:
                raise BatchNotFoundError(batch_id)

    def begin(self, batch_id: str, statuses: Iterable[BatchStatus], goal: Goal, rows: Iterable[Row] = ()) -> Batch:
        """Begin another run. Raises `BatchNotFoundError` and `WrongStatusError`."""
        rows = list(rows)
        with self._write() as connection:
            batch = get_batch(connection, batch_id, for_update=True)
            if batch.status not in statuses:
                raise WrongStatusError(batch)
            begun = batch.begun(goal, rows, utc_now())
            save_rows(connection, batch_id, rows)
            connection.execute(
                update(batch_table).where(batch_table.c.batch_id == batch_id).values(_batch_values(begun))
            )
            self._on_begun(connection, begun, batch)
            return begun

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


def database_away(reason: str = "") -> StoreError:
    """The error for a database that does not answer; `reason` is said in the middle of its sentence."""
    return StoreError(f"The database does not answer at the moment{reason}; try it again in a few seconds.")


@contextmanager
def told_as_store_error() -> Iterator[None]:
    """Raise `StoreError` where the database does not answer."""
    try:
        yield
    except (OperationalError, InterfaceError, InternalError, PoolTimeoutError) as error:
        # SQLite's words help (the disk is full, say); those of a server tell callers where it is.
        reason = f" ({error.orig})" if isinstance(error, DBAPIError) and isinstance(error.orig, sqlite3.Error) else ""
        raise database_away(reason) from error


def get_batch(connection: Connection, batch_id: str, *, for_update: bool = False) -> Batch:
    """The batch with its rows, for this transaction alone when `for_update`. Raises `BatchNotFoundError`."""
    asked = select(batch_table).where(batch_table.c.batch_id == batch_id)
    # SQLite, which has one writer at a time, passes over `for_update`.
    found = connection.execute(asked.with_for_update() if for_update else asked).mappings().all()
    if not found:
        raise BatchNotFoundError(batch_id)
    return _with_rows(connection, found)[0]


def save_rows(connection: Connection, batch_id: str, rows: Iterable[Row]) -> None:
    """Replace those rows of the batch, told by their number."""
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
    del values["number"], values["epoch"]
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
