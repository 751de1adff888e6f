"""Whatever goes wrong in the directory, at whatever call: no row is lost, doubled or sent again without need."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from batch import Batch, BatchStatus, RowStatus
from tests.directory import Directory
from tests.uploads import Uploads, assert_promise, creates

Rule = dict[str, Any]

ROWS = 6
# Cases wait far more than they work, so some run side by side, each over a directory of its own.
SIDE_BY_SIDE = 10
# What the service waits out after an unknown outcome; a call that takes effect later does so within it.
DELAY = 0.4
LATE = 0.3
# A call that never ends is given up after this. What a directory that stands still for a while does late, once it goes
# on, is to be done by the time that the service looks.
IMPATIENT = {"directory_timeout_seconds": 1.2, "directory_delay_seconds": 1.2}

POINTS = ("root", "create", "list", "activate", "delete_one", "delete_batch")
# What brings a run to a call that it makes only when something went wrong before. A create that is done and yet
# answered 429 is sent again, which makes a double; a batch that is active in part is deleted.
LEADING_TO: dict[str, list[Rule]] = {
    "delete_one": [{"kind": "error", "status": 429, "call": "create", "when": "after"}],
    "delete_batch": [{"kind": "half_activate"}],
}
# How many creates the least are when nothing goes wrong but that.
LEAST = {"delete_one": ROWS + 1, "delete_batch": 2 * ROWS}

LOST_ANSWERS: dict[str, Rule] = {
    "closes": {"kind": "drop"},
    "resets": {"kind": "drop", "reset": True},
    "breaks off in the head": {"kind": "drop", "bytes": 12},
    "breaks off in the body": {"kind": "drop", "bytes": 170},
    "answers 500": {"kind": "error"},
    "answers 502": {"kind": "error", "status": 502},
    "answers 503": {"kind": "error", "status": 503, "retry_after": 1},
    "answers 408": {"kind": "error", "status": 408},
    "hangs": {"kind": "hang", "seconds": 1.5},
    "drips its head": {"kind": "drip", "part": "head", "seconds": 0.03},
    "drips its body": {"kind": "drip", "seconds": 0.03},
    "answers with a page": {"kind": "garbage"},
    "answers no HTTP": {"kind": "garbage", "raw": True},
    "refuses connections": {"kind": "refuse", "seconds": 0.3},
}
LASTING = ("closes", "answers 500", "hangs", "drips its body", "answers with a page")


# All are begun at once, and a test may have to wait for many of them.
pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True)
class Case:
    """Faults, and what an upload over them must come to: how it ends, after how many creates, in which words."""

    name: str
    rules: tuple[Rule, ...]
    least_creates: int
    most_creates: int
    status: BatchStatus = BatchStatus.COMPLETED
    message: str = ""
    row_message: str = ""


@dataclass(frozen=True)
class Outcome:
    batch: Batch
    creates: int
    hospitals: list[dict[str, Any]]


def case(name: str, point: str, *rules: Rule, more: int = 0, up_to: int | None = None, **outcome: Any) -> Case:
    least = LEAST.get(point, ROWS) + more
    return Case(name, (*LEADING_TO.get(point, ()), *rules), least, up_to or least, **outcome)


def lost_answers() -> Iterator[Case]:
    for point in POINTS:
        for name, rule in LOST_ANSWERS.items():
            for when in ("before", "after"):
                # Only a create that was not done is sent once more.
                more = int(point == "create" and when == "before")
                yield case(f"{name} {when} {point}", point, {**rule, "call": point, "when": when}, more=more)


def refusals_and_sleep() -> Iterator[Case]:
    for point in POINTS:
        for retry_after in (None, 1):
            rule: Rule = {"kind": "rate_limit", "retry_after": retry_after, "call": point}
            name = f"429 at {point}, Retry-After {retry_after}"
            yield case(name, point, rule, more=int(point == "create"))
        yield case(f"sleeps at {point}", point, {"kind": "sleep", "seconds": 0.3, "call": point})
        for status in (502, 503):
            rule = {"kind": "sleep", "seconds": 0.2, "status": status, "call": point}
            up_to = 2 * ROWS if point == "create" else None
            yield case(f"sleeps at {point}, answering {status}", point, rule, up_to=up_to)


def late_and_lost_effects() -> Iterator[Case]:
    for point in ("create", "activate", "delete_one", "delete_batch"):
        for status in (500, None):
            for seconds in (0.0, LATE):
                rule = {"kind": "late", "status": status, "seconds": seconds, "call": point}
                yield case(f"{point} takes effect {seconds} s after its {status}", point, rule)
    rule = {"kind": "late", "seconds": LATE, "call": "create", "times": ROWS}
    yield case("every create takes effect after its 500", "create", rule)
    yield case("a create is lost", "create", {"kind": "lose", "skip": 2}, more=1)
    yield case("every create is lost", "create", {"kind": "lose", "times": ROWS}, more=ROWS)
    for status in (500, 200):
        rule = {"kind": "half_activate", "status": status}
        yield case(f"half is activated, answering {status}", "activate", rule, more=ROWS)
        twice = {**rule, "times": 2}
        yield case(f"half is activated twice, answering {status}", "activate", twice, more=2 * ROWS)
    rule = {"kind": "error", "status": 429, "call": "create", "when": "after"}
    yield case("a create is doubled", "create", rule, more=1)
    yield case("three creates are doubled", "create", {**rule, "times": 3}, more=3)


def restarts() -> Iterator[Case]:
    for point in POINTS:
        for seconds in (0, 0.2):
            for when in ("before", "after"):
                name = f"restarts {when} {point}, away for {seconds} s"
                rule = {"kind": "restart", "seconds": seconds, "call": point, "when": when}
                if point == "create":
                    yield case(name, point, {**rule, "skip": 3}, up_to=2 * ROWS)
                else:
                    # The deletion of a batch and a restart come to the same.
                    more = 0 if point in ("root", "delete_batch") else ROWS
                    yield case(name, point, rule, more=more)


def lasting_faults() -> Iterator[Case]:
    reasons = "did not answer in time|connection .* lost|answered 500|did not (answer with|say)|could not be read"
    rounds = "Not in the directory after 3 rounds"
    unknown = f"({reasons}).*could not be found out"
    for name in LASTING:
        rule: Rule = {**LOST_ANSWERS[name], "times": None}
        # A page with status 200 is as good an answer to a deletion as none at all: the listing tells.
        ends: dict[tuple[str, str], dict[str, Any]] = {
            ("create", "before"): {
                "more": 2 * ROWS,
                "status": BatchStatus.FAILED,
                "message": "^6 of 6 rows failed, so the batch was not activated; those rows say why.$",
                "row_message": rounds,
            },
            ("create", "after"): {},
            ("list", "before"): {"status": BatchStatus.INTERRUPTED, "message": unknown},
            ("activate", "before"): {
                "status": BatchStatus.FAILED,
                "message": f"^The directory did not activate the batch: .*({reasons})",
            },
            ("activate", "after"): {},
            ("delete_one", "before"): {"status": BatchStatus.INTERRUPTED, "message": "Doubles could not be deleted"},
            ("delete_one", "after"): {},
            ("delete_batch", "before"): {"status": BatchStatus.INTERRUPTED, "more": -ROWS, "message": "."},
            ("delete_batch", "after"): {},
        }
        for (point, when), end in ends.items():
            yield case(f"{name} {when} every {point}", point, {**rule, "call": point, "when": when}, **end)


def rejections() -> Iterator[Case]:
    words = {
        400: "answered 400",
        404: "answered 404",
        422: "answered 422",
        307: "redirects elsewhere .307.",
        401: "401",
    }
    for status, row_message in words.items():
        rule = {"kind": "error", "status": status, "call": "create"}
        failed: dict[str, Any] = {"status": BatchStatus.FAILED, "row_message": row_message}
        yield case(
            f"a create is rejected with {status}",
            "create",
            {**rule, "skip": 2},
            message="^1 of 6 rows failed, so the batch was not activated",
            **failed,
        )
        every = {**rule, "times": None}
        yield case(f"every create is rejected with {status}", "create", every, message="^6 of 6 rows failed", **failed)
        yield case(f"a create is done and yet rejected with {status}", "create", {**rule, "when": "after"})
        activation: Rule = {"kind": "error", "status": status, "call": "activate"}
        yield case(f"an activation is rejected with {status}", "activate", activation)
        yield case(
            f"every activation is rejected with {status}",
            "activate",
            {**activation, "times": None},
            status=BatchStatus.FAILED,
            message=f"did not activate the batch: .*{row_message}",
        )
        yield case(f"an activation is done and yet rejected with {status}", "activate", {**activation, "when": "after"})
    yield case(
        "half is activated every time",
        "activate",
        {"kind": "half_activate", "status": 200, "times": None},
        more=2 * ROWS,
        status=BatchStatus.FAILED,
        message="did not activate the batch: it activated 3 of 6 hospitals",
    )


CASES = [
    *lost_answers(),
    *refusals_and_sleep(),
    *late_and_lost_effects(),
    *restarts(),
    *lasting_faults(),
    *rejections(),
]


class Directories:
    """Some directories, lent out one at a time, and threads to use them."""

    def __init__(self, stack: ExitStack) -> None:
        self.threads = stack.enter_context(ThreadPoolExecutor(SIDE_BY_SIDE))
        self._free: SimpleQueue[Directory] = SimpleQueue()
        for started in [self.threads.submit(Directory, seed=1) for _ in range(SIDE_BY_SIDE)]:
            self._free.put(stack.enter_context(started.result()))

    @contextmanager
    def one(self) -> Iterator[Directory]:
        directory = self._free.get()
        try:
            directory.reset()
            yield directory
        finally:
            self._free.put(directory)


@pytest.fixture(scope="module")
def directories() -> Iterator[Directories]:
    with ExitStack() as stack:
        yield Directories(stack)


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, directories: Directories) -> dict[str, Future[Outcome]]:
    """What the cases chosen for this run of pytest come to, all begun at once."""

    def carry_out(chosen: Case) -> Outcome:
        never_ends = any(rule["kind"] in ("hang", "drip") for rule in chosen.rules)
        settings: dict[str, Any] = IMPATIENT if never_ends else {"directory_delay_seconds": DELAY}
        with directories.one() as directory, Uploads(directory, **settings) as uploads:
            directory.faults(list(chosen.rules))
            batch = uploads.upload(ROWS)
            if any(rule["kind"] == "late" for rule in chosen.rules):
                time.sleep(DELAY)  # nothing comes so late that it changes what has ended
            assert_promise(directory, batch)
            return Outcome(batch, creates(directory), directory.hospitals())

    chosen = {value for item in request.session.items for value in _params(item) if isinstance(value, int)}
    return {CASES[number].name: directories.threads.submit(carry_out, CASES[number]) for number in sorted(chosen)}


def _params(item: pytest.Item) -> list[Any]:
    callspec = getattr(item, "callspec", None)
    is_case = getattr(item, "originalname", "") == test_an_upload_over_a_fault.__name__
    return list(callspec.params.values()) if callspec is not None and is_case else []


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.name for case in CASES])
def test_an_upload_over_a_fault(outcomes: dict[str, Future[Outcome]], number: int) -> None:
    expected = CASES[number]
    outcome = outcomes[expected.name].result()
    batch = outcome.batch
    assert batch.status is expected.status, batch.error_message
    assert expected.least_creates <= outcome.creates <= expected.most_creates
    if expected.status is not BatchStatus.COMPLETED:
        assert _matches(expected.message, batch.error_message)
    failed = [row for row in batch.rows if row.status is RowStatus.FAILED]
    assert bool(failed) is bool(expected.row_message)
    assert all(_matches(expected.row_message, row.error_message) for row in failed)


def _matches(pattern: str, message: str | None) -> bool:
    return message is not None and re.search(pattern, message) is not None


MIXED_POINTS = ("create", "list", "activate", "delete_one", "delete_batch")


def mixed_rules(draw: random.Random) -> list[Rule]:
    """Several faults, each of which may befall any call of its kind."""
    return [
        {**_mixed_rule(draw), "times": None, "probability": draw.choice([0.1, 0.2, 0.3])}
        for _ in range(draw.randint(2, 6))
    ]


def _mixed_rule(draw: random.Random) -> Rule:
    point, when = draw.choice(MIXED_POINTS), draw.choice(["before", "after"])
    others: list[Rule] = [
        {"kind": "late", "call": draw.choice(["create", "activate"]), "seconds": 0.2, "status": 500},
        {"kind": "rate_limit", "call": point},
        {"kind": "sleep", "call": point, "seconds": 0.2, "status": draw.choice([503, None])},
        {"kind": "error", "call": "create", "status": draw.choice([400, 422, 429]), "when": "after"},
        {"kind": "lose"},
        {"kind": "half_activate", "status": draw.choice([500, 200])},
    ]
    return draw.choice([{**draw.choice(list(LOST_ANSWERS.values())), "call": point, "when": when}, *others])


def survive(directory: Directory, rules: list[Rule], batches: int) -> None:
    """Upload several batches at once over these faults, then resume without them what did not complete."""
    with Uploads(directory, **IMPATIENT) as uploads:
        directory.faults(rules)
        ids = [uploads.start(ROWS + 2 * number, f"Clinic {number}") for number in range(batches)]
        ended = [uploads.ended(batch_id) for batch_id in ids]
        directory.faults([])
        for batch in ended:
            assert_promise(directory, batch)
            if batch.status is not BatchStatus.COMPLETED:
                again = uploads.resume(batch.batch_id)
                assert again.status is BatchStatus.COMPLETED, again.error_message
        for batch_id in ids:
            assert_promise(directory, uploads.store.get(batch_id))


def survive_all(directories: Directories, mixtures: list[list[Rule]], batches: int) -> None:
    """Survive each of these mixtures, or tell which one was not survived."""

    def survive_one(rules: list[Rule]) -> None:
        with directories.one() as directory:
            survive(directory, rules, batches)

    for rules, done in [(rules, directories.threads.submit(survive_one, rules)) for rules in mixtures]:
        assert done.exception() is None, f"{rules}: {done.exception()}"


def test_every_batch_comes_through_whatever_goes_wrong_at_once(directories: Directories) -> None:
    survive_all(directories, [mixed_rules(random.Random(seed)) for seed in range(24)], batches=3)


SCRIPTED: list[Rule] = [
    *({**rule, "call": point, "when": when} for rule in LOST_ANSWERS.values() for point in MIXED_POINTS
      for when in ("before", "after")),
    *({"kind": "restart", "seconds": 0.1, "call": point, "when": "after"} for point in MIXED_POINTS),
    *({"kind": "rate_limit", "call": point} for point in MIXED_POINTS),
    *({"kind": "late", "call": call, "seconds": 0.2, "status": None} for call in ("create", "activate")),
    {"kind": "lose"},
    {"kind": "half_activate"},
]  # fmt: skip


def scripts() -> st.SearchStrategy[list[Rule]]:
    """Up to five faults, each of which befalls a few calls of its kind after it has let some pass."""
    several = st.builds(
        lambda rule, skip, times: {**rule, "skip": skip, "times": times},
        st.sampled_from(SCRIPTED),
        st.integers(0, 8),
        st.integers(1, 4),
    )
    return st.lists(several, min_size=1, max_size=5)


@settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(mixtures=st.lists(scripts(), min_size=SIDE_BY_SIDE, max_size=SIDE_BY_SIDE))
def test_a_batch_comes_through_any_sequence_of_faults(directories: Directories, mixtures: list[list[Rule]]) -> None:
    survive_all(directories, mixtures, batches=1)
