"""`REQUEST_LIMIT`: what is counted, for whom, and that who waits as long as told is let in."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from flask_limiter import Limiter

from app import create_app
from request_times import RequestTimes
from settings import ApiKey, RateLimit, Settings
from tests.directory import Directory
from tests.hospitals import csv_of
from tests.local_service import BROWSER, LocalService, answered, at_once
from tests.problems import assert_problem
from tests.running import ROOT, RunningService

KEYS = (ApiKey("office", "of-office"), ApiKey("ci", "of-ci"))
SECOND = 1_000_000


class Clock:
    """Microseconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 123 * SECOND

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("request_times.now", clock)
    monkeypatch.setattr("request_limit.now", clock)
    return clock


class Caller:
    """Somebody at an address, with a key or without, who asks an app that has no directory and needs none."""

    def __init__(self, app: Flask, address: str = "192.0.2.1", key: str = "") -> None:
        self._client = app.test_client()
        self._environ = {"REMOTE_ADDR": address}
        self._headers = {"X-API-Key": key} if key else {}

    def ask(self, path: str = "/openapi.json", method: str = "GET", **headers: str) -> Any:
        """The answer to one request, which is read to its end."""
        answer = self._client.open(
            path, method=method, headers=self._headers | headers, environ_overrides=self._environ
        )
        answer.get_data()
        answer.close()
        return answer

    def statuses(self, count: int, path: str = "/openapi.json") -> list[int]:
        """What so many requests are answered with."""
        return [self.ask(path).status_code for _ in range(count)]


def limited(limit: RateLimit | None, **settings: Any) -> Flask:
    """The service with this limit."""
    return create_app(Settings(request_limit=limit, **settings))


def times_of(app: Flask) -> RequestTimes:
    """Where the app counts."""
    [limiter] = app.extensions["limiter"]
    assert isinstance(limiter, Limiter)
    assert isinstance(limiter.storage, RequestTimes)
    return limiter.storage


# When


def test_over_the_limit_a_request_is_refused_and_told_when_to_come_again(clock: Clock) -> None:
    caller = Caller(limited(RateLimit(3, 60)))
    assert caller.statuses(3) == [200] * 3
    answer = caller.ask()
    assert answer.status_code == 429
    assert answer.mimetype == "application/problem+json"
    assert answer.headers["Retry-After"] == "60"
    assert answer.json["title"] == "Too Many Requests"
    assert answer.json["detail"] == "These are too many requests, so nothing was done. Try it again in 60 seconds."
    assert not any(name.lower().startswith("x-ratelimit") for name, _ in answer.headers)


def test_a_browser_gets_a_page(clock: Clock) -> None:
    caller = Caller(limited(RateLimit(1, 60)))
    caller.ask()
    answer = caller.ask("/", **BROWSER)
    assert answer.status_code == 429
    assert answer.mimetype == "text/html"
    assert "Too many requests" in answer.text


@pytest.mark.parametrize(
    ("limit", "pauses", "told"),
    [
        (RateLimit(1, 60), [], 60),
        (RateLimit(1, 0.25), [], 1),
        (RateLimit(1, 1.5), [], 2),
        (RateLimit(1, 0.000001), [], 1),
        (RateLimit(3, 60), [10, 20], 30),
        (RateLimit(3, 60), [0.5, 0.25], 60),
        (RateLimit(3, 2.5), [0.7, 0.7], 2),
        (RateLimit(2, 86400), [0.999999], 86400),
    ],
)
def test_who_waits_as_long_as_told_is_let_in(clock: Clock, limit: RateLimit, pauses: list[float], told: int) -> None:
    caller = Caller(limited(limit))
    for pause in pauses:
        assert caller.ask().status_code == 200
        clock.advance(pause)
    assert caller.statuses(limit.count - len(pauses) + 1)[-1] == 429
    assert caller.ask().headers["Retry-After"] == str(told)
    clock.advance(told)
    assert caller.ask().status_code == 200


