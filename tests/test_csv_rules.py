"""What an upload may hold, and the sentence that each thing wrong with it is answered with."""

import io
import zipfile

import pytest

from csv_rules import CsvError, CsvReading, CsvRow, read_csv

HEADER = "name,address,phone\n"


def read(text: str, max_rows: int = 20) -> CsvReading:
    return read_csv(text.encode(), max_rows=max_rows)


def values(reading: CsvReading) -> list[tuple[str, str, str | None]]:
    """The rows of a file that has nothing wrong with it."""
    assert reading.errors == ()
    return [(row.name, row.address, row.phone) for row in reading.rows]


def messages(reading: CsvReading) -> list[str]:
    return [error.message for error in reading.errors]


def codes(reading: CsvReading) -> list[str]:
    return [str(error.code) for error in reading.errors]


def beginning(parameter: object) -> str:
    """A test's id that stays short for a cell of a hundred thousand characters."""
    return ascii(parameter)[:40]


def zip_holding(*names: str, content: str = "") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return file.getvalue()


class TestWhatIsTaken:
    def test_a_row_says_which_hospital_it_is_and_on_which_line_it_starts(self) -> None:
        assert read(HEADER + "A,1 Main St,555-0101\nB,2 Main St,\n") == CsvReading(
            rows=(CsvRow(1, 2, "A", "1 Main St", "555-0101"), CsvRow(2, 3, "B", "2 Main St", None)),
            errors=(),
            total_rows=2,
        )

    @pytest.mark.parametrize(
        "text",
        [
            pytest.param("name,address,phone\nA,B,1", id="plain"),
            pytest.param("phone,address,name\n1,B,A", id="columns in another order"),
            pytest.param(" Name ,ADDRESS,\u00a0Phone\u00a0\nA,B,1", id="header in any case, spaces around"),
            pytest.param('"name","address","phone"\n"A","B","1"', id="everything quoted"),
            pytest.param("name, address, phone\n A , B , 1 ", id="spaces around values"),
            pytest.param('name, address, phone\n"A", "B", "1"', id="spaces before quotation marks"),
            pytest.param('"name" ,"address"\u00a0, "phone" \n"A" ,"B"\t,"1" \n', id="spaces after quotation marks"),
            pytest.param('name,address,phone\n\t"A",\u00a0"B",\u200b"1"', id="other white space before them"),
            pytest.param('"name" ; "address";phone\n"A" ; "B";1', id="spaces beside semicolons"),
            pytest.param('"name" \t "address"\tphone\n"A" \t "B"\t1', id="spaces beside tabs"),
            pytest.param("name;address;phone\nA;B;1", id="semicolons"),
            pytest.param("name\taddress\tphone\nA\tB\t1", id="tabs"),
            pytest.param('"name";"address";"phone"\n"A";"B";"1"', id="quoted header with semicolons"),
            pytest.param("sep=;\nname;address;phone\nA;B;1", id="Excel's separator line"),
            pytest.param('\n"SEP=,",,\n\nname,address,phone\nA,B,1', id="separator line saved again"),
            pytest.param("sep=;\n,,\nname;address;phone\nA;B;1", id="a blank line after the separator line"),
            pytest.param("sep=\t\nname\taddress\tphone\nA\tB\t1", id="separator line for tabs"),
            pytest.param("name,address,phone\r\nA,B,1\r\n", id="line ends of Windows"),
            pytest.param("name,address,phone\rA,B,1\r", id="line ends of an old Mac"),
            pytest.param("name,address,phone\r\n\rA,B,1\n\r", id="line ends mixed"),
            pytest.param("\n ; \n,,\t\n\nname,address,phone\nA,B,1", id="blank lines before the header"),
            pytest.param('name,address,phone\n\n,,\n \t\n"","",""\nA,B,1\n,,,,,\n\n', id="blank rows"),
            pytest.param("name,address,phone,,\nA,B,1,,\n", id="trailing columns with neither header nor values"),
            pytest.param("name,,address,phone\nA,,B,1", id="an empty column in between"),
            pytest.param("name,address,phone\nA,B,1,,,,", id="trailing separators in a row"),
            pytest.param("\ufeff\ufeffname,address,phone\n\u200bA,B\ufeff,1", id="marks left over from joined files"),
        ],
    )
    def test_the_same_hospital_is_read_however_it_is_written(self, text: str) -> None:
        assert values(read(text)) == [("A", "B", "1")]

    def test_the_phone_may_be_left_out_of_a_row_and_of_the_header(self) -> None:
        assert values(read("name,address,phone\nA,B")) == [("A", "B", None)]
        assert values(read("address,name\nB,A")) == [("A", "B", None)]

    @pytest.mark.parametrize(
        ("cell", "value"),
        [
            ('"12 Main St, Springfield; IL"', "12 Main St, Springfield; IL"),
            ('"The ""Old"" Mill"', 'The "Old" Mill'),
            ('12" Pipe Road', '12" Pipe Road'),
            ('"1 Main St\r\nFloor 2\rRoom 3\nBed 4"', "1 Main St\nFloor 2\nRoom 3\nBed 4"),
            ("a  b\tc", "a  b\tc"),
            ("\u3000東京都 千代田区\u00a0", "東京都 千代田区"),
            ("one\u2028two\u2029three", "one\u2028two\u2029three"),
            ("x" * 500, "x" * 500),
            ("🏥" * 500, "🏥" * 500),
        ],
        ids=beginning,
    )
    def test_a_value_is_kept_but_for_white_space_around_it(self, cell: str, value: str) -> None:
        assert values(read(f"name,address\nA,{cell}\n")) == [("A", value, None)]

    @pytest.mark.parametrize(
        "phone", ["555-0101", "+44 20 7946 0958 ext. 3", "(555) 123 4567", "1-800-FLOWERS", "٠١٢", "5" * 50]
    )
    def test_a_phone_is_taken_as_it_stands(self, phone: str) -> None:
        assert values(read(f"{HEADER}A,B,{phone}\n")) == [("A", "B", phone)]

    def test_lines_count_the_separator_line_blank_lines_and_breaks_in_quotes(self) -> None:
        text = 'sep=,\r\n\r\n"name","address\n"\r\n"A\r\n\r\nA","B\rB"\r\n,\r\nC,D\rE,F\n'
        assert [(row.row, row.line) for row in read(text).rows] == [(1, 5), (2, 10), (3, 11)]


