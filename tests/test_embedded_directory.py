"""The embedded directory, over real sockets: it must answer, limit, delay and fail as it is told."""

import http.client
import json
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from random import Random
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from pydantic import TypeAdapter

from embedded_directory.faults import Fault, Faults
from embedded_directory.journal import kind_of
from embedded_directory.limits import FixedWindows, Limit
from embedded_directory.settings import SettingsError, read_settings
from tests.directory import Directory
from tests.patience import PATIENCE, wait_for

BATCH = "6f1d6a53-5b0e-4a52-9d35-7f0f2f7c1f0e"
OTHER_BATCH = "0a6f0d0e-8d4b-4a0c-8a43-3c0d0c3f9b11"
NOBODY = {"detail": "No hospitals found with the specified batch ID"}
NOT_FOUND = {"detail": "Hospital not found"}
ALREADY_ACTIVE = {"detail": "Cannot activate batch: one or more hospitals in the batch are already active"}
FULL = {"detail": "Batch cannot exceed 20 hospitals"}
# What is over at once would otherwise last so long.
LONG = 3600
# A test sees what lasts so long, also when it is not let run for a while.
A_WHILE = 2.0
FAULT_LIST: TypeAdapter[list[Fault]] = TypeAdapter(list[Fault])


@pytest.fixture(scope="module")
def running() -> Iterator[Directory]:
    with Directory(create_seconds=0, keep_alive_seconds=LONG) as directory:
        yield directory


@pytest.fixture
def directory(running: Directory) -> Directory:
    """A directory that is empty, answers at once and limits nothing."""
    running.reset()
    return running


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(60) as executor:
        yield executor


def call(
    directory: Directory, method: str, path: str, body: Any = None, timeout: float = PATIENCE
) -> requests.Response:
    return requests.request(method, directory.url + path, json=body, timeout=timeout, allow_redirects=False)


def hospital(batch_id: str | None = BATCH, **changes: Any) -> dict[str, Any]:
    return {"name": "Mercy", "address": "1 Elm St", "phone": None, "creation_batch_id": batch_id} | changes


def create(directory: Directory, batch_id: str | None = BATCH, timeout: float = PATIENCE) -> requests.Response:
    return call(directory, "POST", "/hospitals/", hospital(batch_id), timeout)


def fill(directory: Directory, count: int, batch_id: str | None = BATCH) -> None:
    for _ in range(count):
        assert create(directory, batch_id).status_code == 200


def elapsed(action: Callable[[], object]) -> float:
    started = time.monotonic()
    action()
    return time.monotonic() - started


def connect(directory: Directory) -> socket.socket:
    address = urlsplit(directory.url)
    return socket.create_connection((address.hostname, address.port), timeout=PATIENCE)


def request_bytes(batch_id: str | None = BATCH) -> bytes:
    body = json.dumps(hospital(batch_id)).encode()
    head = f"POST /hospitals/ HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


