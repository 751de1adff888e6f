"""The batches of a service that runs on several machines: started, resumed and rolled back from any, run by workers.

What `runner` does for one process this does for many: it stores what is wanted, the store puts a job into the queue,
and a worker, here or elsewhere, runs the batch.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress

from batch import Batch, BatchStatus, Goal, IdempotencyKey, Row, RowStatus
from cluster.postgres_store import PostgresStore
from cluster.queue import defer, make_queue
from cluster.repeating import Repeating
from cluster.worker import BatchWorker
from hospital_client import HospitalClient
from runner import REMOVABLE, RESUMABLE, Activity, Mend, activity_of, new_batch
from settings import Settings
from store import BatchNotFoundError, KeyTakenError, StoreError, TooManyBatchesError, WrongStatusError

# How often the store is asked whether a batch that a caller waits for has ended.
LOOK_EVERY_SECONDS = 0.2
# When the answer to the storing of an upload was lost, the store is asked so often what became of it.
ASK_AGAIN_SECONDS, TIMES_TO_ASK = 1.0, 5
# Who waits for a batch is not told at once that the store is away.
PATIENCE_WITH_STORE_SECONDS = 5.0


def open_cluster(settings: Settings) -> tuple[PostgresStore, ClusterRunner]:
    """The store and the runner for a PostgreSQL `DATABASE_URL`; nothing is opened or started."""
    store = PostgresStore(settings.database_url or "", make_queue, defer, settings.max_running_batches)
    return store, ClusterRunner(settings, store)


class ClusterRunner:
    """What `Runner` offers, with the runs in `EMBEDDED_WORKERS` workers of this process and in any others there are."""

    def __init__(self, settings: Settings, store: PostgresStore) -> None:
        self._settings = settings
        self._store = store
        self.stopping = threading.Event()
        self._client = HospitalClient(settings, self.stopping)
        self._worker = (
            BatchWorker(settings, store, self._client, self.stopping, settings.embedded_workers)
            if settings.embedded_workers
            else None
        )
        self._ends = _Ends(store, self.stopping)

    @property
    def activity(self) -> Activity:
        """What goes on in this process."""
        worker = self._worker
        return activity_of(self._client, worker.pacer if worker else None, worker.running if worker else 0)

    def start(self, filename: str, rows: tuple[Row, ...], key: IdempotencyKey | None = None) -> str:
        """Store a new batch with its rows, all pending, and its job; returns its id at once.

        Raises `KeyTakenError` when there is a batch under `key`, `TooManyBatchesError` and `StoreError`.
        """
        if key is not None and (other := self._store.find_key(key.owner, key.key)) is not None:
            raise KeyTakenError(other)
        self._check_room()
        batch = new_batch(filename, rows, key)
        try:
            self._store.add(batch)
        except StoreError as error:
            # The answer may have been lost on the way, and the batch be there.
            self._check_stored(batch.batch_id, error)
        return batch.batch_id

    def resume(self, batch_id: str, mend: Mend = lambda batch: batch.rows) -> None:
        """Go on where the batch stopped, its failed rows as `mend` leaves them; returns at once.

        Raises `BatchNotFoundError`, `WrongStatusError`, `TooManyBatchesError` and `StoreError`.
        """
        self._check_room()
        before = self._store.get(batch_id)
        if before.status not in RESUMABLE:
            raise WrongStatusError(before)
        rows = [row.made_pending() for row in mend(before) if row.status is RowStatus.FAILED]
        self._store.begin(batch_id, RESUMABLE, Goal.ACTIVATE, rows)

    def roll_back(self, batch_id: str) -> None:
        """Begin to delete the batch from the directory, also while it runs, wherever that is; returns at once.

        A batch that is rolled back already is left as it is. Raises `BatchNotFoundError`, `TooManyBatchesError` and
        `StoreError`.
        """
        while True:
            before = self._store.ask_removal(batch_id)
            if not before.ended or before.status is BatchStatus.ROLLED_BACK:
                return
            self._check_room()
            with suppress(WrongStatusError):  # another caller was faster, and what that began is to be asked
                self._store.begin(batch_id, REMOVABLE, Goal.REMOVE)
                return

    def take_up(self) -> None:
        """Begin to work batches off, also those that other processes left."""
        if self._worker is not None:
            self._worker.start()
        self._ends.start()

    def wait(self, batch_id: str, seconds: float) -> Batch:
        """The batch when its run has ended, or as it stands after so many seconds, or when the service stops.

        Raises `BatchNotFoundError` and `StoreError`.
        """
        give_up_at = time.monotonic() + max(seconds, PATIENCE_WITH_STORE_SECONDS)
        self._ends.wait(batch_id, seconds)
        while True:
            try:
                return self._store.get(batch_id)
            except StoreError as error:
                if time.monotonic() > give_up_at or self.stopping.wait(ASK_AGAIN_SECONDS):
                    raise StoreError(
                        "The database does not answer at the moment. What you asked for is stored, and goes on when it "
                        f"is back: look at /batches/{batch_id} then, and do not send it again."
                    ) from error

    def knock(self, timeout: float) -> None:
        """Ask the directory whether it is there. Raises `DirectoryError` when it is not, or not in so many seconds."""
        self._client.knock(timeout)

    def stop(self) -> None:
        """Let callers go, and return when this process's workers have given back what they run: in about 10 s."""
        self.stopping.set()
        self._ends.stop()
        if self._worker is not None:
            self._worker.stop()
        self._client.cut()  # and so whoever just asks whether the directory is there

    def _check_room(self) -> None:
        """Refuse before anything is written, mostly: the store makes sure of it, as others ask at the same moment."""
        if self.stopping.is_set() or self._store.count_unfinished() >= self._settings.max_running_batches:
            raise TooManyBatchesError

    def _check_stored(self, batch_id: str, error: StoreError) -> None:
        """Return when the batch is in the store. Raises `StoreError` that says what is known of it otherwise."""
        for _ in range(TIMES_TO_ASK):
            self.stopping.wait(ASK_AGAIN_SECONDS)
            try:
                self._store.get(batch_id)
            except BatchNotFoundError:
                raise error from None
            except StoreError:
                continue
            return
        raise StoreError(
            "The database does not answer, and it is not known whether the upload was stored: when it is back, see "
            f"whether there is a /batches/{batch_id}. Sent under an Idempotency-Key it can be sent again at once."
        ) from error


class _Ends:
    """Tells callers when batches that run anywhere have ended: one question to the store for all of them."""

    def __init__(self, store: PostgresStore, stopping: threading.Event) -> None:
        self._store = store
        self._stopping = stopping
        self._waiting: dict[threading.Event, str] = {}
        self._looking = Repeating("ends", LOOK_EVERY_SECONDS, self._look, "callers wait on", stopping)

    def start(self) -> None:
        """Begin to look."""
        self._looking.start()

    def stop(self) -> None:
        """Let everybody go."""
        for ended in list(self._waiting):
            ended.set()

    def wait(self, batch_id: str, seconds: float) -> None:
        """Return when the batch has ended, after so many seconds, or when the service stops."""
        if not seconds:
            return
        ended = threading.Event()
        self._waiting[ended] = batch_id
        if not self._stopping.is_set():
            ended.wait(seconds)
        del self._waiting[ended]

    def _look(self) -> None:
        waiting = self._waiting.copy()
        if not waiting:
            return
        over = self._store.ended_among(set(waiting.values()))
        for ended, batch_id in waiting.items():
            if batch_id in over:
                ended.set()