class TestEncodings:
    @pytest.mark.parametrize(
        ("codec", "encoding"),
        [
            ("utf-8", None),
            ("utf-8", ""),
            ("utf-8", " UTF8\n"),
            ("utf-8-sig", None),
            ("utf-16", None),
            ("cp1252", "windows-1252"),
            ("cp1252", " Windows-1252 "),
            ("utf-16-le", "utf-16-le"),
            ("utf-32", "UTF-32"),
            ("utf-8-sig", "utf-8"),
        ],
    )
    def test_a_file_is_read_in_its_own_encoding(self, codec: str, encoding: str | None) -> None:
        content = "name,address\nHôpital,5 €\n".encode(codec)
        assert values(read_csv(content, encoding=encoding)) == [("Hôpital", "5 €", None)]

    @pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16"])
    def test_a_byte_order_mark_wins_over_the_encoding_named(self, codec: str) -> None:
        content = "name,address\nHôpital,B\n".encode(codec)
        assert values(read_csv(content, encoding="windows-1252")) == [("Hôpital", "B", None)]

    @pytest.mark.parametrize(
        ("content", "encoding", "line", "message"),
        [
            pytest.param(
                "name,address\r\nA,B\rHôpital,C\n".encode("cp1252"),
                None,
                3,
                "Line 3 is not UTF-8: save the file as “CSV UTF-8”, or name the encoding it was saved in "
                "(windows-1252 is what Excel on Windows saves as plain “CSV”).",
                id="plain CSV of Excel on Windows",
            ),
            pytest.param(
                "name,address\nA,B".encode("utf-16")[:-1],
                None,
                2,
                "Line 2 is not UTF-16, though the mark at the start of the file says so: the file may be cut short "
                "or joined from two; save it again, as “CSV UTF-8”.",
                id="UTF-16 cut short",
            ),
            pytest.param(
                b"name,address\nA,\x81\n",
                "Windows-1252",
                2,
                "Line 2 does not fit “Windows-1252”, the encoding named for the file: name the one it was saved in, "
                "or save it as “CSV UTF-8” and name none.",
                id="the encoding named does not fit",
            ),
            pytest.param(
                b"name,address\n\n+2AA-,B\n",
                "utf-7",
                3,
                "Line 3 does not fit “utf-7”, the encoding named for the file: name the one it was saved in, "
                "or save it as “CSV UTF-8” and name none.",
                id="half a character",
            ),
            pytest.param(
                "name,address\nA,B".encode("utf-32"),
                None,
                None,
                "The file is UTF-32, which is not taken: save it as “CSV UTF-8”.",
                id="UTF-32",
            ),
            pytest.param(
                b"name,address\nA,B",
                "utf-ate",
                None,
                "The encoding “utf-ate” is not known: name another, such as windows-1252, or none for a file saved "
                "as “CSV UTF-8”.",
                id="no such encoding",
            ),
        ],
    )
    def test_a_file_that_does_not_fit_its_encoding_is_refused(
        self, content: bytes, encoding: str | None, line: int | None, message: str
    ) -> None:
        reading = read_csv(content, encoding=encoding)
        assert reading == CsvReading((), (CsvError("bad_encoding", message, line=line),), 0)

    @pytest.mark.parametrize(
        "encoding",
        ["base64", "rot13", "hex", "zip", "idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined"],
    )
    def test_what_is_no_encoding_of_files_is_not_known(self, encoding: str) -> None:
        reading = read_csv(b"name,address\nA,B", encoding=encoding)
        assert codes(reading) == ["bad_encoding"]
        assert f"The encoding “{encoding}” is not known" in reading.errors[0].message

    @pytest.mark.parametrize(
        "encoding",
        ["mbcs", "aliases", "utf\0", "utf-8\nutf-8", "../utf-8", "\ud800", "é", "x" * 100_000],
        ids=beginning,
    )
    def test_an_odd_name_of_an_encoding_is_not_known_nor_echoed_whole(self, encoding: str) -> None:
        reading = read_csv(b"name,address\nA,B", encoding=encoding)
        assert codes(reading) == ["bad_encoding"]
        assert "is not known" in reading.errors[0].message
        assert len(reading.errors[0].message.encode()) < 300


