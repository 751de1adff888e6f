"""Whether a run may still send: each has a lease that holds for seconds, and is renewed by looking into the store.

A process that was frozen, or cut off from the database, was perhaps thought dead, and its batches run elsewhere. When
it comes back its leases have run out, and nothing leaves before the store has said again whose the batches are.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from batch import Goal
from cluster.postgres_store import Claim, PostgresStore, RunState
from cluster.repeating import Repeating
from directory_errors import Stopped
from store import StoreError, TakenOverError

logger = logging.getLogger(__name__)

RENEW_EVERY_SECONDS = 1.0
# How long after a look into the store something may leave.
LEASE_SECONDS = 4.0


class Lease:
    """One run's right to send, taken with `claim` at `taken_at` in seconds of `clock`.

    `is_lost` when another process has been seen to have the batch.
    """

    def __init__(
        self,
        claim: Claim,
        taken_at: float,
        stopping: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.batch_id = claim.batch.batch_id
        self._epoch = claim.epoch
        self._seen_at = taken_at
        self.is_lost = False
        self._stopping = stopping
        self._clock = clock
        self._seen = threading.Condition()

    def fence(self) -> None:
        """Return when something may leave, in no time or when the database is back.

        Raises `TakenOverError` when another process has the batch, and `Stopped` when the service stops meanwhile.
        """
        with self._seen:
            while not self.is_lost and self._clock() - self._seen_at > LEASE_SECONDS:
                if self._stopping.is_set():
                    raise Stopped
                self._seen.wait(RENEW_EVERY_SECONDS)
            if self.is_lost:
                raise TakenOverError(self.batch_id)

    def renew(self, state: RunState | None, seen_at: float) -> None:
        """Take note of what the store said when it was asked at `seen_at`."""
        with self._seen:
            self.is_lost = self.is_lost or state is None or state.epoch != self._epoch
            self._seen_at = seen_at
            self._seen.notify_all()


class LeaseKeeper:
    """Renews the leases of all runs of this process, on a thread of its own."""

    def __init__(self, store: PostgresStore) -> None:
        self._store = store
        self._leases: dict[Lease, Callable[[], object]] = {}
        self._stopped = threading.Event()
        self._renewing = Repeating("leases", RENEW_EVERY_SECONDS, self._renew, "leases are not renewed", self._stopped)

    @property
    def count(self) -> int:
        """How many leases it keeps."""
        return len(self._leases)

    def start(self) -> None:
        """Begin to renew."""
        self._renewing.start()

    def stop(self) -> None:
        """Renew no more; the leases run out."""
        self._stopped.set()

    @contextmanager
    def keeping(self, lease: Lease, on_removal: Callable[[], object]) -> Iterator[None]:
        """Renew this lease inside the ``with`` block.

        `on_removal` is called, more than once perhaps, when the batch is to be removed instead of activated.
        """
        self._leases[lease] = on_removal
        try:
            yield
        finally:
            del self._leases[lease]

    def _renew(self) -> None:
        leases, asked_at = self._leases.copy(), time.monotonic()
        if not leases:
            return
        states = self._store.run_states(lease.batch_id for lease in leases)
        for lease in leases:
            lease.renew(states.get(lease.batch_id), asked_at)
        for lease, on_removal in leases.items():
            state = states.get(lease.batch_id)
            if state is not None and state.goal is Goal.REMOVE:
                try:
                    on_removal()
                except (StoreError, TakenOverError) as error:  # the other runs are told all the same
                    logger.warning("batch %s is not turned to its removal yet: %s", lease.batch_id, error)
