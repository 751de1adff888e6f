"""What the tests share: an embedded directory in a process of its own, and a browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser import chromium, visit
from tests.directory import Directory

__all__ = ["chromium", "visit"]


@pytest.fixture(scope="session")
def shared_directory() -> Iterator[Directory]:
    with Directory() as directory:
        yield directory


@pytest.fixture
def directory(shared_directory: Directory) -> Directory:
    """The embedded directory, empty and without faults: a create takes 0.05 s and nothing is limited."""
    shared_directory.reset()
    return shared_directory
