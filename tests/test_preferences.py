"""The header `Prefer`: what is read of it, how long that waits, and what is answered."""

from __future__ import annotations

import pytest

from preferences import Preferences, parse_prefer

NOTHING = Preferences()
ASYNC = Preferences(respond_async=True)


@pytest.mark.parametrize(
    ("header", "asked"),
    [
        ("", NOTHING),
        ("respond-async", ASYNC),
        ("Respond-Async", ASYNC),
        ('respond-async=""', ASYNC),
        ("respond-async; foo=bar", ASYNC),
        ("wait=10", Preferences(wait=10)),
        ("WAIT=10", Preferences(wait=10)),
        (" wait = 10 ", Preferences(wait=10)),
        ('wait="10"', Preferences(wait=10)),
        ("wait=10; foo", Preferences(wait=10)),
        ("wait=0", Preferences(wait=0)),
        ("respond-async, wait=10", Preferences(True, 10)),
        ("wait=10,respond-async", Preferences(True, 10)),
        (", ,wait=10,,", Preferences(wait=10)),
        ("return=minimal, wait=10, handling=lenient", Preferences(wait=10)),
        ("wait=10, wait=20", Preferences(wait=10)),
    ],
)
def test_a_preference_is_read(header: str, asked: Preferences) -> None:
    assert parse_prefer(header) == asked


@pytest.mark.parametrize(
    "header",
    [
        "wait",
        "wait=",
        "wait=-1",
        "wait=+1",
        "wait=1.5",
        "wait=ten",
        "wait=٣",
        "wait=1 0",
        "wait;wait=10",
        "respond-async=yes",
        "respond_async",
        "respond async",
        "return=minimal",
        "=",
        ";;;",
    ],
)
def test_what_is_malformed_or_unknown_is_ignored(header: str) -> None:
    assert parse_prefer(header) == NOTHING


@pytest.mark.parametrize(
    ("asked", "most", "seconds", "applied"),
    [
        (NOTHING, 300, 300, ""),
        (ASYNC, 300, 0, "respond-async"),
        (Preferences(wait=10), 300, 10, "wait=10"),
        (Preferences(wait=0), 300, 0, "wait=0"),
        (Preferences(wait=300), 300, 300, "wait=300"),
        (Preferences(wait=301), 300, 300, "wait=300"),
        (Preferences(wait=9), 2.5, 2.5, "wait=2"),
        (Preferences(True, 10), 300, 10, "respond-async, wait=10"),
        (Preferences(True, 0), 300, 0, "respond-async, wait=0"),
        (ASYNC, 0, 0, "respond-async"),
        (NOTHING, 0, 0, ""),
    ],
)
def test_the_wait_is_what_was_asked_for_within_bounds(
    asked: Preferences, most: float, seconds: float, applied: str
) -> None:
    assert asked.seconds_to_wait(most) == seconds
    assert asked.applied(most) == applied