@pytest.mark.parametrize(("limit", "seconds"), [(RateLimit(2, 0.25), 0.25), (RateLimit(2, 1.5), 1.5)])
def test_a_window_of_a_fraction_of_a_second_is_not_rounded(clock: Clock, limit: RateLimit, seconds: float) -> None:
    caller = Caller(limited(limit))
    assert caller.statuses(3) == [200, 200, 429]
    clock.advance(seconds - 0.000001)
    assert caller.statuses(1) == [429]
    clock.advance(0.000001)
    assert caller.statuses(3) == [200, 200, 429]


def test_the_window_moves(clock: Clock) -> None:
    caller = Caller(limited(RateLimit(4, 10)))
    statuses = []
    for _ in range(40):
        statuses.append(caller.ask().status_code)
        clock.advance(1)
    assert statuses == [200, 200, 200, 200, *[429] * 6] * 4


def test_what_is_refused_does_not_count(clock: Clock) -> None:
    caller = Caller(limited(RateLimit(1, 10)))
    caller.ask()
    for _ in range(9):
        clock.advance(1)
        assert caller.ask().status_code == 429
    clock.advance(1)
    assert caller.ask().status_code == 200


# What


@pytest.mark.parametrize("path", ["/health", "/static/page.js", "/docs/assets/swagger-ui.css"])
def test_health_and_files_are_not_counted(clock: Clock, path: str) -> None:
    caller = Caller(limited(RateLimit(1, 60)))
    assert caller.statuses(3, path) == [200] * 3
    assert caller.statuses(2) == [200, 429]
    assert caller.statuses(1, path) == [200]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/no/such/page", 404),
        ("GET", "/static/no.js", 404),
        ("PUT", "/batches", 405),
        ("OPTIONS", "/batches", 200),
        ("POST", "/hospitals/bulk", 415),
        ("HEAD", "/docs", 200),
    ],
)
def test_everything_else_is(clock: Clock, method: str, path: str, status: int) -> None:
    app = limited(RateLimit(1, 60))
    caller = Caller(app)
    is_file = path.startswith("/static")
    assert caller.ask(path, method).status_code == status
    assert caller.ask().status_code == (200 if is_file else 429)


def test_all_addresses_of_the_service_are_counted_together(clock: Clock) -> None:
    caller = Caller(limited(RateLimit(3, 60)))
    paths = ("/docs", "/redoc", "/openapi.json", "/batches")
    assert [caller.ask(path).status_code for path in paths] == [200, 200, 200, 429]


def test_a_wrong_host_name_is_refused_first_and_not_counted(clock: Clock) -> None:
    caller = Caller(limited(RateLimit(1, 60), trusted_hosts=("localhost",)))
    assert [caller.ask(Host="elsewhere.invalid").status_code for _ in range(3)] == [400] * 3
    assert caller.statuses(2) == [200, 429]


def test_a_refused_upload_uses_up_no_idempotency_key(directory: Directory) -> None:
    with LocalService(directory, request_limit=RateLimit(1, 3)) as service:
        service.call("GET", "/batches")
        key = {"Idempotency-Key": "key"}
        assert service.upload(csv_of(1), key).status_code == 429
        time.sleep(3)
        assert answered(service.upload(csv_of(1), key))["status"] == "completed"


# Who


def test_without_keys_each_address_has_a_limit_of_its_own(clock: Clock) -> None:
    app = limited(RateLimit(2, 60))
    assert Caller(app, "192.0.2.1", "any key").statuses(3) == [200, 200, 429]
    assert Caller(app, "192.0.2.1").statuses(1) == [429]
    assert Caller(app, "2001:db8::1").statuses(3) == [200, 200, 429]


