"""The batches that run now: a run is started for each, callers wait for one, and a stop ends them all."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

from batch import Batch, Row, rows_digest, utc_now
from hospital_client import HospitalClient
from pacing import Pacer
from rounds import Run, RunContext
from settings import Settings
from store import Store

# Creates in flight when the service is told to stop get so long to be answered.
GRACE_SECONDS = 10.0


class TooManyBatchesError(Exception):
    """As many batches run as `MAX_RUNNING_BATCHES` allows, or the service stops: try again later."""


class Runner:
    """Runs batches, each on a thread of its own. Every method may be called from any thread."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._stopping = threading.Event()
        self._client = HospitalClient(settings, self._stopping)
        self._pacer = Pacer(settings, self._client.knock)
        self._context = RunContext(settings, store, self._client, self._pacer, self._stopping)
        self._pool = ThreadPoolExecutor(settings.max_running_batches, thread_name_prefix="batch")
        self._runs: dict[str, Run] = {}
        self._lock = threading.Lock()

    def start(self, filename: str, rows: tuple[Row, ...]) -> str:
        """Store a new batch with its rows, all pending, and begin to run it; returns its id at once.

        Raises `TooManyBatchesError`; then nothing was stored.
        """
        now = utc_now()
        batch = Batch(
            str(uuid.uuid4()),
            filename,
            rows,
            created_at=now,
            run_started_at=now,
            expected_end=now,
            rows_digest=rows_digest(rows),
        )
        run = Run(batch, self._context)
        with self._lock:
            if self._stopping.is_set() or len(self._runs) >= self._settings.max_running_batches:
                raise TooManyBatchesError
            self._store.add(batch)
            self._runs[batch.batch_id] = run
            self._pool.submit(self._work, run)
        return batch.batch_id

    def wait(self, batch_id: str, seconds: float) -> Batch:
        """The batch when its run has ended, or as it stands after so many seconds, or when the service stops.

        Raises `BatchNotFoundError`.
        """
        run = self._runs.get(batch_id)
        if run is not None:
            run.released.wait(seconds)
            if run.ended_as is not None:
                return run.ended_as
        return self._store.get(batch_id)

    def knock(self) -> None:
        """Ask the directory whether it is there. Raises `DirectoryError` when it is not."""
        self._client.knock()

    def stop(self) -> None:
        """Send no new row, let callers go, and return when every run has stored where it stands: in about 10 s."""
        with self._lock:
            self._stopping.set()
        self._pacer.stop()
        for run in list(self._runs.values()):
            run.released.set()
        cut = threading.Timer(GRACE_SECONDS, self._client.cut)
        cut.start()
        self._pool.shutdown(wait=True)
        cut.cancel()

    def _work(self, run: Run) -> None:
        try:
            run.run()
        finally:
            with self._lock:
                del self._runs[run.batch_id]
