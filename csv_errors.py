"""What can be wrong with an uploaded CSV: the codes, and the error that carries one to the person who sent it."""

import re
from dataclasses import dataclass
from enum import StrEnum

ECHO_LENGTH = 60

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class ErrorCode(StrEnum):
    """The code of an error, for programs; the sentence beside it is for people."""

    EMPTY_FILE = "empty_file"
    NOT_CSV = "not_csv"
    BAD_ENCODING = "bad_encoding"
    MISSING_COLUMN = "missing_column"
    DUPLICATE_COLUMN = "duplicate_column"
    UNKNOWN_COLUMN = "unknown_column"
    NO_ROWS = "no_rows"
    TOO_MANY_ROWS = "too_many_rows"
    MALFORMED = "malformed"
    WRONG_FIELD_COUNT = "wrong_field_count"
    MISSING_VALUE = "missing_value"
    TOO_LONG = "too_long"
    BAD_CHARACTER = "bad_character"
    BAD_PHONE = "bad_phone"
    DUPLICATE_ROW = "duplicate_row"
    BAD_ROW = "bad_row"
    NOT_FAILED = "not_failed"


@dataclass(frozen=True, slots=True)
class CsvError:
    """One thing to change in the file: `message` is a sentence, the rest says where, as far as there is a where."""

    code: str
    message: str
    row: int | None = None
    line: int | None = None
    column: str | None = None

    def as_json(self) -> dict[str, str | int | None]:
        """The error as the API gives it, its keys in the order that the API promises."""
        return {
            "row": self.row,
            "line": self.line,
            "column": self.column,
            "code": self.code,
            "message": self.message,
        }


class FileRefusedError(Exception):
    """Nothing can be read of the file, for the reasons in `errors`."""

    def __init__(self, *errors: CsvError) -> None:
        super().__init__(*errors)
        self.errors = errors


def shown(value: str) -> str:
    """What the user wrote, fit for a sentence: on one line, no control characters, cut to ECHO_LENGTH."""
    # The first cut keeps a cell of a megabyte from being split into words to show sixty characters of it.
    text = " ".join(_UNPRINTABLE.sub("\ufffd", value[: ECHO_LENGTH * 4]).split())
    return text if len(text) <= ECHO_LENGTH else text[: ECHO_LENGTH - 1] + "…"


def quoted(value: str) -> str:
    """`shown()` between quotation marks."""
    return f"“{shown(value)}”"
