"""The results file: what it says of each row, that no cell of it is a formula, and what may come back in it."""

from __future__ import annotations

import csv
import io
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from batch import Batch, BatchStatus, Row, RowStatus
from csv_header import WHITE_SPACE
from results_file import MendingError, escape, mended_rows, read_results, unescape, write_results
from tests.directory import Directory
from tests.local_service import LocalService, csv_from, problem, table_of

COLUMNS = ["name", "address", "phone", "row", "hospital_id", "status", "error_message"]
FORMULA_STARTS = "=+-@\t\r"

ROWS = (
    Row(1, "Alpha", "1 Road", "555-1", RowStatus.CREATED, 11),
    Row(2, "Beta", "2 Road", None, RowStatus.FAILED, None, 'name: "Beta", or so, is no name'),
    Row(3, "Gamma", "3 Road\nBack yard", "+44 20", RowStatus.FAILED, None, "=no"),
    Row(4, "Ünïted, 院", "4 Road", "'-5", RowStatus.PENDING),
    Row(5, "@home", "'=5", None, RowStatus.CREATED_AND_ACTIVATED, 2**63 - 1),
    Row(6, "Zeta", "6 Road", None, RowStatus.DELETED, 12),
)
BATCH = Batch(
    "7c0f7a52-5f0c-4b52-8a7e-0d1f6f0b2c11",
    "a.csv",
    ROWS,
    datetime(2026, 1, 2, tzinfo=UTC),
    BatchStatus.FAILED,
    error_message="2 rows failed",
)


@pytest.fixture(scope="module")
def service(shared_directory: Directory) -> Iterator[LocalService]:
    with LocalService(shared_directory) as service:
        service.parts.store.add(BATCH)
        yield service


class TestTheAnswer:
    def test_it_is_a_csv_file_to_be_saved(self, service: LocalService) -> None:
        answer = service.call("GET", f"/batches/{BATCH.batch_id}/results.csv")
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
        assert answer.headers["Content-Disposition"] == f"attachment; filename=results-{BATCH.batch_id}.csv"

    def test_it_says_what_became_of_each_row(self, service: LocalService) -> None:
        assert service.results(BATCH.batch_id).decode() == (
            "name,address,phone,row,hospital_id,status,error_message\r\n"
            "Alpha,1 Road,555-1,1,11,created,\r\n"
            'Beta,2 Road,,2,,failed,"name: ""Beta"", or so, is no name"\r\n'
            "Gamma,\"3 Road\nBack yard\",'+44 20,3,,failed,'=no\r\n"
            "\"Ünïted, 院\",4 Road,''-5,4,,pending,\r\n"
            "'@home,''=5,,5,9223372036854775807,created_and_activated,\r\n"
            "Zeta,6 Road,,6,12,deleted,\r\n"
        )

    @pytest.mark.parametrize(
        ("query", "rows"),
        [
            ("", [1, 2, 3, 4, 5, 6]),
            ("?status=", [1, 2, 3, 4, 5, 6]),
            ("?status=failed", [2, 3]),
            ("?status=pending", [4]),
            ("?status=created", [1]),
            ("?status=created_and_activated", [5]),
            ("?status=deleted", [6]),
            ("?other=failed", [1, 2, 3, 4, 5, 6]),
        ],
    )
    def test_a_status_picks_its_rows(self, service: LocalService, query: str, rows: list[int]) -> None:
        assert [int(record["row"]) for record in table_of(service.results(BATCH.batch_id, query))] == rows

    def test_a_status_that_no_row_has_leaves_the_header(self, service: LocalService) -> None:
        batch = replace(BATCH, batch_id=str(uuid.uuid4()), rows=ROWS[:1])
        service.parts.store.add(batch)
        assert service.results(batch.batch_id, "?status=failed") == ",".join(COLUMNS).encode() + b"\r\n"

    @pytest.mark.parametrize("status", ["Failed", "completed", "failed,created", "x" * 1000, "%00", "failed%20"])
    def test_a_status_that_is_none_is_refused(self, service: LocalService, status: str) -> None:
        answer = service.call("GET", f"/batches/{BATCH.batch_id}/results.csv?status={status}")
        words = "`status` must be one of pending, created, created_and_activated, failed, deleted."
        problem(answer, 400, words)

    @pytest.mark.parametrize(
        "batch_id", ["none", "2f1b7a9e-6a64-4d39-9a53-0f9d3a1c5e77", BATCH.batch_id.upper(), "x" * 3000]
    )
    def test_no_batch_has_no_results(self, service: LocalService, batch_id: str) -> None:
        problem(service.call("GET", f"/batches/{batch_id}/results.csv"), 404, "There is no batch")


