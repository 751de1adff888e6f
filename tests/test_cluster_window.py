"""The limit that processes share: never more by the database's clock, all of it used, nothing while that is away."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg
import pytest

from cluster.postgres_store import PostgresStore
from cluster.window import AWAY_SECONDS, FRESH_SECONDS, SharedWindow
from settings import RateLimit
from tests.postgres import OwnServer, store_at

SPARE = 0.1
NOW = 1000.0


@pytest.fixture(autouse=True)
def little_to_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.window.SPARE_SECONDS", SPARE)


def window(store: PostgresStore, count: int, seconds: float = 60.0) -> SharedWindow:
    return SharedWindow(store.engine, RateLimit(count, seconds - SPARE))


class TestTogether:
    COUNT, SECONDS, WINDOWS = 10, 1.0, 3

    def test_three_processes_never_exceed_the_limit_and_use_all_of_it(
        self, store: PostgresStore, database_url: str
    ) -> None:
        with psycopg.connect(database_url) as connection:
            connection.execute(
                "CREATE TABLE journal (sent_at FLOAT);"
                "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN INSERT INTO journal VALUES (NEW.sent_at); RETURN NEW; END $$;"
                "CREATE TRIGGER note AFTER INSERT ON recent_creates FOR EACH ROW EXECUTE FUNCTION note()"
            )
        left = threading.Semaphore(self.COUNT * self.WINDOWS)

        def send(shared: SharedWindow) -> None:
            while left.acquire(blocking=False):
                while shared.take(time.monotonic()) is None:
                    time.sleep(shared.seconds_until(1, time.monotonic()))

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(send, [window(store, self.COUNT, self.SECONDS) for _ in range(3)]))
        with psycopg.connect(database_url) as connection:
            sent = [at for (at,) in connection.execute("SELECT sent_at FROM journal ORDER BY sent_at")]
        assert len(sent) == self.COUNT * self.WINDOWS
        for first, too_soon in zip(sent, sent[self.COUNT :], strict=False):
            assert too_soon - first >= self.SECONDS
        assert sent[-1] - sent[0] < (self.WINDOWS - 1) * self.SECONDS * 5


class TestTokens:
    def test_there_are_as_many_as_the_limit_says_for_all_together(self, store: PostgresStore) -> None:
        one, other = window(store, 3), window(store, 3)
        assert None not in [one.take(NOW), other.take(NOW), one.take(NOW)]
        assert [one.take(NOW), other.take(NOW)] == [None, None]

    def test_one_that_is_given_back_may_be_taken_by_any(self, store: PostgresStore) -> None:
        one, other = window(store, 2), window(store, 2)
        tokens = [one.take(NOW), one.take(NOW)]
        assert other.take(NOW) is None
        assert tokens[0] is not None
        one.give_back(tokens[0])
        assert other.take(NOW) is not None
        assert [one.take(NOW), other.take(NOW)] == [None, None]

    def test_those_of_a_process_that_died_are_free_when_the_window_is_over(self, store: PostgresStore) -> None:
        window(store, 1, 2).take(NOW)
        other = window(store, 1, 2)
        assert other.take(NOW) is None
        time.sleep(2.05)
        assert other.take(NOW) is not None

    def test_those_of_windows_past_are_not_kept(self, store: PostgresStore, database_url: str) -> None:
        shared = window(store, 100, 0.2)
        for _ in range(5):
            shared.take(NOW)
        time.sleep(0.25)
        shared.take(NOW)
        with psycopg.connect(database_url) as connection:
            assert connection.execute("SELECT count(*) FROM recent_creates").fetchone() == (1,)


class TestEstimates:
    def test_a_window_that_is_not_full_lets_the_next_ones_go_at_once(self, store: PostgresStore) -> None:
        shared = window(store, 3)
        shared.take(NOW)
        assert [shared.seconds_until(nth, NOW) for nth in (1, 2)] == [0, 0]

    @pytest.mark.parametrize(("nth", "windows"), [(1, 1), (3, 1), (4, 2), (7, 3)])
    def test_of_a_full_one_each_waits_for_its_place(self, store: PostgresStore, nth: int, windows: int) -> None:
        shared = window(store, 3)
        for _ in range(3):
            shared.take(NOW)
        assert shared.seconds_until(nth, NOW) == pytest.approx(windows * 60, abs=10)

    def test_time_goes_on_between_two_looks(self, store: PostgresStore) -> None:
        shared = window(store, 1)
        shared.take(NOW)
        later = NOW + FRESH_SECONDS
        assert shared.seconds_until(1, later) == pytest.approx(60 - FRESH_SECONDS, abs=0.2)

    def test_what_others_took_is_seen_soon(self, store: PostgresStore) -> None:
        one, other = window(store, 1), window(store, 1)
        assert one.seconds_until(1, NOW) == 0
        other.take(NOW)
        assert one.seconds_until(1, NOW + FRESH_SECONDS + 0.1) > 30


class TestAway:
    def test_without_the_database_there_are_no_tokens_and_it_is_not_asked_all_the_time(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        with closing(store_at("postgresql://nobody@127.0.0.1:1/none")) as away:
            shared = window(away, 3)
            assert [shared.take(NOW) for _ in range(50)] == [None] * 50
            assert shared.seconds_until(1, NOW + 0.4) == pytest.approx(AWAY_SECONDS - 0.4)
            assert len(caplog.messages) == 1
            assert caplog.messages[0].startswith("creates are held, the database does not answer: ")
            assert shared.take(NOW + AWAY_SECONDS) is None
            assert len(caplog.messages) == 2

    def test_it_goes_on_when_the_database_is_back_with_what_was_taken_before(self) -> None:
        with OwnServer() as server, closing(store_at(server.url)) as store:
            store.open()
            shared = window(store, 2)
            token = shared.take(NOW)
            assert token is not None
            server.stop()
            assert shared.take(NOW) is None
            shared.give_back(token)  # it is lost, which is on the safe side
            server.start()
            assert shared.take(NOW + AWAY_SECONDS) is not None
            assert shared.take(NOW + AWAY_SECONDS) is None
