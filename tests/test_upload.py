"""The main job, over real sockets: a CSV becomes an active batch, and the answer says so row by row."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.directory import Directory
from tests.hospitals import assert_exactly_once, csv_of
from tests.running import RunningService


@pytest.fixture(scope="module")
def service(shared_directory: Directory) -> Iterator[RunningService]:
    with RunningService(shared_directory.url) as running:
        yield running


def test_a_csv_becomes_an_active_batch(service: RunningService, directory: Directory) -> None:
    answer = service.upload(csv_of(20))
    assert answer.status_code == 200
    assert_exactly_once(directory, answer.json())
    assert len(directory.calls("create")) == 20


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_create_whose_answer_is_lost_is_made_once(service: RunningService, directory: Directory, when: str) -> None:
    directory.faults([{"kind": "drop", "call": "create", "when": when, "times": 3}])
    batch = service.upload(csv_of(20)).json()
    assert_exactly_once(directory, batch)
    assert len(directory.calls("create")) == (23 if when == "before" else 20)
