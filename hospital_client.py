"""The Hospital Directory's API over requests: each outcome of a call is told apart by type.

What the calls answer, and what each outcome of a create means, is as the deployed directory was found to behave.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPMethod, HTTPStatus
from typing import Any

import requests
from urllib3.exceptions import HTTPError, ReadTimeoutError

from directory_errors import BatchFull, DirectoryError, NotSent, OutcomeUnknown, RateLimited, Rejected
from metrics import timed_create
from retries import Retries, Tell
from settings import Settings
from transport import Call, DirectoryAdapter

CONNECT_SECONDS = 10.0
# A directory that sleeps took 23 to 28 s to wake, and up to 50 s by its host's own word.
WAKE_SECONDS = 90.0
# Its host puts it to sleep after a quarter of an hour; one that answered within this time is awake.
AWAKE_SECONDS = 300.0
# A batch of 20 is listed in 5 kB; what is larger than this is no answer of the directory.
MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_WORDS = 300
# What a database can keep.
MAX_ID = 2**63 - 1


# Returns when something may be sent, and raises when it may not.
Fence = Callable[[], None]


def no_fence() -> None:
    """Let everything pass."""


@dataclass(frozen=True, slots=True)
class Hospital:
    """A hospital as the directory tells it."""

    id: int
    name: str
    address: str
    phone: str | None
    active: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the directory, read to its end."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    def json(self) -> Any:
        """The body as JSON, None when it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    @property
    def words(self) -> str:
        """What the directory said, for the user: FastAPI's `detail`, or else the status."""
        body = self.json()
        detail = body.get("detail") if isinstance(body, dict) else None
        if isinstance(detail, list):
            detail = "; ".join(_words_of_field(error) for error in detail)
        if not isinstance(detail, str) or not detail.strip():
            return f"The directory answered {self.status}."
        return detail.strip()[:MAX_WORDS]


class HospitalClient:
    """The calls of the directory that a batch needs; every method may be called from any thread.

    Every call takes at most `DIRECTORY_TIMEOUT_SECONDS` once there is a connection, a body that drips included; to wake
    the directory, 90 s a try. `stopping` ends the waits between two tries with `Stopped`. Calls raise the types of
    `directory_errors`.
    """

    def __init__(self, settings: Settings, stopping: threading.Event) -> None:
        self._timeout = settings.directory_timeout_seconds
        self._retries = Retries(settings.directory_retry_seconds, settings.directory_attempts, stopping)
        self._answered_at: float | None = None
        self._not_awake: tuple[float, DirectoryError] | None = None
        self._waking = threading.Lock()
        # One connection for every create, every batch and the knock that can be under way at once.
        self._adapter = DirectoryAdapter(settings.max_concurrent_creates + settings.max_running_batches + 1)
        self._session = _open_session(settings.hospital_api_base_url, self._adapter)
        self._template = self._session.prepare_request(requests.Request("GET", settings.hospital_api_base_url))
        self._base_url = str(self._template.url).rstrip("/")

    @timed_create()
    def create(self, batch_id: str, name: str, address: str, phone: str | None) -> Hospital:
        """Create one hospital, inactive, under `batch_id`: one try, since a second one could make a double.

        Raises `NotSent` or `RateLimited` (not done), `Rejected` or `BatchFull` (never), `OutcomeUnknown`.
        """
        fields = {"name": name, "address": address, "phone": phone, "creation_batch_id": batch_id}
        answer = self._call(HTTPMethod.POST, "/hospitals/", fields)
        full = re.match(r"Batch cannot exceed (\d{1,9})", answer.words)
        if answer.status == HTTPStatus.BAD_REQUEST and full:
            raise BatchFull(answer.words, cap=int(full[1]))
        hospital = _hospital(_done(answer).json())
        if hospital is None or (hospital.name, hospital.address, hospital.phone) != (name, address, phone):
            raise OutcomeUnknown("The directory did not answer with the hospital that was sent.")
        return hospital

    def list_batch(self, batch_id: str, tell: Tell | None = None) -> list[Hospital]:
        """The hospitals that the directory holds under `batch_id`: none when it knows no such batch.

        `tell` hears, here and below, what went wrong before each wait.
        """
        return self._retries.until_answered(lambda: self._list_batch(batch_id), tell)

    def activate(self, batch_id: str, tell: Tell | None = None, fence: Fence = no_fence) -> int:
        """Activate the batch and return how many hospitals that made active; repeated only while it was not let in.

        `fence` is passed before every try. Raises `Rejected`, also when a hospital of the batch is active already, or
        `OutcomeUnknown`.
        """

        def once() -> int:
            fence()
            return self._activate(batch_id)

        return self._retries.until_let_in(once, tell)

    def delete_batch(self, batch_id: str, tell: Tell | None = None, fence: Fence = no_fence) -> None:
        """Delete every hospital of the batch; that there is none is as good. `fence` is passed before every try.

        Repeated only while it was not let in: one that takes effect late would delete what was created since.
        """

        def once() -> None:
            fence()
            self._delete(f"/hospitals/batch/{batch_id}")

        self._retries.until_let_in(once, tell)

    def delete_hospital(self, hospital_id: int) -> None:
        """Delete one hospital, in one try: after a restart of the directory its id may be another hospital's."""
        self._delete(f"/hospitals/{hospital_id}")

    @property
    def is_awake(self) -> bool:
        """Whether the directory answered in the last minutes, and so is not asleep."""
        seconds = self.seconds_since_answer
        return seconds is not None and seconds < AWAKE_SECONDS

    @property
    def seconds_since_answer(self) -> float | None:
        """How long ago the directory last answered with anything but a 5xx; None when it never did."""
        return None if self._answered_at is None else time.monotonic() - self._answered_at

    def wake(self, tell: Tell) -> None:
        """Return when the directory is awake, at once when it is known to be.

        Batches that need it at the same time share one call. `tell` hears what went wrong before each wait.
        """
        asked_at = time.monotonic()
        with self._waking:
            if self.is_awake:
                return
            if self._not_awake is not None and self._not_awake[0] > asked_at:
                raise self._not_awake[1]  # found by another batch while this one waited for it
            try:
                self._retries.until_awake(self.knock, tell)
            except DirectoryError as error:
                self._not_awake = (time.monotonic(), error)
                raise

    def knock(self, timeout: float = WAKE_SECONDS) -> None:
        """Ask the directory once whether it is there, by default as patiently as a sleeper needs."""
        answer = self._call(HTTPMethod.GET, "/", timeout=timeout)
        if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise OutcomeUnknown(f"The directory is not ready: it answered {answer.status}.")

    def cut(self) -> None:
        """End every call that is under way, with its outcome unknown."""
        self._adapter.cut()

    def _list_batch(self, batch_id: str) -> list[Hospital]:
        answer = self._call(HTTPMethod.GET, f"/hospitals/batch/{batch_id}")
        if answer.status == HTTPStatus.NOT_FOUND and answer.words.startswith("No hospitals found"):
            return []
        listed = _done(answer).json()
        hospitals = [_hospital(item) for item in listed] if isinstance(listed, list) else [None]
        found = [hospital for hospital in hospitals if hospital is not None]
        if len(found) != len(hospitals):
            raise OutcomeUnknown("The directory's list of the batch could not be read.")
        return found

    def _activate(self, batch_id: str) -> int:
        answer = _done(self._call(HTTPMethod.PATCH, f"/hospitals/batch/{batch_id}/activate"))
        body = answer.json()
        count = body.get("activated_count") if isinstance(body, dict) else None
        if type(count) is not int:
            raise OutcomeUnknown("The directory did not say how many hospitals it activated.")
        return count

    def _delete(self, path: str) -> None:
        answer = self._call(HTTPMethod.DELETE, path)
        if answer.status != HTTPStatus.NOT_FOUND:
            _done(answer)

    def _call(self, method: HTTPMethod, path: str, fields: object = None, timeout: float | None = None) -> Answer:
        timeout = timeout or self._timeout
        with self._adapter.call(timeout) as call:
            try:
                with self._session.send(
                    self._prepare(method, path, fields),
                    timeout=(min(CONNECT_SECONDS, timeout), timeout),
                    allow_redirects=False,
                    stream=True,
                ) as response:
                    body = response.raw.read(MAX_ANSWER_BYTES + 1, decode_content=True)
            except (requests.RequestException, HTTPError, OSError) as error:
                raise _failure(error, call) from error
        if len(body) > MAX_ANSWER_BYTES:
            raise OutcomeUnknown("The directory's answer is too long to be one.")
        if response.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
            self._answered_at = time.monotonic()
        return Answer(response.status_code, body, response.headers)

    def _prepare(self, method: HTTPMethod, path: str, fields: object) -> requests.PreparedRequest:
        # From a template: to prepare each request anew would take a quarter of the time that a create costs here.
        request = self._template.copy()
        request.method, request.url = method.value, self._base_url + path
        if fields is not None:
            request.prepare_body(data=None, files=None, json=fields)
        return request


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """Nowhere: requests reads the address of a redirect, also of one it must not follow, and may choke on it."""


