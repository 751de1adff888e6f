"""The journal: every call of the API, what it was and what came of it."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

CallKind = Literal[
    "root",
    "create",
    "list_all",
    "get_one",
    "update_one",
    "delete_one",
    "list",
    "activate",
    "delete_batch",
    "other",
]

_ONE: dict[str, CallKind] = {"GET": "get_one", "PUT": "update_one", "DELETE": "delete_one"}
_BATCH: dict[str, CallKind] = {"GET": "list", "DELETE": "delete_batch"}
_FIXED: dict[tuple[str, str], CallKind] = {
    ("GET", "/"): "root",
    ("POST", "/hospitals/"): "create",
    ("GET", "/hospitals/"): "list_all",
}


def kind_of(method: str, path: str) -> CallKind:
    """Name a call by its method and path, before anything is validated."""
    if kind := _FIXED.get((method, path)):
        return kind
    match path.split("/"):
        case ["", "hospitals", _]:
            return _ONE.get(method, "other")
        case ["", "hospitals", "batch", _]:
            return _BATCH.get(method, "other")
        case ["", "hospitals", "batch", _, "activate"] if method == "PATCH":
            return "activate"
    return "other"


def batch_in(path: str) -> str | None:
    """Return the batch id of a path that has one, as it was sent."""
    match path.split("/"):
        case ["", "hospitals", "batch", batch_id, *_]:
            return batch_id
    return None


@dataclass(slots=True)
class Record:
    """One call. Times are seconds since 1970, ``status`` is null while and when nothing was answered."""

    kind: CallKind
    method: str
    path: str
    started: float
    batch_id: str | None = None
    status: int | None = None
    ended: float | None = None
    fault: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return what the control path shows."""
        return asdict(self)
