"""When each create goes out: whose turn it is, how many at once, and what happens when the directory refuses.

Creates run on the pacer's own threads and last until the test ends them; time goes on only when the test says so.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import create_hold
import pacing
from batch import Row, WaitingFor
from directory_errors import DirectoryError, NotLetIn, NotSent, OutcomeUnknown, RateLimited, Withheld
from pacing import Lane, Pacer
from rate_limit import SPARE_SECONDS
from settings import RateLimit, Settings
from tests.fake_time import FakeClock

NOON = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)
LIMITED = RateLimited("429")
AWAY = NotSent("refused")
PATIENCE = 180


class Call:
    """A create or a knock that is under way: `name` of its row, or "knock"."""

    def __init__(self, name: str, at: float) -> None:
        self.name = name
        self.at = at
        self.outcome: Future[None] = Future()


class World:
    """A pacer, its clock, and the calls it makes."""

    def __init__(self, in_flight: int = 30, limit: RateLimit | None = None, first_wait: float = 5) -> None:
        self._busy = 0  # threads of the pacer that are neither in a call nor done
        self._settled = threading.Condition()
        self.clock = FakeClock(settle=self.settle)
        self.calls: list[Call] = []
        self.under_way: list[Call] = []
        self.lanes: list[Lane] = []
        self.made = Counter[str]()
        self.most_under_way = 0
        outer = self

        class Pool(ThreadPoolExecutor):
            def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
                outer._count(1)
                future = super().submit(work, *args, **kwargs)
                future.add_done_callback(lambda _: outer._count(-1))
                return future

        limited = Settings(
            max_concurrent_creates=in_flight, directory_create_limit=limit, directory_retry_seconds=first_wait
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pacing, "ThreadPoolExecutor", Pool)
            self.pacer = Pacer(limited, lambda: self._call("knock"), self.clock, self.clock.start_timer)

    def _count(self, more: int) -> None:
        with self._settled:
            self._busy += more
            self._settled.notify_all()

    def _call(self, name: str) -> None:
        call = Call(name, self.clock.now)
        with self._settled:
            self.calls.append(call)
            self.under_way.append(call)
            self.most_under_way = max(self.most_under_way, sum(other.name != "knock" for other in self.under_way))
        self._count(-1)
        call.outcome.result(30)
        self.made[name] += 1

    def settle(self) -> None:
        """Wait until every thread of the pacer is in a call, or done."""
        with self._settled:
            assert self._settled.wait_for(lambda: self._busy == 0, 10)

    def lane(self, name: str, rows: int, age: float = 0) -> Lane:
        """A lane whose rows are called A1, A2 and so on; the older its batch, the higher `age`."""
        return Lane(
            [Row(number, f"{name}{number}", "Road", None) for number in range(1, rows + 1)],
            lambda row: self._call(row.name),
            NOON - timedelta(seconds=age),
        )

    def add(self, name: str, rows: int, age: float = 0) -> Lane:
        """Add such a lane."""
        lane = self.lane(name, rows, age)
        self.lanes.append(lane)
        self.pacer.add(lane)
        self.settle()
        return lane

    def end(self, name: str = "", error: Exception | None = None) -> None:
        """End the call of that name, or the one that began first, well or with an error."""
        call = next(call for call in self.under_way if name in ("", call.name))
        self.under_way.remove(call)
        self._count(1)
        if error is None:
            call.outcome.set_result(None)
        else:
            call.outcome.set_exception(error)
        self.settle()

    def end_all(self, error: Exception | None = None) -> None:
        """End all that are under way now, but not what follows on them."""
        for call in list(self.under_way):
            self.end(call.name, error)

    @property
    def names(self) -> list[str]:
        """What is under way, in the order in which it began."""
        return [call.name for call in self.under_way]

    def sent(self, since: int = 0) -> list[str]:
        """The names of all calls ever made, from that one on."""
        return [call.name for call in self.calls[since:]]

    def close(self) -> None:
        """End whatever is left."""
        self.pacer.stop()
        while self.under_way:
            self.end()
        self.pacer._pool.shutdown()


@pytest.fixture(autouse=True)
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(create_hold, "doubling_wait", lambda first, attempt: min(first * 2 ** (attempt - 1), 10))


@pytest.fixture
def worlds() -> Iterator[Callable[..., World]]:
    """Make worlds with it; they are closed at the end."""
    made: list[World] = []

    def make(**kwargs: Any) -> World:
        made.append(World(**kwargs))
        return made[-1]

    yield make
    for world in made:
        world.close()


@pytest.fixture
def world(worlds: Callable[..., World]) -> World:
    return worlds()


def held(world: World, reason: NotLetIn = LIMITED, rows: int = 3) -> Lane:
    """Hold all creates, with the rows of a lane waiting."""
    lane = world.add("A", rows)
    world.end_all(reason)
    assert world.names == []
    return lane


class TestSending:
    def test_all_rows_go_out_together(self, world: World) -> None:
        lane = world.add("A", 20)
        assert sorted(world.names) == sorted(f"A{number}" for number in range(1, 21))
        assert not lane.rested.is_set()

    def test_a_lane_rests_when_its_last_row_has_ended(self, world: World) -> None:
        lane = world.add("A", 2)
        world.end("A2")
        assert not lane.rested.is_set()
        world.end("A1")
        assert lane.rested.is_set()
        assert (lane.given_up, list(lane.waiting)) == (None, [])

    def test_a_lane_without_rows_rests_at_once(self, world: World) -> None:
        assert world.add("A", 0).rested.is_set()

    def test_never_more_are_in_flight_than_there_are_places(self, worlds: Callable[..., World]) -> None:
        world = worlds(in_flight=3)
        world.add("A", 5)
        world.add("B", 5)
        assert len(world.names) == 3
        while world.names:
            world.end()
        assert world.most_under_way == 3
        assert sum(world.made.values()) == 10

    def test_a_row_that_ends_makes_place_for_the_next(self, worlds: Callable[..., World]) -> None:
        world = worlds(in_flight=1)
        world.add("A", 3)
        for number in (1, 2, 3):
            assert world.names == [f"A{number}"]
            world.end()

    def test_no_timer_runs_while_nothing_waits_for_time(self, worlds: Callable[..., World]) -> None:
        world = worlds(in_flight=2, limit=RateLimit(100, 60))
        for name in "ABC":
            world.add(name, 10)
        while world.names:
            world.end()
        assert world.clock.timers == []


class TestTurns:
    @pytest.fixture
    def world(self, worlds: Callable[..., World]) -> World:
        """One place, which the row X1 has until it ends."""
        world = worlds(in_flight=1)
        world.add("X", 1)
        return world

    def order(self, world: World) -> str:
        """End one row after the other, and tell the lanes in the order of their turns."""
        first = len(world.calls)
        while world.names:
            world.end()
        return "".join(name[0] for name in world.sent(first))

    def test_the_batch_with_the_fewest_rows_left_goes_first(self, world: World) -> None:
        world.add("A", 4)
        world.add("B", 2)
        world.add("C", 3)
        assert self.order(world) == "BBCCCAAAA"

    def test_of_those_with_as_many_rows_left_the_oldest_goes_first(self, world: World) -> None:
        world.add("A", 2, age=1)
        world.add("B", 2, age=3)
        world.add("C", 2, age=2)
        assert self.order(world) == "BBCCAA"

    def test_a_small_batch_that_comes_late_passes_a_huge_one(self, world: World) -> None:
        world.add("A", 10, age=9)
        world.end()
        assert world.names == ["A1"]
        world.add("B", 2)
        assert self.order(world) == "BB" + "A" * 9

    def test_a_row_that_was_refused_is_the_next_of_its_lane(self, worlds: Callable[..., World]) -> None:
        world = worlds(in_flight=1, first_wait=0)
        world.add("A", 2)
        world.end("A1", LIMITED)
        assert world.names == ["A1"]


class TestTheLimit:
    @pytest.fixture
    def world(self, worlds: Callable[..., World]) -> World:
        return worlds(limit=RateLimit(30, 60))

    def test_what_is_over_the_limit_waits_for_the_next_window_and_a_second(self, world: World) -> None:
        world.add("A", 20)
        lane = world.add("B", 20)
        assert len(world.names) == 30
        world.end_all()
        world.clock.advance(60.9)
        assert world.names == []
        assert world.pacer.waiting_for(lane) is WaitingFor.RATE_LIMIT
        world.clock.advance(0.2)
        assert len(world.names) == 10
        assert world.pacer.waiting_for(lane) is None

    def test_three_uploads_at_once_take_as_long_as_the_limit_makes_them(self, world: World) -> None:
        lanes = [world.add(name, 20) for name in "ABC"]
        ended_at: dict[int, float] = {}
        for _ in range(100):
            world.clock.advance(1)
            for call in [call for call in world.under_way if call.at <= world.clock.now - 5]:
                world.end(call.name)
            ended_at |= {at: world.clock.now - 1000 for at, lane in enumerate(lanes) if lane.rested.is_set()} | ended_at
        assert ended_at == {0: 5, 1: 67, 2: 67}

    def test_a_create_takes_its_token_when_it_leaves(self, worlds: Callable[..., World]) -> None:
        world = worlds(in_flight=1, limit=RateLimit(2, 60))
        world.add("A", 3)
        world.clock.advance(100)
        world.end()
        world.end()
        assert world.names == ["A3"]

    def test_a_full_house_takes_no_token(self, worlds: Callable[..., World]) -> None:
        world = worlds(in_flight=1, limit=RateLimit(2, 60))
        world.add("A", 2)
        world.end()
        assert world.names == ["A2"]

    def test_one_timer_waits_for_the_window(self, world: World) -> None:
        world.add("A", 40)
        world.end_all()
        before = len(world.clock.timers)
        assert before <= 30
        world.clock.advance(60)
        assert len(world.clock.pending) == 1
        assert len(world.clock.timers) == before
        world.clock.advance(2)
        assert len(world.clock.timers) <= before + 2

    def test_a_full_house_needs_no_timer(self, worlds: Callable[..., World]) -> None:
        world = worlds(in_flight=2, limit=RateLimit(2, 60))
        world.add("A", 9)
        assert world.clock.timers == []


class TestA429:
    def test_it_holds_all_creates_for_five_seconds(self, world: World) -> None:
        held(world)
        world.add("B", 1)
        world.clock.advance(4.9)
        assert world.names == []
        world.clock.advance(0.1)
        assert len(world.names) == 1

    @pytest.mark.parametrize("seconds", [1, 60, 170])
    def test_with_retry_after_it_holds_them_for_as_long(self, world: World, seconds: float) -> None:
        held(world, RateLimited("429", seconds))
        world.clock.advance(seconds - 0.1)
        assert world.names == []
        world.clock.advance(0.1)
        assert len(world.names) == 1

    def test_one_at_a_time_is_tried(self, world: World) -> None:
        held(world)
        world.clock.advance(5)
        world.add("B", 5)
        world.clock.advance(4.9)
        assert len(world.names) == 1

    def test_the_others_follow_when_it_is_let_in(self, world: World) -> None:
        held(world, rows=5)
        world.clock.advance(5)
        world.end()
        assert len(world.names) == 4

    def test_when_the_one_to_be_tried_may_not_be_sent_the_next_is_tried(self, world: World) -> None:
        held(world, rows=2)
        world.clock.advance(5)
        world.clock.advance(1)
        world.end(error=Withheld())
        assert len(world.names) == 1
        world.end()
        assert world.pacer.waiting_for(world.lanes[0]) is None

    def test_waits_double_up_to_ten_seconds_while_it_is_refused(self, world: World) -> None:
        held(world)
        tried_at = []
        for _ in range(4):
            world.clock.advance_to(world.clock.pending[0].at)
            tried_at.append(world.clock.now - 1000)
            world.end(error=LIMITED)
        assert tried_at == [5, 15, 25, 35]

    def test_the_tries_ask_for_the_row_whose_turn_it_is(self, world: World) -> None:
        held(world, rows=3)
        world.add("B", 1)
        world.clock.advance(5)
        assert world.names == ["B1"]

    def test_a_success_of_one_in_flight_does_not_end_it(self, world: World) -> None:
        world.add("A", 3)
        world.end("A1", LIMITED)
        world.end("A2")
        assert world.names == ["A3"]
        world.clock.advance(5)
        assert world.names == ["A3", "A1"]

    def test_a_refusal_of_one_in_flight_does_not_prolong_it(self, world: World) -> None:
        world.add("A", 2)
        world.end("A1", LIMITED)
        world.clock.advance(4)
        world.end("A2", RateLimited("429", 100))
        world.clock.advance(1)
        assert len(world.names) == 1

    def test_a_try_without_an_answer_for_five_seconds_counts_as_let_in(self, world: World) -> None:
        held(world, rows=5)
        world.clock.advance(5)
        assert len(world.names) == 1
        world.clock.advance(4.9)
        assert len(world.names) == 1
        world.clock.advance(0.1)
        assert len(world.names) == 5

    @pytest.mark.parametrize("retry_after", [0, None])
    def test_so_does_a_try_that_went_out_at_once(self, worlds: Callable[..., World], retry_after: float | None) -> None:
        world = worlds(in_flight=2, first_wait=0)
        world.add("A", 4)
        world.end("A1", RateLimited("429", retry_after))
        world.end("A2")
        assert len(world.names) == 1
        world.clock.advance(5)
        assert len(world.names) == 2

    def test_a_try_that_counted_as_let_in_does_not_end_the_next_hold(self, world: World) -> None:
        held(world, rows=5)
        world.clock.advance(5)
        [old_try] = world.names
        world.clock.advance(5)
        for name in world.names[1:]:
            world.end(name, LIMITED)
        assert world.names == [old_try]
        world.clock.advance(1)
        world.end(old_try)
        assert world.names == []
        world.clock.advance(4)
        assert len(world.names) == 1

    def test_a_try_that_counted_as_let_in_leaves_the_next_try_alone_when_it_is_refused(self, world: World) -> None:
        held(world, rows=5)
        world.clock.advance(5)
        [old_try] = world.names
        world.clock.advance(5)
        for name in world.names[1:]:
            world.end(name, LIMITED)
        world.clock.advance(5)
        assert len(world.names) == 2
        world.end(old_try, RateLimited("429", 0))
        assert len(world.names) == 1

    def test_a_try_keeps_to_the_limit(self, worlds: Callable[..., World]) -> None:
        world = worlds(limit=RateLimit(3, 60))
        held(world)
        world.clock.advance(60)
        assert world.names == []
        world.clock.advance(1.1)
        assert len(world.names) == 1

    def test_those_held_wait_for_the_rate_limit(self, world: World) -> None:
        lane = held(world)
        assert world.pacer.waiting_for(lane) is WaitingFor.RATE_LIMIT


class TestARefusedConnection:
    def test_it_holds_all_creates_behind_one_knock(self, world: World) -> None:
        lane = held(world, AWAY, rows=5)
        assert world.pacer.waiting_for(lane) is WaitingFor.DIRECTORY
        world.clock.advance(4.9)
        assert world.names == []
        world.clock.advance(0.1)
        assert world.names == ["knock"]
        world.add("B", 3)
        world.clock.advance(100)
        assert world.names == ["knock"]

    def test_all_follow_when_the_knock_is_answered(self, world: World) -> None:
        held(world, AWAY, rows=5)
        world.clock.advance(5)
        world.end("knock")
        assert len(world.names) == 5

    @pytest.mark.parametrize("error", [AWAY, LIMITED, OutcomeUnknown("503")])
    def test_it_knocks_again_at_doubling_waits(self, world: World, error: DirectoryError) -> None:
        held(world, AWAY)
        knocked_at = []
        for _ in range(4):
            world.clock.advance_to(world.clock.pending[0].at)
            knocked_at.append(world.clock.now - 1000)
            world.end("knock", error)
        assert knocked_at == [5, 15, 25, 35]

    def test_a_knock_that_breaks_counts_as_unanswered(self, world: World) -> None:
        held(world, AWAY)
        world.clock.advance(5)
        world.end("knock", ValueError("Invalid IPv6 URL"))
        world.clock.advance(10)
        assert world.names == ["knock"]

    def test_a_knock_goes_out_though_every_place_is_taken(self, worlds: Callable[..., World]) -> None:
        world = worlds(in_flight=3)
        world.add("A", 5)
        world.end("A1", AWAY)
        world.clock.advance(5)
        assert sorted(world.names) == ["A2", "A3", "knock"]

    def test_a_try_after_a_429_that_is_refused_a_connection_is_followed_by_a_knock(self, world: World) -> None:
        held(world)
        world.clock.advance(5)
        world.end(error=AWAY)
        world.clock.advance(10)
        assert world.names == ["knock"]

    def test_nobody_knocks_when_no_row_waits(self, world: World) -> None:
        lane = held(world, AWAY)
        world.pacer.withdraw(lane)
        world.clock.advance(1000)
        assert world.names == []
        world.add("B", 1)
        assert world.names == ["knock"]


class TestGivingUp:
    @pytest.mark.parametrize("reason", [LIMITED, AWAY])
    def test_rows_are_given_up_when_nothing_was_let_in_for_180_seconds(self, world: World, reason: NotLetIn) -> None:
        lane = held(world, reason)
        while world.clock.now < 1000 + PATIENCE - 1:
            world.clock.advance(1)
            world.end_all(reason)
        assert not lane.rested.is_set()
        world.clock.advance(1)
        world.end_all(reason)
        assert lane.rested.is_set()
        assert lane.given_up is reason
        assert len(lane.waiting) == 3

    def test_each_lane_has_180_seconds_of_its_own(self, world: World) -> None:
        first = held(world, AWAY)
        world.clock.advance(100)
        second = world.add("B", 1)
        world.clock.advance(PATIENCE - 100)
        assert (first.rested.is_set(), second.rested.is_set()) == (True, False)
        world.clock.advance(99)
        assert not second.rested.is_set()
        world.clock.advance(1)
        assert second.given_up is AWAY

    def test_a_knock_that_hangs_does_not_keep_rows_from_being_given_up(self, world: World) -> None:
        lane = held(world, AWAY)
        world.clock.advance(PATIENCE)
        assert world.names == ["knock"]
        assert lane.rested.is_set()

    def test_a_success_of_one_in_flight_gives_them_more_time(self, world: World) -> None:
        lane = world.add("A", 2)
        world.end("A1", RateLimited("429", 170))
        world.clock.advance(100)
        world.end("A2")
        world.clock.advance(70)
        world.end("A1", RateLimited("429", 170))
        world.clock.advance(109)
        assert not lane.rested.is_set()
        world.clock.advance(1)
        assert lane.rested.is_set()

    def test_a_lane_with_a_row_in_flight_rests_when_that_has_ended(self, world: World) -> None:
        lane = world.add("A", 2)
        world.end("A1", AWAY)
        world.clock.advance(PATIENCE)
        assert lane.given_up is AWAY
        assert not lane.rested.is_set()
        world.end("A2")
        assert lane.rested.is_set()

    def test_rows_that_wait_their_turn_or_for_the_window_are_not_given_up(self, worlds: Callable[..., World]) -> None:
        world = worlds(in_flight=1, limit=RateLimit(1, 600))
        lane = world.add("A", 2)
        world.clock.advance(300)
        world.end()
        world.clock.advance(300)
        assert not lane.rested.is_set()
        world.clock.advance(1.1)
        assert world.names == ["A2"]

    @pytest.mark.parametrize("seconds", [180, 3600])
    def test_rows_are_tried_once_more_after_a_retry_after_of_180_seconds(self, world: World, seconds: float) -> None:
        lane = held(world, RateLimited("429", seconds))
        assert len(world.calls) == 3
        world.clock.advance(PATIENCE)
        assert len(world.calls) > 3
        assert not lane.rested.is_set()

    def test_a_lane_that_comes_later_is_tried_at_once(self, world: World) -> None:
        held(world)
        while world.clock.pending:
            world.clock.advance_to(world.clock.pending[0].at)
            world.end_all(LIMITED)
        world.clock.advance(1000)
        world.add("B", 2)
        assert world.names == ["B1"]
        world.end()
        assert world.names == ["B2"]


class TestWithdrawing:
    def test_no_more_rows_of_the_lane_are_sent(self, worlds: Callable[..., World]) -> None:
        world = worlds(in_flight=2)
        lane = world.add("A", 5)
        other = world.add("B", 6)
        world.pacer.withdraw(lane)
        assert not lane.rested.is_set()
        world.end("A1")
        world.end("A2")
        assert lane.rested.is_set()
        assert len(lane.waiting) == 3
        while world.names:
            world.end()
        assert other.rested.is_set()
        assert not [name for name in world.sent(2) if name.startswith("A")]

    def test_a_row_that_is_refused_afterwards_is_not_sent_again(self, world: World) -> None:
        lane = world.add("A", 2)
        world.pacer.withdraw(lane)
        world.end_all(LIMITED)
        assert lane.rested.is_set()
        assert lane.given_up is None
        assert len(lane.waiting) == 2
        world.clock.advance(1000)
        assert world.names == []

    def test_a_lane_that_waits_rests_at_once(self, world: World) -> None:
        lane = held(world)
        world.pacer.withdraw(lane)
        assert lane.rested.is_set()
        world.pacer.withdraw(lane)

    def test_the_try_of_a_lane_that_is_withdrawn_still_ends_the_hold(self, world: World) -> None:
        lane = held(world, rows=2)
        world.add("B", 4)
        world.clock.advance(5)
        world.pacer.withdraw(lane)
        world.end()
        assert world.names == ["B1", "B2", "B3", "B4"]


class TestStopping:
    def test_nothing_more_is_sent_and_those_in_flight_end(self, worlds: Callable[..., World]) -> None:
        world = worlds(in_flight=2)
        lanes = [world.add("A", 5), world.add("B", 5)]
        world.pacer.stop()
        assert [lane.rested.is_set() for lane in lanes] == [False, True]
        world.end()
        world.end(error=LIMITED)
        assert lanes[0].rested.is_set()
        assert len(lanes[0].waiting) == 4
        assert len(world.calls) == 2

    @pytest.mark.parametrize("reason", [LIMITED, AWAY])
    def test_a_hold_ends_with_no_timer_left(self, world: World, reason: NotLetIn) -> None:
        lane = held(world, reason)
        world.pacer.stop()
        assert lane.rested.is_set()
        assert world.clock.pending == []

    def test_a_knock_that_is_answered_afterwards_sends_nothing(self, world: World) -> None:
        held(world, AWAY)
        world.clock.advance(5)
        world.pacer.stop()
        world.end("knock")
        assert world.names == []
        assert world.clock.pending == []

    def test_a_lane_that_comes_afterwards_rests_at_once(self, world: World) -> None:
        world.pacer.stop()
        lane = world.add("A", 2)
        assert lane.rested.is_set()
        assert len(lane.waiting) == 2

    def test_its_threads_end(self, world: World) -> None:
        world.add("A", 3)
        world.pacer.stop()
        world.end_all()
        world.pacer._pool.shutdown(wait=True)
        assert not any(thread.is_alive() for thread in world.pacer._pool._threads)


class TestEstimates:
    """A create is taken to last 5 s until one has ended."""

    def test_one_create_when_there_is_place_for_all(self, world: World) -> None:
        lane = world.lane("A", 20)
        assert world.pacer.seconds_left(lane) == 5
        world.pacer.add(lane)
        world.settle()
        assert world.pacer.seconds_left(lane) == 5
        world.clock.advance(3)
        assert world.pacer.seconds_left(lane) == 2
        world.clock.advance(10)
        assert world.pacer.seconds_left(lane) == 0
        world.end_all()
        assert world.pacer.seconds_left(lane) == 0

    def test_a_create_for_each_round_of_places(self, worlds: Callable[..., World]) -> None:
        world = worlds(in_flight=10)
        assert [world.pacer.seconds_left(world.lane("A", rows)) for rows in (1, 10, 11, 20, 21)] == [5, 5, 10, 10, 15]
        assert world.pacer.seconds_left(world.add("A", 20)) == 10

    def test_what_is_before_it_counts_and_what_is_after_does_not(self, worlds: Callable[..., World]) -> None:
        world = worlds(in_flight=10)
        world.add("X", 10)
        world.add("A", 10, age=2)
        world.add("B", 20, age=1)
        assert world.pacer.seconds_left(world.lane("C", 10, age=1)) == 15
        assert world.pacer.seconds_left(world.lane("C", 10, age=3)) == 10
        assert world.pacer.seconds_left(world.lane("C", 30)) == 35

    @pytest.mark.parametrize(("rows", "seconds"), [(20, 5), (30, 5), (31, 66), (60, 66), (61, 127)])
    def test_the_limit_counts(self, worlds: Callable[..., World], rows: int, seconds: float) -> None:
        world = worlds(in_flight=1000, limit=RateLimit(30, 60))
        assert world.pacer.seconds_left(world.lane("A", rows)) == pytest.approx(seconds, abs=0.1)
        assert world.pacer.seconds_left(world.add("A", rows)) == pytest.approx(seconds, abs=0.1)

    def test_a_hold_counts(self, world: World) -> None:
        lane = held(world, RateLimited("429", 42))
        assert world.pacer.seconds_left(lane) == 47
        world.clock.advance(40)
        assert world.pacer.seconds_left(lane) == 7

    def test_nothing_is_learnt_from_a_row_that_may_not_be_sent(self, world: World) -> None:
        world.add("A", 1)
        world.clock.advance(1)
        world.end(error=Withheld())
        assert world.lanes[0].rested.is_set()
        assert world.pacer.seconds_left(world.lane("B", 1)) == 5

    def test_creates_that_last_longer_are_learnt_from(self, world: World) -> None:
        for _ in range(20):
            world.add("A", 1)
            world.clock.advance(7)
            world.end()
        assert world.pacer.seconds_left(world.lane("B", 1)) == pytest.approx(7)
        world.add("A", 1)
        world.clock.advance(17)
        world.end()
        assert world.pacer.seconds_left(world.lane("B", 1)) == pytest.approx(9)

    def test_a_lane_that_waits_for_its_turn_alone_does_not_wait_for_the_directory(
        self, worlds: Callable[..., World]
    ) -> None:
        world = worlds(in_flight=1, limit=RateLimit(2, 60))
        lane = world.add("A", 3)
        assert world.pacer.waiting_for(lane) is None
        world.end()
        assert world.pacer.waiting_for(lane) is WaitingFor.RATE_LIMIT
        world.end()
        assert world.pacer.waiting_for(lane) is WaitingFor.RATE_LIMIT

    def test_a_lane_with_no_row_left_to_send_waits_for_nothing(self, world: World) -> None:
        world.add("A", 2)
        lane = world.add("B", 1)
        world.end("A1", LIMITED)
        assert world.pacer.waiting_for(lane) is None


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 8)),
        st.tuples(st.just("end"), st.integers(0, 20)),
        st.tuples(st.just("refuse"), st.sampled_from([None, 0, 3, 200])),
        st.tuples(st.just("away"), st.integers(0, 20)),
        st.tuples(st.just("wait"), st.sampled_from([0.001, 1, 4, 5, 11, 61.1, 190])),
        st.tuples(st.just("withdraw"), st.integers(0, 20)),
    ),
    max_size=40,
)
LIMITS = st.sampled_from([None, RateLimit(1, 0.5), RateLimit(3, 10), RateLimit(5, 60)])


def test_creates_that_never_left_leave_their_places_in_the_window_to_others(worlds: Callable[..., World]) -> None:
    world = worlds(limit=RateLimit(3, 60))
    world.add("A", 3)
    world.end_all(AWAY)
    world.clock.advance(5)
    assert world.names == ["knock"]
    world.end("knock")
    assert len(world.names) == 3


class TestWhateverHappens:
    def step(self, world: World, what: str, value: Any) -> None:
        """Do one thing to the pacer."""
        calls = sorted(world.under_way, key=lambda call: call.name)
        match what:
            case "add":
                world.add("ABCDEFGHIJ"[len(world.lanes) % 10] * (1 + len(world.lanes) // 10), value)
            case "end" if calls:
                world.end(calls[value % len(calls)].name)
            case "refuse" if calls:
                world.end(calls[0].name, RateLimited("429", value))
            case "away" if calls:
                world.end(calls[value % len(calls)].name, AWAY)
            case "wait":
                world.clock.advance(value)
            case "withdraw" if world.lanes:
                world.pacer.withdraw(world.lanes[value % len(world.lanes)])

    @settings(max_examples=150, deadline=None)
    @given(STEPS, st.integers(1, 4), LIMITS)
    def test_every_lane_comes_to_rest_every_row_is_made_once_and_limits_are_kept(
        self, steps: list[tuple[str, Any]], in_flight: int, limit: RateLimit | None
    ) -> None:
        world = World(in_flight, limit)
        try:
            for what, value in steps:
                self.step(world, what, value)
            for _ in range(1000):
                while world.under_way:
                    world.end()
                if not world.clock.pending:
                    break
                world.clock.advance_to(world.clock.pending[0].at)
            assert all(lane.rested.is_set() for lane in world.lanes)
            self.check_rows(world)
            assert world.most_under_way <= in_flight
            if limit is not None:
                left = [call for call in world.calls if not isinstance(call.outcome.exception(), NotSent)]
                self.check_limit([call.at for call in left if call.name != "knock"], limit)
            assert len(world.clock.timers) <= 10 * (len(steps) + len(world.calls) + 1)
        finally:
            world.close()

    def check_rows(self, world: World) -> None:
        """Each row is made once, or left waiting in a lane that was given up or withdrawn."""
        left = Counter(row.name for lane in world.lanes for row in lane.waiting)
        made = Counter({name: count for name, count in world.made.items() if name != "knock"})
        assert set((left + made).values()) <= {1}

    def check_limit(self, sent_at: list[float], limit: RateLimit) -> None:
        """No window, a second more than the limit's, holds more than the limit."""
        for first, over in zip(sent_at, sent_at[limit.count :], strict=False):
            assert over - first > limit.seconds + SPARE_SECONDS - 1e-6


def test_the_timer_and_the_clock_are_real_ones_by_default() -> None:
    made = threading.Event()
    outcomes: list[Exception | None] = [RateLimited("429"), None]

    def create(_: Row) -> None:
        error = outcomes.pop(0)
        if error:
            raise error
        made.set()

    pacer = pacing.Pacer(Settings(directory_retry_seconds=0.01, directory_create_limit=None), lambda: None)
    lane = Lane([Row(1, "Alpha", "Road", None)], create, NOON)
    pacer.add(lane)
    assert lane.rested.wait(60)
    assert made.is_set()
    pacer.stop()
