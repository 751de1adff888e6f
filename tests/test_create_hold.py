"""The hold on creates: what begins it, when something is tried, what ends it."""

from __future__ import annotations

import math

import pytest

import create_hold
from batch import WaitingFor
from create_hold import LET_IN_SECONDS, Hold
from directory_errors import NotLetIn, NotSent, RateLimited
from retries import PATIENCE_SECONDS

LIMITED = RateLimited("429")
AWAY = NotSent("refused")


@pytest.fixture(autouse=True)
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(create_hold, "doubling_wait", lambda first, attempt: min(first * 2 ** (attempt - 1), 10))


@pytest.fixture
def hold() -> Hold:
    return Hold(first_wait=5)


def held(reason: NotLetIn, at: float = 100) -> Hold:
    hold = Hold(first_wait=5)
    hold.refused(reason, at, was_the_try=False)
    return hold


def test_nothing_is_held_at_first(hold: Hold) -> None:
    assert hold.may_try(0)
    assert hold.reason is None
    assert hold.seconds_left(0) == 0
    assert not hold.is_trying
    assert not hold.needs_knock


@pytest.mark.parametrize(
    ("reason", "waits_for", "knock"),
    [(LIMITED, WaitingFor.RATE_LIMIT, False), (AWAY, WaitingFor.DIRECTORY, True)],
)
def test_a_refusal_holds_all_creates(reason: NotLetIn, waits_for: WaitingFor, knock: bool) -> None:
    hold = held(reason)
    assert (hold.reason, hold.waiting_for, hold.needs_knock) == (reason, waits_for, knock)
    assert not hold.may_try(104.9)
    assert hold.may_try(105)


@pytest.mark.parametrize(("said", "seconds"), [(None, 5), (0, 0), (1, 1), (60, 60), (170, 170)])
def test_a_429_holds_as_long_as_it_asks_and_else_for_the_first_wait(said: float | None, seconds: float) -> None:
    hold = held(RateLimited("429", said))
    assert hold.next_event == 100 + seconds
    assert hold.seconds_left(100) == seconds
    assert hold.may_try(100 + seconds)
    assert seconds == 0 or not hold.may_try(100 + seconds - 0.01)


def test_a_429_that_asks_for_hours_holds_for_180_seconds_at_most() -> None:
    assert 170 < held(RateLimited("429", 86_400)).seconds_left(100) <= PATIENCE_SECONDS


def test_the_wait_counts_down_to_nothing() -> None:
    hold = held(LIMITED)
    assert [hold.seconds_left(now) for now in (100, 103, 105, 200)] == [5, 2, 0, 0]


def test_one_at_a_time_is_tried() -> None:
    hold = held(LIMITED)
    hold.trying(105)
    assert hold.is_trying
    assert not hold.may_try(1e9)


def test_waits_double_while_the_try_is_refused() -> None:
    hold = held(LIMITED)
    now, waits = 100.0, []
    for _ in range(4):
        waits.append(hold.next_event - now)
        now = hold.next_event
        hold.trying(now)
        hold.refused(LIMITED, now, was_the_try=True)
    assert waits == [5, 10, 10, 10]


def test_waits_double_while_the_knock_is_not_answered() -> None:
    hold = held(AWAY)
    hold.trying(105)
    hold.still_away(106)
    assert (hold.next_event, hold.is_trying, hold.reason) == (116, False, AWAY)


def test_refusals_of_those_in_flight_do_not_prolong_it() -> None:
    hold = held(LIMITED)
    for now in (101, 104):
        hold.refused(RateLimited("429", 60), now, was_the_try=False)
    assert (hold.next_event, hold.reason) == (105, LIMITED)
    hold.trying(105)
    hold.refused(AWAY, 106, was_the_try=False)
    assert hold.is_trying
    assert hold.reason is LIMITED


@pytest.mark.parametrize(
    ("before", "refusal", "knock"), [(LIMITED, AWAY, True), (AWAY, LIMITED, False), (LIMITED, LIMITED, False)]
)
def test_the_refusal_of_the_try_tells_how_to_try_next(before: NotLetIn, refusal: NotLetIn, knock: bool) -> None:
    hold = held(before)
    hold.trying(105)
    hold.refused(refusal, 106, was_the_try=True)
    assert (hold.reason, hold.needs_knock) == (refusal, knock)


def test_the_try_that_is_let_in_ends_it() -> None:
    hold = held(LIMITED)
    hold.trying(105)
    assert hold.let_in(107, was_the_try=True)
    assert hold.reason is None
    assert hold.may_try(107)
    assert hold.let_in_at == 107


def test_the_success_of_one_in_flight_does_not_end_it_but_shows_that_something_is_let_in() -> None:
    hold = held(LIMITED)
    assert not hold.let_in(103, was_the_try=False)
    assert hold.reason is LIMITED
    assert not hold.may_try(103)
    assert hold.let_in_at == 103


def test_what_is_let_in_while_nothing_is_held_ends_nothing(hold: Hold) -> None:
    assert not hold.let_in(103, was_the_try=False)
    assert hold.let_in_at == 103


def test_a_hold_begins_with_the_first_wait_again_after_one_has_ended() -> None:
    hold = held(LIMITED)
    hold.trying(105)
    hold.refused(LIMITED, 105, was_the_try=True)
    hold.trying(115)
    hold.let_in(116, was_the_try=True)
    hold.refused(LIMITED, 200, was_the_try=False)
    assert hold.next_event == 205
    assert hold.let_in_at == 200


def test_a_try_without_an_answer_for_5_seconds_counts_as_let_in() -> None:
    hold = held(LIMITED)
    hold.trying(105)
    assert hold.next_event == 105 + LET_IN_SECONDS == 110
    hold.on_time(109.9)
    assert not hold.may_try(109.9)
    hold.on_time(110)
    assert hold.reason is None
    assert hold.let_in_at == 110


def test_a_knock_without_an_answer_does_not_count_as_let_in() -> None:
    hold = held(AWAY)
    hold.trying(105)
    assert hold.next_event == math.inf
    hold.on_time(1e9)
    assert hold.reason is AWAY


def test_a_hold_without_a_try_does_not_end_by_time() -> None:
    hold = held(LIMITED)
    hold.on_time(1e9)
    assert hold.reason is LIMITED


def test_an_answer_to_a_knock_that_is_not_waited_for_any_more_holds_nothing(hold: Hold) -> None:
    hold.still_away(100)
    assert hold.reason is None
