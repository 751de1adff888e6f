"""What a listing of a batch in the directory says of the rows of the batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from batch import Row
from hospital_client import Hospital


@dataclass(slots=True)
class Found:
    """A listing held against the rows: what is ours, what is there twice, and what matches no row."""

    rows: dict[int, Hospital] = field(default_factory=dict)
    doubles: list[Hospital] = field(default_factory=list)
    strangers: list[Hospital] = field(default_factory=list)
    active: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether the directory holds nothing under the batch."""
        return not (self.rows or self.doubles or self.strangers)

    def has_double(self, row: Row) -> bool:
        """Whether the row is there more than once."""
        return any((it.name, it.address, it.phone) == (row.name, row.address, row.phone) for it in self.doubles)

    def is_all_active(self, total: int) -> bool:
        """Whether each of `total` rows is there once and active, and nothing else is."""
        return len(self.rows) == self.active == total and not self.doubles and not self.strangers


def reconcile(rows: Iterable[Row], listed: Iterable[Hospital]) -> Found:
    """Match hospitals to rows by exact name, address and phone.

    Ids do not tell whose a hospital is, since a restarted directory counts from 1 again; where several match a row,
    the one with the row's recorded id is kept, else the one with the lowest.
    """
    found = Found()
    row_of = {(row.name, row.address, row.phone): row for row in rows}
    for hospital in sorted(listed, key=lambda hospital: hospital.id):
        found.active += hospital.active
        row = row_of.get((hospital.name, hospital.address, hospital.phone))
        if row is None:
            found.strangers.append(hospital)
        elif row.row not in found.rows:
            found.rows[row.row] = hospital
        elif hospital.id == row.hospital_id:
            found.doubles.append(found.rows[row.row])
            found.rows[row.row] = hospital
        else:
            found.doubles.append(hospital)
    return found
