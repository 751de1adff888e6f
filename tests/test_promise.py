"""The promise, whatever comes in whatever order: uploads, faults, resumes, roll backs, restarts and other writers.

The service lives in a process of its own, without its web side, and dies by kill -9.
"""

from __future__ import annotations

import itertools
import multiprocessing
import tempfile
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
import requests
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from batch import Batch, BatchStatus
from runner import Runner
from settings import Settings
from sqlite_store import SqliteStore
from store import TooManyBatchesError, WrongStatusError
from tests.directory import Directory
from tests.patience import wait_for
from tests.uploads import hospitals

Rule = dict[str, Any]
T = TypeVar("T")

# No effect of a call comes later than this after the service has lost sight of it, so the service waits so long.
# The directory may stand still for a while itself, and do then what it was sent.
DELAY = 1.2
LATE = 0.2
CREATE = 0.25
PATIENCE = 100.0
RESUMES = 3
# Machines wait far more than they work, so some run side by side, each in a process and with a directory of its own.
SIDE_BY_SIDE = 6
EXAMPLES = 3
STEPS = 8

SETTINGS: dict[str, Any] = {
    "directory_create_limit": None,
    "directory_delay_seconds": DELAY,
    "directory_retry_seconds": 0.05,
    "directory_timeout_seconds": 1.0,
}
CALLS = ("root", "create", "list", "activate", "delete_one", "delete_batch")
WHEN = ("before", "after")
ANYWHERE: tuple[Rule, ...] = (
    {"kind": "drop"},
    {"kind": "drop", "reset": True},
    {"kind": "drop", "bytes": 170},
    {"kind": "error", "status": 500},
    {"kind": "error", "status": 503},
    {"kind": "error", "status": 408},
    {"kind": "error", "status": 422},
    {"kind": "error", "status": 404},
    {"kind": "hang", "seconds": 1.5},
    {"kind": "drip", "seconds": 0.03},
    {"kind": "garbage"},
    {"kind": "garbage", "raw": True},
    {"kind": "refuse", "seconds": 0.15},
    {"kind": "restart"},
    {"kind": "restart", "seconds": 0.15},
)
KINDS: tuple[tuple[Rule, ...], ...] = (
    tuple({**fault, "call": call, "when": when} for fault in ANYWHERE for call in CALLS for when in WHEN),
    tuple({"kind": "rate_limit", "call": call, "retry_after": after} for call in CALLS for after in (None, 0)),
    tuple(
        {"kind": "sleep", "call": call, "seconds": LATE, "status": answer} for call in CALLS for answer in (None, 503)
    ),
    tuple(
        {"kind": "late", "call": call, "seconds": LATE, "status": answer}
        for call in ("create", "activate", "delete_one", "delete_batch")
        for answer in (500, None)
    ),
    # A create that is done and yet refused is sent again, which makes a double.
    ({"kind": "error", "status": 429, "call": "create", "when": "after"},),
    ({"kind": "lose"},),
    ({"kind": "half_activate"}, {"kind": "half_activate", "status": 200}),
)


def faults() -> st.SearchStrategy[list[Rule]]:
    several = st.builds(
        lambda fault, skip, times: {**fault, "skip": skip, "times": times},
        st.sampled_from(KINDS).flatmap(st.sampled_from),
        st.sampled_from([0, 0, 1, 3]),
        # The service is patient with what would not let it in, for longer than a test can be.
        st.sampled_from([1, 2, 5]),
    )
    return st.lists(several, min_size=1, max_size=6)


def serve(url: str, file: str, orders: Connection) -> None:
    """One life of the service: it takes up what ran, then does as it is told until it is killed or told to stop."""
    store = SqliteStore(f"sqlite:///{file}")
    store.open()
    runner = Runner(Settings(hospital_api_base_url=url, **SETTINGS), store)
    runner.take_up()
    orders.send(None)
    while True:
        name, arguments = orders.recv()
        try:
            orders.send(getattr(runner, name)(*arguments))
        except (WrongStatusError, TooManyBatchesError) as refusal:
            orders.send(type(refusal).__name__)
        if name == "stop":
            return


