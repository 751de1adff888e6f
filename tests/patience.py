"""How long tests wait for what must come, and how."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# Seconds. Nothing that goes right takes so long, even where a process is not let run for seconds.
PATIENCE = 60.0
# To look more often would take the time of those who are waited for.
LOOK_EVERY_SECONDS = 0.05


def wait_for(look: Callable[[], T], holds: Callable[[T], object] = bool, seconds: float = PATIENCE) -> T:
    """Look until `holds` what there is, by default until there is something, and return that; fail when time is up."""
    give_up_at = time.monotonic() + seconds
    while not holds(found := look()):
        assert time.monotonic() < give_up_at, f"That never came; there is {found!r}."
        time.sleep(LOOK_EVERY_SECONDS)
    return found
