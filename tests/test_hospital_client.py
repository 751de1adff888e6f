"""The directory's calls: what is sent, and what each answer is taken for."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import requests
import responses
from hypothesis import given
from hypothesis import strategies as st

from directory_errors import BatchFull, DirectoryError, NotSent, OutcomeUnknown, RateLimited, Rejected, Stopped
from hospital_client import AWAKE_SECONDS, Answer, Hospital, HospitalClient
from settings import Settings
from tests.fake_time import Pauses

URL = "http://directory.test/api"
BATCH = "6f0c2a52-9d5c-4c7e-8a51-0d1f6c7b9e11"
LISTING = f"{URL}/hospitals/batch/{BATCH}"
SENT = {"name": "Añasco", "address": "1 Main St", "phone": "555-1"}
HOSPITAL = SENT | {"id": 7, "creation_batch_id": BATCH, "active": False, "created_at": "2026-01-02T12:00:00"}
NO_BATCH = {"detail": "No hospitals found with the specified batch ID"}


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    pauses = Pauses()
    monkeypatch.setattr("tenacity.time", SimpleNamespace(monotonic=lambda: pauses.now))
    monkeypatch.setattr("hospital_client.time", SimpleNamespace(monotonic=lambda: pauses.now))
    return pauses


@pytest.fixture
def client(pauses: Pauses) -> HospitalClient:
    return HospitalClient(Settings(hospital_api_base_url=URL), pauses)


@pytest.fixture
def api() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock(assert_all_requests_are_fired=True) as mock:
        yield mock


def create(client: HospitalClient) -> Hospital:
    return client.create(BATCH, "Añasco", "1 Main St", "555-1")


def nothing(_: DirectoryError) -> None:
    """Listen to no trouble."""


class TestCreate:
    def test_a_hospital_is_sent_under_its_batch_and_comes_back(
        self, client: HospitalClient, api: responses.RequestsMock
    ) -> None:
        api.post(f"{URL}/hospitals/", json=HOSPITAL)
        assert create(client) == Hospital(7, "Añasco", "1 Main St", "555-1", active=False)
        request = api.calls[0].request
        assert json.loads(request.body or "") == SENT | {"creation_batch_id": BATCH}
        assert request.headers["Content-Type"] == "application/json"

    def test_a_hospital_without_a_phone_is_sent_with_null(
        self, client: HospitalClient, api: responses.RequestsMock
    ) -> None:
        api.post(f"{URL}/hospitals/", json=HOSPITAL | {"phone": None}, status=201)
        assert client.create(BATCH, "Añasco", "1 Main St", None).phone is None
        assert json.loads(api.calls[0].request.body or "")["phone"] is None

    @pytest.mark.parametrize(
        ("status", "detail", "words"),
        [
            (400, "Something is wrong", "Something is wrong"),
            (400, "The Batch cannot exceed 20 hospitals", "The Batch cannot exceed 20 hospitals"),
            (422, "Batch cannot exceed 20 hospitals", "Batch cannot exceed 20 hospitals"),
            (422, [{"loc": ["body", "name"], "msg": "String should have at least 1 character"}], None),
            *((status, None, f"The directory answered {status}.") for status in (401, 403, 404, 405, 409, 410, 413)),
        ],
    )
    def test_a_4xx_is_a_rejection_in_the_directorys_own_words(
        self, client: HospitalClient, api: responses.RequestsMock, status: int, detail: object, words: str | None
    ) -> None:
        api.post(f"{URL}/hospitals/", status=status, json={"detail": detail})
        with pytest.raises(Rejected) as error:
            create(client)
        assert type(error.value) is Rejected
        assert str(error.value) == (words or "name: String should have at least 1 character")

    def test_a_full_batch_is_told_apart_with_how_many_it_holds(
        self, client: HospitalClient, api: responses.RequestsMock
    ) -> None:
        api.post(f"{URL}/hospitals/", status=400, json={"detail": "Batch cannot exceed 20 hospitals"})
        with pytest.raises(BatchFull, match=r"^Batch cannot exceed 20 hospitals$") as error:
            create(client)
        assert error.value.cap == 20

    @pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
    def test_a_redirect_is_a_rejection_that_names_the_setting(
        self, client: HospitalClient, api: responses.RequestsMock, status: int
    ) -> None:
        api.post(f"{URL}/hospitals/", status=status, headers={"Location": "http://elsewhere.test/"})
        with pytest.raises(Rejected, match=rf"redirects elsewhere \({status}\): check HOSPITAL_API_BASE_URL"):
            create(client)
        assert len(api.calls) == 1

    @pytest.mark.parametrize(
        ("header", "seconds"),
        [
            *[("7", 7), ("0", None), ("007", 7), ("999999", 999_999)],
            *((none, None) for none in (None, "", "-1", "1.5", "1e3", "soon", "Fri, 02 Jan 2026 12:00:00 GMT")),
        ],
    )
    def test_a_429_is_not_done_and_tells_how_long_to_wait(
        self, client: HospitalClient, api: responses.RequestsMock, header: str | None, seconds: float | None
    ) -> None:
        headers = {} if header is None else {"Retry-After": header}
        api.post(f"{URL}/hospitals/", status=429, headers=headers, json={"error": "Rate limit exceeded"})
        with pytest.raises(RateLimited) as error:
            create(client)
        assert error.value.retry_after == seconds
        assert len(api.calls) == 1

    @pytest.mark.parametrize("status", [408, 500, 501, 502, 503, 504, 520, 599])
    @pytest.mark.parametrize("body", [HOSPITAL, {"detail": "Batch cannot exceed 20 hospitals"}])
    def test_a_408_or_5xx_leaves_it_unknown_whatever_it_says(
        self, client: HospitalClient, api: responses.RequestsMock, status: int, body: object
    ) -> None:
        api.post(f"{URL}/hospitals/", status=status, json=body, headers={"Retry-After": "5"})
        with pytest.raises(OutcomeUnknown, match=f"answered {status}"):
            create(client)
        assert len(api.calls) == 1

    @pytest.mark.parametrize(
        "body",
        [
            "",
            "<html>Welcome</html>",
            "null",
            "[]",
            "{}",
            "[" * 100_000,
            json.dumps(HOSPITAL)[:-1],
            b"\xff\xfe",
            json.dumps([HOSPITAL]),
            *(json.dumps({k: v for k, v in HOSPITAL.items() if k != key}) for key in ("id", "name", "active")),
            *(
                json.dumps(HOSPITAL | wrong)
                for wrong in (
                    {"id": "7"},
                    {"id": None},
                    {"id": 7.0},
                    {"id": True},
                    {"id": 10**30},
                    {"active": None},
                    {"active": 0},
                    {"name": "Anasco"},
                    {"address": "1 Main St "},
                    {"phone": None},
                    {"phone": 5551},
                )
            ),
        ],
    )
    def test_a_200_that_is_not_the_hospital_leaves_it_unknown(
        self, client: HospitalClient, api: responses.RequestsMock, body: str | bytes
    ) -> None:
        api.post(f"{URL}/hospitals/", body=body)
        with pytest.raises(OutcomeUnknown):
            create(client)

    def test_a_204_leaves_it_unknown(self, client: HospitalClient, api: responses.RequestsMock) -> None:
        api.post(f"{URL}/hospitals/", status=204)
        with pytest.raises(OutcomeUnknown):
            create(client)

    def test_an_answer_without_end_leaves_it_unknown(
        self, client: HospitalClient, api: responses.RequestsMock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("hospital_client.MAX_ANSWER_BYTES", 1000)
        api.post(f"{URL}/hospitals/", body=json.dumps(HOSPITAL) + " " * 1000)
        with pytest.raises(OutcomeUnknown, match="too long"):
            create(client)

    @pytest.mark.parametrize(
        "failure", [requests.ConnectTimeout(), requests.exceptions.SSLError(), requests.exceptions.ProxyError()]
    )
    def test_without_a_connection_it_was_not_sent(
        self, client: HospitalClient, api: responses.RequestsMock, failure: Exception
    ) -> None:
        api.post(f"{URL}/hospitals/", body=failure)
        with pytest.raises(NotSent, match="could not be reached"):
            create(client)
        assert len(api.calls) == 1


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"detail": "Hospital not found"}, "Hospital not found"),
        ({"detail": "  spaces  "}, "spaces"),
        ({"detail": "x" * 1000}, "x" * 300),
        (
            {"detail": [{"loc": ["body", "name"], "msg": "too short"}, {"loc": ["body", "phone"], "msg": "wrong"}]},
            "name: too short; phone: wrong",
        ),
        ({"detail": [{"loc": [], "msg": "too short"}]}, ": too short"),
        ({"detail": [{"loc": "body"}]}, "body: refused"),
        ({"detail": [{}]}, ": refused"),
        ({"detail": ["wrong", 5, None]}, "wrong; 5; None"),
        ({"detail": []}, "The directory answered 400."),
        ({"detail": " "}, "The directory answered 400."),
        ({"detail": {"a": 1}}, "The directory answered 400."),
        ({"error": "no"}, "The directory answered 400."),
        (["detail"], "The directory answered 400."),
        ("detail", "The directory answered 400."),
    ],
)
def test_the_words_of_an_answer_are_its_detail_or_its_status(body: object, words: str) -> None:
    assert Answer(400, json.dumps(body).encode(), {}).words == words


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["detail", "loc", "msg"]) | st.text(), inner),
)


@given(st.dictionaries(st.just("detail"), JSON) | JSON)
def test_any_answer_has_words(body: object) -> None:
    words = Answer(422, json.dumps(body).encode(), {}).words
    assert 0 < len(words) <= 300


@given(st.binary())
def test_any_bytes_are_json_or_none(body: bytes) -> None:
    assert Answer(200, body, {}).words


class TestList:
    def test_the_hospitals_of_the_batch_are_listed(self, client: HospitalClient, api: responses.RequestsMock) -> None:
        api.get(LISTING, json=[HOSPITAL, HOSPITAL | {"id": 8, "phone": None, "active": True}])
        assert client.list_batch(BATCH) == [
            Hospital(7, "Añasco", "1 Main St", "555-1", active=False),
            Hospital(8, "Añasco", "1 Main St", None, active=True),
        ]

    @pytest.mark.parametrize("answer", [{"json": []}, {"status": 404, "json": NO_BATCH}])
    def test_a_batch_that_the_directory_does_not_know_holds_nothing(
        self, client: HospitalClient, api: responses.RequestsMock, answer: dict[str, Any]
    ) -> None:
        api.get(LISTING, **answer)
        assert client.list_batch(BATCH) == []

    @pytest.mark.parametrize("body", [{"detail": "Not Found"}, {}, None])
    def test_a_404_in_other_words_is_no_empty_batch(
        self, client: HospitalClient, api: responses.RequestsMock, body: object
    ) -> None:
        api.get(LISTING, status=404, json=body)
        with pytest.raises(Rejected):
            client.list_batch(BATCH)
        assert len(api.calls) == 1

    @pytest.mark.parametrize(
        "answer",
        [
            {"status": 500},
            {"status": 408},
            {"json": {"hospitals": []}},
            {"json": [HOSPITAL, {"id": 8}]},
            {"json": [None]},
            {"body": "<html>"},
            {"status": 204},
            {"body": requests.ConnectTimeout()},
            {"status": 429},
        ],
    )
    def test_what_cannot_be_read_is_asked_again(
        self, client: HospitalClient, api: responses.RequestsMock, pauses: Pauses, answer: dict[str, Any]
    ) -> None:
        api.get(LISTING, **answer)
        api.get(LISTING, json=[HOSPITAL])
        assert len(client.list_batch(BATCH)) == 1
        assert pauses.waits == [pytest.approx(5.25, abs=0.25)]

    def test_after_three_unknown_answers_it_is_given_up(
        self, client: HospitalClient, api: responses.RequestsMock
    ) -> None:
        api.get(LISTING, status=500)
        with pytest.raises(OutcomeUnknown, match="answered 500"):
            client.list_batch(BATCH)
        assert len(api.calls) == 3

    def test_a_429_waits_as_long_as_it_says(
        self, client: HospitalClient, api: responses.RequestsMock, pauses: Pauses
    ) -> None:
        api.get(LISTING, status=429, headers={"Retry-After": "42"})
        api.get(LISTING, json=[])
        client.list_batch(BATCH)
        assert pauses.waits == [42]

    def test_a_stop_ends_the_wait(self, client: HospitalClient, api: responses.RequestsMock, pauses: Pauses) -> None:
        api.get(LISTING, status=429)
        pauses.stop_in_wait = 1
        with pytest.raises(Stopped):
            client.list_batch(BATCH)
        assert len(api.calls) == 1


class TestActivate:
    URL = f"{LISTING}/activate"

    def test_it_tells_how_many_it_made_active(self, client: HospitalClient, api: responses.RequestsMock) -> None:
        api.patch(self.URL, json={"activated_count": 20, "message": "done"})
        assert client.activate(BATCH) == 20

    @pytest.mark.parametrize(
        ("answer", "error"),
        [
            ({"status": 500}, OutcomeUnknown),
            ({"status": 408}, OutcomeUnknown),
            ({"json": {"message": "done"}}, OutcomeUnknown),
            ({"json": {"activated_count": "20"}}, OutcomeUnknown),
            ({"json": {"activated_count": True}}, OutcomeUnknown),
            ({"json": [20]}, OutcomeUnknown),
            ({"body": "<html>"}, OutcomeUnknown),
            ({"status": 404, "json": NO_BATCH}, Rejected),
            ({"status": 400, "json": {"detail": "Cannot activate batch: already active"}}, Rejected),
            ({"status": 307}, Rejected),
        ],
    )
    def test_it_is_asked_once_when_it_may_have_been_done_or_is_refused(
        self,
        client: HospitalClient,
        api: responses.RequestsMock,
        answer: dict[str, Any],
        error: type[DirectoryError],
    ) -> None:
        api.patch(self.URL, **answer)
        with pytest.raises(error):
            client.activate(BATCH)
        assert len(api.calls) == 1

    @pytest.mark.parametrize("answer", [{"status": 429}, {"body": requests.ConnectTimeout()}])
    def test_it_is_asked_again_when_it_was_not_let_in(
        self, client: HospitalClient, api: responses.RequestsMock, answer: dict[str, Any]
    ) -> None:
        for _ in range(5):
            api.patch(self.URL, **answer)
        api.patch(self.URL, json={"activated_count": 3})
        assert client.activate(BATCH) == 3


class TestDelete:
    @pytest.mark.parametrize(
        "answer", [{"json": {"deleted_count": 3}}, {"status": 204}, {"status": 404, "json": NO_BATCH}, {"status": 404}]
    )
    def test_a_batch_is_deleted_or_was_not_there(
        self, client: HospitalClient, api: responses.RequestsMock, answer: dict[str, Any]
    ) -> None:
        api.delete(LISTING, **answer)
        client.delete_batch(BATCH)
        assert len(api.calls) == 1

    def test_deleting_a_batch_is_not_said_again_while_it_may_still_take_effect(
        self, client: HospitalClient, api: responses.RequestsMock
    ) -> None:
        api.delete(LISTING, status=500)
        with pytest.raises(OutcomeUnknown):
            client.delete_batch(BATCH)
        assert len(api.calls) == 1

    @pytest.mark.parametrize("answer", [{"status": 429}, {"body": requests.ConnectTimeout()}])
    def test_deleting_a_batch_is_said_again_when_it_was_not_let_in(
        self, client: HospitalClient, api: responses.RequestsMock, answer: dict[str, Any]
    ) -> None:
        api.delete(LISTING, **answer)
        api.delete(LISTING, status=404, json=NO_BATCH)
        client.delete_batch(BATCH)
        assert len(api.calls) == 2

    @pytest.mark.parametrize("status", [204, 200, 404])
    def test_a_hospital_is_deleted_or_was_not_there(
        self, client: HospitalClient, api: responses.RequestsMock, status: int
    ) -> None:
        api.delete(f"{URL}/hospitals/7", status=status)
        client.delete_hospital(7)

    @pytest.mark.parametrize(
        ("status", "error"), [(500, OutcomeUnknown), (429, RateLimited), (422, Rejected), (307, Rejected)]
    )
    def test_deleting_a_hospital_is_said_once(
        self, client: HospitalClient, api: responses.RequestsMock, status: int, error: type[DirectoryError]
    ) -> None:
        api.delete(f"{URL}/hospitals/7", status=status)
        with pytest.raises(error):
            client.delete_hospital(7)
        assert len(api.calls) == 1


class TestWake:
    def test_a_directory_that_has_not_answered_yet_is_asked(
        self, client: HospitalClient, api: responses.RequestsMock
    ) -> None:
        api.get(f"{URL}/", json={"status": "OK"})
        client.wake(nothing)
        assert len(api.calls) == 1

    def test_it_is_not_asked_again_in_the_next_minutes(
        self, client: HospitalClient, api: responses.RequestsMock, pauses: Pauses
    ) -> None:
        api.get(f"{URL}/", json={"status": "OK"})
        client.wake(nothing)
        pauses.now += AWAKE_SECONDS - 1
        client.wake(nothing)
        assert len(api.calls) == 1
        pauses.now += 1
        client.wake(nothing)
        assert len(api.calls) == 2

    def test_any_other_answer_shows_as_well_that_it_is_awake(
        self, client: HospitalClient, api: responses.RequestsMock
    ) -> None:
        api.post(f"{URL}/hospitals/", json=HOSPITAL)
        create(client)
        client.wake(nothing)
        assert len(api.calls) == 1

    def test_a_rate_limit_shows_that_it_is_awake(self, client: HospitalClient, api: responses.RequestsMock) -> None:
        api.get(f"{URL}/", status=429)
        client.wake(nothing)
        assert len(api.calls) == 1

    def test_a_sleeper_is_asked_until_it_answers(self, client: HospitalClient, api: responses.RequestsMock) -> None:
        api.get(f"{URL}/", body=requests.ConnectTimeout())
        for status in (502, 503, 504, 500):
            api.get(f"{URL}/", status=status)
        api.get(f"{URL}/", json={"status": "OK"})
        told: list[DirectoryError] = []
        client.wake(told.append)
        assert [type(error) for error in told] == [NotSent, *[OutcomeUnknown] * 4]

    def test_one_that_does_not_wake_is_given_up(
        self, client: HospitalClient, api: responses.RequestsMock, pauses: Pauses
    ) -> None:
        api.get(f"{URL}/", body=requests.ConnectTimeout())
        with pytest.raises(NotSent):
            client.wake(nothing)
        assert pauses.now >= 180

    @pytest.mark.parametrize("answer", [{"status": 503}, {"body": requests.ConnectTimeout()}])
    def test_one_that_did_not_wake_is_asked_again_the_next_time(
        self, client: HospitalClient, api: responses.RequestsMock, pauses: Pauses, answer: dict[str, Any]
    ) -> None:
        api.get(f"{URL}/", **answer)
        with pytest.raises(DirectoryError):
            client.wake(nothing)
        calls = len(api.calls)
        pauses.now += 1
        with pytest.raises(DirectoryError):
            client.wake(nothing)
        assert len(api.calls) > calls

    def test_a_stop_ends_the_waiting(self, client: HospitalClient, api: responses.RequestsMock, pauses: Pauses) -> None:
        api.get(f"{URL}/", status=503)
        pauses.stop_in_wait = 2
        with pytest.raises(Stopped):
            client.wake(nothing)
        assert len(api.calls) == 2

    @pytest.mark.parametrize("failure", [None, NotSent("away")])
    def test_those_who_ask_together_share_one_call_and_its_outcome(
        self, client: HospitalClient, monkeypatch: pytest.MonkeyPatch, pauses: Pauses, failure: DirectoryError | None
    ) -> None:
        all_asked = threading.Event()
        knocks = []
        clock_readings = []

        def monotonic() -> float:
            clock_readings.append(1)
            if len(clock_readings) >= 6:
                all_asked.set()
            return pauses.now

        def knock() -> None:
            knocks.append(1)
            assert all_asked.wait(60)
            pauses.now += 200
            client._answered_at = None if failure else pauses.now
            if failure:
                raise failure

        monkeypatch.setattr("hospital_client.time", SimpleNamespace(monotonic=monotonic))
        monkeypatch.setattr(client, "knock", knock)
        with ThreadPoolExecutor(6) as pool:
            outcomes = [pool.submit(client.wake, nothing) for _ in range(6)]
            assert {outcome.exception(5) for outcome in outcomes} == {failure}
        assert len(knocks) == 1


class TestKnock:
    @pytest.mark.parametrize("status", [200, 204, 404, 429, 301])
    def test_a_directory_that_answers_is_there(
        self, client: HospitalClient, api: responses.RequestsMock, status: int
    ) -> None:
        api.get(f"{URL}/", status=status)
        client.knock()

    @pytest.mark.parametrize(
        ("answer", "error"),
        [
            ({"status": 500}, OutcomeUnknown),
            ({"status": 503}, OutcomeUnknown),
            ({"body": requests.ConnectTimeout()}, NotSent),
        ],
    )
    def test_one_that_is_not_ready_is_not(
        self,
        client: HospitalClient,
        api: responses.RequestsMock,
        answer: dict[str, Any],
        error: type[DirectoryError],
    ) -> None:
        api.get(f"{URL}/", **answer)
        with pytest.raises(error):
            client.knock()
        assert len(api.calls) == 1

    @pytest.mark.parametrize(
        ("call", "seconds"),
        [(lambda client: client.knock(), 90), (create, 4), (lambda client: client.list_batch(BATCH), 4)],
    )
    def test_it_waits_as_long_as_a_sleeper_needs_whatever_the_timeout_of_other_calls(
        self,
        pauses: Pauses,
        monkeypatch: pytest.MonkeyPatch,
        call: Callable[[HospitalClient], object],
        seconds: float,
    ) -> None:
        client = HospitalClient(Settings(hospital_api_base_url=URL, directory_timeout_seconds=4), pauses)
        asked: list[Any] = []

        def send(*_: object, timeout: object, **__: object) -> None:
            asked.append(timeout)
            raise requests.exceptions.InvalidHeader

        monkeypatch.setattr(client._session, "send", send)
        with pytest.raises(DirectoryError):
            call(client)
        assert asked[0] == (min(10, seconds), seconds)
