"""The queue's way to the database: who uses it waits while the database is away, and meets no error.

A worker of Procrastinate that meets one takes no more jobs, no longer says that it lives, and ends with the last of its
jobs: a restart of the database would have batches taken up by others though they run, and new ones wait for old ones.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, LiteralString, TypeVar

import psycopg
from procrastinate import PsycopgConnector
from procrastinate.connector import Notify
from procrastinate.exceptions import ConnectorException
from procrastinate.sql import queries
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from cluster.postgres_store import CONNECT_OPTIONS, SET_UP_SESSION

logger = logging.getLogger(__name__)

T = TypeVar("T")

MOST_CONNECTIONS = 4
# How long one try to get a connection takes, and the pause until the next one.
CONNECTION_SECONDS, PAUSE_SECONDS = 2.0, 0.5


class PatientConnector(PsycopgConnector):
    """Repeats what failed since the database was away, until `stopping` is set.

    What was perhaps done is repeated too, where that does no harm: a job that was perhaps taken would be nobody's.
    """

    def __init__(self, stopping: asyncio.Event) -> None:
        super().__init__()
        self._stopping = stopping
        self._away_at = float("-inf")

    def was_away(self, seconds: float) -> bool:
        """Whether the database did not answer within the last so many seconds."""
        return time.monotonic() - self._away_at < seconds

    async def execute_query_async(self, query: LiteralString, **arguments: Any) -> None:
        """Do it, when the database is there."""
        await self._patiently(query, lambda: PsycopgConnector.execute_query_async(self, query, **arguments))

    async def execute_query_one_async(self, query: LiteralString, **arguments: Any) -> dict[str, Any]:
        """The one row that it returns, when the database is there."""
        one = PsycopgConnector.execute_query_one_async
        return await self._patiently(query, lambda: one(self, query, **arguments))

    async def execute_query_all_async(self, query: LiteralString, **arguments: Any) -> list[dict[str, Any]]:
        """All rows that it returns, when the database is there."""
        every = PsycopgConnector.execute_query_all_async
        return await self._patiently(query, lambda: every(self, query, **arguments))

    async def listen_notify(self, on_notification: Notify, channels: Iterable[str]) -> None:
        """Tell of every notification, for ever."""
        names = list(channels)
        while True:
            try:
                await super().listen_notify(on_notification, names)
            except ConnectorException as error:
                logger.warning("the queue is not listened to: %s", first_line(error))
            await asyncio.sleep(PAUSE_SECONDS)

    async def _patiently(self, query: LiteralString, call: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await call()
            except ConnectorException as error:
                away = PoolTimeout if query == queries["fetch_job"] else psycopg.OperationalError
                if not isinstance(error.__cause__, away) or self._stopping.is_set():
                    raise
                self._away_at = time.monotonic()
                logger.warning("the queue waits for the database: %s", first_line(error))
            await asyncio.sleep(PAUSE_SECONDS)


def first_line(problem: BaseException) -> str:
    """What the database said, or else the error itself: Procrastinate's own words for it say nothing."""
    return str(problem.__cause__ or problem).strip().partition("\n")[0]


def make_pool(conninfo: str) -> AsyncConnectionPool:
    """The queue's connections, not yet open; they need not be there when it is opened."""
    return AsyncConnectionPool(
        conninfo,
        kwargs=CONNECT_OPTIONS,
        min_size=1,
        max_size=MOST_CONNECTIONS,
        open=False,
        configure=_set_up_session,
        check=AsyncConnectionPool.check_connection,
        timeout=CONNECTION_SECONDS,
        # It would double its pauses, to minutes; what needs a connection asks again anyhow.
        reconnect_timeout=CONNECTION_SECONDS,
    )


async def _set_up_session(connection: psycopg.AsyncConnection[Any]) -> None:
    await connection.execute(SET_UP_SESSION)
    await connection.commit()
