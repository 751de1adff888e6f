"""CSV files of hospitals, and a look at what became of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tests.directory import Directory


def csv_of(count: int, tag: str = "Hospital") -> bytes:
    """A valid file with so many hospitals, named after `tag`."""
    lines = ["name,address,phone", *(f"{tag} {number},{number} Main Street,555-{number:04}" for number in range(count))]
    return ("\n".join(lines) + "\n").encode()


def assert_exactly_once(directory: Directory, batch: dict[str, Any]) -> None:
    """The directory holds each row of a completed batch once, active, and nothing else under its id."""
    assert batch["status"] == "completed", batch
    assert batch["batch_activated"] is True
    listed = directory.hospitals(batch["batch_id"])
    assert Counter(hospital["name"] for hospital in listed) == Counter(row["name"] for row in batch["hospitals"])
    assert {row["hospital_id"] for row in batch["hospitals"]} == {hospital["id"] for hospital in listed}
    assert all(hospital["active"] for hospital in listed)
