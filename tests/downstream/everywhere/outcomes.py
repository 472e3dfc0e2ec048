"""A plugin of pytest: write the outcome of every test, by its id, into ``RAILWAY_OUTCOMES``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

_WORST = ("passed", "xfailed", "skipped", "failed")

outcomes: dict[str, str] = {}
details: dict[str, str] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    outcome = report.outcome
    if hasattr(report, "wasxfail"):
        outcome = "xfailed"  # type: ignore[assignment]
    seen = outcomes.get(report.nodeid, "passed")
    outcomes[report.nodeid] = max(outcome, seen, key=_WORST.index)
    if report.outcome == "failed":
        details[report.nodeid] = report.longreprtext[-2_000:]


def pytest_sessionfinish(session: Any) -> None:
    found = {"outcomes": outcomes, "details": details}
    Path(os.environ["RAILWAY_OUTCOMES"]).write_text(json.dumps(found))
