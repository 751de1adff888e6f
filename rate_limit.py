"""How many creates may go out, and when: a sliding window over pyrate-limiter, asked and never waited on."""

from __future__ import annotations

from typing import Any, Protocol

from pyrate_limiter import InMemoryBucket, Rate, RateItem

from settings import RateLimit

# The directory counts when a create arrives, this service when it leaves: a flat second to spare covers the way.
SPARE_SECONDS = 1.0


class Window(Protocol):
    """How many creates may go out, of this process or of several. Times are in seconds on one clock."""

    def take(self, now: float) -> Any | None:
        """Take a token for a create that leaves now; None when there is none left."""

    def give_back(self, token: Any) -> None:
        """Give back the token of a create that never left."""

    def seconds_until(self, nth: int, now: float) -> float:
        """How many seconds until the `nth` create from now (1 is the next) may leave."""


class CreateWindow:
    """The creates of the last window. Times are in seconds on any clock that never goes back; not thread-safe.

    Without a limit every create is let go.
    """

    def __init__(self, limit: RateLimit | None) -> None:
        self._count = limit.count if limit else 0
        self._window_ms = round((limit.seconds + SPARE_SECONDS) * 1000) if limit else 0
        self._bucket = InMemoryBucket([Rate(self._count, self._window_ms)]) if limit else None

    def take(self, now: float) -> RateItem | None:
        """Take a token for a create that leaves now; None when there is none left."""
        token = RateItem("create", _ms(now))
        if self._bucket is None:
            return token
        self._bucket.leak(_ms(now))
        return token if self._bucket.put(token) else None

    def give_back(self, token: RateItem) -> None:
        """Give back the token of a create that never left."""
        if self._bucket is not None and token in self._bucket.items:
            self._bucket.items.remove(token)

    def seconds_until(self, nth: int, now: float) -> float:
        """How many seconds until the `nth` create from now (1 is the next) may leave."""
        if self._bucket is None:
            return 0.0
        self._bucket.leak(_ms(now))
        windows, place = divmod(nth - 1, self._count)
        free = self._count - self._bucket.count()
        wait = windows * self._window_ms
        if place >= free:
            # The window's creates are counted from the newest; the oldest is the first to leave it.
            leaving = self._bucket.peek(self._bucket.count() - 1 - (place - free))
            if leaving is not None:
                # One more, since pyrate-limiter still counts a create that is exactly a window old.
                wait += leaving.timestamp + self._window_ms - _ms(now) + 1
        return max(0, wait) / 1000


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
