"""The store in an SQLite file: what comes back out of it, who may open it, and what is left of it after a kill."""

from __future__ import annotations

import re
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import IntegrityError

from batch import Batch, BatchStatus, Goal, IdempotencyKey, Row, RowStatus, WaitingFor
from sqlite_store import SqliteStore
from store import StoreError
from tests.directory import ROOT, Directory
from tests.local_service import sqlite_url
from tests.running import RunningService

NOON = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)
ROWS = (Row(1, "Alpha", "1 Road", "555-1"), Row(2, "Beta", "2 Road", None))
BATCH = Batch("batch-1", "a.csv", ROWS, NOON)
LARGEST_ID = 2**63 - 1


@pytest.fixture
def url(tmp_path: Path) -> str:
    return sqlite_url(tmp_path)


@pytest.fixture
def store(url: str) -> Iterator[SqliteStore]:
    store = SqliteStore(url)
    store.open()
    yield store
    store.close()


@pytest.fixture
def seen(store: SqliteStore) -> Iterator[list[str]]:
    """The statements that reach the database, those that begin and end transactions too."""
    statements: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(" ".join(statement.split()))

    event.listen(Engine, "before_cursor_execute", note)
    yield statements
    event.remove(Engine, "before_cursor_execute", note)


def refusal(url: str) -> str:
    """The sentence with which the store refuses to open."""
    store = SqliteStore(url)
    try:
        with pytest.raises(StoreError) as refused:
            store.open()
    finally:
        store.close()
    return str(refused.value)


class TestWhatIsKept:
    """A batch comes back equal in every field from a file that was closed and opened again."""

    texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
        ["", " ", "\0", "a\0b", "'; DROP TABLE rows; --", "\r\n", "\ufeff", "\U0010ffff", "e\u0301", "é", "院", "NULL"]
    )
    times = st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
    rows = st.builds(
        Row,
        row=st.integers(1, 2**31 - 1),
        name=texts,
        address=texts,
        phone=st.none() | texts,
        status=st.sampled_from(RowStatus),
        hospital_id=st.none() | st.integers(-LARGEST_ID, LARGEST_ID),
        error_message=st.none() | texts,
    )
    batches = st.builds(
        Batch,
        batch_id=texts,
        filename=texts,
        rows=st.lists(rows, min_size=1, max_size=5, unique_by=lambda row: row.row).map(
            lambda rows: tuple(sorted(rows, key=lambda row: row.row))
        ),
        created_at=times,
        status=st.sampled_from(BatchStatus),
        goal=st.sampled_from(Goal),
        completed_at=st.none() | times,
        batch_activated=st.booleans(),
        error_message=st.none() | texts,
        waiting_for=st.none() | st.sampled_from(WaitingFor),
        run_started_at=st.none() | times,
        expected_end=st.none() | times,
        idempotency_key=st.none() | st.builds(IdempotencyKey, texts, texts, texts),
        rows_digest=texts,
        earlier_seconds=st.floats(0, allow_nan=False, allow_infinity=False),
    )

    @settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(batch=batches, later=batches)
    @example(replace(BATCH, rows=(replace(ROWS[0], hospital_id=LARGEST_ID, phone=""),)), BATCH)
    def test_as_it_was_added_and_as_it_was_changed(
        self, tmp_path_factory: pytest.TempPathFactory, batch: Batch, later: Batch
    ) -> None:
        url = sqlite_url(tmp_path_factory.mktemp("kept"))
        store = SqliteStore(url)
        store.open()
        store.add(batch)
        store.close()
        store.open()
        assert store.get(batch.batch_id) == batch
        rows = [replace(new, row=old.row) for old, new in zip(batch.rows, later.rows, strict=False)]
        fields = {
            name: getattr(later, name)
            for name in ("status", "goal", "completed_at", "batch_activated", "error_message", "waiting_for",
                         "run_started_at", "expected_end", "earlier_seconds")
        }  # fmt: skip
        store.save(batch.batch_id, rows, **fields)
        store.close()
        store.open()
        kept = store.get(batch.batch_id)
        store.close()
        assert kept == replace(batch.with_rows(rows), **fields)
        assert [type(it) for it in (kept.status, kept.goal, kept.rows[0].status, kept.batch_activated)] == [
            BatchStatus,
            Goal,
            RowStatus,
            bool,
        ]

    def test_times_are_aware_and_exact_to_the_microsecond(self, store: SqliteStore) -> None:
        moments = [NOON + timedelta(microseconds=number * 999_983_777) for number in range(60)]
        for number, moment in enumerate(moments):
            store.add(replace(BATCH, batch_id=str(number), created_at=moment))
        kept = [batch.created_at for batch in reversed(store.page(60))]
        assert kept == moments
        assert {moment.tzinfo for moment in kept} == {UTC}

    def test_a_batch_that_is_there_cannot_be_added_again(self, store: SqliteStore) -> None:
        store.add(BATCH)
        with pytest.raises(IntegrityError):
            store.add(replace(BATCH, rows=ROWS[:1]))
        assert store.page(9) == [BATCH]

    def test_a_change_that_fails_changes_nothing(self, store: SqliteStore) -> None:
        store.add(BATCH)
        created = replace(ROWS[0], status=RowStatus.CREATED)
        with pytest.raises(IntegrityError):
            store.save("batch-1", [created, replace(ROWS[1], name=None)], status=BatchStatus.FAILED)  # type: ignore[arg-type]
        assert store.get("batch-1") == BATCH

    def test_an_addition_that_fails_adds_nothing(self, store: SqliteStore) -> None:
        with pytest.raises(IntegrityError):
            store.add(replace(BATCH, rows=(ROWS[0], ROWS[0])))
        assert store.page(9) == []

    def test_only_the_rows_that_are_saved_are_written(self, store: SqliteStore, seen: list[str]) -> None:
        store.add(replace(BATCH, rows=tuple(replace(ROWS[0], row=number) for number in range(1, 21))))
        seen.clear()
        store.save("batch-1", waiting_for=WaitingFor.WAKE)
        assert [statement for statement in seen if statement.startswith("UPDATE rows")] == []
        assert len([statement for statement in seen if statement.startswith("UPDATE batches")]) == 1


