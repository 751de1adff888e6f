"""What `docs/operations.md` and `docs/alerts.yml` name is there: metrics, their labels, and headings."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from live_metrics import exposition
from tests.directory import Directory
from tests.local_service import LocalService
from tests.metrics import PREFIX, samples
from tests.running import ROOT

PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
RULES: list[dict[str, Any]] = yaml.safe_load((ROOT / "docs" / "alerts.yml").read_text(encoding="utf-8"))["groups"][0][
    "rules"
]
# Not ours, or of a request that is not made here.
NOT_LOOKED_AT = "http_requests_total"


@pytest.fixture(scope="module")
def served(shared_directory: Directory) -> dict[str, float]:
    """The samples of a service that has once called the directory."""
    with LocalService(shared_directory) as service:
        assert service.call("GET", "/ready?directory=true").status_code == 200
        return samples(exposition(service.parts).decode())


def _selectors(text: str) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    """Each metric in the text, with the labels that are to be equal to something."""
    found = re.findall(rf"{PREFIX}(\w+)(?:\{{([^}}]*)\}})?", text)
    return {(name, tuple(re.findall(r'(\w+)="([^"]*)"', labels))) for name, labels in found if name}


def _is_served(served: dict[str, float], name: str, labels: tuple[tuple[str, str], ...]) -> bool:
    return any(
        sample.split("{")[0] == name and all(f'{label}="{value}"' in sample for label, value in labels)
        for sample in served
    )


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_what_is_served_and_points_to_a_heading(
    served: dict[str, float], rule: dict[str, Any]
) -> None:
    for name, labels in _selectors(rule["expr"]):
        assert name == NOT_LOOKED_AT or _is_served(served, name, labels), (name, labels)
    assert f"## {rule['annotations']['see']}\n" in PAGE
    assert rule["labels"]["severity"] in ("page", "ticket")


def test_the_page_shows_what_is_served(served: dict[str, float]) -> None:
    shown = {line.split(" ")[0] for line in PAGE.splitlines() for line in [line.strip()] if line.startswith(PREFIX)}
    assert len(shown) > 10
    for sample in shown:
        name = sample.removeprefix(PREFIX)
        assert name.startswith(NOT_LOOKED_AT) or name in served, name