def test_with_keys_each_key_has_a_limit_of_its_own_wherever_it_comes_from(clock: Clock) -> None:
    app = limited(RateLimit(2, 60), api_keys=KEYS)
    assert Caller(app, "192.0.2.1", "of-office").statuses(2) == [200, 200]
    assert Caller(app, "192.0.2.2", "of-office").statuses(1) == [429]
    assert Caller(app, "192.0.2.1", "of-ci").statuses(3) == [200, 200, 429]


@pytest.mark.parametrize("path", ["/batches", "/no/such/page", "/static/page.js", "/static/none", "/docs/assets/none"])
def test_who_has_a_wrong_key_is_counted_by_address(clock: Clock, path: str) -> None:
    app = limited(RateLimit(2, 60), api_keys=KEYS)
    assert [Caller(app, "192.0.2.1", key).ask(path).status_code for key in ("a", "b", "c", "d")] == [401, 401, 429, 429]
    assert Caller(app, "192.0.2.2", "d").ask(path).status_code == 401
    assert Caller(app, "192.0.2.1", "of-office").ask().status_code == 200


def test_who_shows_no_key_is_asked_for_one_however_many_wrong_ones_came_from_there(clock: Clock) -> None:
    app = limited(RateLimit(1, 60), api_keys=KEYS)
    assert [Caller(app, "192.0.2.1", key).ask().status_code for key in ("a", "b", "", "")] == [401, 429, 401, 401]
    assert "WWW-Authenticate" in Caller(app, "192.0.2.1", "").ask().headers


def test_an_address_is_not_taken_for_a_key_of_that_name(clock: Clock) -> None:
    app = limited(RateLimit(1, 60), api_keys=(ApiKey("192.0.2.1", "key"),))
    assert Caller(app, "192.0.2.1", "wrong").statuses(1) == [401]
    assert Caller(app, "192.0.2.9", "key").statuses(1) == [200]


def test_many_at_once_are_let_in_exactly_as_often_as_allowed(directory: Directory) -> None:
    with LocalService(directory, request_limit=RateLimit(25, 3600)) as service:
        statuses = Counter(answer.status_code for answer in at_once(60, lambda: service.call("GET", "/openapi.json")))
    assert statuses == {200: 25, 429: 35}


# At what cost


def test_callers_who_have_gone_are_forgotten_and_who_stays_is_not(clock: Clock) -> None:
    app = limited(RateLimit(2, 10))
    regular = Caller(app, "192.0.2.1")
    for number in range(300):
        assert Caller(app, f"2001:db8::{number}").statuses(1) == [200]
        if number % 8 == 0:
            assert regular.statuses(1) == [200]
        clock.advance(1)
        assert len(times_of(app)) <= 11
    assert regular.statuses(2) == [200, 429]
    clock.advance(10)
    assert regular.statuses(1) == [200]
    assert len(times_of(app)) == 1


def test_nothing_of_it_is_there_without_a_limit() -> None:
    app = limited(None)
    assert "limiter" not in app.extensions
    assert Caller(app).statuses(50) == [200] * 50


@pytest.mark.parametrize("limit", ["", "10/60"])
def test_no_thread_is_started_before_it_serves(limit: str) -> None:
    script = "import app, threading; print(threading.active_count())"
    said = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={"REQUEST_LIMIT": limit},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (said.stdout, said.stderr) == ("1\n", "")


# For real


@pytest.fixture(scope="module")
def service(shared_directory: Directory) -> Iterator[RunningService]:
    with RunningService(shared_directory.url, request_limit="3/5") as running:
        yield running


def test_a_real_caller_who_waits_as_long_as_told_is_let_in(service: RunningService) -> None:
    logged = service.output
    answers = [service.get("/batches") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert_problem(answers[-1], 429, "too many requests")
    seconds = int(answers[-1].headers["Retry-After"])
    assert 1 <= seconds <= 6
    time.sleep(seconds)
    # One line for each, those that were refused too.
    assert len(service.output.removeprefix(logged).splitlines()) == 4
    assert service.get("/batches").status_code == 200