class TestAnswers:
    def test_the_root_says_ok(self, directory: Directory) -> None:
        response = call(directory, "GET", "/")
        assert (response.status_code, response.json()) == (200, {"status": "OK"})

    @pytest.mark.parametrize(("batch_id", "active"), [(BATCH, False), (None, True)])
    def test_a_create_answers_200_with_the_hospital(
        self, directory: Directory, batch_id: str | None, active: bool
    ) -> None:
        response = create(directory, batch_id)
        created = response.json()
        created_at = datetime.fromisoformat(created.pop("created_at"))
        assert response.status_code == 200
        assert created == {"id": 1, **hospital(batch_id), "active": active}
        assert created_at.tzinfo is None

    def test_values_are_kept_as_sent(self, directory: Directory) -> None:
        sent = hospital(name=" St. Ödön \u2028", address="x" * 10_000, phone="")
        created = call(directory, "POST", "/hospitals/", sent).json()
        assert created == created | sent

    def test_phone_and_batch_may_be_left_out(self, directory: Directory) -> None:
        created = call(directory, "POST", "/hospitals/", {"name": "A", "address": "B"}).json()
        assert (created["phone"], created["creation_batch_id"]) == (None, None)

    @pytest.mark.parametrize(
        ("body", "where"),
        [
            ({"address": "B"}, ["body", "name"]),
            (hospital(name=""), ["body", "name"]),
            (hospital(name=" \t\n\u3000"), ["body", "name"]),
            (hospital(name=None), ["body", "name"]),
            (hospital(address=" "), ["body", "address"]),
            (hospital(phone=5), ["body", "phone"]),
            (hospital("no-uuid"), ["body", "creation_batch_id"]),
            (None, ["body"]),
        ],
    )
    def test_an_invalid_create_is_422_at_once(self, directory: Directory, body: Any, where: list[str]) -> None:
        directory.settings(create_seconds=LONG)
        response = call(directory, "POST", "/hospitals/", body)
        (problem,) = response.json()["detail"]
        assert response.status_code == 422
        assert problem["loc"] == where
        assert {"type", "loc", "msg", "input"} <= problem.keys()

    @pytest.mark.parametrize(
        ("method", "path", "status", "body"),
        [
            ("GET", "/hospitals/", 200, []),
            ("GET", "/hospitals/7", 404, NOT_FOUND),
            ("PUT", "/hospitals/7", 404, NOT_FOUND),
            ("DELETE", "/hospitals/7", 404, NOT_FOUND),
            ("GET", f"/hospitals/batch/{BATCH}", 404, NOBODY),
            ("DELETE", f"/hospitals/batch/{BATCH}", 404, NOBODY),
            ("PATCH", f"/hospitals/batch/{BATCH}/activate", 404, NOBODY),
            ("GET", "/nowhere", 404, {"detail": "Not Found"}),
            ("PATCH", "/hospitals/", 405, {"detail": "Method Not Allowed"}),
            ("POST", f"/hospitals/batch/{BATCH}", 405, {"detail": "Method Not Allowed"}),
        ],
    )
    def test_an_empty_directory(self, directory: Directory, method: str, path: str, status: int, body: Any) -> None:
        response = call(directory, method, path, hospital() if method == "PUT" else None)
        assert (response.status_code, response.json()) == (status, body)

    @pytest.mark.parametrize(
        ("method", "path", "name"),
        [
            ("GET", "/hospitals/x", "hospital_id"),
            ("PUT", "/hospitals/x", "hospital_id"),
            ("DELETE", "/hospitals/x", "hospital_id"),
            ("GET", "/hospitals/batch/x", "batch_id"),
            ("DELETE", "/hospitals/batch/x", "batch_id"),
            ("PATCH", "/hospitals/batch/x/activate", "batch_id"),
        ],
    )
    def test_an_id_of_the_wrong_form_is_422(self, directory: Directory, method: str, path: str, name: str) -> None:
        response = call(directory, method, path, hospital())
        assert response.status_code == 422
        assert [problem["loc"] for problem in response.json()["detail"]] == [["path", name]]

    def test_a_create_without_the_slash_is_redirected(self, directory: Directory) -> None:
        response = call(directory, "POST", "/hospitals", hospital())
        assert (response.status_code, response.headers["location"]) == (307, directory.url + "/hospitals/")
        assert directory.hospitals() == []

    def test_one_hospital_is_read_changed_and_deleted(self, directory: Directory) -> None:
        created = create(directory).json()
        assert call(directory, "GET", "/hospitals/1").json() == created

        changes = {"name": "New", "address": "2 Oak Ave", "phone": "555"}
        sent = changes | {"active": True, "creation_batch_id": OTHER_BATCH, "id": 9}
        changed = call(directory, "PUT", "/hospitals/1", sent)
        assert (changed.status_code, changed.json()) == (200, created | changes)
        assert directory.hospitals() == [created | changes]

        deleted = call(directory, "DELETE", "/hospitals/1")
        assert (deleted.status_code, deleted.content) == (204, b"")
        assert call(directory, "GET", "/hospitals/1").json() == NOT_FOUND

    def test_listings_hold_all_or_one_batch(self, directory: Directory) -> None:
        for batch_id in (BATCH, OTHER_BATCH, None):
            fill(directory, 2, batch_id)
        everything = call(directory, "GET", "/hospitals/").json()
        one_batch = call(directory, "GET", f"/hospitals/batch/{OTHER_BATCH.upper()}").json()
        assert [listed["id"] for listed in everything] == [1, 2, 3, 4, 5, 6]
        assert [listed["id"] for listed in one_batch] == [3, 4]

    def test_a_batch_is_activated_once_and_for_all(self, directory: Directory) -> None:
        fill(directory, 3)
        fill(directory, 1, OTHER_BATCH)
        activated = call(directory, "PATCH", f"/hospitals/batch/{BATCH}/activate")
        assert (activated.status_code, activated.json()["activated_count"]) == (200, 3)
        assert isinstance(activated.json()["message"], str)

        fill(directory, 1)
        again = call(directory, "PATCH", f"/hospitals/batch/{BATCH}/activate")
        assert (again.status_code, again.json()) == (400, ALREADY_ACTIVE)
        assert [held["active"] for held in directory.hospitals(BATCH)] == [True, True, True, False]
        assert [held["active"] for held in directory.hospitals(OTHER_BATCH)] == [False]

    def test_a_batch_is_deleted_with_its_active_hospitals(self, directory: Directory) -> None:
        fill(directory, 2)
        fill(directory, 1, OTHER_BATCH)
        call(directory, "PATCH", f"/hospitals/batch/{BATCH}/activate")
        deleted = call(directory, "DELETE", f"/hospitals/batch/{BATCH}")
        assert (deleted.status_code, deleted.json()["deleted_count"]) == (200, 2)
        assert isinstance(deleted.json()["message"], str)
        assert call(directory, "GET", f"/hospitals/batch/{BATCH}").json() == NOBODY
        assert [held["id"] for held in directory.hospitals()] == [3]


