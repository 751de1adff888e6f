"""Whether creates are held back because the directory refuses them, and when one is tried again."""

from __future__ import annotations

from batch import WaitingFor
from directory_errors import NotLetIn, NotSent, RateLimited
from retries import PATIENCE_SECONDS, doubling_wait

# A refusal comes at once: a create that has had no answer for so long was let in.
LET_IN_SECONDS = 5.0


class Hold:
    """The first refusal holds all creates; then one at a time is tried, and when that is let in, all follow.

    After a 429 what is tried is a create; while connections are refused it is `GET /`. The waits between are those the
    directory asks for, or else double up to 10 s. Times are in seconds on one clock; not thread-safe.
    """

    def __init__(self, first_wait: float) -> None:
        self._first_wait = first_wait
        self._tries = 0
        self._try_at = 0.0
        self._tried_at: float | None = None
        self._try_number = 0
        self.reason: NotLetIn | None = None
        self.let_in_at = 0.0

    @property
    def waiting_for(self) -> WaitingFor:
        """What those who are held wait for."""
        return WaitingFor.DIRECTORY if self.needs_knock else WaitingFor.RATE_LIMIT

    @property
    def needs_knock(self) -> bool:
        """Whether the next try is a `GET /`, since connections are refused."""
        return isinstance(self.reason, NotSent)

    @property
    def is_trying(self) -> bool:
        """Whether the one that is tried is out."""
        return self._tried_at is not None

    @property
    def next_event(self) -> float:
        """When to try again; while one is tried, when it counts as let in."""
        if self._tried_at is None:
            return self._try_at
        return self._tried_at + LET_IN_SECONDS if not self.needs_knock else float("inf")

    def seconds_left(self, now: float) -> float:
        """How many seconds until the next try, 0 when nothing is held."""
        return 0.0 if self.reason is None else max(0.0, self._try_at - now)

    def may_try(self, now: float) -> bool:
        """Whether something may be sent now: anything when nothing is held, else the one that is tried."""
        return self.reason is None or (self._tried_at is None and now >= self._try_at)

    def trying(self, now: float) -> int:
        """Note that the one that is tried goes out; its number tells it from one that was tried before."""
        self._tried_at = now
        self._try_number += 1
        return self._try_number

    def is_out(self, try_number: int | None) -> bool:
        """Whether this is the try whose outcome is waited for, and not one that counted as let in since."""
        return self.is_trying and try_number == self._try_number

    def refused(self, reason: NotLetIn, now: float, was_the_try: bool) -> None:
        """Note a refusal. Of those that come while creates are held, only that of the one tried prolongs it."""
        if self.reason is None:
            self._tries, self.let_in_at = 0, now
        elif not was_the_try:
            return
        self._tries += 1
        self.reason, self._tried_at = reason, None
        said = reason.retry_after if isinstance(reason, RateLimited) else None
        self._try_at = now + (
            doubling_wait(self._first_wait, self._tries)
            if said is None
            else min(said, PATIENCE_SECONDS - LET_IN_SECONDS)
        )

    def still_away(self, now: float) -> None:
        """Note that the directory did not answer the knock."""
        if self.reason is not None:
            self.refused(self.reason, now, was_the_try=True)

    def let_in(self, now: float, was_the_try: bool) -> bool:
        """Note that something was let in; True when that ends the hold, as only the one tried does."""
        self.let_in_at = now
        if self.reason is None or not was_the_try:
            return False
        self.reason, self._tried_at = None, None
        return True

    def not_tried(self) -> None:
        """Note that the one that was to be tried was not sent: another is tried at once."""
        self._tried_at = None

    def on_time(self, now: float) -> None:
        """Count the one tried as let in when it was not refused for long enough."""
        if self._tried_at is not None and not self.needs_knock and now >= self._tried_at + LET_IN_SECONDS:
            self.let_in(now, was_the_try=True)
