"""Something that a process does every few moments, whatever goes wrong with it at times."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from store import StoreError, TakenOverError

logger = logging.getLogger(__name__)


class Repeating:
    """Calls `work` every `seconds` on a thread of its own, until `stopping` is set.

    What it raises is logged, beginning with `trouble`, and it is called again.
    """

    def __init__(
        self, name: str, seconds: float, work: Callable[[], None], trouble: str, stopping: threading.Event
    ) -> None:
        self._seconds = seconds
        self._work = work
        self._trouble = trouble
        self._stopping = stopping
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.wait(self._seconds):
            try:
                self._work()
            except (StoreError, TakenOverError) as error:
                logger.warning("%s: %s", self._trouble, error)
            except Exception:
                logger.exception(self._trouble)
