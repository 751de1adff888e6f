"""The run of one batch: rounds of creating what is missing and looking what is there, then the activation.

A row whose outcome is unknown is never sent again before the directory was asked what it holds, and that is asked only
when a create that is still under way there must have come to its end. So no row is created twice, whatever was lost.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import replace
from datetime import timedelta
from typing import Any

from batch import Batch, BatchStatus, Row, RowStatus, WaitingFor, utc_now
from directory_errors import BatchFull, DirectoryError, NotLetIn, NotSent, OutcomeUnknown, Rejected, Stopped
from hospital_client import HospitalClient
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


class _EndedError(Exception):
    """The run has come to an end that is not completion."""

    def __init__(self, status: BatchStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class Run:
    """One run of one batch. `run()` works it off on the thread that calls it; everything else is for other threads.

    `released` is set when the run has ended, or when the service stops: nobody needs to wait for it any longer.
    `ended_as` is then the batch as the run left it, or None when the service stopped before.
    """

    def __init__(
        self,
        batch: Batch,
        settings: Settings,
        store: Store,
        client: HospitalClient,
        pacer: Pacer,
        stopping: threading.Event,
    ) -> None:
        self.batch_id = batch.batch_id
        self.released = threading.Event()
        self.ended_as: Batch | None = None
        self._batch = batch
        self._settings = settings
        self._store = store
        self._client = client
        self._pacer = pacer
        self._stopping = stopping
        self._rows = {row.row: row for row in batch.rows}
        self._unsaved: set[int] = set()
        self._outcomes: deque[Row] = deque()
        self._batch_full: dict[int, BatchFull] = {}
        self._unknown_at: float | None = None
        self._refusal = ""
        self._rounds_left = self._activations_left = self._deletions_left = settings.directory_attempts

    def run(self) -> None:
        """Work until the batch is active, or cannot be for now; the store then says how it ended.

        A service that stops ends the run with the batch still `processing`.
        """
        try:
            self._wake()
            self._bring_to_active()
            self._complete()
        except _EndedError as ended:
            self._end(ended.status, str(ended))
        except Stopped:
            self._save()
        except DirectoryError as error:
            self._end(BatchStatus.INTERRUPTED, f"{error} Whether the batch is active could not be found out.")
        except Exception:
            logger.exception("batch %s: the run broke off", self.batch_id)
            self._end(BatchStatus.INTERRUPTED, "An error in this service stopped the batch.")
        finally:
            self.released.set()

    def _wake(self) -> None:
        def tell(error: DirectoryError) -> None:
            self._wait_for(WaitingFor.DIRECTORY if isinstance(error, NotSent) else WaitingFor.WAKE)

        lane = self._lane_of_missing()
        asleep = threading.Timer(ASLEEP_AFTER_SECONDS, self._expect_to_wake, [lane])
        self._wait_for(WaitingFor.WAKE, 0, lane)
        asleep.start()
        try:
            self._client.wake(tell)
        except DirectoryError as error:
            self._fail(self._missing(), f"Not created: {error}")
            raise _EndedError(BatchStatus.INTERRUPTED, f"{error} Nothing was sent.") from error
        finally:
            asleep.cancel()
        self._wait_for(None)

    def _bring_to_active(self) -> None:
        found = Found()  # nothing was sent yet, so nothing is there
        while True:
            if found.strangers:
                self._refuse_strangers(found)
            if found.is_all_active(len(self._rows)):
                return
            if found.active:
                self._delete_to_begin_again()
            elif self._missing():
                self._create_missing()
            elif len(found.rows) < len(self._rows):
                self._refuse_failed_rows()
            elif self._activate():
                return
            found = self._look()

    def _create_missing(self) -> None:
        if not self._rounds_left:
            self._fail(self._missing(), f"Not in the directory after {self._settings.directory_attempts} rounds.")
            return
        self._rounds_left -= 1
        lane = self._lane_of_missing()
        self._pacer.add(lane)
        while not lane.rested.wait(STORE_EVERY_SECONDS):
            self._take_outcomes()
            self._wait_for(self._pacer.waiting_for(lane), 0, lane)
        self._take_outcomes()
        self._wait_for(None)
        if self._stopping.is_set():
            raise Stopped
        if lane.given_up is not None:
            self._fail(self._missing(), f"Not created: {lane.given_up} Nothing was let in for {PATIENCE_SECONDS:g} s.")
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
            self._outcomes.append(replace(row, status=RowStatus.FAILED, error_message=str(rejected)))
        except OutcomeUnknown as unknown:
            logger.warning("batch %s row %s: outcome unknown: %s", self.batch_id, row.row, unknown)
            self._unknown_at = time.monotonic()
        except Exception:
            logger.exception("batch %s row %s: outcome unknown", self.batch_id, row.row)
            self._unknown_at = time.monotonic()
        else:
            self._outcomes.append(replace(row, status=RowStatus.CREATED, hospital_id=hospital.id))

    def _look(self) -> Found:
        """List the batch, delete doubles, and take what is there for what was created."""
        self._wait_out_unknown()
        for attempt in range(self._settings.directory_attempts + 1):
            found = reconcile(self._rows.values(), self._client.list_batch(self.batch_id))
            if not found.doubles:
                self._adopt(found)
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

    def _adopt(self, found: Found) -> None:
        for row in list(self._rows.values()):
            hospital = found.rows.get(row.row)
            full = self._batch_full.pop(row.row, None)
            if hospital is not None:
                self._set(replace(row, status=RowStatus.CREATED, hospital_id=hospital.id, error_message=None))
            elif row.status is RowStatus.CREATED:
                self._set(replace(row, status=RowStatus.PENDING, hospital_id=None))
            elif full is not None and len(found.rows) >= full.cap:
                self._fail([row], str(full))

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
            return reconcile(self._rows.values(), listed).is_all_active(len(self._rows))
        self._refusal = f"it activated {activated} of {len(self._rows)} hospitals."
        return activated == len(self._rows)

    def _delete_to_begin_again(self) -> None:
        """Delete a batch that is active in part, as it can never become active as a whole."""
        if not self._deletions_left:
            raise _EndedError(BatchStatus.INTERRUPTED, "Part of the batch is active and could not be deleted.")
        self._deletions_left -= 1
        logger.warning("batch %s: active in part, deleted to begin again", self.batch_id)
        self._client.delete_batch(self.batch_id)

    def _refuse_strangers(self, found: Found) -> None:
        ids = ", ".join(f"{hospital.id} ({hospital.name})" for hospital in found.strangers)
        status = BatchStatus.INTERRUPTED if found.active else BatchStatus.FAILED
        raise _EndedError(
            status,
            f"The directory holds under this batch what is in none of its rows: hospital {ids}. "
            "So the batch was not activated; roll it back and upload it again.",
        )

    def _refuse_failed_rows(self) -> None:
        failed = sum(row.status is RowStatus.FAILED for row in self._rows.values())
        raise _EndedError(
            BatchStatus.FAILED,
            f"{failed} of {len(self._rows)} rows failed, so the batch was not activated; those rows say why.",
        )

    def _complete(self) -> None:
        for row in list(self._rows.values()):
            self._set(replace(row, status=RowStatus.CREATED_AND_ACTIVATED))
        self._end(BatchStatus.COMPLETED, None)

    def _end(self, status: BatchStatus, message: str | None) -> None:
        now = utc_now()
        changes: dict[str, Any] = {
            "status": status,
            "error_message": message,
            "batch_activated": status is BatchStatus.COMPLETED,
            "completed_at": now,
            "earlier_seconds": self._batch.processing_seconds(now),
            "run_started_at": None,
            "waiting_for": None,
            "expected_end": None,
        }
        self.ended_as = replace(self._batch, rows=tuple(self._rows.values()), **changes)
        self._save(**changes)
        logger.info("batch %s: %s%s", self.batch_id, status, f": {message}" if message else "")

    def _missing(self) -> list[Row]:
        return [row for row in self._rows.values() if row.status is RowStatus.PENDING]

    def _lane_of_missing(self) -> Lane:
        return Lane(self._missing(), self._create, self._batch.created_at)

    def _fail(self, rows: list[Row], message: str) -> None:
        for row in rows:
            self._set(replace(row, status=RowStatus.FAILED, error_message=message))

    def _set(self, row: Row) -> None:
        if row != self._rows[row.row]:
            self._rows[row.row] = row
            self._unsaved.add(row.row)

    def _take_outcomes(self) -> None:
        while self._outcomes:
            self._set(self._outcomes.popleft())

    def _wait_for(self, what: WaitingFor | None, seconds: float = 0, lane: Lane | None = None) -> None:
        """Store what the batch waits for and, by what is known now, when it should end."""
        if lane is not None:
            seconds += self._pacer.seconds_left(lane)
        self._save(waiting_for=what, expected_end=utc_now() + timedelta(seconds=seconds))

    def _expect_to_wake(self, lane: Lane) -> None:
        seconds = USUAL_WAKE_SECONDS + self._pacer.seconds_left(lane)
        self._store.save(self.batch_id, expected_end=utc_now() + timedelta(seconds=seconds))

    def _save(self, **changes: Any) -> None:
        rows = [self._rows[number] for number in sorted(self._unsaved)]
        self._unsaved.clear()
        self._store.save(self.batch_id, rows, **changes)
