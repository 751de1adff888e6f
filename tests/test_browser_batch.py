"""The page of a batch in a real browser: followed while it runs, mended, resumed, rolled back."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from settings import WORKER_THREADS
from tests.browser import Visits, batch_id, button, csv_file, expect_status, settle, table, upload
from tests.directory import Directory
from tests.events import Followers
from tests.hospitals import assert_exactly_once, csv_of
from tests.running import RunningService

REFUSED = [{"kind": "error", "status": 422, "call": "create", "times": 1}]


@pytest.fixture(scope="module")
def service(shared_directory: Directory) -> Iterator[RunningService]:
    with RunningService(shared_directory.url) as running:
        yield running


@pytest.fixture(scope="module")
def _slow_service(shared_directory: Directory) -> Iterator[RunningService]:
    with RunningService(shared_directory.url, max_concurrent_creates=1, directory_delay_seconds=4) as running:
        yield running


@pytest.fixture
def slow_service(_slow_service: RunningService) -> Iterator[RunningService]:
    """It creates one hospital after another, and waits long for what is not known."""
    yield _slow_service
    settle(_slow_service)


def mark(page: Page) -> None:
    """Note something in the window that a reload would wipe out."""
    page.evaluate("window.marked = true")


def is_marked(page: Page) -> bool:
    """Whether the page is still the one that was marked."""
    return bool(page.evaluate("window.marked"))


def failed_batch(page: Page, service: RunningService, directory: Directory, tag: str, count: int = 3) -> int:
    """Upload a file of which the directory refuses a hospital; returns the number of its row."""
    directory.faults(REFUSED)
    page.goto(service.url)
    upload(page, csv_of(count, tag))
    expect_status(page, "Failed")
    [row] = [row for row in service.get(f"/batches/{batch_id(page)}").json()["hospitals"] if row["status"] == "failed"]
    return int(row["row"])


# While it runs


def test_a_batch_is_watched_until_it_is_complete(
    slow_service: RunningService, directory: Directory, visit: Visits
) -> None:
    directory.settings(create_seconds=2.5)
    page = visit(slow_service.url)
    pages: list[str] = []
    page.on("response", lambda answer: pages.append(answer.headers.get("content-type", "")))
    upload(page, csv_of(3, "Watched"))
    mark(page)
    expect_status(page, "In progress")
    bar = page.get_by_role("progressbar", name="Hospitals created")
    for count in range(1, 3):
        expect(bar).to_have_attribute("value", str(count))
        expect(page.locator("#summary")).to_contain_text(f"{count} of 3 hospitals are in the directory.")
        expect(page.locator("tr.created")).to_have_count(count)
        expect(page.locator("tr.pending")).to_have_count(3 - count)
    expect(page).to_have_title(re.compile("^In progress: hospitals.csv"))

    expect_status(page, "Complete and active")
    expect(page).to_have_title(re.compile("^Complete and active: hospitals.csv"))
    expect(page.locator("#progress")).to_be_empty()
    assert [row[-1] for row in table(page)] == ["Created and active"] * 3
    assert is_marked(page)
    assert any(kind.startswith("text/event-stream") for kind in pages)
    assert_exactly_once(directory, slow_service.get(f"/batches/{batch_id(page)}").json())

    page.wait_for_timeout(1000)  # for the last answer on its way
    answers = len(pages)
    page.wait_for_timeout(2500)
    assert len(pages) == answers, "A batch that has ended is not asked for any more"


def test_a_batch_of_one_is_spoken_of_as_one(service: RunningService, visit: Visits) -> None:
    page = visit(service.url)
    upload(page, csv_of(1, "Alone"))
    expect_status(page, "Complete and active")
    expect(page.locator("#summary")).to_contain_text("The hospital is in the directory and active.")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"kind": "refuse", "call": "create", "seconds": 5}, "The directory cannot be reached at the moment"),
        ({"kind": "drop", "call": "create", "when": "after"}, "An answer of the directory was lost"),
    ],
)
def test_what_a_batch_waits_for_is_said_as_long_as_it_lasts(
    slow_service: RunningService, directory: Directory, visit: Visits, fault: dict[str, Any], words: str
) -> None:
    directory.faults([fault])
    page = visit(slow_service.url)
    upload(page, csv_of(2, f"Waits for {fault['kind']}"))
    mark(page)
    expect(page.locator("#notes .note")).to_contain_text(words)
    expect_status(page, "In progress")
    expect_status(page, "Complete and active")
    expect(page.locator("#notes .note")).to_have_count(0)
    assert is_marked(page)


def test_a_directory_that_sleeps_is_said_to(directory: Directory, visit: Visits) -> None:
    directory.faults([{"kind": "sleep", "seconds": 5}])
    with RunningService(directory.url) as service:
        page = visit(service.url)
        upload(page, csv_of(2, "Asleep"))
        expect(page.locator("#notes .note")).to_contain_text("The directory is asleep and is being woken")
        expect_status(page, "Complete and active")
        expect(page.locator("#notes .note")).to_have_count(0)


def test_a_closed_window_of_the_directory_is_said_and_the_seconds_count_down(
    directory: Directory, visit: Visits
) -> None:
    with RunningService(directory.url, directory_create_limit="3/9") as service:
        page = visit(service.url)
        upload(page, csv_of(5, "Limited"))
        expect(page.locator("#notes .note")).to_contain_text("The directory takes only so many hospitals a minute")
        expect(page.locator("tr.created")).to_have_count(3)
        left = page.locator("#seconds")
        words = left.inner_text()
        first = int(words.removesuffix(" seconds"))
        assert 2 <= first <= 9 + 1 + 5  # the window, what is spared of it, and a create
        expect(left).not_to_have_text(words)
        assert re.fullmatch(r"\d+ seconds?", left.inner_text())
        assert int(left.inner_text().split()[0]) < first
        expect_status(page, "Complete and active")


def test_the_time_left_is_said_in_minutes_when_there_are_some(
    slow_service: RunningService, directory: Directory, visit: Visits
) -> None:
    directory.settings(create_seconds=5)
    page = visit(slow_service.url)
    upload(page, csv_of(3, "Minutes"))
    # Over and over, since what the service says takes its place.
    page.evaluate(
        """setInterval(() => {
            const left = document.getElementById("seconds");
            if (left) left.dataset.seconds = 4000;
        }, 50)"""
    )
    expect(page.locator("#seconds")).to_have_text("67 minutes")
    expect_status(page, "Complete and active")


def test_with_all_streams_taken_the_page_asks_now_and_then(
    slow_service: RunningService, directory: Directory, visit: Visits
) -> None:
    visit.expect_refusal(503)
    directory.settings(create_seconds=1.3)
    held = slow_service.upload(csv_of(20, "Holds the streams"), {"Prefer": "respond-async"}).json()["batch_id"]
    with Followers(slow_service, held, WORKER_THREADS // 4):
        page = visit(slow_service.url)
        upload(page, csv_of(3, "Polled"))
        mark(page)
        assert slow_service.get(f"/batches/{batch_id(page)}/events").status_code == 503
        directory.settings(create_seconds=0.05)
        expect_status(page, "Complete and active")
        assert is_marked(page)


def test_a_service_that_does_not_answer_is_said_not_to(
    slow_service: RunningService, directory: Directory, visit: Visits
) -> None:
    visit.expected += ["ERR_INTERNET_DISCONNECTED", "ERR_NETWORK_CHANGED"]
    directory.settings(create_seconds=1)
    page = visit(slow_service.url)
    upload(page, csv_of(3, "Away"))
    mark(page)
    expect(page.locator("tr.created").first).to_be_visible()
    page.route("**/*", lambda route: route.abort("internetdisconnected"))
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # opens the stream anew
    expect(page.get_by_text("The service does not answer at the moment")).to_be_visible()
    page.unroute("**/*")
    expect_status(page, "Complete and active")
    expect(page.get_by_text("The service does not answer at the moment")).to_be_hidden()
    assert is_marked(page)


def test_a_batch_that_the_service_has_forgotten_is_said_to_be(
    slow_service: RunningService, directory: Directory, visit: Visits
) -> None:
    visit.expect_refusal(404)
    directory.settings(create_seconds=3)
    page = visit(slow_service.url)
    upload(page, csv_of(2, "Forgotten"))
    unknown = slow_service.url + "/batches/7c9e6679-7425-40de-944b-e07fc1f90ae7"
    page.route("**/batches/*", lambda route: route.continue_(url=unknown))
    expect(page.get_by_role("heading", name="There is no such page")).to_be_visible()
    expect(page.get_by_role("link", name="To the start page")).to_be_visible()


def test_a_page_that_nobody_looks_at_holds_no_stream(
    slow_service: RunningService, directory: Directory, visit: Visits
) -> None:
    directory.settings(create_seconds=1)
    page = visit(slow_service.url)
    with page.expect_request("**/events"):
        upload(page, csv_of(8, "Hidden"))
    with page.expect_event("requestfailed", lambda request: request.url.endswith("/events")):
        look(page, hidden=True)
    shown = page.locator("tr.created").count()
    expect(page.locator("tr.created").nth(shown)).to_be_visible()
    with page.expect_request("**/events"):
        look(page, hidden=False)
    directory.settings(create_seconds=0.05)
    expect_status(page, "Complete and active")


def look(page: Page, *, hidden: bool) -> None:
    """Look at another tab, or back at this one; to the browser of a test every page is in sight."""
    page.evaluate(
        """hidden => {
            Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
            document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )


