"""Resuming: from whatever state a batch was left in, it goes on where it stopped and creates no row a second time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import requests

from store import StoreError
from tests.directory import Directory
from tests.hospitals import assert_exactly_once, csv_of
from tests.local_service import (
    AT_ONCE,
    BROWSER,
    Json,
    LocalService,
    SideBySide,
    answered,
    assert_promise,
    at_once,
    creates,
    csv_from,
    lose_patience,
    problem,
    put_in,
    put_in_again,
    restart_empty,
    sqlite_url,
    table_of,
)
from tests.patience import PATIENCE

ROWS = 5
CSV = csv_of(ROWS)
Rule = dict[str, Any]

REJECT_TWO: list[Rule] = [{"kind": "error", "status": 422, "call": "create", "times": 2}]
REFUSE_ACTIVATION: list[Rule] = [{"kind": "error", "status": 400, "call": "activate", "times": None}]
NO_LISTING: Rule = {"kind": "error", "call": "list", "times": None}


@pytest.fixture
def service(directory: Directory, tmp_path: Path) -> Iterator[LocalService]:
    with LocalService(directory, database_url=sqlite_url(tmp_path)) as service:
        yield service


def left(service: LocalService, directory: Directory, faults: list[Rule], status: str = "failed") -> Json:
    """A batch that an upload over these faults left in this state; the faults are over."""
    directory.faults(faults)
    batch = answered(service.upload(CSV))
    directory.wait_until_back()
    directory.faults([])
    assert batch["status"] == status, batch
    assert_promise(directory, batch)
    directory.forget_calls()
    return batch


def resumed(service: LocalService, directory: Directory, batch: Json, content: bytes | None = None) -> Json:
    """The batch after it was resumed and has ended."""
    again = answered(service.resume(batch["batch_id"], content))
    assert_promise(directory, again)
    assert again == service.batch(batch["batch_id"])
    return again


def names(batch: Json, status: str) -> list[str]:
    return [row["name"] for row in batch["hospitals"] if row["status"] == status]


@dataclass(frozen=True)
class Left:
    """What leaves a batch in a state, and how many creates it then takes to complete it."""

    faults: list[Rule]
    more_creates: int
    status: str = "failed"
    message: str = ""


LEFT_BY = {
    "two rows were rejected": Left(REJECT_TWO, 2, message="2 of 5 rows failed"),
    "every row was rejected": Left([{**REJECT_TWO[0], "times": None}], ROWS, message="5 of 5 rows failed"),
    "rows were tried in every round": Left(
        [{"kind": "drop", "call": "create", "times": None}], ROWS, message="5 of 5 rows failed"
    ),
    "rows were lost in every round": Left([{"kind": "lose", "times": None}], ROWS, message="5 of 5 rows failed"),
    "the activation was refused": Left(REFUSE_ACTIVATION, 0, message="did not activate the batch"),
    "the activation never came to anything": Left(
        [{"kind": "drop", "call": "activate", "times": None}], 0, message="did not activate the batch"
    ),
    "nothing could be listed before the activation": Left([NO_LISTING], 0, "interrupted", "could not be found out"),
    "the activation was done, its answer lost and nothing could be listed": Left(
        [{"kind": "drop", "call": "activate", "when": "after"}, {**NO_LISTING, "skip": 1}],
        0,
        "interrupted",
        "could not be found out",
    ),
    "the activation was not done, its answer lost and nothing could be listed": Left(
        [{"kind": "drop", "call": "activate"}, {**NO_LISTING, "skip": 1}], 0, "interrupted", "could not be found out"
    ),
    "the activation came late and nothing could be listed": Left(
        [{"kind": "late", "call": "activate", "seconds": 0.2}, {**NO_LISTING, "skip": 1}],
        0,
        "interrupted",
        "could not be found out",
    ),
    "half of it was activated and nothing could be deleted": Left(
        [{"kind": "half_activate"}, {"kind": "error", "call": "delete_batch", "times": None}],
        ROWS,
        "interrupted",
        "Part of the batch is active",
    ),
    "half of it was activated, every time": Left([{"kind": "half_activate", "times": None}], ROWS),
    "answers to creates were lost and nothing could be listed": Left(
        [{"kind": "drop", "call": "create", "when": "after", "times": 3}, NO_LISTING],
        0,
        "interrupted",
        "could not be found out",
    ),
    "creates came late and nothing could be listed": Left(
        [{"kind": "late", "call": "create", "seconds": 0.2, "times": 3}, NO_LISTING],
        0,
        "interrupted",
        "could not be found out",
    ),
    "creates were not done and nothing could be listed": Left(
        [{"kind": "drop", "call": "create", "times": 3}, NO_LISTING], 3, "interrupted", "could not be found out"
    ),
    "doubles could not be deleted": Left(
        [
            {"kind": "error", "status": 429, "call": "create", "when": "after"},
            {"kind": "error", "call": "delete_one", "times": None},
        ],
        0,
        "interrupted",
        "Doubles could not be deleted",
    ),
}


def complete(how: str, directory: Directory) -> None:
    state = LEFT_BY[how]
    with TemporaryDirectory() as folder, LocalService(directory, database_url=sqlite_url(Path(folder))) as service:
        batch = left(service, directory, state.faults, state.status)
        assert state.message in batch["error_message"]
        assert_exactly_once(directory, resumed(service, directory, batch))
        assert creates(directory) == state.more_creates


def complete_after_a_restart(how: str, directory: Directory) -> None:
    with LocalService(directory) as service:
        batch = left(service, directory, LEFT_BY[how].faults, LEFT_BY[how].status)
        restart_empty(directory)
        directory.settings(create_seconds=0)
        theirs = [put_in(directory, f"Stranger {number}") for number in range(ROWS + 2)]
        assert set(theirs) >= {row["hospital_id"] for row in batch["hospitals"]} - {None}
        directory.forget_calls()
        assert_exactly_once(directory, resumed(service, directory, batch))
        assert creates(directory) == ROWS
        strangers = [hospital for hospital in directory.hospitals() if hospital["id"] in theirs]
        assert [hospital["name"] for hospital in strangers] == [f"Stranger {number}" for number in range(ROWS + 2)]


@pytest.fixture(scope="module")
def cases(request: pytest.FixtureRequest) -> Iterator[SideBySide]:
    tables = {
        "test_a_batch_completes_when": complete,
        "test_strangers_who_have_its_ids_survive_when": complete_after_a_restart,
    }
    with SideBySide(request, tables) as cases:
        yield cases


@pytest.mark.parametrize("how", LEFT_BY)
def test_a_batch_completes_when(cases: SideBySide, how: str) -> None:
    cases.result(complete, how)


@pytest.mark.parametrize("how", LEFT_BY)
def test_strangers_who_have_its_ids_survive_when(cases: SideBySide, how: str) -> None:
    cases.result(complete_after_a_restart, how)


class TestSomebodyElse:
    """What others do to the hospitals of a batch between two runs."""

    def test_doubles_put_in_by_hand_are_deleted(self, service: LocalService, directory: Directory) -> None:
        batch = left(service, directory, REJECT_TWO)
        ours = directory.hospitals(batch["batch_id"])
        doubles = [put_in_again(directory, hospital) for hospital in ours for _ in range(2)]
        batch = resumed(service, directory, batch)
        assert_exactly_once(directory, batch)
        kept = {row["hospital_id"] for row in batch["hospitals"]}
        assert kept >= {hospital["id"] for hospital in ours}
        assert kept.isdisjoint(doubles)

    def test_of_doubles_the_one_whose_id_is_known_is_kept(self, service: LocalService, directory: Directory) -> None:
        batch = left(service, directory, REFUSE_ACTIVATION)
        hospital = next(it for it in directory.hospitals(batch["batch_id"]) if it["id"] == 3)
        restart_empty(directory)
        assert [put_in_again(directory, hospital) for _ in range(4)] == [1, 2, 3, 4]
        batch = resumed(service, directory, batch)
        assert_exactly_once(directory, batch)
        [row] = [row for row in batch["hospitals"] if row["name"] == hospital["name"]]
        assert row["hospital_id"] == 3

    def test_doubles_of_failed_rows_put_in_by_hand_are_taken_for_them(
        self, service: LocalService, directory: Directory
    ) -> None:
        batch = left(service, directory, [{**REJECT_TWO[0], "times": None}])
        by_hand = [
            put_in(directory, f"Hospital {n}", batch["batch_id"], address=f"{n} Main Street", phone=f"555-{n:04}")
            for n in (0, 1, 1)
        ]
        directory.forget_calls()
        batch = resumed(service, directory, batch)
        assert_exactly_once(directory, batch)
        assert [row["hospital_id"] for row in batch["hospitals"]][:2] == by_hand[:2]
        assert creates(directory) == ROWS - 2

    def test_a_hospital_that_was_deleted_is_created_again(self, service: LocalService, directory: Directory) -> None:
        batch = left(service, directory, REFUSE_ACTIVATION)
        for row in batch["hospitals"][:2]:
            assert requests.delete(f"{directory.url}/hospitals/{row['hospital_id']}", timeout=60).status_code == 204
        assert_exactly_once(directory, resumed(service, directory, batch))
        assert creates(directory) == 2

    def test_a_batch_that_was_deleted_is_created_again(self, service: LocalService, directory: Directory) -> None:
        batch = left(service, directory, REFUSE_ACTIVATION)
        requests.delete(f"{directory.url}/hospitals/batch/{batch['batch_id']}", timeout=60)
        assert_exactly_once(directory, resumed(service, directory, batch))
        assert creates(directory) == ROWS

    def test_a_batch_that_was_activated_is_found_complete(self, service: LocalService, directory: Directory) -> None:
        batch = left(service, directory, REFUSE_ACTIVATION)
        requests.patch(f"{directory.url}/hospitals/batch/{batch['batch_id']}/activate", timeout=60)
        directory.forget_calls()
        assert_exactly_once(directory, resumed(service, directory, batch))
        assert {call["kind"] for call in directory.calls()} == {"list"}

    def test_a_batch_that_was_activated_too_soon_is_created_again(
        self, service: LocalService, directory: Directory
    ) -> None:
        batch = left(service, directory, REJECT_TWO)
        requests.patch(f"{directory.url}/hospitals/batch/{batch['batch_id']}/activate", timeout=60)
        assert_exactly_once(directory, resumed(service, directory, batch))
        assert creates(directory) == ROWS

    @pytest.mark.parametrize(
        "change", [{"name": "Changed"}, {"address": "Elsewhere"}, {"phone": None}, {"name": "hospital 0"}]
    )
    def test_a_hospital_that_was_changed_keeps_the_batch_from_activation_and_is_named(
        self, service: LocalService, directory: Directory, change: dict[str, str | None]
    ) -> None:
        batch = left(service, directory, REFUSE_ACTIVATION)
        hospital = next(it for it in directory.hospitals(batch["batch_id"]) if it["name"] == "Hospital 0")
        changed = {key: hospital[key] for key in ("name", "address", "phone")} | change
        requests.put(f"{directory.url}/hospitals/{hospital['id']}", json=changed, timeout=60)
        for _ in range(2):
            batch = resumed(service, directory, batch)
            assert batch["status"] == "failed"
            assert f"hospital {hospital['id']} ({changed['name']})" in batch["error_message"]
            assert batch["hospitals"][0]["status"] == "pending"
        assert creates(directory) == 0
        assert hospital | changed in directory.hospitals()
        assert answered(service.roll_back(batch["batch_id"]))["status"] == "rolled_back"

    def test_a_changed_hospital_that_is_changed_back_lets_the_batch_complete(
        self, service: LocalService, directory: Directory
    ) -> None:
        batch = left(service, directory, REFUSE_ACTIVATION)
        [hospital, *_] = directory.hospitals(batch["batch_id"])
        before = {key: hospital[key] for key in ("name", "address", "phone")}
        for fields in (before | {"name": "Changed"}, before):
            requests.put(f"{directory.url}/hospitals/{hospital['id']}", json=fields, timeout=60)
            batch = resumed(service, directory, batch)
        assert_exactly_once(directory, batch)
        assert creates(directory) == 0

    def test_a_hospital_put_under_the_batch_keeps_it_from_activation_until_it_is_gone(
        self, service: LocalService, directory: Directory
    ) -> None:
        batch = left(service, directory, REJECT_TWO)
        foreign = put_in(directory, "Foreign", batch["batch_id"])
        batch = resumed(service, directory, batch)
        assert batch["status"] == "failed"
        assert f"hospital {foreign} (Foreign)" in batch["error_message"]
        requests.delete(f"{directory.url}/hospitals/{foreign}", timeout=60)
        assert_exactly_once(directory, resumed(service, directory, batch))

    def test_a_full_batch_with_a_double_in_it_has_room_again(self, service: LocalService, directory: Directory) -> None:
        directory.faults([REJECT_TWO[0] | {"times": 1}])
        batch = answered(service.upload(csv_of(20)))
        directory.faults([])
        assert batch["status"] == "failed"
        put_in_again(directory, directory.hospitals(batch["batch_id"])[0])
        assert_exactly_once(directory, resumed(service, directory, batch))
        assert len(directory.hospitals(batch["batch_id"])) == 20


class TestDirectoryAway:
    def test_a_batch_that_was_interrupted_while_rows_went_out_goes_on(
        self, service: LocalService, directory: Directory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lose_patience(monkeypatch, 0.3)
        batch = left(service, directory, [{"kind": "refuse", "call": "create", "skip": 2, "seconds": 3}], "interrupted")
        monkeypatch.undo()
        assert "could not be reached" in batch["error_message"]
        assert_exactly_once(directory, resumed(service, directory, batch))

    def test_a_batch_that_never_got_to_a_sleeping_directory_goes_on(
        self, service: LocalService, directory: Directory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lose_patience(monkeypatch, 0.3)
        batch = left(service, directory, [{"kind": "sleep", "seconds": 3600, "status": 503}], "interrupted")
        monkeypatch.undo()
        assert names(batch, "failed") == [f"Hospital {number}" for number in range(ROWS)]
        assert_exactly_once(directory, resumed(service, directory, batch))
        assert creates(directory) == ROWS

    def test_it_is_interrupted_as_often_as_the_directory_is_away(
        self, service: LocalService, directory: Directory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lose_patience(monkeypatch, 0.2)
        batch = left(service, directory, REJECT_TWO)
        for _ in range(3):
            directory.faults([{"kind": "error", "call": "list", "times": None}])
            batch = resumed(service, directory, batch)
            assert batch["status"] == "interrupted"
        directory.faults([])
        monkeypatch.undo()
        assert_exactly_once(directory, resumed(service, directory, batch))
        assert creates(directory) == 2

    def test_a_row_that_may_be_there_is_not_called_failed(
        self, directory: Directory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lose_patience(monkeypatch, 0.3)
        lost = {"kind": "drop", "call": "create", "when": "after"}
        away = {"kind": "refuse", "call": "create", "seconds": 3}
        with LocalService(directory, max_concurrent_creates=1) as service:
            batch = left(service, directory, [lost, away], "interrupted")
            monkeypatch.undo()
            assert [hospital["name"] for hospital in directory.hospitals(batch["batch_id"])] == ["Hospital 0"]
            assert names(batch, "failed") == ["Hospital 2", "Hospital 3", "Hospital 4"]
            mended = table_of(service.results(batch["batch_id"], "?status=failed"))
            change_name(mended)
            assert_exactly_once(directory, resumed(service, directory, batch, csv_from(mended)))


class TestAtOnce:
    def test_of_ten_at_once_one_runs(self, service: LocalService, directory: Directory) -> None:
        batch = left(service, directory, REJECT_TWO)
        directory.settings(create_seconds=0.4)
        answers = at_once(10, lambda: service.resume(batch["batch_id"]))
        assert sorted(answer.status_code for answer in answers) == [200] + [409] * 9
        [ran] = [answer.get_json() for answer in answers if answer.status_code == 200]
        assert_exactly_once(directory, ran)
        assert creates(directory) == 2
        assert len(directory.calls("activate")) == 1

    def test_a_resume_while_it_runs_is_refused(self, service: LocalService, directory: Directory) -> None:
        directory.settings(create_seconds=2)
        batch_id = service.started(CSV)
        problem(service.resume(batch_id), 409, "being worked on")
        assert_exactly_once(directory, service.ended(batch_id))
        assert creates(directory) == ROWS

    def test_a_resume_while_it_is_rolled_back_is_refused(self, service: LocalService, directory: Directory) -> None:
        batch = left(service, directory, REJECT_TWO)
        directory.settings(read_seconds=1.5)
        assert answered(service.roll_back(batch["batch_id"], AT_ONCE), 202)["status"] == "processing"
        problem(service.resume(batch["batch_id"]), 409, "being worked on")
        assert service.ended(batch["batch_id"])["status"] == "rolled_back"
        assert creates(directory) == 0

    def test_a_resume_of_a_completed_batch_is_refused(self, service: LocalService, directory: Directory) -> None:
        batch = left(service, directory, [], "completed")
        problem(service.resume(batch["batch_id"]), 409, "complete and active")
        assert service.batch(batch["batch_id"]) == batch
        assert directory.calls() == []

    def test_a_resume_of_a_batch_rolled_back_is_refused(self, service: LocalService, directory: Directory) -> None:
        batch = left(service, directory, REJECT_TWO)
        gone = answered(service.roll_back(batch["batch_id"]))
        directory.forget_calls()
        problem(service.resume(batch["batch_id"]), 409, "rolled back")
        assert service.batch(batch["batch_id"]) == gone
        assert directory.calls() == []

    def test_a_refusal_comes_before_a_look_at_the_file(self, service: LocalService, directory: Directory) -> None:
        batch = left(service, directory, [], "completed")
        problem(service.resume(batch["batch_id"], b"not,a,results,file"), 409)

    def test_no_batch_cannot_be_resumed(self, service: LocalService, directory: Directory) -> None:
        for content in (None, CSV):
            problem(service.resume("none", content), 404, "There is no batch none")

    def test_too_many_batches_leave_it_as_it_was(self, directory: Directory) -> None:
        with LocalService(directory, max_running_batches=1) as service:
            batch = left(service, directory, REJECT_TWO)
            directory.settings(create_seconds=2)
            other = service.started(csv_of(1, "Other"))
            answer = service.resume(batch["batch_id"])
            problem(answer, 503, "Too many batches")
            assert int(answer.headers["Retry-After"]) > 0
            assert service.batch(batch["batch_id"]) == batch
            service.ended(other)
            assert_exactly_once(directory, resumed(service, directory, batch))


def change_name(records: list[dict[str, str]]) -> None:
    for record in records:
        if record["status"] == "failed":
            record["name"] += " mended"


class TestMended:
    """The results file comes back with the failed rows changed."""

    @pytest.mark.parametrize("query", ["", "?status=failed"])
    def test_the_failed_rows_are_created_as_they_were_mended(
        self, service: LocalService, directory: Directory, query: str
    ) -> None:
        batch = left(service, directory, REJECT_TWO)
        records = table_of(service.results(batch["batch_id"], query))
        change_name(records)
        again = resumed(service, directory, batch, csv_from(records))
        assert_exactly_once(directory, again)
        assert [row["name"] for row in again["hospitals"]] == [
            row["name"] + " mended" * (row["status"] == "failed") for row in batch["hospitals"]
        ]
        assert creates(directory) == 2

    def test_a_failed_row_that_is_not_in_the_file_is_tried_as_it_was(
        self, service: LocalService, directory: Directory
    ) -> None:
        batch = left(service, directory, REJECT_TWO)
        [first, second] = table_of(service.results(batch["batch_id"], "?status=failed"))
        again = resumed(service, directory, batch, csv_from([first | {"name": "Mended"}]))
        assert_exactly_once(directory, again)
        present = {row["name"] for row in again["hospitals"]}
        assert "Mended" in present
        assert second["name"] in present
        assert first["name"] not in present

    def test_a_file_without_changes_is_a_plain_resume(self, service: LocalService, directory: Directory) -> None:
        batch = left(service, directory, REJECT_TWO)
        again = resumed(service, directory, batch, service.results(batch["batch_id"]))
        assert_exactly_once(directory, again)
        assert [row["name"] for row in again["hospitals"]] == [row["name"] for row in batch["hospitals"]]

    @pytest.mark.parametrize(
        ("encoding", "named", "delimiter", "line_end"),
        [
            ("utf-8-sig", "", ";", "\r\n"),
            ("utf-8-sig", "utf-8", ",", "\r\n"),
            ("utf-16", "", "\t", "\r\n"),
            ("utf-16", "", ";", "\n"),
            ("windows-1252", "windows-1252", ";", "\r\n"),
        ],
    )
    def test_a_spreadsheet_may_have_saved_it(
        self, service: LocalService, directory: Directory, encoding: str, named: str, delimiter: str, line_end: str
    ) -> None:
        odd = [
            ["=1+1", "'=1+1", "+44 20"],
            ["'@Zürich", 'Say "no"; or, yes', "-1"],
            ['"\'-"', "Two\nlines", ""],
        ]
        records = [dict(zip(("name", "address", "phone"), values, strict=True)) for values in odd]
        directory.faults([REJECT_TWO[0] | {"times": None}])
        batch = answered(service.upload(csv_from(records)))
        directory.faults([])
        mended = table_of(service.results(batch["batch_id"]))
        mended[1]["phone"] = "555-2"
        content = csv_from(mended, encoding, delimiter, line_end)
        again = answered(service.resume(batch["batch_id"], content, encoding=named))
        assert_exactly_once(directory, again)
        listed = {(it["name"], it["address"], it["phone"]) for it in directory.hospitals(batch["batch_id"])}
        odd[1][2] = "555-2"
        assert listed == {(name, address, phone or None) for name, address, phone in odd}

    def test_a_row_can_be_mended_again_and_again(self, service: LocalService, directory: Directory) -> None:
        batch = left(service, directory, REJECT_TWO)
        for _ in range(2):
            directory.faults([REJECT_TWO[0] | {"times": None}])
            records = table_of(service.results(batch["batch_id"]))
            change_name(records)
            batch = resumed(service, directory, batch, csv_from(records))
            assert batch["status"] == "failed"
        directory.faults([])
        batch = resumed(service, directory, batch)
        assert_exactly_once(directory, batch)
        assert sum("mended mended" in row["name"] for row in batch["hospitals"]) == 2

    def test_rows_that_were_created_behind_a_rejection_are_there_already(
        self, service: LocalService, directory: Directory
    ) -> None:
        batch = left(service, directory, [{**REJECT_TWO[0], "when": "after"}, *REFUSE_ACTIVATION])
        assert batch["failed_hospitals"] == 0
        assert_exactly_once(directory, resumed(service, directory, batch, service.results(batch["batch_id"])))
        assert creates(directory) == 0

    def test_the_rows_as_mended_are_known_as_uploaded_before(self, service: LocalService, directory: Directory) -> None:
        batch = left(service, directory, REJECT_TWO)
        records = table_of(service.results(batch["batch_id"]))
        change_name(records)
        resumed(service, directory, batch, csv_from(records))
        plain = csv_from([{key: it[key] for key in ("name", "address", "phone")} for it in records])
        warnings = answered(service.upload(plain, path="/hospitals/bulk/validate"))["warnings"]
        assert [warning["batch_id"] for warning in warnings] == [batch["batch_id"]]

    def test_a_form_without_a_chosen_file_is_a_plain_resume(self, service: LocalService, directory: Directory) -> None:
        batch = left(service, directory, REJECT_TWO)
        empty = b'--b\r\nContent-Disposition: form-data; name="file"; filename=""\r\n\r\n\r\n--b--\r\n'
        answer = service.call(
            "POST",
            f"/batches/{batch['batch_id']}/resume",
            {"Content-Type": "multipart/form-data; boundary=b"},
            data=empty,
        )
        assert_exactly_once(directory, answered(answer))


@pytest.fixture(scope="module")
def failed(shared_directory: Directory) -> Iterator[tuple[LocalService, Json]]:
    """A batch of which two rows were rejected, for tests that leave it alone."""
    shared_directory.reset()
    with LocalService(shared_directory) as service:
        yield service, left(service, shared_directory, [REJECT_TWO[0] | {"skip": 1}])


class TestRefusedFiles:
    """A results file that is refused leaves the batch as it was, and the directory alone."""

    def refused(self, failed: tuple[LocalService, Json], content: bytes, words: str = "") -> list[Json]:
        """The errors that the file is refused for."""
        service, batch = failed
        errors: list[Json] = problem(service.resume(batch["batch_id"], content), 400, words)["errors"]
        assert service.batch(batch["batch_id"]) == batch
        return errors

    @pytest.mark.parametrize(
        ("change", "code"),
        [
            ({"row": "9"}, "bad_row"),
            ({"row": "x"}, "bad_row"),
            ({"name": ""}, "missing_value"),
            ({"phone": "none"}, "bad_phone"),
            ({"address": "x" * 501}, "too_long"),
        ],
    )
    def test_a_wrong_row(
        self, failed: tuple[LocalService, Json], directory: Directory, change: dict[str, str], code: str
    ) -> None:
        service, batch = failed
        records = table_of(service.results(batch["batch_id"]))
        next(record for record in records if record["status"] == "failed").update(change)
        assert [error["code"] for error in self.refused(failed, csv_from(records))] == [code]
        assert directory.calls() == []

    def test_a_row_that_is_there_twice(self, failed: tuple[LocalService, Json]) -> None:
        service, batch = failed
        records = table_of(service.results(batch["batch_id"], "?status=failed"))
        again = records[0] | {"name": "Another"}
        assert [error["code"] for error in self.refused(failed, csv_from([*records, again]))] == ["bad_row"]

    def test_a_row_that_became_another_row_of_the_batch(self, failed: tuple[LocalService, Json]) -> None:
        service, batch = failed
        records = table_of(service.results(batch["batch_id"]))
        created, bad = (next(it for it in records if it["status"] == status) for status in ("created", "failed"))
        bad |= {key: created[key] for key in ("name", "address", "phone")}
        [error] = self.refused(failed, csv_from([bad]))
        assert (error["code"], error["row"]) == ("duplicate_row", int(bad["row"]))
        assert f"already in row {created['row']} of the batch" in error["message"]

    def test_rows_that_did_not_fail_and_differ(self, failed: tuple[LocalService, Json]) -> None:
        service, batch = failed
        records = table_of(service.results(batch["batch_id"]))
        for record in records:
            record["address"] += " b"
        errors = self.refused(failed, csv_from(records), "The file has 3 errors, so nothing was done")
        assert {error["code"] for error in errors} == {"not_failed"}
        created = {row["row"] for row in batch["hospitals"] if row["status"] == "created"}
        assert {error["row"] for error in errors} == created

    def test_the_file_of_the_upload(self, failed: tuple[LocalService, Json]) -> None:
        errors = self.refused(failed, CSV)
        assert [(error["code"], error["column"]) for error in errors] == [("missing_column", "row")]

    def test_what_is_no_csv(self, failed: tuple[LocalService, Json]) -> None:
        assert [error["code"] for error in self.refused(failed, b"PK\x05\x06")] == ["not_csv"]

    def test_a_form_mends_as_many_rows_as_an_upload_may_have(self, directory: Directory) -> None:
        directory.settings(create_seconds=0, batch_size=0)
        directory.faults([{"kind": "error", "status": 422, "call": "create", "times": None}])
        with LocalService(directory, max_csv_rows=500) as service:
            batch = answered(service.upload(csv_of(500)))
            assert batch["failed_hospitals"] == 500
            directory.faults([])
            fields = {f"name-{row['row']}": f"Mended {row['row']}" for row in batch["hospitals"]}
            fields |= {f"address-{row['row']}": "1 Road" for row in batch["hospitals"]}
            fields |= {f"phone-{row['row']}": "1" for row in batch["hospitals"]}
            path = f"/batches/{batch['batch_id']}/resume"
            answer = service.call("POST", path, data=fields, content_type="multipart/form-data")
            assert answered(answer)["status"] == "completed"

    @pytest.mark.parametrize("kind", ["text/csv", "application/x-www-form-urlencoded", "application/json"])
    def test_another_kind_of_body(self, failed: tuple[LocalService, Json], kind: str) -> None:
        service, batch = failed
        answer = service.call("POST", f"/batches/{batch['batch_id']}/resume", data=CSV, content_type=kind)
        problem(answer, 415)
        assert service.batch(batch["batch_id"]) == batch


class TestTheAnswer:
    def test_the_time_of_every_run_counts_and_no_time_between_them(
        self, service: LocalService, directory: Directory
    ) -> None:
        directory.settings(create_seconds=0.4)
        batch = left(service, directory, REJECT_TWO)
        first = batch["processing_time_seconds"]
        assert first >= 0.4
        time.sleep(0.5)
        assert service.batch(batch["batch_id"])["processing_time_seconds"] == first
        began = time.monotonic()
        second = resumed(service, directory, batch)["processing_time_seconds"]
        assert first + 0.4 <= second <= first + time.monotonic() - began

    def test_while_it_runs_again_it_has_not_ended(self, service: LocalService, directory: Directory) -> None:
        batch = left(service, directory, REJECT_TWO)
        directory.settings(create_seconds=2)
        running = answered(service.resume(batch["batch_id"], headers=AT_ONCE), 202)
        assert (running["status"], running["completed_at"], running["error_message"]) == ("processing", None, None)
        assert running["created_at"] == batch["created_at"]
        assert running["failed_hospitals"] == 0
        assert running["processing_time_seconds"] >= batch["processing_time_seconds"]
        later = service.when(
            batch["batch_id"], lambda it: it["processing_time_seconds"] > running["processing_time_seconds"]
        )
        assert later["completed_at"] is None
        ended = service.ended(batch["batch_id"])
        assert ended["completed_at"] > batch["completed_at"]
        assert ended["created_at"] == batch["created_at"]

    @pytest.mark.parametrize(
        ("prefer", "status", "applied"),
        [
            (None, 200, None),
            ("respond-async", 202, "respond-async"),
            ("wait=0", 202, "wait=0"),
            ("wait=30", 200, "wait=30"),
            ("respond-async, wait=30", 200, "respond-async, wait=30"),
            ("wait=soon", 200, None),
        ],
    )
    def test_the_caller_says_how_long_to_wait(
        self, service: LocalService, directory: Directory, prefer: str | None, status: int, applied: str | None
    ) -> None:
        batch = left(service, directory, REJECT_TWO)
        directory.settings(create_seconds=0.15 if status == 200 else 2)
        answer = service.resume(batch["batch_id"], headers={"Prefer": prefer} if prefer else None)
        assert answered(answer, status)["status"] == ("completed" if status == 200 else "processing")
        assert answer.headers.get("Preference-Applied") == applied
        assert answer.headers.get("Location") == (f"/batches/{batch['batch_id']}" if status == 202 else None)
        assert ("Retry-After" in answer.headers) is (status == 202)
        assert_exactly_once(directory, service.ended(batch["batch_id"]))

    def test_a_browser_is_sent_to_the_page_at_once(self, service: LocalService, directory: Directory) -> None:
        batch = left(service, directory, REJECT_TWO)
        directory.settings(create_seconds=2)
        answer = service.resume(batch["batch_id"], headers=BROWSER)
        assert answer.status_code == 303
        assert answer.headers["Location"] == f"/batches/{batch['batch_id']}"
        assert service.batch(batch["batch_id"])["status"] == "processing"
        assert_exactly_once(directory, service.ended(batch["batch_id"]))

    def test_a_browser_is_told_of_a_refusal_by_a_page(self, service: LocalService, directory: Directory) -> None:
        batch = left(service, directory, [], "completed")
        answer = service.resume(batch["batch_id"], headers=BROWSER)
        assert (answer.status_code, answer.mimetype) == (409, "text/html")
        assert "complete and active" in answer.text


class TestTheStoreFails:
    """A database that does not answer for a moment: the disk is full, or another program holds it."""

    @pytest.fixture
    def service(self, directory: Directory) -> Iterator[LocalService]:
        with LocalService(directory, max_concurrent_creates=1) as service:
            yield service

    def test_a_run_goes_on_when_the_store_misses_how_far_it_has_come(
        self, service: LocalService, directory: Directory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        directory.settings(create_seconds=0.3)
        fail_saves(service, monkeypatch, lambda rows, fields: "status" not in fields, times=3)
        assert_exactly_once(directory, service.ended(service.started(csv_of(8))))
        assert creates(directory) == 8

    def test_a_run_that_breaks_off_sends_no_more_rows(
        self, service: LocalService, directory: Directory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def break_off(*_: object) -> None:
            raise RuntimeError

        directory.settings(create_seconds=0.3)
        with monkeypatch.context() as patch:
            patch.setattr("rounds.STORE_EVERY_SECONDS", 0.1)
            patch.setattr("pacing.Pacer.waiting_for", break_off)
            batch = service.ended(service.started(csv_of(8)))
        assert batch["status"] == "interrupted"
        sent = creates(directory)
        time.sleep(1)
        assert creates(directory) == sent
        assert_exactly_once(directory, resumed(service, directory, batch))
        assert creates(directory) == 8

    def test_what_could_not_be_stored_is_stored_the_next_time(
        self, service: LocalService, directory: Directory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fail_saves(service, monkeypatch, lambda rows, fields: fields.get("status") == "completed", times=1)
        batch = answered(service.upload(CSV))
        assert service.batch(batch["batch_id"])["hospitals"] == batch["hospitals"]

    @pytest.mark.parametrize("ways", [1, 2])
    def test_a_batch_whose_end_could_not_be_stored_can_be_gone_on_with(
        self, service: LocalService, directory: Directory, monkeypatch: pytest.MonkeyPatch, ways: int
    ) -> None:
        monkeypatch.setattr("rounds.PATIENCE_SECONDS", 0)
        monkeypatch.setattr("rounds.FIRST_STORE_WAIT", 0.01)
        fail_saves(service, monkeypatch, lambda rows, fields: "status" in fields, times=1)
        batch_id = answered(service.upload(CSV), 202)["batch_id"]
        if ways == 1:
            assert_exactly_once(directory, answered(service.resume(batch_id)))
        else:
            assert answered(service.roll_back(batch_id))["status"] == "rolled_back"

    def test_a_roll_back_does_not_wait_for_an_end_that_cannot_be_stored(
        self, service: LocalService, directory: Directory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("runner.ENDING_SECONDS", 0.1)
        monkeypatch.setattr("rounds.FIRST_STORE_WAIT", 0.01)
        ending = threading.Event()

        def is_end(_: list[Any], fields: Json) -> bool:
            if "status" in fields:
                ending.set()
            return "status" in fields

        with monkeypatch.context() as patch:
            fail_saves(service, patch, is_end, times=1000)
            batch_id = service.started(CSV)
            assert ending.wait(PATIENCE)
            problem(service.roll_back(batch_id), 503, "cannot be stored")
        assert_exactly_once(directory, service.ended(batch_id))
        assert answered(service.roll_back(batch_id))["status"] == "rolled_back"

    def test_an_upload_that_could_not_begin_is_not_left_behind(
        self, service: LocalService, directory: Directory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fail_saves(service, monkeypatch, lambda rows, fields: True, times=1)
        answer = service.upload(CSV)
        if answer.status_code == 200:
            assert_exactly_once(directory, answered(answer))
        else:
            problem(answer, 503)
            assert service.parts.store.unfinished() == []

    def test_a_resume_that_could_not_begin_can_be_said_again(
        self, service: LocalService, directory: Directory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batch = left(service, directory, REJECT_TWO)
        fail_saves(service, monkeypatch, lambda rows, fields: True, times=1)
        if service.resume(batch["batch_id"]).status_code != 200:
            answered(service.resume(batch["batch_id"]))
        assert_exactly_once(directory, service.batch(batch["batch_id"]))


def fail_saves(
    service: LocalService, monkeypatch: pytest.MonkeyPatch, fails: Callable[[list[Any], Json], bool], times: int
) -> None:
    """Let the store refuse to save, so many times, what it holds of."""
    store, save, left_over = service.parts.store, service.parts.store.save, [None] * times

    def save_or_fail(batch_id: str, rows: Any = (), **fields: Any) -> None:
        rows = list(rows)
        if left_over and fails(rows, fields):
            left_over.pop()
            raise StoreError("The database does not answer: database is locked.")
        save(batch_id, rows, **fields)

    monkeypatch.setattr(store, "save", save_or_fail)


def test_a_resume_in_the_moment_a_run_ends_is_a_run_like_any_other(
    service: LocalService, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What has ended can be seen a moment before the run that ended it is gone.
    save = service.parts.store.save

    def save_slowly(batch_id: str, rows: Any = (), **fields: Any) -> None:
        save(batch_id, rows, **fields)
        if fields.get("status") == "failed":
            time.sleep(0.3)

    monkeypatch.setattr(service.parts.store, "save", save_slowly)
    directory.faults(REJECT_TWO)
    batch_id = service.started(CSV)
    batch = service.ended(batch_id)
    directory.settings(create_seconds=1)
    with ThreadPoolExecutor(1) as pool:
        resuming = pool.submit(service.resume, batch_id)
        time.sleep(0.6)
        answered(service.roll_back(batch["batch_id"]))
        resuming.result()
    assert service.batch(batch_id)["status"] == "rolled_back"
    assert directory.hospitals(batch_id) == []