class TestTheBatchCap:
    def test_the_21st_is_refused_at_once(self, directory: Directory) -> None:
        fill(directory, 20)
        directory.settings(create_seconds=LONG)
        response = create(directory)
        assert (response.status_code, response.json()) == (400, FULL)

    def test_creates_that_come_together_all_pass_it(self, directory: Directory, pool: ThreadPoolExecutor) -> None:
        directory.settings(create_seconds=A_WHILE)
        answers = list(pool.map(lambda _: create(directory).status_code, range(25)))
        assert answers == [200] * 25
        assert len(directory.hospitals(BATCH)) == 25

    @pytest.mark.parametrize(("batch_id", "size"), [(None, 2), (BATCH, 0)])
    def test_without_a_batch_or_a_cap_there_is_none(
        self, directory: Directory, batch_id: str | None, size: int
    ) -> None:
        directory.settings(batch_size=size)
        fill(directory, 22, batch_id)

    def test_a_deleted_hospital_makes_room(self, directory: Directory) -> None:
        directory.settings(batch_size=2)
        fill(directory, 2)
        call(directory, "DELETE", "/hospitals/1")
        assert create(directory).status_code == 200


class TestTime:
    def test_a_create_takes_its_time_and_a_read_its_own(self, directory: Directory) -> None:
        directory.settings(create_seconds=0.3, read_seconds=LONG)
        assert elapsed(lambda: create(directory)) >= 0.3
        directory.settings(create_seconds=LONG, read_seconds=0.1)
        assert elapsed(lambda: call(directory, "GET", "/")) >= 0.1

    def test_many_creates_in_flight_take_as_long_as_one(self, directory: Directory) -> None:
        directory.settings(create_seconds=A_WHILE, threads=0, batch_size=0)
        connections = [connect(directory) for _ in range(300)]
        started = time.monotonic()
        for connection in connections:
            connection.sendall(request_bytes())
        answers = [connection.recv(12) for connection in connections]
        took = time.monotonic() - started
        for connection in connections:
            connection.close()
        assert answers == [b"HTTP/1.1 200"] * 300
        # On as many threads as the deployed directory has, they would take eight times as long as one.
        assert took < 5 * A_WHILE

    def test_creates_and_reads_share_a_bounded_pool(self, directory: Directory, pool: ThreadPoolExecutor) -> None:
        directory.settings(create_seconds=0.4, threads=2)
        creates = [pool.submit(create, directory) for _ in range(4)]
        wait_for(lambda: len(directory.calls("create")) == 4)
        call(directory, "GET", "/hospitals/")
        assert [future.result().status_code for future in creates] == [200] * 4
        ended = sorted(create["ended"] for create in directory.calls("create"))
        assert ended[2] - ended[0] > 0.3
        assert directory.calls("list_all")[0]["ended"] >= ended[2]

    def test_a_create_commits_although_its_caller_has_gone(self, directory: Directory) -> None:
        directory.settings(create_seconds=A_WHILE)
        with pytest.raises(requests.ReadTimeout):
            create(directory, timeout=0.1)
        assert directory.hospitals() == []
        wait_for(lambda: len(directory.hospitals()) == 1)
        wait_for(lambda: directory.calls()[0]["ended"] is not None)
        assert directory.calls()[0]["status"] is None

    def test_a_connection_idle_for_too_long_is_closed(self, directory: Directory) -> None:
        directory.settings(keep_alive_seconds=0.3)
        with connect(directory) as connection:
            started = time.monotonic()
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert _read_all(connection).startswith(b"HTTP/1.1 200")
            assert time.monotonic() - started >= 0.3

    def test_the_oldest_hospital_is_dropped_first(self, directory: Directory) -> None:
        directory.settings(max_hospitals=3)
        fill(directory, 2, OTHER_BATCH)
        fill(directory, 3)
        assert [held["id"] for held in directory.hospitals()] == [3, 4, 5]
        assert call(directory, "GET", f"/hospitals/batch/{OTHER_BATCH}").json() == NOBODY


