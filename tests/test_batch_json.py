"""The JSON of a batch: its keys in order, its counts, its times."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from batch import Batch, BatchStatus, Row, RowStatus, WaitingFor
from batch_json import batch_json

NOON = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)
ROWS = (
    Row(1, "Añasco", "1 Main St", "555-1", RowStatus.CREATED, hospital_id=7),
    Row(2, "Berlin", "2 Main St", None),
    Row(3, "Ceuta", "3 Main St", None, RowStatus.FAILED, error_message="name: too short"),
    Row(4, "Dover", "4 Main St", None, RowStatus.CREATED_AND_ACTIVATED, hospital_id=8),
    Row(5, "Essen", "5 Main St", None, RowStatus.DELETED, hospital_id=9),
)
RUNNING = Batch("an-id", "hospitals.csv", ROWS, created_at=NOON, run_started_at=NOON, expected_end=NOON)


def later(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def test_a_running_batch_in_full() -> None:
    batch = replace(RUNNING, waiting_for=WaitingFor.RATE_LIMIT, expected_end=later(65.04))
    assert json.loads(json.dumps(batch_json(batch, later(1.23456)))) == {
        "batch_id": "an-id",
        "total_hospitals": 5,
        "processed_hospitals": 2,
        "failed_hospitals": 1,
        "processing_time_seconds": 1.235,
        "batch_activated": False,
        "hospitals": [
            {"row": 1, "hospital_id": 7, "name": "Añasco", "status": "created", "error_message": None},
            {"row": 2, "hospital_id": None, "name": "Berlin", "status": "pending", "error_message": None},
            {"row": 3, "hospital_id": None, "name": "Ceuta", "status": "failed", "error_message": "name: too short"},
            {"row": 4, "hospital_id": 8, "name": "Dover", "status": "created_and_activated", "error_message": None},
            {"row": 5, "hospital_id": 9, "name": "Essen", "status": "deleted", "error_message": None},
        ],
        "status": "processing",
        "filename": "hospitals.csv",
        "created_at": "2026-01-02T12:00:00.000Z",
        "completed_at": None,
        "error_message": None,
        "waiting_for": "rate_limit",
        "estimated_seconds": 63.8,
    }


def test_an_ended_batch_tells_when_and_how_it_ended() -> None:
    batch = replace(
        RUNNING,
        status=BatchStatus.COMPLETED,
        completed_at=later(6.5),
        batch_activated=True,
        run_started_at=None,
        earlier_seconds=6.5,
    )
    answer = batch_json(batch, later(3600))
    assert (answer["status"], answer["batch_activated"]) == ("completed", True)
    assert (answer["completed_at"], answer["processing_time_seconds"]) == ("2026-01-02T12:00:06.500Z", 6.5)
    assert (answer["estimated_seconds"], answer["waiting_for"]) == (None, None)


def test_the_keys_are_in_the_order_that_the_api_promises() -> None:
    first = "batch_id total_hospitals processed_hospitals failed_hospitals processing_time_seconds batch_activated"
    rest = "status filename created_at completed_at error_message waiting_for estimated_seconds"
    answer = batch_json(RUNNING, NOON)
    assert list(answer) == [*first.split(), "hospitals", *rest.split()]
    assert [list(row) for row in answer["hospitals"]] == [["row", "hospital_id", "name", "status", "error_message"]] * 5
    assert list(batch_json(RUNNING, NOON, with_hospitals=False)) == [*first.split(), *rest.split()]


@pytest.mark.parametrize(
    ("earlier", "running_for", "told"),
    [(0.0, 0.0, 0.0), (0.0, 2.0, 2.0), (10.0, 2.5, 12.5), (10.0, None, 10.0), (10.0, -5.0, 10.0), (0.0, 0.0004, 0.0)],
)
def test_the_processing_time_is_summed_over_the_runs(earlier: float, running_for: float | None, told: float) -> None:
    started = None if running_for is None else later(-running_for)
    answer = batch_json(replace(RUNNING, earlier_seconds=earlier, run_started_at=started), NOON)
    assert answer["processing_time_seconds"] == told
    assert isinstance(answer["processing_time_seconds"], float)


@pytest.mark.parametrize(
    ("status", "expected_end", "told"),
    [
        (BatchStatus.PROCESSING, later(5.04), 5.0),
        (BatchStatus.PROCESSING, later(-5), 0.0),
        (BatchStatus.PROCESSING, None, None),
        (BatchStatus.FAILED, later(5), None),
        (BatchStatus.INTERRUPTED, later(5), None),
        (BatchStatus.ROLLED_BACK, later(5), None),
    ],
)
def test_what_is_left_is_estimated_until_the_batch_has_ended(
    status: BatchStatus, expected_end: datetime | None, told: float | None
) -> None:
    assert batch_json(replace(RUNNING, status=status, expected_end=expected_end), NOON)["estimated_seconds"] == told
