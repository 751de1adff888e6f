"""Runs batches that any process of the service has put into the queue: in the web process, or in one of its own."""

from __future__ import annotations

import logging
import math
import threading
import time

import logs
from cluster.lease import LEASE_SECONDS, Lease, LeaseKeeper
from cluster.postgres_store import Claim, ClaimedStore, PostgresStore
from cluster.queue import QueueWorker
from cluster.window import SharedWindow
from hospital_client import HospitalClient
from pacing import Pacer
from rounds import Run, RunContext
from runner import GRACE_SECONDS
from settings import Settings
from store import StoreError, TakenOverError

logger = logging.getLogger(__name__)


class BatchWorker:
    """Takes batches from the queue, up to `at_once` of them, and runs each until it has ended or `stop` is called.

    `stopping` is what `client` was made with.
    """

    def __init__(
        self, settings: Settings, store: PostgresStore, client: HospitalClient, stopping: threading.Event, at_once: int
    ) -> None:
        self._settings = settings
        self._store = store
        self._client = client
        self._stopping = stopping
        limit = settings.directory_create_limit
        self.pacer = Pacer(settings, client.knock, window=SharedWindow(store.engine, limit) if limit else None)
        self._leases = LeaseKeeper(store)
        self._queue = QueueWorker(settings.database_url or "", at_once, self._work_off)
        # Not a daemon: what runs is to be stored before the process ends.
        self._thread = threading.Thread(target=self._queue.run, name="queue")

    @property
    def running(self) -> int:
        """How many batches this worker runs at the moment."""
        return self._leases.count

    def start(self) -> None:
        """Begin to take batches; returns at once."""
        self._leases.start()
        self._thread.start()

    def stop(self) -> None:
        """Send no new row, store where each batch stands, give it back to the queue, and return: in about 10 s."""
        self._stopping.set()
        self.pacer.stop()
        self._queue.stop()
        cut = threading.Timer(GRACE_SECONDS, self._client.cut)
        cut.start()
        if self._thread.is_alive():
            self._thread.join()
        cut.cancel()
        self._leases.stop()

    def _work_off(self, batch_id: str, settled_after: int | None) -> None:
        logs.batch_id.set(batch_id)
        try:
            self._run_batch(batch_id, settled_after)
        except StoreError as error:
            logger.warning("the run is tried again: %s", error)
            raise
        except Exception:
            logger.exception("the run broke off, and is tried again")
            raise

    def _run_batch(self, batch_id: str, settled_after: int | None) -> None:
        """Run the batch, or give it back to the queue when this process stops meanwhile. Raises `StoreError`."""
        taken_at = time.monotonic()
        claim = self._store.take(batch_id)
        if claim is None:
            return  # it has ended; this job was one too many
        logger.info("taken up, run %s", claim.epoch)
        lease = Lease(claim, taken_at, self._stopping)
        context = RunContext(
            self._settings,
            ClaimedStore(self._store, claim),
            self._client,
            self.pacer,
            self._stopping,
            lease.fence,
        )
        run = Run(claim.batch, context, _seconds_unknown(claim, settled_after))
        try:
            with self._leases.keeping(lease, run.turn_to_removal):
                run.announce()
                run.run()
        except TakenOverError:
            return
        if run.ended_as is None:  # since this process stops
            self._store.give_back(claim, run.is_settled)


def _seconds_unknown(claim: Claim, settled_after: int | None) -> float | None:
    """How long ago something of the batch may last have been sent whose outcome nobody knows, None when nothing was."""
    if claim.epoch == 1:
        return None
    # Who had the batch before may have sent for as long as its lease held, which is from now on at the most.
    return math.inf if settled_after == claim.epoch - 1 else -LEASE_SECONDS
