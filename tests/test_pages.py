"""What is read over real HTTP: batches and their list, health, the pages, and what is answered at any other address."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests

from tests.directory import Directory
from tests.hospitals import csv_of
from tests.odd_files import multipart, part
from tests.problems import assert_problem
from tests.raw_http import post, send
from tests.running import RunningService

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"}
VALIDATE = "/hospitals/bulk/validate"
UNKNOWN = "/batches/7c9e6679-7425-40de-944b-e07fc1f90ae7"


@pytest.fixture(scope="module")
def service(shared_directory: Directory) -> Iterator[RunningService]:
    with RunningService(shared_directory.url) as running:
        yield running


@pytest.fixture(scope="module")
def lonely_service() -> Iterator[RunningService]:
    """A service that knows itself as 127.0.0.1 alone, runs one batch at most, and whose directory is not there."""
    # Bound and not listening, the port refuses connections and nobody else takes it.
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with RunningService(url, max_running_batches=1, trusted_hosts="127.0.0.1") as running:
            yield running


def uploaded(service: RunningService, tag: str = "Hospital") -> str:
    """Upload a file and return its batch's id."""
    return str(service.upload(csv_of(2, tag)).json()["batch_id"])


# Looking at a file


def test_a_good_file_is_read_and_nobody_is_called(service: RunningService, directory: Directory) -> None:
    answer = service.upload(b"Address;NAME\n1 Main St;A\n\n2 Main St;B\n", path=VALIDATE)
    assert answer.status_code == 200
    assert answer.json() == {
        "valid": True,
        "total_hospitals": 2,
        "hospitals": [
            {"row": 1, "line": 2, "name": "A", "address": "1 Main St", "phone": None},
            {"row": 2, "line": 4, "name": "B", "address": "2 Main St", "phone": None},
        ],
        "errors": [],
        "warnings": [],
    }
    assert list(answer.json()) == ["valid", "total_hospitals", "hospitals", "errors", "warnings"]
    assert directory.calls() == []


def test_a_bad_file_is_shown_with_the_rows_that_can_be_read(service: RunningService, directory: Directory) -> None:
    answer = service.upload(b"name,address,phone\nA,,none\nB,b,1\n", path=VALIDATE)
    assert answer.status_code == 200
    seen = answer.json()
    assert seen["valid"] is False
    assert [(row["name"], row["address"], row["phone"]) for row in seen["hospitals"]] == [
        ("A", "", "none"),
        ("B", "b", "1"),
    ]
    assert [error["code"] for error in seen["errors"]] == ["missing_value", "bad_phone"]
    assert directory.calls() == []


def test_the_same_hospitals_again_are_warned_of(service: RunningService, directory: Directory) -> None:
    batch_id = uploaded(service, "Again")
    header, *rows = csv_of(2, "Again").splitlines(keepends=True)
    for content in (csv_of(2, "Again"), header + b"".join(reversed(rows))):
        seen = service.upload(content, path=VALIDATE).json()
        assert seen["valid"] is True
        [warning] = seen["warnings"]
        assert warning["code"] == "uploaded_before"
        assert warning["batch_id"] == batch_id
        assert batch_id in warning["message"]
    assert service.upload(csv_of(3, "Again"), path=VALIDATE).json()["warnings"] == []


def test_the_sample_can_be_downloaded_and_uploaded(service: RunningService, directory: Directory) -> None:
    sample = service.get("/sample_hospitals.csv")
    assert sample.headers["Content-Type"].startswith("text/csv")
    assert "attachment" in sample.headers["Content-Disposition"]
    assert "sample_hospitals.csv" in sample.headers["Content-Disposition"]
    assert service.upload(sample.content, path=VALIDATE).json()["valid"] is True
    assert service.upload(sample.content).json()["status"] == "completed"


# Batches


