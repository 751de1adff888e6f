"""Settings: every environment variable of the service, read and checked in this one place."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from dotenv import dotenv_values

DEPLOYED_DIRECTORY = "https://hospital-directory.onrender.com"
DEPLOYED_BATCH_CAP = 20

# What a DATABASE_URL for PostgreSQL begins with, by whichever of its names it was given.
POSTGRES = "postgresql+psycopg"

# The name of a key that came without one.
UNNAMED_KEY = "default"

# A multipart request is larger than the file in it, by its boundaries and other fields.
REQUEST_OVERHEAD_BYTES = 64 * 1024

# gunicorn.conf.py starts this many threads, and the routes bound by it what may wait.
WORKER_THREADS = 128

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
LOG_FORMATS = ("text", "json")


class SettingsError(ValueError):
    """A setting is wrong. Its text names the variable, what it holds and what is allowed."""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most `count` in any `seconds`."""

    count: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.count}/{self.seconds:.6f}".rstrip("0").rstrip(".")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key that callers show, and the name by which it is told apart from others and withdrawn."""

    name: str
    key: str = field(repr=False)

    def __str__(self) -> str:
        return f"{self.name}:***"


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
    embedded_workers: int = 4
    api_keys: tuple[ApiKey, ...] = ()
    request_limit: RateLimit | None = None
    trusted_hosts: tuple[str, ...] = ()
    proxy_count: int = 0
    log_level: str = "INFO"
    log_format: str = "text"
    port: int = 8000

    @property
    def max_request_bytes(self) -> int:
        """The largest body of a request that is read."""
        return self.max_upload_bytes + REQUEST_OVERHEAD_BYTES


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from `environ`: by default the environment over the file `.env`, where there is one.

    An empty variable counts as not set, except `DIRECTORY_CREATE_LIMIT`, where it means no limit.
    Raises `SettingsError` naming every variable that is wrong.
    """
    if environ is None:
        environ = {**settings_file(), **os.environ}
    values: dict[str, Any] = {}
    wrong: list[str] = []
    for name, parse in _PARSERS.items():
        text = given(name, environ)
        if text is None:
            continue
        try:
            values[name] = parse(text)
        except ValueError as error:
            found = "is not right: it" if name in _SECRET else f"is {without_passwords(text)[:60]!r}, but it"
            wrong.append(f"{name.upper()} {found} must be {error}.")
    if wrong:
        raise SettingsError(" ".join(wrong))
    return Settings(**values)


def settings_file() -> dict[str, str]:
    """What is in the file `.env`, nothing where there is none. Raises `SettingsError` when it cannot be read."""
    try:
        # Some editors on Windows begin a file with a mark, which would be part of the first name.
        with Path(".env").open(encoding="utf-8-sig") as file:
            return {name: value or "" for name, value in dotenv_values(stream=file).items()}
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(f"The file .env cannot be read: {reason}.") from error


def given(name: str, environ: Mapping[str, str]) -> str | None:
    """The text that `environ` has for the setting `name`, None when that counts as not set."""
    text = environ.get(name.upper(), "").strip()
    return text if text or (name in _EMPTY_MEANS_NONE and name.upper() in environ) else None


def without_passwords(text: str) -> str:
    """A text that may be an address, or one that lacks its scheme, with *** for a password in it."""
    text = re.sub(r"((?:^|://)[^/:@]*:)(?!//).*@", r"\1***@", text)
    return re.sub(r"([?&](?:ssl)?password=)[^&]*", r"\1***", text)


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
        raise ValueError("COUNT/SECONDS, such as 30/60 for 30 in any 60 seconds, or empty for no limit")
    return RateLimit(int(match[1]), float(match[2]))


def _base_url(text: str) -> str:
    allowed = f"the directory's address, such as {DEPLOYED_DIRECTORY}, with no query"
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
        # What it refuses would otherwise be found when the client is made, and end the start with a stack trace.
        requests.Request("GET", text).prepare()
    except ValueError:
        raise ValueError(allowed) from None
    if not usable or re.search(r"[?#\s]", text):
        raise ValueError(allowed)
    return text.rstrip("/")


def _database_url(text: str) -> str:
    if re.fullmatch(r"sqlite:///[^?#:]*[^?#:/]", text):
        return text
    postgres = re.fullmatch(r"postgres(?:ql)?(?:\+psycopg)?://(([^\s/?]*)/[^\s/?]+(?:\?\S*)?)", text)
    if postgres and "@" in postgres[2].rpartition("@")[0]:
        raise ValueError("an address with %40 in place of each @ in the user's name or the password")
    # The host and perhaps a port; none where the query says where the server is.
    if not postgres or not re.fullmatch(r"(\[[^]]+\]|[^:]*)(:[0-9]{1,5})?", postgres[2].rpartition("@")[2]):
        raise ValueError(
            "empty, to keep batches in memory, an SQLite file such as sqlite:///hospitals.db, or a PostgreSQL database "
            "such as postgresql://user:password@host:5432/database"
        )
    if find_spec("procrastinate") is None:
        raise ValueError("an SQLite file, or more libraries installed: pip install -r requirements-postgres.txt")
    return f"{POSTGRES}://{postgres[1]}"


def _api_keys(text: str) -> tuple[ApiKey, ...]:
    keys = []
    for entry in text.split(","):
        # A host that generates the value gives a key alone.
        name, _, key = entry.strip().rpartition(":")
        keys.append(ApiKey(name or UNNAMED_KEY, key))
    names, secrets = {one.name for one in keys}, {one.key for one in keys}
    are_clean = all(re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name) for name in names)
    if (
        not are_clean
        or not all(re.fullmatch(r"[!-~]+", key) for key in secrets)
        or {len(names), len(secrets)} != {len(keys)}
    ):
        raise ValueError(
            "a comma list of name:key, each name and each key there once; a name has up to 64 letters, digits, "
            "dots, dashes and underscores, a key any visible characters of ASCII but a comma and a colon"
        )
    return tuple(keys)


def _log_level(text: str) -> str:
    if text.upper() not in LOG_LEVELS:
        raise ValueError(f"one of {', '.join(LOG_LEVELS)}")
    return text.upper()


def _log_format(text: str) -> str:
    if text.lower() not in LOG_FORMATS:
        raise ValueError(f"one of {', '.join(LOG_FORMATS)}")
    return text.lower()


def _is_host_name(text: str) -> bool:
    """Whether this is a host's name: one that IDNA does not take would fail only when a request is held against it."""
    try:
        text.encode("idna")
    except UnicodeError:
        return False
    return bool(re.fullmatch(r"([^\W_]|[.-])+", text))


def _hosts(text: str) -> tuple[str, ...]:
    hosts = tuple(host.strip().lower() for host in text.split(",") if host.strip())
    # Without any host there would be no guard.
    if not hosts or not all(_is_host_name(host.removeprefix(".")) for host in hosts):
        raise ValueError(
            "a comma list of host names without http:// and port, such as example.org,localhost; "
            ".example.org is that host and all below it"
        )
    return hosts


_HOUR = 3600.0
_EMPTY_MEANS_NONE = {"directory_create_limit"}
# What these hold is not repeated in any message.
_SECRET = {"api_keys", "database_url"}
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
    "embedded_workers": _whole(0, 100),
    "api_keys": _api_keys,
    "request_limit": _limit,
    "trusted_hosts": _hosts,
    "proxy_count": _whole(0, 10),
    "log_level": _log_level,
    "log_format": _log_format,
    "port": _whole(1, 65535),
}
