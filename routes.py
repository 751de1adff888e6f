"""The blueprint: every address of the service, for programs and for browsers."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import urlencode

from flask import Blueprint, Response, current_app, redirect, render_template, request, send_from_directory, url_for
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from werkzeug.wrappers import Response as BaseResponse

from api_keys import caller
from batch import Batch, BatchStatus, IdempotencyKey, Row, RowStatus, rows_digest, utc_now
from batch_json import batch_json
from check_page import check_view
from csv_errors import CsvError
from csv_rules import CsvReading, read_csv
from directory_errors import DirectoryError
from events import batch_events
from live_metrics import exposition
from logs import batch_id as logged_batch_id
from metrics import FILES_REFUSED
from preferences import parse_prefer
from problems import Problem, prefers_html, unavailable
from results_file import MendingError, form_as_results, mended_rows, read_results, write_results
from service import service
from store import BatchNotFoundError, KeyTakenError, TooManyBatchesError, WrongStatusError
from upload import Upload, read_optional_upload, read_upload

logger = logging.getLogger(__name__)

routes = Blueprint("routes", __name__)

DEFAULT_PAGE, LONGEST_PAGE = 50, 200
BATCHES_ON_FRONT_PAGE = 5
LONGEST_KEY = 255
# Smaller files are read in a few milliseconds.
LARGE_BYTES = 64 * 1024
# Who asks whether the directory is there does not want to wait until it has woken up.
READY_SECONDS = 10.0

_WHY_NOT_RESUMED = {
    BatchStatus.PROCESSING: "The batch is being worked on; wait until that has ended.",
    BatchStatus.COMPLETED: "The batch is complete and active; there is nothing left to do.",
    BatchStatus.ROLLED_BACK: "The batch was rolled back; upload its file again instead.",
}

StatusT = TypeVar("StatusT", BatchStatus, RowStatus)


@routes.post("/hospitals/bulk")
def upload_batch() -> BaseResponse:
    """Create every hospital of a CSV: 200 the batch when it has ended, 202 when the caller did not wait so long."""
    with _reading():
        upload = read_upload()
    key = _idempotency_key(upload)
    batch = service().store.find_key(key.owner, key.key) if key else None
    return _answer_when_ended(_same_upload(batch, key) if batch and key else _start(upload, key))


@routes.post("/hospitals/bulk/validate")
def validate() -> Response:
    """What an upload would create, and everything that is wrong with it; calls nobody."""
    with _reading():
        upload = read_upload()
    reading = _read(upload)
    if prefers_html():
        return Response(_check_page(upload, reading))
    return _json(
        {
            "valid": not reading.errors,
            "total_hospitals": reading.total_rows,
            "hospitals": [asdict(row) for row in reading.rows],
            "errors": [error.as_json() for error in reading.errors],
            "warnings": _warnings(reading),
        }
    )


@routes.get("/batches")
def list_batches() -> BaseResponse:
    """The batches, newest first, without their hospitals; the next page is in the `Link` header."""
    status, limit = _asked(BatchStatus), _asked_limit()
    try:
        batches = service().store.page(limit + 1, status=status, after=request.args.get("after") or None)
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
    batch = _find(batch_id)
    if prefers_html():
        return Response(render_template("batch.html", batch=batch, now=utc_now()))
    return _json(batch_json(batch, utc_now()))


@routes.get("/batches/<batch_id>/events")
def follow_batch(batch_id: str) -> Response:
    """The batch as server-sent events, until it has ended."""
    batch, places = _find(batch_id), service().stream_places
    if not places.acquire(blocking=False):
        raise unavailable("Too many callers follow batches at the moment; ask for the batch itself now and then.")
    stream = batch_events(batch, service().store, service().runner.stopping)
    # nginx would keep the events back until there are many.
    answer = Response(
        stream, mimetype="text/event-stream", headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )
    answer.call_on_close(places.release)
    return answer


@routes.get("/batches/<batch_id>/results.csv")
def results(batch_id: str) -> Response:
    """What became of each row, as a file that can be mended and sent back to resume; `?status=` picks some rows."""
    batch = _find(batch_id)
    status = _asked(RowStatus)
    rows = [row for row in batch.rows if status in (None, row.status)]
    # Excel takes a file without this mark for one in the encoding of the country; programs have no use for it.
    mark = "\ufeff" if prefers_html() else ""
    answer = Response(mark + write_results(rows), mimetype="text/csv")
    answer.headers["Content-Disposition"] = f"attachment; filename=results-{batch.batch_id}.csv"
    return answer


@routes.post("/batches/<batch_id>/resume")
def resume(batch_id: str) -> BaseResponse:
    """Go on where the batch stopped, its failed rows mended by a results file when one is sent."""
    reading = _read_mended(_find(batch_id))
    try:
        service().runner.resume(batch_id, lambda batch: mended_rows(batch, reading) if reading else batch.rows)
    except MendingError as error:
        raise _refused_file(error.errors) from None
    except WrongStatusError as error:
        raise Problem(HTTPStatus.CONFLICT, _WHY_NOT_RESUMED[error.batch.status]) from None
    except TooManyBatchesError:
        raise _no_room() from None
    return _answer_when_ended(batch_id)


@routes.delete("/batches/<batch_id>")
@routes.post("/batches/<batch_id>/rollback")
def roll_back(batch_id: str) -> BaseResponse:
    """Delete the batch's hospitals from the directory; while it runs, as soon as what is in flight has ended."""
    try:
        service().runner.roll_back(_find(batch_id).batch_id)
    except (TooManyBatchesError, WrongStatusError):
        raise _no_room() from None
    return _answer_when_ended(batch_id, or_bad_gateway=True)