def test_batches_are_listed_newest_first_to_the_end(directory: Directory) -> None:
    with RunningService(directory.url) as service:
        directory.faults([{"kind": "error", "status": 422, "call": "create", "times": 4}])
        ids = [uploaded(service, f"Batch {number}") for number in range(7)]
        whole = service.get("/batches").json()
        assert [batch["batch_id"] for batch in whole] == ids[::-1]
        assert "hospitals" not in whole[0]
        assert [batch["status"] for batch in whole] == ["completed"] * 5 + ["failed"] * 2

        assert ids_of(pages(service, "/batches?limit=3")) == [ids[6:3:-1], ids[3:0:-1], ids[:1]]
        assert ids_of(pages(service, "/batches?limit=7")) == [ids[::-1]]
        assert ids_of(pages(service, "/batches?limit=1&status=failed")) == [ids[1:2], ids[:1]]
        assert ids_of(pages(service, "/batches?status=interrupted")) == [[]]
        assert ids_of(pages(service, "/batches?status=completed&limit=200")) == [ids[:1:-1]]


def mended(results: bytes, name: str = "file", filename: bytes | None = b"results.csv") -> bytes:
    """A form with a results file in which every address was mended."""
    return multipart(part(results.replace(b"Main Street", b"Park Lane"), name, filename))


UNREADABLE = {
    "another field": lambda results: mended(results, name="csv"),
    "a file name that is not UTF-8": lambda results: mended(results, filename="Spitäler.csv".encode("latin-1")),
    "cut short": lambda results: mended(results)[:-20],
    "another boundary": lambda results: mended(results).replace(b"--limit", b"--other"),
}


@pytest.mark.parametrize("form", UNREADABLE.values(), ids=UNREADABLE)
def test_a_mended_file_that_cannot_be_read_resumes_nothing(
    service: RunningService, directory: Directory, form: Callable[[bytes], bytes]
) -> None:
    directory.faults([{"kind": "error", "status": 422, "call": "create", "times": 2}])
    batch = f"/batches/{uploaded(service)}"
    body = form(service.get(f"{batch}/results.csv").content)
    answer = send(service.url, post(f"{batch}/resume", body, "Content-Type: multipart/form-data; boundary=limit"))
    assert_problem(answer, 400)
    assert service.get(batch).json()["status"] == "failed"
    assert directory.hospitals() == []


def pages(service: RunningService, path: str) -> list[list[dict[str, Any]]]:
    """The list of batches, page by page as the `Link` header leads on."""
    found = []
    while path:
        answer = service.get(path)
        assert answer.status_code == 200
        found.append(answer.json())
        link = re.fullmatch(r'<(/batches\?[^>]+)>; rel="next"', answer.headers.get("Link", ""))
        path = link[1] if link else ""
        assert len(found) < 20
    return found


def ids_of(found: list[list[dict[str, Any]]]) -> list[list[str]]:
    """The ids of the batches on each page."""
    return [[batch["batch_id"] for batch in page] for page in found]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("status=done", "`status` must be one of processing, completed, failed, interrupted, rolled_back."),
        ("status=COMPLETED", "`status` must be one of"),
        ("limit=0", "`limit` must be a whole number from 1 to 200."),
        ("limit=201", "`limit` must be"),
        ("limit=-1", "`limit` must be"),
        ("limit=1e2", "`limit` must be"),
        ("limit=%D9%A3", "`limit` must be"),
        ("limit=" + "9" * 3000, "`limit` must be"),
        ("after=nobody", "`after`"),
        ("after=%00", "`after`"),
    ],
)
def test_a_list_that_cannot_be_meant_is_refused(service: RunningService, query: str, words: str) -> None:
    assert_problem(service.get(f"/batches?{query}"), 400, words)


def test_the_list_has_a_link_to_older_batches_for_a_browser(service: RunningService, directory: Directory) -> None:
    newest = [uploaded(service, f"Listed {number}") for number in range(2)][-1]
    page = service.get("/batches?limit=1", **BROWSER)
    [link] = re.findall(r'href="([^"]+)" rel="next"', page.text)
    assert f"/batches/{newest}" in page.text
    assert parse_qs(urlsplit(link.replace("&amp;", "&")).query) == {"limit": ["1"], "after": [newest]}


# Refusals at any address


