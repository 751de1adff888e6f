"""What the service logs: every line whole, of one format, and with the ids of what it is about."""

from __future__ import annotations

import json
import logging
import logging.config
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from typing import Any

import pytest
import requests

import logs
from app import create_app
from logs import JsonLines, TextLines, logging_config, safe_request_id
from settings import Settings
from tests.directory import Directory
from tests.hospitals import csv_of
from tests.local_service import LocalService
from tests.metrics import samples
from tests.patience import PATIENCE, wait_for
from tests.raw_http import post, send
from tests.raw_server import RawServer, http
from tests.running import RunningService

Line = dict[str, Any]

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
TEXT_LINE = re.compile(rf"{TIME} (DEBUG|INFO|WARNING|ERROR|CRITICAL) [\w.]+( \[[^\]]+\])? \S.*")
UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


class Log:
    """What a service has logged as JSON, one object a line."""

    def __init__(self, service: RunningService) -> None:
        self._service = service

    @property
    def lines(self) -> list[Line]:
        """All lines; every one must be an object."""
        return [json.loads(line) for line in self._service.output.splitlines()]

    def when(self, holds: Callable[[Line], bool]) -> Line:
        """The first line of which something holds, as soon as there is one."""
        return wait_for(lambda: [line for line in self.lines if holds(line)])[0]

    def request(self, request_id: str) -> Line:
        """The line of a request that has ended."""
        return self.when(lambda line: line["logger"] == "request_log" and line["request_id"] == request_id)


@pytest.fixture(scope="module")
def service(shared_directory: Directory) -> Iterator[RunningService]:
    with RunningService(shared_directory.url, log_format="json") as running:
        yield running


@pytest.fixture
def log(service: RunningService, directory: Directory) -> Log:
    return Log(service)


