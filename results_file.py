"""The results of a batch as a CSV: what became of each row, to be mended in a spreadsheet and sent back to resume."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from batch import Batch, Row, RowStatus
from csv_decoding import decode
from csv_errors import CsvError, ErrorCode, FileRefusedError
from csv_header import RESULTS_COLUMNS, WHITE_SPACE, Record, read_table
from csv_rules import CsvReading, CsvRow, identity, read_rows, row_error

# What a spreadsheet would run as a formula, https://owasp.org/www-community/attacks/CSV_Injection; any number of
# apostrophes may stand before it, so that what was escaped can be told from what looked so.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_ESCAPED_FORMULA = re.compile(r"'+[=+\-@\t\r]")


class MendingError(Exception):
    """The file does not mend the batch, for the reasons in `errors`."""

    def __init__(self, errors: Iterable[CsvError]) -> None:
        self.errors = tuple(errors)
        super().__init__(*self.errors)


def write_results(rows: Iterable[Row]) -> str:
    """The rows as CSV with a header, line ends CRLF; no cell is a formula for a spreadsheet."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(RESULTS_COLUMNS)
    for row in rows:
        values = (row.name, row.address, row.phone, row.row, row.hospital_id, row.status, row.error_message)
        writer.writerow([escape(value) if isinstance(value, str) else value for value in values])
    return text.getvalue()


def read_results(content: bytes, *, max_rows: int, encoding: str | None = None) -> CsvReading:
    """Read a results file back, all of it or only some of its rows; like `read_csv` it never raises."""
    try:
        table = read_table(decode(content, encoding), RESULTS_COLUMNS)
    except FileRefusedError as refusal:
        return CsvReading((), refusal.errors, 0)
    records = (
        Record(record.line, [unescape(field).strip(WHITE_SPACE) for field in record.fields]) for record in table.records
    )
    return read_rows(replace(table, records=records), max_rows)


def mended_rows(batch: Batch, reading: CsvReading) -> tuple[Row, ...]:
    """The batch's rows, with the failed ones as the file has them. Raises `MendingError`: no other row may differ."""
    rows = {row.row: row for row in batch.rows}
    errors = list(reading.errors) or list(_wrong_rows(rows, reading.rows))
    if not errors:
        for read in reading.rows:
            rows[read.row] = replace(rows[read.row], name=read.name, address=read.address, phone=read.phone)
        errors = list(_duplicates(rows, reading.rows))
    if errors:
        raise MendingError(errors)
    return tuple(rows.values())


def form_as_results(batch: Batch, form: Mapping[str, str]) -> bytes | None:
    """The failed rows as the fields `name-3`, `address-3` and `phone-3` of a form have them, None when it has none."""
    rows = [
        replace(
            row,
            name=form[f"name-{row.row}"],
            address=form.get(f"address-{row.row}", ""),
            phone=form.get(f"phone-{row.row}", ""),
        )
        for row in batch.rows
        if f"name-{row.row}" in form
    ]
    return write_results(rows).encode() if rows else None


def escape(cell: str) -> str:
    """The cell with one apostrophe more where a spreadsheet would take it for a formula."""
    return f"'{cell}" if _FORMULA.match(cell) else cell


def unescape(cell: str) -> str:
    """What `escape` was given."""
    return cell[1:] if _ESCAPED_FORMULA.match(cell) else cell


def _wrong_rows(rows: dict[int, Row], read_rows: Iterable[CsvRow]) -> Iterable[CsvError]:
    seen: set[int] = set()
    for read in read_rows:
        row = rows.get(read.row)
        if row is None:
            yield row_error(ErrorCode.BAD_ROW, read.row, read.line, "the batch has no such row.", "row")
        elif read.row in seen:
            yield row_error(ErrorCode.BAD_ROW, read.row, read.line, "this row is in the file already.", "row")
        elif row.status is not RowStatus.FAILED and (row.name, row.address, row.phone) != _values(read):
            problem = "only failed rows can be changed, and this one did not fail; leave it as it was."
            yield row_error(ErrorCode.NOT_FAILED, read.row, read.line, problem)
        seen.add(read.row)


def _duplicates(rows: dict[int, Row], read_rows: Iterable[CsvRow]) -> Iterable[CsvError]:
    lines = {read.row: read.line for read in read_rows}
    first_of_each: dict[tuple[str, ...], Row] = {}
    # The rows of the file last: what they repeat is then always named as the other one.
    for row in sorted(rows.values(), key=lambda row: (row.row in lines, row.row)):
        first = first_of_each.setdefault(identity(row.name, row.address, row.phone), row)
        if first is not row and row.row in lines:
            problem = f"this hospital is already in row {first.row} of the batch."
            yield row_error(ErrorCode.DUPLICATE_ROW, row.row, lines[row.row], problem)


def _values(read: CsvRow) -> tuple[str, str, str | None]:
    return read.name, read.address, read.phone
