"""A service that is killed or stopped at whatever moment: what ran goes on at the next start, and ends as it should."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from tempfile import mkdtemp
from typing import Any

import pytest
import requests

from tests.directory import Directory
from tests.hospitals import assert_exactly_once, csv_of
from tests.metrics import samples
from tests.patience import PATIENCE, wait_for
from tests.running import RunningService, is_gone
from tests.uploads import creates

Rule = dict[str, Any]
Begin = Callable[[RunningService, Directory, str], str]
Journal = list[dict[str, Any]]

ROWS = 6
# A create that takes so long is still under way in the directory when the next service has started.
SLOW_CREATE = 4.0
DELAY = 5.0
# The service lets creates in flight go on for 10 s after it was told to stop; what need not wait ends well before.
GRACE = 10.0
AT_ONCE = 9.5
# Stories wait far more than they work, so some run side by side, each over a directory of its own.
SIDE_BY_SIDE = 5

ASYNC = {"Prefer": "respond-async"}

# A test may have to wait until all that is told has come to its end.
pytestmark = pytest.mark.timeout(300)


def begin_upload(service: RunningService, directory: Directory, name: str) -> str:
    return str(service.upload(csv_of(ROWS, name), {**ASYNC, **key(name)}).json()["batch_id"])


def begin_resume(service: RunningService, directory: Directory, name: str) -> str:
    directory.faults([{"kind": "error", "status": 422, "call": "create"}])
    failed = service.upload(csv_of(ROWS, name)).json()
    assert (failed["status"], failed["failed_hospitals"]) == ("failed", 1)
    directory.settings(create_seconds=SLOW_CREATE)
    requests.post(
        f"{service.url}/batches/{failed['batch_id']}/resume", headers=ASYNC, timeout=PATIENCE
    ).raise_for_status()
    return str(failed["batch_id"])


def begin_roll_back_while_running(service: RunningService, directory: Directory, name: str) -> str:
    batch_id = begin_upload(service, directory, name)
    wait_for(lambda: creates(directory, batch_id) == ROWS)
    roll_back(service, batch_id)
    return batch_id


def begin_roll_back(when: str) -> Begin:
    def begin(service: RunningService, directory: Directory, name: str) -> str:
        batch_id = str(service.upload(csv_of(ROWS, name)).json()["batch_id"])
        directory.faults([{"kind": "hang", "call": "delete_batch", "when": when}])
        roll_back(service, batch_id)
        return batch_id

    return begin


def roll_back(service: RunningService, batch_id: str) -> None:
    requests.delete(f"{service.url}/batches/{batch_id}", headers=ASYNC, timeout=PATIENCE).raise_for_status()


def key(name: str) -> dict[str, str]:
    return {"Idempotency-Key": name}


@dataclass(frozen=True)
class Stage:
    """Where a batch is when its service ends, and what must come of it.

    It is there when it says that it waits for `waiting_for`, or when so many calls of a kind have come to the
    directory. `creates` and `activations` are how many there are in the end, of both services together.
    """

    begin: Begin = begin_upload
    waiting_for: str | None = None
    calls: tuple[str, int] | None = None
    rules: tuple[Rule, ...] = ()
    create_seconds: float = 0.05
    status: str = "completed"
    creates: int | None = ROWS
    activations: int = 1


CREATING = Stage(calls=("create", ROWS), create_seconds=SLOW_CREATE)
RESUMING = Stage(begin_resume, calls=("create", ROWS + 1), creates=ROWS + 1)
LIMITED = Stage(waiting_for="rate_limit")
HELD = Stage(
    waiting_for="rate_limit",
    rules=({"kind": "rate_limit", "call": "create", "retry_after": 100, "skip": 2, "times": None},),
    creates=None,  # it depends on how many had left when the first was refused
)
AWAY = Stage(waiting_for="directory", rules=({"kind": "refuse", "seconds": 5, "call": "list"},))
RESTARTING = Stage(
    waiting_for="directory", rules=({"kind": "restart", "seconds": 5, "call": "list"},), creates=2 * ROWS
)
WAITING = Stage(waiting_for="delay", rules=({"kind": "drop", "call": "create", "when": "after", "times": 2},))
LISTING = Stage(calls=("list", 1), rules=({"kind": "hang", "call": "list"},))
WAKING = Stage(waiting_for="wake", rules=({"kind": "sleep", "call": "root", "seconds": 100, "status": 503},))
WAKING_SILENTLY = Stage(calls=("root", 1), rules=({"kind": "sleep", "call": "root", "seconds": 100},))
ROLLING_BACK = Stage(begin_roll_back("before"), calls=("delete_batch", 1), status="rolled_back")
ROLLING_BACK_DONE = Stage(begin_roll_back("after"), calls=("delete_batch", 1), status="rolled_back")
ROLLING_BACK_LATER = Stage(begin_roll_back_while_running, calls=("create", ROWS), create_seconds=SLOW_CREATE,
                           status="rolled_back", activations=0)  # fmt: skip

# One service has all of these at once; those that last the shortest come last.
KILLED_TOGETHER = {
    "listing": LISTING,
    "deleting a double": Stage(
        calls=("delete_one", 1),
        rules=(
            {"kind": "error", "status": 429, "call": "create", "when": "after"},
            {"kind": "hang", "call": "delete_one"},
        ),
        creates=ROWS + 1,
    ),
    "an activation that is not done": Stage(
        calls=("activate", 1), rules=({"kind": "hang", "call": "activate"},), activations=2
    ),
    "an activation that is done": Stage(
        calls=("activate", 1), rules=({"kind": "hang", "call": "activate", "when": "after"},)
    ),
    "a roll back that is not done": ROLLING_BACK,
    "a roll back that is done": ROLLING_BACK_DONE,
    "waiting out an unknown outcome": WAITING,
    "a roll back that waits for creates": ROLLING_BACK_LATER,
    "an activation that is done late": Stage(
        calls=("activate", 1), rules=({"kind": "late", "call": "activate", "seconds": SLOW_CREATE, "status": None},)
    ),
    "the creates of a resume": RESUMING,
    "its creates": CREATING,
}
STOPPED_TOGETHER = {
    "waiting out an unknown outcome": WAITING,
    "a roll back that waits for creates": ROLLING_BACK_LATER,
    "its creates": CREATING,
}


class Life:
    """One life of a service, and the ways to end it."""

    def __init__(self, service: RunningService) -> None:
        self.service = service
        self.worker = int(re.findall(r"Booting worker with pid: (\d+)", service.output)[-1])

    def kill(self) -> None:
        """kill -9 of all of it, at once."""
        self.service.process.kill()
        self.kill_worker()
        self.service.process.wait()

    def kill_worker(self) -> None:
        os.kill(self.worker, signal.SIGKILL)
        wait_for(lambda: is_gone(self.worker))

    def kill_master(self) -> None:
        self.service.process.kill()
        self.service.process.wait()
        try:
            wait_for(lambda: is_gone(self.worker), bool, GRACE + AT_ONCE)
        finally:
            if not is_gone(self.worker):
                os.kill(self.worker, signal.SIGKILL)

    def terminate(self) -> None:
        self.service.process.terminate()

    def press_ctrl_c(self) -> None:
        """As a terminal does it: the signal goes to every process in the foreground."""
        self.service.process.send_signal(signal.SIGINT)
        os.kill(self.worker, signal.SIGINT)


@dataclass(frozen=True)
class Story:
    """Batches, each at its stage, and how their service ends; `service` are settings of it."""

    end: Callable[[Life], None]
    stages: dict[str, Stage]
    service: dict[str, Any] = field(default_factory=dict)

    @property
    def waited_for(self) -> list[str]:
        """The batches for which callers wait: all that were just uploaded, when the service is told to stop."""
        told = self.end in (Life.terminate, Life.press_ctrl_c)
        return [name for name, stage in self.stages.items() if told and stage.begin is begin_upload]


OWN_LIMIT = {"directory_create_limit": "4/3"}
STORIES = {
    # The longest first, so that they are not what is waited for at the end.
    "stopped, unanswered": Story(
        Life.terminate,
        {"listing": LISTING, "its creates": Stage(calls=("create", ROWS), create_seconds=GRACE + 3)},
    ),
    "stopped, unanswered and asleep": Story(Life.terminate, {"waking": WAKING_SILENTLY}),
    "killed": Story(Life.kill, KILLED_TOGETHER),
    "killed, asleep": Story(Life.kill, {"waking": WAKING_SILENTLY}),
    "killed, limited": Story(Life.kill, {"at its own limit": LIMITED}, OWN_LIMIT),
    "killed, held": Story(Life.kill, {"held by the directory": HELD}),
    # It forgets every row that was created before.
    "killed, away": Story(Life.kill, {"while the directory restarts": RESTARTING}),
    "worker killed": Story(Life.kill_worker, {"a roll back": ROLLING_BACK, "its creates": CREATING}),
    "master killed": Story(Life.kill_master, {"at its own limit": LIMITED}, OWN_LIMIT),
    "SIGTERM": Story(Life.terminate, STOPPED_TOGETHER),
    "SIGTERM, asleep": Story(Life.terminate, {"waking": WAKING}),
    "SIGTERM, limited": Story(Life.terminate, {"at its own limit": LIMITED}, OWN_LIMIT),
    "Ctrl-C": Story(Life.press_ctrl_c, STOPPED_TOGETHER),
    "Ctrl-C, away": Story(Life.press_ctrl_c, {"while connections are refused": AWAY}),
    "Ctrl-C, held": Story(Life.press_ctrl_c, {"held by the directory": HELD}),
}


@dataclass(frozen=True)
class BatchOutcome:
    """What became of one batch; `calls` are those that came to the directory for it."""

    batch: dict[str, Any]
    hospitals: list[dict[str, Any]]
    calls: Journal
    answer_to_who_waited: int | None

    def calls_of(self, kind: str, *, after: float = 0.0) -> Journal:
        return [call for call in self.calls if call["kind"] == kind and call["started"] > after]

    def creates_under_way(self, moment: float) -> int:
        """How many creates had come to the directory by a moment and had no answer yet."""
        return sum(call["started"] < moment < (call["ended"] or moment + 1) for call in self.calls_of("create"))


@dataclass(frozen=True)
class Outcome:
    """What became of a story: when and how the service ended (status None: it lives), and each of its batches."""

    ended_at: float
    seconds_to_end: float
    exit_status: int | None
    batches: dict[str, BatchOutcome]


def live_through(story: Story, directory: Directory, folder: Path) -> Outcome:
    """Bring batches to their stages, end the service there, start it again, and tell what becomes of them."""
    settings = {"database_url": f"sqlite:///{folder}/hospitals.db", "directory_delay_seconds": DELAY} | story.service
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(len(story.stages)))
        first = stack.enter_context(RunningService(directory.url, **settings))
        ids = {name: bring_to(stage, first, directory, name) for name, stage in story.stages.items()}
        # The same upload again waits for the batch that the first one made.
        waiting = {name: pool.submit(upload_again, first, name) for name in story.waited_for}
        wait_for(lambda: callers_waiting(first) == len(waiting))
        ended_at = time.time()
        story.end(Life(first))
        last = first
        if story.end is not Life.kill_worker:
            first.process.wait(PATIENCE)
        seconds_to_end = time.time() - ended_at
        exit_status = first.process.poll()
        calm_down(directory)
        if exit_status is not None:
            last = stack.enter_context(RunningService(directory.url, **settings))
        batches = {name: ended(last, batch_id) for name, batch_id in ids.items()}
        answers = {name: answer.result(PATIENCE) for name, answer in waiting.items()}
    calls = directory.calls()
    return Outcome(
        ended_at,
        seconds_to_end,
        exit_status,
        {
            name: BatchOutcome(
                batch,
                directory.hospitals(ids[name]),
                [call for call in calls if call["batch_id"] == ids[name]],
                answers.get(name),
            )
            for name, batch in batches.items()
        },
    )


def bring_to(stage: Stage, service: RunningService, directory: Directory, name: str) -> str:
    directory.settings(create_seconds=stage.create_seconds)
    directory.faults(list(stage.rules))
    batch_id = stage.begin(service, directory, name)
    wait_for(lambda: is_at(stage, service, directory, batch_id))
    return batch_id


def is_at(stage: Stage, service: RunningService, directory: Directory, batch_id: str) -> bool:
    if stage.calls is not None:
        kind, count = stage.calls
        return sum(call["batch_id"] in (batch_id, None) for call in directory.calls(kind)) >= count
    batch = service.get(f"/batches/{batch_id}").json()
    assert batch["completed_at"] is None, f"It ended before: {batch}"
    return bool(batch["waiting_for"] == stage.waiting_for)


def callers_waiting(service: RunningService) -> float:
    return samples(service.get("/metrics").text)["callers_waiting"]


def upload_again(service: RunningService, name: str) -> int:
    return service.upload(csv_of(ROWS, name), key(name)).status_code


def ended(service: RunningService, batch_id: str) -> dict[str, Any]:
    """The batch when it has ended, with nothing asked of the service but how it stands."""
    found: dict[str, Any] = {}

    def has_ended() -> bool:
        with suppress(requests.RequestException):  # a worker that was killed is just being replaced
            found.update(service.get(f"/batches/{batch_id}").json())
        return found.get("completed_at") is not None

    wait_for(has_ended)
    return found


def calm_down(directory: Directory) -> None:
    """End the faults, as soon as the directory listens again."""

    def done() -> bool:
        with suppress(requests.ConnectionError):
            directory.faults([])
            directory.settings(create_seconds=0.05)
            return True
        return False

    wait_for(done)


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Outcome]]]:
    """What comes of the stories that the tests chosen for this run of pytest ask for, all begun at once."""
    asked = {value for item in request.session.items for value in _params(item)}
    free: SimpleQueue[Directory] = SimpleQueue()
    # Made here, once: pytest's folders are not for several threads to make.
    folder = tmp_path_factory.mktemp("stories")
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(SIDE_BY_SIDE))
        for _ in range(SIDE_BY_SIDE):
            free.put(stack.enter_context(Directory()))

        def tell(story: Story) -> Outcome:
            directory = free.get()
            try:
                directory.reset()
                return live_through(story, directory, Path(mkdtemp(dir=folder)))
            finally:
                free.put(directory)

        yield {name: pool.submit(tell, story) for name, story in STORIES.items() if name in asked}


def _params(item: pytest.Item) -> list[str]:
    callspec = getattr(item, "callspec", None)
    return [value for value in callspec.params.values() if isinstance(value, str)] if callspec is not None else []


def batches_of(first_word: str, holds: Callable[[Stage], bool] = lambda stage: True) -> pytest.MarkDecorator:
    """Parametrize with the batches of all stories whose names begin so."""
    found = [
        (name, batch)
        for name, story in STORIES.items()
        for batch, stage in story.stages.items()
        if name.startswith(first_word) and holds(stage)
    ]
    return pytest.mark.parametrize(("name", "batch"), found)


Outcomes = dict[str, Future[Outcome]]
GOOD_ENDS = ("SIGTERM", "Ctrl-C")


@batches_of("")
def test_the_next_start_brings_every_batch_to_its_end(outcomes: Outcomes, name: str, batch: str) -> None:
    stage, outcome = STORIES[name].stages[batch], outcomes[name].result().batches[batch]
    assert outcome.batch["status"] == stage.status, outcome.batch
    if stage.status == "completed":
        rows = outcome.batch["hospitals"]
        assert sorted((it["id"], it["name"]) for it in outcome.hospitals) == sorted(
            (row["hospital_id"], row["name"]) for row in rows
        )
        assert all(hospital["active"] for hospital in outcome.hospitals)
    else:
        assert outcome.hospitals == []


@batches_of("", lambda stage: stage.creates is not None)
def test_no_row_is_created_again_for_a_restart(outcomes: Outcomes, name: str, batch: str) -> None:
    stage, outcome = STORIES[name].stages[batch], outcomes[name].result().batches[batch]
    assert len(outcome.calls_of("create")) == stage.creates
    assert len(outcome.calls_of("activate")) == stage.activations


@batches_of("killed", lambda stage: stage.status == "completed")
def test_what_was_in_flight_at_a_kill_is_waited_out_and_listed_before_anything_is_sent(
    outcomes: Outcomes, name: str, batch: str
) -> None:
    killed_at, outcome = outcomes[name].result().ended_at, outcomes[name].result().batches[batch]
    looked_at = outcome.calls_of("list", after=killed_at)[0]["started"]
    assert looked_at - killed_at > DELAY
    for kind in ("create", "activate", "delete_batch"):
        assert all(call["started"] > looked_at for call in outcome.calls_of(kind, after=killed_at)), kind


@pytest.mark.parametrize("name", ["killed"])
def test_creates_that_end_after_the_kill_are_found_and_not_sent_again(outcomes: Outcomes, name: str) -> None:
    killed_at, outcome = outcomes[name].result().ended_at, outcomes[name].result().batches["its creates"]
    assert outcome.creates_under_way(killed_at) == ROWS
    assert outcome.calls_of("create", after=killed_at) == []


@pytest.mark.parametrize("name", ["worker killed"])
def test_the_service_outlives_its_worker(outcomes: Outcomes, name: str) -> None:
    assert outcomes[name].result().exit_status is None


@pytest.mark.parametrize("name", [name for name in STORIES if name.startswith(GOOD_ENDS)])
def test_a_service_told_to_stop_ends_soon_and_well(outcomes: Outcomes, name: str) -> None:
    outcome = outcomes[name].result()
    assert outcome.exit_status == 0
    assert outcome.seconds_to_end < AT_ONCE


@pytest.mark.parametrize("name", [name for name in STORIES if name.startswith("stopped")])
def test_what_is_unanswered_keeps_a_service_that_was_told_to_stop_for_ten_seconds_only(
    outcomes: Outcomes, name: str
) -> None:
    outcome = outcomes[name].result()
    assert outcome.exit_status == 0
    assert outcome.seconds_to_end < GRACE + AT_ONCE


@pytest.mark.parametrize("name", [name for name, story in STORIES.items() if story.waited_for])
def test_a_caller_who_waits_when_the_service_stops_is_told_that_the_batch_goes_on(
    outcomes: Outcomes, name: str
) -> None:
    batches = outcomes[name].result().batches
    assert {batches[batch].answer_to_who_waited for batch in STORIES[name].waited_for} == {202}


@pytest.mark.parametrize("name", GOOD_ENDS)
def test_a_service_told_to_stop_lets_creates_in_flight_be_answered(outcomes: Outcomes, name: str) -> None:
    stopped_at, outcome = outcomes[name].result().ended_at, outcomes[name].result().batches["its creates"]
    assert outcome.creates_under_way(stopped_at) == ROWS
    assert all(call["status"] == 200 for call in outcome.calls_of("create"))


@batches_of("SIGTERM")
def test_a_service_told_to_stop_sends_no_row_any_more(outcomes: Outcomes, name: str, batch: str) -> None:
    stopped_at, outcome = outcomes[name].result().ended_at, outcomes[name].result().batches[batch]
    # What comes after that is sent by the next service, which waits first.
    # It would send some before that if it did not care; what is on its way when it is told may come a moment later.
    assert all(call["started"] > stopped_at + DELAY for call in outcome.calls_of("create", after=stopped_at + 1))


class Starting(RunningService):
    """A service that is waited for only until its worker has handlers for signals: then it still loads the app."""

    def _wait_for_url(self) -> str:
        wait_for(lambda: "Booting worker" in self.output)
        worker = Life(self).worker
        wait_for(lambda: _has_its_own_handlers(worker))
        return ""


def _has_its_own_handlers(worker: int) -> bool:
    """gunicorn's worker, other than its master, leaves SIGHUP alone."""
    caught = int(re.findall(r"SigCgt:\s(\w+)", Path(f"/proc/{worker}/status").read_text())[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1 and not caught >> (signal.SIGHUP - 1) & 1)


def test_a_service_told_to_stop_while_it_starts_ends_at_once_and_the_next_one_finishes(
    directory: Directory, tmp_path: Path
) -> None:
    settings = {"database_url": f"sqlite:///{tmp_path}/hospitals.db"}
    directory.settings(create_seconds=1.0)
    with RunningService(directory.url, **settings) as first:
        batch_id = begin_upload(first, directory, "Hospital")
        wait_for(lambda: creates(directory, batch_id) == ROWS)
        Life(first).kill()
    starting = Starting(directory.url, **settings, directory_delay_seconds=100)
    told_at = time.monotonic()
    assert starting.stop() == 0
    assert time.monotonic() - told_at < AT_ONCE
    with RunningService(directory.url, **settings) as last:
        assert_exactly_once(directory, ended(last, batch_id))
    assert creates(directory) == ROWS


def test_batches_that_have_ended_are_not_taken_up(directory: Directory, tmp_path: Path) -> None:
    settings = {"database_url": f"sqlite:///{tmp_path}/hospitals.db"}
    with RunningService(directory.url, **settings) as first:
        for _ in range(2):
            last = first.upload(csv_of(2)).json()
        roll_back(first, last["batch_id"])
        assert ended(first, last["batch_id"])["status"] == "rolled_back"
        directory.faults([{"kind": "error", "status": 422, "call": "create"}])
        first.upload(csv_of(2))
        directory.faults([{"kind": "error", "call": "list", "times": None}])
        first.upload(csv_of(2))
        before = first.get("/batches").json()
        Life(first).kill()
    assert [batch["status"] for batch in before] == ["interrupted", "failed", "rolled_back", "completed"]
    directory.faults([])
    held = directory.hospitals()
    directory.forget_calls()
    with RunningService(directory.url, **settings) as second:
        time.sleep(0.5)
        assert second.get("/batches").json() == before
    assert directory.calls() == []
    assert directory.hospitals() == held


def test_a_service_that_keeps_batches_in_memory_forgets_them_and_their_rows_stay_inactive(directory: Directory) -> None:
    directory.settings(create_seconds=SLOW_CREATE)
    with RunningService(directory.url) as first:
        batch_id = begin_upload(first, directory, "Hospital")
        wait_for(lambda: creates(directory, batch_id) == ROWS)
        Life(first).kill()
    with RunningService(directory.url) as second:
        assert second.get(f"/batches/{batch_id}").status_code == 404
        assert second.get("/batches").json() == []
        wait_for(lambda: len(directory.hospitals(batch_id)) == ROWS)
        time.sleep(0.5)
    assert not any(hospital["active"] for hospital in directory.hospitals(batch_id))
    assert creates(directory) == ROWS
