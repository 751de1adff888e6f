"""The blueprint: every address of the service, for programs and for browsers."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from flask import Blueprint, Response, current_app, redirect, render_template, request, send_from_directory, url_for
from werkzeug.wrappers import Response as BaseResponse

from batch import Batch, BatchStatus, Row, rows_digest, utc_now
from batch_json import batch_json
from csv_rules import CsvReading, read_csv
from directory_errors import DirectoryError
from preferences import parse_prefer
from problems import Problem, prefers_html
from runner import TooManyBatchesError
from service import service
from store import BatchNotFoundError
from upload import Upload, read_upload

routes = Blueprint("routes", __name__)

DEFAULT_PAGE, LONGEST_PAGE = 50, 200
BATCHES_ON_FRONT_PAGE = 5
RETRY_AFTER_SECONDS = "5"


@routes.post("/hospitals/bulk")
def upload_batch() -> BaseResponse:
    """Create every hospital of a CSV: 200 the batch when it has ended, 202 when the caller did not wait so long."""
    upload = read_upload()
    reading = _read(upload)
    if reading.errors:
        errors = [asdict(error) for error in reading.errors]
        raise Problem(HTTPStatus.BAD_REQUEST, _count_errors(reading), errors=errors)
    batch_id = _start(upload, reading)
    if prefers_html():
        return redirect(url_for(".show_batch", batch_id=batch_id), HTTPStatus.SEE_OTHER)
    return _answer_when_ended(batch_id)


@routes.post("/hospitals/bulk/validate")
def validate() -> Response:
    """What an upload would create, and everything that is wrong with it; calls nobody."""
    reading = _read(read_upload())
    return _json(
        {
            "valid": not reading.errors,
            "total_hospitals": reading.total_rows,
            "hospitals": [asdict(row) for row in reading.rows],
            "errors": [asdict(error) for error in reading.errors],
            "warnings": _warnings(reading),
        }
    )


@routes.get("/batches")
def list_batches() -> BaseResponse:
    """The batches, newest first, without their hospitals; the next page is in the `Link` header."""
    status, limit = _asked_status(), _asked_limit()
    try:
        batches = service().store.page(limit + 1, status=status, after=request.args.get("after"))
    except BatchNotFoundError:
        raise Problem(HTTPStatus.BAD_REQUEST, "The batch named in `after` is not known; begin without it.") from None
    page, now = batches[:limit], utc_now()
    next_page = _next_page(page[-1]) if len(batches) > limit else None
    if prefers_html():
        return Response(render_template("batches.html", batches=page, now=now, next_page=next_page))
    answer = _json([batch_json(batch, now, with_hospitals=False) for batch in page])
    if next_page is not None:
        answer.headers["Link"] = f'<{next_page}>; rel="next"'
    return answer


@routes.get("/batches/<batch_id>")
def show_batch(batch_id: str) -> BaseResponse:
    """One batch, live while it runs."""
    try:
        batch = service().store.get(batch_id)
    except BatchNotFoundError:
        raise Problem(HTTPStatus.NOT_FOUND, f"There is no batch {batch_id[:100]}.") from None
    if prefers_html():
        return Response(render_template("batch.html", batch=batch, now=utc_now()))
    return _json(batch_json(batch, utc_now()))


@routes.get("/health")
def health() -> Response:
    """Whether the service answers; calls nobody."""
    return _json({"status": "healthy"})


@routes.get("/ready")
def ready() -> Response:
    """Whether the store answers and, with `?directory=true`, the directory too."""
    service().store.check()
    if request.args.get("directory", "").lower() in ("true", "1"):
        try:
            service().runner.knock()
        except DirectoryError as error:
            raise _unavailable(str(error)) from error
    return _json({"status": "ready"})


@routes.get("/")
def index() -> str:
    """The page: a form, what a file must hold, and the last batches."""
    batches = service().store.page(BATCHES_ON_FRONT_PAGE)
    return render_template("index.html", batches=batches, now=utc_now(), most_rows=service().settings.max_csv_rows)


@routes.get("/sample_hospitals.csv")
def sample() -> Response:
    """A file that uploads as it stands."""
    return send_from_directory(current_app.root_path, "sample_hospitals.csv", as_attachment=True)


def _read(upload: Upload) -> CsvReading:
    return read_csv(upload.content, max_rows=service().settings.max_csv_rows, encoding=upload.encoding)


def _start(upload: Upload, reading: CsvReading) -> str:
    try:
        return service().runner.start(upload.filename, _rows(reading))
    except TooManyBatchesError:
        raise _unavailable(
            "Too many batches run at the moment, so nothing was created. Upload the file again in a few seconds."
        ) from None


def _rows(reading: CsvReading) -> tuple[Row, ...]:
    return tuple(Row(row.row, row.name, row.address, row.phone) for row in reading.rows)


def _answer_when_ended(batch_id: str) -> Response:
    preferences = parse_prefer(",".join(request.headers.getlist("Prefer")))
    most = service().settings.sync_wait_seconds
    batch = _wait(batch_id, preferences.seconds_to_wait(most))
    now = utc_now()
    answer = _json(batch_json(batch, now))
    if not batch.ended:
        answer.status_code = HTTPStatus.ACCEPTED
        answer.headers["Location"] = url_for(".show_batch", batch_id=batch_id)
        answer.headers["Retry-After"] = str(max(1, math.ceil(batch.estimated_seconds(now) or 0)))
    if applied := preferences.applied(most):
        answer.headers["Preference-Applied"] = applied
    return answer


def _wait(batch_id: str, seconds: float) -> Batch:
    """The batch after waiting for its end, or at once when as many callers wait as may."""
    places = service().waiting_places
    if not seconds or not places.acquire(blocking=False):
        return service().runner.wait(batch_id, 0)
    try:
        return service().runner.wait(batch_id, seconds)
    finally:
        places.release()


def _warnings(reading: CsvReading) -> list[dict[str, Any]]:
    before = None if reading.errors else service().store.find_same_rows(rows_digest(_rows(reading)))
    if before is None:
        return []
    message = f"The same hospitals were uploaded before, as batch {before}; uploading them again creates them again."
    return [
        {"code": "uploaded_before", "message": message, "row": None, "line": None, "column": None, "batch_id": before}
    ]


def _count_errors(reading: CsvReading) -> str:
    count = len(reading.errors)
    if count == 1:
        return reading.errors[0].message
    return f"The file has {count} errors, so nothing was created: mend them and upload it again."


def _asked_status() -> BatchStatus | None:
    text = request.args.get("status", "")
    try:
        return BatchStatus(text) if text else None
    except ValueError:
        raise Problem(HTTPStatus.BAD_REQUEST, f"`status` must be one of {', '.join(BatchStatus)}.") from None


def _asked_limit() -> int:
    text = request.args.get("limit", str(DEFAULT_PAGE))
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= LONGEST_PAGE):
        raise Problem(HTTPStatus.BAD_REQUEST, f"`limit` must be a whole number from 1 to {LONGEST_PAGE}.")
    return int(text)


def _next_page(last: Batch) -> str:
    return url_for(".list_batches") + "?" + urlencode({**request.args, "after": last.batch_id})


def _unavailable(detail: str) -> Problem:
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers={"Retry-After": RETRY_AFTER_SECONDS})


def _json(body: object) -> Response:
    return Response(json.dumps(body) + "\n", mimetype="application/json")
