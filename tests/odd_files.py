"""Files that are no upload, or only just one: built here, so that each can be read."""

from __future__ import annotations

import io
import zipfile

MEBIBYTE = 1024 * 1024
HEADER = b"name,address,phone\n"


def png() -> bytes:
    """The beginning of an image."""
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\x02\0\0\0"


def xlsx() -> bytes:
    """A workbook, as far as its archive's names go."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(zipfile.ZipInfo("[Content_Types].xml"), "<Types/>")
        archive.writestr(zipfile.ZipInfo("xl/workbook.xml"), "<workbook/>")
    return content.getvalue()


def rows(size: int) -> bytes:
    """So many bytes of valid rows under a header, at most."""
    row = b"Riverside Clinic,12 River Road,555-0101\n"
    return HEADER + row * ((size - len(HEADER)) // len(row))


def wide(columns: int) -> bytes:
    """A header and a row of so many columns."""
    return b",".join(b"c%d" % number for number in range(columns)) + b"\n" + b"," * (columns - 1) + b"\n"


def multipart(*parts: bytes, boundary: bytes = b"limit") -> bytes:
    """A request's body of these parts, each with its own header lines."""
    return b"".join(b"--%s\r\n%s\r\n" % (boundary, part) for part in parts) + b"--%s--\r\n" % boundary


def part(content: bytes, name: str = "file", filename: bytes | None = b"hospitals.csv") -> bytes:
    """One part of a multipart body: a file, or a plain field without a `filename`."""
    file = b"" if filename is None else b'; filename="%s"' % filename
    return b'Content-Disposition: form-data; name="%s"%s\r\n\r\n%s' % (name.encode(), file, content)


# What asks the most of whoever reads it, in as many bytes as an upload may have.
NASTIEST = {
    "commas": b"," * MEBIBYTE,
    "newlines": b"\n" * MEBIBYTE,
    "quotes": b'"' * MEBIBYTE,
    "NULs": b"\0" * MEBIBYTE,
    "no UTF-8": b"\xff" * MEBIBYTE,
    "one word": b"a" * MEBIBYTE,
    "newlines under a header": HEADER + b"\n" * (MEBIBYTE - len(HEADER)),
    "half a million columns": b"x," * (MEBIBYTE // 2),
    "16,384 columns": wide(16_384),
    "quoted separators": b'",' * (MEBIBYTE // 2),
    "the same column again and again": b"," * 100_000 + b"name," * 19_900 + b"address\nA,B\n",
    "white space beside quotation marks": b"name,address\n" + b'"a" ,\n' * (MEBIBYTE // 6 - 3),
    "quotation marks without a pair": b'name,address\n"a" ,b\n' + b' "x"y,\n' * (MEBIBYTE // 7 - 5),
    "long cells": HEADER + (b"a" * 26_000 + b"," + b"b" * 26_000 + b",1\n") * 20,
    "a quarter of a million rows": HEADER + b"a,b\n" * ((MEBIBYTE - len(HEADER)) // 4),
}
