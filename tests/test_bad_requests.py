"""Requests that nobody sends by mistake, as bytes over a socket: each gets a clean answer, and the next is served."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest

from store import StoreError
from tests.directory import Directory
from tests.hospitals import csv_of
from tests.local_service import LocalService
from tests.odd_files import HEADER, MEBIBYTE, multipart, part, rows
from tests.problems import assert_problem
from tests.raw_http import RawAnswer, RawClient, chunked, post, reset_after, send
from tests.running import RunningService
from tests.test_refusals import memory_of, only_worker_of

VALIDATE = "/hospitals/bulk/validate"
FORM = "Content-Type: multipart/form-data; boundary=limit"
CHUNKED = "Transfer-Encoding: chunked"
FILE = multipart(part(csv_of(1)))
CHUNKS = chunked(FILE)
# Whatever a bad request could hold the next one up by takes longer: heads are waited for 10 s, bodies 30.
AT_ONCE_SECONDS = 9


@pytest.fixture(scope="module")
def service(shared_directory: Directory) -> Iterator[RunningService]:
    with RunningService(shared_directory.url) as running:
        yield running


@pytest.fixture(autouse=True)
def the_next_is_served_at_once(service: RunningService) -> Iterator[None]:
    yield
    started_at = time.monotonic()
    assert service.get("/health").status_code == 200
    assert time.monotonic() - started_at < AT_ONCE_SECONDS


def get(path: bytes, *headers: bytes, method: bytes = b"GET", version: bytes = b"HTTP/1.1") -> bytes:
    """A request without a body."""
    return b"\r\n".join([method + b" " + path + b" " + version, b"Host: localhost", *headers]) + b"\r\n\r\n"


def upload(body: bytes = FILE, *headers: str) -> bytes:
    """A form to be checked."""
    return post(VALIDATE, body, FORM, *headers)


def refused_file(answer: RawAnswer) -> str:
    """The code of the only error that was found in a file which was looked at."""
    assert answer.status_code == 200, answer.text
    [error] = answer.json()["errors"]
    return str(error["code"])


NOT_HTTP = {
    "HTTP/0.9": (b"GET /health\r\n", 400),
    "HTTP/0.9 without CR": (b"GET /health\n", 400),
    "lines without CR": (b"GET /health HTTP/1.1\nHost: a\n\n", 400),
    "lines without LF": (b"GET /health HTTP/1.1\rHost: a\r\r" + b"x" * 5000, 414),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "HTTP/2.0": (get(b"/health", version=b"HTTP/2.0"), 505),
    "HTTP/11.1": (get(b"/health", version=b"HTTP/11.1"), 505),
    "TLS": (b"\x16\x03\x01\0\xc8\x01\0\0\xc4\x03\x03" + b"\x01" * 100 + b"\r\n\r\n", 400),
    "NUL bytes": (b"\0" * 70_000, 414),
    "two empty lines": (b"\r\n\r\n" + get(b"/health"), 400),
    "a method in small letters": (get(b"/health", method=b"get"), 400),
    "a method of odd characters": (get(b"/health", method=b"G@T"), 400),
    "a long method": (get(b"/health", method=b"A" * 5000), 414),
    "a path without a slash": (get(b"health"), 400),
    "a path with NUL": (get(b"/\0"), 400),
    "a path that is not ASCII": (get(b"/\xff"), 400),
    "an asterisk to get": (get(b"*"), 400),
    "an address that is none": (get(b"http://[::1/health"), 400),
    "a long path": (get(b"/" + b"a" * 5000), 414),
    "a path of a megabyte": (get(b"/" + b"a" * MEBIBYTE), 414),
    "10,000 headers": (get(b"/health", *[b"a: b"] * 10_000), 431),
    "a header of a megabyte": (get(b"/health", b"a: " + b"b" * MEBIBYTE), 431),
    "a megabyte of headers": (get(b"/health", *[b"a: " + b"b" * 8000] * 130), 431),
    "an Idempotency-Key of 100 kB": (get(b"/health", b"Idempotency-Key: " + b"k" * 100_000), 431),
    "a header without a colon": (get(b"/health", b"abc"), 400),
    "a header with a space before it": (get(b"/health", b" a: b"), 400),
    "a header with NUL": (get(b"/health", b"a: \0"), 400),
    "a header with CR": (get(b"/health", b"a: b\rc: d"), 400),
    "no Host": (b"GET /health HTTP/1.1\r\n\r\n", 400),
    "two Hosts": (get(b"/health", b"Host: other"), 400),
    "an expectation that is none": (get(b"/health", b"Expect: 200-ok"), 417),
    "two lengths": (get(b"/health", b"Content-Length: 0", b"Content-Length: 0"), 400),
    "a list of lengths": (get(b"/health", b"Content-Length: 0, 0"), 400),
    "a negative length": (get(b"/health", b"Content-Length: -1"), 400),
    "a length with a sign": (get(b"/health", b"Content-Length: +0"), 400),
    "a length in superscript": (get(b"/health", b"Content-Length: \xb2"), 400),
    "a length of 6,000 digits": (get(b"/health", b"Content-Length: " + b"9" * 6000), 400),
    "a length and chunks": (get(b"/health", b"Content-Length: 5", CHUNKED.encode()) + CHUNKS, 400),
    "chunks and a length": (get(b"/health", CHUNKED.encode(), b"Content-Length: 5") + CHUNKS, 400),
    "chunks in HTTP/1.0": (get(b"/health", CHUNKED.encode(), version=b"HTTP/1.0") + CHUNKS, 400),
    "a space before the colon": (get(b"/health", b"Transfer-Encoding : chunked") + CHUNKS, 400),
    "a coding on the next line": (get(b"/health", b"Transfer-Encoding:", b" chunked") + CHUNKS, 400),
    "a coding after a control character": (get(b"/health", b"Transfer-Encoding: \x0bchunked") + CHUNKS, 400),
    "a coding that is none": (get(b"/health", b"Transfer-Encoding: xchunked") + CHUNKS, 501),
    "identity": (get(b"/health", b"Transfer-Encoding: identity") + CHUNKS, 400),
    "chunked, identity": (get(b"/health", b"Transfer-Encoding: chunked, identity") + CHUNKS, 400),
    "chunked twice": (get(b"/health", b"Transfer-Encoding: chunked, chunked") + CHUNKS, 400),
    "gzip in chunks": (get(b"/health", b"Transfer-Encoding: gzip, chunked") + CHUNKS, 501),
    "gzip in chunks, on two lines": (get(b"/health", b"Transfer-Encoding: gzip", CHUNKED.encode()) + CHUNKS, 501),
    "identity in chunks": (get(b"/health", b"Transfer-Encoding: identity, chunked") + CHUNKS, 501),
    "gzip without chunks": (get(b"/health", b"Transfer-Encoding: gzip") + CHUNKS, 400),
}


@pytest.mark.parametrize(("request_bytes", "status"), NOT_HTTP.values(), ids=NOT_HTTP)
def test_what_is_no_http_is_refused_and_closed(service: RunningService, request_bytes: bytes, status: int) -> None:
    logged = service.output
    answer = send(service.url, request_bytes)
    assert_problem(answer, status)
    assert answer.headers["Connection"] == "close"
    # Nothing of what the client sent, and one line.
    [line] = service.output.removeprefix(logged).splitlines()
    assert f"Refused a request from 127.0.0.1: {status} {answer.json()['detail']}" in line


WRONG_CHUNKS = {
    "a size that is none, and no more": b"zz\r\n",
    "a negative size": b"-5\r\nabcde\r\n0\r\n\r\n",
    "a size with a sign": b"+5\r\nabcde\r\n0\r\n\r\n",
    "a size with 0x": b"0x5\r\nabcde\r\n0\r\n\r\n",
    "a size with an underscore": b"0_5\r\nabcde\r\n0\r\n\r\n",
    "no size": b"\r\nabcde\r\n0\r\n\r\n",
    "a size line without an end": b"5;" + b"a" * 10_000,
    "lines without CR": b"5\nabcde\n0\n\n" + b"a" * 9000,
    "no CRLF after a chunk": b"5\r\nabcdeXX0\r\n\r\n",
    "a chunk longer than its size": b"5\r\nabcdefgh\r\n0\r\n\r\n",
    "a trailer without a colon": CHUNKS[:-2] + b"trailer\r\n\r\n",
    "a trailer that is framing": CHUNKS[:-2] + b"Content-Length: 5\r\n\r\n",
    "a trailer of a megabyte": CHUNKS[:-2] + b"a: " + b"b" * MEBIBYTE + b"\r\n\r\n",
}


@pytest.mark.parametrize("body", WRONG_CHUNKS.values(), ids=WRONG_CHUNKS)
def test_wrong_chunks_are_refused(service: RunningService, body: bytes) -> None:
    assert_problem(send(service.url, post(VALIDATE, body, FORM, CHUNKED)), 400)


@pytest.mark.parametrize("body", WRONG_CHUNKS.values(), ids=WRONG_CHUNKS)
def test_after_wrong_chunks_that_nobody_reads_nothing_more_is_taken(service: RunningService, body: bytes) -> None:
    with RawClient(service.url, get(b"/health", CHUNKED.encode()) + body + get(b"/smuggled")) as client:
        assert client.answer().headers["Connection"] == "close"
        assert client.rest() == b""


def test_after_a_body_that_is_not_waited_for_nothing_more_is_taken(service: RunningService) -> None:
    with RawClient(service.url, get(b"/health", b"Content-Length: 5000000") + get(b"/smuggled") * 2) as client:
        assert client.answer().headers["Connection"] == "close"
        assert client.rest() == b""


@pytest.mark.parametrize(
    "body",
    [CHUNKS, chunked(FILE, 1), CHUNKS[:-2] + b"a: b\r\n\r\n", CHUNKS.replace(b"\r\n", b" ; name = value\r\n", 1)],
    ids=["one chunk", "chunks of a byte", "a trailer", "an extension"],
)
def test_right_chunks_are_read(service: RunningService, body: bytes) -> None:
    answer = send(service.url, post(VALIDATE, body, FORM, CHUNKED))
    assert answer.status_code == 200
    assert answer.json()["valid"]


def test_a_chunk_of_any_size_is_not_waited_for_beyond_the_limit(service: RunningService) -> None:
    body = b"F" * 16 + b"\r\n" + multipart(part(rows(3 * MEBIBYTE)))
    assert_problem(send(service.url, post(VALIDATE, body, FORM, CHUNKED)), 413, "at most 1,048,576 bytes")


def test_a_megabyte_in_chunks_of_a_byte_is_refused(service: RunningService) -> None:
    body = chunked(multipart(part(rows(MEBIBYTE))), 1)
    assert_problem(send(service.url, post(VALIDATE, body, FORM, CHUNKED)), 413, "too many chunks")


def test_a_part_without_a_name_is_no_file(service: RunningService) -> None:
    for disposition in (b'form-data; filename="h.csv"', b'file; nme="file"; filename="h.csv"'):
        body = b"--x\r\nContent-Disposition: " + disposition + b"\r\n\r\nname,address\r\n--x--\r\n"
        answer = send(service.url, post(VALIDATE, body, "Content-Type: multipart/form-data; boundary=x"))
        assert_problem(answer, 400, "No file was chosen")


def test_who_asks_to_be_asked_for_the_body_and_leaves_is_passed_over(service: RunningService) -> None:
    logged = service.output
    head = post(VALIDATE, b"", FORM, "Expect: 100-continue", length=1000)
    for _ in range(50):
        reset_after(service.url, head)
    assert service.get("/health").ok
    assert "Traceback" not in service.output.removeprefix(logged)


@pytest.mark.parametrize("length", [10**12, 10**20])
def test_a_huge_length_is_refused(service: RunningService, length: int) -> None:
    assert_problem(send(service.url, post(VALIDATE, b"", FORM, length=length)), 413)


ODD_TARGETS = {
    "absolute": (get(b"http://localhost/health"), 200),
    "two slashes": (get(b"//health"), 200),
    "a host in the path": (get(b"//evil.example/"), 404),
    "a dot": (get(b"/./health"), 404),
    "dots": (get(b"/static/../app.py"), 404),
    "encoded dots": (get(b"/static/%2e%2e/app.py"), 404),
    "an encoded slash": (get(b"/static/..%2fapp.py"), 404),
    "backslashes": (get(b"/static/..\\..\\app.py"), 404),
    "an encoded NUL": (get(b"/batches/%00"), 404),
    "encoded line breaks": (get(b"/batches/x%0d%0aX-Evil:%201"), 404),
    "line breaks in the query": (get(b"/batches?after=%0d%0aX-Evil:%201"), 400),
    "no UTF-8": (get(b"/%ff%fe"), 404),
    "OPTIONS of everything": (get(b"*", method=b"OPTIONS"), 404),
    "CONNECT": (get(b"localhost:80", method=b"CONNECT"), 404),
    "a method that is none": (get(b"/health", method=b"FETCH"), 405),
    "an empty line before": (b"\r\n" + get(b"/health"), 200),
    "no Host in HTTP/1.0": (b"GET /health HTTP/1.0\r\n\r\n", 200),
}


@pytest.mark.parametrize(("request_bytes", "status"), ODD_TARGETS.values(), ids=ODD_TARGETS)
def test_an_odd_target_is_answered(service: RunningService, request_bytes: bytes, status: int) -> None:
    logged = service.output
    answer = send(service.url, request_bytes)
    assert answer.status_code == status
    if status >= 400:
        assert_problem(answer, status)
    assert "X-Evil" not in answer.headers
    # At most the line that every request gets.
    assert service.output.removeprefix(logged).count("\n") <= 1


@pytest.mark.parametrize("in_chunks", [False, True], ids=["of known length", "in chunks"])
@pytest.mark.parametrize(
    "body",
    [
        multipart(*[part(b"1", name="note", filename=None)] * 10_000, part(HEADER)),
        multipart(*[part(b"1", name="note")] * 10_000),
        multipart(part(b"a" * 500_001, name="encoding", filename=None), part(HEADER)),
    ],
    ids=["10,000 fields", "10,000 files", "half a megabyte of encoding"],
)
def test_of_a_form_of_too_much_it_is_not_said_that_the_file_is_too_large(
    service: RunningService, body: bytes, in_chunks: bool
) -> None:
    request = post(VALIDATE, chunked(body), FORM, CHUNKED) if in_chunks else upload(body)
    assert_problem(send(service.url, request), 413, "too many fields")


def test_an_encoding_of_400_kb_is_named_in_short(service: RunningService) -> None:
    body = multipart(part(b"a" * 400_000, name="encoding", filename=None), part(csv_of(1)))
    answer = send(service.url, upload(body))
    assert refused_file(answer) == "bad_encoding"
    assert len(answer.text) < 1000


FILENAMES = {
    "100 kB": b'filename="' + b"a" * 100_000 + b'"',
    "dots": b'filename="../../etc/passwd"',
    "control characters": b'filename="a\x01\x1b[31m.csv"',
    "an escaped quote": b'filename="a\\"; x=\\".csv"',
    "encoded line breaks": b"filename*=UTF-8''a%0d%0aERROR%20root:%20evil",
    "encoded no UTF-8": b"filename*=UTF-8''%ff%fe",
}


@pytest.mark.parametrize("filename", FILENAMES.values(), ids=FILENAMES)
def test_an_odd_file_name_is_kept_clean(service: RunningService, directory: Directory, filename: bytes) -> None:
    body = multipart(b'Content-Disposition: form-data; name="file"; ' + filename + b"\r\n\r\n" + csv_of(1))
    answer = send(service.url, post("/hospitals/bulk", body, FORM))
    assert answer.status_code == 200
    assert answer.json()["status"] == "completed"
    assert re.fullmatch(r"[^\x00-\x1f\x7f-\x9f]{0,255}", answer.json()["filename"])
    assert not any(line.startswith("ERROR") for line in service.output.splitlines())


@pytest.mark.parametrize(
    ("key", "status"),
    [(b"k" * 255, 200), (b"k" * 256, 400), (b"k" * 5000, 400), (b"", 400), (b"\xff'; --", 200), (b"a\x01", 400)],
    ids=["255", "256", "5,000", "empty", "odd", "a control character"],
)
def test_a_key_is_taken_or_refused(service: RunningService, directory: Directory, key: bytes, status: int) -> None:
    request = post("/hospitals/bulk", FILE, FORM, "Idempotency-Key: ").replace(b"-Key: ", b"-Key: " + key)
    answers = [send(service.url, request) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [status, status]
    assert answers[0].json() == answers[1].json()
    assert len(directory.calls("create")) == (1 if status == 200 else 0)


@pytest.mark.parametrize("failure", [StoreError("The database does not answer."), RuntimeError("a mistake")])
def test_a_path_does_not_split_a_line_of_the_log(
    directory: Directory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failure: Exception
) -> None:
    def fail(_: str) -> None:
        raise failure

    with LocalService(directory) as local:
        monkeypatch.setattr(local.parts.store, "get", fail)
        assert local.call("GET", "/batches/x%0d%0aERROR%20root:%20evil").status_code >= 500
    [record] = [record for record in caplog.records if record.name == "problems"]
    assert "/batches/x%0D%0AERROR%20root%3A%20evil" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_bad_requests_leave_no_memory_behind(service: RunningService) -> None:
    worker = only_worker_of(service.process.pid)
    requests = [request for request, _ in NOT_HTTP.values()]
    memory = []
    for _ in range(5):
        for request in requests:
            send(service.url, request)
        memory.append(memory_of(worker))
    assert memory[-1] - memory[1] < 5_000_000
