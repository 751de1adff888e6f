"""What is answered to a request that is not served: it is no HTTP, too long or late, or there is a crowd or a stop."""

from __future__ import annotations

import json
from dataclasses import dataclass
from http import HTTPStatus

from gunicorn.http import errors

from logs import REQUEST_ID_HEADER
from problem_document import FAILURE_DETAIL, PROBLEM_TYPE, RETRY_AFTER_SECONDS, problem_document
from serving.arriving_request import NoHostError, TooManyChunksError


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer after which the connection is closed. `detail` repeats nothing of what the client sent."""

    status: HTTPStatus
    detail: str

    def as_http(self, request_id: str) -> bytes:
        """The whole answer, head and body, to the request that the log names so."""
        body = json.dumps(problem_document(self.status, self.detail)).encode() + b"\n"
        lines = [
            f"HTTP/1.1 {self.status.value} {self.status.phrase}",
            "Connection: close",
            f"Content-Type: {PROBLEM_TYPE}",
            f"Content-Length: {len(body)}",
            f"{REQUEST_ID_HEADER}: {request_id}",
        ]
        if self.status is HTTPStatus.SERVICE_UNAVAILABLE:
            lines.append(f"Retry-After: {RETRY_AFTER_SECONDS}")
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


LATE_HEAD = Refusal(HTTPStatus.REQUEST_TIMEOUT, "The request's headers did not come in time.")
LATE_BODY = Refusal(HTTPStatus.REQUEST_TIMEOUT, "The request's body did not come in time.")
LONG_HEAD = Refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The request's headers are too many or too long.")
STOPPING = Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "The service is being stopped; send the request again.")
CROWDED = Refusal(
    HTTPStatus.SERVICE_UNAVAILABLE, "Too much is being sent to the service at the moment; send the request again."
)
FAILURE = Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, FAILURE_DETAIL)

# The first that fits counts.
_REFUSALS: tuple[tuple[type[Exception], Refusal], ...] = (
    (errors.LimitRequestHeaders, LONG_HEAD),
    (errors.LimitRequestLine, Refusal(HTTPStatus.REQUEST_URI_TOO_LONG, "The request's address is too long.")),
    (
        errors.InvalidRequestLine,
        Refusal(
            HTTPStatus.BAD_REQUEST,
            "The first line of the request must be a method, an address in ASCII and HTTP/1.1, and end with CR and LF.",
        ),
    ),
    (
        errors.InvalidRequestMethod,
        Refusal(HTTPStatus.BAD_REQUEST, "The request's method must be a word in capital letters."),
    ),
    (
        errors.InvalidHTTPVersion,
        Refusal(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "The request must be of HTTP/1.1 or HTTP/1.0."),
    ),
    (errors.ExpectationFailed, Refusal(HTTPStatus.EXPECTATION_FAILED, "Nothing but 100-continue can be expected.")),
    (
        errors.UnsupportedTransferCoding,
        Refusal(HTTPStatus.NOT_IMPLEMENTED, "`Transfer-Encoding` can be nothing but chunked."),
    ),
    (
        TooManyChunksError,
        Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body comes in too many chunks; send larger ones."),
    ),
    (NoHostError, Refusal(HTTPStatus.BAD_REQUEST, "The request has no `Host` header, which HTTP/1.1 needs.")),
    (
        errors.ParseException,
        Refusal(HTTPStatus.BAD_REQUEST, "A header of the request is not well-formed, or contradicts another."),
    ),
)


def refusal_of(error: Exception) -> Refusal:
    """What is answered to bytes of which gunicorn's parser made this error; `FAILURE` for any other error."""
    return next((refusal for kind, refusal in _REFUSALS if isinstance(error, kind)), FAILURE)
