"""The JSON of a batch, its keys in the order that the API promises."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from batch import Batch, Row


def batch_json(batch: Batch, now: datetime, *, with_hospitals: bool = True) -> dict[str, Any]:
    """The batch as it stands at `now`: seconds are floats, times ISO 8601 in UTC with `Z`."""
    estimated = batch.estimated_seconds(now)
    answer: dict[str, Any] = {
        "batch_id": batch.batch_id,
        "total_hospitals": len(batch.rows),
        "processed_hospitals": batch.processed,
        "failed_hospitals": batch.failed,
        "processing_time_seconds": round(batch.processing_seconds(now), 3),
        "batch_activated": batch.batch_activated,
    }
    if with_hospitals:
        answer["hospitals"] = [row_json(row) for row in batch.rows]
    answer |= {
        "status": batch.status,
        "filename": batch.filename,
        "created_at": _time(batch.created_at),
        "completed_at": _time(batch.completed_at),
        "error_message": batch.error_message,
        "waiting_for": batch.waiting_for,
        "estimated_seconds": None if estimated is None else round(estimated, 1),
    }
    return answer


def row_json(row: Row) -> dict[str, Any]:
    """One row, as it stands in its batch."""
    return {
        "row": row.row,
        "hospital_id": row.hospital_id,
        "name": row.name,
        "status": row.status,
        "error_message": row.error_message,
    }


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
