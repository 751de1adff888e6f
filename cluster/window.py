"""The directory's limit as all processes share it: one sliding window in PostgreSQL, by the database's clock."""

from __future__ import annotations

import logging
from bisect import bisect_right

from sqlalchemy import Connection, Engine, delete, func, insert, select
from sqlalchemy.exc import SQLAlchemyError

from rate_limit import SPARE_SECONDS
from schema import create_table
from settings import RateLimit

logger = logging.getLogger(__name__)

# Any number: whoever takes a token holds this lock.
TOKEN_LOCK = 7_401_338
# What other processes took is seen after so many seconds at the latest, where only an estimate hangs on it.
FRESH_SECONDS = 0.5
# A database that did not answer is asked again after this time; meanwhile nothing is let go.
AWAY_SECONDS = 1.0
# The way to the database and back: who asks at the very moment when a token is free may come too early for it.
WAY_SECONDS = 0.005

_DATABASE_NOW = func.extract("epoch", func.clock_timestamp())


class SharedWindow:
    """The creates of the last window, those of all processes. Not thread-safe.

    Times are in seconds on any clock of this process that never goes back. While the database does not answer there are
    no tokens.
    """

    def __init__(self, engine: Engine, limit: RateLimit) -> None:
        self._engine = engine
        self._count = limit.count
        self._seconds = limit.seconds + SPARE_SECONDS
        self._leave_at: list[float] = []  # when each create that is known of leaves the window, the next one first
        self._seen_at = float("-inf")
        self._away_until = float("-inf")

    def take(self, now: float) -> int | None:
        """Take a token for a create that leaves now; None when there is none left."""
        if now < self._away_until:
            return None
        try:
            with self._engine.begin() as connection:
                connection.execute(select(func.pg_advisory_xact_lock(TOKEN_LOCK)))
                connection.execute(delete(create_table).where(create_table.c.sent_at <= _DATABASE_NOW - self._seconds))
                self._look(connection, now)
                if len(self._leave_at) >= self._count:
                    return None
                token: int | None = connection.scalar(
                    insert(create_table).values(sent_at=_DATABASE_NOW).returning(create_table.c.number)
                )
        except SQLAlchemyError as error:
            self._note_away(error, now)
            return None
        self._leave_at.append(now + self._seconds)
        return token

    def give_back(self, token: int) -> None:
        """Give back the token of a create that never left."""
        try:
            with self._engine.begin() as connection:
                connection.execute(delete(create_table).where(create_table.c.number == token))
        except SQLAlchemyError as error:
            logger.warning("a token could not be given back: %s", error)
        self._seen_at = float("-inf")

    def seconds_until(self, nth: int, now: float) -> float:
        """How many seconds until the `nth` create from now (1 is the next) may leave, if only this process sends."""
        if now < self._away_until:
            return self._away_until - now
        if now - self._seen_at > FRESH_SECONDS:
            self._refresh(now)
        left = self._leave_at[bisect_right(self._leave_at, now) :]
        windows, place = divmod(nth - 1, self._count)
        free = max(0, self._count - len(left))
        wait = windows * self._seconds
        if place >= free:
            wait += left[place - free] - now + WAY_SECONDS
        return wait

    def _refresh(self, now: float) -> None:
        try:
            with self._engine.connect() as connection:
                self._look(connection, now)
        except SQLAlchemyError as error:
            self._note_away(error, now)

    def _look(self, connection: Connection, now: float) -> None:
        left = create_table.c.sent_at + self._seconds - _DATABASE_NOW
        self._leave_at = [now + float(seconds) for seconds in connection.scalars(select(left).order_by(left))]
        self._seen_at = now

    def _note_away(self, error: SQLAlchemyError, now: float) -> None:
        logger.warning("creates are held, the database does not answer: %s", str(error).splitlines()[0])
        self._away_until = now + AWAY_SECONDS