class TestLimits:
    @pytest.mark.parametrize(
        ("times", "admitted"),
        [
            ([0, 1, 2], [True, True, False]),
            ([0, 59.9, 59.95, 60], [True, True, False, True]),
            ([0, 59, 60, 61, 62], [True, True, True, True, False]),
            ([5, 64.9, 64.95, 65, 124, 124.9, 125], [True, True, False, True, True, False, True]),
        ],
    )
    def test_a_window_starts_with_its_first_call(self, times: list[float], admitted: list[bool]) -> None:
        windows, limit = FixedWindows(), Limit(2, 60)
        assert [windows.admit(("me", "create"), limit, now) for now in times] == admitted

    def test_every_key_has_a_window_of_its_own(self) -> None:
        windows, limit = FixedWindows(), Limit(1, 60)
        keys = [("me", "/a"), ("me", "/b"), ("you", "/a"), ("me", "/a")]
        assert [windows.admit(key, limit, 0) for key in keys] == [True, True, True, False]

    def test_ended_windows_are_forgotten(self) -> None:
        windows, limit = FixedWindows(), Limit(1, 60)
        for number in range(20_000):
            windows.admit(("me", f"/{number}"), limit, number)
        assert len(windows._windows) <= 10_000

    @pytest.mark.parametrize(
        ("limit", "words"),
        [
            ("30/60", "30 per 1 minute"),
            ("5/120", "5 per 2 minute"),
            ("1/3600", "1 per 1 hour"),
            ("9/86400", "9 per 1 day"),
            ("7/90", "7 per 90 second"),
            ("3/0.5", "3 per 0.5 second"),
        ],
    )
    def test_a_limit_is_worded_as_the_deployed_directory_words_it(self, limit: str, words: str) -> None:
        assert str(Limit.parse(limit)) == words

    def test_a_create_over_the_limit_is_429_until_the_window_ends(self, directory: Directory) -> None:
        directory.settings(create_limit="3/2")
        fill(directory, 3)
        response = create(directory)
        assert (response.status_code, response.json()) == (
            429,
            {"error": "Rate limit exceeded: 3 per 2 second"},
        )
        assert "retry-after" not in response.headers
        time.sleep(2)
        assert create(directory).status_code == 200
        assert len(directory.hospitals()) == 4

    def test_400_counts_and_422_does_not(self, directory: Directory) -> None:
        directory.settings(create_limit="3/60", batch_size=1)
        bodies = [hospital(name=""), hospital(), hospital(name=""), hospital(), hospital(), hospital()]
        answers = [call(directory, "POST", "/hospitals/", body).status_code for body in bodies]
        assert answers == [422, 200, 422, 400, 400, 429]

    def test_other_calls_are_counted_for_each_path(self, directory: Directory) -> None:
        directory.settings(other_limit="2/60", root_limit="3/60", create_limit="1/60")
        mine, other = f"/hospitals/batch/{BATCH}", f"/hospitals/batch/{OTHER_BATCH}"
        calls = [
            ("GET", mine, 404),
            ("DELETE", mine, 404),
            ("GET", mine, 429),
            ("DELETE", mine, 429),
            ("GET", other, 404),
            ("PATCH", f"{mine}/activate", 404),
            ("GET", "/hospitals/1", 404),
            ("DELETE", "/hospitals/1", 404),
            ("PUT", "/hospitals/1", 429),
            ("GET", "/hospitals/2", 404),
            ("GET", "/hospitals/", 200),
            ("GET", "/hospitals/", 200),
            ("GET", "/hospitals/", 429),
            ("POST", "/hospitals/", 200),
            ("POST", "/hospitals/", 429),
            ("GET", "/", 200),
            ("GET", "/", 200),
            ("GET", "/", 200),
            ("GET", "/", 429),
        ]
        answers = [call(directory, method, path, hospital()).status_code for method, path, _ in calls]
        assert answers == [status for _, _, status in calls]

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8")
    def test_every_client_address_is_counted_by_itself(self, directory: Directory) -> None:
        directory.settings(root_limit="1/60")
        assert [_root_from(directory, f"127.0.0.{n}") for n in (1, 2, 1, 2)] == [200, 200, 429, 429]


