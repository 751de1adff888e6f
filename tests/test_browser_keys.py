"""The pages where `API_KEYS` is set: a browser that knows a key's name and the key finds everything as without."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest
from playwright.sync_api import Error, HttpCredentials, Page, expect

from tests.browser import Visits, batch_id, button, choose, csv_file, expect_status, table, upload
from tests.directory import Directory
from tests.hospitals import assert_exactly_once, csv_of
from tests.running import RunningService

KEY = "0th=er+/s3cret"
OTHER = "a-key-of-a-machine"
HEADERS = {"X-API-Key": KEY}
OFFICE: HttpCredentials = {"username": "office", "password": KEY}


@pytest.fixture(scope="module")
def service(shared_directory: Directory) -> Iterator[RunningService]:
    with RunningService(shared_directory.url, api_keys=f"office:{KEY},ci:{OTHER}") as running:
        yield running


def visit_with_key(visit: Visits, url: str, *, script: bool = True) -> Page:
    """Open a page as somebody who fills in the key when the browser asks for it."""
    return visit(url, script=script, http_credentials=OFFICE)


def test_the_browser_asks_for_a_key(service: RunningService, visit: Visits) -> None:
    visit.expect_refusal(401)
    visit.expected.append("strict MIME")  # what there is instead of the style and the script
    try:
        page = visit(service.url)
    except Error as error:
        # Where nobody fills it in, that is how a browser with windows says that it was to ask.
        if "ERR_INVALID_AUTH_CREDENTIALS" not in str(error):
            raise
    else:
        expect(page.get_by_role("heading", name="An API key is needed")).to_be_visible()


def test_with_a_wrong_key_the_page_says_what_is_needed(service: RunningService, visit: Visits) -> None:
    visit.expect_refusal(401)
    visit.expected.append("strict MIME")  # what there is instead of the style and the script
    page = visit(service.url, http_credentials={"username": "office", "password": "wrong"})
    expect(page.get_by_role("heading", name="An API key is needed")).to_be_visible()


def test_a_file_is_checked_uploaded_and_followed(service: RunningService, directory: Directory, visit: Visits) -> None:
    directory.settings(create_seconds=4)
    page = visit_with_key(visit, service.url)
    with page.expect_response("**/events") as stream:
        upload(page, csv_of(3, "Guarded"))
    assert stream.value.status == 200
    expect_status(page, "In progress")
    expect_status(page, "Complete and active")
    assert [row[1] for row in table(page)] == [f"Guarded {number}" for number in range(3)]
    assert_exactly_once(directory, service.get(f"/batches/{batch_id(page)}", **HEADERS).json())


def test_the_results_can_be_downloaded(service: RunningService, directory: Directory, visit: Visits) -> None:
    page = visit_with_key(visit, service.url)
    upload(page, csv_of(2, "Kept"))
    expect_status(page, "Complete and active")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the results").click()
    assert "Kept 0" in download.value.path().read_text(encoding="utf-8-sig")


@pytest.mark.parametrize("script", [True, False], ids=["with a script", "without"])
def test_the_forms_work(service: RunningService, directory: Directory, visit: Visits, script: bool) -> None:
    directory.faults([{"kind": "error", "status": 422, "call": "create", "times": 1}])
    page = visit_with_key(visit, service.url, script=script)
    choose(page, csv_of(2, "Formed"))
    button(page, "Upload and create").click()
    expect_status(page, "Failed")
    button(page, "Resume").click()
    expect_status(page, "Complete and active")


def test_every_page_has_its_style_and_script(service: RunningService, visit: Visits) -> None:
    page = visit_with_key(visit, service.url)
    answers: list[tuple[int, str]] = []
    page.on("response", lambda answer: answers.append((answer.status, answer.url)))
    for path in ("/", "/batches", "/docs", "/redoc"):
        page.goto(service.url + path, wait_until="networkidle")
    assert len(answers) > 10
    assert [answer for answer in answers if answer[0] not in (200, 304)] == []


@pytest.mark.parametrize(
    ("place", "filled_in", "header", "value"),
    [
        (0, [OTHER], "authorization", f"Bearer {OTHER}"),
        (1, [OTHER], "x-api-key", OTHER),
        (2, ["ci", OTHER], "authorization", "Basic " + base64.b64encode(f"ci:{OTHER}".encode()).decode()),
    ],
    ids=["bearer", "X-API-Key", "basic"],
)
def test_another_key_can_be_tried_in_swagger_ui(
    service: RunningService,
    directory: Directory,
    visit: Visits,
    place: int,
    filled_in: list[str],
    header: str,
    value: str,
) -> None:
    page = visit_with_key(visit, f"{service.url}/docs")
    button(page, "Authorize").click()
    form = page.locator(".auth-container").nth(place)
    for number, text in enumerate(filled_in):
        form.locator("input").nth(number).fill(text)
    form.get_by_role("button", name="Apply credentials").click()
    form.get_by_role("button", name="Close").click()

    bulk = page.locator("#operations-Upload-uploadHospitals")
    bulk.locator(".opblock-summary-control").click()
    bulk.locator("input[type=file]").set_input_files(csv_file(csv_of(1)))
    with page.expect_request("**/hospitals/bulk") as sent:
        bulk.get_by_role("button", name="Execute").click()
    assert sent.value.all_headers()[header] == value
    expect(bulk.locator(".live-responses-table")).to_contain_text('"status": "completed"')
