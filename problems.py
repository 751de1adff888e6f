"""Refusals: RFC 9457 problem documents for programs, a page for browsers; never a stack trace."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from flask import Flask, Response, current_app, render_template, request
from werkzeug.exceptions import (
    BadHost,
    BadRequest,
    ClientDisconnected,
    HTTPException,
    MethodNotAllowed,
    NotFound,
    RequestEntityTooLarge,
    SecurityError,
)

from logs import logged_path
from problem_document import FAILURE_DETAIL, PROBLEM_TYPE, RETRY_AFTER_SECONDS, problem_document
from store import BatchNotFoundError, StoreError

logger = logging.getLogger(__name__)


class Problem(Exception):
    """A refusal: its HTTP status, a sentence that says what is wrong and what to do, and, for a CSV, every error.

    `page` makes the page for browsers, where one says more than those that all refusals share.
    """

    def __init__(
        self,
        status: HTTPStatus,
        detail: str,
        *,
        errors: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str | list[str]] | None = None,
        page: Callable[[], str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = errors
        self.headers = headers or {}
        self.page = page


def unavailable(detail: str) -> Problem:
    """A refusal for now: the caller is told when to try again."""
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers={"Retry-After": RETRY_AFTER_SECONDS})


def prefers_html() -> bool:
    """Whether the caller would rather have a page than JSON; curl's `*/*` would not."""
    accept = request.accept_mimetypes
    return accept["text/html"] > max(accept["application/json"], accept["application/problem+json"])


def register_problems(app: Flask) -> None:
    """Answer every refusal and every failure of `app` as a problem."""
    app.register_error_handler(Problem, _answer)
    app.register_error_handler(HTTPException, _answer_http_exception)
    app.register_error_handler(BatchNotFoundError, _answer_no_batch)
    app.register_error_handler(StoreError, _answer_store_error)
    app.register_error_handler(Exception, _answer_failure)


def _answer(problem: Problem) -> Response:
    body = problem_document(problem.status, problem.detail)
    if problem.errors:
        body["errors"] = list(problem.errors)
    if prefers_html():
        answer = Response(_page(problem, body), mimetype="text/html")
    else:
        answer = Response(json.dumps(body) + "\n", mimetype=PROBLEM_TYPE)
    answer.status_code = problem.status.value
    answer.headers.extend(dict(problem.headers))
    return answer


def _page(problem: Problem, body: Mapping[str, Any]) -> str:
    if problem.page:
        return problem.page()
    if isinstance(request.routing_exception, BadRequest):
        # It is for no host of ours: no address can be made up for what the page of other refusals links to.
        return BadRequest(problem.detail).get_body()
    return render_template("problem.html", problem=body)


def _answer_http_exception(error: HTTPException) -> Response:
    status = HTTPStatus(error.code or HTTPStatus.INTERNAL_SERVER_ERROR)
    headers = {}
    detail = error.description or status.phrase
    match error:
        case NotFound():
            detail = f"There is nothing at {request.path[:200]}. /docs tells what there is."
        case MethodNotAllowed():
            allowed = ", ".join(sorted(error.valid_methods or ()))
            headers["Allow"] = allowed
            detail = f"{request.method[:20]} is not possible here; allowed: {allowed}."
        case RequestEntityTooLarge():
            most = current_app.config["MAX_UPLOAD_BYTES"]
            detail = f"The upload is too large: a file may have at most {most:,} bytes. Split it into several files."
        case ClientDisconnected():
            detail = "The body of the request ended too early; send it again."
        case SecurityError():
            detail = "This host name is not one of TRUSTED_HOSTS."
        case BadHost():
            detail = "The `Host` header does not name a host."
    return _answer(Problem(status, detail, headers=headers))


def _answer_no_batch(error: BatchNotFoundError) -> Response:
    return _answer(
        Problem(HTTPStatus.NOT_FOUND, f"There is no batch {str(error)[:100]}. /batches lists those there are.")
    )


def _answer_store_error(error: StoreError) -> Response:
    # The cause may say where the database is, which is for the log alone.
    logger.error("%s %s: %s (%s)", request.method, logged_path(request.path), error, error.__cause__)
    return _answer(unavailable(str(error)))


def _answer_failure(error: Exception) -> Response:
    logger.error("%s %s failed", request.method, logged_path(request.path), exc_info=error)
    return _answer(Problem(HTTPStatus.INTERNAL_SERVER_ERROR, FAILURE_DETAIL))