class TestOtherFormats:
    @pytest.mark.parametrize(
        ("content", "what"),
        [
            (zip_holding("[Content_Types].xml", "xl/workbook.xml"), "an Excel workbook (.xlsx)"),
            (zip_holding("[Content_Types].xml", "word/document.xml"), "a Word document (.docx)"),
            (zip_holding("[Content_Types].xml", "ppt/presentation.xml"), "a PowerPoint presentation (.pptx)"),
            (zip_holding("Index/Document.iwa"), "a Numbers, Pages or Keynote document"),
            (zip_holding("hospitals.csv", content="name,address\n" * 99), "a zip archive"),
            (zip_holding(), "an empty zip archive"),
            (b"PK\x03\x04" + b"\n" * 26 + b"xl/workbook.xml", "an Excel workbook (.xlsx)"),
            (
                b"PK\x03\x04" + b"\0" * 26 + b"mimetypeapplication/vnd.oasis.opendocument.spreadsheet",
                "an OpenDocument spreadsheet (.ods)",
            ),
            (
                b"PK\x03\x04" + b"\0" * 26 + b"mimetypeapplication/vnd.oasis.opendocument.text",
                "an OpenDocument document",
            ),
            (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 99, "an Excel workbook (.xls)"),
            (
                b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "WordDocument".encode("utf-16-le"),
                "a Word document (.doc)",
            ),
            (
                b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "EncryptedPackage".encode("utf-16-le"),
                "an Office file with a password",
            ),
            (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a PDF"),
            (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "an image (PNG)"),
            (b"\xff\xd8\xff\xe0\0\x10JFIF", "an image (JPEG)"),
            (b"GIF89a\x01\0\x01\0", "an image (GIF)"),
            (b"RIFF\x24\0\0\0WEBPVP8 ", "an image (WebP)"),
            (b"BM\x36\0\x0c\0\0\0\0\0\x36\0\0\0", "an image (BMP)"),
            (b"II*\0\x08\0\0\0", "an image (TIFF)"),
            (b"MM\0*\0\0\0\x08", "an image (TIFF)"),
            (b"\0\0\0\x18ftypheic", "an image or a video"),
            (b"\x1f\x8b\x08\0\0\0", "a gzip archive"),
            (b"7z\xbc\xaf\x27\x1c\0\x04", "a 7-Zip archive"),
            (b"Rar!\x1a\x07\x01\0", "a RAR archive"),
            (b"name,address\nA,B\0\n", "binary data"),
            ("name,address\nA,B".encode("utf-16-le"), "binary data"),
            ("name,address\nA,B\0".encode("utf-16"), "binary data"),
        ],
        ids=beginning,
    )
    @pytest.mark.parametrize("encoding", [None, "windows-1252"])
    def test_a_file_that_is_no_csv_is_called_by_its_name(self, content: bytes, what: str, encoding: str | None) -> None:
        message = (
            f"This file is {what}, not a CSV: in your spreadsheet program, save it as CSV (“CSV UTF-8”) "
            "and upload that file."
        )
        assert read_csv(content, encoding=encoding) == CsvReading((), (CsvError("not_csv", message),), 0)

    @pytest.mark.parametrize("name", ["PK Hospital", "GIF89a", "BM", "%PDF-files", "RIFF Clinic", "Rar! 7z"])
    def test_text_that_merely_begins_like_another_format_is_text(self, name: str) -> None:
        assert codes(read(f"{name},1 Main St\n")) == ["missing_column"]


class TestHeader:
    @pytest.mark.parametrize(
        "content",
        [b"", b" \t\r\n\n", "\ufeff".encode(), "\ufeff\n".encode("utf-16"), b"sep=;\r\n", b";;;\n,,,\n", b'"",""\n'],
    )
    def test_a_file_with_nothing_in_it_is_empty(self, content: bytes) -> None:
        message = (
            "The file is empty: its first line must name the columns name, address and phone, and each line after "
            "it is a hospital."
        )
        assert read_csv(content) == CsvReading((), (CsvError("empty_file", message),), 0)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                "General Hospital,1 Main St,555-0101\n",
                "The header is missing: line 1 reads “General Hospital”, “1 Main St”, “555-0101”. "
                "Begin the file with a line that names the columns name, address and phone.",
            ),
            (
                "\n\nname|address\nA|B\n",
                "The header is missing: line 3 reads “name|address”. Begin the file with the line "
                "name,address,phone; a comma, a semicolon or a tab tells columns apart.",
            ),
            (
                "Hospital Name;Adress;City\n",
                "None of the columns is known: line 1 reads “Hospital Name”, “Adress”, “City”. "
                "Rename “Hospital Name” to name, “Adress” to address.",
            ),
            (
                "Hospital,Street,Tel\n",
                "None of the columns is known: line 1 reads “Hospital”, “Street”, “Tel”. "
                "Rename “Hospital” to name, “Street” to address, “Tel” to phone.",
            ),
            (
                "Hospital Name,Contact Name\n",
                "None of the columns is known: line 1 reads “Hospital Name”, “Contact Name”. "
                "Rename “Hospital Name” to name.",
            ),
            (
                "1,2,3,4,5,6,7,8,9,10\n",
                "The header is missing: line 1 reads “1”, “2”, “3”, “4”, “5”, “6”, “7”, “8” and 2 more. "
                "Begin the file with a line that names the columns name, address and phone.",
            ),
        ],
    )
    def test_without_any_known_column_one_error_says_what_the_first_line_is(self, text: str, message: str) -> None:
        reading = read(text)
        assert codes(reading) == ["missing_column"]
        assert messages(reading) == [message]

    def test_each_missing_column_is_named_with_the_columns_that_were_found(self) -> None:
        assert read("phone,\n1,2,3\n").errors == (
            CsvError(
                "missing_column",
                "Line 1: there is no column name; the columns found are “phone”.",
                line=1,
                column="name",
            ),
            CsvError(
                "missing_column",
                "Line 1: there is no column address; the columns found are “phone”.",
                line=1,
                column="address",
            ),
        )

    @pytest.mark.parametrize("text", ["name\nA\n", "name", '"name";\n'])
    def test_a_header_of_one_column_lacks_the_other(self, text: str) -> None:
        assert messages(read(text)) == ["Line 1: there is no column address; the columns found are “name”."]

    @pytest.mark.parametrize(
        ("header", "message"),
        [
            ("notes", "Line 1: the column “notes” is not known; remove it: only name, address and phone are taken."),
            ("Phone  Number", "Line 1: the column “Phone Number” is not known; did you mean phone?"),
            ("Telephone", "Line 1: the column “Telephone” is not known; did you mean phone?"),
            ("Tel", "Line 1: the column “Tel” is not known; did you mean phone?"),
            (
                "Email Address",
                "Line 1: the column “Email Address” is not known; remove it: only name, address and phone are taken.",
            ),
            (
                '"see\nabove\x07"',
                "Line 1: the column “see above\ufffd” is not known; remove it: only name, address and phone are taken.",
            ),
            (
                "x" * 61,
                f"Line 1: the column “{'x' * 59}…” is not known; remove it: only name, address and phone are taken.",
            ),
        ],
        ids=beginning,
    )
    def test_an_unknown_column_is_refused_and_a_near_miss_named(self, header: str, message: str) -> None:
        assert messages(read(f"name,address,{header}\nA,B,1\n")) == [message]

    def test_the_column_of_an_error_is_the_unknown_header_as_written(self) -> None:
        assert [error.column for error in read("name,address, Opening Hours\n").errors] == ["Opening Hours"]

    def test_the_same_column_twice_is_refused_however_it_is_spelled(self) -> None:
        assert read("name,address,phone, NAME\nA,B,1,C\n").errors == (
            CsvError(
                "duplicate_column",
                "Line 1: the column name is there 2 times; keep one of them.",
                line=1,
                column="name",
            ),
        )

    def test_everything_wrong_with_a_header_is_said_at_once_and_nothing_of_the_rows(self) -> None:
        reading = read("name,Name,adress,notes\n,,,\nA\n")
        assert codes(reading) == ["missing_column", "duplicate_column", "unknown_column", "unknown_column"]
        assert reading.rows == ()

    @pytest.mark.parametrize(("unknown", "more"), [(11, "1"), (16_382, "16,372")])
    def test_of_many_unknown_columns_some_are_named_and_the_others_counted(self, unknown: int, more: str) -> None:
        reading = read("name,address," + ",".join(f"c{number}" for number in range(unknown)))
        assert codes(reading) == ["unknown_column"] * 11
        assert messages(reading)[-1] == f"Line 1: unknown columns not listed here: {more}; remove them too."

    def test_our_own_results_file_is_sent_to_its_batch(self) -> None:
        text = "name,address,phone,row,hospital_id,status,error_message\nA,B,,1,7,failed,no\n"
        assert messages(read(text)) == [
            "This is the results file of a batch: upload it on the page of that batch to resume it. "
            "A new upload has only the columns name, address and phone."
        ]
        assert codes(read(text)) == ["unknown_column"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                'name,"address\nA,B\n',
                "Line 1: a quotation mark is opened and never closed; close it, or write two for one that is part "
                "of the value.",
            ),
            (
                '\n"name" of it,address\n',
                "Line 2: text follows a closing quotation mark; put the whole value between quotation marks, and "
                "write two for one that is part of it.",
            ),
        ],
    )
    def test_a_header_with_broken_quoting_is_malformed(self, text: str, message: str) -> None:
        reading = read(text)
        assert messages(reading) == [message]
        assert codes(reading) == ["malformed"]


