"""What can become of a call to the directory other than success: one type for each thing to be done about it."""

from __future__ import annotations


class DirectoryError(Exception):
    """A call to the directory did not do what it was made for. Its text is a sentence for the user."""


class NotLetIn(DirectoryError):
    """The call was certainly not carried out: it is safe to send it again, later."""


class NotSent(NotLetIn):
    """The directory was not reached: connection refused, no such host, TLS failure, connect timeout."""


class RateLimited(NotLetIn):
    """429. `retry_after` is in seconds, None where the directory did not say."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Withheld(Exception):
    """The row was not sent: the service stops, or another process has its batch."""


class Rejected(DirectoryError):
    """The directory refused, in its own words: the same call will be refused again."""


class BatchFull(Rejected):
    """The batch holds `cap` hospitals, as many as the directory allows, perhaps a double of one among them."""

    def __init__(self, message: str, cap: int) -> None:
        super().__init__(message)
        self.cap = cap


class OutcomeUnknown(DirectoryError):
    """The call may have been carried out, or may be in a moment: look before it is sent again."""


class Stopped(Exception):
    """The service stops: the call was not made, or not made again."""
