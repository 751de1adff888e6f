"""The rounds of a batch, where others interfere, the directory makes it wait, or a fault comes at a bad moment."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

import pytest
import requests

from batch import Batch, BatchStatus, RowStatus, WaitingFor, utc_now
from directory_errors import NotSent
from hospital_client import HospitalClient
from pacing import Lane, Pacer
from settings import RateLimit, Settings
from tests.directory import Directory
from tests.hospitals import assert_exactly_once, csv_of
from tests.patience import PATIENCE
from tests.running import RunningService
from tests.uploads import Uploads, add_foreign, assert_promise, creates, hospitals

Meddle = Callable[[str], object]
Meddling = Callable[[str, str, Meddle], None]

# What makes a run wait out the delay before it looks: the answer to one create is lost.
LOST_CREATE = {"kind": "drop", "call": "create", "when": "after"}
DOUBLED_CREATE = {"kind": "error", "status": 429, "call": "create", "when": "after"}
# A sleep that the test ends.
FOR_LONG = 3600
# What ends by itself well before this, would last longer if nobody saw to it.
SOON = 8.0


@pytest.fixture
def uploads(directory: Directory) -> Iterator[Uploads]:
    with Uploads(directory) as running:
        yield running


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A directory that lets nothing in is given up within a second instead of three minutes, until this is called."""
    for module in ("pacing", "create_hold", "retries", "rounds"):
        monkeypatch.setattr(f"{module}.PATIENCE_SECONDS", 0.4)
    return monkeypatch.undo


@pytest.fixture
def meddling(monkeypatch: pytest.MonkeyPatch) -> Meddling:
    """Have somebody do something just before the first call of a kind leaves, or just after it has ended.

    The call is a method of the client; what is done is told its first argument.
    """

    def arrange(when: str, name: str, meddle: Meddle) -> None:
        call, first = getattr(HospitalClient, name), threading.Lock()

        def meddled_with(client: HospitalClient, what: str, *more: Any) -> Any:
            is_first = first.acquire(blocking=False)
            if is_first and when == "before":
                meddle(what)
            try:
                return call(client, what, *more)
            finally:
                if is_first and when == "after":
                    meddle(what)

        monkeypatch.setattr(HospitalClient, name, meddled_with)

    return arrange


def failed_rows(batch: Batch) -> dict[int, str | None]:
    return {row.row: row.error_message for row in batch.rows if row.status is RowStatus.FAILED}


def delete(directory: Directory, hospital_id: int) -> None:
    requests.delete(f"{directory.url}/hospitals/{hospital_id}", timeout=PATIENCE).raise_for_status()


def first_of(directory: Directory, batch_id: str) -> dict[str, Any]:
    return directory.hospitals(batch_id)[0]


