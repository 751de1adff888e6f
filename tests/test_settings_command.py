"""`flask --app app settings`: what it shows and hides, and how a wrong setting ends whatever starts the service."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from dotenv import dotenv_values

from settings import Settings
from tests.running import ROOT

FLASK = ["-m", "flask", "--app", str(ROOT / "app.py")]
COMMAND = [*FLASK, "settings"]


def run(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python in this folder, with these variables and no others."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def shown(folder: Path, **variables: str) -> dict[str, tuple[str, str]]:
    """What the command says: of each setting, its value and where it comes from."""
    ended = run(folder, *COMMAND, **variables)
    assert (ended.returncode, ended.stderr) == (0, "")
    settings = {}
    for line in ended.stdout.splitlines():
        name, _, rest = line.partition("=")
        value, _, source = rest.rpartition("  # ")
        settings[name] = (value, source)
    return settings


def test_without_variables_it_shows_every_default_in_order(tmp_path: Path) -> None:
    settings = shown(tmp_path)
    assert list(settings) == [field.name.upper() for field in fields(Settings)]
    assert {source for _, source in settings.values()} == {"default"}
    assert settings["HOSPITAL_API_BASE_URL"][0] == "https://hospital-directory.onrender.com"
    assert settings["DATABASE_URL"][0] == settings["API_KEYS"][0] == settings["REQUEST_LIMIT"][0] == ""
    assert settings["DIRECTORY_CREATE_LIMIT"][0] == "30/60"
    assert settings["DIRECTORY_TIMEOUT_SECONDS"][0] == "90"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("API_KEYS", "office:s3cret,ci:s3cret+", "office:***,ci:***"),
        ("API_KEYS", "s3cret", "default:***"),
        ("HOSPITAL_API_BASE_URL", "http://user:s3cret@127.0.0.1:9000/a", "http://user:***@127.0.0.1:9000/a"),
        ("HOSPITAL_API_BASE_URL", "http://user:s3cr@et@[::1]:9000", "http://user:***@[::1]:9000"),
        ("HOSPITAL_API_BASE_URL", "http://127.0.0.1:9000", "http://127.0.0.1:9000"),
        ("DATABASE_URL", "sqlite:///hospitals.db", "sqlite:///hospitals.db"),
        ("REQUEST_LIMIT", " 100/60 ", "100/60"),
        ("REQUEST_LIMIT", "1/0.000001", "1/0.000001"),
        ("REQUEST_LIMIT", "7/2.50", "7/2.5"),
        ("DIRECTORY_CREATE_LIMIT", "", ""),
        ("DIRECTORY_RETRY_SECONDS", "0.25", "0.25"),
        ("TRUSTED_HOSTS", "Example.org, localhost", "example.org,localhost"),
        ("LOG_LEVEL", "warning", "WARNING"),
    ],
)
def test_it_shows_what_is_in_force_without_its_secrets(tmp_path: Path, name: str, text: str, value: str) -> None:
    assert shown(tmp_path, **{name: text})[name] == (value, "environment")


def test_what_it_shows_sets_the_same_again(tmp_path: Path) -> None:
    variables = {"REQUEST_LIMIT": "3/1.5", "TRUSTED_HOSTS": "a,b", "DIRECTORY_CREATE_LIMIT": "", "PORT": "81"}
    first = run(tmp_path, *COMMAND, **variables).stdout
    (tmp_path / ".env").write_text(first)
    again = {name: value for name, (value, _) in shown(tmp_path).items()}
    assert again == dict(dotenv_values(tmp_path / ".env"))


def test_it_says_where_each_setting_comes_from(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PORT=81\nKEEP_BATCHES='7'\nMAX_CSV_ROWS=5\nLOG_LEVEL=DEBUG\n")
    settings = shown(tmp_path, KEEP_BATCHES="8", MAX_CSV_ROWS="", LOG_FORMAT=" ")
    expected = {
        "PORT": ("81", ".env"),
        "LOG_LEVEL": ("DEBUG", ".env"),
        "KEEP_BATCHES": ("8", "environment"),
        "MAX_CSV_ROWS": ("20", "default"),
        "LOG_FORMAT": ("text", "default"),
    }
    assert {name: settings[name] for name in expected} == expected


@pytest.mark.parametrize(
    "arguments",
    [COMMAND, [*FLASK, "run", "--port", "0"], ["-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py"), "app:app"]],
    ids=["settings", "flask run", "gunicorn"],
)
def test_a_wrong_setting_ends_a_start_with_its_sentence(tmp_path: Path, arguments: list[str]) -> None:
    ended = run(tmp_path, *arguments, PORT="x", API_KEYS="office:s3cret:s3cret")
    assert ended.returncode == 1
    assert ended.stderr.removeprefix("Error: ").startswith("API_KEYS is not right: it must be a comma list of name:key")
    assert ended.stderr.endswith(" PORT is 'x', but it must be a whole number from 1 to 65535.\n")
    assert len(ended.stderr.splitlines()) == 1
    assert "s3cret" not in ended.stderr


def test_a_file_that_is_a_folder_ends_a_start_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / ".env").mkdir()
    ended = run(tmp_path, *COMMAND)
    assert (ended.returncode, ended.stderr) == (1, "Error: The file .env cannot be read: Is a directory.\n")