class TestHowManyRows:
    @pytest.mark.parametrize(("text", "line"), [("name,address", 1), ("\nname,address\r\n\r\n,\r\n", 2)])
    def test_a_header_alone_has_no_rows(self, text: str, line: int) -> None:
        message = f"There is no hospital in the file: nothing follows the header on line {line}."
        assert read(text) == CsvReading((), (CsvError("no_rows", message, line=line),), 0)

    def test_as_many_rows_as_are_allowed_are_taken(self) -> None:
        assert len(values(read(HEADER + "".join(f"A{n},B,\n" for n in range(20))))) == 20

    def test_too_many_rows_stand_alone_and_are_counted_but_not_kept(self) -> None:
        reading = read(HEADER + "\n,,\n" + "A,,n/a\n" * 1_500, max_rows=2)
        assert messages(reading) == [
            "The file has 1,500 hospitals, and at most 2 are allowed: split it into several files."
        ]
        assert codes(reading) == ["too_many_rows"]
        assert (len(reading.rows), reading.total_rows) == (2, 1_500)

    def test_too_many_rows_before_broken_quoting_are_at_least_as_many(self) -> None:
        reading = read(HEADER + "A,B,\nC,D,\nE,F,\n" + '"G\n', max_rows=2)
        assert messages(reading) == [
            "The file has at least 3 hospitals, and at most 2 are allowed: split it into several files."
        ]


