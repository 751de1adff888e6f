"""The store in PostgreSQL: who may run a batch, that a batch and its job are one, and what is said when it is away."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, create_engine, inspect, text

from batch import Batch, BatchStatus, Goal, IdempotencyKey, Row, RowStatus, rows_digest
from cluster import queue as cluster_queue
from cluster.connector import make_pool
from cluster.postgres_store import POOL_OVERFLOW, POOL_SIZE, Claim, ClaimedStore, PostgresStore, RunState
from cluster.window import TOKEN_LOCK, SharedWindow
from schema import bring_up_to_date
from settings import RateLimit, SettingsError, load_settings
from sqlite_store import SqliteStore
from store import BatchNotFoundError, GoalChangedError, KeyTakenError, StoreError, TakenOverError
from tests.directory import ROOT
from tests.local_service import sqlite_url
from tests.patience import PATIENCE, wait_for
from tests.postgres import OwnServer, fresh_database, server, store_at

NOON = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)
ROWS = (Row(1, "Alpha", "1 Road", "555-1"), Row(2, "Beta", "2 Road", None))
CREATED = replace(ROWS[0], status=RowStatus.CREATED, hospital_id=7)


def batch_of(batch_id: str = "batch-1", **fields: Any) -> Batch:
    return replace(Batch(batch_id, "a.csv", ROWS, NOON, rows_digest=rows_digest(ROWS)), **fields)


@pytest.fixture
def jobs(database_url: str) -> Callable[[], list[tuple[str, Any]]]:
    """Reads the jobs in the queue, the first one first: whose each is, and what its run is told was settled."""

    def read() -> list[tuple[str, Any]]:
        with psycopg.connect(database_url) as connection:
            found = connection.execute("SELECT lock, args FROM procrastinate_jobs WHERE status = 'todo' ORDER BY id")
            return [(lock, args["settled_after"]) for lock, args in found]

    return read


def taken(store: PostgresStore, batch_id: str = "batch-1") -> Claim:
    claim = store.take(batch_id)
    assert claim is not None
    return claim


class TestClaims:
    def test_each_that_takes_a_batch_has_a_run_of_its_own(self, store: PostgresStore) -> None:
        store.add(batch_of())
        assert [taken(store).epoch for _ in range(3)] == [1, 2, 3]
        assert taken(store).batch == batch_of()

    def test_of_many_that_take_it_at_once_no_two_have_the_same_run(self, store: PostgresStore) -> None:
        store.add(batch_of())
        with ThreadPoolExecutor(10) as pool:
            epochs = list(pool.map(lambda _: taken(store).epoch, range(10)))
        assert sorted(epochs) == list(range(1, 11))

    def test_a_batch_that_has_ended_is_not_taken(self, store: PostgresStore) -> None:
        store.add(batch_of(status=BatchStatus.COMPLETED))
        assert store.take("batch-1") is None
        assert store.run_states(["batch-1"])["batch-1"].epoch == 0

    def test_a_batch_that_is_not_there_is_not_found(self, store: PostgresStore) -> None:
        with pytest.raises(BatchNotFoundError):
            store.take("batch-1")

    @pytest.mark.parametrize(
        ("rows", "changes"),
        [([CREATED], {}), ([], {"filename": "b.csv"}), ([CREATED], {"status": BatchStatus.FAILED})],
        ids=["rows", "fields", "the end"],
    )
    def test_a_run_that_was_taken_over_stores_nothing(
        self, store: PostgresStore, rows: list[Row], changes: dict[str, Any]
    ) -> None:
        store.add(batch_of())
        earlier, later = taken(store), taken(store)
        with pytest.raises(TakenOverError):
            store.save_as(earlier, Goal.ACTIVATE, rows, changes)
        assert store.get("batch-1") == batch_of()
        store.save_as(later, Goal.ACTIVATE, [CREATED], {"filename": "c.csv"})
        assert store.get("batch-1") == batch_of(rows=(CREATED, ROWS[1]), filename="c.csv")

    def test_an_end_is_refused_when_the_batch_is_to_be_removed_instead(self, store: PostgresStore) -> None:
        store.add(batch_of())
        claim = taken(store)
        store.ask_removal("batch-1")
        with pytest.raises(GoalChangedError):
            store.save_as(claim, Goal.ACTIVATE, [CREATED], {"status": BatchStatus.COMPLETED})
        assert store.get("batch-1") == batch_of(goal=Goal.REMOVE)

    def test_what_became_of_rows_is_stored_also_when_the_batch_is_to_be_removed(self, store: PostgresStore) -> None:
        store.add(batch_of())
        claim = taken(store)
        store.ask_removal("batch-1")
        store.save_as(claim, Goal.ACTIVATE, [CREATED], {})
        assert store.get("batch-1").rows == (CREATED, ROWS[1])

    def test_a_run_that_was_told_of_the_removal_by_a_refusal_stores_how_that_ends(self, store: PostgresStore) -> None:
        store.add(batch_of())
        run_store = ClaimedStore(store, taken(store))
        store.ask_removal("batch-1")
        with pytest.raises(GoalChangedError):
            run_store.save("batch-1", status=BatchStatus.COMPLETED)
        run_store.save("batch-1", status=BatchStatus.ROLLED_BACK)
        assert store.get("batch-1").status is BatchStatus.ROLLED_BACK

    def test_a_run_that_turned_to_removal_by_itself_stores_how_that_ends(self, store: PostgresStore) -> None:
        store.add(batch_of())
        run_store = ClaimedStore(store, taken(store))
        run_store.save("batch-1", goal=Goal.REMOVE)
        run_store.save("batch-1", status=BatchStatus.ROLLED_BACK)
        assert store.get("batch-1").status is BatchStatus.ROLLED_BACK

    def test_a_batch_that_has_ended_is_not_asked_to_be_removed(self, store: PostgresStore) -> None:
        store.add(batch_of(status=BatchStatus.COMPLETED))
        assert store.ask_removal("batch-1") == batch_of(status=BatchStatus.COMPLETED) == store.get("batch-1")

    def test_the_state_of_runs_is_told(self, store: PostgresStore) -> None:
        for number in (1, 2, 3):
            store.add(batch_of(f"batch-{number}"))
        taken(store, "batch-2")
        store.ask_removal("batch-3")
        assert store.run_states(["batch-2", "batch-3", "batch-4"]) == {
            "batch-2": RunState(1, Goal.ACTIVATE),
            "batch-3": RunState(0, Goal.REMOVE),
        }
        assert store.run_states([]) == {}

    def test_those_that_have_ended_are_told_and_the_others_counted(self, store: PostgresStore) -> None:
        for number, status in enumerate(BatchStatus):
            store.add(batch_of(f"batch-{number}", status=status))
        store.add(batch_of("batch-9"))
        assert store.ended_among(["batch-0", "batch-1", "batch-4", "batch-8"]) == {"batch-1", "batch-4"}
        assert store.count_unfinished() == 2


class TestJobs:
    def test_a_new_batch_has_a_job_of_which_nothing_was_sent(
        self, store: PostgresStore, jobs: Callable[[], list[tuple[str, Any]]]
    ) -> None:
        store.add(batch_of())
        assert jobs() == [("batch-1", 0)]

    @pytest.mark.parametrize(
        ("status", "settled_after"),
        [(BatchStatus.FAILED, 2), (BatchStatus.COMPLETED, 2), (BatchStatus.INTERRUPTED, None)],
    )
    def test_another_run_has_a_job_that_says_what_the_last_one_settled(
        self,
        store: PostgresStore,
        jobs: Callable[[], list[tuple[str, Any]]],
        status: BatchStatus,
        settled_after: int | None,
    ) -> None:
        store.add(batch_of())
        taken(store)
        store.save_as(taken(store), Goal.ACTIVATE, [], {"status": status})
        store.begin("batch-1", [status], Goal.REMOVE)
        assert jobs()[1:] == [("batch-1", settled_after)]

    @pytest.mark.parametrize(("settled", "settled_after"), [(True, 1), (False, None)])
    def test_a_batch_that_is_given_back_has_a_job_again(
        self,
        store: PostgresStore,
        jobs: Callable[[], list[tuple[str, Any]]],
        settled: bool,
        settled_after: int | None,
    ) -> None:
        store.add(batch_of())
        store.give_back(taken(store), settled)
        assert jobs()[1:] == [("batch-1", settled_after)]

    def test_a_batch_that_was_taken_over_is_not_given_back(
        self, store: PostgresStore, jobs: Callable[[], list[tuple[str, Any]]]
    ) -> None:
        store.add(batch_of())
        earlier, _ = taken(store), taken(store)
        store.give_back(earlier, settled=True)
        assert len(jobs()) == 1

    def test_an_upload_under_a_key_that_is_taken_has_no_job(
        self, store: PostgresStore, jobs: Callable[[], list[tuple[str, Any]]]
    ) -> None:
        key = IdempotencyKey("", "a key", "digest")
        store.add(batch_of(idempotency_key=key))
        with pytest.raises(KeyTakenError):
            store.add(batch_of("batch-2", idempotency_key=key))
        assert jobs() == [("batch-1", 0)]

    @pytest.mark.parametrize("when", ["before the job", "after the job"])
    def test_a_connection_that_is_killed_leaves_neither_batch_nor_job(
        self, database_url: str, jobs: Callable[[], list[tuple[str, Any]]], store: PostgresStore, when: str
    ) -> None:
        def defer(connection: Connection, batch_id: str, settled_after: int | None) -> None:
            if when == "after the job":
                cluster_queue.defer(connection, batch_id, settled_after)
            pid = connection.scalar(text("SELECT pg_backend_pid()"))
            with psycopg.connect(database_url) as other:
                other.execute("SELECT pg_terminate_backend(%s)", [pid])
            if when == "before the job":
                cluster_queue.defer(connection, batch_id, settled_after)

        broken = PostgresStore(
            str(load_settings({"DATABASE_URL": database_url}).database_url), lambda _: None, defer, 100
        )
        with closing(broken), pytest.raises(StoreError, match="does not answer"):
            broken.add(batch_of())
        assert store.page(9) == []
        assert jobs() == []

    def test_a_statement_of_the_queue_that_is_given_up_is_told_as_one_of_the_store(
        self, database_url: str, store: PostgresStore
    ) -> None:
        with ThreadPoolExecutor(1) as pool, psycopg.connect(database_url) as other:
            other.execute("LOCK TABLE procrastinate_jobs")
            adding = pool.submit(store.add, batch_of())
            waiting = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            with psycopg.connect(database_url, autocommit=True) as third:
                wait_for(lambda: third.execute(f"{waiting} AND datname = current_database()").fetchall())
            with pytest.raises(StoreError, match="does not answer"):
                adding.result(PATIENCE)
        assert store.page(9) == []

    @pytest.mark.parametrize("how", ["killed", "closed by the server"])
    def test_a_connection_that_broke_while_nobody_used_it_is_not_noticed(
        self, database_url: str, store: PostgresStore, how: str
    ) -> None:
        store.check()
        with psycopg.connect(database_url) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        store.add(batch_of())
        assert store.get("batch-1") == batch_of()


class TestOpening:
    def test_processes_that_open_a_new_database_at_once_make_its_tables_once(self) -> None:
        program = "import sys; from tests.postgres import store_at; store_at(sys.argv[1]).open()"
        with fresh_database() as url:
            command = [sys.executable, "-c", program, url]
            processes = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) for _ in range(4)]
            assert [process.communicate()[1] for process in processes] == [b""] * 4
            with psycopg.connect(url) as connection:
                assert connection.execute("SELECT * FROM schema_version").fetchall() == [(2,)]
            store = store_at(url)
            store.open()
            store.add(batch_of())
            store.close()

    def test_a_database_of_a_newer_version_is_refused_and_left_as_it_is(self) -> None:
        with fresh_database() as url, psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE schema_version (version INTEGER NOT NULL)")
            connection.execute("INSERT INTO schema_version VALUES (3)")
            connection.commit()
            with (
                closing(store_at(url)) as store,
                pytest.raises(StoreError, match=r"newer version of this service \(schema 3\)"),
            ):
                store.open()
            found = connection.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
            assert found.fetchall() == [("schema_version",)]

    @pytest.mark.parametrize(
        ("where", "words"),
        [
            ("{server}/none_of_this_name", 'database "none_of_this_name" does not exist'),
            ("127.0.0.1:1/postgres", "port 1 failed: Connection refused"),
            ("localhost:1/postgres", "port 1 failed: Connection refused"),
        ],
        ids=["no such database", "no server", "no server under several addresses"],
    )
    def test_a_database_that_cannot_be_used_is_refused_with_a_sentence(self, where: str, words: str) -> None:
        with (
            closing(
                store_at("postgresql://postgres:secret@" + where.format(server=server().rpartition("@")[2]))
            ) as store,
            pytest.raises(StoreError, match=f"^The database of DATABASE_URL cannot be used: .*{words}") as refusal,
        ):
            store.open()
        assert len(str(refusal.value).splitlines()) == 1
        assert "secret" not in str(refusal.value)

    @pytest.mark.parametrize(
        ("where", "words"),
        [
            ("user:s@cret@host/base", "an address with %40 in place of each @ in the user's name or the password."),
            ("user:secret@host:port/base", "empty, to keep batches in memory"),
            ("user:secret@one:1,two:2/base", "empty, to keep batches in memory"),
            ("user:secret@host", "empty, to keep batches in memory"),
        ],
    )
    def test_an_address_that_is_none_is_refused_without_repeating_it(self, where: str, words: str) -> None:
        with pytest.raises(SettingsError) as refusal:
            load_settings({"DATABASE_URL": f"postgresql://{where}"})
        assert str(refusal.value).startswith(f"DATABASE_URL is not right: it must be {words}")
        assert "cret" not in str(refusal.value)

    @pytest.mark.parametrize(
        "where", ["u:p@h/b?sslmode=verify-full&sslrootcert=/etc/ca.crt", "/b?host=/run/postgresql", "u@[::1]:5432/b"]
    )
    def test_an_address_may_have_whatever_the_driver_understands(self, where: str) -> None:
        assert load_settings({"DATABASE_URL": f"postgres://{where}"}).database_url == f"postgresql+psycopg://{where}"

    def test_making_a_store_opens_no_connection(self) -> None:
        store_at("postgresql://nobody@127.0.0.1:1/none").close()


class TestUpgrade:
    def test_a_database_of_version_1_is_brought_up_to_date_with_all_that_is_in_it(self, tmp_path: Path) -> None:
        store = SqliteStore(sqlite_url(tmp_path))
        store.open()
        store.add(batch_of())
        store.close()
        engine = create_engine(sqlite_url(tmp_path))
        with engine.begin() as connection:
            for back in (
                "DROP TABLE recent_creates",
                "ALTER TABLE batches DROP COLUMN epoch",
                "UPDATE schema_version SET version = 1",
            ):
                connection.execute(text(back))
        store.open()
        assert store.get("batch-1") == batch_of()
        store.add(batch_of("batch-2"))
        store.close()
        with engine.begin() as connection:
            bring_up_to_date(connection)
            assert connection.scalar(text("SELECT version FROM schema_version")) == 2
            assert connection.scalar(text("SELECT sum(epoch) FROM batches")) == 0
            assert inspect(connection).has_table("recent_creates")
        engine.dispose()


CALLS: dict[str, Callable[[PostgresStore], object]] = {
    "save_as": lambda store: store.save_as(Claim(batch_of(), 1), Goal.ACTIVATE, [CREATED], {}),
    "add": lambda store: store.add(batch_of("batch-2")),
    "get": lambda store: store.get("batch-1"),
    "begin": lambda store: store.begin("batch-1", [BatchStatus.FAILED], Goal.REMOVE),
    "find_key": lambda store: store.find_key("", "a key"),
    "unfinished": lambda store: store.unfinished(),
    "page": lambda store: store.page(9),
    "find_same_rows": lambda store: store.find_same_rows("digest"),
    "check": lambda store: store.check(),
    "take": lambda store: store.take("batch-1"),
    "give_back": lambda store: store.give_back(Claim(batch_of(), 1), settled=True),
    "ask_removal": lambda store: store.ask_removal("batch-1"),
    "run_states": lambda store: store.run_states(["batch-1"]),
    "ended_among": lambda store: store.ended_among(["batch-1"]),
    "count_unfinished": lambda store: store.count_unfinished(),
}


class TestAway:
    def test_every_operation_says_that_the_server_is_away_and_goes_on_when_it_is_back(self) -> None:
        with OwnServer() as server:
            store = store_at(server.url)
            store.open()
            store.add(batch_of())
            store.save_as(taken(store), Goal.ACTIVATE, [], {"status": BatchStatus.FAILED})
            server.stop()
            for call in CALLS.values():
                with pytest.raises(StoreError, match=r"^The database does not answer at the moment; try it again"):
                    call(store)
            server.start()
            for call in CALLS.values():
                call(store)
            store.close()

    def test_a_server_that_cannot_be_written_any_more_is_away(self, store: PostgresStore, database_url: str) -> None:
        store.add(batch_of())
        name = database_url.rpartition("/")[2]
        with psycopg.connect(database_url, autocommit=True) as connection:
            # As one is that has become the copy of another one.
            connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())
            try:
                store.close()
                with pytest.raises(StoreError, match="does not answer"):
                    store.take("batch-1")
                assert store.get("batch-1") == batch_of()
            finally:
                connection.execute("SET default_transaction_read_only = off")
                connection.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only".encode())
        store.close()

    def test_a_caller_for_whom_no_connection_is_left_is_told_so(
        self, store: PostgresStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store.engine.pool, "_timeout", 0.05)
        with ExitStack() as stack:
            for _ in range(POOL_SIZE + POOL_OVERFLOW):
                stack.enter_context(store.engine.connect())
            with pytest.raises(StoreError, match="does not answer"):
                store.check()
        store.check()

    def test_many_more_threads_than_connections_are_all_served(self, store: PostgresStore) -> None:
        store.add(batch_of())
        together = threading.Barrier(128)

        def get(_: int) -> Batch:
            together.wait(30)
            return store.get("batch-1")

        with ThreadPoolExecutor(128) as pool:
            assert set(pool.map(get, range(128))) == {batch_of()}


class TestSilentProcesses:
    def test_one_that_freezes_in_the_middle_of_a_transaction_keeps_its_locks_for_seconds_only(
        self, store: PostgresStore, database_url: str
    ) -> None:
        store.add(batch_of())
        with closing(store_at(database_url)) as frozen, frozen.engine.connect() as silent:
            silent.execute(text("SELECT * FROM batches FOR UPDATE"))
            silent.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": TOKEN_LOCK})
            with ThreadPoolExecutor(2) as pool:
                claim = pool.submit(store.take, "batch-1")
                token = pool.submit(SharedWindow(store.engine, RateLimit(1, 1)).take, 0.0)
                try:
                    assert claim.result(40) is not None
                    assert token.result(40) is not None
                finally:
                    silent.invalidate()

    def test_so_does_one_that_freezes_in_the_middle_of_many_rows(self, store: PostgresStore, database_url: str) -> None:
        holding, thawed = threading.Event(), threading.Event()

        def rows() -> Iterator[tuple[str]]:
            yield ("Frozen",)
            holding.set()
            thawed.wait(60)

        def store_them() -> None:
            cursor = silent.connection.cursor()
            cursor.executemany("UPDATE batches SET filename = %s", rows())  # type: ignore[arg-type]
            silent.invalidate()

        store.add(batch_of())
        with (
            closing(store_at(database_url)) as frozen,
            frozen.engine.connect() as silent,
            ThreadPoolExecutor(2) as pool,
        ):
            storing = pool.submit(store_them)
            try:
                assert holding.wait(10)
                assert pool.submit(store.take, "batch-1").result(40) is not None
            finally:
                thawed.set()
            storing.result(10)

    def test_so_does_its_part_of_the_queue(self, store: PostgresStore, database_url: str) -> None:
        async def freeze() -> None:
            async with make_pool(database_url) as pool, pool.connection() as silent:
                await silent.execute("SELECT * FROM procrastinate_jobs FOR UPDATE")
                holding.set()
                await asyncio.to_thread(given_back.wait, 60)
                await silent.close()

        store.add(batch_of())
        holding, given_back = threading.Event(), threading.Event()
        with ThreadPoolExecutor(1) as pool, psycopg.connect(database_url) as other:
            frozen = pool.submit(asyncio.run, freeze())
            assert holding.wait(10)
            other.execute("SET lock_timeout = '40s'")
            try:
                other.execute("SELECT * FROM procrastinate_jobs FOR UPDATE")
            finally:
                given_back.set()
            frozen.result(10)


class TestOddCharacters:
    @pytest.mark.parametrize("batch_id", ["\0", "batch-1\0", "\0batch-1"])
    def test_an_id_with_a_nul_is_the_id_of_no_batch(self, store: PostgresStore, batch_id: str) -> None:
        store.add(batch_of())
        with pytest.raises(BatchNotFoundError):
            store.get(batch_id)
        with pytest.raises(BatchNotFoundError):
            store.page(9, after=batch_id)

    @pytest.mark.parametrize(
        "odd",
        ["Hôpital 病院 🏥", "'; DROP TABLE batches; --", "%s %(name)s :name {0} \\", "a\u2028b\t", "\ufdd0\uffff", " "],
    )
    def test_any_other_text_comes_back_as_it_was(self, store: PostgresStore, odd: str) -> None:
        batch = batch_of(odd, filename=odd, rows=(Row(1, odd, odd, odd, error_message=odd),), error_message=odd)
        store.add(batch)
        assert store.get(odd) == batch
        assert taken(store, odd).batch == batch
        assert store.page(9) == [batch]