class TestMeddlers:
    def test_a_stranger_in_the_batch_stops_the_activation_and_is_named(
        self, uploads: Uploads, directory: Directory, meddling: Meddling
    ) -> None:
        directory.faults([LOST_CREATE])
        strangers: list[int] = []
        meddling(
            "before",
            "list_batch",
            lambda batch_id: strangers.append(add_foreign(directory, "Nowhere Clinic", batch_id)),
        )
        batch = uploads.upload()
        assert_promise(directory, batch)
        assert batch.status is BatchStatus.FAILED
        assert f"hospital {strangers[0]} (Nowhere Clinic)" in (batch.error_message or "")
        assert "roll it back" in (batch.error_message or "")
        assert directory.calls("activate") == []
        assert creates(directory, batch.batch_id) == 6 + 1

    def test_a_stranger_that_comes_with_the_activation_is_told_of_truly(
        self, uploads: Uploads, directory: Directory, meddling: Meddling
    ) -> None:
        meddling("before", "activate", lambda batch_id: add_foreign(directory, "Nowhere Clinic", batch_id))
        batch = uploads.upload()
        assert_promise(directory, batch)
        assert batch.status is BatchStatus.INTERRUPTED
        assert "Nowhere Clinic" in (batch.error_message or "")
        assert "was not activated" not in (batch.error_message or ""), "it is active in the directory"

    def test_a_row_that_somebody_renamed_counts_as_a_stranger(
        self, uploads: Uploads, directory: Directory, meddling: Meddling
    ) -> None:
        directory.faults([LOST_CREATE])
        renamed: list[int] = []

        def rename(batch_id: str) -> None:
            renamed.append(first_of(directory, batch_id)["id"])
            body = {"name": "Renamed", "address": "Elsewhere"}
            requests.put(f"{directory.url}/hospitals/{renamed[0]}", json=body, timeout=PATIENCE).raise_for_status()

        meddling("before", "list_batch", rename)
        batch = uploads.upload()
        assert_promise(directory, batch)
        assert batch.status is BatchStatus.FAILED
        assert f"hospital {renamed[0]} (Renamed)" in (batch.error_message or "")
        assert creates(directory) == 6

    def test_a_hospital_like_one_of_ours_is_a_double_and_goes(
        self, uploads: Uploads, directory: Directory, meddling: Meddling
    ) -> None:
        def double(batch_id: str) -> None:
            ours = first_of(directory, batch_id)
            fields = {name: ours[name] for name in ("name", "address", "phone", "creation_batch_id")}
            requests.post(f"{directory.url}/hospitals/", json=fields, timeout=PATIENCE).raise_for_status()

        directory.faults([LOST_CREATE])
        meddling("before", "list_batch", double)
        batch = uploads.upload()
        assert batch.status is BatchStatus.COMPLETED
        assert_promise(directory, batch)
        assert len(directory.calls("delete_one")) == 1

    def test_a_row_that_somebody_deleted_is_created_again(
        self, uploads: Uploads, directory: Directory, meddling: Meddling
    ) -> None:
        directory.faults([LOST_CREATE])
        meddling("before", "list_batch", lambda batch_id: delete(directory, first_of(directory, batch_id)["id"]))
        batch = uploads.upload()
        assert batch.status is BatchStatus.COMPLETED
        assert_promise(directory, batch)
        assert creates(directory) == 6 + 1

    def test_a_row_deleted_after_the_last_look_costs_a_new_beginning(
        self, uploads: Uploads, directory: Directory, meddling: Meddling
    ) -> None:
        meddling("before", "activate", lambda batch_id: delete(directory, first_of(directory, batch_id)["id"]))
        batch = uploads.upload()
        assert batch.status is BatchStatus.COMPLETED
        assert_promise(directory, batch)
        assert creates(directory) == 2 * 6

    @pytest.mark.parametrize("activates_it", [False, True])
    def test_a_batch_deleted_or_activated_by_somebody_after_the_last_look_completes(
        self, uploads: Uploads, directory: Directory, meddling: Meddling, activates_it: bool
    ) -> None:
        def meddle(batch_id: str) -> None:
            path = f"{directory.url}/hospitals/batch/{batch_id}"
            method, path = ("PATCH", f"{path}/activate") if activates_it else ("DELETE", path)
            requests.request(method, path, timeout=PATIENCE).raise_for_status()

        meddling("before", "activate", meddle)
        batch = uploads.upload()
        assert batch.status is BatchStatus.COMPLETED
        assert_promise(directory, batch)
        assert creates(directory) == (6 if activates_it else 2 * 6)

    def test_a_batch_that_somebody_activates_too_early_is_begun_again(
        self, uploads: Uploads, directory: Directory, meddling: Meddling
    ) -> None:
        counts: list[int] = []

        def activate(batch_id: str) -> None:
            answer = requests.patch(f"{directory.url}/hospitals/batch/{batch_id}/activate", timeout=PATIENCE)
            counts.append(answer.json()["activated_count"])

        directory.faults([{"kind": "drop", "call": "create", "when": "before"}])
        meddling("before", "list_batch", activate)
        batch = uploads.upload()
        assert counts == [5]
        assert batch.status is BatchStatus.COMPLETED
        assert_promise(directory, batch)
        assert creates(directory) == 6 + 6


