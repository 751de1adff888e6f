"""The run of one batch towards its goal: rounds of creating, looking and activating, or the removal of the batch.

A row whose outcome is unknown is never sent again before the directory was asked what it holds, and that is asked only
when a create that was still under way there must have come to its end. So no row is created twice, whatever was lost.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import NoReturn

from batch import Batch, BatchStatus, Goal, Row, RowStatus, WaitingFor, utc_now
from directory_errors import BatchFull, DirectoryError, NotLetIn, NotSent, OutcomeUnknown, Rejected, Stopped
from hospital_client import HospitalClient
from ledger import Ledger
from pacing import Lane, Pacer
from reconcile import Found, reconcile
from retries import PATIENCE_SECONDS, doubling_wait
from settings import Settings
from store import Store

logger = logging.getLogger(__name__)

# How often what has changed is stored while rows are in flight, in seconds.
STORE_EVERY_SECONDS = 0.5
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
    """What every run works with. `stopping` is set when the service stops."""

    settings: Settings
    store: Store
    client: HospitalClient
    pacer: Pacer
    stopping: threading.Event


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
        self._batch_full: dict[int, BatchFull] = {}
        self._is_new = seconds_unknown is None
        self._unknown_at = None if seconds_unknown is None else time.monotonic() - seconds_unknown
        self._refusal = ""
        self._rounds_left = self._activations_left = self._deletions_left = self._settings.directory_attempts
        # Guards the turn from activation to removal against the lane that starts and the run that ends meanwhile.
        self._turning = threading.Lock()
        self._goal = batch.goal
        self._lane: Lane | None = None
        self._closed = False

    def run(self) -> None:
        """Work until the goal is reached, or cannot be for now; the store then says how it ended.

        A service that stops ends the run with the batch still `processing`.
        """
        try:
            try:
                self._pursue(self._goal)
            except _TurnedError:
                self._pursue(Goal.REMOVE)
        except Stopped:
            self._ledger.save()
        finally:
            self.released.set()

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
        try:
            self._wake(goal)
            if goal is Goal.ACTIVATE:
                self._bring_to_active()
                self._end(goal, BatchStatus.COMPLETED)
            else:
                self._remove()
                self._end(goal, BatchStatus.ROLLED_BACK)
        except _EndedError as ended:
            self._end(goal, ended.status, str(ended))
        except DirectoryError as error:
            self._end(goal, BatchStatus.INTERRUPTED, f"{error} {_WHAT_TO_DO[goal]}")
        except (Stopped, _TurnedError):
            raise
        except Exception:
            logger.exception("batch %s: the run broke off", self.batch_id)
            self._end(goal, BatchStatus.INTERRUPTED, "An error in this service stopped the batch; its log says which.")

    def _end(self, goal: Goal, status: BatchStatus, message: str | None = None) -> None:
        with self._turning:
            self._check_goal(goal)
            self._closed = True
        if status is BatchStatus.COMPLETED:
            self._ledger.all_became(RowStatus.CREATED_AND_ACTIVATED)
        if status is BatchStatus.ROLLED_BACK:
            self._ledger.all_became(RowStatus.DELETED)
        self._ledger.end(status, message)
        self.ended_as = self._ledger.batch
        logger.info("batch %s: %s%s", self.batch_id, status, f": {message}" if message else "")

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
            if goal is Goal.ACTIVATE:
                self._ledger.fail(self._ledger.missing, f"Not created: {error}")
            raise _EndedError(BatchStatus.INTERRUPTED, f"{error} {_WHAT_TO_DO[goal]}") from error
        finally:
            asleep.cancel()
        self._wait_for(None, lane=lane)

    def _expect_to_wake(self, lane: Lane) -> None:
        seconds = USUAL_WAKE_SECONDS + self._pacer.seconds_left(lane)
        self._store.save(self.batch_id, expected_end=utc_now() + timedelta(seconds=seconds))

    def _bring_to_active(self) -> None:
        found = Found() if self._is_new else self._look()  # of a new batch nothing can be there
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
            found = self._look()

    def _create_missing(self) -> None:
        missing = self._ledger.missing
        if not self._rounds_left:
            self._ledger.fail(missing, f"Not in the directory after {self._settings.directory_attempts} rounds.")
            return
        self._rounds_left -= 1
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
            self._ledger.fail(self._ledger.missing, reason)
            if isinstance(lane.given_up, NotSent):
                raise lane.given_up

    def _create(self, row: Row) -> None:
        """Create one row and keep its outcome, on a thread of the pacer's. Raises `NotLetIn` when it may go again."""
        try:
            hospital = self._client.create(self.batch_id, row.name, row.address, row.phone)
        except NotLetIn:
            raise
        except BatchFull as full:
            self._batch_full[row.row] = full
        except Rejected as rejected:
            self._ledger.report(replace(row, status=RowStatus.FAILED, error_message=str(rejected)))
        except OutcomeUnknown as unknown:
            logger.warning("batch %s row %s: outcome unknown: %s", self.batch_id, row.row, unknown)
            self._unknown_at = time.monotonic()
        except Exception:
            logger.exception("batch %s row %s: outcome unknown", self.batch_id, row.row)
            self._unknown_at = time.monotonic()
        else:
            self._ledger.report(replace(row, status=RowStatus.CREATED, hospital_id=hospital.id))

    def _look(self) -> Found:
        """List the batch, delete doubles, and take what is there for what was created."""
        self._wait_out_unknown()
        for attempt in range(self._settings.directory_attempts + 1):
            found = reconcile(self._ledger.rows, self._client.list_batch(self.batch_id))
            if not found.doubles:
                self._take_over(found)
                return found
            self._delete_doubles(found, attempt)
        ids = ", ".join(str(double.id) for double in found.doubles)
        raise _EndedError(BatchStatus.INTERRUPTED, f"Doubles could not be deleted from the directory: {ids}.")

    def _wait_out_unknown(self) -> None:
        """Wait until nothing whose outcome is unknown can be under way in the directory any more."""
        if self._unknown_at is None:
            return
        left = self._unknown_at + self._settings.directory_delay_seconds - time.monotonic()
        if left > 0:
            self._wait_for(WaitingFor.DELAY, left)
            if self._stopping.wait(left):
                raise Stopped
            self._wait_for(None)
        self._unknown_at = None

    def _delete_doubles(self, found: Found, attempt: int) -> None:
        for double in found.doubles:
            logger.warning("batch %s: deleting the double %s", self.batch_id, double.id)
            try:
                self._client.delete_hospital(double.id)
            except DirectoryError as error:
                # The next listing tells what became of it; its id counts only for the one it was read from.
                logger.warning("batch %s: double %s: %s", self.batch_id, double.id, error)
                if self._stopping.wait(doubling_wait(self._settings.directory_retry_seconds, attempt + 1)):
                    raise Stopped from error
                return

    def _take_over(self, found: Found) -> None:
        self._ledger.adopt(found)
        for row in self._ledger.missing:
            full = self._batch_full.pop(row.row, None)
            if full is not None and len(found.rows) >= full.cap:
                self._ledger.fail([row], str(full))

    def _activate(self) -> bool:
        """Ask for the activation once; whether it is certain that all of the batch is active."""
        if not self._activations_left:
            raise _EndedError(BatchStatus.FAILED, f"The directory did not activate the batch: {self._refusal}")
        self._activations_left -= 1
        try:
            activated = self._client.activate(self.batch_id)
        except Rejected as error:
            self._refusal = str(error)
            return False
        except OutcomeUnknown as error:
            self._refusal = str(error)
            self._unknown_at = time.monotonic()
            # Mostly it was done and only the answer was lost: then there is nothing to wait out.
            listed = self._client.list_batch(self.batch_id)
            return reconcile(self._ledger.rows, listed).is_all_active(self._total)
        self._refusal = f"it activated {activated} of {self._total} hospitals."
        return activated == self._total

    def _delete_to_begin_again(self) -> None:
        """Delete a batch that is active in part, as it can never become active as a whole."""
        if not self._deletions_left:
            raise _EndedError(BatchStatus.INTERRUPTED, "Part of the batch is active and could not be deleted.")
        self._deletions_left -= 1
        logger.warning("batch %s: active in part, deleted to begin again", self.batch_id)
        self._client.delete_batch(self.batch_id)

    def _refuse_strangers(self, found: Found) -> NoReturn:
        ids = ", ".join(f"{hospital.id} ({hospital.name})" for hospital in found.strangers)
        status = BatchStatus.INTERRUPTED if found.active else BatchStatus.FAILED
        raise _EndedError(
            status,
            f"The directory holds under this batch what is in none of its rows: hospital {ids}. "
            "So the batch was not activated; roll it back and upload it again.",
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
            self._client.delete_batch(self.batch_id)
            self._wait_out_unknown()
            if not self._client.list_batch(self.batch_id):
                return
        raise _EndedError(
            BatchStatus.INTERRUPTED, "The directory still holds hospitals of the batch; roll it back again."
        )

    def _lane_of_missing(self) -> Lane:
        missing = self._ledger.missing if self._goal is Goal.ACTIVATE else []
        return Lane(missing, self._create, self._ledger.batch.created_at)

    def _wait_for(self, what: WaitingFor | None, seconds: float = 0, lane: Lane | None = None) -> None:
        """Store what the batch waits for and, by what is known now, when it should end."""
        self._ledger.wait_for(what, seconds + (self._pacer.seconds_left(lane) if lane is not None else 0))
