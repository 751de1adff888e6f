"""What schemathesis cannot know from the API's description; it imports this module as its hooks."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import schemathesis
from hypothesis import strategies as st

from tests.hospitals import csv_of

# A longer request line never reaches the service: gunicorn refuses it, in words of its own.
LONGEST_QUERY = 3_900

# A file as the description says it, which only words can.
schemathesis.openapi.media_type("text/csv", st.integers(1, 20).map(csv_of))


@schemathesis.hook
def filter_query(context: schemathesis.HookContext, query: dict[str, Any] | None) -> bool:
    """Whether a query is short enough, and says nothing twice: of that, the first counts."""
    if any(isinstance(value, list) for value in (query or {}).values()):
        return False
    return len(urlencode(query or {})) <= LONGEST_QUERY


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]) -> None:
    """Where only what is right is sent, name no encoding that is none, and no page after a batch that never was."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    case.query.pop("after", None)
    if isinstance(case.body, dict) and "encoding" in case.body:
        case.body["encoding"] = "utf-8"