@routes.get("/health")
def health() -> Response:
    """Whether the service answers; calls nobody."""
    return _json({"status": "healthy"})


@routes.get("/ready")
def ready() -> Response:
    """Whether the store answers and, with `?directory=true`, the directory too."""
    service().store.check()
    asked = request.args.get("directory", "").lower()
    if asked not in ("", "true", "1", "false", "0"):
        raise Problem(HTTPStatus.BAD_REQUEST, "`directory` must be true or false.")
    if asked in ("true", "1"):
        _check_directory()
    return _json({"status": "ready"})


@routes.get("/metrics")
def show_metrics() -> Response:
    """What was counted since the start and what goes on now, for Prometheus."""
    return Response(exposition(service()), content_type=CONTENT_TYPE_PLAIN_0_0_4)


@routes.get("/")
def index() -> str:
    """The page: a form, what a file must hold, and the last batches."""
    batches = service().store.page(BATCHES_ON_FRONT_PAGE)
    return render_template("index.html", batches=batches, now=utc_now(), most_rows=service().settings.max_csv_rows)


@routes.get("/sample_hospitals.csv")
def sample() -> Response:
    """A file that uploads as it stands."""
    return send_from_directory(current_app.root_path, "sample_hospitals.csv", as_attachment=True)


def _check_directory() -> None:
    places = service().knocking_places
    if not places.acquire(blocking=False):
        raise unavailable("Others are just finding out whether the directory is there; it has not answered them yet.")
    try:
        service().runner.knock(READY_SECONDS)
    except DirectoryError as error:
        raise unavailable(str(error)) from error
    finally:
        places.release()


@contextmanager
def _reading() -> Iterator[None]:
    """Take one of the few places in which a form or a file is read. Raises `Problem` when too much is to be read."""
    places = service().large_places
    # What comes in chunks does not say how long it is.
    is_large = "Transfer-Encoding" in request.headers or (request.content_length or 0) >= LARGE_BYTES
    if is_large and not places.acquire(blocking=False):
        raise unavailable("Too many large files are being read at the moment, so nothing was done. Send it again.")
    try:
        with service().reading_places:
            yield
    finally:
        if is_large:
            places.release()


def _read(upload: Upload) -> CsvReading:
    with _reading():
        return read_csv(upload.content, max_rows=service().settings.max_csv_rows, encoding=upload.encoding)


def _find(batch_id: str) -> Batch:
    batch = service().store.get(batch_id)
    logged_batch_id.set(batch_id)
    return batch


def _start(upload: Upload, key: IdempotencyKey | None) -> str:
    reading = _read(upload)
    if reading.errors:
        raise _refused_file(reading.errors, lambda: _check_page(upload, reading))
    try:
        return service().runner.start(upload.filename, _rows(reading), key)
    except TooManyBatchesError:
        raise _no_room() from None
    except KeyTakenError as taken:  # by an upload at the same time
        return _same_upload(taken.batch, key)


