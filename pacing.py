"""When each create goes out: one queue for all batches, kept to the directory's limit and held when it refuses.

Rows that wait hold no thread, no token and no place among the creates in flight. The next place goes to the batch with
the fewest rows left to send, then to the oldest, so a small batch passes a huge one.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from batch import Row, WaitingFor
from create_hold import Hold
from directory_errors import DirectoryError, NotLetIn, NotSent, Withheld
from metrics import count_again
from rate_limit import CreateWindow, Window
from retries import PATIENCE_SECONDS
from settings import Settings

logger = logging.getLogger(__name__)

# What a create takes at the deployed directory, taken for granted until one was measured.
USUAL_CREATE_SECONDS = 5.0


class Lane:
    """The rows of one batch that are to be created.

    `create` makes the call for one row and keeps its outcome; it raises nothing but `NotLetIn` and `Withheld`. `rested`
    is set when no row is in flight and none will be sent any more; those left in `waiting` then were not sent,
    `given_up` says why (None when they were withdrawn). `context` is that of whoever made the lane: each create has a
    copy of it.
    """

    def __init__(self, rows: Iterable[Row], create: Callable[[Row], None], batch_created_at: datetime) -> None:
        self.waiting = deque(rows)
        self.create = create
        self.batch_created_at = batch_created_at
        self.context = copy_context()
        self.added_at = 0.0
        self.last_sent_at = 0.0
        self.in_flight = 0
        self.rested = threading.Event()
        self.given_up: DirectoryError | None = None

    @property
    def turn(self) -> tuple[int, datetime]:
        """The lower, the sooner it is this lane's turn."""
        return len(self.waiting), self.batch_created_at


@dataclass(frozen=True, slots=True)
class _Send:
    lane: Lane
    row: Row
    token: Any
    try_number: int | None  # of the one that shows, while all others are held, whether creates are let in again


