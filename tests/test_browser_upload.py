"""The front page in a real browser: a file is checked as soon as it is chosen, mended, and uploaded."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser import BATCH_PAGE, Visits, batch_id, batches, button, choose, expect_status, table, upload
from tests.directory import Directory
from tests.hospitals import assert_exactly_once, csv_of
from tests.odd_files import MEBIBYTE, png, rows, xlsx
from tests.running import RunningService

BAD = (
    b"name,address,phone\n"
    b"Riverside Clinic,12 River Road,555-0101\n"
    b"North Hospital,,none\n"
    b"\n"
    b",5 Oak Lane,555-0103\n"
    b"Twin,1 Same Street,\n"
    b"Twin,1 Same Street,\n"
    b"Split,3 High Street, Springfield,555-0104\n"
)
WINDOWS = "name,address\nKlinik Süd,Münchner Straße 1\nHôpital Nord,2 rue de l'Été\n".encode("cp1252")


@pytest.fixture(scope="module")
def service(shared_directory: Directory) -> Iterator[RunningService]:
    with RunningService(shared_directory.url) as running:
        yield running


def test_a_spreadsheet_with_two_mistakes_is_mended_and_active_without_asking_anybody(
    service: RunningService, directory: Directory, visit: Visits, tmp_path: Path
) -> None:
    lines = csv_of(20, "Story").decode().splitlines()
    lines[7], lines[16] = "Story 6,,555-0006", "Story 15,15 Main Street,by letter"
    file = tmp_path / "hospitals.csv"
    save(file, lines)
    page = visit(service.url)
    choose_on_disk(page, file)
    expect(page.locator("#check")).to_contain_text("Enter what is missing in 1 row")
    expect(page.locator("#check")).to_contain_text("Correct or empty the phone in 1 row")
    assert table(page, "#check-rows") == [
        ["8", "Story 6", "Missing", "555-0006"],
        ["17", "Story 15", "15 Main Street", "Has no digit\nby letter"],
    ]

    lines[7] = "Story 6,6 Main Street,555-0006"
    save(file, lines)
    choose_on_disk(page, file)
    expect(page.locator("#check")).to_contain_text("Correct or empty the phone in 1 row")
    expect(page.locator("#check")).not_to_contain_text("Enter what is missing")

    lines[16] = "Story 15,15 Main Street,"
    save(file, lines)
    choose_on_disk(page, file)
    expect(page.get_by_role("heading", name="20 hospitals will be created")).to_be_visible()
    assert len(table(page, "#check-rows")) == 20
    assert directory.calls() == []

    button(page, "Upload and create").click()
    expect_status(page, "Complete and active")
    expect(page.locator("#summary")).to_contain_text("All 20 hospitals are in the directory and active.")
    assert_exactly_once(directory, service.get(f"/batches/{batch_id(page)}").json())
    assert len(directory.calls("create")) == 20


def save(file: Path, lines: list[str]) -> None:
    """Save the file as a spreadsheet does, at a time that is later than before to anybody who looks."""
    before = file.stat().st_mtime if file.exists() else 0.0
    file.write_text("\n".join(lines) + "\n")
    os.utime(file, (before + 10, before + 10))


def choose_on_disk(page: Page, file: Path) -> None:
    """Choose a file as a person does, with a click; the check of what was chosen before is gone then."""
    said = page.locator("#check-said")
    with page.expect_file_chooser() as chooser, page.expect_response(re.compile("/validate$")):
        page.get_by_label("CSV file with the hospitals").click()
        chooser.value.set_files(file)
    expect(said).not_to_be_empty()


def test_a_file_that_was_saved_again_after_it_was_chosen_is_asked_for_once_more(
    service: RunningService, directory: Directory, visit: Visits, tmp_path: Path
) -> None:
    file = tmp_path / "hospitals.csv"
    save(file, ["name,address", "North Hospital,"])
    page = visit(service.url)
    choose_on_disk(page, file)
    expect(page.locator("#check .banner.bad")).to_be_visible()
    save(file, ["name,address", "North Hospital,1 North Street"])

    button(page, "Upload and create").click()
    field = page.get_by_label("CSV file with the hospitals")
    expect(field).to_be_focused()
    assert "saved again" in field.evaluate("field => field.validationMessage")
    expect(page.locator("#check")).to_be_empty()
    expect(page.locator("#check-rows")).to_be_empty()

    choose_on_disk(page, file)
    assert field.evaluate("field => field.validationMessage") == ""
    button(page, "Upload and create").click()
    expect_status(page, "Complete and active")


def test_asking_for_another_reading_of_a_file_saved_again_asks_for_it_once_more(
    service: RunningService, visit: Visits, tmp_path: Path
) -> None:
    visit.expected.append("ERR_UPLOAD_FILE_CHANGED")
    file = tmp_path / "hospitals.csv"
    save(file, ["name,address", "North Hospital,"])
    page = visit(service.url)
    choose_on_disk(page, file)
    save(file, ["name,address", "North Hospital,1 North Street"])
    page.get_by_label("Saved as").select_option("windows-1252")
    field = page.get_by_label("CSV file with the hospitals")
    expect(field).to_be_focused()
    assert "saved again" in field.evaluate("field => field.validationMessage")
    expect(page.locator("#check")).to_be_empty()


def test_errors_are_counted_by_kind_and_shown_where_they_are(
    service: RunningService, directory: Directory, visit: Visits
) -> None:
    page = visit(service.url)
    choose(page, BAD)
    expect(page.locator("#check li")).to_have_text(
        [
            "Enter what is missing in 2 rows",
            "Correct or empty the phone in 1 row",
            "Remove what is there twice in 1 row",
            "Put the values into the right columns in 1 row",
        ]
    )
    assert table(page, "#check-rows") == [
        ["3", "North Hospital", "Missing", "Has no digit\nnone"],
        ["5", "Missing", "5 Oak Lane", "555-0103"],
        ["7", "This hospital is already in row 4 (line 6); remove one of the two."],
        ["Twin", "1 Same Street", ""],
        [
            "8",
            "“555-0104” is in field 4, for which the header has no column; "
            "put a value with a comma in it between quotation marks.",
        ],
        ["Split", "3 High Street", "Springfield"],
    ]
    expect(page.locator("#check-said")).to_have_text("There is a problem with this file")
    expect(page.locator("#upload")).to_be_in_viewport()
    assert directory.calls() == []


def test_a_bad_file_uploaded_all_the_same_is_answered_with_its_errors_and_the_form(
    service: RunningService, directory: Directory, visit: Visits
) -> None:
    visit.expect_refusal(400)
    page = visit(service.url)
    choose(page, BAD)
    shown = table(page, "#check-rows")
    button(page, "Upload and create").click()
    expect(page).to_have_url(re.compile("/hospitals/bulk$"))
    expect(page.get_by_role("heading", level=1)).to_have_text("hospitals.csv")
    assert table(page, "#check-rows") == shown
    expect(page.locator("#upload")).to_be_in_viewport(ratio=1)
    assert directory.calls() == []

    upload(page, csv_of(2, "Right now"))
    expect_status(page, "Complete and active")


def test_what_is_too_long_says_how_long_it_may_be(service: RunningService, visit: Visits) -> None:
    page = visit(service.url)
    choose(page, b"name,address,phone\n%s,1 Long Road,%s\n" % (b"x" * 501, b"5" * 51))
    expect(page.locator("#check li")).to_have_text(["Shorten what is too long in 1 row"])
    expect(page.locator("#check-rows .label")).to_have_text(
        ["Too long: at most 500 characters", "Too long: at most 50 characters"]
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (xlsx(), "This file is an Excel workbook (.xlsx), not a CSV"),
        (png(), "This file is an image (PNG), not a CSV"),
        (b"", "empty"),
        (b"name,address\n", "There is no hospital in the file"),
        (b"name,town\nA,B\n", "address"),
        (csv_of(21), "The file has 21 hospitals, and at most 20 are allowed: split it into several files."),
    ],
)
def test_a_file_that_is_none_says_what_to_do(
    service: RunningService, visit: Visits, content: bytes, words: str
) -> None:
    page = visit(service.url)
    choose(page, content)
    expect(page.locator("#check .banner.bad li").first).to_contain_text(words)
    expect(page.locator("#check-rows")).to_be_empty()
    expect(button(page, "Read it as Windows-1252")).to_have_count(0)


@pytest.mark.parametrize("size", [MEBIBYTE + 50_000, 5 * MEBIBYTE])
def test_a_file_that_is_too_large_is_refused_before_and_after_it_is_uploaded(
    service: RunningService, visit: Visits, size: int
) -> None:
    visit.expect_refusal(413)
    page = visit(service.url)
    choose(page, rows(size))
    expect(page.locator("#check")).to_contain_text("at most 1,048,576 bytes")
    button(page, "Upload and create").click()
    expect(page).to_have_url(re.compile("/hospitals/bulk$"))
    expect(page.get_by_role("heading", level=1)).to_have_text("The file is too large")
    upload(page, csv_of(1, f"Small after {size}"))
    expect_status(page, "Complete and active")


def test_a_file_of_excel_on_windows_is_read_when_the_reader_says_so(
    service: RunningService, directory: Directory, visit: Visits
) -> None:
    page = visit(service.url)
    choose(page, WINDOWS)
    expect(page.locator("#check")).to_contain_text("Line 2 is not UTF-8")
    button(page, "Read it as Windows-1252").click()
    expect(page.get_by_role("heading", name="2 hospitals will be created")).to_be_visible()
    assert table(page, "#check-rows") == [
        ["2", "Klinik Süd", "Münchner Straße 1", ""],
        ["3", "Hôpital Nord", "2 rue de l'Été", ""],
    ]
    expect(page.get_by_label("Saved as")).to_have_value("windows-1252")
    button(page, "Upload and create").click()
    expect_status(page, "Complete and active")
    assert {hospital["name"] for hospital in directory.hospitals()} == {"Klinik Süd", "Hôpital Nord"}


def test_the_same_hospitals_again_are_pointed_out(service: RunningService, visit: Visits) -> None:
    page = visit(service.url)
    first = upload(page, csv_of(3, "Twice"), "first.csv")
    expect_status(page, "Complete and active")
    page.goto(service.url)
    choose(page, csv_of(3, "Twice"), "second.csv")
    expect(page.locator("#check")).to_contain_text("The same hospitals were uploaded before")
    page.get_by_role("link", name="this batch").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("first.csv")
    assert batch_id(page) == first


@pytest.mark.parametrize("where", ["#upload", "main", "h2"])
def test_a_file_is_dropped_on_the_page(service: RunningService, visit: Visits, where: str) -> None:
    page = visit(service.url)
    drop(page, where, csv_of(2, f"Dropped on {where}"))
    expect(page.get_by_role("heading", name="2 hospitals will be created")).to_be_visible()
    expect(page.locator("#upload")).not_to_have_class(re.compile("dropping"))
    button(page, "Upload and create").click()
    expect_status(page, "Complete and active")


def test_several_files_dropped_at_once_are_refused(service: RunningService, visit: Visits) -> None:
    visit.expect_refusal(400)
    page = visit(service.url)
    drop(page, "#upload", csv_of(1), csv_of(2))
    expect(page.locator("#check")).to_contain_text("2 files were sent; send each in a request of its own.")


def drop(page: Page, where: str, *contents: bytes) -> None:
    """Drag files over an element of the page and let them go."""
    files = page.evaluate_handle(
        """contents => {
            const data = new DataTransfer();
            for (const content of contents) data.items.add(new File([content], "dropped.csv", {type: "text/csv"}));
            return data;
        }""",
        [content.decode() for content in contents],
    )
    element = page.locator(where).first
    element.dispatch_event("dragover", {"dataTransfer": files})
    expect(page.locator("#upload")).to_have_class(re.compile("dropping"))
    element.dispatch_event("drop", {"dataTransfer": files})


def test_another_file_takes_the_place_of_the_one_before(service: RunningService, visit: Visits) -> None:
    page = visit(service.url)
    choose(page, BAD)
    choose(page, csv_of(1))
    expect(page.get_by_role("heading", name="1 hospital will be created")).to_be_visible()
    expect(page.locator("#check .banner")).to_have_count(1)
    page.get_by_label("CSV file with the hospitals").set_input_files([])
    expect(page.locator("#check")).to_be_empty()


def test_a_slow_check_of_the_file_before_is_not_shown(service: RunningService, visit: Visits) -> None:
    page = visit(service.url)
    held: list[Route] = []
    page.route("**/validate", lambda route: held.append(route))  # noqa: PLW0108 - a builtin takes no attributes
    field = page.get_by_label("CSV file with the hospitals")
    for count in (1, 2):
        field.set_input_files({"name": "a.csv", "mimeType": "text/csv", "buffer": csv_of(count)})
        for _ in range(600):
            if len(held) == count:
                break
            page.wait_for_timeout(50)
    assert len(held) == 2
    held[1].continue_()
    expect(page.get_by_role("heading", name="2 hospitals will be created")).to_be_visible()
    with page.expect_response("**/validate"):
        held[0].continue_()
    page.wait_for_timeout(100)
    expect(page.get_by_role("heading", name="2 hospitals will be created")).to_be_visible()


def test_a_check_that_cannot_be_made_says_so_and_the_upload_works(service: RunningService, visit: Visits) -> None:
    visit.expected.append("ERR_CONNECTION_REFUSED")
    page = visit(service.url)
    page.route("**/validate", lambda route: route.abort("connectionrefused"))
    page.get_by_label("CSV file with the hospitals").set_input_files(
        {"name": "a.csv", "mimeType": "text/csv", "buffer": csv_of(1, "Unchecked")}
    )
    expect(page.locator("#check")).to_have_text(
        "The file could not be checked just now; it will be when it is uploaded."
    )
    button(page, "Upload and create").click()
    expect_status(page, "Complete and active")


def test_a_double_click_makes_one_batch(service: RunningService, visit: Visits) -> None:
    before = len(batches(service))
    page = visit(service.url)
    choose(page, csv_of(2, "Double"))
    button(page, "Upload and create").dblclick()
    expect(page).to_have_url(BATCH_PAGE)
    expect_status(page, "Complete and active")
    assert len(batches(service)) == before + 1


def test_the_form_can_be_sent_again_after_going_back(service: RunningService, visit: Visits) -> None:
    before = len(batches(service))
    page = visit(service.url)
    upload(page, csv_of(1, "Once"))
    page.go_back()
    upload(page, csv_of(1, "And again"))
    expect_status(page, "Complete and active")
    assert len(batches(service)) == before + 2


def test_without_a_file_nothing_is_sent(service: RunningService, visit: Visits) -> None:
    page = visit(service.url)
    button(page, "Upload and create").click()
    expect(page.get_by_label("CSV file with the hospitals")).to_be_focused()
    page.wait_for_timeout(100)
    expect(page).to_have_url(service.url + "/")


def test_a_file_can_be_checked_only(service: RunningService, directory: Directory, visit: Visits) -> None:
    page = visit(service.url)
    choose(page, csv_of(3, "Only checked"))
    button(page, "Only check the file").click()
    expect(page).to_have_url(re.compile("/validate$"))
    expect(page.get_by_role("heading", name="3 hospitals will be created")).to_be_visible()
    expect(page.get_by_text("To create them, choose the file once more and upload it.")).to_be_visible()
    assert len(table(page, "#check-rows")) == 3
    assert directory.calls() == []


def test_the_sample_is_downloaded_and_uploaded(service: RunningService, visit: Visits, tmp_path: Path) -> None:
    page = visit(service.url)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download a sample file").click()
    assert download.value.suggested_filename == "sample_hospitals.csv"
    sample = tmp_path / "sample.csv"
    download.value.save_as(sample)
    upload(page, sample.read_bytes())
    expect_status(page, "Complete and active")


def test_the_front_page_shows_the_last_batches_only(service: RunningService, visit: Visits) -> None:
    for number in range(6):
        assert service.upload(csv_of(1, f"Last {number}")).status_code == 200
    page = visit(service.url)
    shown = page.locator("main table a")
    expect(shown).to_have_count(5)
    ids = [batch["batch_id"] for batch in batches(service)[:5]]
    assert [str(link.get_attribute("href")).rsplit("/", 1)[1] for link in shown.all()] == ids


def test_the_harness_sees_what_goes_wrong(service: RunningService, visit: Visits) -> None:
    page = visit(service.url)
    page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "alert(1)";
            document.body.append(script);
            document.body.insertAdjacentHTML("beforeend", "<img src='http://elsewhere.invalid/x.png'>");
            setTimeout(() => { throw new Error("thrown") });
            setTimeout(() => alert("shown"), 50);
        }"""
    )
    expected = ("Content Security Policy", "elsewhere.invalid", "thrown", "Dialog: shown")
    for _ in range(600):
        if all(words in json.dumps(visit.faults) for words in expected):
            break
        page.wait_for_timeout(50)
    seen = json.dumps(visit.faults)
    visit.faults.clear()
    for words in expected:
        assert words in seen
