"""From the bytes of an upload to its text, or a refusal that says what the bytes are instead.

Nothing is guessed: a file is UTF-8, or what its byte order mark says, or what the caller names.
"""

import codecs
import re
from dataclasses import dataclass
from typing import NoReturn

from csv_errors import CsvError, ErrorCode, FileRefusedError, quoted

# How a file of another kind begins, what it holds if that tells it from its relatives, and its name; the first
# match counts. A zip keeps the names of its entries uncompressed, 26 bytes after each local header's signature.
_OTHER_FORMATS: tuple[tuple[bytes, bytes, str], ...] = (
    (b"PK\x03\x04", rb"PK\x03\x04.{26}xl/", "an Excel workbook (.xlsx)"),
    (b"PK\x03\x04", rb"PK\x03\x04.{26}word/", "a Word document (.docx)"),
    (b"PK\x03\x04", rb"PK\x03\x04.{26}ppt/", "a PowerPoint presentation (.pptx)"),
    (b"PK\x03\x04", rb"vnd\.oasis\.opendocument\.spreadsheet", "an OpenDocument spreadsheet (.ods)"),
    (b"PK\x03\x04", rb"vnd\.oasis\.opendocument\.", "an OpenDocument document"),
    (b"PK\x03\x04", rb"PK\x03\x04.{26}Index/", "a Numbers, Pages or Keynote document"),
    (b"PK\x03\x04", b"", "a zip archive"),
    (b"PK\x05\x06", b"", "an empty zip archive"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", b"E\0n\0c\0r\0y\0p\0t\0e\0d\0P", "an Office file with a password"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", b"W\0o\0r\0d\0D\0o\0c", "a Word document (.doc)"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", b"", "an Excel workbook (.xls)"),
    (b"%PDF-", rb"\A%PDF-\d\.\d", "a PDF"),
    (b"\x89PNG\r\n\x1a\n", b"", "an image (PNG)"),
    (b"\xff\xd8\xff", b"", "an image (JPEG)"),
    (b"GIF8", rb"\AGIF8[79]a.*\0", "an image (GIF)"),
    (b"RIFF", rb"\ARIFF.{4}WEBP", "an image (WebP)"),
    (b"BM", rb"\ABM.{4}\0\0\0\0", "an image (BMP)"),
    (b"II*\0", b"", "an image (TIFF)"),
    (b"MM\0*", b"", "an image (TIFF)"),
    (b"\0\0\0", rb"\A\0\0\0.ftyp", "an image or a video"),
    (b"\x1f\x8b\x08", b"", "a gzip archive"),
    (b"7z\xbc\xaf\x27\x1c", b"", "a 7-Zip archive"),
    (b"Rar!\x1a\x07", b"", "a RAR archive"),
)

# UTF-32 comes first: its little-endian mark begins with that of UTF-16.
_MARKS: tuple[tuple[bytes, str, str], ...] = (
    (codecs.BOM_UTF32_LE, "utf-32-le", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32-be", "UTF-32"),
    (codecs.BOM_UTF8, "utf-8", "UTF-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16"),
)


@dataclass(frozen=True, slots=True)
class _Source:
    """What the bytes are decoded with, and what to say of a line where they do not fit."""

    codec: str
    problem: str
    remedy: str


_UTF_8 = _Source(
    "utf-8",
    "is not UTF-8",
    "save the file as “CSV UTF-8”, or name the encoding it was saved in (windows-1252 is what Excel on Windows "
    "saves as plain “CSV”).",
)

# The name reaches an import and a cache inside Python, so it is kept short and plain.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:-]{0,39}")

# Python knows these as encodings of text, but they write domain names and source code, not files.
_NOT_FOR_FILES = frozenset({"idna", "punycode", "unicode-escape", "raw-unicode-escape"})


def decode(content: bytes, encoding: str | None) -> str:
    """The text of `content`, its line ends all LF, without byte order mark.

    A mark wins over `encoding`: no header that is taken begins with those bytes in any other encoding.
    Raises FileRefusedError with `not_csv` or `bad_encoding`.
    """
    _refuse_other_formats(content)
    named = _codec_named(encoding)
    source = _told_by_mark(content, named) or _told_by_caller(encoding, named) or _UTF_8
    if b"\0" in content and not source.codec.startswith(("utf-16", "utf-32")):
        _refuse_as("binary data")
    text = _decoded(content, source)
    if "\0" in text:
        _refuse_as("binary data")
    return _with_plain_line_ends(text.lstrip("\ufeff"))


def _refuse_other_formats(content: bytes) -> None:
    for start, inside, name in _OTHER_FORMATS:
        if content.startswith(start) and re.search(inside, content, re.DOTALL):
            _refuse_as(name)


def _refuse_as(what: str) -> NoReturn:
    raise FileRefusedError(
        CsvError(
            ErrorCode.NOT_CSV,
            f"This file is {what}, not a CSV: in your spreadsheet program, save it as CSV (“CSV UTF-8”) "
            "and upload that file.",
        )
    )


def _codec_named(encoding: str | None) -> str | None:
    """Python's own name for the encoding that the caller named, None when none was."""
    name = (encoding or "").strip()
    if not name:
        return None
    codec = _codec(name) if _PLAIN_NAME.fullmatch(name) else None
    if codec is None:
        _refuse_encoding(
            f"The encoding {quoted(name)} is not known: name another, such as windows-1252, or none for a file "
            "saved as “CSV UTF-8”."
        )
    return codec


def _codec(name: str) -> str | None:
    try:
        codec = codecs.lookup(name).name
        " ".encode(codec)  # refuses what makes no text, such as base64
    except (LookupError, UnicodeError):
        return None
    return None if codec in _NOT_FOR_FILES else codec


def _told_by_mark(content: bytes, named: str | None) -> _Source | None:
    for mark, codec, label in _MARKS:
        if content.startswith(mark):
            if label == "UTF-32" and not (named or "").startswith("utf-32"):
                _refuse_encoding("The file is UTF-32, which is not taken: save it as “CSV UTF-8”.")
            return _Source(
                codec,
                f"is not {label}, though the mark at the start of the file says so",
                "the file may be cut short or joined from two; save it again, as “CSV UTF-8”.",
            )
    return None


def _told_by_caller(encoding: str | None, named: str | None) -> _Source | None:
    if named is None:
        return None
    return _Source(
        named,
        f"does not fit {quoted(encoding or '')}, the encoding named for the file",
        "name the one it was saved in, or save it as “CSV UTF-8” and name none.",
    )


def _decoded(content: bytes, source: _Source) -> str:
    try:
        text = content.decode(source.codec)
        text.encode()  # UTF-7 lets half characters through that no answer could carry
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        line = _line_of(error, source.codec)
        _refuse_encoding(f"Line {line} {source.problem}: {source.remedy}", line)
    return text


def _line_of(error: UnicodeDecodeError | UnicodeEncodeError, codec: str) -> int:
    before = error.object[: error.start]
    text = before if isinstance(before, str) else before.decode(codec, errors="replace")
    return 1 + _with_plain_line_ends(text).count("\n")


def _refuse_encoding(message: str, line: int | None = None) -> NoReturn:
    raise FileRefusedError(CsvError(ErrorCode.BAD_ENCODING, message, line=line))


def _with_plain_line_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")
