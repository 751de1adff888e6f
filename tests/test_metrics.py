"""What is counted for Prometheus: each event once, where it happens, and the gauges of what goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from hospital_client import Hospital, HospitalClient
from tests.directory import Directory
from tests.hospitals import csv_of
from tests.local_service import LocalService, answered, assert_promise, put_in_again
from tests.metrics import PREFIX, Counted, samples
from tests.patience import PATIENCE, wait_for
from tests.running import RunningService

# What every test looks at: all that is counted of batches and of calls to the directory.
BATCHES = ("batches_total", "rows_total")
CALLS = (
    "create_seconds_count",
    "creates_refused_total",
    "calls_tried_again_total",
    "unknown_outcomes_total",
    "unknown_outcomes_settled_total",
    "doubles_removed_total",
)
# Longer than the others wait, and shorter than a second.
SLOW = 0.6


def _created(count: int) -> dict[str, float]:
    return {'create_seconds_count{outcome="created"}': count}


def _ended(count: int, **outcomes: int) -> dict[str, float]:
    """A batch of so many rows that completed, created by these outcomes of creates."""
    return {
        'batches_total{outcome="completed"}': 1,
        'rows_total{outcome="created"}': count,
        'rows_total{outcome="created_and_activated"}': count,
        **{f'create_seconds_count{{outcome="{outcome}"}}': number for outcome, number in outcomes.items()},
    }


def _unknown(call: str, count: int, **settled: int) -> dict[str, float]:
    return {
        f'unknown_outcomes_total{{call="{call}"}}': count,
        **{
            f'unknown_outcomes_settled_total{{call="{call}",outcome="{outcome}"}}': number
            for outcome, number in settled.items()
        },
    }


def _again(reason: str, count: int) -> dict[str, float]:
    return {f'calls_tried_again_total{{reason="{reason}"}}': count}


# Faults, and all that they change in the counts of an upload of four rows.
FAULTS: dict[str, tuple[list[dict[str, Any]], dict[str, float]]] = {
    "nothing goes wrong": ([], _ended(4, created=4)),
    "the answers to two creates are lost": (
        [{"kind": "drop", "call": "create", "when": "after", "times": 2}],
        _ended(4, created=2, unknown=2) | _unknown("create", 2, done=2),
    ),
    "two creates are lost": (
        [{"kind": "error", "call": "create", "times": 2}],
        _ended(4, created=4, unknown=2) | _unknown("create", 2, not_done=2),
    ),
    "a create is answered 429": (
        [{"kind": "rate_limit", "call": "create"}],
        _ended(4, created=4, not_let_in=1) | _again("rate_limited", 1) | {"creates_refused_total": 1},
    ),
    "a listing is answered 429": (
        [{"kind": "rate_limit", "call": "list"}],
        _ended(4, created=4) | _again("rate_limited", 1),
    ),
    "two listings fail": (
        [{"kind": "error", "call": "list", "times": 2}],
        _ended(4, created=4) | _again("unknown_outcome", 2),
    ),
    "a row is rejected": (
        [{"kind": "error", "status": 422, "call": "create"}],
        {
            'batches_total{outcome="failed"}': 1,
            'rows_total{outcome="created"}': 3,
            'rows_total{outcome="failed"}': 1,
            'create_seconds_count{outcome="rejected"}': 1,
        }
        | _created(3),
    ),
    "a create that was answered is lost": (
        [{"kind": "lose", "call": "create"}],
        _ended(4, created=5) | {'rows_total{outcome="created"}': 5, 'rows_total{outcome="pending"}': 1},
    ),
    "the answer to the activation is lost": (
        [{"kind": "drop", "call": "activate", "when": "after"}],
        _ended(4, created=4) | _unknown("activate", 1, done=1),
    ),
    "the activation is lost": (
        [{"kind": "error", "call": "activate"}],
        _ended(4, created=4) | _unknown("activate", 1, not_done=1),
    ),
    "half of the batch is activated and the answer to its deletion lost": (
        [{"kind": "half_activate"}, {"kind": "drop", "call": "delete_batch", "when": "after"}],
        _ended(4, created=8)
        | _unknown("activate", 1, not_done=1)
        | _unknown("delete", 1, done=1)
        | {'rows_total{outcome="created"}': 8, 'rows_total{outcome="pending"}': 4},
    ),
    "it sleeps and answers 503 once": (
        [{"kind": "error", "status": 503, "call": "root"}],
        _ended(4, created=4) | _again("unknown_outcome", 1),
    ),
}


@pytest.fixture
def service(directory: Directory) -> Iterator[LocalService]:
    with LocalService(directory) as running:
        yield running


@pytest.mark.parametrize("what", FAULTS)
def test_each_thing_is_counted_as_often_as_it_happens(directory: Directory, service: LocalService, what: str) -> None:
    faults, expected = FAULTS[what]
    directory.faults(faults)
    with Counted(service.parts) as counted:
        batch = answered(service.upload(csv_of(4)))
    assert counted.of(*BATCHES, *CALLS) == expected
    assert_promise(directory, batch)


def test_a_create_that_commits_late_is_counted_as_not_done_and_its_double_as_removed(
    directory: Directory, service: LocalService, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Answered 500 at once, and carried out when the batch was listed, but before the row that went out again is there.
    directory.faults([{"kind": "late", "call": "create", "seconds": 1.5}])
    list_batch = HospitalClient.list_batch

    def list_and_slow_down(client: HospitalClient, *arguments: Any) -> list[Hospital]:
        listed = list_batch(client, *arguments)
        directory.settings(create_seconds=2)
        return listed

    monkeypatch.setattr(HospitalClient, "list_batch", list_and_slow_down)
    with Counted(service.parts) as counted:
        assert_promise(directory, answered(service.upload(csv_of(4))))
    assert counted.of(*CALLS) == (
        _created(4)
        | {'create_seconds_count{outcome="unknown"}': 1, "doubles_removed_total": 1}
        | _unknown("create", 1, not_done=1)
    )


def test_doubles_are_counted_when_they_are_removed(directory: Directory, service: LocalService) -> None:
    directory.faults([{"kind": "error", "call": "activate", "status": 422, "times": None}])
    batch_id = answered(service.upload(csv_of(3)))["batch_id"]
    assert service.batch(batch_id)["status"] == "failed"
    for hospital in directory.hospitals(batch_id)[:2]:
        put_in_again(directory, hospital)
    # Of the first deletion only the answer is lost: it is neither made again nor counted twice.
    directory.faults([{"kind": "drop", "call": "delete_one", "when": "after"}])
    with Counted(service.parts) as counted:
        batch = answered(service.resume(batch_id))
    assert_promise(directory, batch)
    assert counted.of(*CALLS) == {"doubles_removed_total": 2} | _unknown("delete", 1, done=1)


def test_an_unknown_create_that_is_there_twice_is_counted_as_a_double(
    directory: Directory, service: LocalService
) -> None:
    directory.settings(create_seconds=0.01)
    directory.faults([{"kind": "hang", "call": "create", "when": "after", "seconds": 2.5}])
    batch_id = service.started(csv_of(1))
    there = wait_for(lambda: directory.hospitals(batch_id))
    with Counted(service.parts) as counted:
        put_in_again(directory, there[0])
        assert_promise(directory, service.ended(batch_id))
    assert counted.of(*CALLS) == (
        {'create_seconds_count{outcome="unknown"}': 1, "doubles_removed_total": 1} | _unknown("create", 1, double=1)
    )


def test_refused_connections_are_counted_by_the_calls_made_again(directory: Directory) -> None:
    with LocalService(directory, max_concurrent_creates=1) as service:
        service.upload(csv_of(1))
        directory.faults([{"kind": "refuse", "call": "create", "seconds": 0.2, "skip": 1}])
        with Counted(service.parts) as counted:
            batch = answered(service.upload(csv_of(3)))
        assert_promise(directory, batch)
    again = counted.changes.get('calls_tried_again_total{reason="not_sent"}', 0)
    assert again >= 1
    assert counted.changes['create_seconds_count{outcome="not_let_in"}'] == again
    assert "creates_refused_total" not in counted.changes


def test_a_roll_back_is_counted(directory: Directory, service: LocalService) -> None:
    batch_id = answered(service.upload(csv_of(3)))["batch_id"]
    with Counted(service.parts) as counted:
        answered(service.roll_back(batch_id))
    assert counted.of(*BATCHES, *CALLS) == {
        'batches_total{outcome="rolled_back"}': 1,
        'rows_total{outcome="deleted"}': 3,
    }


def test_a_batch_whose_directory_is_lost_is_counted_as_interrupted(directory: Directory, service: LocalService) -> None:
    directory.faults([{"kind": "error", "call": "list", "times": None}])
    with Counted(service.parts) as counted:
        assert answered(service.upload(csv_of(2)))["status"] == "interrupted"
    assert counted.of(*BATCHES) == {'batches_total{outcome="interrupted"}': 1, 'rows_total{outcome="created"}': 2}


@pytest.mark.parametrize(
    ("settings", "fault", "what", "seconds"),
    [
        ({"directory_delay_seconds": SLOW}, {"kind": "drop", "call": "create"}, "delay", SLOW),
        ({}, {"kind": "sleep", "call": "root", "seconds": SLOW}, "wake", SLOW),
        ({}, {"kind": "rate_limit", "call": "create", "retry_after": 2}, "rate_limit", 2.0),
        ({}, {"kind": "refuse", "call": "list", "seconds": 1.5}, "directory", 1.5),
    ],
)
def test_the_seconds_that_a_batch_stands_still_are_counted(
    directory: Directory, settings: dict[str, float], fault: dict[str, Any], what: str, seconds: float
) -> None:
    directory.faults([fault])
    with LocalService(directory, **settings) as service, Counted(service.parts) as counted:
        assert answered(service.upload(csv_of(2)))["status"] == "completed"
    waited = counted.changes[f'batches_waited_seconds_total{{waiting_for="{what}"}}']
    # That creates wait is noticed twice a second, and later on a busy machine.
    assert 0 < waited < seconds + 10


def test_files_with_errors_are_counted_when_they_are_refused(directory: Directory, service: LocalService) -> None:
    with Counted(service.parts) as counted:
        assert service.upload(b"name,address\n,\n").status_code == 400
        assert service.upload(b"name,address\n,\n", path="/hospitals/bulk/validate").status_code == 200
    assert counted.of("files_refused_total") == {"files_refused_total": 1}


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/health", ("GET", "/health", 200)),
        ("GET", "/batches/7c9e6679-7425-40de-944b-e07fc1f90ae7", ("GET", "/batches/<batch_id>", 404)),
        ("GET", "/nowhere/7c9e6679", ("GET", "none", 404)),
        ("DELETE", "/health", ("DELETE", "none", 405)),
        ("FROB", "/health", ("other", "none", 405)),
        ("POST", "/hospitals/bulk", ("POST", "/hospitals/bulk", 415)),
        ("GET", "/sample_hospitals.csv", ("GET", "/sample_hospitals.csv", 200)),
        ("GET", "/static/style.css", ("GET", "/static/<path:filename>", 200)),
        ("HEAD", "/static/style.css", ("HEAD", "/static/<path:filename>", 200)),
    ],
)
def test_requests_are_counted_by_the_pattern_of_their_address(
    service: LocalService, method: str, path: str, expected: tuple[str, str, int]
) -> None:
    with Counted(service.parts) as counted:
        service.call(method, path).close()
    name, endpoint, status = expected
    assert counted.of("http_requests_total", "http_request_seconds_count") == {
        f'http_requests_total{{endpoint="{endpoint}",method="{name}",status="{status}"}}': 1,
        f'http_request_seconds_count{{endpoint="{endpoint}",method="{name}"}}': 1,
    }


# Gauges


def _live(service: LocalService) -> dict[str, float]:
    return samples(service.call("GET", "/metrics").text)


def _when(service: LocalService, holds: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    return wait_for(lambda: _live(service), holds)


def test_the_gauges_follow_a_batch_that_runs(directory: Directory) -> None:
    directory.settings(create_seconds=2)
    with LocalService(directory, max_concurrent_creates=2, max_running_batches=7) as service:
        before = _live(service)
        assert (before["batches_running"], before["batches_running_limit"], before["directory_awake"]) == (0, 7, 0)
        assert "directory_last_answer_seconds" not in before
        batch_id = service.started(csv_of(5))
        live = _when(service, lambda live: live["creates_in_flight"] == 2)
        assert (live["batches_running"], live["rows_waiting"], live["creates_held"]) == (1, 3, 0)
        assert live["directory_awake"] == 1
        assert 0 <= live["directory_last_answer_seconds"] < PATIENCE
        directory.settings(create_seconds=0)
        service.ended(batch_id)
        live = _when(service, lambda live: not live["batches_running"])
        assert (live["creates_in_flight"], live["rows_waiting"]) == (0, 0)


def test_a_hold_is_seen_while_it_lasts(directory: Directory) -> None:
    directory.faults([{"kind": "rate_limit", "call": "create", "retry_after": 3}])
    with LocalService(directory) as service:
        batch_id = service.started(csv_of(1))
        live = _when(service, lambda live: live["creates_held"] == 1)
        assert (live["rows_waiting"], live["creates_in_flight"]) == (1, 0)
        service.ended(batch_id)
        assert _live(service)["creates_held"] == 0


def test_those_who_follow_a_batch_are_seen(directory: Directory) -> None:
    directory.settings(create_seconds=3)
    with RunningService(directory.url) as service:
        batch_id = service.upload(csv_of(1), {"Prefer": "respond-async"}).json()["batch_id"]
        with requests.get(f"{service.url}/batches/{batch_id}/events", stream=True, timeout=PATIENCE) as stream:
            lines = stream.iter_lines()
            next(lines)
            assert samples(service.get("/metrics").text)["streams_open"] == 1
            # It counts when it has ended, not when its first event went out.
            name = 'http_requests_total{endpoint="/batches/<batch_id>/events",method="GET",status="200"}'
            assert name not in samples(service.get("/metrics").text)
            list(lines)
        after = wait_for(lambda: samples(service.get("/metrics").text), lambda counts: counts.get(name) == 1)
        assert after["streams_open"] == 0


def test_those_who_wait_for_an_end_are_seen(directory: Directory) -> None:
    directory.settings(create_seconds=2)
    with LocalService(directory) as service, ThreadPoolExecutor(2) as pool:
        uploads = [pool.submit(service.upload, csv_of(1, tag)) for tag in ("One", "Other")]
        _when(service, lambda live: live["callers_waiting"] == 2)
        assert all(upload.result().status_code == 200 for upload in uploads)
        assert _live(service)["callers_waiting"] == 0


def test_files_that_are_read_are_seen(service: LocalService) -> None:
    with service.parts.reading_places:
        assert _live(service)["files_reading"] == 1
    assert _live(service)["files_reading"] == 0


def test_two_services_in_one_process_do_not_mix(directory: Directory, service: LocalService) -> None:
    directory.settings(create_seconds=2)
    with LocalService(directory) as other:
        batch_id = other.started(csv_of(3))
        _when(other, lambda live: live["creates_in_flight"] == 3)
        assert _live(service)["creates_in_flight"] == 0
        other.ended(batch_id)


# The answer


def test_the_answer_is_what_prometheus_reads(service: LocalService) -> None:
    answer = service.call("GET", "/metrics")
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = list(text_string_to_metric_families(answer.text))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    assert {"process_resident_memory_bytes", "python_info"} <= set(names)
    assert all(family.documentation.endswith(".") for family in families if family.name.startswith(PREFIX))
    assert "_created" not in answer.text.replace('"created_and', "")


def test_what_has_not_happened_yet_is_there_as_zero() -> None:
    # A rate of a series that begins with its first event would not show that event.
    counts = {name for metric in REGISTRY.collect() for name in (f"{it.name}{it.labels}" for it in metric.samples)}
    for call in ("create", "activate", "delete"):
        assert f"{PREFIX}unknown_outcomes_total{{'call': '{call}'}}" in counts
    for outcome in ("completed", "failed", "interrupted", "rolled_back"):
        assert f"{PREFIX}batches_total{{'outcome': '{outcome}'}}" in counts


def test_it_answers_while_many_batches_run(directory: Directory) -> None:
    directory.settings(create_seconds=2, batch_size=0)
    with RunningService(directory.url, max_concurrent_creates=200, max_csv_rows=100) as service:
        for number in range(10):
            service.upload(csv_of(100, f"Hospital {number}"), {"Prefer": "respond-async"})
        live = samples(service.get("/metrics").text)
    assert live["batches_running"] == 10
    assert live["rows_waiting"] > 0
