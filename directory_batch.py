"""One batch in the directory, through the eyes of a run: what is there, what is asked of it, and what is unknown.

A call whose outcome is unknown may still take effect for a while, a deletion as well as a create. So nothing is asked
for a second time before that while is over and the batch was listed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

import logs
from batch import Row, RowStatus, WaitingFor
from directory_errors import BatchFull, DirectoryError, NotLetIn, NotSent, OutcomeUnknown, Rejected, Stopped, Withheld
from hospital_client import Fence, Hospital, HospitalClient, no_fence
from ledger import Ledger
from metrics import DOUBLES_REMOVED, SETTLED, UNKNOWN, Settled, UnsureCall
from reconcile import Found, reconcile
from retries import PATIENCE_SECONDS, Tell, doubling_wait
from settings import Settings
from store import TakenOverError

logger = logging.getLogger(__name__)

T = TypeVar("T")
Settle = Callable[[Found], Settled]


class DirectoryBatch:
    """The batch of `ledger` in the directory. Its own thread calls everything but `create`.

    `unknown_at` is when an outcome last became unknown, in `time.monotonic` seconds, None when none is. `fence` is
    passed before anything is sent that changes the directory; it raises `TakenOverError` when another process runs the
    batch. The methods raise the types of `directory_errors`, and `Stopped` when the service stops.
    """

    def __init__(
        self,
        ledger: Ledger,
        client: HospitalClient,
        settings: Settings,
        stopping: threading.Event,
        unknown_at: float | None,
        fence: Fence = no_fence,
    ) -> None:
        self._ledger = ledger
        self._id = ledger.batch.batch_id
        self._client = client
        self._settings = settings
        self._stopping = stopping
        self._unknown_at = unknown_at
        self._fence = fence
        self._full: dict[int, BatchFull] = {}
        self._why_unknown: dict[int, str] = {}
        # Each unknown outcome, with what tells from a listing how it came out.
        self._unsettled: deque[tuple[UnsureCall, Settle]] = deque()

    def create(self, row: Row) -> None:
        """Create one row and report its outcome, on any thread.

        Raises `NotLetIn` when it may be sent again, `Withheld` when it was not sent, and nothing else.
        """
        logs.row_number.set(row.row)
        try:
            self._fence()
        except (Stopped, TakenOverError) as error:
            raise Withheld from error
        try:
            hospital = self._client.create(self._id, row.name, row.address, row.phone)
        except NotLetIn as error:
            logger.warning("the create was not let in: %s", error)
            raise
        except BatchFull as full:
            self._full[row.row] = full
        except Rejected as rejected:
            # Its words may quote the hospital; the batch has them.
            logger.warning("the directory refused the row")
            self._ledger.report(replace(row, status=RowStatus.FAILED, error_message=str(rejected)))
        except Exception as error:
            logger.warning("outcome unknown: %s", _named(error), exc_info=_unexpected(error))
            self._note_unknown(UnsureCall.CREATE, lambda found: _settled_row(row, found))
            self._why_unknown[row.row] = str(error)
            self._unknown_at = time.monotonic()
        else:
            self._ledger.report(replace(row, status=RowStatus.CREATED, hospital_id=hospital.id))

    @property
    def is_settled(self) -> bool:
        """Whether no call is out, and none of unknown outcome may still take effect."""
        return self._unknown_at is None

    def why_unknown(self, row: Row) -> str:
        """What went wrong when the row was last sent and its outcome was unknown, empty when it never was."""
        return self._why_unknown.get(row.row, "")

    def look(self) -> Found:
        """List the batch when nothing can be under way any more, delete doubles, and enter what is there."""
        self._wait_out_unknown()
        passes, patient_until = 0, time.monotonic() + PATIENCE_SECONDS
        doubles: set[int] = set()
        while passes <= self._settings.directory_attempts:
            found = self._list()
            self._settle(found)
            if not found.doubles:
                DOUBLES_REMOVED.inc(len(doubles))
                self._enter(found)
                return found
            doubles.update(double.id for double in found.doubles)
            error = self._delete_doubles(found)
            if not isinstance(error, NotLetIn) or time.monotonic() > patient_until:
                passes += 1
            if error is not None:
                self._pause(doubling_wait(self._settings.directory_retry_seconds, max(passes, 1)))
        ids = ", ".join(str(double.id) for double in found.doubles)
        raise OutcomeUnknown(f"Doubles could not be deleted from the directory: {ids}.")

    def activate(self) -> str | None:
        """Ask once for the activation: None when all of the batch is certainly active, else why that is not so."""
        total = len(self._ledger.rows)
        try:
            activated = self._patiently(lambda tell: self._client.activate(self._id, tell, self._fence))
        except Rejected as error:
            logger.warning("the activation was refused")
            return str(error)
        except OutcomeUnknown as error:
            logger.warning("activation unknown: %s", error)
            self._note_unknown(UnsureCall.ACTIVATE, lambda found: _done_if(found.is_all_active(total)))
            self._unknown_at = time.monotonic()
            # Mostly it was done and only the answer was lost: then there is nothing to wait out.
            found = self._list()
            if not found.is_all_active(total):
                return str(error)
            self._settle(found)
            return None
        return None if activated == total else f"it activated {activated} of {total} hospitals."

    def delete(self) -> None:
        """Ask once for the deletion of the batch; only a look tells whether it is gone."""
        try:
            self._patiently(lambda tell: self._client.delete_batch(self._id, tell, self._fence))
        except OutcomeUnknown as error:
            logger.warning("deletion unknown: %s", error)
            self._note_unknown(UnsureCall.DELETE, lambda found: _done_if(found.is_empty))
            self._unknown_at = time.monotonic()

    def is_empty(self) -> bool:
        """Whether the directory holds nothing of the batch, when nothing can be under way any more."""
        self._wait_out_unknown()
        found = self._list()
        self._settle(found)
        return found.is_empty

    def _list(self) -> Found:
        return reconcile(self._ledger.rows, self._patiently(lambda tell: self._client.list_batch(self._id, tell)))

    def _enter(self, found: Found) -> None:
        self._ledger.adopt(found)
        for row in self._ledger.missing:
            full = self._full.pop(row.row, None)
            # Where fewer are there, doubles had filled it: the row is sent again.
            if full is not None and len(found.rows) >= full.cap:
                self._ledger.fail([row], str(full))

    def _delete_doubles(self, found: Found) -> DirectoryError | None:
        """Delete them up to the first failure: an id counts only for the listing that it was read from."""
        for double in found.doubles:
            logger.warning("deleting the double: hospital %s", double.id)
            self._fence()
            try:
                self._client.delete_hospital(double.id)
            except DirectoryError as error:
                if isinstance(error, OutcomeUnknown):
                    self._note_unknown(UnsureCall.DELETE, partial(_settled_double, double))
                return error
        return None

    def _note_unknown(self, call: UnsureCall, settle: Settle) -> None:
        UNKNOWN[call].inc()
        self._unsettled.append((call, settle))

    def _settle(self, found: Found) -> None:
        while self._unsettled:
            call, settle = self._unsettled.popleft()
            SETTLED[call, settle(found)].inc()

    def _wait_out_unknown(self) -> None:
        if self._unknown_at is None:
            return
        left = self._unknown_at + self._settings.directory_delay_seconds - time.monotonic()
        if left > 0:
            self._ledger.wait_for(WaitingFor.DELAY, left)
            self._pause(left)
            self._ledger.wait_for(None, 0)
        self._unknown_at = None

    def _patiently(self, call: Callable[[Tell], T]) -> T:
        """Make a call that waits to be let in, and say meanwhile what the batch waits for."""
        waited: list[WaitingFor] = []

        def tell(error: DirectoryError) -> None:
            if isinstance(error, NotLetIn):
                waited.append(WaitingFor.DIRECTORY if isinstance(error, NotSent) else WaitingFor.RATE_LIMIT)
                self._ledger.wait_for(waited[-1], 0)

        try:
            return call(tell)
        finally:
            if waited:
                self._ledger.wait_for(None, 0)

    def _pause(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise Stopped


def _settled_row(row: Row, found: Found) -> Settled:
    return Settled.DOUBLE if found.has_double(row) else _done_if(row.row in found.rows)


def _settled_double(double: Hospital, found: Found) -> Settled:
    return _done_if(all(other.id != double.id for other in found.doubles))


def _done_if(holds: bool) -> Settled:
    return Settled.DONE if holds else Settled.NOT_DONE


def _named(error: Exception) -> str:
    """The error, of which only our own sentences are sure to quote nothing."""
    return str(error) if isinstance(error, OutcomeUnknown) else type(error).__name__


def _unexpected(error: Exception) -> Exception | None:
    """The error when its traceback is worth a place in the log."""
    return None if isinstance(error, OutcomeUnknown) else error