class TestRestarts:
    @pytest.mark.parametrize("doubles", [0, 1])
    def test_hospitals_of_others_that_got_our_ids_survive(
        self, uploads: Uploads, directory: Directory, meddling: Meddling, doubles: int
    ) -> None:
        foreign: list[int] = []

        def settle_there(_: str) -> None:
            directory.wait_until_back()
            foreign.extend(add_foreign(directory, f"Foreign {number}") for number in range(8))

        directory.faults(
            [DOUBLED_CREATE] * doubles + [{"kind": "restart", "call": "delete_one" if doubles else "activate"}]
        )
        meddling("after", "delete_hospital" if doubles else "activate", settle_there)
        batch = uploads.upload()
        assert batch.status is BatchStatus.COMPLETED
        assert_promise(directory, batch)
        assert set(foreign) >= set(range(1, 7))  # ids that were ours before
        assert set(foreign) <= {hospital["id"] for hospital in directory.hospitals()}
        assert creates(directory, batch.batch_id) == 2 * 6 + doubles

    def test_a_restart_between_the_creates_loses_no_row(self, directory: Directory) -> None:
        directory.faults([{"kind": "restart", "call": "create", "skip": 3, "seconds": 0.3}])
        with Uploads(directory, max_concurrent_creates=1) as uploads:
            batch = uploads.upload()
        assert batch.status is BatchStatus.COMPLETED
        assert_promise(directory, batch)
        assert creates(directory) == 6 + 4  # three forgotten and one not done


class TestFullBatches:
    def test_a_row_too_many_fails_with_the_words_of_the_directory(self, directory: Directory) -> None:
        directory.settings(batch_size=5)
        with Uploads(directory, max_concurrent_creates=1) as uploads:
            batch = uploads.upload()
        assert_promise(directory, batch)
        assert batch.status is BatchStatus.FAILED
        assert failed_rows(batch) == {6: "Batch cannot exceed 5 hospitals"}
        assert batch.processed == 5
        assert creates(directory) == 6

    def test_twenty_rows_fill_a_batch_and_complete(self, uploads: Uploads, directory: Directory) -> None:
        batch = uploads.upload(20)
        assert batch.status is BatchStatus.COMPLETED
        assert_promise(directory, batch)
        assert creates(directory) == 20

    def test_a_row_kept_out_by_a_double_is_created_when_that_is_gone(self, directory: Directory) -> None:
        directory.faults([DOUBLED_CREATE])
        with Uploads(directory, max_concurrent_creates=1) as uploads:
            batch = uploads.upload(20)
        assert batch.status is BatchStatus.COMPLETED
        assert_promise(directory, batch)
        assert creates(directory) == 20 + 2  # the double, and the row it kept out

    def test_a_row_refused_by_a_batch_that_holds_it_is_found_there(self, directory: Directory) -> None:
        directory.faults([{**DOUBLED_CREATE, "skip": 19}])
        with Uploads(directory, max_concurrent_creates=1) as uploads:
            batch = uploads.upload(20)
        assert batch.status is BatchStatus.COMPLETED
        assert_promise(directory, batch)
        assert creates(directory) == 20 + 1

    def test_a_stranger_that_fills_the_batch_is_named(self, directory: Directory, meddling: Meddling) -> None:
        directory.settings(batch_size=6)
        strangers: list[int] = []
        meddling(
            "before", "create", lambda batch_id: strangers.append(add_foreign(directory, "Nowhere Clinic", batch_id))
        )
        with Uploads(directory, max_concurrent_creates=1) as uploads:
            batch = uploads.upload()
        assert_promise(directory, batch)
        assert batch.status is BatchStatus.FAILED
        assert f"hospital {strangers[0]} (Nowhere Clinic)" in (batch.error_message or "")