def _idempotency_key(upload: Upload) -> IdempotencyKey | None:
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return None
    if not 1 <= len(key) <= LONGEST_KEY:
        raise Problem(HTTPStatus.BAD_REQUEST, f"`Idempotency-Key` must have 1 to {LONGEST_KEY} characters.")
    return IdempotencyKey(caller(), key, upload.digest)


def _no_room() -> Problem:
    if service().runner.stopping.is_set():
        return unavailable("The service is being stopped, so nothing was done. Try it again in a few seconds.")
    return unavailable("Too many batches run at the moment, so nothing was done. Try it again in a few seconds.")


def _same_upload(batch: Batch, key: IdempotencyKey | None) -> str:
    """The id of the batch that was made under the same key. Raises `Problem` when it was made of another file."""
    if batch.idempotency_key != key:
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            f"This `Idempotency-Key` came with another file, which is batch {batch.batch_id}; use a new key.",
        )
    return batch.batch_id


def _rows(reading: CsvReading) -> tuple[Row, ...]:
    return tuple(Row(row.row, row.name, row.address, row.phone) for row in reading.rows)


def _answer_when_ended(batch_id: str, *, or_bad_gateway: bool = False) -> BaseResponse:
    """The batch after waiting as long as the caller wants; a browser is sent to its page at once.

    `or_bad_gateway` raises `Problem` when the directory was not there to end what was asked for.
    """
    logged_batch_id.set(batch_id)
    if prefers_html():
        return redirect(url_for(".show_batch", batch_id=batch_id), HTTPStatus.SEE_OTHER)
    preferences = parse_prefer(",".join(request.headers.getlist("Prefer")))
    most = service().settings.sync_wait_seconds
    batch = _wait(batch_id, preferences.seconds_to_wait(most))
    if or_bad_gateway and batch.status is BatchStatus.INTERRUPTED:
        raise Problem(HTTPStatus.BAD_GATEWAY, batch.error_message or "")
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


def _uploaded_before(reading: CsvReading) -> str | None:
    return None if reading.errors else service().store.find_same_rows(rows_digest(_rows(reading)))


def _warnings(reading: CsvReading) -> list[dict[str, Any]]:
    before = _uploaded_before(reading)
    if before is None:
        return []
    message = f"The same hospitals were uploaded before, as batch {before}; uploading them again creates them again."
    return [CsvError("uploaded_before", message).as_json() | {"batch_id": before}]


def _check_page(upload: Upload, reading: CsvReading) -> str:
    return render_template(
        "check.html",
        filename=upload.filename,
        encoding=upload.encoding,
        view=check_view(reading, upload.encoding),
        uploaded_before=_uploaded_before(reading),
    )


def _read_mended(batch: Batch) -> CsvReading | None:
    """What mends the failed rows: a results file, or the fields of the batch's page; None when nothing does."""
    with _reading():
        upload = read_optional_upload()
    content = upload.content if upload else form_as_results(batch, request.form)
    encoding = upload.encoding if upload else None
    if content is None:
        return None
    with _reading():
        return read_results(content, max_rows=len(batch.rows), encoding=encoding)


def _refused_file(errors: Sequence[CsvError], page: Callable[[], str] | None = None) -> Problem:
    count = len(errors)
    FILES_REFUSED.inc()
    # What is wrong, not what it is wrong with: that is the caller's alone.
    logger.info("file refused, %s errors: %s", count, ", ".join(sorted({error.code for error in errors})))
    detail = errors[0].message if count == 1 else f"The file has {count} errors, so nothing was done: mend them all."
    return Problem(HTTPStatus.BAD_REQUEST, detail, errors=[error.as_json() for error in errors], page=page)


def _asked(statuses: type[StatusT]) -> StatusT | None:
    text = request.args.get("status", "")
    try:
        return statuses(text) if text else None
    except ValueError:
        raise Problem(HTTPStatus.BAD_REQUEST, f"`status` must be one of {', '.join(statuses)}.") from None


def _asked_limit() -> int:
    text = request.args.get("limit") or str(DEFAULT_PAGE)
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= LONGEST_PAGE):
        raise Problem(HTTPStatus.BAD_REQUEST, f"`limit` must be a whole number from 1 to {LONGEST_PAGE}.")
    return int(text)


def _next_page(last: Batch) -> str:
    return url_for(".list_batches") + "?" + urlencode({**request.args, "after": last.batch_id})


def _json(body: object) -> Response:
    return Response(json.dumps(body) + "\n", mimetype="application/json")