class TestTransactions:
    @pytest.mark.parametrize(
        ("pragma", "value"),
        [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1), ("busy_timeout", 10_000)],
    )
    def test_a_pragma_is_in_force_on_every_connection(self, store: SqliteStore, pragma: str, value: object) -> None:
        connections = [store._engine.connect() for _ in range(5)]
        values = [connection.scalar(text(f"PRAGMA {pragma}")) for connection in connections]
        for connection in connections:
            connection.close()
        assert values == [value] * 5

    def test_what_writes_begins_as_a_writer_and_what_reads_as_a_reader(
        self, store: SqliteStore, seen: list[str]
    ) -> None:
        store.add(BATCH)
        store.save("batch-1", status=BatchStatus.FAILED)
        store.begin("batch-1", [BatchStatus.FAILED], Goal.ACTIVATE)
        assert [statement for statement in seen if "BEGIN" in statement] == ["BEGIN IMMEDIATE"] * 3
        seen.clear()
        store.get("batch-1")
        store.page(9)
        store.unfinished()
        store.check()
        assert [statement for statement in seen if "BEGIN" in statement] == ["BEGIN"] * 4

    def test_a_row_of_no_batch_cannot_be_stored(self, store: SqliteStore) -> None:
        with pytest.raises(IntegrityError), store._write() as connection:
            connection.execute(
                text("INSERT INTO rows (batch_id, row, name, address, status) VALUES ('x', 1, '', '', '')")
            )

    def test_readers_and_writers_of_many_threads_never_find_it_locked(self, store: SqliteStore) -> None:
        for number in range(4):
            store.add(replace(BATCH, batch_id=str(number)))

        def work(number: int) -> None:
            batch_id = str(number % 4)
            for count in range(4):
                store.save(batch_id, [replace(ROWS[number // 4 % 2], hospital_id=count)], status=BatchStatus.FAILED)
                store.page(9)
                store.get(batch_id)

        with ThreadPoolExecutor(40) as pool:
            list(pool.map(work, range(40)))
        assert all(row.hospital_id == 3 for batch in store.page(9) for row in batch.rows)

    def test_another_program_that_reads_the_file_does_not_stop_a_write(
        self, store: SqliteStore, tmp_path: Path
    ) -> None:
        store.add(BATCH)
        with closing(sqlite3.connect(tmp_path / "hospitals.db", isolation_level=None)) as other:
            other.execute("BEGIN")
            other.execute("SELECT * FROM batches").fetchall()
            store.save("batch-1", status=BatchStatus.FAILED)
            assert store.get("batch-1").status is BatchStatus.FAILED

    def test_a_write_waits_for_another_program_that_writes(self, store: SqliteStore, tmp_path: Path) -> None:
        store.add(BATCH)
        locked = threading.Event()

        def write() -> None:
            with closing(sqlite3.connect(tmp_path / "hospitals.db", isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                locked.set()
                threading.Event().wait(0.3)
                other.execute("COMMIT")

        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write)
            assert locked.wait(60)
            store.save("batch-1", status=BatchStatus.FAILED)
            writing.result(60)
        assert store.get("batch-1").status is BatchStatus.FAILED

    def test_a_database_that_stays_locked_is_said_to_be_away(
        self, store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.add(BATCH)
        store.close()
        monkeypatch.setattr("sqlite_store.BUSY_MILLISECONDS", 50)
        store.open()
        with closing(sqlite3.connect(tmp_path / "hospitals.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError, match="database is locked"):
                store.save("batch-1", status=BatchStatus.FAILED)
            assert store.get("batch-1") == BATCH
            other.execute("ROLLBACK")
        store.save("batch-1", status=BatchStatus.FAILED)
        assert store.get("batch-1").status is BatchStatus.FAILED


class TestOpening:
    def test_a_file_is_opened_again_with_all_that_is_in_it(self, url: str) -> None:
        store = SqliteStore(url)
        for number in range(3):
            store.open()
            store.add(replace(BATCH, batch_id=str(number)))
            assert len(store.unfinished()) == number + 1
            store.close()

    def test_closing_what_was_never_opened_does_nothing(self, url: str, tmp_path: Path) -> None:
        SqliteStore(url).close()
        assert list(tmp_path.iterdir()) == []

    def test_making_a_store_opens_no_file(self, url: str, tmp_path: Path) -> None:
        SqliteStore(url)
        assert list(tmp_path.iterdir()) == []

    def test_a_second_store_on_the_file_is_refused(self, url: str, store: SqliteStore, tmp_path: Path) -> None:
        assert refusal(url) == (
            f"{tmp_path / 'hospitals.db'} is in use by another process of this service: stop that one first, "
            "or name another file in DATABASE_URL."
        )
        store.add(BATCH)
        assert store.get("batch-1") == BATCH

    def test_a_second_store_on_the_file_by_another_name_is_refused(self, store: SqliteStore, tmp_path: Path) -> None:
        (tmp_path / "link.db").symlink_to(tmp_path / "hospitals.db")
        assert "is in use by another process" in refusal(f"sqlite:///{tmp_path / 'link.db'}")

    def test_a_store_that_is_closed_leaves_the_file_to_another(self, url: str, store: SqliteStore) -> None:
        store.close()
        other = SqliteStore(url)
        other.open()
        other.close()

    @pytest.mark.parametrize("version", [3, 99])
    def test_a_database_of_a_newer_version_is_refused(self, url: str, tmp_path: Path, version: int) -> None:
        store = SqliteStore(url)
        store.open()
        store.add(BATCH)
        store.close()
        with closing(sqlite3.connect(tmp_path / "hospitals.db", isolation_level=None)) as connection:
            connection.execute("UPDATE schema_version SET version = ?", [version])
        assert refusal(url) == (
            f"{tmp_path / 'hospitals.db'} was written by a newer version of this service (schema {version}): "
            "start that version, or name another file in DATABASE_URL."
        )

    def test_a_refused_database_is_left_as_it_was(self, url: str, tmp_path: Path) -> None:
        with closing(sqlite3.connect(tmp_path / "hospitals.db", isolation_level=None)) as connection:
            connection.execute("CREATE TABLE schema_version (version INTEGER NOT NULL)")
            connection.execute("INSERT INTO schema_version VALUES (7)")
            refusal(url)
            assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("schema_version",)]

    def test_a_start_that_broke_off_while_it_made_the_tables_is_made_good(self, url: str, tmp_path: Path) -> None:
        with closing(sqlite3.connect(tmp_path / "hospitals.db", isolation_level=None)) as connection:
            connection.execute("CREATE TABLE schema_version (version INTEGER NOT NULL)")
        store = SqliteStore(url)
        store.open()
        store.add(BATCH)
        assert store.get("batch-1") == BATCH
        store.close()

    def test_a_file_that_is_no_database_is_refused_and_left_as_it_was(self, url: str, tmp_path: Path) -> None:
        file = tmp_path / "hospitals.db"
        file.write_bytes(b"name,address,phone\nno,data,base\n" * 100)
        assert refusal(url) == f"{file} cannot be used as the database: file is not a database."
        assert file.read_bytes() == b"name,address,phone\nno,data,base\n" * 100

    def test_a_folder_that_is_not_there_is_refused(self, tmp_path: Path) -> None:
        words = "cannot be used as the database: No such file or directory."
        assert refusal(f"sqlite:///{tmp_path}/none/hospitals.db") == f"{tmp_path}/none/hospitals.db {words}"

    def test_a_folder_is_refused_as_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "hospitals.db").mkdir()
        assert refusal(sqlite_url(tmp_path)) == (
            f"{tmp_path / 'hospitals.db'} cannot be used as the database: unable to open database file."
        )

    def test_a_folder_that_cannot_be_written_is_refused(self) -> None:
        # Of the system's own: in any other the user root may write.
        sentence = refusal("sqlite:////sys/hospitals.db")
        assert re.fullmatch(
            r"/sys/hospitals.db cannot be used as the database: (Permission denied|Read-only file system).", sentence
        )


WRITER = """
import sys
from dataclasses import replace
from tests.test_sqlite_store import BATCH, ROWS
from sqlite_store import SqliteStore

store = SqliteStore(sys.argv[1])
store.open()
if not store.page(1):
    store.add(BATCH)
print("open", flush=True)
number = int(sys.argv[2])
while True:
    number += 1
    store.save("batch-1", [replace(row, hospital_id=number) for row in ROWS], error_message=str(number))
    print(number, flush=True)
"""


class TestProcesses:
    def test_what_was_stored_is_there_after_a_kill(self, url: str) -> None:
        last = 0
        for lines in (1, 5, 25):
            with subprocess.Popen(
                [sys.executable, "-c", WRITER, url, str(last)], cwd=ROOT, stdout=subprocess.PIPE, text=True
            ) as writer:
                assert writer.stdout is not None
                assert writer.stdout.readline() == "open\n"
                for _ in range(lines):
                    last = int(writer.stdout.readline())
                writer.kill()
                last = int(([str(last), *writer.stdout.read().split()])[-1])
            store = SqliteStore(url)
            store.open()
            batch = store.get("batch-1")
            store.close()
            # The last one may have been stored without being told.
            assert batch.error_message in (str(last), str(last + 1))
            assert {str(row.hospital_id) for row in batch.rows} == {batch.error_message}

    def test_another_process_is_refused_until_the_first_has_ended(self, url: str, tmp_path: Path) -> None:
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, url, "0"], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "open\n"
            assert "is in use by another process of this service" in refusal(url)
            writer.kill()
        store = SqliteStore(url)
        store.open()
        store.close()

    def test_a_second_service_on_the_file_does_not_start(self, directory: Directory, url: str, tmp_path: Path) -> None:
        with RunningService(directory.url, database_url=url) as first:
            with pytest.raises(RuntimeError) as ended:
                RunningService(directory.url, database_url=url)
            assert f"{tmp_path / 'hospitals.db'} is in use by another process of this service" in str(ended.value)
            assert "Traceback" not in str(ended.value)
            assert first.get("/batches").json() == []
            assert first.stop(signal.SIGTERM) == 0
        with RunningService(directory.url, database_url=url) as next_one:
            assert next_one.get("/ready").status_code == 200
