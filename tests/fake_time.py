"""A clock that stands still until it is told to go on, timers that go off by it, and waits that take no time."""

from __future__ import annotations

import threading
from collections.abc import Callable


class FakeTimer(threading.Timer):
    """A timer that runs no thread: the clock calls it."""

    def __init__(self, at: float, function: Callable[[], None]) -> None:
        super().__init__(0, function)
        self.at = at
        self.is_pending = True

    def cancel(self) -> None:
        self.is_pending = False

    def go_off(self) -> None:
        """Do what the timer is for, unless it was cancelled."""
        if self.is_pending:
            self.is_pending = False
            self.function()


class FakeClock:
    """Call it for the time; `start_timer` makes timers that go off when `advance` or `advance_to` passes them.

    `settle` is called after every timer, to wait for what it has set going.
    """

    def __init__(self, now: float = 1000.0, settle: Callable[[], None] = lambda: None) -> None:
        self.now = now
        self.settle = settle
        self.timers: list[FakeTimer] = []

    def __call__(self) -> float:
        return self.now

    def start_timer(self, seconds: float, function: Callable[[], None]) -> threading.Timer:
        """Start a timer; the list `timers` keeps every one that was ever started."""
        assert seconds >= 0
        timer = FakeTimer(self.now + seconds, function)
        self.timers.append(timer)
        return timer

    @property
    def pending(self) -> list[FakeTimer]:
        """The timers that are still to go off, the next one first."""
        return sorted((timer for timer in self.timers if timer.is_pending), key=lambda timer: timer.at)

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass, with every timer that goes off in them."""
        self.advance_to(self.now + seconds)

    def advance_to(self, until: float) -> None:
        """Let time pass until then."""
        while (pending := self.pending) and pending[0].at <= until:
            self.now = max(self.now, pending[0].at)
            pending[0].go_off()
            self.settle()
        self.now = max(self.now, until)


class Pauses(threading.Event):
    """A stop signal on which nobody really waits: waits are noted, and time goes on by them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.waits: list[float] = []
        self.stop_in_wait: int | None = None

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waits.append(timeout)
        self.now += timeout
        if len(self.waits) == self.stop_in_wait:
            self.set()
        return self.is_set()
