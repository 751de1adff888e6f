"""The list of batches and the pages of refusals, in a real browser."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import pytest
import requests
from playwright.sync_api import Page, expect

from tests.browser import Visits, button, choose, csv_file, expect_status
from tests.directory import Directory
from tests.hospitals import csv_of
from tests.odd_files import MEBIBYTE, rows
from tests.running import RunningService

UNKNOWN = "/batches/7c9e6679-7425-40de-944b-e07fc1f90ae7"


@pytest.fixture(scope="module")
def service(shared_directory: Directory) -> Iterator[RunningService]:
    """It has batches 0 to 4, the last two of them failed."""
    shared_directory.reset()
    with RunningService(shared_directory.url) as running:
        for number in range(5):
            if number == 3:
                shared_directory.faults([{"kind": "error", "status": 422, "call": "create", "times": 2}])
            files = {"file": (f"{number}.csv", csv_of(1, f"Listed {number}"))}
            assert requests.post(running.url + "/hospitals/bulk", files=files, timeout=60).ok
        shared_directory.reset()
        yield running


@pytest.fixture(scope="module")
def busy_service() -> Iterator[RunningService]:
    """A service that runs one batch at most, over a directory that is not there."""
    # Bound and not listening, the port refuses connections and nobody else takes it.
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with RunningService(url, max_running_batches=1) as running:
            assert running.upload(csv_of(1), {"Prefer": "respond-async"}).status_code == 202
            yield running


def names(page: Page) -> list[str]:
    """The files of the batches that the page lists."""
    return page.locator("main table a").all_inner_texts()


def test_batches_are_filtered_by_status(service: RunningService, visit: Visits) -> None:
    page = visit(service.url)
    page.get_by_role("link", name="All batches").click()
    assert names(page) == ["4.csv", "3.csv", "2.csv", "1.csv", "0.csv"]
    for words, files in [
        ("Failed", ["4.csv", "3.csv"]),
        ("Complete and active", ["2.csv", "1.csv", "0.csv"]),
        ("Rolled back", []),
        ("Any", ["4.csv", "3.csv", "2.csv", "1.csv", "0.csv"]),
    ]:
        page.get_by_label("Status").select_option(words)
        button(page, "Show").click()
        expect(page.get_by_label("Status").locator("option:checked")).to_have_text(words)
        assert names(page) == files
        assert page.get_by_text("There are none of this status.").count() == (not files)
        assert page.get_by_role("navigation", name="Pages").count() == 0


def test_batches_are_paged_from_the_newest_to_the_oldest_and_back(service: RunningService, visit: Visits) -> None:
    page = visit(service.url + "/batches?limit=2")
    for files in (["4.csv", "3.csv"], ["2.csv", "1.csv"]):
        assert names(page) == files
        page.get_by_role("link", name="Older batches").click()
    assert names(page) == ["0.csv"]
    expect(page.get_by_role("link", name="Older batches")).to_have_count(0)
    page.get_by_role("link", name="Newest batches").click()
    assert names(page)[0] == "4.csv"

    page.goto(service.url + "/batches?limit=1&status=failed")
    page.get_by_role("link", name="Older batches").click()
    assert names(page) == ["3.csv"]
    expect(page.get_by_role("link", name="Older batches")).to_have_count(0)
    page.get_by_role("link", name="Newest batches").click()
    assert names(page) == ["4.csv", "3.csv"]


def test_a_batch_is_found_in_the_list(service: RunningService, visit: Visits) -> None:
    page = visit(service.url + "/batches")
    page.get_by_role("link", name="3.csv").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("3.csv")
    expect_status(page, "Failed")


def test_the_list_of_a_new_service_says_that_there_are_none(directory: Directory, visit: Visits) -> None:
    with RunningService(directory.url) as service:
        page = visit(service.url + "/batches")
        expect(page.get_by_text("There are none.")).to_be_visible()
        page.goto(service.url)
        expect(page.get_by_role("heading", name="Last batches")).to_have_count(0)


@pytest.mark.parametrize(
    ("path", "status", "heading", "words"),
    [
        ("/batches?status=lost", 400, "That could not be understood", "status must be one of"),
        ("/batches?after=nothing", 400, "That could not be understood", "begin without it"),
        ("/nowhere", 404, "There is no such page", "There is nothing at /nowhere."),
        (UNKNOWN, 404, "There is no such page", "There is no batch"),
        (UNKNOWN + "/results.csv", 404, "There is no such page", "There is no batch"),
        ("/hospitals/bulk", 405, "That is not possible here", "GET is not possible here"),
    ],
)
def test_a_wrong_address_has_a_page_with_a_way_on(
    service: RunningService, visit: Visits, path: str, status: int, heading: str, words: str
) -> None:
    visit.expect_refusal(status)
    page = visit(service.url + path)
    expect(page.get_by_role("heading", level=1)).to_have_text(heading)
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    expect(page).to_have_title(re.compile(f"^{heading} . Hospital bulk upload$"))
    expect(page.locator("main")).to_contain_text(words)
    page.get_by_role("link", name="To the start page").click()
    expect(page.get_by_label("CSV file with the hospitals")).to_be_visible()


def test_a_file_too_large_has_a_page_with_a_form_that_works(service: RunningService, visit: Visits) -> None:
    visit.expect_refusal(413)
    page = visit(service.url, script=False)
    choose(page, rows(2 * MEBIBYTE))
    button(page, "Upload and create").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("The file is too large")
    expect(page.get_by_text("Nothing was created.")).to_be_visible()
    choose(page, csv_of(1, "Small enough"))
    button(page, "Upload and create").click()
    expect_status(page, "Complete and active")


def test_the_form_of_a_refusal_checks_its_file_too(service: RunningService, visit: Visits) -> None:
    visit.expect_refusal(413)
    page = visit(service.url)
    page.route("**/validate", lambda route: route.abort("aborted"))
    visit.expected.append("net::ERR_ABORTED")
    page.get_by_label("CSV file with the hospitals").set_input_files(csv_file(rows(2 * MEBIBYTE)))
    button(page, "Upload and create").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("The file is too large")
    page.unroute("**/validate")
    page.get_by_label("CSV file with the hospitals").set_input_files(csv_file(b"name,address\nA,\n"))
    expect(page.get_by_role("heading", name="There is a problem with this file")).to_be_visible()
    expect(page.locator("#check-rows .label")).to_have_text("Missing")


def test_a_busy_service_has_a_page_with_a_form(busy_service: RunningService, visit: Visits) -> None:
    visit.expect_refusal(503)
    page = visit(busy_service.url)
    choose(page, csv_of(1, "Too many"))
    button(page, "Upload and create").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Not just now")
    expect(page.get_by_text("Too many batches run at the moment, so nothing was done.")).to_be_visible()
    expect(button(page, "Upload and create")).to_be_visible()
    assert len(busy_service.get("/batches").json()) == 1
