"""When requests came: where the limit of requests counts them.

The storage in memory that `limits` brings keeps every caller it has ever seen, and starts a thread with every request.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from typing import Any

from limits.limits import Granularity, RateLimitItem
from limits.storage import MovingWindowSupport, Storage

MICROSECONDS = 1_000_000
# By which Flask-Limiter names what is below.
STORAGE_URI = "request-times://"
_SCHEMES = [STORAGE_URI.removesuffix("://")]


class PerMicrosecond(RateLimitItem):
    """A limit whose window is told in microseconds: `limits` knows whole numbers alone, and no unit under a second.

    Every time between `limits` and `RequestTimes` is in microseconds, so that is what one of this unit lasts.
    """

    GRANULARITY = Granularity(1, "microsecond")


def now() -> int:
    """The time in microseconds, on a clock that never goes back."""
    return time.monotonic_ns() // 1000


class RequestTimes(Storage, MovingWindowSupport):
    """The times of the requests that were let in in the last window, of each caller that has any; in microseconds.

    For one limit, and for the moving window alone. Safe to use from many threads.
    """

    STORAGE_SCHEME = _SCHEMES
    base_exceptions = ()

    def __init__(self, uri: str | None = None, wrap_exceptions: bool = False, **options: Any) -> None:
        super().__init__(uri, wrap_exceptions, **options)
        self._lock = threading.Lock()
        # The caller who was let in last is the last.
        self._times: OrderedDict[str, deque[int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._times)

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Let in so many requests of the caller `key`, unless that makes more than `limit` in the window `expiry`."""
        with self._lock:
            times = self._recent(key, expiry)
            if len(times) + amount > limit:
                return False
            times.extend([now()] * amount)
            self._times[key] = times
            self._times.move_to_end(key)
            return True

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[int, int]:
        """When the first request in the caller's window came, or the window began, and how many are in it."""
        with self._lock:
            times = self._recent(key, expiry)
            return (times[0] if times else now() - expiry), len(times)

    def _recent(self, key: str, expiry: int) -> deque[int]:
        over = now() - expiry
        while self._times and next(iter(self._times.values()))[-1] <= over:
            self._times.popitem(last=False)
        times = self._times.get(key, deque())
        while times and times[0] <= over:
            times.popleft()
        return times

    def clear(self, key: str) -> None:
        """Forget a caller."""
        with self._lock:
            self._times.pop(key, None)

    def reset(self) -> int:
        """Forget all callers; returns how many there were."""
        with self._lock:
            count = len(self._times)
            self._times.clear()
            return count

    def check(self) -> bool:
        """Whether it works: always."""
        return True

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Not for this kind of window. Raises `NotImplementedError`."""
        raise NotImplementedError

    def get(self, key: str) -> int:
        """Not for this kind of window. Raises `NotImplementedError`."""
        raise NotImplementedError

    def get_expiry(self, key: str) -> float:
        """Not for this kind of window. Raises `NotImplementedError`."""
        raise NotImplementedError