class TestRejections:
    def test_a_rejected_row_fails_in_the_words_of_the_directory_and_the_others_go_on(
        self, directory: Directory
    ) -> None:
        rows = list(hospitals(6))
        rows[1] = replace(rows[1], name="   ")
        with Uploads(directory) as uploads:
            batch = uploads.ended(uploads.runner.start("hospitals.csv", tuple(rows)))
        assert_promise(directory, batch)
        assert batch.status is BatchStatus.FAILED
        assert failed_rows(batch) == {2: "name: Value error, must not be only white space"}
        assert batch.processed == 5
        assert directory.calls("activate") == []
        assert creates(directory) == 6

    @pytest.mark.parametrize("call", ["list", "activate"])
    def test_a_refusal_without_words_still_reads_as_sentences(
        self, uploads: Uploads, directory: Directory, call: str
    ) -> None:
        directory.faults([{"kind": "error", "status": 404, "call": call, "times": None}])
        batch = uploads.upload()
        assert_promise(directory, batch)
        assert "The directory answered 404." in (batch.error_message or "")

    def test_a_wrong_base_url_is_told_in_sentences(self, directory: Directory) -> None:
        with Uploads(directory, hospital_api_base_url=f"{directory.url}/elsewhere") as uploads:
            batch = uploads.upload()
        assert set(failed_rows(batch)) == set(range(1, 7))
        assert not re.search(r"[^.:] Whether", batch.error_message or ""), batch.error_message

    @pytest.mark.parametrize("status", [301, 307])
    def test_a_redirect_whose_address_is_no_address_is_a_redirect_all_the_same(self, status: int) -> None:
        with _Redirecting(status, "http://[elsewhere/") as url, Uploads(url) as uploads:
            batch = uploads.upload()
        assert batch.status is BatchStatus.INTERRUPTED
        assert "check HOSPITAL_API_BASE_URL" in (batch.error_message or ""), batch.error_message


class TestTooManyRequests:
    def test_strangers_that_used_up_the_window_cost_time_and_no_row(
        self, uploads: Uploads, directory: Directory
    ) -> None:
        directory.settings(create_limit="10/3", create_seconds=0)
        for number in range(7):
            add_foreign(directory, f"Foreign {number}")
        batch = uploads.upload()
        assert batch.status is BatchStatus.COMPLETED
        assert_promise(directory, batch)
        refused = [call for call in directory.calls("create") if call["status"] == 429]
        # Three of those sent together, then one at a time after 0.1, 0.2, 0.4, 0.8 and 1.6 s.
        assert 3 <= len(refused) <= 3 + 5

    def test_without_retry_after_one_create_tries_at_doubling_waits(
        self, uploads: Uploads, directory: Directory
    ) -> None:
        directory.faults([{"kind": "rate_limit", "call": "create", "times": 6 + 2}])
        batch = uploads.upload()
        assert batch.status is BatchStatus.COMPLETED
        assert_promise(directory, batch)
        sent = [call["started"] for call in directory.calls("create")]
        assert len(sent) == 6 + 2 + 6
        assert sent[6] - sent[0] >= 0.1
        assert sent[7] - sent[6] >= 0.2
        assert sent[8] - sent[7] >= 0.4
        # The others follow when that one was let in, which its answer tells.
        assert sent[9] - sent[8] >= 0.05

    def test_retry_after_is_waited_for(self, uploads: Uploads, directory: Directory) -> None:
        directory.faults([{"kind": "rate_limit", "call": "create", "times": 6, "retry_after": 3}])
        batch_id = uploads.start()
        waiting = uploads.when_waiting_for(batch_id, WaitingFor.RATE_LIMIT)
        assert 0.2 < (waiting.estimated_seconds(utc_now()) or 0) < 3 + 5  # a create is taken to last 5 s
        batch = uploads.ended(batch_id)
        assert batch.status is BatchStatus.COMPLETED
        sent = [call["started"] for call in directory.calls("create")]
        assert len(sent) == 12
        assert sent[6] - sent[0] >= 3

    @pytest.mark.parametrize("call", ["create", "list"])
    def test_a_retry_after_of_nothing_is_no_leave_to_hammer(
        self, uploads: Uploads, directory: Directory, call: str
    ) -> None:
        directory.faults([{"kind": "rate_limit", "call": call, "times": 40, "retry_after": 0}])
        uploads.start()
        time.sleep(0.7)
        refused = sum(made["status"] == 429 for made in directory.calls(call))
        directory.faults([])
        assert refused < 6 + 8

    @pytest.mark.parametrize("call", ["list", "activate", "delete_one"])
    def test_a_long_limit_on_any_other_call_is_waited_for(self, directory: Directory, call: str) -> None:
        doubling = [DOUBLED_CREATE] if call == "delete_one" else []
        directory.faults([*doubling, {"kind": "rate_limit", "call": call, "times": 4}])
        with Uploads(directory, directory_retry_seconds=0.03) as uploads:
            batch = uploads.upload()
        assert batch.status is BatchStatus.COMPLETED, batch.error_message
        assert_promise(directory, batch)


