"""Settings: every environment variable of the service, read and checked in this one place."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from dotenv import dotenv_values

DEPLOYED_DIRECTORY = "https://hospital-directory.onrender.com"
DEPLOYED_BATCH_CAP = 20

# gunicorn.conf.py starts this many threads, and the routes bound by it what may wait.
WORKER_THREADS = 128

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class SettingsError(ValueError):
    """A setting is wrong. Its text names the variable, what it holds and what is allowed."""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most `count` in any `seconds`."""

    count: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Settings:
    """What the service runs with; a field's name in capitals is its environment variable."""

    hospital_api_base_url: str = DEPLOYED_DIRECTORY
    database_url: str | None = None
    max_csv_rows: int = DEPLOYED_BATCH_CAP
    max_upload_bytes: int = 1024 * 1024
    directory_timeout_seconds: float = 90.0
    directory_attempts: int = 3
    directory_retry_seconds: float = 5.0
    directory_delay_seconds: float = 10.0
    directory_create_limit: RateLimit | None = RateLimit(30, 60)
    max_concurrent_creates: int = 30
    max_running_batches: int = 100
    keep_batches: int = 1000
    sync_wait_seconds: float = 300.0
    trusted_hosts: tuple[str, ...] = ()
    log_level: str = "INFO"
    port: int = 8000


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from `environ`: by default the environment over the file `.env`, where there is one.

    An empty variable counts as not set, except `DIRECTORY_CREATE_LIMIT`, where it means no limit.
    Raises `SettingsError` naming every variable that is wrong.
    """
    if environ is None:
        from_file = {name: value or "" for name, value in dotenv_values(".env").items()}
        environ = {**from_file, **os.environ}
    values: dict[str, Any] = {}
    wrong: list[str] = []
    for field, parse in _PARSERS.items():
        text = environ.get(field.upper())
        if text is None or (not text.strip() and field not in _EMPTY_MEANS_NONE):
            continue
        try:
            values[field] = parse(text.strip())
        except ValueError as error:
            wrong.append(f"{field.upper()} is {text[:60]!r}, but it must be {error}.")
    if wrong:
        raise SettingsError(" ".join(wrong))
    return Settings(**values)


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", text) or not low <= int(text) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(text)

    return parse


def _seconds(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        allowed = f"a number of seconds from {low:g} to {high:g}, such as 5 or 0.5"
        try:
            value = float(text)
        except ValueError:
            raise ValueError(allowed) from None
        if not math.isfinite(value) or not low <= value <= high:
            raise ValueError(allowed)
        return value

    return parse


def _limit(text: str) -> RateLimit | None:
    if not text:
        return None
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9}(?:\.[0-9]{1,6})?)", text)
    if not match or int(match[1]) < 1 or float(match[2]) <= 0:
        raise ValueError("COUNT/SECONDS, such as 30/60 for 30 creates in any 60 seconds, or empty for no limit")
    return RateLimit(int(match[1]), float(match[2]))


def _base_url(text: str) -> str:
    allowed = f"the directory's address, such as {DEPLOYED_DIRECTORY}, with no query"
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        raise ValueError(allowed) from None
    if not usable or re.search(r"[?#\s]", text):
        raise ValueError(allowed)
    return text.rstrip("/")


def _database_url(text: str) -> str:
    if not re.fullmatch(r"sqlite:///[^?#:]+", text):
        raise ValueError("empty, to keep batches in memory, or an SQLite file such as sqlite:///hospitals.db")
    return text


def _log_level(text: str) -> str:
    if text.upper() not in LOG_LEVELS:
        raise ValueError(f"one of {', '.join(LOG_LEVELS)}")
    return text.upper()


def _hosts(text: str) -> tuple[str, ...]:
    hosts = tuple(host.strip() for host in text.split(",") if host.strip())
    if any(re.search(r"[/\s]", host) for host in hosts):
        raise ValueError("a comma list of host names without http://, such as example.org,localhost")
    return hosts


_HOUR = 3600.0
_EMPTY_MEANS_NONE = {"directory_create_limit"}
_PARSERS: dict[str, Callable[[str], Any]] = {
    "hospital_api_base_url": _base_url,
    "database_url": _database_url,
    "max_csv_rows": _whole(1, 100_000),
    "max_upload_bytes": _whole(1, 1024**3),
    "directory_timeout_seconds": _seconds(0.01, _HOUR),
    "directory_attempts": _whole(1, 100),
    "directory_retry_seconds": _seconds(0.01, _HOUR),
    "directory_delay_seconds": _seconds(0, _HOUR),
    "directory_create_limit": _limit,
    "max_concurrent_creates": _whole(1, 10_000),
    "max_running_batches": _whole(1, 1_000),
    "keep_batches": _whole(1, 1_000_000),
    "sync_wait_seconds": _seconds(0, _HOUR),
    "trusted_hosts": _hosts,
    "log_level": _log_level,
    "port": _whole(1, 65535),
}
