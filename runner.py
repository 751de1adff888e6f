"""The batches that run now: a run is started for each, callers wait for one, and a stop ends them all."""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from typing import Protocol

import logs
from batch import Batch, BatchStatus, Goal, IdempotencyKey, Row, RowStatus, rows_digest, utc_now
from hospital_client import HospitalClient
from pacing import Pacer
from rounds import Run, RunContext
from settings import Settings
from store import BatchNotFoundError, KeyTakenError, Store, StoreError, TooManyBatchesError, WrongStatusError

logger = logging.getLogger(__name__)

# Creates in flight when the service is told to stop get so long to be answered.
GRACE_SECONDS = 10.0
# A run that ends is gone in a moment, unless the store does not take how it ended.
ENDING_SECONDS = 5.0
# Who has begun a batch asks for it the next moment. By then it may have ended and, where few are kept, be forgotten.
ENDED_KNOWN_SECONDS = 10.0

RESUMABLE = (BatchStatus.FAILED, BatchStatus.INTERRUPTED)
REMOVABLE = (BatchStatus.COMPLETED, *RESUMABLE)

Mend = Callable[[Batch], tuple[Row, ...]]


@dataclass(frozen=True, slots=True)
class Activity:
    """What goes on in this process at the moment.

    `seconds_since_answer` is None before the directory's first answer.
    """

    batches_running: int
    rows_waiting: int
    creates_in_flight: int
    creates_held: bool
    directory_awake: bool
    seconds_since_answer: float | None


class BatchRunner(Protocol):
    """What the routes ask of what runs batches: `Runner` in one process, `ClusterRunner` on several machines."""

    stopping: threading.Event

    @property
    def activity(self) -> Activity:
        """What goes on."""

    def start(self, filename: str, rows: tuple[Row, ...], key: IdempotencyKey | None = None) -> str:
        """Store a new batch, begin to run it, and return its id."""

    def resume(self, batch_id: str, mend: Mend = ...) -> None:
        """Go on with a batch that failed or was interrupted."""

    def roll_back(self, batch_id: str) -> None:
        """Begin to delete a batch from the directory."""

    def take_up(self) -> None:
        """Go on with what ran when the service ended."""

    def wait(self, batch_id: str, seconds: float) -> Batch:
        """The batch when it has ended, or after so many seconds."""

    def knock(self, timeout: float) -> None:
        """Ask the directory whether it is there."""

    def stop(self) -> None:
        """End what runs."""