class TestFormulas:
    @pytest.mark.parametrize("start", list(FORMULA_STARTS))
    @pytest.mark.parametrize("apostrophes", range(4))
    @pytest.mark.parametrize("rest", ["", "1+1", "'"])
    def test_a_cell_that_could_be_one_gets_an_apostrophe_and_loses_it_again(
        self, start: str, apostrophes: int, rest: str
    ) -> None:
        cell = "'" * apostrophes + start + rest
        assert escape(cell) == f"'{cell}"
        assert unescape(f"'{cell}") == cell

    @pytest.mark.parametrize(
        "cell",
        ["", "'", "''", "a", "'a", "''a'", "1+1", "a=1", " =1", "' =1", "\n=1", "555-0101", "(1) 2", '"=1', "`=1"],
    )
    def test_any_other_cell_is_left_alone(self, cell: str) -> None:
        assert escape(cell) == cell
        assert unescape(cell) == cell

    @settings(max_examples=500, derandomize=True, deadline=None)
    @given(st.text(st.sampled_from("'=+-@\t\ra ")) | st.text())
    def test_what_was_escaped_comes_back_equal_and_starts_no_formula(self, cell: str) -> None:
        assert unescape(escape(cell)) == cell
        assert escape(cell)[:1] not in tuple(FORMULA_STARTS)

    @settings(max_examples=150, derandomize=True, deadline=None)
    @given(st.text(st.sampled_from("'=+-@\t\ra "), max_size=4), st.text(st.sampled_from("'=+-@\t\ra "), max_size=4))
    def test_different_cells_stay_different(self, one: str, other: str) -> None:
        assert (escape(one) == escape(other)) is (one == other)


inside = st.text(
    st.characters(exclude_categories=["Cc", "Cs"]) | st.sampled_from([*",;\t\n\"' =+-@", "\u2028", "é", "院"]),
    max_size=20,
)


def between(last: str) -> st.SearchStrategy[str]:
    """A value that an upload may hold, often one that a spreadsheet would take for a formula."""
    starts = st.sampled_from(["", "'", "=", "'=", "''+", "-", "@", "'@", "+", "'''", '"', "sep=", "\u200d"])
    return st.builds(lambda start, text: (start + text).strip(WHITE_SPACE) + last, starts, inside)


messages = st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
results = st.lists(
    st.builds(
        Row,
        row=st.just(0),
        name=between("n"),
        address=between("a"),
        phone=st.none() | between("1"),
        status=st.sampled_from(RowStatus),
        hospital_id=st.none() | st.integers(1, 2**63 - 1),
        error_message=messages,
    ),
    min_size=1,
    max_size=8,
).map(lambda rows: [replace(row, row=number, name=f"{row.name}{number}") for number, row in enumerate(rows, 1)])


class TestThereAndBack:
    @settings(max_examples=150, derandomize=True, deadline=None)
    @given(results)
    @example([replace(ROWS[0], name="sep=;", address="=;", phone="1")])
    def test_rows_come_back_equal(self, rows: list[Row]) -> None:
        reading = read_results(write_results(rows).encode(), max_rows=len(rows))
        assert reading.errors == ()
        assert [(it.row, it.name, it.address, it.phone) for it in reading.rows] == [
            (it.row, it.name, it.address, it.phone) for it in rows
        ]

    @settings(max_examples=100, derandomize=True, deadline=None)
    @given(results)
    def test_no_cell_starts_a_formula(self, rows: list[Row]) -> None:
        for record in csv.reader(io.StringIO(write_results(rows), newline="")):
            assert not [cell for cell in record if cell.startswith(tuple(FORMULA_STARTS))]

    @settings(max_examples=100, derandomize=True, deadline=None)
    @given(
        results,
        st.sampled_from([",", ";", "\t"]),
        st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
        st.sampled_from(["\n", "\r\n"]),
    )
    def test_rows_come_back_equal_from_a_spreadsheet(
        self, rows: list[Row], delimiter: str, encoding: str, line_end: str
    ) -> None:
        records = table_of(write_results(rows).encode())
        content = csv_from(records, encoding, delimiter, line_end)
        reading = read_results(content, max_rows=len(rows))
        assert reading.errors == ()
        assert [(it.row, it.name, it.address, it.phone) for it in reading.rows] == [
            (it.row, it.name, it.address, it.phone) for it in rows
        ]

    @settings(max_examples=100, derandomize=True, deadline=None)
    @given(results)
    def test_a_file_that_was_not_changed_changes_nothing(self, rows: list[Row]) -> None:
        batch = replace(BATCH, rows=tuple(rows))
        reading = read_results(write_results(rows).encode(), max_rows=len(rows))
        assert mended_rows(batch, reading) == batch.rows


