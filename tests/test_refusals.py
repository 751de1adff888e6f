"""What the service refuses to upload, over real HTTP: each says what is wrong, and none reaches the directory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.directory import Directory
from tests.hospitals import csv_of
from tests.odd_files import HEADER, MEBIBYTE, NASTIEST, multipart, part, png, rows, wide, xlsx
from tests.problems import assert_problem
from tests.raw_http import chunked, post, send
from tests.running import RunningService

BULK = "/hospitals/bulk"
VALIDATE = "/hospitals/bulk/validate"
FORM = "Content-Type: multipart/form-data; boundary=limit"
CSV = csv_of(1)
# A request may be larger than the file in it, by this much.
OVERHEAD = 64 * 1024


@pytest.fixture(scope="module")
def service(shared_directory: Directory) -> Iterator[RunningService]:
    with RunningService(shared_directory.url) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_reaches_the_directory(directory: Directory) -> Iterator[None]:
    yield
    assert directory.calls() == []


def code_of(problem: dict[str, Any]) -> str:
    """The code of the one error in a problem."""
    [error] = problem["errors"]
    return str(error["code"])


@pytest.mark.parametrize("path", [BULK, VALIDATE])
@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"data": {}, "files": {"other": ("a.csv", CSV)}}, "A file came in the field `other`"),
        ({"files": {"File": ("a.csv", CSV)}}, "A file came in the field `File`"),
        ({"files": {"file": (None, "name,address")}}, "holds text and no file"),
        ({"files": {"note": (None, "hello")}}, "No file was chosen"),
    ],
)
def test_a_form_without_a_file_is_refused(service: RunningService, path: str, form: dict[str, Any], words: str) -> None:
    answer = requests.post(service.url + path, **form, timeout=60)
    assert code_of(assert_problem(answer, 400, words)) == "missing_file"


@pytest.mark.parametrize("path", [BULK, VALIDATE])
def test_a_form_sent_before_a_file_was_chosen_is_refused(service: RunningService, path: str) -> None:
    # A browser sends an empty file without a name.
    answer = send(service.url, post(path, multipart(part(b"", filename=b"")), FORM))
    problem = assert_problem(answer, 400, "No file was chosen")
    assert code_of(problem) == "missing_file"


def test_a_form_sent_before_a_file_was_chosen_is_not_told_to_rename_its_field(service: RunningService) -> None:
    answer = send(service.url, post(BULK, multipart(part(b"", filename=b"")), FORM))
    assert "rename" not in assert_problem(answer, 400)["detail"]


def test_two_files_are_refused(service: RunningService) -> None:
    files = [("file", ("a.csv", CSV)), ("file", ("b.csv", CSV))]
    assert_problem(requests.post(service.url + BULK, files=files, timeout=60), 400, "2 files were sent")


@pytest.mark.parametrize("path", [BULK, VALIDATE])
@pytest.mark.parametrize(
    "request_as",
    [
        {},
        {"json": [{"name": "A", "address": "B"}]},
        {"data": {"file": "name,address"}},
        {"data": CSV},
        {"data": CSV, "headers": {"Content-Type": "text/csv"}},
        {"data": CSV, "headers": {"Content-Type": "multipart/mixed; boundary=limit"}},
    ],
    ids=["nothing", "JSON", "urlencoded", "no content type", "text/csv", "multipart/mixed"],
)
def test_what_is_no_form_with_files_is_refused(service: RunningService, path: str, request_as: dict[str, Any]) -> None:
    answer = requests.post(service.url + path, **request_as, timeout=60)
    assert_problem(answer, 415, "curl -F file=@hospitals.csv")


CUT_SHORT = multipart(part(CSV))[:-20]
BROKEN_FORMS = {
    "no boundary": post(BULK, multipart(part(CSV)), "Content-Type: multipart/form-data"),
    "another boundary": post(BULK, multipart(part(CSV)), "Content-Type: multipart/form-data; boundary=other"),
    "cut short": post(BULK, CUT_SHORT, FORM),
    "a part that does not say what it is": post(BULK, multipart(b"\r\n" + CSV), FORM),
    "a file name that is not UTF-8": post(BULK, multipart(part(CSV, filename="Spitäler.csv".encode("latin-1"))), FORM),
}


@pytest.mark.parametrize("request_bytes", BROKEN_FORMS.values(), ids=BROKEN_FORMS)
def test_a_broken_form_is_refused(service: RunningService, request_bytes: bytes) -> None:
    assert code_of(assert_problem(send(service.url, request_bytes), 400)) == "missing_file"


@pytest.mark.parametrize("request_bytes", BROKEN_FORMS.values(), ids=BROKEN_FORMS)
def test_of_a_broken_form_it_is_not_said_that_no_file_was_chosen(service: RunningService, request_bytes: bytes) -> None:
    assert "No file was chosen" not in assert_problem(send(service.url, request_bytes), 400)["detail"]


def test_a_request_whose_sender_went_away_half_way_is_refused(service: RunningService) -> None:
    whole = multipart(part(CSV))
    assert_problem(send(service.url, post(BULK, CUT_SHORT, FORM, length=len(whole)), end=True), 400)


@pytest.mark.parametrize("body", [b"zz\r\n", b"5\r\nabcdeXX", b"5;a=\0\r\nabcde\r\n0\r\n\r\n"])
def test_a_body_of_broken_chunks_is_refused(service: RunningService, body: bytes) -> None:
    assert_problem(send(service.url, post(BULK, body, FORM, "Transfer-Encoding: chunked"), end=True), 400)


@pytest.mark.parametrize(
    ("content", "codes"),
    [
        (b"", {"empty_file"}),
        (b" \r\n\t\n", {"empty_file"}),
        (png(), {"not_csv"}),
        (xlsx(), {"not_csv"}),
        (b"%PDF-1.7\n", {"not_csv"}),
        (HEADER + b"a,b,\0\n", {"not_csv"}),
        (HEADER + b"Caf\xe9,b,1\n", {"bad_encoding"}),
        (b"Riverside Clinic,12 River Road,555-0101\n", {"missing_column"}),
        (b"name,name,address\na,b,c\n", {"duplicate_column"}),
        (b"name,address,beds\na,b,3\n", {"unknown_column"}),
        (b"name,addres,beds\na,b,3\n", {"missing_column", "unknown_column"}),
        (HEADER, {"no_rows"}),
        (csv_of(21), {"too_many_rows"}),
        (rows(300_000), {"too_many_rows"}),
        (HEADER + b'"Riverside Clinic,12 River Road,555-0101\n', {"malformed"}),
        (HEADER + b"a" * 140_000 + b",b,1\n", {"malformed"}),
        (HEADER + b"a" * 120_000 + b",b,1\n", {"too_long"}),
        (HEADER + b"a,b,1,d\n", {"wrong_field_count"}),
        (HEADER + b",b,1\na,,1\n", {"missing_value"}),
        (HEADER + b"a\x07,b,1\n", {"bad_character"}),
        (HEADER + b"a,b,none\n", {"bad_phone"}),
        (HEADER + b"a,b,1\nA , b,1\n", {"duplicate_row"}),
        (HEADER + b",b,none\na\x07,,1\n", {"missing_value", "bad_phone", "bad_character"}),
        (wide(16_384), {"missing_column"}),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else None,
)
def test_a_csv_with_errors_is_refused_with_all_of_them(
    service: RunningService, content: bytes, codes: set[str]
) -> None:
    problem = assert_problem(service.upload(content), 400)
    assert {error["code"] for error in problem["errors"]} == codes
    assert (
        problem["detail"] == problem["errors"][0]["message"] or f"{len(problem['errors'])} errors" in problem["detail"]
    )

    looked_at = service.upload(content, path=VALIDATE)
    assert looked_at.status_code == 200
    assert looked_at.json()["valid"] is False
    assert looked_at.json()["errors"] == problem["errors"]


def test_an_error_says_where_it_is(service: RunningService) -> None:
    problem = assert_problem(service.upload(HEADER + b"\na,b,1\nc,,2\n"), 400)
    assert problem["errors"] == [
        {
            "row": 2,
            "line": 4,
            "column": "address",
            "code": "missing_value",
            "message": "Row 2 (line 4): the address is missing.",
        }
    ]


def test_an_error_has_its_keys_in_order(service: RunningService) -> None:
    [error] = assert_problem(service.upload(HEADER), 400)["errors"]
    assert list(error) == ["row", "line", "column", "code", "message"]


@pytest.mark.parametrize("encoding", ["klingon", "base64", "\r\nx", "a" * 5000, "../utf-8"])
def test_an_encoding_that_is_none_is_refused(service: RunningService, encoding: str) -> None:
    problem = assert_problem(service.upload(CSV, encoding=encoding), 400)
    assert code_of(problem) == "bad_encoding"


@pytest.mark.parametrize("path", [BULK, VALIDATE])
@pytest.mark.parametrize("size", [MEBIBYTE + 1, MEBIBYTE + OVERHEAD, 3 * MEBIBYTE])
def test_a_file_over_the_limit_is_refused(service: RunningService, path: str, size: int) -> None:
    answer = service.upload(rows(size) + b"\n" * 40, path=path)
    assert_problem(answer, 413, "at most 1,048,576 bytes")


def test_a_file_of_just_the_limit_is_read(service: RunningService) -> None:
    content = HEADER + b"\n" * (MEBIBYTE - len(HEADER))
    assert code_of(assert_problem(service.upload(content), 400)) == "no_rows"


def test_a_request_over_the_limit_is_refused_before_it_is_read(service: RunningService) -> None:
    assert_problem(send(service.url, post(BULK, b"", FORM, length=50 * MEBIBYTE)), 413)


@pytest.mark.parametrize("size", [2 * MEBIBYTE, 50 * MEBIBYTE])
def test_who_sends_on_after_the_refusal_still_finds_it(service: RunningService, size: int) -> None:
    assert_problem(send(service.url, post(BULK, multipart(part(b"a" * size)), FORM)), 413)


def test_a_body_of_unknown_length_is_refused_when_it_is_over_the_limit(service: RunningService) -> None:
    body = chunked(multipart(part(b"a" * 3 * MEBIBYTE)))
    assert_problem(send(service.url, post(BULK, body, FORM, "Transfer-Encoding: chunked")), 413)


@pytest.mark.parametrize("fields", [999, 5000])
def test_a_form_of_too_many_fields_is_refused(service: RunningService, fields: int) -> None:
    body = multipart(*[part(b"1", name="note", filename=None)] * fields, part(HEADER))
    answer = send(service.url, post(BULK, body, FORM))
    assert_problem(answer, 400 if fields < 1000 else 413)


@pytest.mark.parametrize("content", NASTIEST.values(), ids=NASTIEST)
def test_the_nastiest_files_are_answered_soon(service: RunningService, content: bytes) -> None:
    started_at = time.monotonic()
    assert_problem(service.upload(content), 400)
    assert service.upload(content, path=VALIDATE).json()["valid"] is False
    # It is half a second at most when nothing else runs; what took quadratic time would take minutes.
    assert time.monotonic() - started_at < 30


def test_refused_files_leave_no_memory_behind(service: RunningService) -> None:
    worker = only_worker_of(service.process.pid)
    quick = [NASTIEST[name] for name in ("commas", "quotes", "NULs", "no UTF-8", "one word", "16,384 columns")]
    memory = []
    for _ in range(25):
        for content in quick:
            assert service.upload(content).status_code == 400
        memory.append(memory_of(worker))
    # The files were 150 MB.
    assert memory[-1] - memory[4] < 60_000_000


def test_the_nastiest_files_at_once_need_little_memory(shared_directory: Directory) -> None:
    content = NASTIEST["half a million columns"]
    with RunningService(shared_directory.url) as service, ThreadPoolExecutor(20) as clients:
        worker = only_worker_of(service.process.pid)
        before = memory_of(worker)
        answers = list(clients.map(lambda _: service.upload(content), range(20)))
        assert {answer.status_code for answer in answers} == {400}
        assert memory_of(worker, "VmHWM") - before < 300_000_000


def only_worker_of(master: int) -> int:
    """The process id of gunicorn's one worker."""
    [worker] = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    return int(worker)


def memory_of(pid: int, which: str = "VmRSS") -> int:
    """How many bytes of memory the process holds, or with VmHWM the most that it ever held."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{which}:"))
