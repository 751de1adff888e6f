"""Logging: one configuration for the service and for gunicorn, and what each line says of whom it is about.

A line is for a person (`text`) or an object of JSON (`json`). Neither holds a line break or a control character that
came from outside, so nobody can forge a line.
"""

from __future__ import annotations

import logging
import logging.config
import re
import time
import uuid
from contextvars import ContextVar
from typing import Any
from urllib.parse import quote

from pythonjsonlogger.json import JsonFormatter

# What the lines of this context are about; None where that is nothing. A thread of a pool has those that its work was
# handed over with (`contextvars.copy_context`).
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
key_name: ContextVar[str | None] = ContextVar("key_name", default=None)
batch_id: ContextVar[str | None] = ContextVar("batch_id", default=None)
row_number: ContextVar[int | None] = ContextVar("row_number", default=None)

# By the name each has in a JSON line and in a text line.
_CONTEXT: dict[str, tuple[str, ContextVar[Any]]] = {
    "request_id": ("request", request_id),
    "key_name": ("key", key_name),
    "batch_id": ("batch", batch_id),
    "row": ("row", row_number),
}
REQUEST_ID_HEADER = "X-Request-ID"
_TALKATIVE = ("procrastinate", "psycopg.pool", "flask-limiter")
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def logging_config(level: str, line_format: str) -> dict[str, Any]:
    """What `logging.config.dictConfig` takes: lines of `line_format` (`text` or `json`) from `level` on, to stderr."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"context": {"()": ContextFilter}},
        "formatters": {"line": {"()": JsonLines if line_format == "json" else TextLines}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["context"]}},
        "root": {"level": level, "handlers": ["stderr"]},
        # gunicorn gives its logger a handler of its own, which naming the logger here takes away.
        "loggers": {
            "gunicorn.error": {"level": level, "propagate": True},
            # What these libraries say of a failure the service says itself, in one line and without a traceback.
            **{name: {"level": level if level == "DEBUG" else "CRITICAL"} for name in _TALKATIVE},
        },
    }


def configure_logging(level: str, line_format: str) -> None:
    """Log like that, unless somebody has set up logging before: under gunicorn its configuration has."""
    if not logging.getLogger().handlers:
        logging.config.dictConfig(logging_config(level, line_format))


def logged_path(path: str) -> str:
    """A request's path for the log: percent-encoded, lest it look like more of the line, and not too long."""
    return quote(path)[:200]


def safe_request_id(text: str | None) -> str:
    """The id that a caller gave a request when it can be logged as it stands, else a new one."""
    return text if text and _SAFE_ID.fullmatch(text) else str(uuid.uuid4())


class ContextFilter(logging.Filter):
    """Lets every record pass, and puts into it what the context says it is about."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields `request_id`, `key_name`, `batch_id` and `row`, None where they are not known."""
        for name, (_, variable) in _CONTEXT.items():
            setattr(record, name, variable.get())
        return True


class _UtcLines(logging.Formatter):
    """Times as ISO 8601 in UTC, to the millisecond."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


class TextLines(_UtcLines):
    """`2026-11-22T02:08:00.123Z INFO rounds [request=... key=... batch=... row=...] message`, without those not known.

    The lines of a traceback follow, each indented: a line at the margin is always one of the service's own.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line, its unprintable characters escaped as in Python."""
        about = " ".join(
            f"{short}={value}" for name, (short, _) in _CONTEXT.items() if (value := getattr(record, name, None))
        )
        ids = f" [{about}]" if about else ""
        return _printable(f"{self.formatTime(record)} {record.levelname} {record.name}{ids} {record.message}")

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """The traceback, indented."""
        return "\n".join(f"    {_printable(line)}" for line in super().formatException(ei).split("\n"))


class JsonLines(_UtcLines, JsonFormatter):
    """An object with `time`, `level`, `logger`, `message`, the ids of the context, null or not, and what is `extra`.

    A traceback is in `exception`. What is not ASCII is escaped, line breaks included.
    """

    def __init__(self) -> None:
        super().__init__(
            ["asctime", "levelname", "name", "message", *_CONTEXT],
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger", "exc_info": "exception"},
        )

    def jsonify_log_record(self, log_data: dict[str, Any]) -> str:
        """The object, on one line."""
        # The one control character that JSON lets through.
        return super().jsonify_log_record(log_data).replace("\x7f", "\\u007f")


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
