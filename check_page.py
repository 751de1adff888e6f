"""What the page shows of a file that was read: how many errors of each kind, and the bad rows with what is wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from csv_errors import CsvError, ErrorCode
from csv_rules import MAX_LENGTHS, CsvReading, CsvRow

# What to do about each kind of error in rows, for a banner that counts the rows.
_TO_DO = {
    ErrorCode.MISSING_VALUE: "Enter what is missing",
    ErrorCode.TOO_LONG: "Shorten what is too long",
    ErrorCode.BAD_CHARACTER: "Type again what holds control characters",
    ErrorCode.BAD_PHONE: "Correct or empty the phone",
    ErrorCode.DUPLICATE_ROW: "Remove what is there twice",
    ErrorCode.WRONG_FIELD_COUNT: "Put the values into the right columns",
    ErrorCode.MALFORMED: "Mend the quotation marks",
}
_LABELS = {
    ErrorCode.MISSING_VALUE: "Missing",
    ErrorCode.TOO_LONG: "Too long: at most {most} characters",
    ErrorCode.BAD_CHARACTER: "Holds a control character",
    ErrorCode.BAD_PHONE: "Has no digit",
}


@dataclass(slots=True)
class BadRow:
    """A row with errors: `labels` by the column they are in, `messages` of the row as a whole."""

    row: int
    line: int
    values: CsvRow | None
    labels: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class CheckView:
    """A file as the page shows it; `can_be_windows` when it may be text in the encoding that Excel on Windows uses."""

    reading: CsvReading
    file_errors: list[CsvError]
    to_do: list[str]
    bad_rows: list[BadRow]
    can_be_windows: bool


def check_view(reading: CsvReading, encoding: str | None) -> CheckView:
    """Sort the errors of a file for the page."""
    in_rows = [error for error in reading.errors if error.row is not None]
    file_errors = [error for error in reading.errors if error.row is None]
    return CheckView(
        reading,
        file_errors,
        _to_do(in_rows),
        _bad_rows(reading, in_rows),
        can_be_windows=not encoding and any(error.code == ErrorCode.BAD_ENCODING for error in file_errors),
    )


def _to_do(errors: list[CsvError]) -> list[str]:
    rows = Counter(code for code, _ in {(error.code, error.row) for error in errors})
    return [f"{words} in {rows[code]} row{'s' * (rows[code] != 1)}" for code, words in _TO_DO.items() if rows[code]]


def _bad_rows(reading: CsvReading, errors: list[CsvError]) -> list[BadRow]:
    values = {row.row: row for row in reading.rows}
    bad: dict[int, BadRow] = {}
    for error in errors:
        number, line = error.row or 0, error.line or 0
        row = bad.setdefault(number, BadRow(number, line, values.get(number)))
        label = _LABELS.get(ErrorCode(error.code))
        if label and error.column:
            row.labels[error.column] = label.format(most=MAX_LENGTHS[error.column])
        else:
            # Where it is stands beside it.
            message = error.message.removeprefix(f"Row {number} (line {line}): ")
            row.messages.append(message[:1].upper() + message[1:])
    return list(bad.values())
