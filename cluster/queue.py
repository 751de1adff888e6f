"""The queue of batches that are to be run, shared by all machines: Procrastinate's, on the service's PostgreSQL.

A job is put there in the transaction that stores the beginning of a run, so there is neither a batch without a job nor
a job without a batch. Jobs of one batch share a lock, so only one of them is worked off at a time; after a worker was
taken for dead there may be two, and the epoch of each run says which one counts.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from procrastinate import App, BaseRetryStrategy, RetryDecision, SyncPsycopgConnector
from procrastinate.exceptions import ConnectorException
from procrastinate.jobs import Job, Status
from procrastinate.schema import SchemaManager
from psycopg.conninfo import make_conninfo
from sqlalchemy import Connection, func, make_url, select

import logs
from cluster.connector import PatientConnector, first_line, make_pool
from sql_store import database_away

logger = logging.getLogger(__name__)

RUN_TASK, UPKEEP_TASK = "run_batch", "take_up_stalled"
BATCHES, UPKEEP = "batches", "upkeep"

# A worker says so often that it lives; one that was silent for so long is dead, and that is looked for so often: its
# batches are with another worker within 25 s. Seconds are the last field of Procrastinate's cron.
HEARTBEAT_SECONDS, DEAD_AFTER_SECONDS = 3.0, 15.0
UPKEEP_CRON = "* * * * * */5"
# When the database was away, every worker that lives has said so again after this time.
SETTLE_SECONDS = 3 * HEARTBEAT_SECONDS
# How often a worker looks for jobs of which it was not told.
POLL_SECONDS = 1.0
# A run that could not be worked off is tried again after this time.
AGAIN_SECONDS = 3.0

# Works off the run of a batch, by its id and the run after which nothing of it was under way (None: not known).
RunBatch = Callable[[str, int | None], None]


class _GoOn(BaseRetryStrategy):
    """Every job is worked off in the end, whatever stopped it before."""

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision:
        return RetryDecision(retry_at=datetime.now(UTC) + timedelta(seconds=AGAIN_SECONDS))


# Puts jobs on connections of the store's; opens none of its own.
_deferring = App(connector=SyncPsycopgConnector())


def make_queue(connection: Connection) -> None:
    """Make the tables of the queue, where there are none. The caller sees to it that nobody else does so meanwhile."""
    if connection.scalar(select(func.to_regclass("procrastinate_jobs"))) is None:
        _driver(connection).execute(SchemaManager.get_schema())


def defer(connection: Connection, batch_id: str, settled_after: int | None) -> None:
    """Put the job of a batch into the queue.

    `settled_after` is the run after which nothing of the batch was under way in the directory, 0 when there was none
    yet, None when that is not known. Raises `StoreError`.
    """
    task = _deferring.configure_task(
        RUN_TASK, queue=BATCHES, lock=batch_id, connection=_driver(connection), allow_unknown=True
    )
    try:
        task.defer(batch_id=batch_id, settled_after=settled_after)
    except ConnectorException as error:
        raise database_away() from error


class QueueWorker:
    """Works jobs of the queue off, up to `at_once` at a time, each by `run_batch` on a thread of its own."""

    def __init__(self, url: str, at_once: int, run_batch: RunBatch) -> None:
        self._at_once = at_once
        self._conninfo = _conninfo(url)
        self._stopping = asyncio.Event()
        self._connector = PatientConnector(self._stopping)
        self._app = App(connector=self._connector)
        self._app.task(name=RUN_TASK, queue=BATCHES, retry=_GoOn())(run_batch)
        upkeep = self._app.task(name=UPKEEP_TASK, queue=UPKEEP, queueing_lock=UPKEEP_TASK)(self._take_up_stalled)
        self._app.periodic(cron=UPKEEP_CRON)(upkeep)
        # Guards a stop against the loop that is just being made.
        self._starting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_stopped = False

    def run(self) -> None:
        """Work until `stop`, also when the database is away for a while; returns when every job has been let go."""
        with asyncio.Runner() as runner:
            loop = runner.get_loop()
            loop.set_exception_handler(_log_left_over)
            # Procrastinate runs what is not asynchronous on this; the usual one has six threads on two cores.
            loop.set_default_executor(ThreadPoolExecutor(self._at_once + 4, thread_name_prefix="batch"))
            with self._starting:
                if self._is_stopped:
                    return
                self._loop = loop
            runner.run(self._serve())

    def stop(self) -> None:
        """Take no more jobs; may be called from any thread."""
        with self._starting:
            self._is_stopped = True
            if self._loop is not None:
                with suppress(RuntimeError):  # it has just ended by itself
                    self._loop.call_soon_threadsafe(self._stopping.set)

    async def _serve(self) -> None:
        async with make_pool(self._conninfo) as pool, self._app.open_async(pool):
            while not self._stopping.is_set():
                await self._work()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), AGAIN_SECONDS)

    async def _work(self) -> None:
        """Work until `stop`, or until a worker of Procrastinate ended, which it does at errors."""
        workers = [self._start_worker(BATCHES, self._at_once), self._start_worker(UPKEEP, 1)]
        stop = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait([*workers, stop], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*workers, stop):
                task.cancel()  # a worker ends when what it works on has ended
            for problem in await asyncio.gather(*workers, stop, return_exceptions=True):
                if isinstance(problem, Exception):
                    logger.warning("the queue: a worker ended: %s", first_line(problem))

    def _start_worker(self, queue: str, at_once: int) -> asyncio.Task[None]:
        return asyncio.create_task(
            self._app.run_worker_async(
                queues=[queue],
                concurrency=at_once,
                install_signal_handlers=False,
                fetch_job_polling_interval=POLL_SECONDS,
                update_heartbeat_interval=HEARTBEAT_SECONDS,
                stalled_worker_timeout=DEAD_AFTER_SECONDS,
                delete_jobs="always",
            )
        )

    async def _take_up_stalled(self, timestamp: int) -> None:
        """Give the jobs of dead workers to living ones.

        Each gets a new job: were the old one only handed on, a worker that is not dead after all would end it for both.
        """
        if self._connector.was_away(SETTLE_SECONDS):
            return  # no worker could say that it lives
        jobs = self._app.job_manager
        for job in await jobs.get_stalled_jobs(seconds_since_heartbeat=DEAD_AFTER_SECONDS):
            if job.task_name == RUN_TASK:
                logs.batch_id.set(str(job.task_kwargs["batch_id"]))
                logger.warning("its worker is dead, another takes the batch up")
                again = self._app.configure_task(RUN_TASK, queue=BATCHES, lock=job.lock)
                await again.defer_async(batch_id=job.task_kwargs["batch_id"], settled_after=None)
            await jobs.finish_job(job, status=Status.ABORTED, delete_job=True)


def _log_left_over(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # Mostly a job that was let go of after its worker was thought dead: by then it is another worker's.
    problem = context.get("exception")
    logger.warning("the queue: %s", first_line(problem) if problem else context["message"])


def _conninfo(url: str) -> str:
    """What the store's engine connects with, for the driver: as an address it could mean something else to that."""
    where = make_url(url)
    return make_conninfo(**where.get_dialect()().create_connect_args(where)[1])


def _driver(connection: Connection) -> psycopg.Connection:
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)  # noqa: S101 - made by the store's engine
    return driver
