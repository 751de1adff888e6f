"""What an upload request holds: the file, its name, and the encoding the caller named."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from flask import Request, current_app, request
from gunicorn.http.errors import ParseException
from werkzeug.datastructures import FileStorage, ImmutableMultiDict
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.formparser import FormDataParser

from csv_errors import CsvError
from problems import Problem

MAX_FILENAME = 255


class StrictRequest(Request):
    """A request whose form is read as a whole or not at all, and whose host is in small letters."""

    def __init__(self, environ: dict[str, Any], **options: Any) -> None:
        # Capitals name the same host, but not to what holds it against TRUSTED_HOSTS.
        if "HTTP_HOST" in environ:
            environ["HTTP_HOST"] = environ["HTTP_HOST"].lower()
        super().__init__(environ, **options)

    def make_form_data_parser(self) -> FormDataParser:
        """A parser that raises ValueError for what it cannot read."""
        parser = super().make_form_data_parser()
        parser.silent = False
        return parser

    def _load_form_data(self) -> None:
        try:
            super()._load_form_data()
        except Exception:
            # The page that says so looks for what was filled in, and is not to fail of it again.
            self.__dict__.update(form=ImmutableMultiDict(), files=ImmutableMultiDict())
            raise


@dataclass(frozen=True, slots=True)
class Upload:
    """A file as it came; `encoding` is None when the caller named none."""

    filename: str
    content: bytes
    encoding: str | None

    @property
    def digest(self) -> str:
        """The same text for the same upload, another one for another."""
        return hashlib.sha256(f"{self.encoding or ''}\n".encode() + self.content).hexdigest()


def read_upload() -> Upload:
    """The file of the current request. Raises `Problem`: 415 not multipart, 413 too large, 400 without one file."""
    upload = read_optional_upload(must_be_multipart=True)
    if upload is None:
        raise _missing_file()
    return upload


def read_optional_upload(*, must_be_multipart: bool = False) -> Upload | None:
    """The file of the current request, None when none was chosen. Raises `Problem`: 415, 413, 400 several files."""
    files = _files()
    if request.mimetype != "multipart/form-data":
        # Werkzeug has read the body of another kind of form already.
        if not must_be_multipart and not request.form and not request.get_data():
            return None
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "Send the file as multipart/form-data in the field `file`: curl -F file=@hospitals.csv",
        )
    if not files or not files[0].filename:
        if "file" in request.form or (request.files and not files):
            raise _missing_file()
        return None
    if len(files) > 1:
        raise _refused("several_files", f"{len(files)} files were sent; send each in a request of its own.")
    if "encoding" in request.files:
        raise _refused("bad_encoding", "The field `encoding` holds a file; send it as text: -F encoding=windows-1252")
    content = files[0].read()
    if len(content) > current_app.config["MAX_UPLOAD_BYTES"]:
        raise RequestEntityTooLarge
    return Upload(_clean_filename(files[0].filename), content, request.form.get("encoding") or None)


def _files() -> list[FileStorage]:
    try:
        return request.files.getlist("file")
    except RequestEntityTooLarge:
        if _is_too_large():
            raise
        detail = "The form has too many fields, or one that is too long: send the file, and its encoding if need be."
        raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail) from None
    except (ValueError, ParseException) as error:
        # Werkzeug would pass over what it cannot read, and the file would seem not to have been sent.
        detail = "The form in the request could not be read; it was cut short or is not well-formed. Send it again."
        raise _refused("missing_file", detail) from error


def _is_too_large() -> bool:
    """Whether the request is over the limit as a whole, and not only a form in it."""
    most: int = current_app.config["MAX_CONTENT_LENGTH"]
    if request.content_length is None:  # its end was not announced
        return request.stream.tell() >= most
    return request.content_length > most


def _missing_file() -> Problem:
    if "file" in request.form:
        return _refused("missing_file", "The field `file` holds text and no file; with curl: -F file=@hospitals.csv")
    # A part may have no name at all, whatever the types say.
    others = ", ".join(sorted(field for field in request.files if field and field != "file"))[:100]
    found = f" A file came in the field `{others}`; rename that to `file`." if others else ""
    return _refused("missing_file", f"No file was chosen: send it in the field `file`.{found}")


def _refused(code: str, message: str) -> Problem:
    return Problem(HTTPStatus.BAD_REQUEST, message, errors=[CsvError(code, message).as_json()])


def _clean_filename(filename: str) -> str:
    """The name without control characters, short enough to be shown."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "", filename)[:MAX_FILENAME]