@pytest.mark.parametrize(
    "path",
    [
        "/nowhere",
        UNKNOWN,
        "/batches/",
        "/batches/..",
        "/batches/%2e%2e/health",
        "/batches/%00",
        "/batches/%ff",
        "/batches/" + "a" * 3000,
        "/hospitals/bulk/",
        "/HEALTH",
        "/app.py",
        "/.env",
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fsettings.py",
        "/sample_hospitals.csv/../app.py",
        "/templates/base.html",
        "/favicon.ico",
        "/<script>",
    ],
)
def test_there_is_nothing_at_other_addresses(service: RunningService, path: str) -> None:
    # requests and curl would mend the path.
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    problem = assert_problem(send(service.url, request.encode()), 404)
    assert len(problem["detail"]) < 300


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("DELETE", ""),
        ("GET", "/events"),
        ("GET", "/results.csv"),
        ("POST", "/resume"),
        ("POST", "/rollback"),
    ],
)
def test_nothing_can_be_done_with_a_batch_that_is_none(service: RunningService, method: str, path: str) -> None:
    assert_problem(requests.request(method, service.url + UNKNOWN + path, timeout=60), 404, "There is no batch")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/hospitals/bulk", {"POST"}),
        ("DELETE", "/hospitals/bulk", {"POST"}),
        ("GET", VALIDATE, {"POST"}),
        ("POST", "/batches", {"GET", "HEAD"}),
        ("PUT", UNKNOWN, {"GET", "HEAD"}),
        ("POST", "/health", {"GET", "HEAD"}),
        ("POST", "/", {"GET", "HEAD"}),
        ("BREW", "/ready", {"GET", "HEAD"}),
    ],
)
def test_another_method_is_refused_with_those_that_are_allowed(
    service: RunningService, method: str, path: str, allowed: set[str]
) -> None:
    answer = requests.request(method, service.url + path, timeout=60)
    assert_problem(answer, 405, method)
    assert set(answer.headers["Allow"].split(", ")) >= allowed


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (BROWSER["Accept"], "text/html"),
        ("text/html", "text/html"),
        ("text/*", "text/html"),
        ("application/json;q=0.5, text/html", "text/html"),
        ("*/*", "application/problem+json"),
        ("application/json", "application/problem+json"),
        ("application/json, text/html", "application/problem+json"),
        ("text/html;q=0.5, */*", "application/problem+json"),
        ("image/png", "application/problem+json"),
        ("nonsense", "application/problem+json"),
        ("", "application/problem+json"),
    ],
)
@pytest.mark.parametrize("path", ["/nowhere", UNKNOWN, "/batches?limit=none"])
def test_a_refusal_is_a_page_only_for_who_prefers_pages(
    service: RunningService, path: str, accept: str, kind: str
) -> None:
    answer = service.get(path, Accept=accept)
    assert answer.status_code in (400, 404)
    assert answer.headers["Content-Type"].split(";")[0] == kind


def test_who_accepts_problems_by_name_gets_one(service: RunningService) -> None:
    assert_problem(service.get("/nowhere", Accept="application/problem+json, text/html;q=0.9"), 404)


def test_a_batch_too_many_is_refused_until_one_has_ended(lonely_service: RunningService) -> None:
    first = lonely_service.upload(csv_of(1), headers={"Prefer": "respond-async"})
    assert first.status_code == 202
    second = lonely_service.upload(csv_of(1))
    assert_problem(second, 503, "Too many batches run")
    assert second.headers["Retry-After"].isdigit()
    assert len(lonely_service.get("/batches").json()) == 1


def test_another_host_name_is_refused(lonely_service: RunningService) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost"):
        for path in ("/", "/batches", "/health", "/nowhere"):
            assert_problem(lonely_service.get(path, Host=host), 400, "TRUSTED_HOSTS")
        body = multipart(part(csv_of(1)))
        request = post("/hospitals/bulk", body, "Content-Type: multipart/form-data; boundary=limit")
        assert_problem(send(lonely_service.url, request.replace(b"localhost", host.encode())), 400, "TRUSTED_HOSTS")
    assert lonely_service.get("/health", Host="127.0.0.1:1234").status_code == 200


def test_capitals_name_the_same_host(directory: Directory) -> None:
    with RunningService(directory.url, trusted_hosts="localhost,.Example.org") as service:
        for host in ("LocalHost", "LOCALHOST:8000", "WWW.Example.org"):
            assert service.get("/health", Host=host).status_code == 200


def test_a_browser_is_told_in_a_page_that_the_host_is_another(lonely_service: RunningService) -> None:
    for path in ("/", "/nowhere", "/static/style.css"):
        answer = lonely_service.get(path, Host="evil.example", Accept="text/html")
        assert answer.status_code == 400
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert "This host name is not one of TRUSTED_HOSTS." in answer.text


