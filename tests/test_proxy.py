"""`PROXY_COUNT`: whose word is taken for where a request comes from."""

from __future__ import annotations

import pytest
from flask import Flask, request

from app import create_app
from settings import RateLimit, Settings
from tests.directory import Directory
from tests.problems import assert_problem
from tests.raw_http import post, send
from tests.running import RunningService

DIRECT = "198.51.100.1"
CALLER = "203.0.113.7"


def seen(proxies: int, **headers: str) -> tuple[str | None, str, str]:
    """Address, scheme and host, as the service sees them with so many proxies, of a request that came from `DIRECT`."""
    app: Flask = create_app(Settings(proxy_count=proxies))
    found = []
    app.before_request(lambda: found.append((request.remote_addr, request.scheme, request.host)))
    sent = {f"X-Forwarded-{name.title()}": value for name, value in headers.items()}
    app.test_client().get("/health", headers=sent, environ_overrides={"REMOTE_ADDR": DIRECT})
    [one] = found
    return one


@pytest.mark.parametrize(
    ("proxies", "headers", "address", "scheme"),
    [
        (0, {"for": CALLER, "proto": "https"}, DIRECT, "http"),
        (1, {}, DIRECT, "http"),
        (1, {"for": CALLER, "proto": "https"}, CALLER, "https"),
        (1, {"for": f"192.0.2.66, {CALLER}", "proto": "https"}, CALLER, "https"),
        (1, {"for": "2001:db8::1"}, "2001:db8::1", "http"),
        (1, {"for": ""}, DIRECT, "http"),
        (2, {"for": f"192.0.2.66, {CALLER}, 192.0.2.9", "proto": "https, http"}, CALLER, "https"),
        (2, {"for": CALLER}, DIRECT, "http"),
    ],
)
def test_the_last_proxies_are_believed_and_nobody_before_them(
    proxies: int, headers: dict[str, str], address: str, scheme: str
) -> None:
    assert seen(proxies, **headers)[:2] == (address, scheme)


@pytest.mark.parametrize("proxies", [0, 1])
def test_the_host_is_what_the_request_names(proxies: int) -> None:
    assert seen(proxies, host="elsewhere.invalid", port="81", prefix="/x")[2] == "localhost"


def test_a_host_name_is_not_made_trusted_by_a_header() -> None:
    app = create_app(Settings(proxy_count=1, trusted_hosts=("example.org",)))
    headers = {"Host": "elsewhere.invalid", "X-Forwarded-Host": "example.org"}
    assert app.test_client().get("/health", headers=headers).status_code == 400


def test_each_caller_behind_a_proxy_has_a_limit_of_its_own() -> None:
    app = create_app(Settings(proxy_count=1, request_limit=RateLimit(1, 3600)))

    def status(forwarded_for: str) -> int:
        return app.test_client().get("/openapi.json", headers={"X-Forwarded-For": forwarded_for}).status_code

    assert [status("192.0.2.1"), status("192.0.2.2"), status("192.0.2.1")] == [200, 200, 429]
    assert status("192.0.2.77, 192.0.2.1") == 429


# Under gunicorn, which has a trust of its own in callers on the same machine


@pytest.mark.parametrize(
    ("proxies", "statuses"), [(0, [200, 429, 429]), (1, [200, 200, 429])], ids=["direct", "behind a proxy"]
)
def test_a_caller_on_this_machine_is_believed_only_behind_a_proxy(
    directory: Directory, proxies: int, statuses: list[int]
) -> None:
    with RunningService(directory.url, request_limit="1/3600", proxy_count=proxies) as service:
        answers = [
            service.get("/openapi.json", **{"X-Forwarded-For": address})
            for address in ("192.0.2.1", "192.0.2.2", "192.0.2.2")
        ]
        assert [answer.status_code for answer in answers] == statuses


@pytest.mark.parametrize(("proxies", "status"), [(0, 403), (1, 415)], ids=["direct", "behind a proxy"])
def test_a_scheme_is_believed_only_behind_a_proxy(directory: Directory, proxies: int, status: int) -> None:
    # Port 443 is part of what a host is called, unless it is the scheme's own.
    lines = ["Origin: https://example.org", "X-Forwarded-Proto: https"]
    sent = post("/hospitals/bulk", b"", *lines).replace(b"Host: localhost", b"Host: example.org:443")
    with RunningService(directory.url, proxy_count=proxies) as service:
        assert_problem(send(service.url, sent), status)


def test_no_header_moves_the_service_to_another_path(directory: Directory) -> None:
    with RunningService(directory.url) as service:
        head = [b"GET / HTTP/1.1", b"Host: localhost", b"Accept: text/html", b"Connection: close"]
        sent = b"\r\n".join([*head, b"SCRIPT_NAME: /elsewhere", b"PATH_INFO: /nowhere", b"", b""])
        answer = send(service.url, sent)
    assert answer.status_code == 200
    assert "elsewhere" not in answer.text