class TestWaiting:
    @pytest.mark.parametrize("call", ["root", "create", "list", "activate"])
    def test_a_directory_that_refuses_connections_is_waited_for_and_the_batch_says_so(
        self, directory: Directory, call: str
    ) -> None:
        # That creates wait is noticed twice a second.
        directory.faults([{"kind": "refuse", "seconds": 3, "call": call}])
        with Uploads(directory, max_concurrent_creates=2) as uploads:
            batch_id = uploads.start()
            waiting = uploads.when_waiting_for(batch_id, WaitingFor.DIRECTORY)
            assert waiting.estimated_seconds(utc_now()) is not None
            batch = uploads.ended(batch_id)
        assert batch.status is BatchStatus.COMPLETED
        assert_promise(directory, batch)
        assert creates(directory) == (7 if call == "create" else 6)

    @pytest.mark.parametrize("status", [None, 502, 503])
    def test_a_sleeper_is_woken_before_anything_is_sent(
        self, uploads: Uploads, directory: Directory, status: int | None
    ) -> None:
        # A call that waits for the end of the sleep is not woken with the directory.
        directory.faults([{"kind": "sleep", "seconds": FOR_LONG if status else 2, "status": status}])
        batch_id = uploads.start()
        uploads.when(batch_id, lambda batch: batch.waiting_for is WaitingFor.WAKE and bool(directory.calls()))
        time.sleep(0.3)
        assert uploads.store.get(batch_id).waiting_for is WaitingFor.WAKE
        assert (uploads.store.get(batch_id).estimated_seconds(utc_now()) or 0) > 0
        assert creates(directory) == 0
        directory.faults([])
        batch = uploads.ended(batch_id)
        assert batch.status is BatchStatus.COMPLETED
        assert_promise(directory, batch)
        assert creates(directory) == 6

    def test_batches_that_find_it_asleep_wake_it_together(self, uploads: Uploads, directory: Directory) -> None:
        directory.faults([{"kind": "sleep", "seconds": FOR_LONG, "status": 503}])
        ids = [uploads.start(3, "Clinic 1")]
        uploads.when(ids[0], lambda _: bool(directory.calls("root")))
        ids += [uploads.start(3, f"Clinic {number}") for number in (2, 3)]
        uploads.when(ids[2], lambda _: len(directory.calls("root")) >= 3)
        directory.faults([])
        for batch_id in ids:
            batch = uploads.ended(batch_id)
            assert batch.status is BatchStatus.COMPLETED
            assert_promise(directory, batch)
        assert creates(directory) == 9
        calls = directory.calls("root")
        assert [call["status"] for call in calls] == [*[503] * (len(calls) - 1), 200]
        # One after the other with a wait between them, not one for each batch.
        assert all(later["started"] - earlier["started"] > 0.09 for earlier, later in pairwise(calls))

    @pytest.mark.usefixtures("impatient")
    def test_an_answer_of_503_does_not_count_as_awake(self, directory: Directory) -> None:
        directory.faults([{"kind": "sleep", "seconds": FOR_LONG, "status": 503}])
        with Uploads(directory) as uploads:
            assert uploads.upload().status is BatchStatus.INTERRUPTED
            assert uploads.upload().status is BatchStatus.INTERRUPTED
        assert creates(directory) == 0

    def test_the_delay_is_waited_out_once_since_the_last_unknown_outcome(self, directory: Directory) -> None:
        directory.faults([{"kind": "drop", "call": "create", "when": "after", "times": 6}])
        with Uploads(directory, directory_delay_seconds=2) as uploads:
            batch_id = uploads.start()
            waiting = uploads.when_waiting_for(batch_id, WaitingFor.DELAY)
            assert 0 < (waiting.estimated_seconds(utc_now()) or 0) <= 2
            before = waiting.processing_seconds(utc_now())
            time.sleep(0.05)
            assert uploads.store.get(batch_id).processing_seconds(utc_now()) > before
            batch = uploads.ended(batch_id)
        assert batch.status is BatchStatus.COMPLETED
        # Not once for each of the six.
        assert 2 < batch.processing_seconds(utc_now()) < 10
        assert creates(directory) == 6

    def test_a_batch_that_waits_for_nothing_but_its_creates_says_so(
        self, uploads: Uploads, directory: Directory
    ) -> None:
        uploads.upload(1, "Which wakes it")
        # That creates wait is noticed twice a second.
        directory.settings(create_seconds=0.8)
        batch_id = uploads.start()
        while not (batch := uploads.store.get(batch_id)).ended:
            assert batch.waiting_for is None
            time.sleep(0.02)
        assert batch.status is BatchStatus.COMPLETED

    def test_creates_slower_than_the_timeout_are_found_and_not_sent_again(self, directory: Directory) -> None:
        directory.settings(create_seconds=1.5)
        with Uploads(directory, directory_timeout_seconds=1, directory_delay_seconds=2) as uploads:
            batch = uploads.upload()
        assert batch.status is BatchStatus.COMPLETED
        assert_promise(directory, batch)
        assert creates(directory) == 6

    @pytest.mark.parametrize(
        ("rules", "what"),
        [
            ([LOST_CREATE], WaitingFor.DELAY),
            ([{"kind": "rate_limit", "call": "create", "times": None}], WaitingFor.RATE_LIMIT),
            ([{"kind": "sleep", "seconds": FOR_LONG, "status": 503}], WaitingFor.WAKE),
            ([{"kind": "sleep", "seconds": 1.5}], WaitingFor.WAKE),
        ],
    )
    def test_a_stop_ends_every_wait_and_leaves_the_batch_processing(
        self, directory: Directory, rules: list[dict[str, Any]], what: WaitingFor
    ) -> None:
        directory.faults(rules)
        with Uploads(directory, directory_delay_seconds=60, directory_retry_seconds=60) as uploads:
            batch_id = uploads.start()
            uploads.when_waiting_for(batch_id, what)
            started = time.monotonic()
            uploads.runner.stop()
            assert time.monotonic() - started < SOON
            batch = uploads.runner.wait(batch_id, SOON)
        assert batch.status is BatchStatus.PROCESSING
        assert not any(hospital["active"] for hospital in directory.hospitals())

    def test_a_stop_ends_the_wait_for_a_directory_that_is_not_there(self) -> None:
        # Bound and not listening, a port refuses connections and nobody else takes it.
        with socket.socket() as gone:
            gone.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{gone.getsockname()[1]}"
            with Uploads(url, directory_retry_seconds=60) as uploads:
                batch_id = uploads.start()
                uploads.when_waiting_for(batch_id, WaitingFor.DIRECTORY)
                started = time.monotonic()
                uploads.runner.stop()
                assert time.monotonic() - started < SOON
                assert uploads.runner.wait(batch_id, SOON).status is BatchStatus.PROCESSING


