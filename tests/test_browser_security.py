"""What others may do through the pages, tried in a real browser: with their hospitals, their forms, their frames."""

from __future__ import annotations

import csv
import html
import io
import re
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
import requests
from playwright.sync_api import Page, expect

from tests.browser import Visits, batch_id, button, choose, csv_file, expect_status, table, upload
from tests.directory import Directory
from tests.hospitals import assert_exactly_once, csv_of
from tests.patience import PATIENCE
from tests.running import RunningService
from tests.second_origin import SecondOrigin

BROWSER = {"Accept": "text/html"}
HARM = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</textarea><script>alert(1)</script>",
    "</title><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "' autofocus onfocus=alert(1) '",
]
FORMULA = '=HYPERLINK("http://elsewhere.invalid","click")'
FILENAME = "<img src=x onerror=alert(1)>.csv"
OTHER_SITES = ["127.0.0.1", "localhost"]


@pytest.fixture(scope="module")
def service(shared_directory: Directory) -> Iterator[RunningService]:
    with RunningService(shared_directory.url) as running:
        yield running


def harmful(tag: str, **changes: str) -> bytes:
    """A file whose every value would do harm where it is taken for anything but text."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ["name", "address", "phone"])
    writer.writeheader()
    for value in (*HARM, FORMULA):
        writer.writerow({"name": value, "address": f"{tag} {value}", "phone": f"1{value[:40]}"} | changes)
    return text.getvalue().encode()


# What hospitals are named


def test_no_hospital_harms_the_page_of_its_check(service: RunningService, visit: Visits) -> None:
    page = visit(service.url)
    choose(page, harmful("Checked"), FILENAME)
    assert [row[1] for row in table(page, "#check-rows")] == [*HARM, FORMULA]
    button(page, "Only check the file").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(FILENAME)
    assert [row[1] for row in table(page, "#check-rows")] == [*HARM, FORMULA]
    choose(page, harmful("Bad", phone="none"), FILENAME)
    expect(page.locator("#check .banner.bad")).to_be_visible()
    assert [row[1] for row in table(page, "#check-rows")] == [*HARM, FORMULA]


def test_no_hospital_harms_the_pages_of_its_batch(service: RunningService, directory: Directory, visit: Visits) -> None:
    visit.expect_refusal(400)
    directory.faults([{"kind": "error", "status": 422, "call": "create", "times": 7}])
    page = visit(service.url)
    upload(page, harmful("Kept"), FILENAME)
    expect_status(page, "Failed")
    assert [field.input_value() for field in page.get_by_label("Name").all()] == [*HARM, FORMULA]
    page.get_by_label("Phone").first.fill("none")
    button(page, "Resume").click()
    expect(page.get_by_role("heading", name="There is a problem with these rows")).to_be_visible()
    assert [field.input_value() for field in page.get_by_label("Name").all()] == [*HARM, FORMULA]
    page.get_by_label("Phone").first.fill("")
    button(page, "Resume").click()
    expect_status(page, "Complete and active")
    assert [row[1] for row in table(page)] == [*HARM, FORMULA]
    assert_exactly_once(directory, service.get(f"/batches/{batch_id(page)}").json())
    for path in ("/", "/batches"):
        page.goto(service.url + path)
        expect(page.get_by_role("link", name=FILENAME).first).to_be_visible()


def test_no_hospital_harms_the_page_of_a_batch_that_runs(
    service: RunningService, directory: Directory, visit: Visits
) -> None:
    directory.settings(create_seconds=4)
    page = visit(service.url)
    upload(page, harmful("Running"), FILENAME)
    expect_status(page, "In progress")
    assert [row[1] for row in table(page)] == [*HARM, FORMULA]
    expect_status(page, "Complete and active")
    assert [row[1] for row in table(page)] == [*HARM, FORMULA]


def test_what_the_directory_answers_harms_nobody(service: RunningService, directory: Directory, visit: Visits) -> None:
    directory.faults([{"kind": "garbage", "call": "create", "body": HARM[0], "times": 50}])
    page = visit(service.url)
    upload(page, csv_of(1, "Garbled"))
    expect(page.locator("#summary .tag")).not_to_have_text("In progress")


def test_no_hospital_is_a_formula_in_the_results_file(service: RunningService, directory: Directory) -> None:
    batch = service.upload(harmful("Exported")).json()
    text = service.get(f"/batches/{batch['batch_id']}/results.csv").text
    records = list(csv.DictReader(io.StringIO(text)))
    assert [record["name"] for record in records] == [*HARM, "'" + FORMULA]
    cells = [cell for record in records for cell in record.values()]
    assert [cell for cell in cells if re.match(r"[=+\-@\t\r]", cell)] == []


@pytest.mark.parametrize("path", ["/{}", "/batches/{}", "/batches?status={}", "/batches?after={}", "/batches?limit={}"])
def test_no_address_harms_the_page_that_names_it(service: RunningService, visit: Visits, path: str) -> None:
    visit.expect_refusal(404)
    visit.expect_refusal(400)
    page = visit(service.url)
    for value in HARM:
        page.goto(service.url + path.format(quote(value, safe="")))
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        page.wait_for_timeout(30)


# What every answer says to browsers


def every_answer(service: RunningService) -> dict[str, requests.Response]:
    """An answer of every kind."""
    batch = service.upload(csv_of(1, "Answers"), {"Prefer": "wait=10"})
    path = f"/batches/{batch.json()['batch_id']}"
    found = {"upload": batch}
    for name in ("/", "/batches", path, f"{path}/events", f"{path}/results.csv", "/sample_hospitals.csv", "/health"):
        for kind in ("text/html", "application/json"):
            found[f"{name} {kind}"] = service.get(name, Accept=kind)
    for name in ("/static/page.js", "/static/style.css", "/nowhere", "/batches?limit=x", "/hospitals/bulk"):
        found[name] = service.get(name, **BROWSER)
    found["bad"] = service.upload(b"name,address\nA,\n", BROWSER)
    found["large"] = service.upload(b"x" * 1_200_000, BROWSER)
    found["cross-site"] = service.upload(csv_of(1), BROWSER | {"Sec-Fetch-Site": "cross-site"})
    found["conflict"] = requests.post(f"{service.url}{path}/resume", headers=BROWSER, timeout=60)
    return found


def test_every_answer_keeps_a_browser_from_harm(service: RunningService, directory: Directory) -> None:
    answers = every_answer(service)
    assert {answer.status_code for answer in answers.values()} == {200, 400, 403, 404, 405, 409, 413}
    for name, answer in answers.items():
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == "'self'", name
        assert policy["frame-ancestors"] == "'none'", name
        assert policy["form-action"] == "'self'", name
        assert policy["base-uri"] == "'none'", name
        assert "unsafe" not in answer.headers["Content-Security-Policy"], name
        assert answer.headers["X-Content-Type-Options"] == "nosniff", name
        assert "Set-Cookie" not in answer.headers, name
        assert "Access-Control-Allow-Origin" not in answer.headers, name


# What a page of another site sends


def assert_refused(page: Page) -> None:
    """The browser was answered with a refusal."""
    expect(page.get_by_role("heading", level=1)).to_have_text("That was refused")
    expect(page.get_by_text("This came from a page of another site")).to_be_visible()


@pytest.mark.parametrize("host", OTHER_SITES)
def test_a_form_of_another_site_uploads_nothing(
    service: RunningService, directory: Directory, visit: Visits, host: str
) -> None:
    visit.expect_refusal(403)
    page_there = f"""
        <form method="post" action="{service.url}/hospitals/bulk" enctype="multipart/form-data">
        <label>File <input type="file" name="file"></label><button>Send</button></form>"""
    before = len(service.get("/batches").json())
    with SecondOrigin(page_there) as other:
        visit.allow(service.url)
        page = visit(other.url(host))
        page.get_by_label("File").set_input_files(csv_file(csv_of(2, "From elsewhere")))
        button(page, "Send").click()
        assert_refused(page)
    assert directory.calls() == []
    assert len(service.get("/batches").json()) == before


@pytest.mark.parametrize("host", OTHER_SITES)
@pytest.mark.parametrize("action", ["resume", "rollback"])
def test_a_form_of_another_site_changes_no_batch(
    service: RunningService, directory: Directory, visit: Visits, host: str, action: str
) -> None:
    visit.expect_refusal(403)
    directory.faults([{"kind": "error", "status": 422, "call": "create", "times": 1}])
    before = service.upload(csv_of(2, f"{action} {host}")).json()
    assert before["status"] == "failed"
    directory.forget_calls()
    path = f"/batches/{before['batch_id']}"
    page_there = f"""
        <form method="post" action="{service.url}{path}/{action}" enctype="multipart/form-data">
        <input name="name-1" value="Theirs"><input name="name-2" value="Theirs"><button>Send</button></form>"""
    with SecondOrigin(page_there) as other:
        visit.allow(service.url)
        page = visit(other.url(host))
        button(page, "Send").click()
        assert_refused(page)
        assert "Theirs" not in page.content()
    assert directory.calls() == []
    assert service.get(path).json() == before


@pytest.mark.parametrize("host", OTHER_SITES)
def test_a_script_of_another_site_changes_nothing_and_reads_nothing(
    service: RunningService, directory: Directory, visit: Visits, host: str
) -> None:
    visit.expected += ["blocked by CORS policy", "net::ERR_FAILED", "status of 403 "]
    batch = service.upload(csv_of(2, f"Scripted {host}")).json()
    directory.forget_calls()
    path = f"{service.url}/batches/{batch['batch_id']}"
    with SecondOrigin("<h1>Elsewhere</h1>") as other:
        visit.allow(service.url)
        page = visit(other.url(host))
        told = page.evaluate(
            """async ([service, path]) => {
                const upload = new FormData();
                upload.append("file", new File(["name,address\\nTheirs,There\\n"], "a.csv"));
                const told = [];
                for (const [url, options] of [
                    [path, {}],
                    [path, {method: "DELETE"}],
                    [path + "/rollback", {method: "POST"}],
                    [path + "/rollback", {method: "POST", mode: "no-cors"}],
                    [service + "/hospitals/bulk", {method: "POST", body: upload}],
                    [service + "/hospitals/bulk", {method: "POST", body: upload, mode: "no-cors"}],
                ]) {
                    try { told.push(await (await fetch(url, options)).text()); } catch (error) { told.push("blocked"); }
                }
                return told;
            }""",
            [service.url, path],
        )
    assert told == ["blocked", "blocked", "blocked", "", "blocked", ""]
    assert directory.calls() == []
    assert service.get(f"/batches/{batch['batch_id']}").json()["status"] == "completed"


def test_a_sandboxed_form_without_an_origin_is_refused(
    service: RunningService, directory: Directory, visit: Visits
) -> None:
    visit.expect_refusal(403)
    form = f'<form method="post" action="{service.url}/batches/x/rollback"><button>Send</button></form>'
    page_there = f'<iframe sandbox="allow-forms allow-top-navigation" srcdoc="{html.escape(form)}"></iframe>'
    page_there = page_there.replace("&lt;form ", '&lt;form target="_top" ').replace('"_top"', "&quot;_top&quot;")
    with SecondOrigin(page_there) as other:
        visit.allow(service.url)
        page = visit(other.url("127.0.0.1"))
        page.frame_locator("iframe").get_by_role("button", name="Send").click()
        assert_refused(page)


@pytest.mark.parametrize("host", OTHER_SITES)
def test_no_page_is_shown_in_a_frame_of_another_site(
    service: RunningService, directory: Directory, visit: Visits, host: str
) -> None:
    visit.expected += ["frame-ancestors"]
    batch = service.upload(csv_of(1, f"Framed {host}")).json()["batch_id"]
    paths = ["/", "/batches", f"/batches/{batch}", "/nowhere", "/static/page.js", f"/batches/{batch}/events"]
    visit.expect_refusal(404)
    page_there = "".join(f'<iframe src="{service.url}{path}"></iframe>' for path in paths)
    with SecondOrigin(page_there) as other:
        visit.allow(service.url)
        page = visit(other.url(host))
        deadline = time.monotonic() + PATIENCE
        while len(refused := [fault for fault in visit.faults if "frame-ancestors" in fault]) < len(paths):
            assert time.monotonic() < deadline, refused
            page.wait_for_timeout(50)
        assert len(page.frames) == 1 + len(paths)
        assert [frame.url for frame in page.frames if frame.url.startswith(service.url)] == []


def test_the_services_own_forms_are_taken_under_either_name_of_the_host(
    service: RunningService, directory: Directory, visit: Visits
) -> None:
    page = visit(service.url.replace("127.0.0.1", "localhost"))
    upload(page, csv_of(1, "By its other name"))
    expect_status(page, "Complete and active")


def other_browser(origin: str) -> dict[str, Any]:
    """What a browser without `Sec-Fetch-Site` sends."""
    return BROWSER | {"Origin": origin}


def test_a_browser_without_fetch_metadata_is_judged_by_its_origin(
    service: RunningService, directory: Directory
) -> None:
    for origin in (
        "http://elsewhere.invalid",
        "null",
        service.url + "0",
        service.url.replace("127.0.0.1", "localhost"),
    ):
        assert service.upload(csv_of(1), other_browser(origin)).status_code == 403
    assert directory.calls() == []
    assert service.upload(csv_of(1, "Of its own"), other_browser(service.url)).status_code == 200