class TestRows:
    @pytest.mark.parametrize(
        ("row", "code", "column", "message"),
        [
            (",B,1", "missing_value", "name", "Row 1 (line 2): the name is missing."),
            ("A, \u200b,1", "missing_value", "address", "Row 1 (line 2): the address is missing."),
            (
                f"{'x' * 501},B,",
                "too_long",
                "name",
                "Row 1 (line 2): the name is 501 characters long; at most 500 are allowed.",
            ),
            (
                f"A,{'x' * 1000},",
                "too_long",
                "address",
                "Row 1 (line 2): the address is 1,000 characters long; at most 500 are allowed.",
            ),
            (
                f"A,B,{'5' * 51}",
                "too_long",
                "phone",
                "Row 1 (line 2): the phone is 51 characters long; at most 50 are allowed.",
            ),
            (
                "A\x07,B,",
                "bad_character",
                "name",
                "Row 1 (line 2): the name “A\ufffd” holds a control character (U+0007); type it again.",
            ),
            (
                "A,\x85B\x0b,",
                "bad_character",
                "address",
                "Row 1 (line 2): the address “\ufffdB\ufffd” holds a control character (U+0085); type it again.",
            ),
            (
                "A,B,call us",
                "bad_phone",
                "phone",
                "Row 1 (line 2): the phone “call us” has no digit; correct it, or leave it empty.",
            ),
            (
                "A,B,-²",
                "bad_phone",
                "phone",
                "Row 1 (line 2): the phone “-²” has no digit; correct it, or leave it empty.",
            ),
            (
                "A,12 Main St, Suite 5,555-0101",
                "wrong_field_count",
                None,
                "Row 1 (line 2): “555-0101” is in field 4, for which the header has no column; "
                "put a value with a comma in it between quotation marks.",
            ),
            ("A", "wrong_field_count", None, "Row 1 (line 2): the row ends after field 1, before the address."),
            (
                'A,"B',
                "malformed",
                None,
                "Row 1 (line 2): a quotation mark is opened and never closed; close it, or write two for one that "
                "is part of the value.",
            ),
            (
                '"Mercy" Hospital,B,',
                "malformed",
                None,
                "Row 1 (line 2): text follows a closing quotation mark; put the whole value between quotation marks, "
                "and write two for one that is part of it.",
            ),
            (
                f"A,{'x' * 140_000},",
                "malformed",
                None,
                "Row 1 (line 2): a field is longer than 131,072 characters; a quotation mark may be missing its pair.",
            ),
        ],
        ids=beginning,
    )
    def test_what_is_wrong_with_a_row_is_said_with_its_place(
        self, row: str, code: str, column: str | None, message: str
    ) -> None:
        assert read(HEADER + row).errors == (CsvError(code, message, row=1, line=2, column=column),)

    @pytest.mark.parametrize(
        ("text", "place"),
        [
            ("name,address,phone,,\nA,B,C,,x\n", "“x” is in field 5"),
            ("name,,address\nA,x,\n", "“x” is in field 2"),
            (",name,address\nx,A,B\n", "“x” is in field 1"),
        ],
    )
    def test_a_value_in_a_column_without_header_is_not_dropped(self, text: str, place: str) -> None:
        assert messages(read(text)) == [
            f"Row 1 (line 2): {place}, for which the header has no column; "
            "put a value with a comma in it between quotation marks."
        ]

    @pytest.mark.parametrize(
        ("text", "missing"),
        [
            ("phone;name;address\n5\n", "field 1, before the name"),
            ("phone;name;address\n5;A\n", "field 2, before the address"),
            ("address;phone;name\nB;\n", "field 2, before the name"),
        ],
    )
    def test_a_row_that_ends_too_early_says_before_which_column(self, text: str, missing: str) -> None:
        assert messages(read(text)) == [f"Row 1 (line 2): the row ends after {missing}."]

    def test_everything_wrong_with_a_row_is_said_from_left_to_right(self) -> None:
        reading = read(f"phone,name,address\nn/a\x07,,{'x' * 501}\x1f\n")
        assert [(error.column, str(error.code)) for error in reading.errors] == [
            ("phone", "bad_character"),
            ("phone", "bad_phone"),
            ("name", "missing_value"),
            ("address", "too_long"),
            ("address", "bad_character"),
        ]

    def test_every_row_is_shown_with_what_could_be_read_of_it(self) -> None:
        reading = read(HEADER + " A ,,\n\nB\nC,D,n/a\n")
        assert reading.rows == (CsvRow(1, 2, "A", "", None), CsvRow(2, 4, "B", "", None), CsvRow(3, 5, "C", "D", "n/a"))
        assert codes(reading) == ["missing_value", "wrong_field_count", "bad_phone"]

    def test_broken_quoting_comes_after_the_errors_of_the_rows_before_it(self) -> None:
        reading = read(HEADER + 'A,,1\n\n"B\n\n",C,2\nD,"E,3\nF,G,4\n')
        assert messages(reading) == [
            "Row 1 (line 2): the address is missing.",
            "Row 3 (line 7): a quotation mark is opened and never closed; close it, or write two for one that is part "
            "of the value.",
        ]
        assert reading.total_rows == 2