# Mending


def test_a_failed_row_is_mended_in_the_page_and_resumed(
    service: RunningService, directory: Directory, visit: Visits
) -> None:
    page = visit(service.url)
    row = failed_batch(page, service, directory, "Mended")
    expect(page.locator("#notes")).to_contain_text("1 of 3 rows failed, so the batch was not activated")
    expect(page.locator("#summary")).to_contain_text("2 of 3 hospitals are in the directory, 1 failed.")
    fields = page.get_by_role("group", name=f"Row {row}", exact=True)
    expect(fields.locator(".label")).to_contain_text("The directory answered 422.")
    expect(fields.get_by_label("Name")).to_have_value(f"Mended {row - 1}")
    fields.get_by_label("Name").fill("Mended at last")
    fields.get_by_label("Phone").fill("")
    button(page, "Resume").click()
    expect_status(page, "Complete and active")
    assert table(page)[row - 1][1:4] == ["Mended at last", f"{row - 1} Main Street", ""]
    batch = service.get(f"/batches/{batch_id(page)}").json()
    assert_exactly_once(directory, batch)
    [hospital] = [it for it in directory.hospitals(batch["batch_id"]) if it["name"] == "Mended at last"]
    assert hospital["phone"] is None


def test_a_wrong_mending_says_what_is_wrong_and_nothing_is_lost(
    service: RunningService, directory: Directory, visit: Visits
) -> None:
    visit.expect_refusal(400)
    page = visit(service.url)
    row = failed_batch(page, service, directory, "Wrongly")
    failed = batch_id(page)
    before = service.get(f"/batches/{failed}").json()
    page.get_by_label("Name").fill("What I typed\nin two lines")
    page.get_by_label("Address").fill("   ")
    page.get_by_label("Phone").fill("none")
    button(page, "Resume").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("There is a problem with these rows")
    expect(page.locator("#check li")).to_have_text(
        [
            f"Row {row}: the address is missing.",
            f"Row {row}: the phone “none” has no digit; correct it, or leave it empty.",
        ]
    )
    assert service.get(f"/batches/{failed}").json() == before
    expect(page.get_by_label("Name")).to_have_value("What I typed\nin two lines")

    page.get_by_label("Address").fill("1 Right Road")
    page.get_by_label("Phone").fill("")
    button(page, "Resume").click()
    expect_status(page, "Complete and active")
    assert batch_id(page) == failed
    assert table(page)[row - 1][1:3] == ["What I typed\nin two lines", "1 Right Road"]
    assert_exactly_once(directory, service.get(f"/batches/{failed}").json())


