"""The pages for everybody, in a real browser: without JavaScript, by keyboard alone, on a phone, by screen reader."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files

import pytest
import requests
from playwright.sync_api import Page, expect

from tests.browser import BATCH_PAGE, Visits, batch_id, button, choose, csv_file, expect_status, settle, table, upload
from tests.directory import Directory
from tests.hospitals import assert_exactly_once, csv_of
from tests.running import RunningService

BROWSER = {"Accept": "text/html"}
NARROW = 360
# A word that can be broken nowhere, and as much as a row may hold.
LONG = b"name,address,phone\n%s,%s,%s\n" % (b"W" * 500, b"long words " * 45, b"5" * 50)
BAD = b"name,address,phone\n%s,,none\n,5 Oak Lane,555-0103\nTwin,1 Same Street,\nTwin,1 Same Street,\n" % (b"W" * 501)


@pytest.fixture(scope="module")
def _service(shared_directory: Directory) -> Iterator[RunningService]:
    with RunningService(shared_directory.url, max_concurrent_creates=2) as running:
        yield running


@pytest.fixture
def service(_service: RunningService) -> Iterator[RunningService]:
    """It creates two hospitals at a time."""
    yield _service
    settle(_service)


@pytest.fixture(scope="module")
def kinds(_service: RunningService, shared_directory: Directory) -> dict[str, str]:
    """The addresses of pages of every kind, the batch in progress excepted."""
    shared_directory.reset()
    completed = _service.upload(LONG).json()["batch_id"]
    shared_directory.faults([{"kind": "error", "status": 422, "call": "create", "times": 1}])
    failed = _service.upload(LONG.replace(b"W", b"M") + csv_of(2, "Kinds").split(b"\n", 1)[1]).json()["batch_id"]
    shared_directory.reset()
    rolled_back = _service.upload(csv_of(2, "Gone")).json()["batch_id"]
    assert requests.delete(f"{_service.url}/batches/{rolled_back}", timeout=60).status_code == 200
    return {
        "front": "/",
        "batches": "/batches?limit=2",
        "completed": f"/batches/{completed}",
        "failed": f"/batches/{failed}",
        "rolled back": f"/batches/{rolled_back}",
        "error": "/" + "nowhere" * 30,
    }


def running(page: Page, service: RunningService, directory: Directory, tag: str) -> str:
    """Go to the page of a batch that takes some seconds more; returns its id."""
    directory.settings(create_seconds=2.5)
    page.goto(service.url)
    return upload(page, csv_of(8, tag))


# Without JavaScript


def test_without_javascript_a_file_is_uploaded_and_its_page_reloaded_until_it_is_complete(
    service: RunningService, directory: Directory, visit: Visits
) -> None:
    directory.settings(create_seconds=3)
    page = visit(service.url, script=False)
    upload(page, csv_of(4, "Plain"))
    expect_status(page, "In progress")
    expect(page.get_by_text(re.compile("About .* left"))).to_be_visible()
    expect_status(page, "Complete and active")
    assert_exactly_once(directory, service.get(f"/batches/{batch_id(page)}").json())
    assert page.locator("meta[http-equiv=refresh]").count() == 0


def test_without_javascript_errors_are_shown_with_the_form_and_mended(
    service: RunningService, directory: Directory, visit: Visits
) -> None:
    visit.expect_refusal(400)
    page = visit(service.url, script=False)
    choose(page, b"name,address\nNorth Hospital,\n")
    button(page, "Upload and create").click()
    expect(page.locator("#check li")).to_have_text(["Enter what is missing in 1 row"])
    assert table(page, "#check-rows") == [["2", "North Hospital", "Missing", ""]]
    expect(page.locator("#upload")).to_be_in_viewport(ratio=1)
    assert directory.calls() == []
    upload(page, b"name,address\nNorth Hospital,1 North Street\n")
    expect_status(page, "Complete and active")


def test_without_javascript_a_file_is_checked_only(
    service: RunningService, directory: Directory, visit: Visits
) -> None:
    page = visit(service.url, script=False)
    choose(page, "name,address\nKlinik Süd,Münchner Straße 1\n".encode("cp1252"))
    button(page, "Only check the file").click()
    expect(page.locator("#check li")).to_contain_text("Line 2 is not UTF-8")
    expect(button(page, "Read it as Windows-1252")).to_have_count(0)
    page.get_by_label("Saved as").select_option("windows-1252")
    choose(page, "name,address\nKlinik Süd,Münchner Straße 1\n".encode("cp1252"))
    button(page, "Only check the file").click()
    assert table(page, "#check-rows") == [["2", "Klinik Süd", "Münchner Straße 1", ""]]
    expect(page.get_by_label("Saved as")).to_have_value("windows-1252")
    assert directory.calls() == []


def test_without_javascript_a_failed_batch_is_mended_and_resumed(
    service: RunningService, directory: Directory, visit: Visits
) -> None:
    visit.expect_refusal(400)
    page = visit(service.url, script=False)
    directory.faults([{"kind": "error", "status": 422, "call": "create", "times": 1}])
    upload(page, csv_of(3, "Plainly mended"))
    expect_status(page, "Failed")
    page.get_by_label("Address").fill(" ")
    button(page, "Resume").click()
    expect(page.get_by_text("the address is missing.")).to_be_visible()
    page.get_by_label("Address").fill("1 Mended Road")
    button(page, "Resume").click()
    expect_status(page, "Complete and active")
    assert_exactly_once(directory, service.get(f"/batches/{batch_id(page)}").json())


def test_without_javascript_a_batch_is_rolled_back_while_it_runs(
    service: RunningService, directory: Directory, visit: Visits
) -> None:
    page = visit(service.url, script=False)
    batch = running(page, service, directory, "Plainly stopped")
    page.get_by_role("link", name="Roll back this batch").click()
    expect(page.get_by_text("This deletes all hospitals of this batch from the directory")).to_be_visible()
    page.wait_for_timeout(2500)  # the question is not reloaded away
    expect_status(page, "In progress")
    button(page, "Yes, delete these hospitals").click()
    expect_status(page, "Rolled back")
    assert directory.hospitals(batch) == []


def test_without_javascript_an_ended_batch_is_rolled_back_after_a_question(
    service: RunningService, directory: Directory, visit: Visits
) -> None:
    page = visit(service.url, script=False)
    batch = upload(page, csv_of(2, "Plainly undone"))
    expect_status(page, "Complete and active")
    expect(button(page, "Yes, delete these hospitals")).to_be_hidden()
    page.get_by_text("Roll back this batch").click()
    button(page, "Yes, delete these hospitals").click()
    expect_status(page, "Rolled back")
    assert directory.hospitals(batch) == []


# With the keyboard alone


def press_until(page: Page, name: str, most: int = 40) -> None:
    """Press Tab until what is focused has this text or label, and see at every step where the focus is."""
    for _ in range(most):
        page.keyboard.press("Tab")
        focused = page.locator(":focus")
        style = focused.evaluate(
            """element => {
                const {outlineStyle, outlineWidth} = getComputedStyle(element);
                const {width, height} = element.getBoundingClientRect();
                return {outlineStyle, outlineWidth, width, height};
            }"""
        )
        assert style["outlineStyle"] == "solid", focused.inner_text()
        assert int(style["outlineWidth"].removesuffix("px")) >= 2
        assert min(style["width"], style["height"]) > 10
        label = focused.evaluate("element => (element.labels?.[0] ?? element).textContent.trim()")
        if label == name:
            return
    raise AssertionError(f"The focus never came to {name}")


def test_everything_is_done_with_the_keyboard_alone(
    service: RunningService, directory: Directory, visit: Visits
) -> None:
    directory.faults([{"kind": "error", "status": 422, "call": "create", "times": 1}])
    page = visit(service.url)
    press_until(page, "To the content", 1)
    page.keyboard.press("Enter")
    assert page.url.endswith("#main")
    press_until(page, "CSV file with the hospitals", 1)
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(csv_file(csv_of(2, "Keyboard"), "keyboard.csv"))
    expect(page.get_by_role("heading", name="2 hospitals will be created")).to_be_visible()
    press_until(page, "Upload and create", 3)
    page.keyboard.press("Enter")
    expect(page).to_have_url(BATCH_PAGE)
    expect_status(page, "Failed")

    press_until(page, "Name")
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("Typed")
    press_until(page, "Resume")
    page.keyboard.press("Space")
    expect_status(page, "Complete and active")
    assert "Typed" in {hospital["name"] for hospital in directory.hospitals(batch_id(page))}

    press_until(page, "Roll back this batch")
    page.keyboard.press("Space")
    press_until(page, "Yes, delete these hospitals", 1)
    page.keyboard.press("Enter")
    expect_status(page, "Rolled back")
    press_until(page, "All batches")
    page.keyboard.press("Enter")
    expect(page).to_have_url(service.url + "/batches")
    press_until(page, "keyboard.csv")


def test_the_offer_of_another_encoding_is_taken_with_the_keyboard(service: RunningService, visit: Visits) -> None:
    page = visit(service.url)
    choose(page, "name,address\nKlinik Süd,Münchner Straße 1\n".encode("cp1252"))
    press_until(page, "Read it as Windows-1252")
    page.keyboard.press("Enter")
    expect(page.get_by_role("cell", name="Klinik Süd")).to_be_visible()
    expect(page.get_by_label("Saved as")).to_be_focused()


# On a phone

OVERLAPS = """() => {
    const shown = Array.from(document.querySelectorAll("body *")).filter(element => {
        const {width, height} = element.getBoundingClientRect();
        const holds = Array.from(element.childNodes).some(node => node.nodeType === 3 && node.textContent.trim());
        return width > 1 && height > 1 && element.checkVisibility()
            && (holds || element.matches("input, select, textarea, button, progress"));
    });
    const found = [];
    for (const one of shown) for (const other of shown) {
        if (one === other || one.contains(other) || other.contains(one)) continue;
        for (const a of one.getClientRects()) for (const b of other.getClientRects()) {
            const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
            const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
            // Lines of text may touch; letters do not.
            if (across > 2 && down > 6) found.push([one.outerHTML.slice(0, 80), other.outerHTML.slice(0, 80)]);
        }
    }
    return found;
}"""


def assert_fits(page: Page) -> None:
    """Nothing has to be scrolled sideways, and nothing lies upon anything else."""
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW
    assert page.evaluate(OVERLAPS) == []


@pytest.mark.parametrize("kind", ["front", "batches", "completed", "failed", "rolled back", "error"])
def test_a_page_fits_a_phone(service: RunningService, visit: Visits, kinds: dict[str, str], kind: str) -> None:
    visit.expect_refusal(404)
    page = visit(service.url + kinds[kind], width=NARROW)
    for details in page.locator("summary").all():
        details.click()
    assert_fits(page)


@pytest.mark.parametrize("content", [LONG, BAD, csv_of(20), "name,address\nSüd,Ö\n".encode("cp1252")])
def test_a_checked_file_fits_a_phone(service: RunningService, visit: Visits, content: bytes) -> None:
    page = visit(service.url, width=NARROW)
    choose(page, content, "W" * 200 + ".csv")
    assert_fits(page)
    with page.expect_navigation():
        button(page, "Only check the file").click()
    expect(page.locator("#check .banner")).to_be_visible()
    assert_fits(page)


def test_a_running_batch_fits_a_phone(service: RunningService, directory: Directory, visit: Visits) -> None:
    page = visit(service.url, width=NARROW)
    running(page, service, directory, "On a phone " + "W" * 400)
    expect(page.locator("tr.created").nth(1)).to_be_visible()
    assert_fits(page)
    page.get_by_text("Roll back this batch").click()
    assert_fits(page)


# For who cannot see it


def assert_accessible(page: Page) -> None:
    """The page has no serious or critical violation of WCAG."""
    page.wait_for_function("document.title !== ''")
    page.evaluate((files("axe_playwright_python") / "axe.min.js").read_text())
    found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    assert [(it["id"], it["nodes"][0]["html"]) for it in found if it["impact"] in ("serious", "critical")] == []


@pytest.mark.parametrize("kind", ["front", "batches", "completed", "failed", "rolled back", "error"])
def test_a_page_has_no_serious_violation(
    service: RunningService, visit: Visits, kinds: dict[str, str], kind: str
) -> None:
    visit.expect_refusal(404)
    # Only so that axe can be put into the page.
    page = visit(service.url + kinds[kind], bypass_csp=True)
    for details in page.locator("summary").all():
        details.click()
    assert_accessible(page)
    page.set_viewport_size({"width": NARROW, "height": 800})
    assert_accessible(page)


@pytest.mark.parametrize("content", [BAD, csv_of(20), "name,address\nSüd,Ö\n".encode("cp1252")])
def test_a_checked_file_has_no_serious_violation(service: RunningService, visit: Visits, content: bytes) -> None:
    page = visit(service.url, bypass_csp=True)
    choose(page, content)
    assert_accessible(page)
    with page.expect_navigation():
        button(page, "Only check the file").click()
    expect(page.locator("#check .banner")).to_be_visible()
    assert_accessible(page)


def test_a_running_batch_has_no_serious_violation(service: RunningService, directory: Directory, visit: Visits) -> None:
    page = visit(service.url, bypass_csp=True)
    running(page, service, directory, "Heard")
    expect(page.locator("tr.created").nth(1)).to_be_visible()
    assert_accessible(page)


def test_what_happens_is_said_without_being_looked_for(
    service: RunningService, directory: Directory, visit: Visits
) -> None:
    page = visit(service.url)
    expect(page.locator("#check-said")).to_have_attribute("role", "status")
    running(page, service, directory, "Said")
    expect(page.locator("#summary")).to_have_attribute("role", "status")
    expect(page.locator("#notes")).to_have_attribute("aria-live", "polite")
    directory.settings(create_seconds=0.05)
    expect_status(page, "Complete and active")