class TestJson:
    def test_every_line_is_an_object_with_the_same_fields_first(self, service: RunningService, log: Log) -> None:
        service.upload(csv_of(2), {"X-Request-ID": "fields"})
        log.request("fields")
        for line in log.lines:
            assert list(line)[:7] == ["time", "level", "logger", "message", "request_id", "key_name", "batch_id"]
            assert re.fullmatch(TIME, line["time"])

    def test_gunicorn_s_own_lines_are_objects_too(self, log: Log) -> None:
        assert log.when(lambda line: line["logger"] == "gunicorn.error" and "Listening at" in line["message"])

    def test_a_batch_has_a_line_when_it_begins_and_when_it_ends(self, service: RunningService, log: Log) -> None:
        batch = service.upload(csv_of(3), {"X-Request-ID": "whole"}).json()
        log.when(lambda line: line["request_id"] == "whole" and "outcome" in line)
        ids = {"request_id": "whole", "batch_id": batch["batch_id"], "row": None}
        begun, ended = [line for line in log.lines if line["logger"] == "rounds" and line["request_id"] == "whole"]
        assert begun.items() >= (ids | {"level": "INFO", "message": "begins: create, 3 rows"}).items()
        assert ended.items() >= (ids | {"level": "INFO", "outcome": "completed"}).items()
        assert ended["rows"] == {"created_and_activated": 3}
        assert 0 <= ended["waited_seconds"] <= ended["seconds"] < PATIENCE

    def test_the_line_of_an_upload_names_its_batch(self, service: RunningService, log: Log) -> None:
        answer = service.upload(csv_of(2), {"X-Request-ID": "upload-1"})
        line = log.request("upload-1")
        assert line["batch_id"] == answer.json()["batch_id"]
        assert (line["method"], line["path"], line["status"]) == ("POST", "/hospitals/bulk", 200)
        assert line["address"] == "127.0.0.1"
        assert line["bytes"] == len(answer.content)
        assert line["seconds"] >= 0.05

    def test_the_lines_of_creates_name_request_batch_and_row(
        self, service: RunningService, directory: Directory, log: Log
    ) -> None:
        directory.faults([{"kind": "drop", "call": "create", "when": "after", "times": 2}])

        def upload(name: str) -> str:
            return str(service.upload(csv_of(3, name), {"X-Request-ID": name}).json()["batch_id"])

        # At the same time, so that both have creates on the same threads.
        with ThreadPoolExecutor(2) as pool:
            batches = dict(zip(("one", "other"), pool.map(upload, ("one", "other")), strict=True))
        unknown = [line for line in log.lines if line["message"].startswith("outcome unknown")]
        assert len(unknown) == 2
        for line in unknown:
            assert line["batch_id"] == batches[line["request_id"]]
            assert line["row"] in (1, 2, 3)

    def test_a_line_of_a_thread_has_nothing_of_what_the_thread_did_before(
        self, service: RunningService, log: Log
    ) -> None:
        batch_id = service.upload(csv_of(1)).json()["batch_id"]
        service.get(f"/batches/{batch_id}", **{"X-Request-ID": "before"})
        assert log.request("before")["batch_id"] == batch_id
        for number in range(10):
            service.get("/batches", **{"X-Request-ID": f"after-{number}"})
            assert log.request(f"after-{number}")["batch_id"] is None

    def test_a_resume_has_the_id_of_its_own_request(
        self, service: RunningService, directory: Directory, log: Log
    ) -> None:
        directory.faults([{"kind": "error", "call": "create", "status": 422}])
        batch_id = service.upload(csv_of(2), {"X-Request-ID": "first"}).json()["batch_id"]
        requests.post(f"{service.url}/batches/{batch_id}/resume", headers={"X-Request-ID": "second"}, timeout=PATIENCE)
        log.when(lambda line: line["request_id"] == "second" and "outcome" in line)
        ends = [(it["request_id"], it["outcome"]) for it in log.lines if it["batch_id"] == batch_id and "outcome" in it]
        assert ends == [("first", "failed"), ("second", "completed")]

    def test_a_stream_has_its_line_when_it_closes(
        self, service: RunningService, directory: Directory, log: Log
    ) -> None:
        directory.settings(create_seconds=2)
        batch_id = service.upload(csv_of(1), {"Prefer": "respond-async"}).json()["batch_id"]
        service.get(f"/batches/{batch_id}/events", **{"X-Request-ID": "stream"})
        line = log.request("stream")
        assert (line["status"], line["batch_id"], line["bytes"]) == (200, batch_id, None)
        assert line["seconds"] > 0.5

    def test_health_is_not_logged(self, service: RunningService, log: Log) -> None:
        service.get("/health", **{"X-Request-ID": "health"})
        service.get("/batches", **{"X-Request-ID": "after-health"})
        log.request("after-health")
        assert all(line["request_id"] != "health" for line in log.lines)

    def test_a_request_that_is_refused_unread_is_logged_and_counted(self, service: RunningService, log: Log) -> None:
        def counted() -> float:
            name = 'http_requests_total{endpoint="unread",method="other",status="505"}'
            return samples(service.get("/metrics").text).get(name, 0)

        before = counted()
        answer = send(service.url, b"GET /health HTTP/3.0\r\nX-Request-ID: mine\r\n\r\n")
        assert answer.status_code == 505
        line = log.when(lambda line: line["request_id"] == answer.headers["X-Request-ID"])
        assert line["message"].startswith("Refused a request from 127.0.0.1: 505 ")
        assert counted() == before + 1

    def test_a_file_s_errors_are_logged_by_their_codes(self, service: RunningService, log: Log) -> None:
        service.upload(b"name,address\nSecret Clinic,\n", {"X-Request-ID": "refused"})
        line = log.when(lambda line: line["request_id"] == "refused" and "file refused" in line["message"])
        assert line["message"] == "file refused, 1 errors: missing_value"

    def test_neither_hospitals_nor_queries_are_logged(
        self, service: RunningService, directory: Directory, log: Log
    ) -> None:
        words = '{"detail": "Confidential Clinic 1 is not wanted"}'
        directory.faults([{"kind": "error", "call": "create", "status": 422}, {"kind": "garbage", "body": words}])
        batch_id = service.upload(csv_of(3, "Confidential Clinic")).json()["batch_id"]
        requests.post(
            f"{directory.url}/hospitals/",
            json={"name": "Confidential Stranger", "address": "A", "creation_batch_id": batch_id},
            timeout=PATIENCE,
        )
        requests.post(f"{service.url}/batches/{batch_id}/resume", timeout=PATIENCE)
        service.get("/batches?status=failed&key=Confidential", **{"X-Request-ID": "last"})
        log.request("last")
        assert "Confidential" not in service.output
        assert log.when(lambda line: line["message"].startswith("hospitals of no row: "))


