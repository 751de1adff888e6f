"""The window of creates: never more than the limit in any of its length, and no less than that allows."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rate_limit import SPARE_SECONDS, CreateWindow
from settings import RateLimit

LIMITS = st.builds(RateLimit, st.integers(1, 6), st.sampled_from([0.25, 1.0, 10.0, 60.0]))
# Mostly a little at a time, now and then long: so windows fill, and empty again.
GAPS = st.lists(st.one_of(st.just(0.0), st.floats(0, 0.5), st.floats(0, 20), st.just(61.0)), max_size=60)
# A millisecond is what the window tells times apart by.
TICK = 0.002


def take_all(window: CreateWindow, now: float) -> int:
    """How many creates may leave now."""
    taken = 0
    while window.take(now):
        taken += 1
    return taken


def test_without_a_limit_every_create_is_let_go() -> None:
    window = CreateWindow(None)
    assert all(window.take(0) for _ in range(1000))
    assert window.seconds_until(1_000_000, 0) == 0


def test_so_many_creates_leave_at_once_and_no_more() -> None:
    assert take_all(CreateWindow(RateLimit(30, 60)), 5) == 30


@pytest.mark.parametrize("seconds", [0.5, 60, 3600])
def test_a_flat_second_is_spared_whatever_the_window(seconds: float) -> None:
    window = CreateWindow(RateLimit(2, seconds))
    assert take_all(window, 100) == 2
    assert not window.take(100 + seconds)
    assert not window.take(100 + seconds + SPARE_SECONDS)
    assert take_all(window, 100 + seconds + SPARE_SECONDS + TICK) == 2


def test_each_create_frees_its_own_place() -> None:
    window = CreateWindow(RateLimit(3, 60))
    for now in (0, 10, 20):
        assert window.take(now)
    assert [take_all(window, now) for now in (60, 61.1, 71.1, 80.9, 81.1)] == [0, 1, 1, 0, 1]


def test_a_create_that_was_not_let_go_takes_no_place() -> None:
    window = CreateWindow(RateLimit(1, 60))
    assert window.take(0)
    for now in range(1, 61):
        assert not window.take(now)
    assert window.take(61.1)


@pytest.mark.parametrize(
    ("taken_at", "now", "nth", "seconds"),
    [
        ([], 0, 1, 0),
        ([], 0, 3, 0),
        ([], 0, 4, 61),
        ([], 0, 6, 61),
        ([], 0, 7, 122),
        ([0], 0, 2, 0),
        ([0], 0, 3, 61),
        ([0, 10], 20, 1, 0),
        ([0, 10], 20, 2, 41),
        ([0, 10], 20, 3, 51),
        ([0, 10], 20, 4, 61),
        ([0, 10], 20, 5, 102),
        ([0, 10, 20], 30, 1, 31),
        ([0, 10, 20], 30, 3, 51),
        ([0, 10, 20], 70, 1, 0),
        ([0, 10, 20], 70, 2, 1),
        ([0, 10, 20], 200, 3, 0),
    ],
)
def test_the_wait_for_the_nth_create_from_now(taken_at: list[float], now: float, nth: int, seconds: float) -> None:
    window = CreateWindow(RateLimit(3, 60))
    for at in taken_at:
        assert window.take(at)
    assert window.seconds_until(nth, now) == pytest.approx(seconds, abs=TICK)


def test_asking_how_long_takes_no_place() -> None:
    window = CreateWindow(RateLimit(3, 60))
    for nth in range(1, 10):
        window.seconds_until(nth, 0)
    assert take_all(window, 0) == 3


@given(LIMITS, GAPS, st.floats(0, 1e6))
@example(RateLimit(1, 0.25), [1.25, 1.25, 1.25], 0.0009)
def test_no_window_ever_holds_more_than_the_limit(limit: RateLimit, gaps: list[float], start: float) -> None:
    window = CreateWindow(limit)
    now, left_at = start, []
    for gap in gaps:
        now += gap
        if window.take(now):
            left_at.append(now)
    for first, over in zip(left_at, left_at[limit.count :], strict=False):
        assert over - first > limit.seconds + SPARE_SECONDS - 1e-6


@given(LIMITS, GAPS)
def test_a_create_leaves_as_soon_as_the_limit_allows(limit: RateLimit, gaps: list[float]) -> None:
    window = CreateWindow(limit)
    now = 1000.0
    left_at: list[float] = []
    for gap in gaps:
        now += gap
        recent = [at for at in left_at if at > now - limit.seconds - SPARE_SECONDS - TICK]
        taken = window.take(now)
        assert taken or len(recent) >= limit.count
        left_at += [now] if taken else []


@given(LIMITS, GAPS, st.integers(1, 20))
def test_the_wait_that_is_told_is_enough_and_not_too_long(limit: RateLimit, gaps: list[float], nth: int) -> None:
    window = CreateWindow(limit)
    now = 1000.0
    for gap in gaps:
        now += gap
        window.take(now)
    due = now + window.seconds_until(nth, now)
    left = 0
    while left < nth:
        wait = window.seconds_until(1, now)
        assert wait == 0 or not window.take(now + wait - TICK)
        now += wait + (TICK if wait else 0)
        assert window.take(now)
        left += 1
    # The moments that each create above was late by add up.
    assert due == pytest.approx(now, abs=3 * TICK * nth)


def test_the_place_of_a_create_that_never_left_is_given_back_and_no_other() -> None:
    window = CreateWindow(RateLimit(2, 60))
    window.take(0)
    token = window.take(30)
    assert token is not None
    window.give_back(token)
    window.give_back(token)
    assert [bool(window.take(now)) for now in (30, 31, 60, 61.1, 62)] == [True, False, False, True, False]
