"""From the text of an upload to its records, by what its header says: the separator, and which column is where.

The grammar is RFC 4180 as Python's csv module reads it when strict, with the separators that spreadsheets write.
"""

import csv
import difflib
import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from csv_errors import CsvError, ErrorCode, FileRefusedError, quoted, shown

COLUMNS = ("name", "address", "phone")
REQUIRED_COLUMNS = ("name", "address")
# The columns of the file that tells what became of each row, and that is taken back at its batch.
RESULTS_COLUMNS = (*COLUMNS, "row", "hospital_id", "status", "error_message")
MAX_LINE_LENGTH = 200_000
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}

# Around a value this is dropped: Unicode's white space and the zero-width spaces that come along from web pages.
# Not what else str.strip() drops, the control characters: one of those is often a letter in the wrong encoding.
WHITE_SPACE = (
    "\t\n \u00a0\u1680" + "".join(map(chr, range(0x2000, 0x200C))) + "\u2028\u2029\u202f\u205f\u2060\u3000\ufeff"
)

_BLANK = WHITE_SPACE + "".join(SEPARATORS)
_SPACE = WHITE_SPACE.replace("\n", "")
# White space beside a quotation mark; begins with one character, which is found much faster than one of many.
_PADDING = re.compile(rf'"(?:(?=[{_SPACE}])|(?<=[{_SPACE}]"))')

# Excel takes a first line `sep=;` as the separator and not as a row; saved again, it may be quoted or padded.
_SEPARATOR_LINE = re.compile(r'"?sep=([,;\t])"?[,;\t ]*(?:\n|\Z)', re.IGNORECASE)

_COLUMNS_OF_OUR_RESULTS = frozenset(RESULTS_COLUMNS) - set(COLUMNS) - {"error_message"}
_ALSO_CALLED = {"hospital": "name", "location": "address", "street": "address", "tel": "phone", "mobile": "phone"}
_LEAST_LIKENESS = 0.7
_MOST_UNKNOWN_COLUMNS_NAMED = 10
_MOST_HEADINGS_SHOWN = 8

_WHY_MALFORMED = {
    "unexpected end of data": "a quotation mark is opened and never closed; close it, or write two for one that is "
    "part of the value.",
    "field larger than": "a field is longer than {limit:,} characters; a quotation mark may be missing its pair.",
}
_LONG_LINE = f"the line is longer than {MAX_LINE_LENGTH:,} characters; is the file a CSV?"
_TEXT_AFTER_QUOTE = (
    "text follows a closing quotation mark; put the whole value between quotation marks, and write two for one "
    "that is part of it."
)


@dataclass(frozen=True, slots=True)
class Record:
    """One record that holds something: its trimmed fields, and the line of the file on which it starts."""

    line: int
    fields: list[str]


@dataclass(frozen=True, slots=True)
class Table:
    """What the header on `line` says, and the records below it.

    `headings` are those that are not empty, as written; `columns` has the place of each known one in a record, from
    the left. `records` can be read once, and raises MalformedRecordError.
    """

    line: int
    headings: list[str]
    columns: dict[str, int]
    separator: str
    records: Iterator[Record]