def test_a_row_mended_into_another_one_is_refused(service: RunningService, directory: Directory, visit: Visits) -> None:
    visit.expect_refusal(400)
    page = visit(service.url)
    row = failed_batch(page, service, directory, "Same", count=2)
    other = 3 - row
    page.get_by_label("Name").fill(f"Same {other - 1}")
    page.get_by_label("Address").fill(f"{other - 1} Main Street")
    page.get_by_label("Phone").fill(f"555-{other - 1:04}")
    button(page, "Resume").click()
    expect(page.locator("#check li")).to_have_text(
        [f"Row {row}: this hospital is already in row {other} of the batch."]
    )
    page.get_by_role("link", name="Back to the batch").click()
    expect_status(page, "Failed")


def test_a_failed_row_is_mended_in_a_spreadsheet_and_resumed(
    service: RunningService, directory: Directory, visit: Visits, tmp_path: Path
) -> None:
    page = visit(service.url)
    failed_batch(page, service, directory, "By file")
    page.get_by_text("Mend them in a spreadsheet instead").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the failed rows").click()
    download.value.save_as(tmp_path / "failed.csv")
    text = (tmp_path / "failed.csv").read_text()
    [record] = csv.DictReader(io.StringIO(text))
    mended = text.replace(record["name"], "Klinik Süd")
    page.get_by_label("Mended file").set_input_files(csv_file(mended.encode("cp1252"), "failed.csv"))
    page.get_by_label("Saved as").select_option("windows-1252")
    button(page, "Resume with this file").click()
    expect_status(page, "Complete and active")
    assert table(page)[int(record["row"]) - 1][1] == "Klinik Süd"
    assert_exactly_once(directory, service.get(f"/batches/{batch_id(page)}").json())