class TestGivingUp:
    def test_rows_that_are_never_let_in_fail_and_say_why(
        self, uploads: Uploads, directory: Directory, impatient: Callable[[], None]
    ) -> None:
        directory.faults([{"kind": "rate_limit", "call": "create", "times": None}])
        batch = uploads.upload()
        assert_promise(directory, batch)
        assert batch.status is BatchStatus.FAILED
        assert batch.failed == 6
        assert "rate limit is reached" in (failed_rows(batch)[1] or "")
        directory.faults([])
        impatient()
        again = uploads.resume(batch.batch_id)
        assert again.status is BatchStatus.COMPLETED
        assert_promise(directory, again)

    @pytest.mark.parametrize("call", ["root", "create", "list", "activate"])
    def test_a_directory_that_stays_away_interrupts_the_batch(
        self, directory: Directory, impatient: Callable[[], None], call: str
    ) -> None:
        directory.faults([{"kind": "refuse", "seconds": 2.5, "call": call}])
        with Uploads(directory, max_concurrent_creates=1) as uploads:
            batch = uploads.upload()
            assert batch.status is BatchStatus.INTERRUPTED
            assert "could not be reached" in (batch.error_message or "")
            directory.wait_until_back()
            assert_promise(directory, batch)
            impatient()
            again = uploads.resume(batch.batch_id)
            assert again.status is BatchStatus.COMPLETED
            assert_promise(directory, again)
        assert creates(directory) == (7 if call == "create" else 6)

    @pytest.mark.usefixtures("impatient")
    def test_a_row_that_may_be_there_is_not_told_to_be_not_created(self, directory: Directory) -> None:
        directory.faults([LOST_CREATE, {"kind": "refuse", "seconds": 2.5, "call": "create"}])
        with Uploads(directory, max_concurrent_creates=1) as uploads:
            batch = uploads.upload()
        directory.wait_until_back()
        assert batch.status is BatchStatus.INTERRUPTED
        there = {hospital["name"] for hospital in directory.hospitals()}
        told = [row.name for row in batch.rows if (row.error_message or "").startswith("Not created")]
        assert there.isdisjoint(told)

    @pytest.mark.usefixtures("impatient")
    def test_a_directory_that_never_wakes_is_sent_nothing(self, uploads: Uploads, directory: Directory) -> None:
        directory.faults([{"kind": "error", "status": 503, "call": "root", "times": None}])
        batch = uploads.upload()
        assert batch.status is BatchStatus.INTERRUPTED
        assert "answered 503" in (batch.error_message or "")
        assert creates(directory) == 0

    def test_a_row_given_up_after_all_rounds_says_what_the_directory_answered(
        self, uploads: Uploads, directory: Directory
    ) -> None:
        directory.faults([{"kind": "error", "status": 500, "call": "create", "times": None}])
        batch = uploads.upload(1)
        assert_promise(directory, batch)
        assert batch.status is BatchStatus.FAILED
        assert "answered 500" in (failed_rows(batch)[1] or ""), failed_rows(batch)

    def test_a_knock_that_breaks_does_not_hold_the_creates_for_ever(self) -> None:
        outcomes = iter([NotSent("The directory could not be reached."), None])

        def knock() -> None:
            if problems:
                raise problems.pop()

        def create(_: object) -> None:
            if (refusal := next(outcomes)) is not None:
                raise refusal

        problems = [ValueError("no address")]
        pacer = Pacer(Settings(directory_retry_seconds=0.01), knock)
        lane = Lane(hospitals(1), create, utc_now())
        pacer.add(lane)
        rested = lane.rested.wait(PATIENCE)
        pacer.stop()
        assert rested
        assert not lane.waiting