class Lives:
    """A service over one file, which is started, stopped and killed; its batches are read off the file."""

    def __init__(self, directory: Directory, file: Path) -> None:
        self._directory = directory
        self._file = file
        # This process has no other thread, so a life can begin in a few milliseconds.
        self._fork = multiprocessing.get_context("fork")
        self.start()

    def start(self) -> None:
        self._orders, theirs = self._fork.Pipe()
        self._process = self._fork.Process(target=serve, args=(self._directory.url, str(self._file), theirs))
        self._process.start()
        theirs.close()
        self._answer()

    def tell(self, name: str, *arguments: Any) -> Any:
        self._orders.send((name, arguments))
        return self._answer()

    def kill(self) -> None:
        self._process.kill()
        self._let_go()

    def stop(self) -> None:
        self.tell("stop")
        self._let_go()

    def get(self, batch_id: str) -> Batch:
        # No connection to the file may be open at a fork.
        with closing(SqliteStore(f"sqlite:///{self._file}")) as store:
            return store.get(batch_id)

    def _answer(self) -> Any:
        assert self._orders.poll(PATIENCE), "The service does not answer."
        return self._orders.recv()

    def _let_go(self) -> None:
        self._process.join()
        self._process.close()
        self._orders.close()


class Machine(RuleBasedStateMachine):
    """Draws what happens, and holds the directory against what the service says whenever nothing runs."""

    directory: ClassVar[Directory]

    def __init__(self) -> None:
        super().__init__()
        self.directory.reset(create_seconds=CREATE)
        self._folder = tempfile.TemporaryDirectory()
        self.lives = Lives(self.directory, Path(self._folder.name) / "hospitals.db")
        self.batch_ids: list[str] = []
        self.names = (f"Hospital {number}" for number in itertools.count())
        # The batches of which the last thing that was asked was to roll them back.
        self.removing: set[str] = set()
        # When somebody else had last written into a batch, and was about to add a stranger or make a batch of theirs.
        self.tampered_at: dict[str, float] = {}
        self.strangers: dict[str, float] = {}
        self.bystanders: dict[str, float] = {}
        self.deleted_by_others: set[str] = set()

    batches = st.integers(0, 99)
    # How long the service is left alone before the next step; None: until nothing runs.
    pauses = st.sampled_from([0.0, 0.02, 0.05, 0.1, 0.2, 0.4, None, None])

    # What goes wrong from now on; None: what went wrong before.
    mishaps = st.one_of(faults(), faults(), st.none())

    @rule(rows=st.lists(st.integers(1, 5), min_size=1, max_size=3), rules=faults(), pause=pauses)
    def upload(self, rows: list[int], rules: list[Rule], pause: float | None) -> None:
        self.let_go_wrong(rules)
        for count in rows:
            self.batch_ids.append(self.lives.tell("start", "hospitals.csv", hospitals(count, next(self.names))))
        self.leave_alone(pause)

    @rule(
        rows=st.integers(2, 5),
        rules=st.one_of(st.just([]), faults()),
        then=st.sampled_from(["kill", "kill kill", "stop kill", "roll_back", "roll_back kill", "kill roll_back"]),
        pause=st.sampled_from([0.02, 0.05, 0.08, 0.15, 0.3]),
    )
    def upload_and(self, rows: int, rules: list[Rule], then: str, pause: float) -> None:
        """What comes one upon the other, most of it while the rows are in flight or are waited out."""
        self.upload([rows], rules, pause)
        for what in then.split():
            if what == "roll_back":
                self.ask_to_roll_back(self.batch_ids[-1])
            else:
                self.live_again(self.lives.kill if what == "kill" else self.lives.stop)
            time.sleep(pause)

    @precondition(lambda self: self.batch_ids)
    @rule(which=batches, rules=mishaps, pause=pauses)
    def resume(self, which: int, rules: list[Rule] | None, pause: float | None) -> None:
        self.let_go_wrong(rules)
        self.ask_to_resume(self.pick(which))
        self.leave_alone(pause)

    @precondition(lambda self: self.batch_ids)
    @rule(which=batches, rules=mishaps, pause=pauses)
    def roll_back(self, which: int, rules: list[Rule] | None, pause: float | None) -> None:
        self.let_go_wrong(rules)
        self.ask_to_roll_back(self.pick(which))
        self.leave_alone(pause)

    @rule(killed=st.booleans(), pause=pauses)
    def restart(self, killed: bool, pause: float | None) -> None:
        self.live_again(self.lives.kill if killed else self.lives.stop)
        self.leave_alone(pause)

    @rule(bystander=st.booleans(), pause=pauses)
    def restart_the_directory(self, bystander: bool, pause: float | None) -> None:
        when_it_listens(lambda: self.directory.faults([{"kind": "restart", "call": "get_one"}]))
        with suppress(requests.ConnectionError):
            requests.get(f"{self.directory.url}/hospitals/1", timeout=60)
        self.let_go_wrong([])
        if bystander:
            self.add_bystander()
        self.leave_alone(pause)

    @rule()
    def add_bystander(self) -> None:
        """Somebody else creates hospitals in a batch of theirs: their ids may be what ours were before a restart."""
        batch_id = str(uuid.uuid4())
        self.bystanders[batch_id] = time.time()
        for number in range(3):
            self.write("POST", "", f"Bystander {number}", batch_id)

    @precondition(lambda self: self.batch_ids)
    @rule(which=batches, pause=pauses)
    def add_stranger(self, which: int, pause: float | None) -> None:
        self.strangers[self.pick(which)] = time.time()
        self.write("POST", "", "Stranger", self.pick(which))
        self.tampered_at[self.pick(which)] = time.time()
        self.leave_alone(pause)

    @precondition(lambda self: self.batch_ids)
    @rule(which=batches, change=st.booleans(), pause=pauses)
    def tamper(self, which: int, change: bool, pause: float | None) -> None:
        """Somebody else renames or deletes a hospital of a batch."""
        ours = [hospital for hospital in self.listed(self.pick(which)) if hospital["name"] != "Stranger"]
        if ours:
            self.deleted_by_others.add(f"/hospitals/{ours[0]['id']}")
            self.write("PUT" if change else "DELETE", str(ours[0]["id"]), "Somebody", None)
            self.tampered_at[self.pick(which)] = time.time()
        self.leave_alone(pause)

    @invariant()
    def the_promise_is_kept(self) -> None:
        batches = [self.lives.get(batch_id) for batch_id in self.batch_ids]
        if not all(batch.ended for batch in batches):
            return
        time.sleep(LATE + 0.05)  # nothing that takes effect late may change what has ended
        calls = self.calls()
        restarted_at = max((it["ended"] or time.time() for it in calls if it["fault"] == "restart"), default=0.0)
        for batch in batches:
            tampered_at = self.tampered_at.get(batch.batch_id, 0.0)
            # What was rolled back is gone, whatever the directory has forgotten.
            forgotten_at = restarted_at if batch.status is BatchStatus.COMPLETED else 0.0
            self.check(batch, calls, max(tampered_at, forgotten_at))
        for batch_id, added_at in self.bystanders.items():
            if added_at > restarted_at:
                assert len(self.listed(batch_id)) == 3, "a hospital of somebody else is gone"
        self.check_strangers(calls, restarted_at)
        self.check_doubles(calls)

    def check_strangers(self, calls: list[dict[str, Any]], restarted_at: float) -> None:
        """What is in a batch and not of it goes with the whole batch, never by itself."""
        for batch_id, added_at in self.strangers.items():
            deleted = [it for it in calls if it["kind"] == "delete_batch" and it["batch_id"] == batch_id]
            if added_at > restarted_at and not any(it["started"] > added_at - 1 for it in deleted):
                assert "Stranger" in [hospital["name"] for hospital in self.listed(batch_id)]

    def check_doubles(self, calls: list[dict[str, Any]]) -> None:
        """There are none to be deleted but those that the directory made with a 429 to a create that it did."""
        if not any(it["kind"] == "create" and it["fault"] == "error" and it["status"] == 429 for it in calls):
            assert not any(it["kind"] == "delete_one" and it["path"] not in self.deleted_by_others for it in calls)

    def check(self, batch: Batch, calls: list[dict[str, Any]], touched_at: float) -> None:
        """Hold a batch that has ended against the directory, as far as nobody touched it since the service looked."""
        looks = [it["started"] for it in calls if it["kind"] == "list" and it["batch_id"] == batch.batch_id]
        untouched = max(looks, default=float("inf")) > touched_at
        listed = self.listed(batch.batch_id)
        if batch.batch_id in self.removing:
            assert batch.status in (BatchStatus.ROLLED_BACK, BatchStatus.INTERRUPTED)
        assert batch.batch_activated is (batch.status is BatchStatus.COMPLETED)
        assert bool(batch.error_message) is (batch.status in (BatchStatus.FAILED, BatchStatus.INTERRUPTED))
        if batch.status is BatchStatus.COMPLETED and untouched:
            assert all(hospital["active"] for hospital in listed)
            assert facts_of(listed) == sorted((row.hospital_id, row.name, row.address, row.phone) for row in batch.rows)
        if batch.status in (BatchStatus.FAILED, BatchStatus.ROLLED_BACK):
            assert not any(hospital["active"] for hospital in listed)
        if batch.status is BatchStatus.ROLLED_BACK and untouched:
            assert listed == []

    def teardown(self) -> None:
        """Once nothing goes wrong any more, every batch comes to its end, whichever is asked for."""
        try:
            self.let_go_wrong([])
            self.rest()
            self.the_promise_is_kept()
            for batch_id in self.batch_ids:
                self.complete(batch_id)
            self.the_promise_is_kept()
            for batch_id in self.batch_ids:
                self.ask_to_roll_back(batch_id)
            self.rest()
            for batch in map(self.lives.get, self.batch_ids):
                assert batch.status is BatchStatus.ROLLED_BACK, batch.error_message
            self.the_promise_is_kept()
        finally:
            self.lives.kill()
            self._folder.cleanup()

    def complete(self, batch_id: str) -> None:
        """Resume until the batch is complete, unless something that is not ours is in it: then roll back is the way."""
        for _ in range(RESUMES):
            self.ask_to_resume(batch_id)
            self.rest()
        batch = self.lives.get(batch_id)
        if batch.status not in (BatchStatus.COMPLETED, BatchStatus.ROLLED_BACK):
            rows = {row.name for row in batch.rows}
            assert any(hospital["name"] not in rows for hospital in self.listed(batch_id)), batch.error_message

    def ask_to_resume(self, batch_id: str) -> None:
        if self.lives.tell("resume", batch_id) is None:
            self.removing.discard(batch_id)

    def ask_to_roll_back(self, batch_id: str) -> None:
        if self.lives.tell("roll_back", batch_id) is None:
            self.removing.add(batch_id)

    def live_again(self, end: Callable[[], None]) -> None:
        end()
        self.lives.start()

    def let_go_wrong(self, rules: list[Rule] | None) -> None:
        if rules is not None:
            when_it_listens(lambda: self.directory.faults(rules))

    def pick(self, which: int) -> str:
        """One of the batches, the newest for 0."""
        return self.batch_ids[-1 - which % len(self.batch_ids)]

    def leave_alone(self, pause: float | None) -> None:
        if pause is None:
            self.rest()
        else:
            time.sleep(pause)

    def rest(self) -> None:
        """Wait until every batch has ended."""
        for batch_id in self.batch_ids:
            wait_for(partial(self.lives.get, batch_id), lambda batch: batch.ended, PATIENCE)

    def calls(self) -> list[dict[str, Any]]:
        return when_it_listens(self.directory.calls)

    def listed(self, batch_id: str) -> list[dict[str, Any]]:
        return when_it_listens(lambda: self.directory.hospitals(batch_id))

    def write(self, method: str, path: str, name: str, batch_id: str | None) -> None:
        """Somebody else writes into the directory, while nothing goes wrong there."""
        self.let_go_wrong([])
        body = {"name": name, "address": "Elsewhere", "phone": None, "creation_batch_id": batch_id}
        answer = requests.request(method, f"{self.directory.url}/hospitals/{path}", json=body, timeout=60)
        assert answer.ok or answer.status_code == 404, answer.text


def facts_of(listed: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return sorted((it["id"], it["name"], it["address"], it["phone"]) for it in listed)


def when_it_listens(ask: Callable[[], T]) -> T:
    """Ask the directory something beside its API, as soon as it does not refuse connections."""
    give_up_at = time.monotonic() + PATIENCE
    while True:
        try:
            return ask()
        except requests.ConnectionError:
            assert time.monotonic() < give_up_at, "The directory stays away."
            time.sleep(0.02)


def run_machines(number: int) -> None:
    some = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    with Directory(seed=number) as running:

        class MachineOverIt(Machine):
            directory = running

        run_state_machine_as_test(seed(number)(MachineOverIt), settings=some)


@pytest.mark.timeout(300)
def test_the_promise_is_kept_whatever_comes_in_whatever_order() -> None:
    # Not threads, since Hypothesis is not made for them; what is imported here is imported once for all.
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(SIDE_BY_SIDE, forks) as pool:
        for done in [pool.submit(run_machines, number) for number in range(SIDE_BY_SIDE)]:
            done.result()