def test_the_directory_s_words_are_not_logged() -> None:
    # Every call is refused, the creates first and then the listing.
    words = json.dumps({"detail": "Confidential Clinic 0 is not wanted"}).encode()
    with RawServer(http("422 Unprocessable Entity", words)) as directory, RunningService(directory.url) as service:
        batch = service.upload(csv_of(2, "Confidential Clinic")).json()
        assert "Confidential Clinic 0 is not wanted" in batch["error_message"]
        wait_for(lambda: "ended: interrupted" in service.output)
        output = service.output
    assert "the directory refused the row" in output
    assert "the run broke off: Rejected" in output
    assert "Confidential" not in output


FORGED = "2026-11-22T00:00:00.000Z ERROR forged everything is lost"


@pytest.mark.parametrize("line_format", ["text", "json"])
def test_nobody_can_forge_a_line(shared_directory: Directory, line_format: str) -> None:
    escaped = FORGED.replace(" ", "%20").encode()
    with RunningService(shared_directory.url, log_format=line_format, log_level="DEBUG") as service:
        for path in (b"/a%0A" + escaped, b"/a%0D%0A" + escaped, b"/%E2%80%A8" + escaped, b"/%1b[2J%7f%C2%85" + escaped):
            send(service.url, b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        form = (
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="a\\\n%0a'
            + FORGED.encode()
            + b'.csv"\r\n\r\n'
            b"name,address\nA,B\n\r\n--b--\r\n"
        )
        kind = "Content-Type: multipart/form-data; boundary=b"
        send(service.url, post("/hospitals/bulk", form, kind, f"X-Request-ID: a\n{FORGED}"))
        send(service.url, post("/hospitals/bulk", form, kind, f"Idempotency-Key: a\x0b{FORGED}"))
        send(service.url, b"GET / HTTP/1.1\r\nHost: a\n" + FORGED.encode() + b"\r\n\r\n", end=True)
        send(service.url, b"\x1bGET\x85 /\xe2\x80\xa8" + FORGED.encode() + b"\r\n\r\n", end=True)
        assert service.get("/batches", **{"X-Request-ID": "last"}).ok
        wait_for(lambda: "last" in service.output)
        lines = service.output.removesuffix("\n").split("\n")
        assert "forged%20everything" in service.output
    assert all("\n" + FORGED not in line and not line.startswith(FORGED) for line in lines)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]", "\n".join(lines))
    for line in lines:
        assert json.loads(line) if line_format == "json" else TEXT_LINE.fullmatch(line) or line.startswith("    "), line


def test_a_text_line_shows_the_ids_it_knows(directory: Directory) -> None:
    directory.faults([{"kind": "drop", "call": "create", "when": "after"}])
    with RunningService(directory.url) as service:
        batch_id = service.upload(csv_of(1), {"X-Request-ID": "mine"}).json()["batch_id"]
        wait_for(lambda: "POST /hospitals/bulk" in service.output)
        output = service.output
    assert f" WARNING directory_batch [request=mine batch={batch_id} row=1] outcome unknown: " in output
    assert f" INFO rounds [request=mine batch={batch_id}] ended: completed, rows: 1 created_and_activated, " in output
    assert f" INFO request_log [request=mine batch={batch_id}] POST /hospitals/bulk 200 in " in output
    assert " INFO gunicorn.error Listening at: " in output
    assert all(TEXT_LINE.fullmatch(line) for line in output.splitlines()), output