class TestFaultRules:
    @pytest.mark.parametrize(
        ("rule", "fired"),
        [
            ({}, "x----"),
            ({"times": None}, "xxxxx"),
            ({"times": 2, "skip": 1}, "-xx--"),
            ({"probability": 0, "times": None}, "-----"),
            ({"call": "create"}, "x----"),
            ({"call": "list", "times": None}, "-----"),
            ({"batch_id": BATCH, "times": None}, "xxxxx"),
            ({"batch_id": OTHER_BATCH, "times": None}, "-----"),
        ],
    )
    def test_a_rule_fires_when_it_says(self, rule: dict[str, Any], fired: str) -> None:
        faults = Faults(FAULT_LIST.validate_python([{"kind": "drop"} | rule]))
        picked = [faults.pick("create", uuid.UUID(BATCH)) for _ in fired]
        assert "".join("x" if fault else "-" for fault in picked) == fired

    def test_one_rule_fires_for_a_call_and_the_first_comes_first(self) -> None:
        faults = Faults(FAULT_LIST.validate_python([{"kind": "drop"}, {"kind": "error"}]))
        picked = [faults.pick("create", None) for _ in range(3)]
        assert [fault and fault.kind for fault in picked] == ["drop", "error", None]

    def test_a_seed_repeats_the_same_faults(self) -> None:
        rules = FAULT_LIST.validate_python([{"kind": "drop", "probability": 0.5, "times": None}])
        one, two = ([Faults(rules, 7).pick("create", None) for _ in range(50)] for _ in range(2))
        faults, random = Faults(rules, 7), Random(7)
        assert one == two
        assert [bool(faults.pick("create", None)) for _ in range(50)] == [random.random() < 0.5 for _ in range(50)]

    @pytest.mark.parametrize(
        ("method", "path", "kind"),
        [
            ("GET", "/", "root"),
            ("POST", "/hospitals/", "create"),
            ("GET", "/hospitals/", "list_all"),
            ("GET", "/hospitals/1", "get_one"),
            ("PUT", "/hospitals/1", "update_one"),
            ("DELETE", "/hospitals/1", "delete_one"),
            ("GET", f"/hospitals/batch/{BATCH}", "list"),
            ("DELETE", f"/hospitals/batch/{BATCH}", "delete_batch"),
            ("PATCH", f"/hospitals/batch/{BATCH}/activate", "activate"),
            ("POST", "/hospitals", "other"),
            ("PATCH", f"/hospitals/batch/{BATCH}", "other"),
        ],
    )
    def test_calls_have_names(self, method: str, path: str, kind: str) -> None:
        assert kind_of(method, path) == kind


GONE = requests.ConnectionError
BROKEN_OFF = requests.exceptions.ChunkedEncodingError
SLOW = requests.ReadTimeout


