"""Fault rules: what goes wrong, at which call, how often. The gateway carries them out.

A rule is a JSON object: its ``kind``, what every rule may have (see ``Rule``), and what its kind adds.
"""

from collections.abc import Iterable
from random import Random
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from embedded_directory.journal import CallKind

Seconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]
Status = Annotated[int, Field(ge=200, le=599)]

_PAGE = "<!doctype html><title>Welcome</title><p>This is not the page you were looking for.</p>"


class Rule(BaseModel):
    """When a fault fires.

    ``call`` is the kind of call, ``batch_id`` narrows it to one batch. ``before``: the directory does nothing;
    ``after``: the call takes full effect, then the fault befalls its answer. The first ``skip`` matching calls
    pass, each later one meets the fault with ``probability``, at most ``times`` times (null: no end).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    call: CallKind | Literal["any"] = "any"
    batch_id: UUID | None = None
    when: Literal["before", "after"] = "before"
    times: Annotated[int, Field(ge=1)] | None = 1
    skip: Annotated[int, Field(ge=0)] = 0
    probability: Annotated[float, Field(ge=0, le=1)] = 1


class Refuse(Rule):
    """Connections are closed, and new ones refused, for ``seconds``."""

    kind: Literal["refuse"]
    seconds: Seconds = 1


class Drop(Rule):
    """The connection is closed after the first ``bytes`` of the answer, with a TCP reset on ``reset``."""

    kind: Literal["drop"]
    bytes: Annotated[int, Field(ge=0)] = 0
    reset: bool = False


class Error(Rule):
    """The answer is this ``status``, with a Retry-After when there is a ``retry_after`` (seconds)."""

    kind: Literal["error"]
    status: Status = 500
    retry_after: Annotated[int, Field(ge=0)] | None = None


class Hang(Rule):
    """Nothing is answered; after ``seconds`` the connection is closed."""

    kind: Literal["hang"]
    seconds: Seconds = 86_400


class Drip(Rule):
    """The ``part`` of the answer comes one byte at a time, ``seconds`` apart; the rest at once."""

    kind: Literal["drip"]
    part: Literal["head", "body"] = "body"
    seconds: Seconds = 1


class Late(Rule):
    """The answer is this ``status`` at once (null: the connection is closed); the effect comes ``seconds`` later."""

    kind: Literal["late"]
    when: Literal["after"] = "after"
    status: Status | None = 500
    seconds: Seconds = 5


class Garbage(Rule):
    """The answer is a 200 with this ``body``; with ``raw`` the body alone, which is no HTTP at all."""

    kind: Literal["garbage"]
    body: str = _PAGE
    raw: bool = False


class RateLimit(Rule):
    """The answer is a 429 although the window is open, with a Retry-After when ``retry_after`` (seconds) is set."""

    kind: Literal["rate_limit"]
    when: Literal["before"] = "before"
    retry_after: Annotated[int, Field(ge=0)] | None = None


class Sleep(Rule):
    """A cold start: for ``seconds`` every call waits, or with a ``status`` is answered that at once."""

    kind: Literal["sleep"]
    when: Literal["before"] = "before"
    seconds: Seconds = 25
    status: Status | None = None


class Restart(Rule):
    """Hospitals and windows are forgotten, ids count from 1 again, connections close; refused for ``seconds``."""

    kind: Literal["restart"]
    seconds: Seconds = 0


class Lose(Rule):
    """A create is answered as ever, but its hospital is not there."""

    kind: Literal["lose"]
    when: Literal["after"] = "after"
    call: Literal["create"] = "create"


class HalfActivate(Rule):
    """Half of the batch (rounded down) is activated; ``status`` 200 answers with that count."""

    kind: Literal["half_activate"]
    when: Literal["after"] = "after"
    call: Literal["activate"] = "activate"
    status: Status = 500


Fault = Annotated[
    Refuse | Drop | Error | Hang | Drip | Late | Garbage | RateLimit | Sleep | Restart | Lose | HalfActivate,
    Field(discriminator="kind"),
]


class _Armed:
    """A rule and how often it has matched and fired."""

    def __init__(self, rule: Fault) -> None:
        self.rule = rule
        self.matched = 0
        self.fired = 0

    def fires(self, kind: CallKind, batch_id: UUID | None, random: Random) -> bool:
        """Say whether the rule fires for this call, and count it."""
        rule = self.rule
        if rule.call not in ("any", kind) or (rule.batch_id and rule.batch_id != batch_id):
            return False
        self.matched += 1
        if self.matched <= rule.skip or (rule.times is not None and self.fired >= rule.times):
            return False
        if random.random() >= rule.probability:
            return False
        self.fired += 1
        return True


class Faults:
    """The rules in force, in order."""

    def __init__(self, rules: Iterable[Fault], seed: int | None = None) -> None:
        self._armed = [_Armed(rule) for rule in rules]
        self._random = Random(seed)
        self.empty = not self._armed

    def pick(self, kind: CallKind, batch_id: UUID | None) -> Fault | None:
        """Return the first rule that fires for a call, or None; rules after it do not count the call."""
        for armed in self._armed:
            if armed.fires(kind, batch_id, self._random):
                return armed.rule
        return None