def _open_session(base_url: str, adapter: DirectoryAdapter) -> requests.Session:
    session = _Session()
    # The environment's proxies and certificates are read once; requests would look for them before every call.
    environment = session.merge_environment_settings(base_url, {}, None, None, None)
    session.proxies, session.verify = environment["proxies"], environment["verify"]
    session.trust_env = False
    session.headers["User-Agent"] = "hospital-bulk-upload"
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


def _done(answer: Answer) -> Answer:
    """Pass on an answer of success; raise what any other one means."""
    status = answer.status
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return answer
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        raise RateLimited("The directory's rate limit is reached.", _retry_after(answer.headers))
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        raise Rejected(f"The directory redirects elsewhere ({status}): check HOSPITAL_API_BASE_URL.")
    if status < HTTPStatus.OK or status == HTTPStatus.REQUEST_TIMEOUT or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise OutcomeUnknown(f"The directory answered {status}.")
    raise Rejected(answer.words)


def _failure(error: Exception, call: Call) -> DirectoryError:
    """What it means that no answer came: nothing was done only where not one byte had left."""
    if not call.sent:
        return NotSent("The directory could not be reached.")
    if isinstance(error, (requests.Timeout, ReadTimeoutError, TimeoutError)):
        return OutcomeUnknown("The directory did not answer in time.")
    return OutcomeUnknown("The connection to the directory was lost.")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    text = headers.get("Retry-After", "")
    # Zero would be a loop without a pause.
    return float(text) if re.fullmatch(r"0*[1-9]\d{0,5}", text) else None


def _hospital(item: Any) -> Hospital | None:
    """The hospital in an answer's JSON, None when it is not one."""
    match item:
        case {"id": int(number), "name": str(name), "address": str(address), "active": bool(active)} if (
            type(number) is int and abs(number) <= MAX_ID
        ):
            phone = item.get("phone")
            return Hospital(number, name, address, phone, active) if phone is None or isinstance(phone, str) else None
    return None


def _words_of_field(error: Any) -> str:
    """One entry of FastAPI's 422, as `name: String should have at least 1 character`."""
    if not isinstance(error, dict):
        return str(error)
    place = error.get("loc") or [""]
    return f"{place[-1] if isinstance(place, list) else place}: {error.get('msg', 'refused')}"