class TestFaults:
    @pytest.mark.parametrize("when", ["before", "after"])
    @pytest.mark.parametrize(
        ("fault", "outcome"),
        [
            ({"kind": "drop"}, GONE),
            ({"kind": "drop", "reset": True}, GONE),
            ({"kind": "drop", "bytes": 10}, GONE),
            ({"kind": "error"}, 500),
            ({"kind": "error", "status": 502}, 502),
            ({"kind": "hang"}, SLOW),
            ({"kind": "hang", "seconds": 0.1}, GONE),
            ({"kind": "drip", "part": "head"}, SLOW),
            ({"kind": "garbage"}, 200),
            ({"kind": "garbage", "body": "[]"}, 200),
            ({"kind": "garbage", "raw": True}, GONE),
            ({"kind": "refuse", "seconds": 0.1}, GONE),
        ],
    )
    def test_a_fault_hits_the_answer_of_a_create_that_is_or_is_not_done(
        self, directory: Directory, fault: dict[str, Any], outcome: type[Exception] | int, when: str
    ) -> None:
        directory.faults([fault | {"call": "create", "when": when}])
        assert _outcome(lambda: create(directory, timeout=0.4 if outcome is SLOW else PATIENCE)) == outcome
        wait_for(lambda: _is_reachable(directory))
        wait_for(lambda: len(directory.calls("create")) == 1)
        assert len(directory.hospitals()) == (1 if when == "after" else 0)
        assert directory.calls("create")[0]["fault"] == fault["kind"]
        assert create(directory).status_code == 200

    @pytest.mark.parametrize(
        ("method", "path", "kind"),
        [
            ("GET", "/", "root"),
            ("GET", f"/hospitals/batch/{BATCH}", "list"),
            ("PATCH", f"/hospitals/batch/{BATCH}/activate", "activate"),
            ("DELETE", f"/hospitals/batch/{BATCH}", "delete_batch"),
            ("DELETE", "/hospitals/1", "delete_one"),
        ],
    )
    def test_any_call_can_be_hit_before_and_after(
        self, directory: Directory, method: str, path: str, kind: str
    ) -> None:
        fill(directory, 1)
        untouched = directory.hospitals()
        directory.faults([{"kind": "error", "call": kind}, {"kind": "drop", "call": kind, "when": "after"}])
        assert call(directory, method, path).status_code == 500
        assert directory.hospitals() == untouched
        with pytest.raises(GONE):
            call(directory, method, path)
        assert (directory.hospitals() == untouched) == (method == "GET")

    def test_only_the_batch_of_the_rule_is_hit(self, directory: Directory) -> None:
        directory.faults([{"kind": "error", "batch_id": OTHER_BATCH, "times": None}])
        assert [create(directory, batch_id).status_code for batch_id in (BATCH, OTHER_BATCH)] == [200, 500]
        assert call(directory, "GET", f"/hospitals/batch/{OTHER_BATCH}").status_code == 500

    def test_an_error_may_say_when_to_come_back(self, directory: Directory) -> None:
        directory.faults([{"kind": "error", "status": 503, "retry_after": 7}])
        assert create(directory).headers["retry-after"] == "7"

    @pytest.mark.parametrize("body", ["<p>Welcome</p>", "[]", '{"id": "seven"}', ""])
    def test_garbage_is_what_the_rule_says(self, directory: Directory, body: str) -> None:
        directory.faults([{"kind": "garbage", "body": body}])
        assert create(directory).text == body

    def test_an_answer_may_break_off_in_its_body(self, directory: Directory) -> None:
        directory.faults([{"kind": "drop", "when": "after", "bytes": 150}])
        assert _outcome(lambda: create(directory)) is BROKEN_OFF

    @pytest.mark.parametrize("part", ["head", "body"])
    def test_a_dripping_answer_is_whole_in_the_end(self, directory: Directory, part: str) -> None:
        directory.faults([{"kind": "drip", "when": "after", "part": part, "seconds": 0.002}])
        answers: list[requests.Response] = []
        assert elapsed(lambda: answers.append(create(directory))) > 0.1
        assert [answers[0].json()] == directory.hospitals()

    def test_a_dripping_body_never_times_out_a_read(self, directory: Directory) -> None:
        directory.faults([{"kind": "drip", "when": "after", "seconds": 0.03}])
        assert elapsed(lambda: create(directory, timeout=2.5)) > 3

    @pytest.mark.parametrize(("status", "outcome"), [(500, 500), (502, 502), (None, GONE)])
    def test_a_late_create_commits_after_its_answer(
        self, directory: Directory, status: int | None, outcome: type[Exception] | int
    ) -> None:
        directory.faults([{"kind": "late", "status": status, "seconds": 1.5}])
        assert _outcome(lambda: create(directory)) == outcome
        assert directory.hospitals() == []
        wait_for(lambda: bool(directory.hospitals()))

    @pytest.mark.parametrize("retry_after", [None, "3"])
    def test_a_429_may_come_although_the_window_is_open(self, directory: Directory, retry_after: str | None) -> None:
        directory.settings(create_limit="30/60")
        directory.faults([{"kind": "rate_limit", "times": 2, "retry_after": retry_after}])
        refused = create(directory)
        assert (refused.status_code, refused.json()) == (429, {"error": "Rate limit exceeded: 30 per 1 minute"})
        assert refused.headers.get("retry-after") == retry_after
        assert [create(directory).status_code for _ in range(2)] == [429, 200]

    def test_while_it_sleeps_every_call_waits(self, directory: Directory, pool: ThreadPoolExecutor) -> None:
        directory.faults([{"kind": "sleep", "seconds": A_WHILE}])
        started = time.monotonic()
        waking = pool.submit(call, directory, "GET", "/")
        wait_for(lambda: len(directory.calls()) == 1)
        assert create(directory).status_code == 200
        assert waking.result().status_code == 200
        assert time.monotonic() - started >= A_WHILE
        assert create(directory).status_code == 200
        assert [made["fault"] for made in directory.calls("create")] == ["sleep", None]

    def test_or_it_is_answered_for_until_it_is_awake(self, directory: Directory) -> None:
        directory.faults([{"kind": "sleep", "seconds": A_WHILE, "status": 503}])
        assert [create(directory).status_code for _ in range(3)] == [503] * 3
        time.sleep(A_WHILE)
        assert create(directory).status_code == 200
        assert len(directory.hospitals()) == 1

    def test_a_lost_create_is_answered_and_not_there(self, directory: Directory) -> None:
        directory.faults([{"kind": "lose"}])
        assert [create(directory).json()["id"] for _ in range(2)] == [1, 2]
        assert [held["id"] for held in directory.hospitals()] == [2]

    @pytest.mark.parametrize("status", [500, 200])
    def test_half_of_a_batch_is_activated(self, directory: Directory, status: int) -> None:
        fill(directory, 5)
        directory.faults([{"kind": "half_activate", "status": status}])
        response = call(directory, "PATCH", f"/hospitals/batch/{BATCH}/activate")
        assert response.status_code == status
        assert [held["active"] for held in directory.hospitals()] == [True, True, False, False, False]
        if status == 200:
            assert response.json()["activated_count"] == 2

    def test_refusing_closes_what_is_open_and_lets_nobody_in(self, directory: Directory) -> None:
        with connect(directory) as idle:
            directory.faults([{"kind": "refuse", "call": "root", "seconds": A_WHILE}])
            assert _outcome(lambda: call(directory, "GET", "/")) is GONE
            assert _read_all(idle) == b""
            with pytest.raises(ConnectionRefusedError):
                connect(directory)
        wait_for(lambda: _is_reachable(directory))
        assert create(directory).status_code == 200

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_a_restart_forgets_everything(self, directory: Directory, pool: ThreadPoolExecutor, when: str) -> None:
        directory.settings(create_limit="2/60")
        fill(directory, 1)
        directory.settings(create_seconds=A_WHILE)
        in_flight = pool.submit(create, directory)
        wait_for(lambda: len(directory.calls("create")) == 2)
        directory.faults([{"kind": "restart", "when": when, "call": "root"}])
        assert _outcome(lambda: call(directory, "GET", "/")) is GONE
        assert isinstance(in_flight.exception(), GONE)
        assert directory.hospitals() == []
        directory.settings(create_seconds=0)
        assert create(directory).json()["id"] == 1
        wait_for(lambda: directory.calls("create")[1]["ended"] is not None)
        assert len(directory.hospitals()) == 1

    def test_a_restart_may_take_its_time(self, directory: Directory) -> None:
        directory.faults([{"kind": "restart", "seconds": A_WHILE}])
        assert _outcome(lambda: create(directory)) is GONE
        assert not _is_reachable(directory)
        wait_for(lambda: _is_reachable(directory))


