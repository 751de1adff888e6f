"""Clients that take their time, over real sockets: nobody else waits for them, and they do not get for ever."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import count

import pytest

from serving.connection import MAX_UNSENT_BYTES, AnswerSocket
from serving.reception import Patience
from settings import WORKER_THREADS
from tests.directory import Directory
from tests.hospitals import csv_of
from tests.odd_files import MEBIBYTE, multipart, part, rows
from tests.patience import PATIENCE
from tests.problems import assert_problem
from tests.quick_worker import QUICK
from tests.raw_http import RawClient, chunked, post
from tests.running import RunningService
from tests.test_refusals import memory_of, only_worker_of

VALIDATE = "/hospitals/bulk/validate"
FORM = "Content-Type: multipart/form-data; boundary=limit"
FILE = multipart(part(csv_of(1)))
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
HALF_HEAD = HEALTH[:-10]
STALLED_BODY = post(VALIDATE, FILE[:50], FORM, length=MEBIBYTE)
HALF_CHUNKS = post(VALIDATE, chunked(FILE)[:50], FORM, "Transfer-Encoding: chunked")
# Several of these are more than what the kernel keeps for a client that does not read.
LARGE = b"GET /docs/assets/redoc.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
HEAD_SECONDS = 10
# On a busy machine a deadline may be noticed late; what is not bounded by it takes longer than this.
LATE_SECONDS = 10
# Who is served at once is served before this; who waits for a slow client, after the seconds which that one gets.
AT_ONCE_SECONDS = 9
QUICKLY = "--worker-class tests.quick_worker.QuickWorker"
NARROWLY = "--worker-class tests.quick_worker.NarrowWorker"


@pytest.fixture(scope="module")
def quick(shared_directory: Directory) -> Iterator[RunningService]:
    with RunningService(shared_directory.url, gunicorn_cmd_args=QUICKLY) as running:
        yield running


@pytest.fixture(scope="module")
def service(shared_directory: Directory) -> Iterator[RunningService]:
    """As patient as it is."""
    with RunningService(shared_directory.url) as running:
        yield running


def seconds_to_health(service: RunningService) -> float:
    started_at = time.monotonic()
    assert service.get("/health").status_code == 200
    return time.monotonic() - started_at


# A crowd of them, and everybody else


class Crowd:
    """Hundreds of slow clients of every kind."""

    def __init__(self, url: str) -> None:
        self.opened_at = time.monotonic()
        self.half_heads = [RawClient(url, HALF_HEAD) for _ in range(200)]
        self.stalled_bodies = [RawClient(url, STALLED_BODY) for _ in range(200)]
        self.silent = [RawClient(url) for _ in range(200)]
        self.unread = [RawClient(url, LARGE * 4, receive_buffer=4096) for _ in range(60)]
        self.dripping = [RawClient(url, HALF_CHUNKS) for _ in range(40)]
        self.stop = threading.Event()
        self._drips = threading.Thread(target=self._drip)
        self._drips.start()

    def _drip(self) -> None:
        while not self.stop.wait(0.2):
            for client in self.dripping:
                client.drip(b"a", 0)

    def leave(self) -> None:
        """Hang up."""
        self.stop.set()
        self._drips.join()
        with ExitStack() as stack:
            for client in self.half_heads + self.stalled_bodies + self.silent + self.unread + self.dripping:
                stack.enter_context(client)


@pytest.fixture(scope="module")
def crowded(shared_directory: Directory) -> Iterator[tuple[RunningService, Crowd]]:
    with RunningService(shared_directory.url) as running:
        crowd = Crowd(running.url)
        yield running, crowd
        crowd.leave()


def test_in_a_crowd_of_slow_clients_everybody_else_is_served(crowded: tuple[RunningService, Crowd]) -> None:
    service, _ = crowded
    assert service.upload(csv_of(20)).json()["status"] == "completed"
    assert seconds_to_health(service) < AT_ONCE_SECONDS
    assert memory_of(only_worker_of(service.process.pid)) < 600_000_000


def test_half_a_head_is_refused_after_ten_seconds(crowded: tuple[RunningService, Crowd]) -> None:
    service, crowd = crowded
    answers = [client.answer() for client in crowd.half_heads]
    assert 0 <= time.monotonic() - crowd.opened_at - HEAD_SECONDS < LATE_SECONDS
    for answer in answers:
        assert_problem(answer, 408, "headers did not come in time")
    assert [client.rest() for client in crowd.silent] == [b""] * 200
    assert seconds_to_health(service) < AT_ONCE_SECONDS
    assert "Traceback" not in service.output


# One at a time, with a worker of little patience


LONG_DRIP = b"a" * 300
TOO_SLOW = {
    "half a head": (HALF_HEAD, b"", QUICK.head, "headers"),
    "a head that drips": (HALF_HEAD, LONG_DRIP, QUICK.head, "headers"),
    "half a body": (STALLED_BODY, b"", QUICK.body, "body"),
    "a body that drips": (STALLED_BODY, LONG_DRIP, QUICK.body, "body"),
    "half a chunk": (HALF_CHUNKS, b"", QUICK.body, "body"),
    "a chunk that drips": (HALF_CHUNKS, LONG_DRIP, QUICK.body, "body"),
}


@pytest.mark.parametrize(("request_bytes", "drip", "seconds", "what"), TOO_SLOW.values(), ids=TOO_SLOW)
def test_what_does_not_come_in_time_is_refused(
    quick: RunningService, request_bytes: bytes, drip: bytes, seconds: float, what: str
) -> None:
    started_at = time.monotonic()
    with RawClient(quick.url, request_bytes) as client:
        dripping = threading.Thread(target=client.drip, args=(drip, 0.1))
        dripping.start()
        answer = client.answer()
        took = time.monotonic() - started_at
        client.socket.shutdown(socket.SHUT_WR)  # which ends the dripping
        dripping.join()
    assert_problem(answer, 408, f"{what} did not come in time")
    assert answer.headers["Connection"] == "close"
    assert seconds <= took < LATE_SECONDS


@pytest.mark.parametrize("before", [b"", HEALTH], ids=["anything", "the next request"])
def test_who_does_not_begin_is_told_nothing(quick: RunningService, before: bytes) -> None:
    with RawClient(quick.url, before) as client:
        if before:
            assert client.answer().status_code == 200
        assert client.rest() == b""


def test_the_time_of_the_next_request_begins_with_its_first_byte(quick: RunningService) -> None:
    with RawClient(quick.url, HEALTH) as client:
        assert client.answer().status_code == 200
        time.sleep(QUICK.head + 0.3)  # gunicorn's keep-alive is 2 s
        client.send(HALF_HEAD)
        client.send(HEALTH[-10:])
        assert client.answer().status_code == 200
        client.send(HALF_HEAD)
        assert_problem(client.answer(), 408, "headers")


def test_who_does_not_take_an_answer_loses_it(quick: RunningService) -> None:
    with RawClient(quick.url, LARGE * 4, receive_buffer=4096) as client:
        time.sleep(QUICK.answer + 2)
        received = client.rest()
    assert 0 < len(received) < 3 * len(quick.get("/docs/assets/redoc.js").content)
    assert "Traceback" not in quick.output


def test_more_clients_than_threads_that_do_not_take_their_answers_hold_none(service: RunningService) -> None:
    with ExitStack() as stack:
        for _ in range(WORKER_THREADS + 10):
            stack.enter_context(RawClient(service.url, LARGE * 4, receive_buffer=4096))
        # Some hundred megabytes are sent before.
        assert seconds_to_health(service) < Patience().answer / 2


def test_who_takes_an_answer_slowly_gets_it_all(service: RunningService) -> None:
    whole = service.get("/docs/assets/redoc.js").content
    with RawClient(service.url, LARGE * 3, receive_buffer=65_536) as client:
        time.sleep(0.5)
        for _ in range(3):
            assert client.answer().text.encode() == whole


def test_of_all_that_is_held_the_largest_is_given_up_and_the_oldest_of_those(shared_directory: Directory) -> None:
    stalled = post(VALIDATE, b"a" * (MEBIBYTE - 1), FORM, length=MEBIBYTE)
    with RunningService(shared_directory.url, gunicorn_cmd_args=NARROWLY) as service, ExitStack() as stack:
        small = stack.enter_context(RawClient(service.url, STALLED_BODY))
        clients = [stack.enter_context(RawClient(service.url, stalled)) for _ in range(8)]
        answer = clients[0].answer()
        assert_problem(answer, 503, "Too much is being sent")
        assert int(answer.headers["Retry-After"]) > 0
        assert service.upload(csv_of(1), path=VALIDATE).json()["valid"]
        assert_problem(small.answer(), 408)
        assert_problem(clients[-1].answer(), 408)


def test_stalled_bodies_need_no_more_memory_than_may_be_held(shared_directory: Directory) -> None:
    stalled = post(VALIDATE, b"a" * (MEBIBYTE - 1), FORM, length=MEBIBYTE)
    with RunningService(shared_directory.url) as service, ExitStack() as stack:
        worker = only_worker_of(service.process.pid)
        before = memory_of(worker)
        for _ in range(200):
            stack.enter_context(RawClient(service.url, stalled))
        assert seconds_to_health(service) < AT_ONCE_SECONDS
        assert service.upload(csv_of(1)).json()["status"] == "completed"
        assert memory_of(worker, "VmHWM") - before < 110_000_000


def test_when_there_are_too_many_connections_the_one_that_waited_longest_makes_room(
    shared_directory: Directory,
) -> None:
    with (
        RunningService(shared_directory.url, gunicorn_cmd_args="--worker-connections 150") as service,
        ExitStack() as stack,
    ):
        silent = [stack.enter_context(RawClient(service.url)) for _ in range(200)]
        assert seconds_to_health(service) < AT_ONCE_SECONDS
        assert silent[0].rest() == b""
        silent[-1].send(HEALTH)
        assert silent[-1].answer().status_code == 200


# What a poller could get wrong


def test_a_request_that_comes_byte_for_byte_is_served(service: RunningService) -> None:
    for request in (post(VALIDATE, FILE, FORM), post(VALIDATE, chunked(FILE, 20), FORM, "Transfer-Encoding: chunked")):
        with RawClient(service.url) as client:
            client.drip(request, 0)
            assert client.answer().json()["valid"]


def test_requests_that_come_together_are_answered_in_turn(service: RunningService) -> None:
    upload = post(VALIDATE, FILE, FORM).replace(b"Connection: close\r\n", b"")
    unread = upload.replace(VALIDATE.encode(), b"/health", 1).replace(b"POST", b"GET")
    with RawClient(service.url, HEALTH + upload + unread + HEALTH + upload + HALF_HEAD) as client:
        answers = [client.answer() for _ in range(5)]
        assert ["valid" in answer.json() for answer in answers] == [False, True, False, False, True]
        client.send(HEALTH[-10:])
        assert client.answer().json() == {"status": "healthy"}


EXPECTING = "Expect: 100-continue"


def test_who_asks_first_is_told_once_to_send_the_body(service: RunningService) -> None:
    request = post(VALIDATE, FILE, FORM, EXPECTING)
    head, body = request[: -len(FILE)], FILE
    with RawClient(service.url, head) as client:
        assert client.line() + client.line() == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(body)
        assert client.answer().json()["valid"]
        assert client.rest() == b""


def test_who_asks_first_is_not_told_to_send_what_is_here(service: RunningService) -> None:
    with RawClient(service.url, post(VALIDATE, FILE, FORM, EXPECTING)) as client:
        assert client.answer().json()["valid"]


def test_who_asks_first_is_not_told_to_send_what_is_too_large(service: RunningService) -> None:
    with RawClient(service.url, post(VALIDATE, b"", FORM, EXPECTING, length=2 * MEBIBYTE)) as client:
        assert_problem(client.answer(), 413)


def test_who_still_sends_a_file_that_is_too_large_sees_why_it_is_refused(service: RunningService) -> None:
    request = post(VALIDATE, multipart(part(rows(3 * MEBIBYTE))), FORM)
    with RawClient(service.url) as client:
        for start in range(0, len(request), 200_000):
            client.send(request[start : start + 200_000])
            time.sleep(0.1)
        assert_problem(client.answer(), 413, "at most 1,048,576 bytes")


def test_what_is_here_in_part_does_not_keep_a_service_that_is_to_stop(shared_directory: Directory) -> None:
    with RunningService(shared_directory.url) as service, ExitStack() as stack:
        clients = [
            stack.enter_context(RawClient(service.url, request))
            for request in (HALF_HEAD, STALLED_BODY, HALF_CHUNKS)
            for _ in range(20)
        ]
        stack.enter_context(RawClient(service.url))
        stack.enter_context(RawClient(service.url, LARGE * 4, receive_buffer=4096))
        assert service.get("/health").ok
        started_at = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        for client in clients:
            assert_problem(client.answer(), 503, "being stopped")
        assert service.process.wait(PATIENCE) == 0
        assert time.monotonic() - started_at < LATE_SECONDS


@pytest.mark.parametrize(("path", "cell"), [(VALIDATE, b"\x01"), (VALIDATE, b'""'), ("/hospitals/bulk", b'""')])
@pytest.mark.parametrize("accept", ["*/*", "text/html"])
def test_no_answer_is_so_large_that_a_thread_would_wait_for_its_reader(
    service: RunningService, path: str, cell: bytes, accept: str
) -> None:
    cells = b"".join(b'%d,"%s"\n' % (number, cell * (50_000 // len(cell))) for number in range(20))
    answer = service.upload(b"name,address\n" + cells, {"Accept": accept}, path=path)
    assert len(answer.content) < MAX_UNSENT_BYTES / 2


# The socket that keeps what is not taken


def socket_pair(patience_seconds: float) -> tuple[AnswerSocket, socket.socket]:
    """The server's end and the client's."""
    ours, theirs = socket.socketpair()
    return AnswerSocket(ours, patience_seconds), theirs


def test_an_answer_of_usual_size_is_not_waited_for() -> None:
    ours, theirs = socket_pair(60)
    with ours, theirs:
        ours.sendall(b"a" * MAX_UNSENT_BYTES)
        assert len(ours.unsent) > MAX_UNSENT_BYTES // 2


def test_an_answer_of_any_size_comes_whole_and_in_order() -> None:
    ours, theirs = socket_pair(PATIENCE)
    pieces = [b"%d," % number * 100_000 for number in range(20)]
    whole = b"".join(pieces)
    received = bytearray()

    def receive() -> None:
        while len(received) < len(whole):
            received.extend(theirs.recv(100_000))

    with ours, theirs:
        reader = threading.Thread(target=receive)
        reader.start()
        for piece in pieces:
            ours.sendall(piece)
        for _ in count():
            ours.send_on()
            if not ours.unsent:
                break
            time.sleep(0.01)
        reader.join(PATIENCE)
    assert received == whole


def test_a_huge_answer_is_not_waited_for_for_ever() -> None:
    ours, theirs = socket_pair(0.2)
    started_at = time.monotonic()
    with ours, theirs:
        with pytest.raises(TimeoutError):
            ours.sendall(b"a" * 3 * MAX_UNSENT_BYTES)
        assert 0.2 <= time.monotonic() - started_at < LATE_SECONDS
        # Nobody waits for it a second time: the thread that has the socket next is the one that serves all the others.
        assert ours.gettimeout() == 0
        assert not ours.unsent


def test_a_huge_answer_is_waited_for_until_little_of_it_is_left() -> None:
    ours, theirs = socket_pair(PATIENCE)
    with ours, theirs, ThreadPoolExecutor(1) as pool:
        sent = pool.submit(ours.sendall, b"a" * 2 * MAX_UNSENT_BYTES)
        theirs.settimeout(0.1)
        while not sent.done():
            with suppress(TimeoutError):
                theirs.recv(100_000)
        assert 0 < len(ours.unsent) <= MAX_UNSENT_BYTES
        assert ours.gettimeout() == 0
