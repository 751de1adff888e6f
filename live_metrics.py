"""What goes on in one service at this moment, as Prometheus gauges, and the whole answer of `/metrics`.

The gauges are read anew for each answer and registered nowhere, so several apps in one process do not mix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import REGISTRY, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from service import Service


def exposition(parts: Service) -> bytes:
    """All metrics in Prometheus' text format: what was counted, what goes on in `parts`, and the process."""
    return generate_latest(REGISTRY) + generate_latest(_Live(parts))


@dataclass(frozen=True, slots=True)
class _Live:
    parts: Service

    def collect(self) -> Iterator[Metric]:
        for name, about, value in self._values():
            if value is not None:
                yield GaugeMetricFamily(f"hospital_bulk_{name}", about, value=value)

    def _values(self) -> tuple[tuple[str, str, float | None], ...]:
        parts, now = self.parts, self.parts.runner.activity
        return (
            ("batches_running", "Batches that this process works on.", now.batches_running),
            (
                "batches_running_limit",
                "MAX_RUNNING_BATCHES, of all processes together.",
                parts.settings.max_running_batches,
            ),
            ("rows_waiting", "Rows that wait for their turn to be sent to the directory.", now.rows_waiting),
            ("creates_in_flight", "Creates that the directory has not answered yet.", now.creates_in_flight),
            ("creates_held", "1 while no create goes out, since the directory refuses them, else 0.", now.creates_held),
            (
                "callers_waiting",
                "Callers who wait for the end of a batch; each holds a thread.",
                parts.waiting_places.taken,
            ),
            ("streams_open", "Callers who follow a batch as events; each holds a thread.", parts.stream_places.taken),
            ("files_reading", "Uploaded files that are being read at this moment.", parts.reading_places.taken),
            ("directory_awake", "1 when the directory answered in the last 5 minutes, else 0.", now.directory_awake),
            (
                "directory_last_answer_seconds",
                "Seconds since the directory last answered with anything but a 5xx; not there before the first answer.",
                now.seconds_since_answer,
            ),
        )
