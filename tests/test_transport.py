"""What happens on real connections: deadlines, lost answers, connections that were idle, and calls that are cut."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from directory_errors import DirectoryError, NotSent, OutcomeUnknown, Rejected, Stopped
from hospital_client import Hospital, HospitalClient
from settings import Settings
from tests.directory import Directory
from tests.patience import wait_for
from tests.raw_server import RawServer, http
from transport import MAX_IDLE_SECONDS

BATCH = "6f0c2a52-9d5c-4c7e-8a51-0d1f6c7b9e11"
# Of calls that are to run into it; all others have as much time as a busy machine may need.
TIMEOUT = 0.4
LONG = 60.0
# What ends by itself well before this, would go on for `LONG` if nobody saw to it.
SOON = 8.0
HOSPITAL = json.dumps({"id": 7, "name": "Alpha", "address": "1 Road", "phone": None, "active": False}).encode()


def client_of(url: str, timeout: float = LONG, stopping: threading.Event | None = None) -> HospitalClient:
    settings = Settings(
        hospital_api_base_url=url, directory_timeout_seconds=timeout, directory_retry_seconds=0.01, directory_attempts=2
    )
    return HospitalClient(settings, stopping or threading.Event())


def create(client: HospitalClient) -> Hospital:
    return client.create(BATCH, "Alpha", "1 Road", None)


def failure_of(call: Callable[[], object]) -> tuple[type[DirectoryError], float]:
    """What the call fails with, and after how many seconds."""
    started_at = time.monotonic()
    with pytest.raises(DirectoryError) as error:
        call()
    return error.type, time.monotonic() - started_at


def reset(connection: socket.socket, _: bytes = b"") -> None:
    """Close the connection with a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def hang(connection: socket.socket, _: bytes = b"") -> None:
    """Answer nothing until the other side has gone."""
    connection.recv(1)


def drip(connection: socket.socket, _: bytes) -> None:
    """Answer with a body that comes byte by byte, for a minute."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 600\r\n\r\n")
    for _byte in range(600):
        connection.sendall(b" ")
        time.sleep(0.1)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


class Clock:
    """The time as the connections see it: it stands still but for what is added to `now`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("transport.time", SimpleNamespace(monotonic=clock))
    return clock


class TestTheDeadline:
    """An answer that does not come to its end in time leaves the outcome unknown."""

    @pytest.mark.parametrize(
        "fault",
        [
            {"kind": "hang"},
            {"kind": "drip", "part": "head", "seconds": 0.2, "when": "after"},
            {"kind": "drip", "part": "body", "seconds": 0.2, "when": "after"},
        ],
        ids=["nothing comes", "the head drips", "the body drips"],
    )
    def test_it_ends_a_create(self, directory: Directory, fault: dict[str, Any]) -> None:
        directory.faults([fault | {"call": "create"}])
        error, seconds = failure_of(lambda: create(client_of(directory.url, TIMEOUT)))
        assert error is OutcomeUnknown
        assert TIMEOUT <= seconds < SOON

    def test_it_ends_a_create_whose_answer_stops_coming(self, clock: Clock) -> None:
        def answer(connection: socket.socket, _: bytes) -> None:
            clock.now += LONG - TIMEOUT  # there is little time left when the answer begins
            connection.sendall(b"HTTP/1.1 200 OK\r\n")
            hang(connection)

        with RawServer(answer) as server:
            error, seconds = failure_of(lambda: create(client_of(server.url)))
        assert error is OutcomeUnknown
        assert TIMEOUT <= seconds < SOON

    def test_it_ends_a_listing_try_by_try(self, directory: Directory) -> None:
        directory.faults([{"kind": "drip", "part": "body", "seconds": 1, "call": "list", "times": None}])
        error, seconds = failure_of(lambda: client_of(directory.url, TIMEOUT).list_batch(BATCH))
        assert error is OutcomeUnknown
        assert 2 * TIMEOUT <= seconds < SOON
        assert len(directory.calls("list")) == 2

    def test_an_answer_in_pieces_that_ends_in_time_is_read(self, directory: Directory) -> None:
        directory.faults([{"kind": "drip", "part": "head", "seconds": 0.001, "call": "create", "when": "after"}])
        assert create(client_of(directory.url)).name == "Alpha"

    def test_a_chunked_answer_is_read(self) -> None:
        half = len(HOSPITAL) // 2
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (HOSPITAL[:half], HOSPITAL[half:], b""))
        with RawServer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks) as server:
            assert create(client_of(server.url)).id == 7

    def test_after_it_the_connection_is_not_used_again(self) -> None:
        with RawServer(drip, http("200 OK", HOSPITAL)) as server:
            client = client_of(server.url, TIMEOUT)
            assert failure_of(lambda: create(client))[0] is OutcomeUnknown
            client._timeout = LONG
            assert create(client).id == 7
            assert len(server.connections) == 2

    def test_it_bounds_an_answer_that_comes_through_a_proxy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with RawServer(drip) as proxy:
            monkeypatch.delenv("NO_PROXY", raising=False)
            monkeypatch.delenv("no_proxy", raising=False)
            monkeypatch.setenv("HTTP_PROXY", proxy.url)
            monkeypatch.setenv("http_proxy", proxy.url)
            client = client_of("http://directory.test", TIMEOUT)
            error, seconds = failure_of(lambda: create(client))
            wait_for(lambda: bool(proxy.requests))
            assert proxy.requests[0].startswith(b"POST http://directory.test/hospitals/ ")
        assert error is OutcomeUnknown
        assert seconds < SOON