class TestControl:
    def test_the_journal_has_every_call_of_the_api(self, directory: Directory) -> None:
        began = time.time()
        create(directory)
        directory.faults([{"kind": "drop"}])
        _outcome(lambda: call(directory, "GET", f"/hospitals/batch/{BATCH}"))
        first, second = directory.calls()
        assert began <= first.pop("started") <= first.pop("ended") <= second.pop("started") <= second.pop("ended")
        path = "/hospitals/"
        expected = {"kind": "create", "method": "POST", "path": path, "batch_id": BATCH, "status": 200}
        assert first == expected | {"fault": None}
        path = f"/hospitals/batch/{BATCH}"
        expected = {"kind": "list", "method": "GET", "path": path, "batch_id": BATCH, "status": None}
        assert second == expected | {"fault": "drop"}
        assert len(directory.calls("list")) == 1
        directory.forget_calls()
        assert directory.calls() == []

    def test_a_call_in_flight_is_in_the_journal(self, directory: Directory, pool: ThreadPoolExecutor) -> None:
        directory.settings(create_seconds=A_WHILE)
        future = pool.submit(create, directory)
        wait_for(lambda: len(directory.calls()) == 1)
        assert (directory.calls()[0]["status"], directory.calls()[0]["ended"]) == (None, None)
        assert future.result().status_code == 200

    def test_faults_and_limits_do_not_reach_it(self, directory: Directory) -> None:
        directory.settings(other_limit="1/60")
        directory.faults([{"kind": "error", "times": None}])
        for _ in range(3):
            assert directory.hospitals() == []
        requests.delete(directory.url + "/_embedded/faults", timeout=PATIENCE).raise_for_status()
        assert create(directory).status_code == 200

    def test_a_reset_goes_back_to_the_start(self, directory: Directory) -> None:
        directory.settings(batch_size=1, create_limit="1/60")
        fill(directory, 1)
        directory.faults([{"kind": "error", "times": None}])
        directory.reset(max_hospitals=1)
        assert (directory.hospitals(), directory.calls()) == ([], [])
        fill(directory, 2)
        assert [held["id"] for held in directory.hospitals()] == [2]

    @pytest.mark.parametrize(
        "changes", [{"port": 1}, {"typo": 1}, {"create_limit": "lots"}, {"threads": -1}, {"create_seconds": "x"}]
    )
    def test_a_wrong_setting_is_refused(self, directory: Directory, changes: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=f"422.*{next(iter(changes))}"):
            directory.settings(**changes)

    @pytest.mark.parametrize(
        "rule",
        [
            {},
            {"kind": "typo"},
            {"kind": "drop", "seconds": 1},
            {"kind": "lose", "when": "before"},
            {"kind": "lose", "call": "list"},
            {"kind": "sleep", "when": "after"},
            {"kind": "error", "status": 99},
            {"kind": "hang", "seconds": -1},
            {"kind": "drop", "times": 0},
        ],
    )
    def test_a_wrong_rule_is_refused(self, directory: Directory, rule: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="422"):
            directory.faults([rule])


