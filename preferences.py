"""The request header `Prefer` (RFC 7240): how long a caller wants to wait for a batch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from werkzeug.http import parse_list_header


@dataclass(frozen=True, slots=True)
class Preferences:
    """`wait` in whole seconds, None when not asked for; `applied` is what `Preference-Applied` answers, or ``""``."""

    respond_async: bool = False
    wait: int | None = None

    def seconds_to_wait(self, most: float) -> float:
        """How long to wait for the end of a batch, never over `most` seconds."""
        if self.wait is not None:
            return min(float(self.wait), most)
        return 0.0 if self.respond_async else most

    def applied(self, most: float) -> str:
        """The value of `Preference-Applied`, empty when nothing was asked for."""
        parts = ["respond-async"] if self.respond_async else []
        if self.wait is not None:
            parts.append(f"wait={min(self.wait, math.floor(most))}")
        return ", ".join(parts)


def parse_prefer(header: str) -> Preferences:
    """Read the header; what is malformed or unknown in it is ignored, and of a preference given twice the second."""
    given: dict[str, str] = {}
    for part in parse_list_header(header):
        name, _, value = part.split(";", 1)[0].partition("=")
        given.setdefault(name.strip().lower(), value.strip().strip('"'))
    wait = given.get("wait", "")
    return Preferences(
        respond_async=given.get("respond-async") == "",
        wait=int(wait) if re.fullmatch(r"[0-9]{1,9}", wait) else None,
    )
