"""`openapi.yaml`: valid, of the service as it is, kept by its answers, and shown by Swagger UI and ReDoc."""

from __future__ import annotations

import copy
import io
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
import yaml
from flask.testing import FlaskClient
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from playwright.sync_api import expect
from werkzeug.test import TestResponse

from api_docs import DOCUMENT
from app import create_app
from batch import BatchStatus, RowStatus, WaitingFor
from csv_errors import ErrorCode
from routes import LONGEST_KEY, LONGEST_PAGE
from service import service as parts_of
from settings import ApiKey, RateLimit, Settings
from tests.browser import Visits, csv_file
from tests.directory import Directory
from tests.hospitals import csv_of
from tests.running import ROOT, RunningService

DESCRIPTION: dict[str, Any] = yaml.safe_load(DOCUMENT.read_text(encoding="utf-8"))
SCHEMAS: dict[str, Any] = DESCRIPTION["components"]["schemas"]
TITLE = "API \N{EN DASH} Hospital bulk upload"
METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")

# What of these has a key that is not described is no answer of this service; `BatchSummary` is closed within `Batch`.
CLOSED = ("Batch", "Hospital", "Reading", "ReadHospital", "FileError", "Warning", "Problem")

# Unknown to schemathesis: a batch stays when it is rolled back; a bad file is looked at all the same; a negative case
# may be made good by the file that tests.api_fuzzing puts in; and any key can have come with another file before.
FUZZING = """
hooks = "tests.api_fuzzing"

[checks]
use_after_free.enabled = false

[[operations]]
include-operation-id = "validateHospitals"
checks.negative_data_rejection.enabled = false

[[operations]]
include-operation-id = "uploadHospitals"
checks.negative_data_rejection.enabled = false
checks.positive_data_acceptance.expected-statuses = [200, 202, 422]
"""


@pytest.fixture(scope="module")
def service(shared_directory: Directory) -> Iterator[RunningService]:
    with RunningService(shared_directory.url) as running:
        yield running


@pytest.fixture(scope="module")
def client(shared_directory: Directory) -> Iterator[FlaskClient]:
    app = create_app(
        Settings(
            hospital_api_base_url=shared_directory.url,
            directory_create_limit=None,
            directory_delay_seconds=0.3,
            directory_retry_seconds=0.1,
            max_upload_bytes=4000,
        )
    )
    yield app.test_client()
    parts_of(app).stop()


# The description by itself


def test_it_is_valid() -> None:
    assert list(OpenAPIV31SpecValidator(DESCRIPTION).iter_errors()) == []