def test_a_wrong_results_file_says_what_is_wrong_and_nothing_is_lost(
    service: RunningService, directory: Directory, visit: Visits
) -> None:
    visit.expect_refusal(400)
    page = visit(service.url)
    row = failed_batch(page, service, directory, "Wrong file")
    failed, created = batch_id(page), 1 if row != 1 else 2
    before = service.get(f"/batches/{failed}").json()
    content = f"name,address,phone,row\nAnother name,Main Street,,{created}\n,1 Street,,{row}\nA,B,,99\n".encode()
    for sent, said in [
        (content, [f"Row {row} (line 3): the name is missing."]),
        (
            content.replace(b"\n,1 Street", b"\nOf its own,1 Street"),
            [
                f"Row {created} (line 2): only failed rows can be changed, and this one did not fail; "
                "leave it as it was.",
                "Row 99 (line 4): the batch has no such row.",
            ],
        ),
    ]:
        page.get_by_text("Mend them in a spreadsheet instead").click()
        page.get_by_label("Mended file").set_input_files(csv_file(sent))
        button(page, "Resume with this file").click()
        expect(page.locator("#check li")).to_have_text(said)
        expect(page.get_by_text("nothing is lost")).to_be_visible()
        assert service.get(f"/batches/{failed}").json() == before
        page.get_by_role("link", name="Back to the batch").click()
    button(page, "Resume").click()
    expect_status(page, "Complete and active")


def test_a_mended_file_that_was_saved_again_is_asked_for_once_more(
    service: RunningService, directory: Directory, visit: Visits, tmp_path: Path
) -> None:
    page = visit(service.url)
    failed_batch(page, service, directory, "Saved again")
    page.get_by_text("Mend them in a spreadsheet instead").click()
    file = tmp_path / "failed.csv"
    file.write_text("name,address,row\n")
    field = page.get_by_label("Mended file")
    field.set_input_files(file)
    field.evaluate("field => field.files[0].lastModified")  # by now the browser has looked when it was saved
    file.write_text("name,address,row\nA,B,1\n")
    os.utime(file, (1e9, 1e9))  # whatever the clock of the file system counts in
    button(page, "Resume with this file").click()
    expect(field).to_be_focused()
    assert "saved again" in field.evaluate("field => field.validationMessage")
    expect_status(page, "Failed")