class TestDuplicates:
    def test_a_hospital_that_is_there_already_names_the_first_row_that_has_it(self) -> None:
        reading = read(HEADER + "St. Mary,1 Main St,5\n\nst.  MARY,1\u00a0Main  St,5\nB,C,\nSt. Mary,1 Main St,5\n")
        assert reading.errors == tuple(
            CsvError(
                "duplicate_row",
                f"Row {row} (line {line}): this hospital is already in row 1 (line 2); remove one of the two.",
                row=row,
                line=line,
            )
            for row, line in [(2, 4), (4, 6)]
        )

    @pytest.mark.parametrize("rows", ["A,B,1\nA,B,2\n", "A,B,\nA,B,1\n", "A,B,1\nA,C,1\n", "AB,C,\nA,BC,\n"])
    def test_hospitals_that_differ_in_anything_else_are_two(self, rows: str) -> None:
        assert len(values(read(HEADER + rows))) == 2

    def test_rows_that_lack_a_value_are_not_called_the_same(self) -> None:
        assert codes(read(HEADER + ",B,1\n,B,1\nA\nA\n")) == [
            "missing_value",
            "missing_value",
            "wrong_field_count",
            "wrong_field_count",
        ]


def test_white_space_inside_quotation_marks_stays_where_separators_and_line_breaks_stand_beside_it() -> None:
    reading = read(HEADER + '"A ""x"" , ""y"" z" ,"B \n , C" \n"D, ""E"" , F", "G" , "1" ')
    assert values(reading) == [('A "x" , "y" z', "B \n , C", None), ('D, "E" , F', "G", "1")]
    assert [row.line for row in reading.rows] == [2, 4]


