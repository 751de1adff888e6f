"""The store in PostgreSQL, shared by any number of processes on any number of machines.

Each run of a batch has an epoch, counted up when a process takes the batch: what a run of an earlier epoch still wants
to store is refused, so a process that was thought dead changes nothing any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
from psycopg.abc import Params
from sqlalchemy import Connection, create_engine, event, func, select, update
from sqlalchemy.exc import SQLAlchemyError

from batch import Batch, BatchStatus, Goal, Row
from schema import NewerSchemaError, batch_table, bring_up_to_date
from sql_store import SqlStore, get_batch, save_rows, told_as_store_error
from store import BatchNotFoundError, GoalChangedError, StoreError, TakenOverError, TooManyBatchesError

# A pool of connections for 128 threads, each of which needs one for a few milliseconds.
POOL_SIZE, POOL_OVERFLOW, POOL_SECONDS = 5, 15, 5.0
# A server that is gone is noticed in about so many seconds, also by who waits for its answer.
CONNECT_OPTIONS = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
# A machine that freezes or loses its network in the middle of a transaction keeps the locks of that, for hours: the
# server ends such a session. By then it is certain that its process, if it lives, may send nothing of its batches.
SET_UP_SESSION: LiteralString = "SET idle_in_transaction_session_timeout = '10s'"
# Any numbers: whoever brings the tables up to date holds the one lock, whoever begins a run the other.
SCHEMA_LOCK, ROOM_LOCK = 7_401_337, 7_401_339


@dataclass(frozen=True, slots=True)
class Claim:
    """A batch that a process has taken to run it, and the number of this run."""

    batch: Batch
    epoch: int


@dataclass(frozen=True, slots=True)
class RunState:
    """What the store knows of the run of a batch."""

    epoch: int
    goal: Goal


class PostgresStore(SqlStore):
    """Batches and their rows in a PostgreSQL database.

    `make_queue` makes the tables of the queue, and `defer` puts the job of a batch there, in the transaction that
    stores the beginning of a run; it is told the epoch after which nothing of the batch was under way, or None. `add`
    and `begin` raise `TooManyBatchesError` where more than `most_running` batches would run.
    """

    def __init__(
        self,
        url: str,
        make_queue: Callable[[Connection], None],
        defer: Callable[[Connection, str, int | None], None],
        most_running: int,
    ) -> None:
        self.engine = create_engine(
            url,
            pool_size=POOL_SIZE,
            max_overflow=POOL_OVERFLOW,
            pool_timeout=POOL_SECONDS,
            pool_pre_ping=True,
            hide_parameters=True,  # what hospitals are called is for no log
            connect_args=CONNECT_OPTIONS | {"cursor_factory": _Cursor},
        )
        event.listen(self.engine, "connect", _set_up_session)
        # A batch and its rows are read one after the other, and must be of one moment.
        self._reader = self.engine.execution_options(isolation_level="REPEATABLE READ")
        self._make_queue = make_queue
        self._defer = defer
        self._most_running = most_running

    def open(self) -> None:
        """Bring the tables up to date. Raises `StoreError`."""
        try:
            with self.engine.begin() as connection:
                # Several processes may start at once.
                connection.execute(select(func.pg_advisory_xact_lock(SCHEMA_LOCK)))
                bring_up_to_date(connection)
                self._make_queue(connection)
        except NewerSchemaError as error:
            raise StoreError(
                f"The database was written by a newer version of this service (schema {error.version}): "
                "start that version, or name another database in DATABASE_URL."
            ) from error
        except (SQLAlchemyError, psycopg.Error) as error:
            reason = " ".join(str(getattr(error, "orig", error)).split()).rstrip(".")
            raise StoreError(f"The database of DATABASE_URL cannot be used: {reason}.") from error

    def close(self) -> None:
        """Close its connections."""
        self.engine.dispose()

    def take(self, batch_id: str) -> Claim | None:
        """Take the batch to run it, whoever ran it before; None when it has ended. Raises `BatchNotFoundError`."""
        with self._write() as connection:
            batch = get_batch(connection, batch_id, for_update=True)
            if batch.ended:
                return None
            epoch = connection.scalar(
                update(batch_table)
                .where(batch_table.c.batch_id == batch_id)
                .values(epoch=batch_table.c.epoch + 1)
                .returning(batch_table.c.epoch)
            )
            return Claim(batch, int(epoch or 0))

    def give_back(self, claim: Claim, settled: bool) -> None:
        """Put the batch into the queue again; `settled` when nothing of it can be under way in the directory.

        A batch that another process has taken since is left to that.
        """
        with self._write() as connection:
            if _epoch(connection, claim.batch.batch_id) == claim.epoch:
                self._defer(connection, claim.batch.batch_id, claim.epoch if settled else None)

    def ask_removal(self, batch_id: str) -> Batch:
        """Have the run of a batch that is being processed remove it; the batch as it was before.

        Of one that is not being processed nothing is changed. Raises `BatchNotFoundError`.
        """
        with self._write() as connection:
            batch = get_batch(connection, batch_id, for_update=True)
            if not batch.ended:
                connection.execute(
                    update(batch_table).where(batch_table.c.batch_id == batch_id).values(goal=Goal.REMOVE)
                )
            return batch

    def run_states(self, batch_ids: Iterable[str]) -> dict[str, RunState]:
        """The state of each of those runs, by the batch's id."""
        asked = select(batch_table.c.batch_id, batch_table.c.epoch, batch_table.c.goal)
        with self._read() as connection:
            found = connection.execute(asked.where(batch_table.c.batch_id.in_(list(batch_ids))))
            return {batch_id: RunState(epoch, Goal(goal)) for batch_id, epoch, goal in found}

    def ended_among(self, batch_ids: Iterable[str]) -> set[str]:
        """Those of the batches that no run works on any more."""
        asked = select(batch_table.c.batch_id).where(
            batch_table.c.batch_id.in_(list(batch_ids)), batch_table.c.status != BatchStatus.PROCESSING
        )
        with self._read() as connection:
            return set(connection.scalars(asked))

    def count_unfinished(self) -> int:
        """How many batches a run works on or will."""
        with self._read() as connection:
            return _count_unfinished(connection)

    def save_as(self, claim: Claim, goal: Goal, rows: Iterable[Row], changes: dict[str, Any]) -> None:
        """Save for the run that took `claim` and works towards `goal`.

        Raises `BatchNotFoundError`, `TakenOverError` and, for a new status, `GoalChangedError`.
        """
        batch_id = claim.batch.batch_id
        with self._write() as connection:
            found = connection.execute(
                select(batch_table.c.epoch, batch_table.c.goal)
                .where(batch_table.c.batch_id == batch_id)
                .with_for_update()
            ).one_or_none()
            if found is None:
                raise BatchNotFoundError(batch_id)
            if found.epoch != claim.epoch:
                raise TakenOverError(batch_id)
            if "status" in changes and found.goal != goal:
                raise GoalChangedError(batch_id)
            save_rows(connection, batch_id, rows)
            if changes:
                connection.execute(update(batch_table).where(batch_table.c.batch_id == batch_id).values(changes))

    def _on_begun(self, connection: Connection, batch: Batch, before: Batch | None) -> None:
        # Last, as those who begin at the same moment wait for each other from here to the end.
        connection.execute(select(func.pg_advisory_xact_lock(ROOM_LOCK)))
        if _count_unfinished(connection) > self._most_running:
            raise TooManyBatchesError
        settled = before is None or before.status is not BatchStatus.INTERRUPTED
        self._defer(connection, batch.batch_id, _epoch(connection, batch.batch_id) if settled else None)

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with told_as_store_error(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with told_as_store_error(), self._reader.connect() as connection:
            yield connection


class _Cursor(psycopg.Cursor[Any]):
    """A cursor that has an answer to each statement before it sends the next.

    The driver would send all of them and then wait. The server does not count a client as silent that falls silent in
    the middle of that, and would leave it its locks.
    """

    def executemany(self, query: Any, params_seq: Iterable[Params], *, returning: bool = False) -> None:
        """Execute the statement once for each of the parameters."""
        for params in params_seq:
            self.execute(query, params)


def _set_up_session(connection: Any, _: object) -> None:
    connection.execute(SET_UP_SESSION)
    connection.commit()


def _count_unfinished(connection: Connection) -> int:
    asked = select(func.count()).where(batch_table.c.status == BatchStatus.PROCESSING)
    return connection.scalar(asked) or 0


def _epoch(connection: Connection, batch_id: str) -> int:
    asked = select(batch_table.c.epoch).where(batch_table.c.batch_id == batch_id)
    return int(connection.scalars(asked.with_for_update()).one())


class ClaimedStore:
    """The store as the run that took `claim` uses it: it stores for as long as nobody else has taken the batch."""

    def __init__(self, store: PostgresStore, claim: Claim) -> None:
        self._store = store
        self._claim = claim
        self._goal = claim.batch.goal

    def save(self, batch_id: str, rows: Iterable[Row] = (), **changes: Any) -> None:
        """Save, for `claim` alone. Raises `TakenOverError` and, for a new status, `GoalChangedError`."""
        goal = changes.get("goal", self._goal)
        try:
            self._store.save_as(self._claim, goal, rows, changes)
        except GoalChangedError:
            self._goal = Goal.REMOVE  # as the run knows now
            raise
        self._goal = goal
