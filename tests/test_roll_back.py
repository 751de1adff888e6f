"""Rolling back: whatever state a batch is in, nothing of it is left in the directory, and all of others stays."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from werkzeug.test import TestResponse

from hospital_client import HospitalClient
from settings import RateLimit
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
    lose_patience,
    problem,
    put_in,
    put_in_again,
    restart_empty,
    sqlite_url,
)
from tests.patience import wait_for
from tests.running import RunningService

ROWS = 5
CSV = csv_of(ROWS)
DELAY = 0.5
LATE = 0.3
Rule = dict[str, Any]

REJECT_TWO: list[Rule] = [{"kind": "error", "status": 422, "call": "create", "times": 2}]
NO_LISTING: Rule = {"kind": "error", "call": "list", "times": None}


@pytest.fixture
def service(directory: Directory) -> Iterator[LocalService]:
    with LocalService(directory, directory_delay_seconds=DELAY) as service:
        yield service


def left(service: LocalService, directory: Directory, faults: list[Rule], status: str = "failed") -> Json:
    """A batch that an upload over these faults left in this state; the faults are over."""
    directory.faults(faults)
    batch = answered(service.upload(CSV))
    directory.wait_until_back()
    directory.faults([])
    assert batch["status"] == status, batch
    directory.forget_calls()
    return batch


def rolled_back(service: LocalService, directory: Directory, batch_id: str) -> Json:
    """The batch after it was rolled back."""
    batch = answered(service.roll_back(batch_id))
    assert batch["status"] == "rolled_back"
    assert batch["error_message"] is None
    assert_promise(directory, batch)
    assert batch == service.batch(batch_id)
    return batch


@dataclass(frozen=True)
class Left:
    """What leaves a batch in a state."""

    faults: list[Rule]
    status: str = "failed"


LEFT_BY = {
    "it was completed": Left([], "completed"),
    "two rows were rejected": Left(REJECT_TWO),
    "every row was rejected": Left([{**REJECT_TWO[0], "times": None}]),
    "rows were tried in every round": Left([{"kind": "drop", "call": "create", "times": None}]),
    "the activation was refused": Left([{"kind": "error", "status": 400, "call": "activate", "times": None}]),
    "the activation was done, its answer lost and nothing could be listed": Left(
        [{"kind": "drop", "call": "activate", "when": "after"}, {**NO_LISTING, "skip": 1}], "interrupted"
    ),
    "the activation came late and nothing could be listed": Left(
        [{"kind": "late", "call": "activate", "seconds": LATE}, {**NO_LISTING, "skip": 1}], "interrupted"
    ),
    "half of it was activated and nothing could be deleted": Left(
        [{"kind": "half_activate"}, {"kind": "error", "call": "delete_batch", "times": None}], "interrupted"
    ),
    "answers to creates were lost and nothing could be listed": Left(
        [{"kind": "drop", "call": "create", "when": "after", "times": 3}, NO_LISTING], "interrupted"
    ),
    "creates came late and nothing could be listed": Left(
        [{"kind": "late", "call": "create", "seconds": LATE, "times": ROWS}, NO_LISTING], "interrupted"
    ),
    "doubles could not be deleted": Left(
        [
            {"kind": "error", "status": 429, "call": "create", "when": "after"},
            {"kind": "error", "call": "delete_one", "times": None},
        ],
        "interrupted",
    ),
}


def roll_back_alone(how: str, directory: Directory) -> None:
    theirs = [put_in(directory, "Stranger"), put_in(directory, "Of another batch", str(uuid.uuid4()))]
    with LocalService(directory, directory_delay_seconds=DELAY) as service:
        other = answered(service.upload(csv_of(2, "Other")))
        batch = left(service, directory, LEFT_BY[how].faults, LEFT_BY[how].status)
        before = {row["row"]: row for row in batch["hospitals"]}
        after = rolled_back(service, directory, batch["batch_id"])
        for row in after["hospitals"]:
            was = before[row["row"]]
            assert row["status"] == ("deleted" if was["status"].startswith("created") else was["status"])
            assert row["hospital_id"] == was["hospital_id"]
        assert creates(directory) == 0
        time.sleep(LATE)
        assert directory.hospitals(batch["batch_id"]) == []
        assert_exactly_once(directory, other)
        others = {row["hospital_id"] for row in other["hospitals"]}
        assert {it["id"] for it in directory.hospitals()} == others | set(theirs)


def roll_back_after_a_restart(how: str, directory: Directory) -> None:
    with LocalService(directory, directory_delay_seconds=DELAY) as service:
        batch = left(service, directory, LEFT_BY[how].faults, LEFT_BY[how].status)
        restart_empty(directory)
        directory.settings(create_seconds=0)
        theirs = [put_in(directory, f"Stranger {number}") for number in range(ROWS + 2)]
        assert set(theirs) >= {row["hospital_id"] for row in batch["hospitals"]} - {None}
        rolled_back(service, directory, batch["batch_id"])
        assert [it["name"] for it in directory.hospitals()] == [f"Stranger {number}" for number in range(ROWS + 2)]


@pytest.fixture(scope="module")
def cases(request: pytest.FixtureRequest) -> Iterator[SideBySide]:
    tables = {
        "test_nothing_of_a_batch_and_all_of_others_is_left_when": roll_back_alone,
        "test_strangers_who_have_its_ids_survive_when": roll_back_after_a_restart,
    }
    with SideBySide(request, tables) as cases:
        yield cases


@pytest.mark.parametrize("how", LEFT_BY)
def test_nothing_of_a_batch_and_all_of_others_is_left_when(cases: SideBySide, how: str) -> None:
    cases.result(roll_back_alone, how)


@pytest.mark.parametrize("how", [how for how, state in LEFT_BY.items() if state.status != "failed"])
def test_strangers_who_have_its_ids_survive_when(cases: SideBySide, how: str) -> None:
    cases.result(roll_back_after_a_restart, how)


class TestSomebodyElse:
    def test_what_others_did_to_its_hospitals_is_deleted_with_them(
        self, service: LocalService, directory: Directory
    ) -> None:
        batch = left(service, directory, REJECT_TWO)
        first, second, _ = directory.hospitals(batch["batch_id"])
        put_in_again(directory, first)
        put_in(directory, "Foreign", batch["batch_id"])
        requests.put(
            f"{directory.url}/hospitals/{second['id']}", json={"name": "Changed", "address": "Elsewhere"}, timeout=10
        )
        requests.patch(f"{directory.url}/hospitals/batch/{batch['batch_id']}/activate", timeout=60)
        rolled_back(service, directory, batch["batch_id"])

    def test_a_batch_that_somebody_deleted_is_rolled_back(self, service: LocalService, directory: Directory) -> None:
        batch = left(service, directory, [], "completed")
        requests.delete(f"{directory.url}/hospitals/batch/{batch['batch_id']}", timeout=60)
        assert {row["status"] for row in rolled_back(service, directory, batch["batch_id"])["hospitals"]} == {"deleted"}

    def test_what_comes_under_its_id_later_is_left_alone(self, service: LocalService, directory: Directory) -> None:
        batch = left(service, directory, REJECT_TWO)
        rolled_back(service, directory, batch["batch_id"])
        foreign = put_in(directory, "Foreign", batch["batch_id"])
        directory.forget_calls()
        assert answered(service.roll_back(batch["batch_id"]))["status"] == "rolled_back"
        assert [it["id"] for it in directory.hospitals(batch["batch_id"])] == [foreign]
        assert directory.calls() == []


class TestTheDirectoryMisbehaves:
    @pytest.mark.parametrize(
        "fault",
        [
            {"kind": "drop", "when": "after"},
            {"kind": "drop", "when": "before"},
            {"kind": "error", "when": "after"},
            {"kind": "error", "when": "before", "times": 2},
            {"kind": "rate_limit", "times": 2},
            {"kind": "garbage", "when": "before"},
            {"kind": "late", "seconds": 0.05},
            {"kind": "refuse", "seconds": 0.2},
            {"kind": "restart", "when": "before"},
        ],
        ids=lambda fault: f"{fault['kind']} {fault.get('when', '')}",
    )
    @pytest.mark.parametrize("call", ["delete_batch", "list"])
    def test_a_moment_of_trouble_is_got_over(
        self, service: LocalService, directory: Directory, call: str, fault: Rule
    ) -> None:
        if call == "list" and fault["kind"] == "late":
            fault = {"kind": "hang", "seconds": 0.2}
        batch = left(service, directory, [], "completed")
        directory.faults([{**fault, "call": call}])
        rolled_back(service, directory, batch["batch_id"])

    @pytest.mark.parametrize(
        "faults",
        [
            [{"kind": "error", "call": "delete_batch", "times": None}],
            [{"kind": "error", "status": 403, "call": "delete_batch", "times": None}],
            [NO_LISTING],
            [{"kind": "refuse", "call": "delete_batch", "seconds": 2}],
        ],
    )
    def test_a_directory_out_of_reach_is_said_and_it_can_be_said_again(
        self, service: LocalService, directory: Directory, monkeypatch: pytest.MonkeyPatch, faults: list[Rule]
    ) -> None:
        batch = left(service, directory, [], "completed")
        lose_patience(monkeypatch, 0.2)
        directory.faults(faults)
        refusal = problem(service.roll_back(batch["batch_id"]), 502)
        after = service.batch(batch["batch_id"])
        assert (after["status"], after["error_message"]) == ("interrupted", refusal["detail"])
        assert "roll it back again" in refusal["detail"]
        assert after["batch_activated"] is False
        directory.wait_until_back()
        assert_promise(directory, after)
        directory.faults([])
        monkeypatch.undo()
        rolled_back(service, directory, batch["batch_id"])

    def test_a_deletion_whose_answer_is_lost_every_time_is_found_done(
        self, service: LocalService, directory: Directory
    ) -> None:
        batch = left(service, directory, [], "completed")
        directory.faults([{"kind": "drop", "call": "delete_batch", "when": "after", "times": None}])
        rolled_back(service, directory, batch["batch_id"])
        assert len(directory.calls("delete_batch")) == 1

    def test_a_deletion_that_takes_effect_late_deletes_nothing_that_is_created_after_it(
        self, service: LocalService, directory: Directory
    ) -> None:
        batch = left(service, directory, [], "completed")
        directory.faults([{"kind": "late", "call": "delete_batch", "seconds": LATE}, NO_LISTING])
        problem(service.roll_back(batch["batch_id"]), 502)
        directory.faults([])
        again = answered(service.resume(batch["batch_id"]))
        time.sleep(LATE)
        assert_exactly_once(directory, again)

    def test_rows_that_were_sent_before_the_directory_fell_asleep_are_not_called_failed(
        self, service: LocalService, directory: Directory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lose_patience(monkeypatch, 0.2)
        monkeypatch.setattr("hospital_client.AWAKE_SECONDS", 0)
        directory.settings(create_seconds=0.3)
        directory.faults([{"kind": "error", "call": "root", "status": 503, "skip": 1, "times": None},
                          {"kind": "drop", "call": "create", "when": "after", "times": None}])  # fmt: skip
        batch_id = service.started(CSV)
        directory.wait_until_called("create", ROWS)
        refusal = problem(service.roll_back(batch_id), 502)
        assert len(directory.hospitals(batch_id)) == ROWS
        assert "Nothing was sent" not in refusal["detail"]
        assert {row["status"] for row in service.batch(batch_id)["hospitals"]} == {"pending"}

    def test_a_roll_back_that_stopped_on_the_way_can_be_turned_into_a_resume(
        self, service: LocalService, directory: Directory
    ) -> None:
        batch = left(service, directory, [], "completed")
        directory.faults([NO_LISTING])
        problem(service.roll_back(batch["batch_id"]), 502)
        directory.faults([])
        again = answered(service.resume(batch["batch_id"]))
        assert_exactly_once(directory, again)
        assert {row["hospital_id"] for row in again["hospitals"]}.isdisjoint(
            row["hospital_id"] for row in batch["hospitals"]
        )

    def test_a_roll_back_that_deleted_nothing_can_be_turned_into_a_resume(
        self, service: LocalService, directory: Directory
    ) -> None:
        batch = left(service, directory, [], "completed")
        directory.faults([{"kind": "error", "call": "delete_batch", "times": None}])
        problem(service.roll_back(batch["batch_id"]), 502)
        directory.faults([])
        again = answered(service.resume(batch["batch_id"]))
        assert_exactly_once(directory, again)
        assert again["hospitals"] == batch["hospitals"]


class TestWhileItRuns:
    def test_no_new_row_starts_and_what_is_in_flight_ends(self, directory: Directory) -> None:
        directory.settings(create_seconds=2.5)
        with LocalService(directory, max_concurrent_creates=2) as service:
            batch_id = service.started(csv_of(8))
            directory.wait_until_called("create", 2)
            batch = rolled_back(service, directory, batch_id)
        assert creates(directory) == 2
        assert all(call["status"] == 200 for call in directory.calls("create"))
        assert sorted(row["status"] for row in batch["hospitals"]) == ["deleted"] * 2 + ["pending"] * 6
        [delete] = directory.calls("delete_batch")
        assert delete["started"] >= max(call["ended"] for call in directory.calls("create"))

    def test_rows_that_wait_for_the_rate_limit_are_not_waited_for(self, directory: Directory) -> None:
        with LocalService(directory, directory_create_limit=RateLimit(2, 60)) as service:
            batch_id = service.started(CSV)
            service.when(batch_id, lambda batch: batch["waiting_for"] == "rate_limit")
            began = time.monotonic()
            rolled_back(service, directory, batch_id)
        assert time.monotonic() - began < 20
        assert creates(directory) == 2

    @pytest.mark.parametrize("fault", [{"kind": "rate_limit", "times": None}, {"kind": "refuse", "seconds": 3}])
    def test_rows_that_are_held_are_not_waited_for(
        self, service: LocalService, directory: Directory, fault: Rule
    ) -> None:
        directory.faults([{**fault, "call": "create"}])
        batch_id = service.started(CSV)
        service.when(batch_id, lambda batch: batch["waiting_for"] in ("rate_limit", "directory"))
        rolled_back(service, directory, batch_id)

    def test_creates_whose_answers_are_lost_are_waited_out(self, service: LocalService, directory: Directory) -> None:
        directory.faults([{"kind": "late", "call": "create", "seconds": LATE, "times": None, "status": None}])
        batch_id = service.started(CSV)
        directory.wait_until_called("create", ROWS)
        rolled_back(service, directory, batch_id)
        time.sleep(LATE)
        assert directory.hospitals(batch_id) == []
        assert creates(directory) == ROWS

    @pytest.mark.parametrize("attempts", [1, 2])
    def test_a_create_that_comes_after_the_deletion_is_deleted_too(
        self, directory: Directory, monkeypatch: pytest.MonkeyPatch, attempts: int
    ) -> None:
        with LocalService(directory, directory_attempts=attempts) as service:
            batch = left(service, directory, REJECT_TWO)
            delete = HospitalClient.delete_batch
            late = ["Hospital 0"]

            def delete_too_early(client: HospitalClient, batch_id: str, *more: Any) -> None:
                delete(client, batch_id, *more)
                if late:
                    put_in(directory, late.pop(), batch_id)

            monkeypatch.setattr(HospitalClient, "delete_batch", delete_too_early)
            if attempts == 1:  # there is no second deletion, but it can be said again
                problem(service.roll_back(batch["batch_id"]), 502, "still holds hospitals of the batch")
                assert len(directory.hospitals(batch["batch_id"])) == 1
            rolled_back(service, directory, batch["batch_id"])
            assert len(directory.calls("delete_batch")) == 2

    def test_creates_that_outlive_the_service_are_deleted_at_its_next_start(
        self, directory: Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("runner.GRACE_SECONDS", 0.05)
        directory.settings(create_seconds=2.5)
        settings = {"database_url": sqlite_url(tmp_path), "directory_delay_seconds": 4}
        with LocalService(directory, **settings) as service:
            batch_id = service.started(CSV)
            directory.wait_until_called("create", ROWS)
            answered(service.roll_back(batch_id, AT_ONCE), 202)
        assert directory.calls("delete_batch") == []
        with LocalService(directory, **settings) as service:
            assert service.ended(batch_id)["status"] == "rolled_back"
        assert {call["status"] for call in directory.calls("create")} == {None}
        assert directory.hospitals(batch_id) == []
        assert creates(directory) == ROWS

    def test_while_it_waits_for_a_sleeping_directory(self, service: LocalService, directory: Directory) -> None:
        directory.faults([{"kind": "sleep", "call": "root", "seconds": 2.5}])
        batch_id = service.started(CSV)
        directory.wait_until_called("root")
        rolled_back(service, directory, batch_id)
        assert creates(directory) == 0

    def test_while_an_unknown_outcome_is_waited_out(self, directory: Directory) -> None:
        directory.faults([{"kind": "drop", "call": "create", "when": "after"}])
        with LocalService(directory, directory_delay_seconds=2.5) as service:
            batch_id = service.started(CSV)
            service.when(batch_id, lambda batch: batch["waiting_for"] == "delay")
            rolled_back(service, directory, batch_id)
        assert directory.calls("activate") == []

    def test_while_it_is_activated(self, service: LocalService, directory: Directory) -> None:
        directory.settings(read_seconds=0.2)
        batch_id = service.started(CSV)
        directory.wait_until_called("activate")
        rolled_back(service, directory, batch_id)
        assert creates(directory) == ROWS

    @pytest.mark.parametrize("moment", range(0, 18, 3))
    def test_at_any_moment(self, service: LocalService, directory: Directory, moment: int) -> None:
        batch_id = service.started(CSV)
        time.sleep(moment / 100)
        batch = rolled_back(service, directory, batch_id)
        assert creates(directory) <= ROWS
        assert len(directory.calls("activate")) <= 1
        created = {call["status"] for call in directory.calls("create")}
        assert created <= {200}
        assert sum(row["status"] == "deleted" for row in batch["hospitals"]) == creates(directory)

    def test_the_uploader_who_waits_is_told(self, service: LocalService, directory: Directory) -> None:
        directory.settings(create_seconds=2.5)
        with ThreadPoolExecutor(1) as pool:
            uploading = pool.submit(service.upload, CSV)
            directory.wait_until_called("create", ROWS)
            [batch] = service.call("GET", "/batches").get_json()
            after = rolled_back(service, directory, batch["batch_id"])
            assert answered(uploading.result()) == after


class TestSaidAgainAndAtOnce:
    def test_again_it_answers_the_same_and_calls_nobody(self, service: LocalService, directory: Directory) -> None:
        batch = left(service, directory, REJECT_TWO)
        first = rolled_back(service, directory, batch["batch_id"])
        directory.forget_calls()
        assert answered(service.roll_back(batch["batch_id"])) == first
        assert directory.calls() == []

    def test_ten_at_once_are_one(self, service: LocalService, directory: Directory) -> None:
        batch = left(service, directory, [], "completed")
        directory.settings(read_seconds=0.2)
        answers = [answered(answer) for answer in at_once(10, lambda: service.roll_back(batch["batch_id"]))]
        assert all(answer == answers[0] for answer in answers)
        assert answers[0]["status"] == "rolled_back"
        assert len(directory.calls("delete_batch")) == 1

    def test_ten_at_once_while_it_runs_are_one(self, service: LocalService, directory: Directory) -> None:
        directory.settings(create_seconds=0.3)
        batch_id = service.started(CSV)
        answers = [answered(answer) for answer in at_once(10, lambda: service.roll_back(batch_id))]
        assert {answer["status"] for answer in answers} == {"rolled_back"}
        assert len(directory.calls("delete_batch")) == 1

    @pytest.mark.parametrize("repeat", range(4))
    def test_against_a_resume_the_roll_back_wins(
        self, service: LocalService, directory: Directory, repeat: int
    ) -> None:
        batch_id = left(service, directory, REJECT_TWO)["batch_id"]
        both: list[Callable[[str], TestResponse]] = [service.resume, service.roll_back] * 3

        def call() -> TestResponse:
            return both.pop()(batch_id)

        answers = at_once(6, call)
        assert {answer.status_code for answer in answers} <= {200, 409}
        assert service.ended(batch_id)["status"] == "rolled_back"
        assert directory.hospitals(batch_id) == []
        for answer in answers:
            if answer.status_code == 200:
                assert answered(answer)["status"] == "rolled_back"

    def test_no_batch_cannot_be_rolled_back(self, service: LocalService) -> None:
        problem(service.roll_back("none"), 404, "There is no batch none")
        problem(service.call("POST", "/batches/none/rollback"), 404, "There is no batch none")

    def test_too_many_batches_leave_it_as_it_was(self, directory: Directory) -> None:
        with LocalService(directory, max_running_batches=1) as service:
            batch = left(service, directory, REJECT_TWO)
            directory.settings(create_seconds=2)
            other = service.started(csv_of(1, "Other"))
            answer = service.roll_back(batch["batch_id"])
            problem(answer, 503, "Too many batches")
            assert int(answer.headers["Retry-After"]) > 0
            assert service.batch(batch["batch_id"]) == batch
            assert answered(service.roll_back(other))["status"] == "rolled_back"
            rolled_back(service, directory, batch["batch_id"])


class TestTheAnswer:
    def test_the_history_stays(self, service: LocalService, directory: Directory) -> None:
        batch = left(service, directory, [], "completed")
        after = rolled_back(service, directory, batch["batch_id"])
        listed = service.call("GET", "/batches?status=rolled_back").get_json()
        assert [it["batch_id"] for it in listed] == [batch["batch_id"]]
        assert after["created_at"] == batch["created_at"]
        assert after["completed_at"] > batch["completed_at"]
        assert after["processing_time_seconds"] > batch["processing_time_seconds"]
        assert after["processed_hospitals"] == 0
        assert service.results(batch["batch_id"]).count(b",deleted,") == ROWS

    def test_the_same_file_may_be_uploaded_again(self, service: LocalService, directory: Directory) -> None:
        first = left(service, directory, [], "completed")
        rolled_back(service, directory, first["batch_id"])
        assert answered(service.upload(CSV, path="/hospitals/bulk/validate"))["warnings"] == []
        assert_exactly_once(directory, answered(service.upload(CSV)))

    @pytest.mark.parametrize(
        ("prefer", "status", "applied"),
        [
            ("respond-async", 202, "respond-async"),
            ("wait=0", 202, "wait=0"),
            ("wait=30", 200, "wait=30"),
            ("respond-async, wait=30", 200, "respond-async, wait=30"),
        ],
    )
    def test_the_caller_says_how_long_to_wait(
        self, service: LocalService, directory: Directory, prefer: str, status: int, applied: str
    ) -> None:
        batch = left(service, directory, [], "completed")
        directory.settings(read_seconds=0.1 if status == 200 else 1.5)
        answer = service.roll_back(batch["batch_id"], {"Prefer": prefer})
        told = answered(answer, status)
        assert answer.headers["Preference-Applied"] == applied
        assert (told["status"], told["completed_at"] is None) == (
            ("processing", True) if status == 202 else ("rolled_back", False)
        )
        assert answer.headers.get("Location") == (f"/batches/{batch['batch_id']}" if status == 202 else None)
        assert told["batch_activated"] is False
        assert service.ended(batch["batch_id"])["status"] == "rolled_back"

    def test_a_failure_that_nobody_waits_for_is_found_at_the_batch(
        self, service: LocalService, directory: Directory
    ) -> None:
        batch = left(service, directory, [], "completed")
        directory.faults([{"kind": "error", "call": "delete_batch", "times": None}])
        answered(service.roll_back(batch["batch_id"], AT_ONCE), 202)
        after = service.ended(batch["batch_id"])
        assert after["status"] == "interrupted"
        assert "roll it back again" in after["error_message"]

    @pytest.mark.parametrize(("method", "path"), [("POST", "/rollback"), ("DELETE", "")])
    def test_a_browser_is_sent_to_the_page_at_once(
        self, service: LocalService, directory: Directory, method: str, path: str
    ) -> None:
        batch = left(service, directory, [], "completed")
        directory.settings(read_seconds=1.5)
        answer = service.call(method, f"/batches/{batch['batch_id']}{path}", BROWSER)
        assert answer.status_code == 303
        assert answer.headers["Location"] == f"/batches/{batch['batch_id']}"
        assert service.batch(batch["batch_id"])["status"] == "processing"
        assert service.ended(batch["batch_id"])["status"] == "rolled_back"

    def test_the_form_s_address_is_good_for_programs_too(self, service: LocalService, directory: Directory) -> None:
        batch = left(service, directory, [], "completed")
        answer = service.call("POST", f"/batches/{batch['batch_id']}/rollback")
        assert answered(answer)["status"] == "rolled_back"


class TestARealService:
    def test_a_roll_back_that_the_end_of_the_service_broke_off_goes_on_at_its_start(
        self, directory: Directory, tmp_path: Path
    ) -> None:
        with RunningService(directory.url, database_url=sqlite_url(tmp_path)) as service:
            batch = service.upload(CSV).json()
            assert_exactly_once(directory, batch)
            directory.faults([{"kind": "rate_limit", "call": "delete_batch", "retry_after": 100, "times": None}])
            directory.forget_calls()
            path = f"/batches/{batch['batch_id']}"
            assert requests.delete(service.url + path, headers=AT_ONCE, timeout=60).status_code == 202
            directory.wait_until_called("delete_batch")
            assert service.stop() == 0
        directory.faults([])
        with RunningService(directory.url, database_url=sqlite_url(tmp_path)) as service:
            status = wait_for(lambda: service.get(path).json()["status"], lambda it: it != "processing")
            assert status == "rolled_back"
        assert directory.hospitals() == []
