"""Leases: nothing is sent by who has not heard from the store for a while, and never again by who lost the batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillWaitingError
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from batch import Batch, Goal, Row
from cluster.lease import LEASE_SECONDS, Lease, LeaseKeeper
from cluster.postgres_store import Claim, PostgresStore, RunState
from directory_errors import Stopped
from store import TakenOverError
from tests.fake_time import FakeClock
from tests.patience import PATIENCE, wait_for
from tests.postgres import store_at

NOON = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)
BATCH = Batch("batch-1", "a.csv", (Row(1, "Alpha", "1 Road", None),), NOON)
MINE = RunState(3, Goal.ACTIVATE)
LONG_ENOUGH_TO_PASS = 0.15


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def stopping() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def lease(clock: FakeClock, stopping: threading.Event) -> Lease:
    return Lease(Claim(BATCH, MINE.epoch), clock(), stopping, clock)


@pytest.fixture
def send(lease: Lease, stopping: threading.Event) -> Iterator[Callable[[], Future[None]]]:
    """Has a thread go through the fence."""
    with ThreadPoolExecutor(4) as pool:
        yield lambda: pool.submit(lease.fence)
        stopping.set()


def assert_waits(sent: Future[None]) -> None:
    with pytest.raises(StillWaitingError):
        sent.result(LONG_ENOUGH_TO_PASS)


class TestLease:
    @pytest.mark.parametrize("seconds", [0, 1, LEASE_SECONDS])
    def test_what_is_sent_soon_after_the_store_was_asked_passes_at_once(
        self, clock: FakeClock, lease: Lease, seconds: float
    ) -> None:
        clock.advance(seconds)
        lease.fence()

    def test_a_lease_that_ran_out_lets_nothing_pass_until_it_is_renewed(
        self, clock: FakeClock, lease: Lease, send: Callable[[], Future[None]]
    ) -> None:
        clock.advance(LEASE_SECONDS + 0.1)
        sent = [send() for _ in range(3)]
        assert_waits(sent[0])
        lease.renew(MINE, clock())
        for one in sent:
            one.result(PATIENCE)

    def test_it_holds_from_when_the_store_was_asked_not_from_when_it_answered(
        self, clock: FakeClock, lease: Lease, send: Callable[[], Future[None]]
    ) -> None:
        asked_at = clock()
        clock.advance(LEASE_SECONDS + 0.1)
        lease.renew(MINE, asked_at)
        assert_waits(send())

    def test_it_is_not_renewed_by_time(self, clock: FakeClock, lease: Lease, send: Callable[[], Future[None]]) -> None:
        clock.advance(40)  # a process that was frozen
        sent = send()
        clock.advance(40)
        assert_waits(sent)

    @pytest.mark.parametrize("state", [RunState(4, Goal.ACTIVATE), None], ids=["taken over", "no such batch"])
    def test_a_batch_that_another_process_has_is_lost_for_good(
        self, clock: FakeClock, lease: Lease, send: Callable[[], Future[None]], state: RunState | None
    ) -> None:
        clock.advance(LEASE_SECONDS + 0.1)
        sent = send()
        assert_waits(sent)
        lease.renew(state, clock())
        with pytest.raises(TakenOverError, match="batch-1"):
            sent.result(PATIENCE)
        lease.renew(MINE, clock())
        with pytest.raises(TakenOverError):
            lease.fence()

    def test_a_batch_that_is_to_be_removed_is_not_lost(self, clock: FakeClock, lease: Lease) -> None:
        lease.renew(RunState(3, Goal.REMOVE), clock())
        lease.fence()

    def test_a_service_that_stops_sends_nothing_more_on_a_lease_that_ran_out(
        self, clock: FakeClock, send: Callable[[], Future[None]], stopping: threading.Event
    ) -> None:
        clock.advance(LEASE_SECONDS + 0.1)
        sent = send()
        stopping.set()
        with pytest.raises(Stopped):
            sent.result(PATIENCE)


@pytest.fixture
def store(store: PostgresStore) -> PostgresStore:
    store.add(BATCH)
    return store


@pytest.fixture
def keep(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[PostgresStore, Lease, Callable[[], object]], None]]:
    """Keeps a lease by this store until the test ends, looking much more often than otherwise."""
    monkeypatch.setattr("cluster.lease.RENEW_EVERY_SECONDS", 0.02)
    with ExitStack() as stack:

        def keep(store: PostgresStore, lease: Lease, on_removal: Callable[[], object]) -> None:
            keeper = LeaseKeeper(store)
            stack.callback(end, keeper)
            stack.enter_context(keeper.keeping(lease, on_removal))
            keeper.start()

        yield keep


def end(keeper: LeaseKeeper) -> None:
    """Stop it and wait until it asks the store no more, which is closed next."""
    keeper.stop()
    wait_for(lambda: "leases" not in [thread.name for thread in threading.enumerate()])


Keep = Callable[[PostgresStore, Lease, Callable[[], object]], None]


def taken(store: PostgresStore, stopping: threading.Event, seconds_ago: float = 0.0) -> Lease:
    claim = store.take("batch-1")
    assert claim is not None
    return Lease(claim, time.monotonic() - seconds_ago, stopping)


class TestKeeper:
    def test_a_lease_is_renewed_as_long_as_the_batch_is_ours(
        self, store: PostgresStore, stopping: threading.Event, keep: Keep
    ) -> None:
        lease = taken(store, stopping, seconds_ago=100)
        keep(store, lease, lambda: None)
        lease.fence()

    def test_a_batch_that_another_takes_is_lost(
        self, store: PostgresStore, stopping: threading.Event, keep: Keep
    ) -> None:
        lease = taken(store, stopping)
        keep(store, lease, lambda: None)
        store.take("batch-1")
        wait_for(lambda: lease.is_lost)

    def test_a_run_is_told_when_its_batch_is_to_be_removed(
        self, store: PostgresStore, stopping: threading.Event, keep: Keep
    ) -> None:
        told = threading.Event()
        keep(store, taken(store, stopping), told.set)
        assert not told.wait(LONG_ENOUGH_TO_PASS)
        store.ask_removal("batch-1")
        assert told.wait(PATIENCE)

    def test_a_run_that_cannot_turn_to_removal_keeps_its_lease(
        self, store: PostgresStore, stopping: threading.Event, keep: Keep, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail() -> None:
            raise ZeroDivisionError

        store.ask_removal("batch-1")
        lease = taken(store, stopping, seconds_ago=100)
        keep(store, lease, fail)
        wait_for(lambda: caplog.text.count("ZeroDivisionError") > 1)
        lease.fence()

    def test_that_one_run_cannot_be_told_keeps_no_other_from_being_told(
        self, store: PostgresStore, stopping: threading.Event, keep: Keep
    ) -> None:
        def be_lost() -> None:
            raise TakenOverError("batch-1")

        told = threading.Event()
        store.add(replace(BATCH, batch_id="batch-2"))
        store.ask_removal("batch-1")
        store.ask_removal("batch-2")
        keeper = LeaseKeeper(store)
        other = store.take("batch-2")
        assert other is not None
        with (
            keeper.keeping(taken(store, stopping), be_lost),
            keeper.keeping(Lease(other, time.monotonic(), stopping), told.set),
        ):
            keeper.start()
            assert told.wait(PATIENCE)
            end(keeper)

    def test_while_the_store_is_away_leases_run_out(
        self, stopping: threading.Event, keep: Keep, caplog: pytest.LogCaptureFixture
    ) -> None:
        with closing(store_at("postgresql://nobody@127.0.0.1:1/none")) as away:
            lease = Lease(Claim(BATCH, 0), time.monotonic() - LEASE_SECONDS + 0.1, stopping)
            keep(away, lease, lambda: None)
            wait_for(lambda: "leases are not renewed: The database does not answer" in caplog.text)
            time.sleep(0.2)
            with ThreadPoolExecutor(1) as pool:
                sent = pool.submit(lease.fence)
                assert_waits(sent)
                lease.renew(RunState(0, Goal.ACTIVATE), time.monotonic())
                sent.result(PATIENCE)
