"""Rate limits in fixed windows that start with the first call, as the deployed directory counts them."""

from dataclasses import dataclass

_UNITS = (("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1))
_SWEEP_SIZE = 10_000


@dataclass(frozen=True, slots=True)
class Limit:
    """At most ``count`` calls in a window of ``seconds``."""

    count: int
    seconds: float

    @classmethod
    def parse(cls, text: str) -> "Limit":
        """Read ``COUNT/SECONDS``, such as ``30/60``; raise ValueError for anything else."""
        count, _, seconds = text.partition("/")
        limit = cls(int(count), float(seconds))
        if limit.count < 1 or not 0 < limit.seconds <= 86_400:
            raise ValueError("the count is at least 1, the seconds are over 0 and at most 86400")
        return limit

    def __str__(self) -> str:
        """Word the limit as the deployed directory does: ``30 per 1 minute``."""
        for unit, size in _UNITS:
            if self.seconds % size == 0:
                return f"{self.count} per {self.seconds / size:g} {unit}"
        return f"{self.count} per {self.seconds:g} second"


class FixedWindows:
    """Counts calls for each key (a client and what is limited) in windows of its own."""

    def __init__(self) -> None:
        self._windows: dict[tuple[str, str], tuple[float, int]] = {}

    def admit(self, key: tuple[str, str], limit: Limit, now: float) -> bool:
        """Count one call at ``now`` (seconds, any clock) and say whether it is within the limit."""
        ends, count = self._windows.get(key, (now, 0))
        if now >= ends:
            self._sweep(now)
            ends, count = now + limit.seconds, 0
        self._windows[key] = (ends, count + 1)
        return count < limit.count

    def _sweep(self, now: float) -> None:
        """Forget ended windows: every batch id has its own, so they would pile up."""
        if len(self._windows) >= _SWEEP_SIZE:
            self._windows = {key: window for key, window in self._windows.items() if now < window[0]}
