"""A batch followed as server-sent events, over real HTTP."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest
import requests

from settings import WORKER_THREADS
from tests.directory import Directory
from tests.events import Event, Follower, Followers
from tests.hospitals import assert_exactly_once, csv_of
from tests.patience import PATIENCE, wait_for
from tests.problems import assert_problem
from tests.running import RunningService

STREAMS = WORKER_THREADS // 4


@pytest.fixture(scope="module")
def service(shared_directory: Directory) -> Iterator[RunningService]:
    """It creates one hospital after another."""
    with RunningService(shared_directory.url, max_concurrent_creates=1) as running:
        yield running


@pytest.fixture(autouse=True)
def nobody_follows(service: RunningService) -> None:
    """Those who followed in the test before have left, and their places are free."""
    wait_for(lambda: "hospital_bulk_streams_open 0.0" in service.get("/metrics").text)


def started(service: RunningService, count: int, tag: str) -> str:
    """Upload a file without waiting; returns the batch's id."""
    answer = service.upload(csv_of(count, tag), {"Prefer": "respond-async"})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["batch_id"])


def status_of_stream(url: str) -> int:
    """What a stream is answered with; it is left at once."""
    with requests.get(url, stream=True, timeout=PATIENCE) as answer:
        return answer.status_code


def rolled_back(service: RunningService, batch_id: str) -> None:
    """Bring a batch to its end."""
    assert requests.delete(f"{service.url}/batches/{batch_id}", timeout=PATIENCE).json()["status"] == "rolled_back"


def test_a_batch_is_followed_from_its_beginning_to_its_end(service: RunningService, directory: Directory) -> None:
    directory.settings(create_seconds=1)
    batch_id = started(service, 4, "Followed")
    with Follower(service, batch_id) as follower:
        assert follower.answer.status_code == 200
        assert follower.answer.headers["Content-Type"].split(";")[0] == "text/event-stream"
        assert follower.answer.headers["Cache-Control"] == "no-store"
        events = list(follower)
    first, last = events[0], events[-1]
    assert (first.kind, first.data["status"]) == ("batch", "processing")
    assert [len(first.data["hospitals"]), first.data["batch_id"]] == [4, batch_id]
    assert (last.kind, last.data["status"]) == ("batch", "completed")
    assert {event.kind for event in events[1:-1]} <= {"row", "progress", "comment"}
    assert last.data == service.get(f"/batches/{batch_id}").json()
    assert_exactly_once(directory, last.data)

    rows = [event.data for event in events if event.kind == "row"]
    for number in range(1, 5):
        statuses = [row["status"] for row in rows if row["row"] == number]
        assert statuses[-1] == "created_and_activated"
        assert set(statuses[:-1]) <= {"created"}
    times = [event.seconds for event in events if event.kind == "row"]
    assert max(times) - min(times) > 0.5  # as they come


def test_what_a_batch_waits_for_is_an_event(service: RunningService, directory: Directory) -> None:
    directory.faults([{"kind": "refuse", "call": "create", "seconds": 3}])
    with Follower(service, started(service, 2, "Refused")) as follower:
        events = list(follower)
    waits = [event.data for event in events if event.kind == "progress"]
    assert "directory" in [wait["waiting_for"] for wait in waits]
    assert all("hospitals" not in wait for wait in waits)
    assert all(wait["estimated_seconds"] is not None for wait in waits)
    assert events[-1].data["status"] == "completed"


@pytest.mark.parametrize("status", ["completed", "failed", "rolled_back"])
def test_a_batch_that_has_ended_is_one_event(service: RunningService, directory: Directory, status: str) -> None:
    if status == "failed":
        directory.faults([{"kind": "error", "status": 422, "call": "create", "times": 1}])
    batch_id = service.upload(csv_of(2, f"Ended {status}")).json()["batch_id"]
    if status == "rolled_back":
        rolled_back(service, batch_id)
    with Follower(service, batch_id) as follower:
        [event] = list(follower)
    assert (event.kind, event.data["status"]) == ("batch", status)
    assert event.data == service.get(f"/batches/{batch_id}").json()