class TestLateDeletions:
    def test_a_deletion_that_takes_effect_late_does_not_reach_what_was_created_since(
        self, uploads: Uploads, directory: Directory
    ) -> None:
        directory.faults(
            [{"kind": "half_activate"}, {"kind": "late", "call": "delete_batch", "seconds": 0.25, "status": 500}]
        )
        batch = uploads.upload()
        time.sleep(0.3)
        assert batch.status is BatchStatus.COMPLETED
        assert_promise(directory, batch)


class TestSharing:
    def test_a_create_that_was_never_sent_uses_up_no_place_in_the_window(self, directory: Directory) -> None:
        # A place that was used up would be free again after an hour only.
        with Uploads(directory, directory_create_limit=RateLimit(12, 3600)) as uploads:
            assert uploads.upload(6, "First").status is BatchStatus.COMPLETED
            directory.faults([{"kind": "refuse", "seconds": 0.3, "call": "list_all"}])
            with pytest.raises(requests.ConnectionError):
                requests.get(f"{directory.url}/hospitals/", timeout=PATIENCE)
            assert uploads.upload(6, "Second").status is BatchStatus.COMPLETED

    def test_three_batches_of_twenty_keep_to_the_limit_and_use_it(self, directory: Directory) -> None:
        # The directory's own window is shorter, since what is sent may reach it late.
        directory.settings(create_limit="30/2")
        with Uploads(directory, directory_create_limit=RateLimit(30, 4)) as uploads:
            ids = [uploads.start(20, f"Clinic {number}") for number in range(3)]
            waiting = uploads.when_waiting_for(ids[2], WaitingFor.RATE_LIMIT)
            assert 1 < (waiting.estimated_seconds(utc_now()) or 0) < 20
            ended = [uploads.ended(batch_id) for batch_id in ids]
        for batch in ended:
            assert batch.status is BatchStatus.COMPLETED
            assert_promise(directory, batch)
        sent = directory.calls("create")
        assert {call["status"] for call in directory.calls()} == {200}
        assert len(sent) == 60
        # Two windows are enough for all, and the first is enough for a whole batch.
        assert sent[59]["started"] - sent[0]["started"] < 2 * (4 + 1) - 0.5
        assert min(batch.completed_at.timestamp() for batch in ended if batch.completed_at) < sent[30]["started"]

    def test_a_small_batch_passes_a_big_one(self, directory: Directory) -> None:
        directory.settings(create_seconds=0.3)
        with Uploads(directory, max_concurrent_creates=2) as uploads:
            big = uploads.start(20, "Big")
            uploads.when(big, lambda _: creates(directory) > 2)
            small = uploads.start(3, "Small")
            assert uploads.ended(small).status is BatchStatus.COMPLETED
            assert uploads.ended(big).status is BatchStatus.COMPLETED
        order = [call["batch_id"] for call in directory.calls("create")]
        first, last = order.index(small), len(order) - 1 - order[::-1].index(small)
        assert last - first <= 3  # at most one of the big batch came between
        assert order[last:].count(big) > 6

    def test_a_small_batch_has_the_first_tokens_of_the_next_window(self, directory: Directory) -> None:
        with Uploads(directory, directory_create_limit=RateLimit(3, 3)) as uploads:
            big = uploads.start(7, "Big")
            uploads.when_waiting_for(big, WaitingFor.RATE_LIMIT)
            small = uploads.start(3, "Small")
            assert uploads.ended(small).status is BatchStatus.COMPLETED
        calls = directory.calls("create")
        assert [call["batch_id"] for call in calls[:6]] == [big] * 3 + [small] * 3

    def test_faults_of_one_batch_do_not_touch_another(
        self, uploads: Uploads, directory: Directory, meddling: Meddling
    ) -> None:
        def fall_ill(batch_id: str) -> None:
            directory.faults([{"kind": "error", "call": "list", "times": None, "batch_id": batch_id}])

        meddling("before", "create", fall_ill)
        ill = uploads.start(6, "Ill")
        uploads.when(ill, lambda _: bool(directory.calls("create")))
        assert uploads.upload(6, "Well").status is BatchStatus.COMPLETED
        assert uploads.ended(ill).status is BatchStatus.INTERRUPTED