class MalformedRecordError(Exception):
    """The quoting of the record that starts on `line` is broken, so nothing after it can be told apart."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(line, reason)
        self.line = line
        self.reason = reason


def read_table(text: str, known: tuple[str, ...] = COLUMNS) -> Table:
    """The table in `text`, whose line ends are LF, with these `known` columns.

    Raises FileRefusedError with what is wrong with the header.
    """
    start = _after_blank_lines(text, 0)
    separators = list(SEPARATORS)
    if told := _SEPARATOR_LINE.match(text, start):
        start = _after_blank_lines(text, told.end())
        separators = [told.group(1)]
    table = _likeliest_table(text[start:], separators, 1 + text.count("\n", 0, start), known)
    errors = _errors_in_header(table, known)
    if errors:
        raise FileRefusedError(*errors)
    return table


def _after_blank_lines(text: str, start: int) -> int:
    """Where the first line from `start` on begins that holds more than white space and separators of any kind."""
    blank = len(text) - len(text[start:].lstrip(_BLANK))
    return max(start, text.rfind("\n", start, blank) + 1)


def _likeliest_table(text: str, separators: list[str], first_line: int, known: tuple[str, ...]) -> Table:
    """The reading of the header that finds the most known columns; failing any, the most fields."""
    tables, broken = [], None
    for separator in separators:
        try:
            tables.append(_open_table(text, separator, first_line, known))
        except MalformedRecordError as error:
            broken = broken or error
    best = max(tables, key=lambda table: (len(table.columns), len(table.headings)), default=None)
    # With another separator broken quoting may pass for one long heading, which says nothing about the header.
    if broken and (best is None or (not best.columns and len(best.headings) == 1)):
        raise FileRefusedError(CsvError(ErrorCode.MALFORMED, f"Line {broken.line}: {broken.reason}", line=broken.line))
    if best is None or not best.headings:
        _refuse_as_empty()
    return best


def _refuse_as_empty() -> NoReturn:
    raise FileRefusedError(
        CsvError(
            ErrorCode.EMPTY_FILE,
            "The file is empty: its first line must name the columns name, address and phone, and each line "
            "after it is a hospital.",
        )
    )


def _open_table(text: str, separator: str, first_line: int, known: tuple[str, ...]) -> Table:
    records = _records(text, separator, first_line)
    header = next(records, Record(first_line, []))
    keys = [field.casefold() for field in header.fields]
    return Table(
        line=header.line,
        headings=[field for field in header.fields if field],
        columns=_places(keys, known),
        separator=separator,
        records=records,
    )


def _places(keys: list[str], known: tuple[str, ...]) -> dict[str, int]:
    places: dict[str, int] = {}
    for place, key in enumerate(keys):
        if key in known:
            places.setdefault(key, place)
    return places


def _records(text: str, separator: str, first_line: int) -> Iterator[Record]:
    """Every record of `text` that holds something."""
    lines = _lines(_without_padding(text, separator))
    reader = csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=True)
    while True:
        line = first_line + reader.line_num
        try:
            fields = next(reader, None)
        except (csv.Error, _LongLineError) as error:
            raise MalformedRecordError(line, _why_malformed(error)) from error
        if fields is None:
            return
        fields = [field.strip(WHITE_SPACE) for field in fields] if any(fields) else []
        if any(fields):
            yield Record(line, fields)


class _LongLineError(Exception):
    """A line is longer than MAX_LINE_LENGTH."""


def _lines(text: str) -> Iterator[str]:
    """Raises _LongLineError: a line of a megabyte can be half a million fields, which take fifty times its size."""
    for line in io.StringIO(text):
        if len(line) > MAX_LINE_LENGTH and line.strip(_BLANK):
            raise _LongLineError
        yield line


def _without_padding(text: str, separator: str) -> str:
    """The text without white space between the quotation marks of a field and the separators beside it."""
    if not _PADDING.search(text):
        return text
    space = f"[{_SPACE.replace(separator, '')}]*+"
    end = f"[{separator}\n]"
    # A quoted field and its end; else fields without quotation marks; else one with some in it. No character is tried
    # again and again, so the time is in proportion.
    quoted_field = rf'{space}("[^"]*+(?:""[^"]*+)*+"){space}({end}|\Z)'
    others = rf'((?:[^"{separator}\n]*+{end})++|[^{separator}\n]*+(?:{end}|\Z))'
    return re.sub(f"{quoted_field}|{others}", r"\1\2\3", text)


def _why_malformed(error: Exception) -> str:
    if isinstance(error, _LongLineError):
        return _LONG_LINE
    for beginning, reason in _WHY_MALFORMED.items():
        if str(error).startswith(beginning):
            return reason.format(limit=csv.field_size_limit())
    return _TEXT_AFTER_QUOTE


def _errors_in_header(table: Table, known: tuple[str, ...]) -> list[CsvError]:
    counts = Counter(heading.casefold() for heading in table.headings)
    if known == COLUMNS and counts.keys() >= _COLUMNS_OF_OUR_RESULTS:
        return [_results_file(table)]
    if not table.columns:
        return [_no_header(table)]
    return [*_missing_columns(table, known), *_duplicate_columns(table, counts), *_unknown_columns(table, known)]


def _results_file(table: Table) -> CsvError:
    return CsvError(
        ErrorCode.UNKNOWN_COLUMN,
        "This is the results file of a batch: upload it on the page of that batch to resume it. "
        "A new upload has only the columns name, address and phone.",
        line=table.line,
    )


def _no_header(table: Table) -> CsvError:
    headings = {_meant(heading, table): heading for heading in reversed(table.headings[:_MOST_HEADINGS_SHOWN])}
    meant = [f"{quoted(headings[column])} to {column}" for column in COLUMNS if column in headings]
    if meant:
        advice = f"Rename {', '.join(meant)}."
    elif len(table.headings) == 1:
        advice = "Begin the file with the line name,address,phone; a comma, a semicolon or a tab tells columns apart."
    else:
        advice = "Begin the file with a line that names the columns name, address and phone."
    problem = "None of the columns is known" if meant else "The header is missing"
    found = _some(table.headings)
    return CsvError(ErrorCode.MISSING_COLUMN, f"{problem}: line {table.line} reads {found}. {advice}", line=table.line)


def _missing_columns(table: Table, known: tuple[str, ...]) -> Iterator[CsvError]:
    found = _some(table.headings)
    # Without the phones a results file would seem to say that there are none.
    required = REQUIRED_COLUMNS if known == COLUMNS else (*COLUMNS, "row")
    for column in required:
        if column not in table.columns:
            message = f"Line {table.line}: there is no column {column}; the columns found are {found}."
            yield CsvError(ErrorCode.MISSING_COLUMN, message, line=table.line, column=column)


def _duplicate_columns(table: Table, counts: Counter[str]) -> Iterator[CsvError]:
    for column in table.columns:
        if counts[column] > 1:
            message = f"Line {table.line}: the column {column} is there {counts[column]:,} times; keep one of them."
            yield CsvError(ErrorCode.DUPLICATE_COLUMN, message, line=table.line, column=column)


def _unknown_columns(table: Table, known: tuple[str, ...]) -> Iterator[CsvError]:
    """An error for each, up to a number that somebody may read; the last one counts the others."""
    unknown = [heading for heading in table.headings if heading.casefold() not in known]
    for heading in unknown[:_MOST_UNKNOWN_COLUMNS_NAMED]:
        meant = _meant(heading, table)
        advice = f"did you mean {meant}?" if meant else f"remove it: only {_and(known)} are taken."
        message = f"Line {table.line}: the column {quoted(heading)} is not known; {advice}"
        yield CsvError(ErrorCode.UNKNOWN_COLUMN, message, line=table.line, column=shown(heading))
    more = len(unknown) - _MOST_UNKNOWN_COLUMNS_NAMED
    if more > 0:
        message = f"Line {table.line}: unknown columns not listed here: {more:,}; remove them too."
        yield CsvError(ErrorCode.UNKNOWN_COLUMN, message, line=table.line)


def _and(columns: tuple[str, ...]) -> str:
    return f"{', '.join(columns[:-1])} and {columns[-1]}"


def _meant(heading: str, table: Table) -> str | None:
    """The column that `heading` probably stands for, if the file has not got that one already."""
    key = shown(heading).casefold()
    likely = set(re.findall("[a-z]+", key)) & set(COLUMNS)
    if not likely:
        likely.update(difflib.get_close_matches(key, COLUMNS, n=1, cutoff=_LEAST_LIKENESS))
    if not likely and key in _ALSO_CALLED:
        likely = {_ALSO_CALLED[key]}
    # A heading that names two columns is no heading: it is a whole line with another separator.
    return likely.pop() if len(likely) == 1 and not likely & table.columns.keys() else None


def _some(headings: list[str]) -> str:
    more = len(headings) - _MOST_HEADINGS_SHOWN
    return ", ".join(map(quoted, headings[:_MOST_HEADINGS_SHOWN])) + (f" and {more:,} more" if more > 0 else "")