def test_a_line_that_is_too_long_comes_with_the_errors_of_the_rows_before_it() -> None:
    reading = read(HEADER + 'A,,\nB,"C\n' + "x" * 250_000)
    assert [(str(error.code), error.row, error.line) for error in reading.errors] == [
        ("missing_value", 1, 2),
        ("malformed", 2, 3),
    ]
    assert messages(reading)[1] == ("Row 2 (line 3): the line is longer than 200,000 characters; is the file a CSV?")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(b"," * 1_000_000, "empty_file", id="commas"),
        pytest.param(b",\n" * 500_000, "empty_file", id="rows of commas"),
        pytest.param(b"\r" * 1_000_000, "empty_file", id="line ends"),
        pytest.param(b'"' * 1_000_000, "malformed", id="quotation marks"),
        pytest.param(b"x" * 1_000_000, "malformed", id="one long word"),
        pytest.param(b"x," * 500_000, "malformed", id="columns"),
        pytest.param(b"name,address," + b"name," * 200_000, "malformed", id="the same column"),
        pytest.param(b"name,address\n" + b"\n" * 1_000_000, "no_rows", id="header and line ends"),
        pytest.param(b"name,address\n" + b"A,B\n" * 250_000, "too_many_rows", id="rows"),
        pytest.param(b"name,address\n" + b"x," * 500_000, "malformed", id="fields"),
        pytest.param(b"PK\x03\x04" * 250_000, "not_csv", id="zip headers"),
    ],
)
def test_a_megabyte_of_anything_gets_one_answer(content: bytes, expected: str) -> None:
    assert codes(read_csv(content)) == [expected]
