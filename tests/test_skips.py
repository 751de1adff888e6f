"""Tests that are skipped, and `NO_SKIPS`, with which none may be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import ROOT

SOME = """
import pytest

def test_that_passes(): pass

@pytest.mark.xfail(reason="known", strict=True)
def test_that_is_known_to_fail(): assert False

def test_that_is_skipped(): pytest.skip("There is no such thing.")
"""


@pytest.mark.parametrize(("no_skips", "status"), [("", 0), ("1", 1)])
def test_a_skipped_test_says_why_and_fails_where_none_may_be_skipped(
    tmp_path: Path, no_skips: str, status: int
) -> None:
    (tmp_path / "test_some.py").write_text(SOME)
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-c", "pyproject.toml", tmp_path],
        cwd=ROOT,
        env=os.environ | {"NO_SKIPS": no_skips, "PYTEST_ADDOPTS": "-p no:cacheprovider"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == status, ended.stdout
    assert "There is no such thing." in ended.stdout
    assert ("1 failed, 1 passed, 1 xfailed" if no_skips else "1 passed, 1 skipped, 1 xfailed") in ended.stdout
