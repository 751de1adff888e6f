"""What every store does: keep batches, change them in one step, tell them newest first, find the same rows again."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import IntegrityError

from batch import Batch, BatchStatus, Goal, IdempotencyKey, Row, RowStatus, WaitingFor, rows_digest
from cluster.postgres_store import PostgresStore
from sqlite_store import SqliteStore
from store import BatchNotFoundError, KeyTakenError, MemoryStore, Store, WrongStatusError
from tests.local_service import sqlite_url
from tests.postgres import fresh_database, make_empty, store_at

NOON = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)
ROWS = (Row(1, "Alpha", "1 Road", "555-1"), Row(2, "Beta", "2 Road", None), Row(3, "Gamma", "3 Road", ""))
STORES = ("memory", "sqlite", "postgres")


CALLS_FOR_BATCH_2: dict[str, Callable[[Store], object]] = {
    "get": lambda store: store.get("batch-2"),
    "save fields": lambda store: store.save("batch-2", status=BatchStatus.FAILED),
    "save both": lambda store: store.save("batch-2", ROWS, status=BatchStatus.FAILED),
    "save rows": lambda store: store.save("batch-2", ROWS),
    "save nothing": lambda store: store.save("batch-2"),
    "begin": lambda store: store.begin("batch-2", [BatchStatus.PROCESSING], Goal.ACTIVATE, ROWS),
    "page": lambda store: store.page(9, after="batch-2"),
}


@pytest.fixture(scope="module")
def in_postgres() -> Iterator[Callable[[], PostgresStore]]:
    """Returns the store in PostgreSQL, empty: one for all tests, as making a database takes its time."""
    with fresh_database() as url:
        store = store_at(url)
        store.open()

        def emptied() -> PostgresStore:
            make_empty(url)
            return store

        yield emptied
        store.close()


@contextmanager
def opened(kind: str, request: pytest.FixtureRequest) -> Iterator[Store]:
    """An empty store of this kind."""
    if kind == "postgres":
        yield request.getfixturevalue("in_postgres")()
        return
    with TemporaryDirectory() as folder:
        store: Store = MemoryStore(keep=100) if kind == "memory" else SqliteStore(sqlite_url(Path(folder)))
        store.open()
        yield store
        store.close()


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    with opened(request.param, request) as store:
        yield store


def at_once(count: int, call: Callable[[int], bool]) -> int:
    """How many of so many calls, made at the same moment, return True."""
    together = threading.Barrier(count)

    def one(number: int) -> bool:
        together.wait(60)
        return call(number)

    with ThreadPoolExecutor(count) as pool:
        return sum(pool.map(one, range(1, count + 1)))


def batch_of(number: int, rows: tuple[Row, ...] = ROWS, key: IdempotencyKey | None = None) -> Batch:
    created_at = NOON + timedelta(seconds=number)
    return Batch(
        f"batch-{number}",
        f"{number}.csv",
        rows,
        created_at=created_at,
        run_started_at=created_at,
        expected_end=created_at + timedelta(seconds=5),
        idempotency_key=key,
        rows_digest=rows_digest(rows),
    )


def fill(store: Store, count: int) -> None:
    for number in range(1, count + 1):
        store.add(batch_of(number))


def end(store: Store, number: int, status: BatchStatus = BatchStatus.COMPLETED) -> None:
    store.save(f"batch-{number}", status=status)


def batches_alive() -> int:
    gc.collect()
    return sum(isinstance(it, Batch) for it in gc.get_objects())


def numbers(page: list[Batch]) -> list[int]:
    return [int(batch.batch_id.removeprefix("batch-")) for batch in page]


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_what_a_database_complains_of_names_no_hospital(kind: str, request: pytest.FixtureRequest) -> None:
    with opened(kind, request) as store, pytest.raises(IntegrityError) as complaint:
        store.add(replace(batch_of(1), rows=(ROWS[0], ROWS[0])))
    assert "INSERT INTO rows" in str(complaint.value)
    for error in (complaint.value, complaint.value.__cause__):
        assert ROWS[0].name not in str(error)
        assert ROWS[0].address not in str(error)


class TestOneBatch:
    def test_a_batch_is_kept_as_it_came(self, store: Store) -> None:
        batch = batch_of(1)
        store.add(batch)
        assert store.get("batch-1") == batch

    @pytest.mark.parametrize("call", CALLS_FOR_BATCH_2)
    def test_a_batch_of_another_id_is_not_found(self, store: Store, call: str) -> None:
        store.add(batch_of(1))
        with pytest.raises(BatchNotFoundError, match="batch-2"):
            CALLS_FOR_BATCH_2[call](store)
        assert store.page(9) == [batch_of(1)]

    def test_rows_are_replaced_by_their_number(self, store: Store) -> None:
        store.add(batch_of(1))
        first = replace(ROWS[0], status=RowStatus.FAILED, error_message="no")
        third = replace(ROWS[2], status=RowStatus.CREATED, hospital_id=7)
        store.save("batch-1", [third, first])
        assert store.get("batch-1") == replace(batch_of(1), rows=(first, ROWS[1], third))

    def test_fields_are_set_and_the_others_left(self, store: Store) -> None:
        store.add(batch_of(1))
        store.save("batch-1", waiting_for=WaitingFor.WAKE, expected_end=NOON)
        store.save("batch-1", waiting_for=None)
        assert store.get("batch-1") == replace(batch_of(1), expected_end=NOON)

    def test_rows_and_fields_are_set_in_one_step(self, store: Store) -> None:
        store.add(batch_of(1))
        seen = set()
        done = threading.Event()

        def look() -> None:
            while not done.is_set():
                batch = store.get("batch-1")
                seen.add((batch.processed == len(ROWS), batch.batch_activated))

        with ThreadPoolExecutor(1) as pool:
            looking = pool.submit(look)
            for status in [RowStatus.CREATED, RowStatus.PENDING] * 100:
                rows = [replace(row, status=status) for row in ROWS]
                store.save("batch-1", rows, batch_activated=status is RowStatus.CREATED)
            done.set()
            looking.result(60)
        assert seen <= {(True, True), (False, False)}

    def test_saving_nothing_changes_nothing(self, store: Store) -> None:
        store.add(batch_of(1))
        store.save("batch-1")
        assert store.get("batch-1") == batch_of(1)

    def test_saves_of_many_threads_all_count(self, store: Store) -> None:
        rows = tuple(Row(number, f"Hospital {number}", "Road", None) for number in range(1, 51))
        for number in (1, 2, 3):
            store.add(batch_of(number, rows))

        def save(row: Row) -> None:
            for number in (1, 2, 3):
                store.save(f"batch-{number}", [replace(row, hospital_id=row.row * number)])
                assert len(store.get(f"batch-{number}").rows) == len(rows)

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(save, rows))
        for number in (1, 2, 3):
            assert [row.hospital_id for row in store.get(f"batch-{number}").rows] == [n * number for n in range(1, 51)]

    def test_a_batch_that_was_read_does_not_change(self, store: Store) -> None:
        store.add(batch_of(1))
        before = store.get("batch-1")
        end(store, 1)
        assert before.status is BatchStatus.PROCESSING

    def test_a_store_that_can_be_read_says_so(self, store: Store) -> None:
        store.check()


class TestAnotherRun:
    def test_a_batch_that_has_ended_begins_again_with_those_rows(self, store: Store) -> None:
        store.add(batch_of(1))
        end(store, 1, BatchStatus.FAILED)
        store.save("batch-1", completed_at=NOON, error_message="no", earlier_seconds=5.0, run_started_at=None)
        mended = replace(ROWS[1], name="Beta 2")
        begun = store.begin("batch-1", [BatchStatus.FAILED, BatchStatus.INTERRUPTED], Goal.ACTIVATE, [mended])
        assert begun == store.get("batch-1")
        assert (begun.status, begun.goal) == (BatchStatus.PROCESSING, Goal.ACTIVATE)
        assert (begun.completed_at, begun.error_message, begun.earlier_seconds) == (None, None, 5.0)
        assert begun.run_started_at is not None
        assert begun.rows == (ROWS[0], mended, ROWS[2])

    def test_its_goal_is_kept(self, store: Store) -> None:
        store.add(batch_of(1))
        end(store, 1)
        store.begin("batch-1", [BatchStatus.COMPLETED], Goal.REMOVE)
        assert store.get("batch-1").goal is Goal.REMOVE

    @pytest.mark.parametrize("status", [BatchStatus.PROCESSING, BatchStatus.COMPLETED, BatchStatus.ROLLED_BACK])
    def test_in_another_status_it_does_not_begin(self, store: Store, status: BatchStatus) -> None:
        store.add(batch_of(1))
        end(store, 1, status)
        before = store.get("batch-1")
        with pytest.raises(WrongStatusError) as refusal:
            store.begin("batch-1", [BatchStatus.FAILED], Goal.ACTIVATE, [replace(ROWS[0], name="Other")])
        assert refusal.value.batch == store.get("batch-1") == before

    def test_no_such_batch_does_not_begin(self, store: Store) -> None:
        with pytest.raises(BatchNotFoundError):
            store.begin("batch-1", [BatchStatus.FAILED], Goal.ACTIVATE)

    def test_of_several_that_begin_at_once_one_does(self, store: Store) -> None:
        store.add(batch_of(1))

        def begin(number: int) -> bool:
            try:
                store.begin("batch-1", [BatchStatus.FAILED], Goal.ACTIVATE, [replace(ROWS[0], hospital_id=number)])
            except WrongStatusError:
                return False
            winners.append(number)
            return True

        for _ in range(5):
            winners: list[int] = []
            end(store, 1, BatchStatus.FAILED)
            assert at_once(10, begin) == 1
            assert [store.get("batch-1").rows[0].hospital_id] == winners

    def test_everything_a_run_left_behind_is_as_new_but_its_time(self, store: Store) -> None:
        store.add(batch_of(1, key=TestKeys.KEY))
        store.save(
            "batch-1",
            status=BatchStatus.INTERRUPTED,
            goal=Goal.REMOVE,
            completed_at=NOON,
            batch_activated=True,
            error_message="no",
            run_started_at=None,
            expected_end=None,
            earlier_seconds=2.5,
        )
        begun = store.begin("batch-1", [BatchStatus.INTERRUPTED], Goal.ACTIVATE)
        as_new = replace(batch_of(1, key=TestKeys.KEY), earlier_seconds=2.5)
        assert replace(begun, run_started_at=as_new.run_started_at, expected_end=as_new.expected_end) == as_new

    def test_batches_that_run_are_unfinished_the_oldest_first(self, store: Store) -> None:
        fill(store, 4)
        end(store, 2)
        end(store, 3, BatchStatus.FAILED)
        store.begin("batch-3", [BatchStatus.FAILED], Goal.REMOVE)
        assert numbers(store.unfinished()) == [1, 3, 4]


class TestKeys:
    KEY = IdempotencyKey("somebody", "a key", "digest")

    def test_a_batch_is_found_by_its_owner_and_key(self, store: Store) -> None:
        batch = batch_of(1, key=self.KEY)
        store.add(batch)
        assert store.find_key("somebody", "a key") == batch
        assert store.find_key("somebody else", "a key") is None
        assert store.find_key("somebody", "another key") is None

    def test_a_key_is_found_as_its_batch_stands_now(self, store: Store) -> None:
        store.add(batch_of(1, key=self.KEY))
        end(store, 1)
        found = store.find_key("somebody", "a key")
        assert found is not None
        assert found.status is BatchStatus.COMPLETED

    def test_a_key_that_is_taken_adds_nothing(self, store: Store) -> None:
        first = batch_of(1, key=self.KEY)
        store.add(first)
        with pytest.raises(KeyTakenError) as taken:
            store.add(batch_of(2, key=replace(self.KEY, upload_digest="other")))
        assert taken.value.batch == first
        assert store.page(9) == [first]

    def test_owners_may_use_the_same_key(self, store: Store) -> None:
        store.add(batch_of(1, key=self.KEY))
        store.add(batch_of(2, key=replace(self.KEY, owner="somebody else")))
        assert numbers(store.page(9)) == [2, 1]

    def test_of_several_under_one_key_one_is_added(self, store: Store) -> None:
        def add(number: int) -> bool:
            try:
                store.add(batch_of(number, key=self.KEY))
            except KeyTakenError as taken:
                told.append(taken.batch.batch_id)
                return False
            return True

        told: list[str] = []
        assert at_once(10, add) == 1
        [kept] = store.page(99)
        assert told == [kept.batch_id] * 9
        assert store.find_key("somebody", "a key") == kept

    @pytest.mark.parametrize("key", ["k" * 255, "with 'quotes' and \"more\" %s ; --", "\xc3\xa9\xff", " ", "0"])
    def test_a_key_is_any_text(self, store: Store, key: str) -> None:
        batch = batch_of(1, key=IdempotencyKey("", key, "digest"))
        store.add(batch)
        store.add(batch_of(2, key=IdempotencyKey("", key + "x", "digest")))
        assert store.find_key("", key) == batch

    def test_batches_without_a_key_are_no_batches_of_one_key(self, store: Store) -> None:
        fill(store, 2)
        assert store.find_key("", "") is None


class TestPages:
    def test_the_newest_batch_comes_first(self, store: Store) -> None:
        fill(store, 3)
        assert store.page(9) == [store.get(f"batch-{number}") for number in (3, 2, 1)]

    def test_no_batch_is_an_empty_page(self, store: Store) -> None:
        assert store.page(9) == []

    def test_pages_follow_each_other_without_gap_or_overlap(self, store: Store) -> None:
        fill(store, 5)
        assert numbers(store.page(2)) == [5, 4]
        assert numbers(store.page(2, after="batch-4")) == [3, 2]
        assert numbers(store.page(2, after="batch-2")) == [1]
        assert numbers(store.page(2, after="batch-1")) == []

    def test_a_page_holds_one_status(self, store: Store) -> None:
        fill(store, 5)
        for number in (1, 3, 5):
            end(store, number, BatchStatus.FAILED)
        assert numbers(store.page(2, status=BatchStatus.FAILED)) == [5, 3]
        assert numbers(store.page(2, status=BatchStatus.FAILED, after="batch-3")) == [1]
        assert numbers(store.page(2, status=BatchStatus.PROCESSING)) == [4, 2]
        assert store.page(2, status=BatchStatus.COMPLETED) == []

    def test_a_page_follows_a_batch_whatever_its_status_is_by_now(self, store: Store) -> None:
        fill(store, 3)
        end(store, 2)
        assert numbers(store.page(9, status=BatchStatus.PROCESSING, after="batch-2")) == [1]

    def test_a_page_after_no_batch_is_refused(self, store: Store) -> None:
        fill(store, 1)
        with pytest.raises(BatchNotFoundError):
            store.page(9, after="batch-2")

    def test_a_change_does_not_make_a_batch_newer(self, store: Store) -> None:
        fill(store, 2)
        end(store, 1)
        assert numbers(store.page(9)) == [2, 1]


class TestTheSameRows:
    def test_the_newest_batch_with_the_same_rows_is_found(self, store: Store) -> None:
        fill(store, 2)
        store.add(batch_of(3, (Row(1, "Other", "Road", None),)))
        assert store.find_same_rows(rows_digest(ROWS)) == "batch-2"

    def test_other_rows_are_not_found(self, store: Store) -> None:
        fill(store, 1)
        assert store.find_same_rows(rows_digest(ROWS[:2])) is None

    def test_one_that_was_rolled_back_is_passed_over(self, store: Store) -> None:
        fill(store, 3)
        end(store, 3, BatchStatus.ROLLED_BACK)
        assert store.find_same_rows(rows_digest(ROWS)) == "batch-2"

    def test_the_order_of_the_rows_does_not_matter(self) -> None:
        assert rows_digest(reversed(ROWS)) == rows_digest(ROWS)

    @pytest.mark.parametrize("change", [{"name": "alpha"}, {"address": "1 Road "}, {"phone": None}])
    def test_any_difference_makes_other_rows(self, change: dict[str, str | None]) -> None:
        assert rows_digest([replace(ROWS[0], **change), *ROWS[1:]]) != rows_digest(ROWS)  # type: ignore[arg-type]


def outcome(call: Callable[[], object]) -> object:
    """What a call returns, or what it raises and about which batch."""
    try:
        return call()
    except (KeyTakenError, WrongStatusError) as error:
        return type(error), error.batch
    except BatchNotFoundError as error:
        return type(error), str(error)


@contextmanager
def stopped_clock() -> Iterator[None]:
    with patch("store.utc_now", lambda: NOON), patch("sql_store.utc_now", lambda: NOON):
        yield


ids = st.sampled_from([f"batch-{number}" for number in range(1, 5)])
statuses = st.sampled_from(BatchStatus)
some_rows = st.lists(
    st.builds(
        replace,
        st.sampled_from(ROWS),
        name=st.sampled_from(["Alpha", "Beta", "Delta"]),
        status=st.sampled_from(RowStatus),
        hospital_id=st.none() | st.integers(1, 9),
        error_message=st.none() | st.just("no"),
    ),
    max_size=3,
    unique_by=lambda row: row.row,
)
keys = st.none() | st.builds(
    IdempotencyKey, st.sampled_from(["", "somebody"]), st.sampled_from("kl"), st.sampled_from("de")
)
calls = st.one_of(
    st.builds(lambda n, rows, key: ("add", (batch_of(n, rows, key),), {}), st.integers(1, 4),
              st.sampled_from([ROWS, ROWS[:2]]), keys),
    st.builds(lambda i, rows, status: ("save", (i, rows), {"status": status}), ids, some_rows, statuses),
    st.builds(lambda i, text: ("save", (i,), {"error_message": text, "waiting_for": None}), ids, st.sampled_from("ab")),
    st.builds(lambda i, froms, goal, rows: ("begin", (i, froms, goal, rows), {}), ids, st.sets(statuses),
              st.sampled_from(Goal), some_rows),
    st.builds(lambda i: ("get", (i,), {}), ids),
    st.builds(lambda n, status, after: ("page", (n,), {"status": status, "after": after}), st.integers(1, 5),
              st.none() | statuses, st.none() | ids),
    st.builds(lambda owner, key: ("find_key", (owner, key), {}), st.sampled_from(["", "somebody"]),
              st.sampled_from("kl")),
    st.builds(lambda rows: ("find_same_rows", (rows_digest(rows),), {}), st.sampled_from([ROWS, ROWS[:2]])),
    st.just(("unfinished", (), {})),
)  # fmt: skip


@pytest.mark.parametrize("kind", STORES[1:])
@settings(max_examples=30, deadline=None, derandomize=True)
@given(sequence=st.lists(calls, min_size=5, max_size=30))
def test_whatever_is_done_to_it_a_database_answers_as_memory_does(
    request: pytest.FixtureRequest, kind: str, sequence: list[Any]
) -> None:
    added = set()
    with stopped_clock(), opened("memory", request) as memory, opened(kind, request) as database:
        for name, arguments, fields in sequence:
            if name == "add" and arguments[0].batch_id in added:
                continue  # ids are random: none comes twice
            expected, answered = (
                outcome(partial(getattr(store, name), *arguments, **fields)) for store in (memory, database)
            )
            assert answered == expected, (name, arguments, fields)
            if name == "add" and expected is None:
                added.add(arguments[0].batch_id)
        for store in (memory, database):
            assert {batch.batch_id for batch in store.page(9)} == added


class TestForgetting:
    """The store in memory keeps the last 3 batches that have ended."""

    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore(keep=3)

    def test_the_first_to_end_is_the_first_to_go(self, store: MemoryStore) -> None:
        fill(store, 5)
        for number in (2, 1, 3, 4):
            end(store, number)
        assert numbers(store.page(9)) == [5, 4, 3, 1]
        with pytest.raises(BatchNotFoundError):
            store.get("batch-2")

    def test_running_batches_are_all_kept(self, store: MemoryStore) -> None:
        fill(store, 10)
        assert len(store.page(99)) == 10

    def test_a_batch_that_runs_again_is_kept_and_ends_anew(self, store: MemoryStore) -> None:
        fill(store, 5)
        for number in (1, 2, 3):
            end(store, number, BatchStatus.FAILED)
        store.begin("batch-1", [BatchStatus.FAILED], Goal.ACTIVATE)
        end(store, 4)
        assert numbers(store.page(9)) == [5, 4, 3, 2, 1]
        end(store, 1)
        assert numbers(store.page(9)) == [5, 4, 3, 1]

    def test_saving_an_ended_batch_again_does_not_count_it_twice(self, store: MemoryStore) -> None:
        fill(store, 3)
        for number in (1, 1, 1, 2, 3):
            end(store, number)
        assert numbers(store.page(9)) == [3, 2, 1]

    def test_the_key_of_a_forgotten_batch_is_free_again(self, store: MemoryStore) -> None:
        key = IdempotencyKey("somebody", "a key", "digest")
        store.add(batch_of(9, key=key))
        end(store, 9)
        fill(store, 3)
        for number in (1, 2, 3):
            end(store, number)
        assert store.find_key("somebody", "a key") is None
        store.add(batch_of(10, key=key))
        assert store.find_key("somebody", "a key") == batch_of(10, key=key)

    def test_a_forgotten_batch_is_in_no_list(self, store: MemoryStore) -> None:
        fill(store, 4)
        for number in (1, 2, 3, 4):
            end(store, number, BatchStatus.FAILED)
        assert numbers(store.page(9, status=BatchStatus.FAILED)) == [4, 3, 2]
        with pytest.raises(BatchNotFoundError):
            store.page(9, after="batch-1")
        with pytest.raises(BatchNotFoundError):
            store.begin("batch-1", [BatchStatus.FAILED], Goal.ACTIVATE)
        with pytest.raises(BatchNotFoundError):
            store.save("batch-1", status=BatchStatus.PROCESSING)
        for number in (4, 3, 2):
            end(store, number, BatchStatus.ROLLED_BACK)
        assert store.find_same_rows(rows_digest(ROWS)) is None

    def test_nothing_of_a_forgotten_batch_is_held(self, store: MemoryStore) -> None:
        before = batches_alive()
        for number in range(1, 201):
            store.add(batch_of(number, key=IdempotencyKey("somebody", f"key {number}", "digest")))
            end(store, number)
        assert batches_alive() - before == 3

    def test_the_same_batches_are_kept_whichever_threads_end_them(self) -> None:
        store = MemoryStore(keep=10)
        fill(store, 100)
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda number: end(store, number), range(1, 101)))
        assert len(store.page(999)) == 10
        assert store.unfinished() == []
