"""What holds of the CSV rules for every file, not just for those that somebody thought of."""

import codecs
import csv
import io
import json
import re
import unicodedata
from dataclasses import asdict
from typing import Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from csv_rules import read_csv

# The same examples in every run: a failure of this suite is one of the change it is run on.
many_examples = settings(max_examples=300, derandomize=True, deadline=None)
most_examples = settings(max_examples=1000, derandomize=True, deadline=None)

LINE_ENDS = ["\n", "\r\n", "\r"]
SEPARATORS = [",", ";", "\t"]
# What a spreadsheet saves: UTF-8 with or without the mark, "Unicode text", and that of another machine.
FILE_ENCODINGS = {"utf-8": b"", "utf-8-sig": b"", "utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}

# Any characters that a value may hold, those that mean something in a CSV more often than the others.
inside = st.text(
    st.characters(exclude_categories=["Cc", "Cs"]) | st.sampled_from([*',;\t\n" ', "\u2028", "\u00a0", "é", "院"]),
    max_size=20,
)


def between(first: str, last: str) -> st.SearchStrategy[str]:
    """A value with any characters but at the ends, where white space would be trimmed."""
    return inside.map(lambda text: f"{first}{text}{last}")


hospitals = st.lists(
    st.tuples(between("N", "."), between("A", "."), st.none() | between("0", "1")), min_size=1, max_size=20
).map(lambda rows: [(f"{number} {name}", address, phone) for number, (name, address, phone) in enumerate(rows)])


def written(rows: list[list[str]], separator: str, line_end: str, quoting: Literal[0, 1]) -> str:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=separator, lineterminator=line_end, quoting=quoting).writerows(rows)
    return file.getvalue()


def encoded(text: str, encoding: str) -> bytes:
    return FILE_ENCODINGS[encoding] + text.encode(encoding)


@many_examples
@given(
    hospitals=hospitals,
    columns=st.permutations(["name", "address", "phone"]),
    separator=st.sampled_from(SEPARATORS),
    line_end=st.sampled_from(LINE_ENDS),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    encoding=st.sampled_from(sorted(FILE_ENCODINGS)),
)
def test_what_the_csv_module_wrote_is_read_back(
    hospitals: list[tuple[str, str, str | None]],
    columns: list[str],
    separator: str,
    line_end: str,
    quoting: Literal[0, 1],
    encoding: str,
) -> None:
    order = [["name", "address", "phone"].index(column) for column in columns]
    rows = [[(hospital[place] or "").replace("\n", line_end) for place in order] for hospital in hospitals]
    text = written([columns, *rows], separator, line_end, quoting)
    reading = read_csv(encoded(text, encoding))
    assert reading.errors == ()
    assert [(row.name, row.address, row.phone) for row in reading.rows] == hospitals


@many_examples
@given(
    hospitals=hospitals,
    separator=st.sampled_from(SEPARATORS),
    separator_line=st.booleans(),
    empty_columns=st.integers(0, 4),
    blank_lines=st.lists(st.integers(0, 2), min_size=21, max_size=21),
    encoding=st.sampled_from(sorted(FILE_ENCODINGS)),
)
def test_what_a_spreadsheet_saves_is_read(
    hospitals: list[tuple[str, str, str | None]],
    separator: str,
    separator_line: bool,
    empty_columns: int,
    blank_lines: list[int],
    encoding: str,
) -> None:
    padding = [""] * empty_columns
    rows = [["name", "address", "phone", *padding]]
    for hospital, blanks in zip(hospitals, blank_lines, strict=False):
        rows += [["", "", "", *padding]] * blanks
        rows.append([*(value or "" for value in hospital), *padding])
    first = f"sep={separator}\r\n" if separator_line else ""
    text = first + written(rows, separator, "\r\n", csv.QUOTE_MINIMAL)
    reading = read_csv(encoded(text, encoding))
    assert reading.errors == ()
    assert [(row.name, row.address, row.phone) for row in reading.rows] == hospitals


