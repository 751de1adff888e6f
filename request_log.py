"""Each request has an id, which its answer and every log line about it name, and a line and a count when it ends."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus

from flask import Flask, Response, g, request

from logs import REQUEST_ID_HEADER, batch_id, logged_path, request_id, safe_request_id
from metrics import HTTP_REQUESTS, HTTP_SECONDS

logger = logging.getLogger(__name__)

# What a caller may write instead of a method is without bounds, and labels must not be.
_METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH")


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is known of a request when it comes."""

    method: str
    path: str
    endpoint: str
    address: str | None
    began_at: float = field(default_factory=time.monotonic)


def log_requests(app: Flask) -> None:
    """Name, count and log every request of `app`; to be called before anything else is to run before a request."""
    app.before_request(_begin)
    app.after_request(_answer)


def _begin() -> None:
    request_id.set(safe_request_id(request.headers.get(REQUEST_ID_HEADER)))
    batch_id.set(None)
    endpoint = request.url_rule.rule if request.url_rule else "none"
    g.asked = _Asked(request.method, request.path, endpoint, request.remote_addr)


def _answer(response: Response) -> Response:
    response.headers[REQUEST_ID_HEADER] = request_id.get() or ""
    # A file that the server sends by itself would never be closed by Werkzeug.
    response.direct_passthrough = False
    # It has ended when its last byte is gone: for a stream that is minutes later.
    response.call_on_close(partial(_end, g.asked, response))
    return response


def _end(asked: _Asked, response: Response) -> None:
    seconds, status = time.monotonic() - asked.began_at, response.status_code
    has_body = asked.method != "HEAD" and status != HTTPStatus.NOT_MODIFIED
    size = response.content_length if has_body else 0
    method = asked.method if asked.method in _METHODS else "other"
    HTTP_REQUESTS.labels(method, asked.endpoint, status).inc()
    HTTP_SECONDS.labels(method, asked.endpoint).observe(seconds)
    path = logged_path(asked.path)
    logger.log(
        logging.DEBUG if asked.endpoint == "/health" else logging.INFO,
        "%s %s %s in %.3f s, %s bytes, to %s",
        asked.method[:20],
        path,
        status,
        seconds,
        "-" if size is None else size,
        asked.address,
        extra={
            "method": asked.method[:20],
            "path": path,
            "status": status,
            "seconds": round(seconds, 3),
            "bytes": size,
            "address": asked.address,
        },
    )
    # The thread goes on with somebody else's request.
    request_id.set(None)
    batch_id.set(None)
