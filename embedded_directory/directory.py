"""What a running directory holds: settings, faults, the journal, and the part that a restart forgets."""

import asyncio
import sys
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from embedded_directory.faults import Fault, Faults
from embedded_directory.journal import Record, batch_in, kind_of
from embedded_directory.limits import FixedWindows
from embedded_directory.memory import Memory
from embedded_directory.settings import Settings

_JOURNAL_SIZE = 100_000


class Instance:
    """One life of the deployed process: all of this is gone after a restart.

    A call keeps the instance it came to, so what was in flight at a restart commits to a memory nobody reads.
    """

    def __init__(self, threads: int) -> None:
        self.memory = Memory()
        self.windows = FixedWindows()
        self.threads = pool(threads)


@dataclass(slots=True)
class Call:
    """A call on its way through the directory, with the settings of the moment it arrived."""

    record: Record
    instance: Instance
    settings: Settings
    client: str
    fault: Fault | None = None


class Directory:
    """The embedded directory's state; everything runs on one event loop, so nothing of it is locked."""

    def __init__(self, settings: Settings) -> None:
        self._started_with = settings
        self.reset()

    def reset(self) -> None:
        """Begin anew: nothing in memory, the settings and faults it was started with, an empty journal."""
        self.settings = self._started_with
        self.instance = Instance(self.settings.threads)
        self.journal: deque[Record] = deque(maxlen=_JOURNAL_SIZE)
        self.set_faults(self.settings.faults)

    def restart(self) -> None:
        """Lose what a process loses when it dies; settings, faults and journal are ours and stay."""
        self.instance = Instance(self.settings.threads)

    def fall_asleep(self, seconds: float, status: int | None) -> None:
        """Be asleep for ``seconds``; meanwhile calls wait, or are answered ``status`` when there is one."""
        self.awake_at = time.monotonic() + seconds
        self.sleep_status = status

    @property
    def seconds_asleep(self) -> float:
        """How long it will still be asleep; 0 when awake."""
        return max(0.0, self.awake_at - time.monotonic())

    @property
    def calm(self) -> bool:
        """Whether no fault can befall the next call."""
        return self.faults.empty and not self.seconds_asleep

    def set_faults(self, rules: Iterable[Fault]) -> None:
        """Put these rules in force instead of those before, and be awake."""
        self.fall_asleep(0, None)
        self.faults = Faults(rules, self.settings.seed)

    def change_settings(self, changes: dict[str, Any]) -> None:
        """Change settings for the calls to come; raise ValidationError when a value is not allowed."""
        settings = Settings.model_validate({**dict(self.settings), **changes})
        if settings.threads != self.settings.threads:
            self.instance.threads = pool(settings.threads)
        self.settings = settings

    def arrival(self, method: str, path: str, client: str) -> Call:
        """Note a call in the journal."""
        record = Record(kind_of(method, path), method, path, time.time(), batch_in(path))
        self.journal.append(record)
        return Call(record, self.instance, self.settings, client)


def pool(threads: int) -> asyncio.Semaphore:
    """Return what stands for the pool of threads that run creates and reads; 0 is no bound."""
    return asyncio.Semaphore(threads or sys.maxsize)