@pytest.mark.parametrize("host", ["a..b", ".", "..", "x" * 64 + ".example"])
@pytest.mark.parametrize("path", ["/", "/health", "/nowhere"])
def test_a_host_that_is_none_is_refused_in_json_and_in_a_page(service: RunningService, host: str, path: str) -> None:
    assert_problem(service.get(path, Host=host), 400, "does not name a host")
    page = service.get(path, Host=host, Accept="text/html")
    assert (page.status_code, page.headers["Content-Type"]) == (400, "text/html; charset=utf-8")
    assert "does not name a host" in page.text
    assert "Traceback" not in service.output


# Health


def test_the_service_says_that_it_is_healthy_and_calls_nobody(service: RunningService, directory: Directory) -> None:
    for path, said in [("/health", {"status": "healthy"}), ("/ready", {"status": "ready"})]:
        answer = service.get(path)
        assert (answer.status_code, answer.json()) == (200, said)
    assert directory.calls() == []


@pytest.mark.parametrize("asked", ["true", "True", "1"])
def test_when_asked_it_says_whether_the_directory_is_there(
    service: RunningService, directory: Directory, asked: str
) -> None:
    assert service.get(f"/ready?directory={asked}").json() == {"status": "ready"}
    assert [call["kind"] for call in directory.calls()] == ["root"]


@pytest.mark.parametrize("status", [502, 503])
def test_a_directory_that_sleeps_is_not_ready(service: RunningService, directory: Directory, status: int) -> None:
    directory.faults([{"kind": "sleep", "seconds": 30, "status": status}])
    answer = service.get("/ready?directory=true")
    assert_problem(answer, 503, "The directory")
    assert answer.headers["Retry-After"].isdigit()


def test_a_directory_that_is_not_there_is_not_ready(lonely_service: RunningService) -> None:
    answer = lonely_service.get("/ready?directory=true")
    assert_problem(answer, 503, "The directory could not be reached.")
    assert answer.headers["Retry-After"].isdigit()
    assert lonely_service.get("/ready").status_code == 200


# Pages


def test_the_start_page_has_the_form(service: RunningService) -> None:
    page = service.get("/", **BROWSER)
    assert page.status_code == 200
    assert page.headers["Content-Type"].startswith("text/html")
    assert 'action="/hospitals/bulk"' in page.text
    assert 'enctype="multipart/form-data"' in page.text
    assert 'href="/sample_hospitals.csv"' in page.text


def test_a_form_is_answered_with_the_way_to_its_batch(service: RunningService, directory: Directory) -> None:
    files = {"file": ("<b>hospitals</b>.csv", csv_of(2))}
    answer = requests.post(
        service.url + "/hospitals/bulk", files=files, headers=BROWSER, allow_redirects=False, timeout=10
    )
    assert answer.status_code == 303
    batch = answer.headers["Location"]
    assert re.fullmatch(r"/batches/[0-9a-f-]{36}", batch)

    page = service.get(batch, **BROWSER)
    assert page.status_code == 200
    assert page.headers["Content-Type"].startswith("text/html")
    assert "&lt;b&gt;hospitals&lt;/b&gt;.csv" in page.text
    assert service.get(batch).json()["filename"] == "<b>hospitals</b>.csv"


def test_a_form_with_a_bad_file_is_answered_with_a_page_that_says_why(service: RunningService) -> None:
    content = b"name,address,phone\n<script>alert(1)</script>,,none\n"
    page = service.upload(content, headers=BROWSER)
    assert page.status_code == 400
    assert page.headers["Content-Type"].startswith("text/html")
    assert "Missing" in page.text
    assert "Has no digit" in page.text
    assert "&lt;script&gt;alert(1)" in page.text
    assert "<script>" not in page.text
    assert 'type="file"' in page.text  # to upload it mended


@pytest.mark.parametrize("path", ["/", "/batches", "/nowhere", "/health"])
def test_every_answer_keeps_a_browser_from_harm(service: RunningService, path: str) -> None:
    answer = service.get(path, **BROWSER)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe-inline" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|style=|(?:src|href)=\"(?:https?:)?//", answer.text)