def test_a_batch_is_followed_while_it_is_rolled_back(service: RunningService, directory: Directory) -> None:
    directory.settings(create_seconds=1)
    batch_id = started(service, 6, "Stopped")
    kinds: list[Event] = []
    with Follower(service, batch_id) as follower:
        for event in follower:
            kinds.append(event)
            if event.kind == "row" and event.data["status"] == "created":
                requests.delete(f"{service.url}/batches/{batch_id}", headers={"Prefer": "respond-async"}, timeout=60)
    assert (kinds[-1].kind, kinds[-1].data["status"]) == ("batch", "rolled_back")
    assert "deleted" in [event.data["status"] for event in kinds if event.kind == "row"]


def test_a_quiet_stream_is_kept_alive_and_ends_with_the_service(directory: Directory) -> None:
    directory.settings(create_seconds=9)
    with RunningService(directory.url) as service, Follower(service, started(service, 1, "Quiet")) as follower:
        seen = []
        for event in follower:
            seen.append(event)
            if event.kind == "comment":
                service.process.send_signal(signal.SIGTERM)
        assert directory.calls("create")[0]["ended"] is None  # which the service still waits for
    before = [event.seconds for event in seen if event.kind != "comment"][-1]
    [heartbeat] = [event for event in seen if event.kind == "comment"]
    assert seen[0].kind == "batch"
    assert heartbeat.seconds - before < 10


def test_the_end_of_the_service_leaves_no_error_behind(directory: Directory) -> None:
    directory.settings(create_seconds=20)
    with RunningService(directory.url, directory_timeout_seconds=1) as service:
        with Followers(service, started(service, 1, "Cut"), 5):
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(PATIENCE) == 0
        assert "Traceback" not in service.output


def test_an_unknown_batch_is_not_followed(service: RunningService) -> None:
    assert_problem(service.get("/batches/7c9e6679-7425-40de-944b-e07fc1f90ae7/events"), 404, "There is no batch")
    for _ in range(STREAMS + 5):
        assert service.get("/batches/nothing/events").status_code == 404


def test_over_the_bound_a_stream_is_refused_and_a_place_is_free_when_somebody_leaves(
    service: RunningService, directory: Directory
) -> None:
    directory.settings(create_seconds=1)
    batch_id = started(service, 20, "Crowded")
    url = f"{service.url}/batches/{batch_id}/events"
    with Followers(service, batch_id, STREAMS - 1):
        with Follower(service, batch_id) as last:
            assert last.answer.status_code == 200
            refused = requests.get(url, timeout=PATIENCE)
            assert_problem(refused, 503, "Too many callers follow batches")
            assert int(refused.headers["Retry-After"]) > 0
            assert service.get(f"/batches/{batch_id}").status_code == 200
        wait_for(lambda: status_of_stream(url), lambda status: status != 503)
    directory.settings(create_seconds=0.01)
    rolled_back(service, batch_id)


def test_streams_of_ended_batches_take_no_place_for_long(service: RunningService, directory: Directory) -> None:
    batch_id = service.upload(csv_of(1, "Over and over")).json()["batch_id"]
    for _ in range(STREAMS + 5):
        assert service.get(f"/batches/{batch_id}/events").status_code == 200


def test_a_full_house_of_followers_does_not_slow_a_batch_or_another_caller(
    service: RunningService, directory: Directory
) -> None:
    directory.settings(create_seconds=1)
    batch_id = started(service, 20, "Watched by many")
    with Followers(service, batch_id, STREAMS):
        for _ in range(20):
            assert service.get("/health").status_code == 200
        assert service.get(f"/batches/{batch_id}").json()["status"] == "processing"
        directory.settings(create_seconds=0.01)
        status = wait_for(lambda: service.get(f"/batches/{batch_id}").json()["status"], lambda it: it != "processing")
    assert status == "completed"


def test_followers_of_one_batch_all_see_its_end(service: RunningService, directory: Directory) -> None:
    directory.settings(create_seconds=0.3)
    batch_id = started(service, 3, "Seen by all")
    ends: list[str] = []

    def follow() -> None:
        with Follower(service, batch_id) as follower:
            ends.append(list(follower)[-1].data["status"])

    threads = [threading.Thread(target=follow) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert ends == ["completed"] * 8
