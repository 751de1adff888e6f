"""The one shape of every refusal: RFC 9457 problem documents."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

PROBLEM_TYPE = "application/problem+json"

# What a caller is told who may try again.
RETRY_AFTER_SECONDS = "5"
# What is told of an error in this service.
FAILURE_DETAIL = "An error in this service; its log says which. Nothing is known to be wrong with what you sent."


def problem_document(status: HTTPStatus, detail: str) -> dict[str, Any]:
    """The document, to be sent as JSON; `detail` is a sentence that says what is wrong and what to do."""
    return {"type": "about:blank", "title": status.phrase, "status": status.value, "detail": detail}