def mend(content: bytes, batch: Batch = BATCH, encoding: str | None = None) -> tuple[Row, ...]:
    return mended_rows(batch, read_results(content, max_rows=len(batch.rows), encoding=encoding))


def refused(content: bytes, batch: Batch = BATCH) -> list[tuple[str, int | None, str | None]]:
    """Code, row and column of every error that the file is refused for."""
    with pytest.raises(MendingError) as refusal:
        mend(content, batch)
    return [(error.code, error.row, error.column) for error in refusal.value.errors]


class TestMending:
    """Rows 2 and 3 of the batch failed."""

    def test_failed_rows_are_taken_as_the_file_has_them(self) -> None:
        rows = mend(b"name,address,phone,row\nBeta 2,2 Road,555-2,2\nGamma,3 Street,,3\n")
        assert rows[1] == replace(ROWS[1], name="Beta 2", phone="555-2")
        assert rows[2] == replace(ROWS[2], address="3 Street", phone=None)
        assert (rows[0], *rows[3:]) == (ROWS[0], *ROWS[3:])

    @pytest.mark.parametrize(
        "content",
        [
            b"row,name,address,phone\n2,Beta 2,2 Road,\n",
            b"ROW , Name,ADDRESS,phone\n2 ,Beta 2, 2 Road,\n",
            b"name,address,phone,row,hospital_id,status,error_message\nBeta 2,2 Road,,2,,failed,whatever\n",
            b"name;address;phone;row\r\nBeta 2;2 Road;;2\r\n",
            b"\xef\xbb\xbfname,address,phone,row\r\nBeta 2,2 Road,,2\r\n",
            b"sep=;\nname;address;phone;row\nBeta 2;2 Road;;2\n",
            b"name,address,phone,row\n'\tBeta 2,2 Road,,2\n",
            b"name,address,phone,row,,\nBeta 2,2 Road,,2,,\n,,,,,\n",
            b"name,address,phone,row\nBeta 2,2 Road,,2\nAlpha,1 Road,555-1,1\n",
            b"name,address,phone,row\nBeta 2,2 Road,,0002\n",
            "name\taddress\tphone\trow\r\nBeta 2\t2 Road\t\t2\r\n".encode("utf-16"),
        ],
    )
    def test_a_file_may_hold_some_rows_in_any_form(self, content: bytes) -> None:
        assert mend(content) == (ROWS[0], replace(ROWS[1], name="Beta 2"), *ROWS[2:])

    def test_what_it_says_of_status_and_ids_is_not_believed(self) -> None:
        rows = mend(
            b"name,address,phone,row,hospital_id,status,error_message\n"
            b"Alpha,1 Road,555-1,1,99,failed,x\nBeta,2 Road,,2,99,created,\n"
        )
        assert rows == ROWS

    def test_an_encoding_may_be_named(self) -> None:
        content = "name,address,phone,row\nBêta,2 Road,,2\n".encode("windows-1252")
        assert mend(content, encoding="windows-1252")[1].name == "Bêta"
        assert refused(content) == [("bad_encoding", None, None)]

    @pytest.mark.parametrize(
        ("content", "errors"),
        [
            (b"Beta 2,2 Road,,7\n", [("bad_row", 7, "row")]),
            (b"Beta 2,2 Road,,999999999\n", [("bad_row", 999_999_999, "row")]),
            (b"Beta 2,2 Road,,0\n", [("bad_row", None, "row")]),
            (b"Beta 2,2 Road,,-2\n", [("bad_row", None, "row")]),
            (b"Beta 2,2 Road,,2.0\n", [("bad_row", None, "row")]),
            (b"Beta 2,2 Road,,\n", [("bad_row", None, "row")]),
            (b"Beta 2,2 Road,,two\n", [("bad_row", None, "row")]),
            ("Beta 2,2 Road,,²\n".encode(), [("bad_row", None, "row")]),
            ("Beta 2,2 Road,,٢\n".encode(), [("bad_row", None, "row")]),
            (b"Beta 2,2 Road,,12345678901234567890\n", [("bad_row", None, "row")]),
            (b"Beta 2,2 Road,,2\nBeta 3,2 Road,,2\n", [("bad_row", 2, "row")]),
            (b"Alpha,1 Road,555-1,1\nBeta,2 Road,,2\nBeta 3,2 Road,,2\n", [("bad_row", 2, "row")]),
            (b"Alpha 2,1 Road,555-1,1\n", [("not_failed", 1, None)]),
            (b"alpha,1 Road,555-1,1\n", [("not_failed", 1, None)]),
            (b"Alpha,1 Road,,1\n", [("not_failed", 1, None)]),
            (b"Zeta 2,6 Road,,6\n", [("not_failed", 6, None)]),
            (b"'@home,''=55,,5\n", [("not_failed", 5, None)]),
            (
                b"Alpha 2,1 Road,555-1,1\nBeta 2,2 Road,,2\nNew,7 Road,,7\n",
                [("not_failed", 1, None), ("bad_row", 7, "row")],
            ),
            (b"Alpha,1 Road,555-1,2\n", [("duplicate_row", 2, None)]),
            (b"ALPHA,1  road,555-1,2\n", [("duplicate_row", 2, None)]),
            (b"Alpha,1 Road,555-1,2\nAlpha,1 Road,555-1,1\n", [("duplicate_row", 1, None)]),
            (b"Same,Road,,2\nSame,Road,,3\n", [("duplicate_row", 3, None)]),
            (b"Beta,2 Road,,3\nBeta 2,2 Road,,3\n", [("bad_row", 3, "row")]),
            (b",2 Road,,2\n", [("missing_value", 2, "name")]),
            (b"Beta,2 Road,none,2\n", [("bad_phone", 2, "phone")]),
            (b"Beta,%b,,2\n" % (b"x" * 501), [("too_long", 2, "address")]),
            (b"Be\x07ta,2 Road,,2\n", [("bad_character", 2, "name")]),
            (b"", [("no_rows", None, None)]),
            (b"Beta\n", [("bad_row", None, "row")]),
            (b'Beta,"2 Road,,2\n', [("malformed", 1, None)]),
            (b"Beta,2 Road,,2\n" * 7, [("too_many_rows", None, None)]),
        ],
    )
    def test_a_wrong_row_is_refused(self, content: bytes, errors: list[tuple[str, int | None, str | None]]) -> None:
        assert refused(b"name,address,phone,row\n" + content) == errors

    @pytest.mark.parametrize(
        ("content", "code"),
        [
            (b"", "empty_file"),
            (b"name,address,phone\nBeta,2 Road,\n", "missing_column"),
            (b"row,phone\n2,1\n", "missing_column"),
            (b"name,address,row,extra\nBeta,2 Road,2,x\n", "unknown_column"),
            (b"name,address,row,row\nBeta,2 Road,2,2\n", "duplicate_column"),
            (b"PK\x05\x06", "not_csv"),
            (b"name,address,row\nB\xe9ta,2 Road,2\n", "bad_encoding"),
        ],
    )
    def test_a_file_that_is_no_results_file_is_refused(self, content: bytes, code: str) -> None:
        assert code in {error[0] for error in refused(content)}

    def test_two_failed_rows_may_change_places(self) -> None:
        rows = mend(b"name,address,phone,row\nBeta,2 Road,,3\nGamma,Elsewhere,1,2\n")
        assert (rows[1].name, rows[2].name) == ("Gamma", "Beta")

    def test_a_mended_row_may_not_become_what_a_failed_row_outside_the_file_still_is(self) -> None:
        assert refused(b"name,address,phone,row\nBeta,2 Road,,3\n") == [("duplicate_row", 3, None)]

    def test_a_file_without_phones_is_refused_as_it_would_lose_them(self) -> None:
        assert refused(b"name,address,row\nGamma 2,3 Road,3\n") == [("missing_column", None, "phone")]

    def test_messages_are_sentences_with_row_and_line(self) -> None:
        with pytest.raises(MendingError) as refusal:
            mend(b"name,address,phone,row\nNew,7 Road,,7\n\nAlpha 2,1 Road,,1\nNew 2,8 Road,,8\nBeta,2 Road,,7\n")
        assert [error.message for error in refusal.value.errors] == [
            "Row 7 (line 2): the batch has no such row.",
            "Row 1 (line 4): only failed rows can be changed, and this one did not fail; leave it as it was.",
            "Row 8 (line 5): the batch has no such row.",
            "Row 7 (line 6): the batch has no such row.",
        ]
