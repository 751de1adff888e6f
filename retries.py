"""How calls to the directory that are safe to repeat are repeated: tenacity, with waits that a stop ends."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, stop_after_delay

from directory_errors import DirectoryError, NotLetIn, OutcomeUnknown, RateLimited, Stopped
from metrics import count_again

logger = logging.getLogger(__name__)

T = TypeVar("T")
Tell = Callable[[DirectoryError], None]

# A directory that let nothing in for so long is given up.
PATIENCE_SECONDS = 180.0
LONGEST_WAIT_SECONDS = 10.0


def doubling_wait(first: float, attempt: int) -> float:
    """Seconds to wait after try number `attempt`: `first`, then doubling, with a tenth of jitter, up to 10 s."""
    longest = max(first, LONGEST_WAIT_SECONDS)
    return min(first * 2.0 ** min(attempt - 1, 30) * random.uniform(1.0, 1.1), longest)


class Retries:
    """The ways to repeat a call; all raise the last error when they give up, and `Stopped` when told to stop."""

    def __init__(self, first_wait: float, attempts: int, stopping: threading.Event) -> None:
        self._first_wait = first_wait
        self._attempts = attempts
        self._stopping = stopping

    def until_let_in(self, call: Callable[[], T], tell: Tell | None = None) -> T:
        """Repeat `call` while it was certainly not carried out; `tell` hears why before each wait."""
        return self._retrying(NotLetIn, stop_after_delay(PATIENCE_SECONDS), tell)(call)

    def until_answered(self, call: Callable[[], T], tell: Tell | None = None) -> T:
        """Repeat `call`, which does the same however often it is made, also a few times after an unknown outcome."""
        few_times = self._retrying(OutcomeUnknown, stop_after_attempt(self._attempts), tell)
        return few_times(lambda: self.until_let_in(call, tell))

    def until_awake(self, call: Callable[[], T], tell: Tell) -> T:
        """Repeat `call` after any failure, as long as a directory may need to wake up."""
        return self._retrying(DirectoryError, stop_after_delay(PATIENCE_SECONDS), tell)(call)

    def _retrying(self, error: type[DirectoryError], stop: object, tell: Tell | None) -> Retrying:
        def before(_: RetryCallState) -> None:
            if self._stopping.is_set():
                raise Stopped

        def before_sleep(state: RetryCallState) -> None:
            problem = _error_of(state)
            count_again(problem)
            logger.warning("the directory is asked again: %s", problem)
            if tell is not None:
                tell(problem)

        return Retrying(
            retry=retry_if_exception_type(error),
            stop=stop,  # type: ignore[arg-type]
            wait=self._wait,
            sleep=self._pause,
            before=before,
            before_sleep=before_sleep,
            reraise=True,
        )

    def _wait(self, state: RetryCallState) -> float:
        error = _error_of(state)
        if isinstance(error, RateLimited) and error.retry_after is not None:
            return min(error.retry_after, PATIENCE_SECONDS)
        return doubling_wait(self._first_wait, state.attempt_number)

    def _pause(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise Stopped


def _error_of(state: RetryCallState) -> DirectoryError:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, DirectoryError)  # noqa: S101 - only these are retried
    return error