quoted_cells = st.lists(
    st.sampled_from(["x", "\r", "\n", "\r\n", "\u2028", "\x0b", "\x1c", "\x85", ",", '""']), max_size=6
).map("".join)
line_ends = st.sampled_from(LINE_ENDS)


@many_examples
@given(
    before=st.lists(line_ends, max_size=3),
    records=st.lists(
        st.tuples(quoted_cells, quoted_cells, line_ends, st.lists(line_ends, max_size=2)), min_size=1, max_size=20
    ),
)
def test_a_row_is_on_the_line_where_an_editor_shows_it(
    before: list[str], records: list[tuple[str, str, str, list[str]]]
) -> None:
    text = "".join(before) + "name,address\n"
    starts = []
    for name, address, line_end, blanks in records:
        starts.append(1 + len(re.findall("\r\n|\r|\n", text)))
        # The space keeps a lone CR and an LF after it from being one line end.
        text += f'"n{name}n","a{address}a"{line_end}' + "".join(f" {blank}" for blank in blanks)
    reading = read_csv(text.encode())
    assert [row.line for row in reading.rows] == starts
    assert {(error.row, error.line) for error in reading.errors} <= {(row.row, row.line) for row in reading.rows}


pieces = st.sampled_from(
    ["name", "address", "phone", "Name", "sep=;", "adress", "12 Main St", "n/a", "555-0101", "PK\x03\x04"]
) | st.sampled_from([*',;\t"\n\r \0\x85\u2028\x1a\ufeffé', '""', "\r\n"])
near_csv = st.builds(
    lambda header, body: header + "".join(body),
    st.sampled_from(["name,address,phone\n", "name;address\r", '"name"\t"address"\r\n', "sep=,\nname,address\n", ""]),
    st.lists(pieces | st.text(max_size=3), max_size=40),
)
names_of_encodings = st.sampled_from(
    ["utf-8", "UTF8", "utf-16", "utf-16-le", "utf-32", "windows-1252", "latin-1", "utf-7", "cp037", "shift_jis"]
) | st.sampled_from(["iso2022_jp", "gb18030", "hz", "big5", "base64", "idna", "punycode", "unicode_escape"])


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    """Something like a CSV in some encoding, a piece of which was replaced by other bytes."""
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "cp1252", "utf-7"]))
    content: bytes = draw(near_csv).encode(encoding, errors="replace")
    start = draw(st.integers(0, len(content)))
    end = start + draw(st.integers(0, 3))
    return content[:start] + draw(st.binary(max_size=3)) + content[end:]


@most_examples
@given(
    content=st.binary(max_size=200) | near_csv.map(lambda text: text.encode(errors="replace")) | damaged_files(),
    encoding=st.none() | st.text(max_size=50) | names_of_encodings,
    max_rows=st.integers(1, 5),
)
def test_every_file_gets_rows_or_errors_that_can_be_sent(content: bytes, encoding: str | None, max_rows: int) -> None:
    reading = read_csv(content, max_rows=max_rows, encoding=encoding)
    assert reading.rows or reading.errors
    assert len(reading.rows) == min(reading.total_rows, max_rows)
    assert [row.row for row in reading.rows] == list(range(1, len(reading.rows) + 1))
    json.dumps(asdict(reading), ensure_ascii=False).encode()
    # Other encodings than those that the file may have unnamed have other line ends.
    line_ends_at_most = len(content) if encoding else content.count(b"\n") + content.count(b"\r")
    for line in [*(row.line for row in reading.rows), *(error.line for error in reading.errors)]:
        assert line is None or 1 <= line <= 1 + line_ends_at_most
    for error in reading.errors:
        assert error.message.endswith((".", "?"))
        assert len(error.message) < 1000
        assert not any(unicodedata.category(character) in ("Cc", "Cs") for character in error.message)


@many_examples
@given(near_csv)
def test_rows_without_errors_hold_what_the_rules_promise(text: str) -> None:
    reading = read_csv(text.encode(errors="replace"))
    if reading.errors:
        return
    for row in reading.rows:
        assert row.name == row.name.strip()
        assert row.address == row.address.strip()
        assert row.name
        assert row.address
        assert row.phone is None or any(character.isdecimal() for character in row.phone)