def test_the_results_are_downloaded(service: RunningService, visit: Visits, tmp_path: Path) -> None:
    page = visit(service.url)
    upload(page, csv_of(2, "Results"))
    expect_status(page, "Complete and active")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the results").click()
    download.value.save_as(tmp_path / "results.csv")
    records = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))
    assert [record["status"] for record in records] == ["created_and_activated"] * 2


# Rolling back


def test_a_complete_batch_is_rolled_back_after_a_question(
    service: RunningService, directory: Directory, visit: Visits
) -> None:
    page = visit(service.url)
    complete = upload(page, csv_of(3, "Undone"))
    expect_status(page, "Complete and active")
    sure = button(page, "Yes, delete these hospitals")
    expect(sure).to_be_hidden()
    page.get_by_text("Roll back this batch").click()
    expect(page.get_by_text("This deletes all hospitals of this batch from the directory")).to_be_visible()
    assert len(directory.hospitals(complete)) == 3
    sure.click()
    expect_status(page, "Rolled back")
    expect(page.locator("#summary")).to_contain_text("Nothing of this batch is left in the directory.")
    expect(page.get_by_text("Roll back this batch")).to_have_count(0)
    assert [row[-1] for row in table(page)] == ["Deleted"] * 3
    assert directory.hospitals(complete) == []


def test_a_batch_is_rolled_back_while_it_runs(
    slow_service: RunningService, directory: Directory, visit: Visits
) -> None:
    directory.settings(create_seconds=1)
    page = visit(slow_service.url)
    running = upload(page, csv_of(12, "Stopped"))
    page.get_by_text("Roll back this batch").click()
    expect(page.locator("tr.created").first).to_be_visible()
    directory.settings(create_seconds=10)  # the roll back waits for the one that is then in flight
    shown = page.locator("tr.created").count()
    expect(page.locator("tr.created").nth(shown)).to_be_visible()
    sure = button(page, "Yes, delete these hospitals")
    expect(sure).to_be_visible()  # the question stays open when the rows change
    sure.click()
    expect_status(page, "In progress")
    expect(page.locator("#summary")).to_contain_text("The batch is being rolled back.")
    expect(page.get_by_text("Roll back this batch")).to_have_count(0)
    expect_status(page, "Rolled back")
    assert directory.hospitals(running) == []
    assert len([call for call in directory.calls("create") if call["batch_id"] == running]) < 12


def test_a_failed_batch_is_rolled_back(service: RunningService, directory: Directory, visit: Visits) -> None:
    page = visit(service.url)
    failed_batch(page, service, directory, "Given up")
    page.get_by_text("Roll back this batch").click()
    button(page, "Yes, delete these hospitals").click()
    expect_status(page, "Rolled back")
    expect(button(page, "Resume")).to_have_count(0)
    assert directory.hospitals(batch_id(page)) == []


def test_a_double_click_on_resume_and_on_roll_back_is_one(
    service: RunningService, directory: Directory, visit: Visits
) -> None:
    page = visit(service.url)
    failed_batch(page, service, directory, "Clicked twice")
    button(page, "Resume").dblclick()
    expect_status(page, "Complete and active")
    page.get_by_text("Roll back this batch").click()
    button(page, "Yes, delete these hospitals").dblclick()
    expect_status(page, "Rolled back")


def test_what_another_did_meanwhile_is_said(service: RunningService, directory: Directory, visit: Visits) -> None:
    visit.expect_refusal(409)
    page = visit(service.url)
    failed_batch(page, service, directory, "Meanwhile")
    assert service.upload(csv_of(1), path=f"/batches/{batch_id(page)}/rollback").status_code == 200
    button(page, "Resume").click()
    expect(page.get_by_text("The batch was rolled back; upload its file again instead.")).to_be_visible()
    page.get_by_role("link", name="Back to the batch").click()
    expect_status(page, "Rolled back")
