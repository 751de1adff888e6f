"""What `/metrics` says, read as Prometheus reads it, and what changed of it meanwhile."""

from __future__ import annotations

from types import TracebackType

from prometheus_client.parser import text_string_to_metric_families

from live_metrics import exposition
from service import Service

PREFIX = "hospital_bulk_"


def samples(text: str) -> dict[str, float]:
    """The samples of this service, as `name{label="value"}` without the prefix, to their values."""
    return {
        sample.name.removeprefix(PREFIX)
        + (
            "{" + ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items())) + "}"
            if sample.labels
            else ""
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith(PREFIX)
    }


class Counted:
    """The counts that changed inside the ``with`` block, by how much; histograms by their `_count` alone."""

    def __init__(self, parts: Service) -> None:
        self._parts = parts
        self.changes: dict[str, float] = {}

    def __enter__(self) -> Counted:
        self._before = self._read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        now = self._read()
        self.changes = {
            name: value - self._before.get(name, 0) for name, value in now.items() if value != self._before.get(name, 0)
        }

    def of(self, *names: str) -> dict[str, float]:
        """The changes of the metrics of these names."""
        return {name: by for name, by in self.changes.items() if name.split("{")[0] in names}

    def _read(self) -> dict[str, float]:
        return {
            name: value
            for name, value in samples(exposition(self._parts).decode()).items()
            if name.split("{")[0].endswith(("_total", "_count"))
        }