def test_the_level_is_gunicorn_s_too(directory: Directory) -> None:
    loggers = logging_config("WARNING", "text")
    assert loggers["root"]["level"] == loggers["loggers"]["gunicorn.error"]["level"] == "WARNING"


def test_logging_that_somebody_set_up_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    handlers = list(logging.getLogger().handlers)
    create_app(Settings(log_format="json", log_level="CRITICAL"))
    assert logging.getLogger().handlers == handlers


@pytest.fixture(scope="module")
def local(shared_directory: Directory) -> Iterator[LocalService]:
    with LocalService(shared_directory, trusted_hosts=("localhost",)) as running:
        yield running


class TestRequestId:
    @pytest.mark.parametrize("given", ["a", "A.b_c-9", "x" * 128])
    def test_one_that_is_clean_is_kept(self, local: LocalService, given: str) -> None:
        assert local.call("GET", "/health", {"X-Request-ID": given}).headers["X-Request-ID"] == given

    @pytest.mark.parametrize("given", [None, "", "x" * 129, "a b", "a,b", "caf\u00e9", "[batch=1]", "a\\n", "\u0661"])
    def test_any_other_is_replaced(self, local: LocalService, given: str | None) -> None:
        answer = local.call("GET", "/health", {"X-Request-ID": given} if given is not None else {})
        assert re.fullmatch(UUID, answer.headers["X-Request-ID"])
        assert safe_request_id(given) != safe_request_id(given)

    @pytest.mark.parametrize(
        ("method", "path", "headers", "status"),
        [
            ("GET", "/nowhere", {}, 404),
            ("DELETE", "/health", {}, 405),
            ("POST", "/hospitals/bulk", {}, 415),
            ("POST", "/hospitals/bulk", {"Sec-Fetch-Site": "cross-site"}, 403),
            ("GET", "/health", {"Host": "elsewhere.example"}, 400),
            ("GET", "/static/style.css", {}, 200),
            ("GET", "/", {"Accept": "text/html"}, 200),
        ],
    )
    def test_it_is_on_every_answer(
        self, local: LocalService, method: str, path: str, headers: dict[str, str], status: int
    ) -> None:
        with local.call(method, path, {"X-Request-ID": "mine", **headers}) as answer:
            assert (answer.status_code, answer.headers["X-Request-ID"]) == (status, "mine")


class TestFormatters:
    """The lines by themselves."""

    @pytest.fixture(params=[TextLines, JsonLines])
    def written(self, request: pytest.FixtureRequest) -> Iterator[Callable[[], str]]:
        """What was logged to the logger `alone`, formatted."""
        stream, logger = StringIO(), logging.getLogger("alone")
        handler = logging.StreamHandler(stream)
        handler.setFormatter(request.param())
        handler.addFilter(logs.ContextFilter())
        logger.addHandler(handler)
        yield stream.getvalue
        logger.removeHandler(handler)

    def test_a_traceback_cannot_forge_a_line(self, written: Callable[[], str]) -> None:
        try:
            raise ValueError(f"first\n{FORGED}\r{FORGED}")
        except ValueError:
            logging.getLogger("alone").exception("It %s", "failed")
        lines = written().removesuffix("\n").split("\n")
        assert "Traceback" in written()
        assert not any(line.startswith(FORGED) for line in lines)
        assert "\r" not in written()
        if lines[0].startswith("{"):
            assert len(lines) == 1
            assert json.loads(lines[0])["exception"].endswith(f"ValueError: first\n{FORGED}\r{FORGED}")

    def test_what_cannot_be_encoded_is_written_all_the_same(self, written: Callable[[], str]) -> None:
        # Past the logger: pytest would keep the record, and could not pass half a surrogate pair on.
        record = logging.makeLogRecord({"name": "alone", "levelname": "INFO", "msg": "a\udc80b\x7fc\u202ed"})
        logging.getLogger("alone").handlers[0].handle(record)
        assert written().encode()
        assert "\x7f" not in written()
        assert "\u202e" not in written()
