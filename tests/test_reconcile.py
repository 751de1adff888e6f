"""A listing held against the rows: what is ours, what is there twice, and what matches no row."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch import Row
from hospital_client import Hospital
from reconcile import Found, reconcile

ROWS = [Row(1, "Alpha", "1 Road", "555-1"), Row(2, "Beta", "2 Road", None)]
ALPHA = Hospital(1, "Alpha", "1 Road", "555-1", active=False)
BETA = Hospital(2, "Beta", "2 Road", None, active=False)


def active(*hospitals: Hospital) -> list[Hospital]:
    return [replace(hospital, active=True) for hospital in hospitals]


def test_each_row_is_found_by_what_it_holds_whatever_the_order() -> None:
    assert reconcile(ROWS, [BETA, ALPHA]) == Found(rows={1: ALPHA, 2: BETA})


def test_an_empty_listing_holds_nothing() -> None:
    assert reconcile(ROWS, []) == Found()


@pytest.mark.parametrize(
    "other",
    [
        replace(ALPHA, name="alpha"),
        replace(ALPHA, name="Alpha "),
        replace(ALPHA, address="1  Road"),
        replace(ALPHA, phone=None),
        replace(ALPHA, phone="5551"),
        replace(BETA, phone=""),
    ],
)
def test_what_differs_in_a_character_is_a_stranger(other: Hospital) -> None:
    assert reconcile(ROWS, [other]) == Found(strangers=[other])


def test_a_recorded_id_alone_does_not_make_a_hospital_ours() -> None:
    stranger = Hospital(7, "Gamma", "3 Road", None, active=False)
    assert reconcile([replace(ROWS[0], hospital_id=7)], [stranger]) == Found(strangers=[stranger])


def test_a_row_is_found_under_another_id_than_the_recorded_one() -> None:
    assert reconcile([replace(ROWS[0], hospital_id=7)], [ALPHA]) == Found(rows={1: ALPHA})


@pytest.mark.parametrize(
    ("recorded", "kept", "doubles"),
    [(None, 3, [5, 9]), (3, 3, [5, 9]), (5, 5, [3, 9]), (9, 9, [3, 5]), (4, 3, [5, 9])],
)
def test_of_doubles_the_recorded_one_is_kept_else_the_lowest(
    recorded: int | None, kept: int, doubles: list[int]
) -> None:
    row = replace(ROWS[0], hospital_id=recorded)
    found = reconcile([row], [replace(ALPHA, id=number) for number in (9, 3, 5)])
    assert found.rows[1].id == kept
    assert sorted(double.id for double in found.doubles) == doubles


@pytest.mark.parametrize(
    ("listed", "count", "all_active"),
    [
        (active(ALPHA, BETA), 2, True),
        ([ALPHA, BETA], 0, False),
        ([ALPHA, *active(BETA)], 1, False),
        (active(ALPHA), 1, False),
        (active(ALPHA, replace(ALPHA, id=3)), 2, False),
        ([*active(ALPHA, BETA), replace(BETA, id=3)], 2, False),
        ([ALPHA, *active(BETA, replace(ALPHA, id=3))], 2, False),
        ([*active(ALPHA, BETA), replace(BETA, id=3, name="Other")], 2, False),
        ([ALPHA, *active(BETA, replace(BETA, id=3, name="Other"))], 2, False),
    ],
)
def test_a_batch_is_active_when_every_row_is_there_once_and_active_and_nothing_else(
    listed: list[Hospital], count: int, all_active: bool
) -> None:
    found = reconcile(ROWS, listed)
    assert found.active == count
    assert found.is_all_active(len(ROWS)) is all_active


NAMES = st.sampled_from(["Alpha", "Beta", "Gamma"])
LISTINGS = st.lists(
    st.builds(Hospital, st.integers(1, 9), NAMES, st.just("Road"), st.sampled_from([None, "5"]), st.booleans()),
    unique_by=lambda hospital: hospital.id,
)
FILES = st.lists(st.tuples(NAMES, st.none() | st.integers(1, 9)), unique_by=lambda row: row[0])


@given(FILES, LISTINGS)
def test_every_hospital_is_a_rows_or_a_double_or_a_stranger(
    file: list[tuple[str, int | None]], listed: list[Hospital]
) -> None:
    rows = [Row(number, name, "Road", None, hospital_id=id_) for number, (name, id_) in enumerate(file, 1)]
    found = reconcile(rows, listed)
    sorted_out = [*found.rows.values(), *found.doubles, *found.strangers]
    assert sorted(hospital.id for hospital in sorted_out) == sorted(hospital.id for hospital in listed)
    matching = {row.row: [item for item in listed if (item.name, item.phone) == (row.name, None)] for row in rows}
    assert {number for number, items in matching.items() if items} == set(found.rows)
    for row in rows:
        ids = {item.id for item in matching[row.row]}
        if ids:
            assert found.rows[row.row].id == (row.hospital_id if row.hospital_id in ids else min(ids))
