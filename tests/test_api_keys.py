"""`API_KEYS`: who is let in, how a key is shown, and that nothing else gets through or does harm."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from app import create_app
from settings import ApiKey, Settings
from tests.directory import Directory
from tests.hospitals import csv_of
from tests.local_service import BROWSER, LocalService, answered, sqlite_url
from tests.problems import assert_problem
from tests.raw_http import RawAnswer, send
from tests.running import RunningService

OFFICE, CI = "0th=er+/s3cret", "a-key-of-a-machine"
KEYS = f"office:{OFFICE}, ci:{CI}"
BEARER = {"Authorization": f"Bearer {OFFICE}"}
UNKNOWN = "7c9e6679-7425-40de-944b-e07fc1f90ae7"
ADDRESSES = [
    ("GET", "/"),
    ("GET", "/static/page.js"),
    ("GET", "/docs"),
    ("GET", "/docs/assets/swagger-ui.css"),
    ("GET", "/redoc"),
    ("GET", "/openapi.json"),
    ("GET", "/ready"),
    ("GET", "/sample_hospitals.csv"),
    ("GET", "/batches"),
    ("HEAD", "/batches"),
    ("OPTIONS", "/batches"),
    ("GET", f"/batches/{UNKNOWN}/events"),
    ("POST", "/hospitals/bulk"),
    ("DELETE", f"/batches/{UNKNOWN}"),
    ("GET", "/no/such/page"),
    ("GET", "/health/"),
    ("PATCH", "/batches"),
]


def basic(name: str, key: str) -> str:
    """The header of a browser in which somebody has filled in this name and this key."""
    return "Basic " + base64.b64encode(f"{name}:{key}".encode()).decode()


@pytest.fixture(scope="module")
def service(shared_directory: Directory) -> Iterator[RunningService]:
    with RunningService(shared_directory.url, api_keys=KEYS, log_level="DEBUG") as running:
        yield running


def get(service: RunningService, *lines: bytes, path: str = "/batches") -> RawAnswer:
    """GET with these header lines, whatever is in them."""
    head = [f"GET {path} HTTP/1.1".encode(), b"Host: localhost", b"Connection: close", *lines]
    return send(service.url, b"\r\n".join(head) + b"\r\n\r\n")


# Who is let in


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {OFFICE}"},
        {"Authorization": f"bearer {CI}"},
        {"Authorization": basic("office", OFFICE)},
        {"Authorization": basic("ci", CI)},
        {"X-API-Key": OFFICE},
        {"x-api-key": CI},
        {"X-API-Key": OFFICE, "Authorization": "Bearer another"},
        {"X-API-Key": "another", "Authorization": basic("office", OFFICE)},
    ],
)
def test_a_key_is_taken_however_it_is_shown(service: RunningService, headers: dict[str, str]) -> None:
    assert service.get("/batches", **headers).status_code == 200


@pytest.mark.parametrize(("method", "path"), ADDRESSES)
def test_no_address_answers_without_a_key(service: RunningService, method: str, path: str) -> None:
    answer = requests.request(method, service.url + path, timeout=60)
    assert answer.status_code == 401
    if method != "HEAD":
        assert_problem(answer, 401, "send `Authorization: Bearer KEY` or `X-API-Key: KEY`")
    answer = requests.request(method, service.url + path, headers=BEARER, timeout=60)
    assert answer.status_code != 401


def test_whether_the_service_is_there_is_told_to_anybody(service: RunningService) -> None:
    assert service.get("/health").json() == {"status": "healthy"}


def test_without_keys_nothing_is_asked(directory: Directory) -> None:
    with LocalService(directory) as service:
        for headers in ({}, BEARER, {"X-API-Key": "any"}, {"Authorization": "junk"}):
            assert service.call("GET", "/batches", headers).status_code == 200


# Who is not


@pytest.mark.parametrize(
    "lines",
    [
        [b"Authorization: Bearer wrong"],
        [b"Authorization: Bearer " + OFFICE[:-1].encode()],
        [b"Authorization: Bearer " + OFFICE.upper().encode()],
        [b"Authorization: Bearer office:" + OFFICE.encode()],
        [b"Authorization: Bearer"],
        [b"Authorization: Bearer "],
        [b"Authorization:"],
        [b"Authorization: " + OFFICE.encode()],
        [b"Authorization: Token " + OFFICE.encode()],
        [b"Authorization: Bearer caf\xc3\xa9"],
        [b"Authorization: Bearer \xff\xfe"],
        [b"Authorization: \xff \xff"],
        [b"Authorization: Bearer " + OFFICE.encode() + b", Basic " + basic("office", OFFICE)[6:].encode()],
        [b"Authorization: Bearer " + OFFICE.encode(), b"Authorization: Bearer " + CI.encode()],
        [b"Authorization: Basic"],
        [b"Authorization: Basic !!!"],
        [b"Authorization: Basic =", b"X-API-Key:"],
        [b"Authorization: Basic " + base64.b64encode(b"no colon")],
        [b"Authorization: Basic " + base64.b64encode(b":")],
        [b"Authorization: Basic " + base64.b64encode(b"\xff\xfe:\xff")],
        [b"Authorization: Basic caf\xc3\xa9"],
        [b"Authorization: " + basic("", OFFICE).encode()],
        [b"Authorization: " + basic("ci", OFFICE).encode()],
        [b"Authorization: " + basic("Office", OFFICE).encode()],
        [b"Authorization: " + basic(OFFICE, "office").encode()],
        [b'Authorization: Digest username="office", realm="r", nonce="n", uri="/", response="r"'],
        [b"X-API-Key:"],
        [b"X-API-Key: wrong"],
        [b"X-API-Key: Bearer " + OFFICE.encode()],
        [b"X-API-Key: \xf0\x9f\x94\x91"],
        [b"X-API-Key: " + OFFICE.encode() + b"," + CI.encode()],
        [b"Cookie: key=" + OFFICE.encode()],
    ],
)
def test_anything_else_is_told_what_to_send(service: RunningService, lines: list[bytes]) -> None:
    answer = get(service, *lines)
    assert_problem(answer, 401, "in a browser the key's name as the user name and the key as the password")
    assert answer.headers.get_all("WWW-Authenticate") == [
        'Basic realm="Hospital bulk upload", charset="UTF-8"',
        'Bearer realm="Hospital bulk upload"',
    ]


def test_a_key_in_the_address_is_none(service: RunningService) -> None:
    assert_problem(get(service, path=f"/batches?api_key={OFFICE}&X-API-Key={OFFICE}"), 401)


def test_a_browser_gets_a_page(service: RunningService) -> None:
    answer = service.get("/", **BROWSER)
    assert answer.status_code == 401
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "An API key is needed" in answer.text


def test_no_wrong_key_comes_into_the_log(service: RunningService) -> None:
    for headers in (
        {"Authorization": "Bearer hunter2"},
        {"Authorization": basic("hunter2", "hunter2")},
        {"X-API-Key": "hunter2"},
    ):
        assert service.get("/batches", **headers).status_code == 401
    assert not re.search("hunter2|" + basic("hunter2", "hunter2")[6:], service.output)


def test_nothing_that_was_sent_has_broken_anything(service: RunningService) -> None:
    assert "Traceback" not in service.output
    assert "ERROR" not in service.output


# What a key is for


@pytest.fixture
def guarded(directory: Directory) -> Iterator[LocalService]:
    with LocalService(directory, api_keys=(ApiKey("office", OFFICE), ApiKey("ci", CI))) as service:
        yield service


def test_any_key_sees_every_batch(guarded: LocalService) -> None:
    batch = answered(guarded.upload(csv_of(1), {"X-API-Key": OFFICE}))
    assert answered(guarded.call("GET", f"/batches/{batch['batch_id']}", {"X-API-Key": CI})) == batch


def test_an_idempotency_key_is_of_the_api_key_it_came_with(guarded: LocalService) -> None:
    def upload(headers: dict[str, str]) -> str:
        return str(answered(guarded.upload(csv_of(1), headers | {"Idempotency-Key": "one"}))["batch_id"])

    of_office, of_ci = upload({"X-API-Key": OFFICE}), upload({"X-API-Key": CI})
    assert of_office != of_ci
    assert upload(BEARER) == upload({"Authorization": basic("office", OFFICE)}) == of_office
    assert upload({"X-API-Key": CI}) == of_ci


def test_another_site_is_refused_even_with_a_key(guarded: LocalService) -> None:
    assert guarded.upload(csv_of(1), BEARER | {"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert guarded.upload(csv_of(1), {"Sec-Fetch-Site": "cross-site"}).status_code == 401


def test_a_wrong_host_name_is_refused_before_a_key_is_asked_for(directory: Directory) -> None:
    with LocalService(directory, api_keys=(ApiKey("office", OFFICE),), trusted_hosts=("localhost",)) as service:
        for host in ("elsewhere.invalid", "a..b"):
            for accept in ("*/*", "text/html"):
                assert service.call("GET", "/batches", {"Host": host, "Accept": accept}).status_code == 400
        assert service.call("GET", "/batches", {"Host": "localhost"}).status_code == 401


def test_nothing_is_opened_for_who_has_no_key(tmp_path: Path) -> None:
    settings = Settings(api_keys=(ApiKey("office", OFFICE),), database_url=sqlite_url(tmp_path))
    assert create_app(settings).test_client().get("/batches").status_code == 401
    assert list(tmp_path.iterdir()) == []
