"""What the tests share: an embedded directory in a process of its own, a database, a browser; whether any may skip."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest
from _pytest import runner

from tests.browser import chromium, visit
from tests.directory import Directory
from tests.postgres import database_url, store

__all__ = ["chromium", "database_url", "store", "visit"]

# Set where everything that tests need is said to be there, so that none is left out unnoticed.
NO_SKIPS = bool(os.environ.get("NO_SKIPS"))


def pytest_configure() -> None:
    """Have pytest not say in the environment which test runs.

    Threads that work for several tests look there for proxies, and fail when a variable goes away meanwhile.
    """
    runner._update_current_test_var = lambda item, when: None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Have a test that is skipped fail where none may be."""
    report = yield
    if NO_SKIPS and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, but NO_SKIPS is set: {report.longreprtext}"
    return report


@pytest.fixture(scope="session")
def _only_directory() -> Iterator[Directory]:
    with Directory() as directory:
        yield directory


@pytest.fixture(scope="module")
def shared_directory(_only_directory: Directory) -> Directory:
    """The embedded directory, as empty at the beginning of each file of tests as if it had just been started."""
    _only_directory.reset()
    return _only_directory


@pytest.fixture
def directory(shared_directory: Directory) -> Directory:
    """The embedded directory, empty and without faults: a create takes 0.05 s and nothing is limited."""
    shared_directory.reset()
    return shared_directory
