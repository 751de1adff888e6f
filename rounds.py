"""The run of one batch towards its goal: rounds of creating, looking and activating, or the removal of the batch.

A row whose outcome is unknown is never sent again before the directory was asked what it holds, and that is asked only
when a create that was still under way there must have come to its end. So no row is created twice, unless the
directory carries a create out later than `DIRECTORY_DELAY_SECONDS`.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

from batch import Batch, BatchStatus, Goal, RowStatus, WaitingFor, utc_now
from directory_batch import DirectoryBatch
from directory_errors import DirectoryError, NotSent, Stopped
from hospital_client import Fence, HospitalClient, no_fence
from ledger import Ledger
from metrics import BATCHES
from pacing import Lane, Pacer
from reconcile import Found
from retries import PATIENCE_SECONDS, doubling_wait
from settings import Settings
from store import GoalChangedError, RunStore, StoreError, TakenOverError

logger = logging.getLogger(__name__)

# How often what has changed is stored while rows are in flight, in seconds.
STORE_EVERY_SECONDS = 0.5
# How long to wait when a store that does not answer was to be told how a run ended, at first.
FIRST_STORE_WAIT = 0.5
# A directory that has not answered for so long sleeps, and takes about so long to wake.
ASLEEP_AFTER_SECONDS = 2.0
USUAL_WAKE_SECONDS = 25.0

_WHAT_TO_DO = {
    Goal.ACTIVATE: "Whether the batch is active could not be found out: resume it to find out and to go on.",
    Goal.REMOVE: "What is left of the batch in the directory could not be found out: roll it back again.",
}


class _EndedError(Exception):
    """The run has come to an end that is not its goal."""

    def __init__(self, status: BatchStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class _TurnedError(Exception):
    """The batch is to be removed instead of activated."""


@dataclass(frozen=True, slots=True)
class RunContext:
    """What a run works with. `stopping` is set when the service stops; `fence` lets pass what may be sent."""

    settings: Settings
    store: RunStore
    client: HospitalClient
    pacer: Pacer
    stopping: threading.Event
    fence: Fence = no_fence


class Run:
    """One run of one batch. `run()` works it off on the thread that calls it; everything else is for other threads.

    `seconds_unknown` is None for a batch of which nothing was ever sent; else it says how many seconds ago something
    may last have been sent whose outcome nobody knows. `released` is set when the run has ended, or when the service
    stops; `ended_as` is then the batch as the run left it, or None when the service stopped before.
    """

    def __init__(self, batch: Batch, context: RunContext, seconds_unknown: float | None = None) -> None:
        self.batch_id = batch.batch_id
        self.released = threading.Event()
        self.ended_as: Batch | None = None
        self._settings = context.settings
        self._store = context.store
        self._client = context.client
        self._pacer = context.pacer
        self._stopping = context.stopping
        self._ledger = Ledger(batch, context.store)
        self._total = len(batch.rows)
        self._earlier_seconds = batch.earlier_seconds
        unknown_at = None if seconds_unknown is None else time.monotonic() - seconds_unknown
        self._there = DirectoryBatch(
            self._ledger, context.client, context.settings, context.stopping, unknown_at, context.fence
        )
        self._is_new = seconds_unknown is None
        self._refusal: str | None = None
        self._rounds_left = self._activations_left = self._deletions_left = self._settings.directory_attempts
        # Guards the turn from activation to removal against the lane that starts and the run that ends meanwhile.
        self._turning = threading.Lock()
        self._goal = batch.goal
        self._lane: Lane | None = None
        self._closed = False

    def run(self) -> None:
        """Work until the goal is reached, or cannot be for now; the store then says how it ended.

        A service that stops ends the run with the batch still `processing`. Raises `StoreError`, and `TakenOverError`
        when another process runs the batch now.
        """
        logger.info("begins: %s, %s rows", "roll back" if self._goal is Goal.REMOVE else "create", self._total)
        try:
            try:
                self._pursue(self._goal)
            except _TurnedError:
                self._pursue(Goal.REMOVE)
        except Stopped:
            logger.info("left as it is: the service stops")
            self._ledger.save()
        except TakenOverError:
            logger.warning("another process has taken the batch over")
            self._rest()
            raise
        finally:
            self.released.set()

    @property
    def is_settled(self) -> bool:
        """Whether nothing of the batch can be under way in the directory, once `run()` has returned."""
        return self._there.is_settled

    def announce(self) -> None:
        """Store what the run begins with and how long it should take; called once, before `run()`."""
        self._wait_for(None if self._client.is_awake else WaitingFor.WAKE, lane=self._lane_of_missing())

    def turn_to_removal(self) -> bool:
        """Remove the batch instead of activating it: no new row starts. False when the run is just ending."""
        with self._turning:
            if self._closed:
                return False
            if self._goal is not Goal.REMOVE:
                self._store.save(self.batch_id, goal=Goal.REMOVE)
                self._goal = Goal.REMOVE
                if self._lane is not None:
                    self._pacer.withdraw(self._lane)
            return True

    def _pursue(self, goal: Goal) -> None:
        status, message = self._outcome(goal)
        self._end(goal, status, message)

    def _outcome(self, goal: Goal) -> tuple[BatchStatus, str | None]:
        """Work towards the goal, and say how that ended and, if not well, why."""
        try:
            self._wake(goal)
            if goal is Goal.ACTIVATE:
                self._bring_to_active()
                return BatchStatus.COMPLETED, None
            self._remove()
            return BatchStatus.ROLLED_BACK, None
        except _EndedError as ended:
            return ended.status, str(ended)
        except DirectoryError as error:
            # Its words may be the directory's, and quote a hospital; the batch has them.
            logger.warning("the run broke off: %s", type(error).__name__)
            return BatchStatus.INTERRUPTED, f"{str(error).rstrip('.')}. {_WHAT_TO_DO[goal]}"
        except (Stopped, _TurnedError, TakenOverError):
            raise
        except Exception:
            logger.exception("the run broke off")
            self._rest()
            return (
                BatchStatus.INTERRUPTED,
                f"An error in this service stopped the batch; its log says which. {_WHAT_TO_DO[goal]}",
            )

    def _end(self, goal: Goal, status: BatchStatus, message: str | None) -> None:
        with self._turning:
            self._check_goal(goal)
            self._closed = True
        if status is BatchStatus.COMPLETED:
            self._ledger.all_became(RowStatus.CREATED_AND_ACTIVATED)
        if status is BatchStatus.ROLLED_BACK:
            self._ledger.all_became(RowStatus.DELETED)
        try:
            self._store_end(status, message)
        except GoalChangedError:  # at the last moment, by another process
            self._closed, self._goal = False, Goal.REMOVE
            raise _TurnedError from None
        self.ended_as = self._ledger.batch
        BATCHES[status].inc()
        self._log_end(self.ended_as)

    def _log_end(self, batch: Batch) -> None:
        rows = Counter(row.status.value for row in batch.rows)
        seconds, waited = batch.earlier_seconds - self._earlier_seconds, self._ledger.waited_seconds
        logger.info(
            "ended: %s, rows: %s, in %.1f s, %.1f s of them waited",
            batch.status,
            ", ".join(f"{count} {status}" for status, count in sorted(rows.items())),
            seconds,
            waited,
            extra={
                "outcome": batch.status.value,
                "rows": rows,
                "seconds": round(seconds, 3),
                "waited_seconds": round(waited, 3),
            },
        )

    def _store_end(self, status: BatchStatus, message: str | None) -> None:
        """Store how the run ended, also when the store does not answer for a while: else it would run for ever."""
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        for attempt in itertools.count(1):
            try:
                self._ledger.end(status, message)
            except StoreError as error:
                logger.warning("how the batch ended is not stored: %s", error)
                if time.monotonic() > give_up_at or self._stopping.wait(doubling_wait(FIRST_STORE_WAIT, attempt)):
                    raise
            else:
                return

    def _check_goal(self, goal: Goal) -> None:
        if self._goal is not goal:
            raise _TurnedError

    def _wake(self, goal: Goal) -> None:
        if self._client.is_awake:
            return
        lane = self._lane_of_missing()

        def tell(error: DirectoryError) -> None:
            self._wait_for(WaitingFor.DIRECTORY if isinstance(error, NotSent) else WaitingFor.WAKE, lane=lane)

        asleep = threading.Timer(ASLEEP_AFTER_SECONDS, self._expect_to_wake, [lane])
        asleep.daemon = True
        asleep.start()
        try:
            self._client.wake(tell)
        except DirectoryError as error:
            if self._is_new and goal is Goal.ACTIVATE:
                self._ledger.fail(self._ledger.missing, f"Not created: {error}")
                raise _EndedError(BatchStatus.INTERRUPTED, f"{error} Nothing was sent: resume the batch.") from error
            raise
        finally:
            asleep.cancel()
        self._wait_for(None, lane=lane)

    def _expect_to_wake(self, lane: Lane) -> None:
        seconds = USUAL_WAKE_SECONDS + self._pacer.seconds_left(lane)
        # It is but an estimate; whether the store may still be written to the run itself finds out.
        with suppress(StoreError, TakenOverError):
            self._store.save(self.batch_id, expected_end=utc_now() + timedelta(seconds=seconds))

    def _bring_to_active(self) -> None:
        found = Found() if self._is_new else self._there.look()  # of a new batch nothing can be there
        while True:
            self._check_goal(Goal.ACTIVATE)
            if found.strangers:
                self._refuse_strangers(found)
            if found.is_all_active(self._total):
                return
            if found.active:
                self._delete_to_begin_again()
            elif self._ledger.missing:
                self._create_missing()
            elif self._ledger.failed:
                self._refuse_failed_rows()
            elif self._activate():
                return
            found = self._there.look()

    def _create_missing(self) -> None:
        if not self._rounds_left:
            self._give_up_missing()
            return
        self._rounds_left -= 1
        self._is_new = False
        lane = self._lane_of_missing()
        with self._turning:
            self._check_goal(Goal.ACTIVATE)
            self._lane = lane
            self._pacer.add(lane)
        while not lane.rested.wait(STORE_EVERY_SECONDS):
            self._ledger.take_reports()
            self._wait_for(self._pacer.waiting_for(lane), lane=lane)
        self._ledger.take_reports()
        self._wait_for(None)
        self._check_goal(Goal.ACTIVATE)
        if self._stopping.is_set():
            raise Stopped
        if lane.given_up is not None:
            reason = f"Not created: {lane.given_up} Nothing was let in for {PATIENCE_SECONDS:g} s."
            self._ledger.fail(lane.waiting, reason)
            if isinstance(lane.given_up, NotSent):
                raise lane.given_up

    def _rest(self) -> None:
        """Send no more rows, and let those in flight end."""
        if self._lane is not None:
            self._pacer.withdraw(self._lane)
            self._lane.rested.wait()
            self._ledger.take_reports()

    def _give_up_missing(self) -> None:
        if self._refusal is not None:
            self._refuse_unactivated()
        for row in self._ledger.missing:
            reason = f"Not in the directory after {self._settings.directory_attempts} rounds."
            self._ledger.fail([row], f"{reason} {self._there.why_unknown(row)}".strip())

    def _activate(self) -> bool:
        if not self._activations_left:
            self._refuse_unactivated()
        self._activations_left -= 1
        self._refusal = self._there.activate()
        return self._refusal is None

    def _delete_to_begin_again(self) -> None:
        """Delete a batch that is active in part, as it can never become active as a whole."""
        if not self._deletions_left:
            raise _EndedError(BatchStatus.INTERRUPTED, "Part of the batch is active and could not be deleted.")
        self._deletions_left -= 1
        logger.warning("active in part, deleted to begin again")
        self._there.delete()

    def _refuse_unactivated(self) -> NoReturn:
        raise _EndedError(BatchStatus.FAILED, f"The directory did not activate the batch: {self._refusal}")

    def _refuse_strangers(self, found: Found) -> NoReturn:
        logger.warning("hospitals of no row: %s", ", ".join(str(hospital.id) for hospital in found.strangers))
        ids = ", ".join(f"{hospital.id} ({hospital.name})" for hospital in found.strangers)
        status = BatchStatus.INTERRUPTED if found.active else BatchStatus.FAILED
        raise _EndedError(
            status,
            f"The directory holds under this batch what is in none of its rows: hospital {ids}. "
            f"{'Part of it is active' if found.active else 'So the batch was not activated'}; "
            "roll it back and upload it again.",
        )

    def _refuse_failed_rows(self) -> NoReturn:
        raise _EndedError(
            BatchStatus.FAILED,
            f"{len(self._ledger.failed)} of {self._total} rows failed, so the batch was not activated; "
            "those rows say why.",
        )

    def _remove(self) -> None:
        """Delete the batch in the directory, and look until it is empty."""
        for _ in range(self._settings.directory_attempts):
            self._there.delete()
            if self._there.is_empty():
                return
        reason = "The directory still holds hospitals of the batch; roll it back again."
        raise _EndedError(BatchStatus.INTERRUPTED, reason)

    def _lane_of_missing(self) -> Lane:
        missing = self._ledger.missing if self._goal is Goal.ACTIVATE else []
        return Lane(missing, self._there.create, self._ledger.batch.created_at)

    def _wait_for(self, what: WaitingFor | None, seconds: float = 0, lane: Lane | None = None) -> None:
        """Store what the batch waits for and, by what is known now, when it should end."""
        self._ledger.wait_for(what, seconds + (self._pacer.seconds_left(lane) if lane is not None else 0))
