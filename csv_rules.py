"""The CSV that an upload may hold: bytes in, the hospitals in it and everything that is wrong with it out.

What a spreadsheet saves is taken where it can only mean one thing; what could mean two is refused, in words that
say what to change. Plain data; knows nothing of HTTP.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from csv_decoding import decode
from csv_errors import CsvError, ErrorCode, FileRefusedError, quoted
from csv_header import COLUMNS, REQUIRED_COLUMNS, SEPARATORS, MalformedRecordError, Record, Table, read_table

__all__ = ["CsvError", "CsvReading", "CsvRow", "ErrorCode", "read_csv"]

NO_NUMBER = 0
MAX_LENGTHS = {"name": 500, "address": 500, "phone": 50}

# Unicode's category Cc without line breaks and tabs; a carriage return has become a line feed long before.
_CONTROL_CHARACTER = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class CsvRow:
    """A hospital as read, good or bad: what is missing is "", a phone None.

    `row` counts hospitals from 1; `line` is the line of the file on which the record starts.
    """

    row: int
    line: int
    name: str
    address: str
    phone: str | None


@dataclass(frozen=True, slots=True)
class CsvReading:
    """All of a file: `errors` is empty exactly when every row may be used.

    `rows` holds at most as many rows as are allowed, `total_rows` counts all that could be read.
    """

    rows: tuple[CsvRow, ...]
    errors: tuple[CsvError, ...]
    total_rows: int


def read_csv(content: bytes, *, max_rows: int = 20, encoding: str | None = None) -> CsvReading:
    """Read an upload. Never raises: whatever is wrong is in `errors`, all of it, that of the file before that of rows.

    With a header that cannot be used there are no rows; with more than `max_rows` that is the only error.
    """
    try:
        table = read_table(decode(content, encoding))
    except FileRefusedError as refusal:
        return CsvReading((), refusal.errors, 0)
    return read_rows(table, max_rows)


def read_rows(table: Table, max_rows: int) -> CsvReading:
    """Read the records of a table; in a results file, the column `row` numbers them."""
    records: list[Record] = []
    total, broken = 0, None
    try:
        for record in table.records:
            total += 1
            if total <= max_rows:
                records.append(record)
    except MalformedRecordError as error:
        broken = error
    rows = tuple(_row(number, record, table) for number, record in enumerate(records, 1))
    if total > max_rows:
        return CsvReading(rows, (_too_many_rows(total, max_rows, exact=broken is None),), total)
    errors = list(_errors_in_rows(rows, records, table))
    if broken:
        errors.append(row_error(ErrorCode.MALFORMED, total + 1, broken.line, broken.reason))
    elif not rows:
        errors.append(_no_rows(table))
    return CsvReading(rows, tuple(errors), total)


def _too_many_rows(total: int, max_rows: int, *, exact: bool) -> CsvError:
    # Past a broken quotation mark rows cannot be counted.
    count = f"{total:,}" if exact else f"at least {total:,}"
    return CsvError(
        ErrorCode.TOO_MANY_ROWS,
        f"The file has {count} hospitals, and at most {max_rows:,} are allowed: split it into several files.",
    )


def _no_rows(table: Table) -> CsvError:
    message = f"There is no hospital in the file: nothing follows the header on line {table.line}."
    return CsvError(ErrorCode.NO_ROWS, message, line=table.line)


def row_error(code: ErrorCode, row: int, line: int, problem: str, column: str | None = None) -> CsvError:
    """An error in one row, said with where it is."""
    return CsvError(code, f"Row {row} (line {line}): {problem}", row, line, column)


def _row(number: int, record: Record, table: Table) -> CsvRow:
    return CsvRow(
        row=_number(record, table) if "row" in table.columns else number,
        line=record.line,
        name=_value(record, table, "name"),
        address=_value(record, table, "address"),
        phone=_value(record, table, "phone") or None,
    )


def _number(record: Record, table: Table) -> int:
    text = _value(record, table, "row")
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else NO_NUMBER


def _bad_row(record: Record, table: Table) -> CsvError:
    value = quoted(_value(record, table, "row"))
    message = f"Line {record.line}: {value} is not the number of a row; leave the column row as it was."
    return CsvError(ErrorCode.BAD_ROW, message, line=record.line, column="row")


def _value(record: Record, table: Table, column: str) -> str:
    place = table.columns.get(column)
    return "" if place is None or place >= len(record.fields) else record.fields[place]


def _errors_in_rows(rows: tuple[CsvRow, ...], records: list[Record], table: Table) -> Iterator[CsvError]:
    first_of_each: dict[tuple[str, ...], CsvRow] = {}
    for row, record in zip(rows, records, strict=True):
        if row.row == NO_NUMBER:
            yield _bad_row(record, table)
            continue
        problem = _wrong_field_count(record, table)
        if problem:
            # Its values may stand in the wrong columns: whatever else was said of them would only mislead.
            yield row_error(ErrorCode.WRONG_FIELD_COUNT, row.row, row.line, problem)
            continue
        for column in (column for column in table.columns if column in COLUMNS):
            for code, problem in _wrong_value(column, _value(record, table, column)):
                yield row_error(code, row.row, row.line, problem, column)
        # What lacks a name or an address has its error, and is the same hospital as nothing else.
        first = first_of_each.setdefault(identity(row.name, row.address, row.phone), row)
        if first is not row and row.name and row.address:
            problem = f"this hospital is already in row {first.row} (line {first.line}); remove one of the two."
            yield row_error(ErrorCode.DUPLICATE_ROW, row.row, row.line, problem)


def _wrong_field_count(record: Record, table: Table) -> str | None:
    places = set(table.columns.values())
    for place, value in enumerate(record.fields):
        if value and place not in places:
            separator = SEPARATORS[table.separator]
            return (
                f"{quoted(value)} is in field {place + 1}, for which the header has no column; "
                f"put a value with a {separator} in it between quotation marks."
            )
    count = len(record.fields)
    for column in table.columns:
        if column in REQUIRED_COLUMNS and table.columns[column] >= count:
            return f"the row ends after field {count}, before the {column}."
    return None


def _wrong_value(column: str, value: str) -> Iterator[tuple[ErrorCode, str]]:
    if not value and column in REQUIRED_COLUMNS:
        yield ErrorCode.MISSING_VALUE, f"the {column} is missing."
    if len(value) > MAX_LENGTHS[column]:
        yield (
            ErrorCode.TOO_LONG,
            f"the {column} is {len(value):,} characters long; at most {MAX_LENGTHS[column]} are allowed.",
        )
    control = _CONTROL_CHARACTER.search(value)
    if control:
        yield (
            ErrorCode.BAD_CHARACTER,
            f"the {column} {quoted(value)} holds a control character (U+{ord(control.group()):04X}); type it again.",
        )
    if column == "phone" and value and not any(map(str.isdecimal, value)):
        yield ErrorCode.BAD_PHONE, f"the phone {quoted(value)} has no digit; correct it, or leave it empty."


def identity(name: str, address: str, phone: str | None) -> tuple[str, ...]:
    """What two rows for the same hospital have in common: case and spacing do not tell them apart."""
    return tuple(" ".join(value.split()).casefold() for value in (name, address, phone or ""))
