"""How calls are repeated: after which failures, after which waits, until when, and how a stop ends it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest

import retries
from directory_errors import BatchFull, DirectoryError, NotSent, OutcomeUnknown, RateLimited, Rejected, Stopped
from retries import PATIENCE_SECONDS, Retries, doubling_wait
from tests.fake_time import Pauses

NOT_SENT = NotSent("refused")
LIMITED = RateLimited("429")
UNKNOWN = OutcomeUnknown("lost")
REJECTED = Rejected("no")


class Script:
    """A call that does what it is told to, one thing after another, and then the last again and again."""

    def __init__(self, pauses: Pauses, *outcomes: DirectoryError | str, seconds: float = 0) -> None:
        self._pauses = pauses
        self._outcomes = list(outcomes)
        self._seconds = seconds
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        self._pauses.now += self._seconds
        outcome = self._outcomes.pop(0) if len(self._outcomes) > 1 else self._outcomes[0]
        if isinstance(outcome, DirectoryError):
            raise outcome
        return outcome


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    pauses = Pauses()
    monkeypatch.setattr("tenacity.time", SimpleNamespace(monotonic=lambda: pauses.now))
    monkeypatch.setattr(retries, "doubling_wait", lambda first, attempt: first * attempt)
    return pauses


@pytest.fixture
def trying(pauses: Pauses) -> Retries:
    return Retries(first_wait=5, attempts=3, stopping=pauses)


Way = Callable[[Retries, Callable[[], str]], str]
WAYS: dict[str, Way] = {
    "until_let_in": lambda trying, call: trying.until_let_in(call),
    "until_answered": lambda trying, call: trying.until_answered(call),
    "until_awake": lambda trying, call: trying.until_awake(call, lambda _: None),
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@pytest.mark.parametrize(
    ("first", "attempt", "least", "most"),
    [
        *[(5, 1, 5, 5.5), (5, 2, 10, 10), (5, 3, 10, 10)],
        *[(1, 1, 1, 1.1), (1, 2, 2, 2.2), (1, 4, 8, 8.8), (1, 5, 10, 10), (1, 10_000, 10, 10)],
        *[(60, 1, 60, 60), (60, 9, 60, 60), (0.1, 3, 0.4, 0.44), (0, 7, 0, 0)],
    ],
)
def test_waits_double_with_jitter_up_to_ten_seconds(first: float, attempt: int, least: float, most: float) -> None:
    waits = [doubling_wait(first, attempt) for _ in range(200)]
    assert all(least <= wait <= most for wait in waits)
    assert (len(set(waits)) > 1) == (least < most)


@ways
def test_what_succeeds_is_done_once_and_answered(pauses: Pauses, trying: Retries, way: Way) -> None:
    call = Script(pauses, "done")
    assert way(trying, call) == "done"
    assert (call.calls, pauses.waits) == (1, [])


@ways
@pytest.mark.parametrize("failure", [NOT_SENT, LIMITED])
def test_what_was_not_let_in_is_sent_again(pauses: Pauses, trying: Retries, way: Way, failure: DirectoryError) -> None:
    call = Script(pauses, failure, failure, "done")
    assert way(trying, call) == "done"
    assert (call.calls, pauses.waits) == (3, [5, 10])


@ways
def test_a_wait_is_as_long_as_the_directory_asks(pauses: Pauses, trying: Retries, way: Way) -> None:
    call = Script(pauses, RateLimited("429", 7), RateLimited("429", 0), RateLimited("429", 1e6), "done")
    assert way(trying, call) == "done"
    assert pauses.waits == [7, 0, PATIENCE_SECONDS]


@ways
@pytest.mark.parametrize("failure", [NOT_SENT, LIMITED])
def test_what_is_never_let_in_is_given_up_after_180_seconds(
    pauses: Pauses, trying: Retries, way: Way, failure: DirectoryError
) -> None:
    call = Script(pauses, failure, seconds=1)
    with pytest.raises(type(failure)) as error:
        way(trying, call)
    assert error.value is failure
    assert sum(pauses.waits[:-1]) + call.calls - 1 < 180 <= pauses.now


@pytest.mark.parametrize("way", [WAYS["until_let_in"], WAYS["until_answered"]])
@pytest.mark.parametrize("failure", [REJECTED, BatchFull("full", 20)])
def test_what_was_refused_is_not_sent_again(pauses: Pauses, trying: Retries, way: Way, failure: DirectoryError) -> None:
    call = Script(pauses, failure)
    with pytest.raises(type(failure)):
        way(trying, call)
    assert call.calls == 1


@ways
def test_an_error_that_is_not_the_directorys_is_passed_on(pauses: Pauses, trying: Retries, way: Way) -> None:
    calls = []

    def call() -> str:
        calls.append(1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        way(trying, call)
    assert (len(calls), pauses.waits) == (1, [])


def test_an_unknown_outcome_is_not_sent_again_until_let_in(pauses: Pauses, trying: Retries) -> None:
    call = Script(pauses, NOT_SENT, UNKNOWN, "done")
    with pytest.raises(OutcomeUnknown):
        trying.until_let_in(call)
    assert call.calls == 2


def test_an_unknown_outcome_is_asked_again_a_few_times_until_answered(pauses: Pauses, trying: Retries) -> None:
    call = Script(pauses, UNKNOWN, UNKNOWN, "done")
    assert trying.until_answered(call) == "done"
    assert (call.calls, pauses.waits) == (3, [5, 10])
    call = Script(pauses, UNKNOWN)
    with pytest.raises(OutcomeUnknown):
        trying.until_answered(call)
    assert call.calls == 3


def test_waiting_to_be_let_in_uses_up_no_try_of_those_after_unknown_outcomes(pauses: Pauses, trying: Retries) -> None:
    call = Script(pauses, LIMITED, UNKNOWN, LIMITED, NOT_SENT, LIMITED, UNKNOWN, LIMITED, "done")
    assert trying.until_answered(call) == "done"
    assert call.calls == 8


@pytest.mark.parametrize("failure", [NOT_SENT, LIMITED, UNKNOWN, REJECTED])
def test_a_sleeper_is_asked_again_whatever_it_answers(pauses: Pauses, trying: Retries, failure: DirectoryError) -> None:
    call = Script(pauses, failure, failure, failure, failure, failure, "done")
    assert trying.until_awake(call, lambda _: None) == "done"
    assert call.calls == 6


def test_a_sleeper_that_does_not_wake_is_given_up_after_180_seconds(pauses: Pauses, trying: Retries) -> None:
    call = Script(pauses, UNKNOWN, seconds=90)
    with pytest.raises(OutcomeUnknown):
        trying.until_awake(call, lambda _: None)
    assert (call.calls, pauses.waits) == (2, [5])


def test_why_it_waits_is_told_before_each_wait_and_not_at_the_end(pauses: Pauses, trying: Retries) -> None:
    told: list[tuple[DirectoryError, int]] = []

    def tell(error: DirectoryError) -> None:
        told.append((error, len(pauses.waits)))

    trying.until_answered(Script(pauses, LIMITED, UNKNOWN, NOT_SENT, "done"), tell)
    assert told == [(LIMITED, 0), (UNKNOWN, 1), (NOT_SENT, 2)]
    told.clear()
    with pytest.raises(Rejected):
        trying.until_let_in(Script(pauses, REJECTED), tell)
    assert told == []


@ways
def test_when_it_stops_nothing_is_sent(pauses: Pauses, trying: Retries, way: Way) -> None:
    pauses.set()
    call = Script(pauses, "done")
    with pytest.raises(Stopped):
        way(trying, call)
    assert call.calls == 0


@ways
def test_a_stop_in_a_wait_ends_it_without_another_try(pauses: Pauses, trying: Retries, way: Way) -> None:
    pauses.stop_in_wait = 2
    call = Script(pauses, LIMITED)
    with pytest.raises(Stopped):
        way(trying, call)
    assert (call.calls, len(pauses.waits)) == (2, 2)


def test_a_stop_in_a_wait_after_an_unknown_outcome_ends_it(pauses: Pauses, trying: Retries) -> None:
    pauses.stop_in_wait = 1
    call = Script(pauses, UNKNOWN)
    with pytest.raises(Stopped):
        trying.until_answered(call)
    assert call.calls == 1


def test_a_stop_from_another_thread_ends_a_real_wait_at_once() -> None:
    stopping = threading.Event()
    call = Script(Pauses(), NOT_SENT)
    with pytest.raises(Stopped):
        Retries(3600, 3, stopping).until_let_in(call, tell=lambda _: threading.Timer(0.01, stopping.set).start())
    assert call.calls == 1