class TestTheProcess:
    def test_the_defaults_are_those_of_the_deployed_directory(self) -> None:
        settings = read_settings({"PATH": "/bin"})
        limits = [str(limit) for limit in (settings.create_limit, settings.other_limit, settings.root_limit)]
        assert limits == ["30 per 1 minute", "50 per 1 minute", "100 per 1 minute"]
        assert (settings.host, settings.port, settings.create_seconds) == ("127.0.0.1", 9000, 5)
        assert (settings.batch_size, settings.threads, settings.max_hospitals) == (20, 40, 10_000)

    @pytest.mark.parametrize(
        ("name", "value", "sentence"),
        [
            ("PORT", "65536", "_PORT must be a port from 0 to 65535, where 0 picks a free one, not '65536'"),
            ("CREATE_SECONDS", "-1", "_CREATE_SECONDS must be seconds, from 0 to 86400, not '-1'"),
            ("READ_SECONDS", "nan", "_READ_SECONDS must be seconds, from 0 to 86400, not 'nan'"),
            ("CREATE_LIMIT", "30", "_CREATE_LIMIT must be COUNT/SECONDS, such as 30/60, or empty for none, not '30'"),
            ("OTHER_LIMIT", "0/60", "the count is at least 1"),
            ("THREADS", "", "_THREADS must be a whole number from 0, which means no bound, not ''"),
            ("FAULTS", "[{", "_FAULTS must be a JSON array of fault rules, not"),
            ("FAULTS", '[{"kind": "drop", "when": "now"}]', "0: drop: when: Input should be 'before' or 'after'"),
            ("TYPO", "1", "EMBEDDED_DIRECTORY_TYPO is no setting; there are EMBEDDED_DIRECTORY_CREATE_SECONDS,"),
        ],
    )
    def test_a_wrong_variable_is_refused_with_a_sentence(self, name: str, value: str, sentence: str) -> None:
        with pytest.raises(SettingsError) as refusal:
            read_settings({"EMBEDDED_DIRECTORY_" + name: value})
        assert sentence in str(refusal.value)

    def test_a_wrong_start_says_why(self, directory: Directory) -> None:
        with pytest.raises(RuntimeError, match="did not start: EMBEDDED_DIRECTORY_THREADS must be"):
            Directory(threads="many")
        port = urlsplit(directory.url).port
        with pytest.raises(RuntimeError, match=rf"Cannot listen on 127\.0\.0\.1:{port}: Address already in use"):
            Directory(port=port)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_ends_it_at_once(self, pool: ThreadPoolExecutor, number: signal.Signals) -> None:
        faults = [{"kind": "hang", "call": "root"}, {"kind": "late", "call": "list", "seconds": LONG}]
        directory = Directory(create_seconds=LONG, faults=faults)
        futures: list[Future[requests.Response]] = [pool.submit(create, directory) for _ in range(20)]
        futures.append(pool.submit(call, directory, "GET", "/"))
        call(directory, "GET", f"/hospitals/batch/{BATCH}")
        with connect(directory):
            wait_for(lambda: len(directory.calls()) == 22)
            # Not by SIGKILL, which it gets after a while.
            assert directory.end(number) == 0
        assert {type(future.exception()) for future in futures} == {GONE}
        assert directory.output == f"Embedded Hospital Directory on {directory.url}\n"


def _outcome(action: Callable[[], requests.Response]) -> type[Exception] | int:
    """Return the status of an answer, or what came instead of one."""
    try:
        return action().status_code
    except requests.RequestException as error:
        return type(error)


def _is_reachable(directory: Directory) -> bool:
    try:
        connect(directory).close()
    except ConnectionRefusedError:
        return False
    return True


def _read_all(connection: socket.socket) -> bytes:
    """Read until the other side closes or resets the connection."""
    try:
        return b"".join(iter(lambda: connection.recv(4096), b""))
    except ConnectionResetError:
        return b""


def _root_from(directory: Directory, address: str) -> int:
    """Call the root from this address and return the status."""
    url = urlsplit(directory.url)
    connection = http.client.HTTPConnection(url.netloc, timeout=PATIENCE, source_address=(address, 0))
    try:
        connection.request("GET", "/")
        return connection.getresponse().status
    finally:
        connection.close()
