"""What every refusal has in common."""

from __future__ import annotations

from typing import Any

from requests import Response

from tests.raw_http import RawAnswer

ERROR_KEYS = {"row", "line", "column", "code", "message"}


def assert_problem(answer: Response | RawAnswer, status: int, words: str = "") -> dict[str, Any]:
    """The answer is a problem document of this status, and `words` are in its detail; returns the document."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert list(problem)[:4] == ["type", "title", "status", "detail"]
    assert problem["status"] == status
    assert words in problem["detail"]
    assert "Traceback" not in answer.text
    for error in problem.get("errors", []):
        assert error.keys() >= ERROR_KEYS
        assert error["message"].endswith((".", "!", "?")) or "curl" in error["message"]
    return problem