class Pacer:
    """Sends the rows of all lanes, each at its time, on threads of its own. Every method may be called from any thread.

    `knock` asks the directory whether it is there, raising `DirectoryError` when it is not. `window` keeps the limit;
    by default it is this process's own.
    """

    def __init__(
        self,
        settings: Settings,
        knock: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        start_timer: Callable[[float, Callable[[], None]], threading.Timer] | None = None,
        window: Window | None = None,
    ) -> None:
        self._most_in_flight = settings.max_concurrent_creates
        self._window = window or CreateWindow(settings.directory_create_limit)
        self._hold = Hold(settings.directory_retry_seconds)
        self._knock = knock
        self._clock = clock
        self._start_timer = start_timer or _start_timer
        # One thread more than creates, for the knock.
        self._pool = ThreadPoolExecutor(self._most_in_flight + 1, thread_name_prefix="create")
        self._lock = threading.Lock()
        self._lanes: list[Lane] = []
        self._in_flight = 0
        self._create_seconds: float | None = None
        self._timer: threading.Timer | None = None
        self._stopped = False

    def add(self, lane: Lane) -> None:
        """Send the lane's rows as soon as it is their turn; returns at once."""
        with self._lock:
            lane.added_at = self._clock()
            self._lanes.append(lane)
            if self._stopped or not lane.waiting:
                self._close(lane)
            self._send_what_may_go()

    def withdraw(self, lane: Lane) -> None:
        """Send no more rows of the lane; those in flight end."""
        with self._lock:
            self._close(lane)

    def stop(self) -> None:
        """Send no more rows at all; those in flight end."""
        with self._lock:
            self._stopped = True
            for lane in list(self._lanes):
                self._close(lane)
            self._set_timer(None)
        self._pool.shutdown(wait=False)

    @property
    def rows_waiting(self) -> int:
        """How many rows of all lanes wait to be sent."""
        # Without the lock: who holds it may wait for a database that does not answer, and who asks this may not.
        return sum(len(lane.waiting) for lane in self._lanes.copy())

    @property
    def in_flight(self) -> int:
        """How many creates are under way."""
        return self._in_flight

    @property
    def is_held(self) -> bool:
        """Whether creates are held back, since the directory refused one."""
        return self._hold.reason is not None

    def waiting_for(self, lane: Lane) -> WaitingFor | None:
        """Why rows of the lane wait, when it is for the directory and not just for their turn."""
        with self._lock:
            if not lane.waiting or lane.rested.is_set():
                return None
            if self._hold.reason is not None:
                return self._hold.waiting_for
            return WaitingFor.RATE_LIMIT if self._window.seconds_until(1, self._clock()) > 0 else None

    def seconds_left(self, lane: Lane) -> float:
        """An estimate of the seconds until the last row of the lane is created, also for one not yet added."""
        with self._lock:
            now = self._clock()
            create_seconds = USUAL_CREATE_SECONDS if self._create_seconds is None else self._create_seconds
            if not lane.waiting:
                return max(0.0, lane.last_sent_at + create_seconds - now) if lane.in_flight else 0.0
            before = sum(len(other.waiting) for other in self._lanes if other is not lane and other.turn < lane.turn)
            rows = before + len(lane.waiting)
            for_places = create_seconds * (math.ceil((self._in_flight + rows) / self._most_in_flight) - 1)
            for_window = self._window.seconds_until(rows, now)
            return self._hold.seconds_left(now) + max(for_places, for_window) + create_seconds

    def _send_what_may_go(self) -> None:
        while (send := self._next()) is not None:
            self._in_flight += 1
            self._pool.submit(self._work, send)
        self._set_timer(self._next_event())

    def _next(self) -> _Send | None:
        now = self._clock()
        lane = min((lane for lane in self._lanes if lane.waiting), key=lambda lane: lane.turn, default=None)
        if lane is None or not self._hold.may_try(now):
            return None
        if self._hold.needs_knock:
            self._hold.trying(now)
            self._pool.submit(self._try_knock)
            return None
        if self._in_flight >= self._most_in_flight or (token := self._window.take(now)) is None:
            return None
        try_number = None if self._hold.reason is None else self._hold.trying(now)
        lane.in_flight += 1
        lane.last_sent_at = now
        return _Send(lane, lane.waiting.popleft(), token, try_number)

    def _work(self, send: _Send | None) -> None:
        """Create a row, then whichever row is next, until none may go: on a thread of the pool."""
        while send is not None:
            started_at = self._clock()
            problem: NotLetIn | Withheld | None = None
            try:
                # A copy, since a context is for one thread at a time.
                send.lane.context.copy().run(send.lane.create, send.row)
            except (NotLetIn, Withheld) as error:
                problem = error
            with self._lock:
                self._note(send, problem, started_at)
                self._in_flight -= 1
                send = self._next()
                if send is not None:
                    self._in_flight += 1
                elif self._lanes:
                    self._send_what_may_go()

    def _note(self, send: _Send, problem: NotLetIn | Withheld | None, started_at: float) -> None:
        now, lane = self._clock(), send.lane
        was_the_try = self._hold.is_out(send.try_number)
        lane.in_flight -= 1
        if problem is None:
            self._measure(now - started_at)
            if self._hold.let_in(now, was_the_try):
                self._send_what_may_go()
        elif isinstance(problem, Withheld):
            if was_the_try:
                self._hold.not_tried()
        else:
            count_again(problem)
            lane.waiting.appendleft(send.row)
            if isinstance(problem, NotSent):
                self._window.give_back(send.token)
            self._hold.refused(problem, now, was_the_try)
        if not lane.in_flight and (not lane.waiting or lane not in self._lanes):
            self._close(lane)

    def _measure(self, seconds: float) -> None:
        before = seconds if self._create_seconds is None else self._create_seconds
        self._create_seconds = 0.8 * before + 0.2 * seconds

    def _try_knock(self) -> None:
        problem: Exception | None = None
        try:
            self._knock()
        except Exception as error:  # noqa: BLE001 - whatever it is: a hold that nothing ends would stop all batches
            logger.warning("creates are still held: %s", error)
            problem = error
        with self._lock:
            if problem is None:
                self._hold.let_in(self._clock(), was_the_try=True)
            else:
                self._hold.still_away(self._clock())
            self._send_what_may_go()

    def _close(self, lane: Lane) -> None:
        if lane in self._lanes:
            self._lanes.remove(lane)
        if not lane.in_flight:
            lane.rested.set()

    def _next_event(self) -> float | None:
        """When something may be done that no end of a create will bring about; None when there is no such time."""
        waiting = [lane for lane in self._lanes if lane.waiting]
        if not waiting:
            return None
        now = self._clock()
        may_send_at = now + self._window.seconds_until(1, now) if self._in_flight < self._most_in_flight else math.inf
        if self._hold.reason is None:
            return None if may_send_at == math.inf else may_send_at
        given_up_at = min(self._give_up_at(lane) for lane in waiting)
        if self._hold.is_trying or self._hold.needs_knock:
            return min(given_up_at, self._hold.next_event)
        return min(given_up_at, max(self._hold.next_event, may_send_at))

    def _give_up_at(self, lane: Lane) -> float:
        return max(lane.added_at, self._hold.let_in_at) + PATIENCE_SECONDS

    def _set_timer(self, at: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if at is not None and not self._stopped:
            self._timer = self._start_timer(max(0.0, at - self._clock()), self._on_timer)

    def _on_timer(self) -> None:
        with self._lock:
            now = self._clock()
            if self._hold.reason is not None:
                self._hold.on_time(now)
            if self._hold.reason is not None:
                for lane in [lane for lane in self._lanes if lane.waiting and now >= self._give_up_at(lane)]:
                    lane.given_up = self._hold.reason
                    self._close(lane)
            self._send_what_may_go()


def _start_timer(seconds: float, function: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(seconds, function)
    timer.daemon = True
    timer.start()
    return timer