class Runner:
    """Runs batches, each on a thread of its own. Every method may be called from any thread.

    `resume` and `roll_back` raise `BatchNotFoundError`, and `WrongStatusError` when the batch is in no state for it;
    with `start` they raise `TooManyBatchesError`, and then nothing was stored or begun. `stopping` is set by `stop`.
    """

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self.stopping = threading.Event()
        self._client = HospitalClient(settings, self.stopping)
        self._pacer = Pacer(settings, self._client.knock)
        self._context = RunContext(settings, store, self._client, self._pacer, self.stopping)
        self._pool = ThreadPoolExecutor(settings.max_running_batches, thread_name_prefix="batch")
        self._runs: dict[str, Run] = {}
        self._just_ended: dict[str, tuple[float, Batch]] = {}  # with when, the first to end first
        self._lock = threading.Lock()
        self._run_left = threading.Condition(self._lock)

    @property
    def activity(self) -> Activity:
        """What goes on."""
        return activity_of(self._client, self._pacer, len(self._runs))

    def start(self, filename: str, rows: tuple[Row, ...], key: IdempotencyKey | None = None) -> str:
        """Store a new batch with its rows, all pending, and begin to run it; returns its id at once.

        Raises `KeyTakenError` when there is a batch under `key`.
        """
        batch = new_batch(filename, rows, key)
        with self._lock:
            if key is not None and (other := self._store.find_key(key.owner, key.key)) is not None:
                raise KeyTakenError(other)
            self._check_room()
            self._store.add(batch)
            self._launch(Run(batch, self._context))
        return batch.batch_id

    def resume(self, batch_id: str, mend: Mend = lambda batch: batch.rows) -> None:
        """Go on where the batch stopped, its failed rows as `mend` leaves them; returns at once."""
        with self._lock:
            self._let_ended_run_leave(batch_id)
            self._check_room()
            before = self._store.get(batch_id)
            resumable = self._with_lost(batch_id, RESUMABLE)
            if before.status not in resumable:
                raise WrongStatusError(before)
            rows = [row.made_pending() for row in mend(before) if row.status is RowStatus.FAILED]
            batch = self._store.begin(batch_id, resumable, Goal.ACTIVATE, rows)
            self._launch(Run(batch, self._context, _seconds_unknown(before)))

    def roll_back(self, batch_id: str) -> None:
        """Begin to delete the batch from the directory, also while it runs; returns at once.

        A batch that is rolled back already is left as it is. Raises `StoreError` when a run cannot store how it ended.
        """
        with self._lock:
            while (run := self._runs.get(batch_id)) is not None:
                if run.turn_to_removal():
                    return
                if not self._run_left.wait(ENDING_SECONDS):
                    raise StoreError("How the batch ended cannot be stored yet; try it again in a few seconds.")
            before = self._store.get(batch_id)
            if before.status is BatchStatus.ROLLED_BACK:
                return
            self._check_room()
            batch = self._store.begin(batch_id, self._with_lost(batch_id, REMOVABLE), Goal.REMOVE)
            self._launch(Run(batch, self._context, _seconds_unknown(before)))

    def take_up(self) -> None:
        """Go on with the batches that ran when the service ended, whatever it had in flight then."""
        with self._lock:
            for batch in [] if self.stopping.is_set() else self._store.unfinished():
                logger.info("taken up: batch %s", batch.batch_id)
                self._launch(Run(batch, self._context, seconds_unknown=0.0))

    def wait(self, batch_id: str, seconds: float) -> Batch:
        """The batch when its run has ended, or as it stands after so many seconds, or when the service stops.

        Raises `BatchNotFoundError`.
        """
        with self._lock:  # else one that is just begun could pass for one that has no run
            run = self._runs.get(batch_id)
            _, just_ended = self._just_ended.get(batch_id, (0.0, None))
        if run is not None:
            run.released.wait(seconds)
            if run.ended_as is not None:
                return run.ended_as
        try:
            return self._store.get(batch_id)
        except BatchNotFoundError:
            if just_ended is None:
                raise
            return just_ended

    def knock(self, timeout: float) -> None:
        """Ask the directory whether it is there. Raises `DirectoryError` when it is not, or not in so many seconds."""
        self._client.knock(timeout)

    def stop(self) -> None:
        """Send no new row, let callers go, and return when every run has stored where it stands: in about 10 s."""
        with self._lock:
            self.stopping.set()
        self._pacer.stop()
        for run in list(self._runs.values()):
            run.released.set()
        cut = threading.Timer(GRACE_SECONDS, self._client.cut)
        cut.start()
        self._pool.shutdown(wait=True)
        cut.cancel()
        self._client.cut()  # and so whoever just asks whether the directory is there

    def _let_ended_run_leave(self, batch_id: str) -> None:
        """Wait for the run whose end can be seen already, or could not be stored, but that is not gone yet."""
        while (run := self._runs.get(batch_id)) is not None and not self.stopping.is_set():
            if not run.released.is_set() and not self._store.get(batch_id).ended:
                return  # it works
            self._run_left.wait()

    def _with_lost(self, batch_id: str, statuses: tuple[BatchStatus, ...]) -> tuple[BatchStatus, ...]:
        """Those, and `processing` for a batch that no run works on: how its last one ended could not be stored."""
        return statuses if batch_id in self._runs else (*statuses, BatchStatus.PROCESSING)

    def _check_room(self) -> None:
        if self.stopping.is_set() or len(self._runs) >= self._settings.max_running_batches:
            raise TooManyBatchesError

    def _launch(self, run: Run) -> None:
        # On the pool's thread the lines name the batch, and still the request that began the run.
        context = copy_context()
        context.run(logs.batch_id.set, run.batch_id)
        context.run(run.announce)
        self._runs[run.batch_id] = run
        self._pool.submit(context.run, self._work, run)

    def _work(self, run: Run) -> None:
        try:
            run.run()
        except Exception:
            logger.exception("how the batch ended could not be stored")
        finally:
            with self._lock:
                del self._runs[run.batch_id]
                self._note_ended(run)
                self._run_left.notify_all()

    def _note_ended(self, run: Run) -> None:
        now, known = time.monotonic(), self._just_ended
        while known and now - next(iter(known.values()))[0] > ENDED_KNOWN_SECONDS:
            del known[next(iter(known))]
        if run.ended_as is not None:
            known.pop(run.batch_id, None)
            known[run.batch_id] = now, run.ended_as


def activity_of(client: HospitalClient, pacer: Pacer | None, batches_running: int) -> Activity:
    """What goes on in a process that calls the directory with `client`, and sends creates by `pacer` if it does."""
    return Activity(
        batches_running,
        rows_waiting=pacer.rows_waiting if pacer else 0,
        creates_in_flight=pacer.in_flight if pacer else 0,
        creates_held=pacer is not None and pacer.is_held,
        directory_awake=client.is_awake,
        seconds_since_answer=client.seconds_since_answer,
    )


def new_batch(filename: str, rows: tuple[Row, ...], key: IdempotencyKey | None) -> Batch:
    """The batch of a new upload, as it is stored before anything is sent."""
    now = utc_now()
    return Batch(
        str(uuid.uuid4()),
        filename,
        rows,
        created_at=now,
        run_started_at=now,
        expected_end=now,
        idempotency_key=key,
        rows_digest=rows_digest(rows),
    )


def _seconds_unknown(batch: Batch) -> float:
    """How long ago the last run of the batch may have left something unknown: one that failed or completed did not."""
    if batch.status is BatchStatus.PROCESSING:
        return 0.0
    if batch.status is not BatchStatus.INTERRUPTED or batch.completed_at is None:
        return math.inf
    return max(0.0, (utc_now() - batch.completed_at).total_seconds())