def test_it_has_exactly_the_routes_of_the_service() -> None:
    served = {
        (re.sub(r"<(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in create_app(Settings()).url_map.iter_rules()
        if rule.endpoint not in ("static", "docs.asset")
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    described = {(path, method) for path, item in DESCRIPTION["paths"].items() for method in METHODS if method in item}
    assert described == served


def test_it_knows_every_word_that_the_service_says() -> None:
    def words(*kinds: type[StrEnum]) -> set[str]:
        return {word.value for kind in kinds for word in kind}

    assert set(SCHEMAS["BatchStatus"]["enum"]) == words(BatchStatus)
    assert set(SCHEMAS["RowStatus"]["enum"]) == words(RowStatus)
    assert set(SCHEMAS["BatchSummary"]["properties"]["waiting_for"]["enum"]) == {*words(WaitingFor), None}
    codes = SCHEMAS["FileError"]["allOf"][1]["properties"]["code"]["enum"]
    assert set(codes) == words(ErrorCode) | {"missing_file", "several_files"}
    key = DESCRIPTION["components"]["parameters"]["IdempotencyKey"]["schema"]
    limit = next(it["schema"] for it in DESCRIPTION["paths"]["/batches"]["get"]["parameters"] if it["name"] == "limit")
    assert (key["maxLength"], limit["maximum"]) == (LONGEST_KEY, LONGEST_PAGE)


def test_it_has_the_version_of_the_service() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert DESCRIPTION["info"]["version"] == project["version"]


def resolved(node: Any) -> Any:
    """What a reference stands for, and anything else itself."""
    while isinstance(node, dict) and "$ref" in node:
        target: Any = DESCRIPTION
        for key in node["$ref"].removeprefix("#/").split("/"):
            target = target[key.replace("~1", "/")]
        node = target
    return node


def examples(node: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Every example that has a schema beside it: where it stands, the schema, the value."""
    if isinstance(node, list):
        for number, item in enumerate(node):
            yield from examples(item, f"{place}/{number}")
    if not isinstance(node, dict):
        return
    if isinstance(node.get("schema"), dict):
        if "example" in node:
            yield f"{place}/example", node["schema"], node["example"]
        for name, example in node.get("examples", {}).items():
            yield f"{place}/examples/{name}", node["schema"], resolved(example)["value"]
    for key, child in node.items():
        yield from examples(child, f"{place}/{key}")


def errors(schema: dict[str, Any], value: Any, schemas: dict[str, Any] = SCHEMAS) -> list[str]:
    validator = OAS31Validator(
        {**schema, "components": {"schemas": schemas}}, format_checker=OAS31Validator.FORMAT_CHECKER
    )
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]


def test_its_examples_are_as_described() -> None:
    found = list(examples(DESCRIPTION))
    assert len(found) > 30
    assert {place: wrong for place, schema, value in found if (wrong := errors(schema, value))} == {}


def test_every_refusal_is_a_problem_document_with_an_example_of_its_status() -> None:
    for path, item in DESCRIPTION["paths"].items():
        for method in item.keys() & METHODS:
            refusals = {code: it for code, it in item[method]["responses"].items() if code >= "400"}
            for code, answer in refusals.items():
                content = resolved(answer)["content"]
                assert list(content) == ["application/problem+json"], (path, code)
                problems = [value for _, _, value in examples(content)]
                assert {problem["status"] for problem in problems} == {int(code)}, (path, code)


# The answers of the service


def closed_schemas() -> dict[str, Any]:
    schemas = copy.deepcopy(SCHEMAS)
    for name in CLOSED:
        schemas[name]["unevaluatedProperties"] = False
    return schemas


def assert_as_described(answer: TestResponse, method: str, path: str) -> Any:
    """The description has this answer: its status, headers and content; returns what was in it."""
    described = resolved(DESCRIPTION["paths"][path][method]["responses"][str(answer.status_code)])
    for name, reference in described.get("headers", {}).items():
        header, value = resolved(reference), answer.headers.get(name)
        assert value is not None or not header.get("required"), name
        if value is not None:
            typed = int(value) if header["schema"]["type"] == "integer" else value
            assert errors(header["schema"], typed) == [], name
    if "content" not in described:
        return None
    kind = str(answer.mimetype)
    value = answer.get_json() if kind.endswith("json") else answer.get_data(as_text=True)
    media_type = described["content"][kind]
    assert errors(media_type.get("schema", {}), value, closed_schemas()) == []
    return value


def form(content: bytes, **fields: str) -> dict[str, Any]:
    return {"data": {"file": (io.BytesIO(content), "hospitals.csv"), **fields}}


def upload(client: FlaskClient, content: bytes, **headers: str) -> Any:
    """Upload a file, and hold the answer against the description."""
    answer = client.post("/hospitals/bulk", **form(content), headers=headers)
    return assert_as_described(answer, "post", "/hospitals/bulk")


def test_what_becomes_of_an_upload_is_as_described(client: FlaskClient, directory: Directory) -> None:
    directory.faults([{"kind": "error", "status": 422, "call": "create", "times": 1}])
    batch = upload(client, csv_of(3))
    address, path = f"/batches/{batch['batch_id']}", "/batches/{batch_id}"
    assert batch["status"] == "failed"
    assert assert_as_described(client.get(address), "get", path) == batch
    answer = client.get(f"{address}/results.csv?status=failed")
    mended = assert_as_described(answer, "get", f"{path}/results.csv")

    wrong = re.sub(r",\d,,failed", ",9,,failed", mended)
    answer = client.post(f"{address}/resume", **form(wrong.encode()))
    assert assert_as_described(answer, "post", f"{path}/resume")["errors"]
    answer = client.post(f"{address}/resume", **form(mended.encode()), headers={"Prefer": "wait=20"})
    assert assert_as_described(answer, "post", f"{path}/resume")["status"] == "completed"
    assert answer.headers["Preference-Applied"] == "wait=20"
    assert_as_described(client.post(f"{address}/resume"), "post", f"{path}/resume")

    upload(client, csv_of(1))
    answer = client.get("/batches?limit=1")
    assert len(assert_as_described(answer, "get", "/batches")) == 1
    assert "Link" in answer.headers

    assert_as_described(client.delete(address), "delete", path)
    answer = client.post(f"{address}/rollback", headers={"Prefer": "respond-async"})
    assert assert_as_described(answer, "post", f"{path}/rollback")["status"] == "rolled_back"


def test_a_batch_that_goes_on_is_as_described(client: FlaskClient, directory: Directory) -> None:
    directory.settings(create_seconds=2)
    batch = upload(client, csv_of(2), Prefer="respond-async")
    assert batch["status"] == "processing"
    path = "/batches/{batch_id}/events"
    stream = client.get(path.format(batch_id=batch["batch_id"]))
    events = [event.split("\n") for event in assert_as_described(stream, "get", path).split("\n\n") if event]
    kinds = {"batch": "Batch", "row": "Hospital", "progress": "BatchSummary"}
    seen = set()
    for lines in events:
        if not lines[0].startswith(":"):
            kind, data = (line.split(": ", 1)[1] for line in lines)
            seen.add(kind)
            assert errors(SCHEMAS[kinds[kind]], json.loads(data)) == []
    assert seen >= {"batch", "row"}


def test_refusals_are_as_described(client: FlaskClient, directory: Directory) -> None:
    path, unknown = "/hospitals/bulk", "7c9e6679-7425-40de-944b-e07fc1f90ae7"
    for answer, status in (
        (client.post(path, **form(b"name,address\n,\n")), 400),
        (client.post(path, data={"encoding": "utf-8"}, content_type="multipart/form-data"), 400),
        (client.post(path, **form(csv_of(1)), headers={"Sec-Fetch-Site": "cross-site"}), 403),
        (client.post(path, **form(b"x" * 5000)), 413),
        (client.post(path, data=b"name,address\n"), 415),
    ):
        assert assert_as_described(answer, "post", path)["status"] == status
    upload(client, csv_of(1), **{"Idempotency-Key": "key"})
    assert upload(client, csv_of(2), **{"Idempotency-Key": "key"})["status"] == 422
    for path in ("/batches/{batch_id}", "/batches/{batch_id}/events", "/batches/{batch_id}/results.csv"):
        assert_as_described(client.get(path.format(batch_id=unknown)), "get", path)
    assert_as_described(client.get("/batches?limit=0"), "get", "/batches")


@pytest.mark.parametrize(
    ("settings", "status"),
    [
        (Settings(api_keys=(ApiKey("office", "a key"),)), 401),
        (Settings(request_limit=RateLimit(1, 3600)), 429),
    ],
)
def test_who_may_not_call_is_told_so_as_described(settings: Settings, status: int) -> None:
    client = create_app(settings).test_client()
    client.get("/openapi.json")
    for path, item in DESCRIPTION["paths"].items():
        for method in item.keys() & METHODS:
            answer = client.open(path, method=method)
            assert answer.status_code == (200 if path == "/health" else status), path
            assert_as_described(answer, method, path)
            assert item[method].get("security") == ([] if path == "/health" else None)


def test_what_was_read_of_a_file_is_as_described(client: FlaskClient, directory: Directory) -> None:
    path = "/hospitals/bulk/validate"
    upload(client, csv_of(2, "Known"))
    for content, key in ((csv_of(2, "Known"), "warnings"), (b"name,address,phone\nA,,x\n", "errors")):
        assert assert_as_described(client.post(path, **form(content)), "post", path)[key]


@pytest.mark.parametrize(
    "path",
    ["/", "/health", "/ready", "/sample_hospitals.csv", "/openapi.json", "/docs", "/redoc", "/batches", "/metrics"],
)
def test_what_needs_nothing_is_as_described(client: FlaskClient, path: str, directory: Directory) -> None:
    with closing(client.get(path)) as answer:
        assert answer.status_code == 200
        assert_as_described(answer, "get", path)


def test_a_service_whose_directory_is_away_is_as_described() -> None:
    app = create_app(Settings(hospital_api_base_url="http://127.0.0.1:9"))
    answer = app.test_client().get("/ready?directory=true")
    assert answer.status_code == 503
    assert_as_described(answer, "get", "/ready")
    parts_of(app).stop()


@pytest.mark.timeout(300)
def test_nothing_that_is_sent_breaks_the_service(service: RunningService, directory: Directory, tmp_path: Path) -> None:
    directory.settings(create_seconds=0.01)
    (tmp_path / "fuzzing.toml").write_text(FUZZING)
    options = ["--url", service.url, "--seed", "1", "--max-examples", "10", "--warnings", "off", "--no-color"]
    fuzzing = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "--config-file", "fuzzing.toml", "run", str(DOCUMENT), *options],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
        text=True,
        timeout=280,
    )
    assert fuzzing.returncode == 0, fuzzing.stdout + fuzzing.stderr
    assert "Traceback" not in service.output


# The pages


def test_the_description_is_served_as_it_is_written(client: FlaskClient) -> None:
    assert client.get("/openapi.json").get_json() == DESCRIPTION


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_no_page_may_run_what_it_was_not_served(client: FlaskClient, path: str) -> None:
    answer = client.get(path)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'self';" in policy
    assert "script-src" not in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert not re.findall(r"<script(?![^>]* src=)| style=| on\w+=|//", answer.get_data(as_text=True))


def test_scripts_and_styles_are_sent_once(client: FlaskClient) -> None:
    for page in ("/docs", "/redoc"):
        for path in re.findall(r'(?:src|href)="(/[^"]+)"', client.get(page).get_data(as_text=True)):
            with closing(client.get(path)) as first:
                assert first.status_code == 200, path
                again = {"If-None-Match": first.headers.get("ETag", "")}
            if path != "/openapi.json":
                with closing(client.get(path, headers=again)) as second:
                    assert second.status_code == 304, path
    for name in ("nothing.js", "__init__.py", "..%2Fapi_docs.py", "redoc.js/"):
        assert client.get(f"/docs/assets/{name}").status_code == 404


def test_calls_can_be_tried_in_swagger_ui(service: RunningService, directory: Directory, visit: Visits) -> None:
    page = visit(f"{service.url}/docs")
    expect(page).to_have_title(TITLE)

    health = page.locator("#operations-Service-getHealth")
    health.locator(".opblock-summary-control").click()
    health.get_by_role("button", name="Execute").click()
    expect(health.locator(".live-responses-table")).to_contain_text('"status": "healthy"')

    bulk = page.locator("#operations-Upload-uploadHospitals")
    bulk.locator(".opblock-summary-control").click()
    bulk.locator("input[type=file]").set_input_files(csv_file(csv_of(2)))
    bulk.get_by_role("button", name="Execute").click()
    expect(bulk.locator(".live-responses-table")).to_contain_text('"status": "completed"')


def test_redoc_shows_every_call(service: RunningService, visit: Visits) -> None:
    page = visit(f"{service.url}/redoc")
    expect(page).to_have_title(TITLE)
    expect(page.get_by_role("heading", name="Hospital bulk upload")).to_be_visible()
    expect(page.get_by_role("img", name="redocly logo")).to_be_visible()
    page.get_by_text("Batches", exact=True).first.click()
    page.get_by_text("Roll a batch back", exact=True).first.click()
    expect(page.get_by_text("Deletes the batch's hospitals from the directory").first).to_be_visible()
    page.get_by_text("Search").first.click()
    page.get_by_placeholder("Search docs...").press_sequentially("validate")
    expect(page.get_by_text("See what an upload would create").first).to_be_visible()
    # What would be said to anybody else of how the page was used is said when it is left.
    page.evaluate("document.dispatchEvent(new Event('pagehide'))")
