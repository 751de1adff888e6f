"""A Chromium for tests of the pages: whatever goes wrong in it, seen or not, fails the test."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Dialog,
    FilePayload,
    Locator,
    Page,
    expect,
    sync_playwright,
)

from tests.running import RunningService

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Nothing that goes right takes so long, even where a process is not let run for seconds.
PATIENCE_MILLISECONDS = 30_000
BATCH_PAGE = re.compile(r"/batches/[0-9a-f-]{36}$")

expect.set_options(timeout=PATIENCE_MILLISECONDS)


class Visits:
    """Opens pages, each in a context of its own, and keeps what goes wrong in them in `faults`.

    That is: errors in the console, which tell of whatever the content security policy blocks too, exceptions,
    dialogs, and requests to a host that is not among `hosts`. A fault with one of the `expected` texts in it is none.
    """

    def __init__(self, browser: Browser) -> None:
        self.faults: list[str] = []
        self.expected: list[str] = []
        self.hosts: set[str] = set()
        self._browser = browser
        self._contexts: list[BrowserContext] = []

    def __call__(self, url: str, *, script: bool = True, width: int = 1000, **options: Any) -> Page:
        """Open a page, without JavaScript or in a narrow window when asked for."""
        context = self._browser.new_context(
            java_script_enabled=script, viewport={"width": width, "height": 800}, **options
        )
        self._contexts.append(context)
        self.allow(url)
        context.set_default_timeout(PATIENCE_MILLISECONDS)
        context.on("console", self._hear)
        context.on("weberror", lambda error: self.faults.append(str(error.error)))
        context.on("dialog", self._dismiss)
        context.on("request", lambda request: self._look_at(request.url))
        page = context.new_page()
        # Begun only when a test waits for a chooser, its interception could come too late for a key.
        page.on("filechooser", lambda _: None)
        page.goto(url)
        return page

    def expect_refusal(self, status: int) -> None:
        """An answer of this status is not a fault, though the console calls it one."""
        self.expected.append(f"status of {status} ")

    def allow(self, url: str) -> None:
        """Requests to the host of this address are no fault."""
        self.hosts.add(urlsplit(url).netloc)

    def close(self) -> None:
        """Close what is open. Raises `AssertionError` when something went wrong."""
        for context in self._contexts:
            context.close()
        faults = [fault for fault in self.faults if not any(text in fault for text in self.expected)]
        if faults:
            raise AssertionError("\n".join(["The browser met with", *faults]))

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.faults.append(message.text)

    def _dismiss(self, dialog: Dialog) -> None:
        self.faults.append(f"Dialog: {dialog.message}")
        dialog.dismiss()

    def _look_at(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob") and parts.netloc not in self.hosts:
            self.faults.append(f"Request to {url}")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The browser, started once; tests that need it are skipped where there is none."""
    # The one without windows shows the same, and takes a quarter of the time for it.
    path = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    if path is None:
        pytest.skip("There is no chromium on this machine: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Visits]:
    """Opens pages; at the end of the test nothing may have gone wrong in them."""
    visits = Visits(chromium)
    yield visits
    visits.close()


def csv_file(content: bytes, name: str = "hospitals.csv") -> FilePayload:
    """A file to be chosen."""
    return {"name": name, "mimeType": "text/csv", "buffer": content}


def button(page: Page, name: str) -> Locator:
    """The button with this text."""
    return page.get_by_role("button", name=name, exact=True)


def choose(page: Page, content: bytes, name: str = "hospitals.csv") -> None:
    """Choose a file in the form, and see it checked where there is a script for that."""
    page.get_by_label("CSV file with the hospitals").set_input_files(csv_file(content, name))
    if page.evaluate("document.documentElement.classList.contains('with-script')"):
        expect(page.locator("#check .banner")).to_be_visible()


def upload(page: Page, content: bytes, name: str = "hospitals.csv") -> str:
    """Upload a file in the form that the page shows; returns the batch's id."""
    choose(page, content, name)
    button(page, "Upload and create").click()
    expect(page).to_have_url(BATCH_PAGE)
    return batch_id(page)


def batch_id(page: Page) -> str:
    """The id of the batch whose page this is."""
    return urlsplit(page.url).path.rsplit("/", 1)[1]


def expect_status(page: Page, words: str) -> None:
    """The page of a batch says this of it, now or as soon as that is so."""
    expect(page.locator("#summary .tag")).to_have_text(words)


def table(page: Page, selector: str = "#rows") -> list[list[str]]:
    """The cells of the table's body, as soon as there are any: the page may still be on its way."""
    rows = page.locator(f"{selector} tbody tr")
    expect(rows.first).to_be_attached()
    return [[cell.inner_text() for cell in row.locator("td").all()] for row in rows.all()]


def settle(service: RunningService) -> None:
    """Bring to an end what still runs, so that it does not meet the next test's directory."""
    for batch in service.get("/batches?status=processing").json():
        requests.delete(f"{service.url}/batches/{batch['batch_id']}", timeout=60)


def batches(service: RunningService) -> list[dict[str, Any]]:
    """All batches of the service, newest first."""
    found: list[dict[str, Any]] = service.get("/batches?limit=200").json()
    return found