class TestNotSent:
    """Nothing has left when the connection was never there: it may be sent again."""

    def test_a_refused_connection(self) -> None:
        # Bound and not listening, a port refuses connections and nobody else takes it.
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            with pytest.raises(NotSent, match="could not be reached"):
                create(client_of(f"http://127.0.0.1:{closed.getsockname()[1]}"))

    def test_a_host_that_does_not_exist(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def getaddrinfo(*_: object, **__: object) -> None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        assert failure_of(lambda: create(client_of("http://directory.test")))[0] is NotSent

    def test_a_connection_that_is_not_made_in_time(self) -> None:
        # Nobody accepts: one connection fills the queue, so the next is never made.
        with socket.create_server(("127.0.0.1", 0), backlog=0) as server, socket.socket() as first:
            first.connect(server.getsockname())
            client = client_of(f"http://127.0.0.1:{server.getsockname()[1]}", TIMEOUT)
            error, seconds = failure_of(lambda: create(client))
        assert error is NotSent
        assert TIMEOUT <= seconds < SOON

    @pytest.mark.parametrize(
        "hello",
        [None, http("400 Bad Request"), reset, hang],
        ids=["is closed", "is answered in plain HTTP", "is reset", "is not answered"],
    )
    def test_a_tls_handshake_that_fails(self, hello: Any) -> None:
        with RawServer(hello) as server:
            error, seconds = failure_of(lambda: create(client_of(f"https://127.0.0.1:{server.port}", TIMEOUT)))
        assert error is NotSent
        assert seconds < SOON


class TestTheOutcomeIsUnknown:
    """What was sent may have been done, whatever became of the answer."""

    @pytest.mark.parametrize(
        "fault",
        [
            {"kind": "drop"},
            {"kind": "drop", "reset": True},
            {"kind": "drop", "bytes": 5},
            {"kind": "drop", "bytes": 30},
            {"kind": "drop", "bytes": 200},
            {"kind": "garbage", "raw": True},
            {"kind": "garbage"},
            {"kind": "late", "status": None, "seconds": 0},
            {"kind": "error", "status": 502},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("when", ["before", "after"])
    def test_an_answer_that_is_lost_or_none(self, directory: Directory, fault: dict[str, Any], when: str) -> None:
        if fault["kind"] == "late" and when == "before":
            when = "after"
        directory.faults([fault | {"call": "create", "when": when}])
        error, _ = failure_of(lambda: create(client_of(directory.url)))
        assert error is OutcomeUnknown

    @pytest.mark.parametrize(
        "answer",
        [
            None,
            reset,
            b"\r\n\r\n",
            b"SSH-2.0-OpenSSH_9.6\r\n",
            b"HTTP/1.1 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n",
            b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70_000 + b"\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            http("200 OK", HOSPITAL, "Content-Encoding: gzip"),
            http("200 OK", HOSPITAL[:-1]),
            http("999 What"),
        ],
    )
    def test_bytes_that_are_no_answer(self, answer: Any) -> None:
        with RawServer(answer) as server:
            assert failure_of(lambda: create(client_of(server.url)))[0] is OutcomeUnknown
            assert len(server.requests) == 1

    @pytest.mark.parametrize("headers", ["Content-Length: 500", "Transfer-Encoding: chunked"])
    def test_a_body_that_is_cut_short(self, headers: str) -> None:
        def answer(connection: socket.socket, _: bytes) -> None:
            body = HOSPITAL if "Length" in headers else b"%x\r\n%s\r\n" % (len(HOSPITAL), HOSPITAL)
            connection.sendall(f"HTTP/1.1 200 OK\r\n{headers}\r\n\r\n".encode() + body)
            connection.shutdown(socket.SHUT_RDWR)

        with RawServer(answer) as server:
            assert failure_of(lambda: create(client_of(server.url)))[0] is OutcomeUnknown

    @pytest.mark.parametrize("status", ["102 Processing", "103 Early Hints"])
    def test_an_answer_that_another_one_follows(self, status: str) -> None:
        with RawServer(f"HTTP/1.1 {status}\r\n\r\n".encode() + http("200 OK", HOSPITAL)) as server:
            try:
                outcome: object = create(client_of(server.url)).id
            except DirectoryError as error:
                outcome = type(error)
            assert outcome in (7, OutcomeUnknown)

    @pytest.mark.parametrize("through_a_proxy", [False, True])
    def test_what_leaves_is_noted_as_sent(self, through_a_proxy: bool) -> None:
        with RawServer(http("200 OK", HOSPITAL)) as server:
            client = client_of(server.url)
            url = "http://directory.test/hospitals/" if through_a_proxy else server.url
            client._session.proxies = {"http": server.url} if through_a_proxy else {}
            with client._adapter.call(LONG) as call:
                assert not call.sent
                client._session.post(url, timeout=LONG)
            assert call.sent


class TestRedirects:
    def test_a_redirect_is_not_followed(self) -> None:
        with RawServer(
            http("307 Temporary Redirect", b"gone", "Location: /elsewhere"), http("200 OK", HOSPITAL)
        ) as server:
            assert failure_of(lambda: create(client_of(server.url)))[0] is Rejected
            assert len(server.requests) == 1

    @pytest.mark.parametrize("location", ["", "http://", "http://[::1", "http://h:99999999/", "mailto:a", "\xff\xfe"])
    def test_a_redirect_to_nowhere_is_a_rejection_too(self, location: str) -> None:
        with RawServer(http("307 Temporary Redirect", b"", f"Location: {location}")) as server:
            assert failure_of(lambda: create(client_of(server.url)))[0] is Rejected


class TestConnections:
    def test_a_connection_is_used_again(self, clock: Clock) -> None:
        with RawServer(http("200 OK", HOSPITAL)) as server:
            client = client_of(server.url)
            for _ in range(3):
                create(client)
            assert (len(server.requests), len(server.connections)) == (3, 1)

    @pytest.mark.parametrize("answer", [http("429 Too Many Requests", b"{}"), http("404 Not Found"), http("302 Found")])
    def test_a_connection_is_used_again_after_a_refusal(self, clock: Clock, answer: bytes) -> None:
        with RawServer(answer) as server:
            client = client_of(server.url)
            for _ in range(3):
                failure_of(lambda: create(client))
            assert len(server.connections) == 1

    def test_a_connection_that_was_idle_for_long_is_not_used_again(self, clock: Clock) -> None:
        with RawServer(http("200 OK", HOSPITAL)) as server:
            client = client_of(server.url)
            create(client)
            clock.now += MAX_IDLE_SECONDS
            create(client)
            assert len(server.connections) == 2

    def test_a_connection_is_idle_from_its_last_answer_on(self, clock: Clock) -> None:
        with RawServer(http("200 OK", HOSPITAL)) as server:
            client = client_of(server.url)
            for _ in range(3):
                create(client)
                clock.now += 0.9 * MAX_IDLE_SECONDS
            create(client)
            assert len(server.connections) == 1

    def test_after_a_lost_answer_the_next_call_has_a_connection_of_its_own(self, clock: Clock) -> None:
        with RawServer(http("200 OK", HOSPITAL), None, http("200 OK", HOSPITAL)) as server:
            client = client_of(server.url)
            create(client)
            assert failure_of(lambda: create(client))[0] is OutcomeUnknown
            create(client)
            assert len(server.connections) == 2

    def test_calls_together_have_a_connection_each(self, directory: Directory, pool: ThreadPoolExecutor) -> None:
        client = client_of(directory.url)
        creates = [pool.submit(create, client) for _ in range(8)]
        assert len({future.result(LONG).id for future in creates}) == 8

    def test_no_connection_is_left_open_by_calls_that_fail(self) -> None:
        with RawServer(hang) as server:
            client = client_of(server.url, timeout=0.05)
            for _ in range(5):
                failure_of(lambda: create(client))
            wait_for(lambda: len(server.connections) == 5)
            wait_for(lambda: all(connection.fileno() == -1 for connection in server.connections))


class TestCut:
    @pytest.mark.parametrize("answer", [hang, drip, b"HTTP/1.1 200 OK\r\nContent-"])
    def test_it_ends_calls_that_are_under_way(self, pool: ThreadPoolExecutor, answer: Any) -> None:
        with RawServer(answer) as server:
            client = client_of(server.url)
            creates = [pool.submit(create, client) for _ in range(8)]
            wait_for(lambda: len(server.requests) == 8)
            client.cut()
            assert {type(future.exception(SOON)) for future in creates} == {OutcomeUnknown}

    def test_a_cut_call_is_not_made_again_when_the_service_stops(self, pool: ThreadPoolExecutor) -> None:
        stopping = threading.Event()
        with RawServer(hang) as server:
            client = client_of(server.url, stopping=stopping)
            listing = pool.submit(client.list_batch, BATCH)
            wait_for(lambda: len(server.requests) == 1)
            stopping.set()
            client.cut()
            assert type(listing.exception(SOON)) is Stopped
            assert len(server.requests) == 1

    def test_a_call_that_is_still_connecting_is_cut_too(
        self, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connecting, go_on = threading.Event(), threading.Event()
        really_connect = socket.socket.connect

        def connect(self: socket.socket, address: Any) -> None:
            connecting.set()
            assert go_on.wait(LONG)
            really_connect(self, address)

        with RawServer(hang) as server:
            client = client_of(server.url)
            monkeypatch.setattr(socket.socket, "connect", connect)
            call: Future[Hospital] = pool.submit(create, client)
            assert connecting.wait(LONG)
            client.cut()
            go_on.set()
            assert isinstance(call.exception(SOON), DirectoryError)

    def test_with_nothing_under_way_it_does_nothing(self) -> None:
        with RawServer(http("200 OK", HOSPITAL)) as server:
            client = client_of(server.url)
            client.cut()
            create(client)
            client.cut()
            assert create(client).id == 7


class TestStop:
    def test_it_ends_the_wait_for_the_next_try_at_once(self, directory: Directory, pool: ThreadPoolExecutor) -> None:
        directory.faults([{"kind": "rate_limit", "call": "list", "retry_after": 100}])
        stopping = threading.Event()
        listing = pool.submit(client_of(directory.url, stopping=stopping).list_batch, BATCH)
        wait_for(lambda: len(directory.calls("list")) == 1)
        stopping.set()
        assert type(listing.exception(SOON)) is Stopped


class TestWake:
    def test_threads_that_need_it_awake_share_one_call(self, directory: Directory, pool: ThreadPoolExecutor) -> None:
        directory.faults([{"kind": "sleep", "seconds": 0.3}])
        client = client_of(directory.url, timeout=0.05)
        told: list[DirectoryError] = []
        for future in [pool.submit(client.wake, told.append) for _ in range(8)]:
            future.result(LONG)
        assert len(directory.calls("root")) == 1
        assert told == []

    def test_a_sleeper_that_answers_503_is_asked_until_it_is_up(self, directory: Directory) -> None:
        directory.faults([{"kind": "sleep", "seconds": 0.1, "status": 503}])
        told: list[DirectoryError] = []
        client_of(directory.url).wake(told.append)
        assert told
        assert [call["status"] for call in directory.calls("root")] == [*[503] * len(told), 200]