@pytest.fixture(scope="module")
def service(shared_directory: Directory) -> Iterator[RunningService]:
    with RunningService(shared_directory.url) as running:
        yield running


@pytest.mark.parametrize(
    ("rules", "number_of_creates"),
    [
        ([{"kind": "late", "call": "create", "seconds": 0.2, "times": 5}], 20),
        ([{"kind": "hang", "call": "create", "when": "after", "times": 2, "seconds": 0.6}], 20),
        ([{"kind": "restart", "call": "activate", "seconds": 0.2}], 40),
        ([{"kind": "half_activate", "status": 200}], 40),
        ([{"kind": "refuse", "call": "list", "seconds": 0.5}], 20),
        ([{"kind": "sleep", "seconds": 0.3}], 20),
        ([DOUBLED_CREATE, {"kind": "drop", "call": "delete_one", "reset": True}], 21),
    ],
)
def test_a_caller_who_waits_gets_a_completed_batch_whatever_went_wrong(
    service: RunningService, directory: Directory, rules: list[dict[str, Any]], number_of_creates: int
) -> None:
    directory.faults(rules)
    answer = service.upload(csv_of(20))
    assert answer.status_code == 200
    assert_exactly_once(directory, answer.json())
    assert number_of_creates - 1 <= creates(directory) <= number_of_creates


def test_a_caller_who_waits_is_told_row_by_row_what_failed(service: RunningService, directory: Directory) -> None:
    directory.faults([{"kind": "error", "status": 400, "call": "create", "times": 2}])
    batch = service.upload(csv_of(6)).json()
    assert batch["status"] == "failed"
    assert (batch["processed_hospitals"], batch["failed_hospitals"], batch["batch_activated"]) == (4, 2, False)
    assert batch["error_message"].startswith("2 of 6 rows failed, so the batch was not activated")
    assert sum(row["error_message"] == "The directory answered 400." for row in batch["hospitals"]) == 2


class _Redirecting:
    """A server that redirects every call to an address."""

    def __init__(self, status: int, location: str) -> None:
        class Handler(BaseHTTPRequestHandler):
            def _redirect(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(status)
                self.send_header("Location", location)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_POST = do_PATCH = do_DELETE = _redirect  # noqa: N815 - http.server asks for these names

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
