"""The hospitals in memory: ids count from 1, and the oldest goes first when there are too many."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID


@dataclass(slots=True)
class Hospital:
    """One hospital, with the keys of the deployed directory's JSON in their order."""

    id: int
    name: str
    address: str
    phone: str | None
    creation_batch_id: UUID | None
    active: bool
    created_at: str

    def as_json(self) -> dict[str, Any]:
        """Return what goes over the wire; the batch id as text."""
        return {
            "id": self.id,
            "name": self.name,
            "address": self.address,
            "phone": self.phone,
            "creation_batch_id": str(self.creation_batch_id) if self.creation_batch_id else None,
            "active": self.active,
            "created_at": self.created_at,
        }


class Memory:
    """Every hospital of one life of the directory; a restart begins with a new one."""

    def __init__(self) -> None:
        self._hospitals: OrderedDict[int, Hospital] = OrderedDict()
        self._batches: dict[UUID, dict[int, Hospital]] = {}
        self._last_id = 0

    def add(self, name: str, address: str, phone: str | None, batch_id: UUID | None, *, at_most: int) -> Hospital:
        """Store a hospital, inactive when it is of a batch; over ``at_most`` the oldest is dropped."""
        self._last_id += 1
        created_at = datetime.now(UTC).replace(tzinfo=None).isoformat()
        hospital = Hospital(self._last_id, name, address, phone, batch_id, batch_id is None, created_at)
        self._hospitals[hospital.id] = hospital
        if batch_id:
            self._batches.setdefault(batch_id, {})[hospital.id] = hospital
        while len(self._hospitals) > at_most:
            self.delete(next(iter(self._hospitals)))
        return hospital

    def all(self) -> Iterable[Hospital]:
        """Return every hospital, oldest first."""
        return self._hospitals.values()

    def get(self, hospital_id: int) -> Hospital | None:
        """Return the hospital with this id, if there is one."""
        return self._hospitals.get(hospital_id)

    def batch(self, batch_id: UUID) -> list[Hospital]:
        """Return the hospitals of a batch, oldest first; empty when there are none."""
        return list(self._batches.get(batch_id, {}).values())

    def batch_size(self, batch_id: UUID) -> int:
        """Count the hospitals of a batch."""
        return len(self._batches.get(batch_id, ()))

    def delete(self, hospital_id: int) -> bool:
        """Remove a hospital and say whether it was there."""
        hospital = self._hospitals.pop(hospital_id, None)
        if hospital and (batch_id := hospital.creation_batch_id):
            del self._batches[batch_id][hospital_id]
            if not self._batches[batch_id]:
                del self._batches[batch_id]
        return hospital is not None
