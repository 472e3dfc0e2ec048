"""docs/metrics.md says what there is, and its examples run."""

import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from sa_railway import events
from sa_railway.metrics.prometheus import render

GUIDE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
METRIC = r"sa_railway_\w+"


@pytest.fixture
def exported():
    """The names and types of all metrics of the page."""
    return dict(re.findall(rf"^# TYPE ({METRIC}) (\w+)$", render()[1].decode(), re.M))


def rows(heading):
    return GUIDE.split(f"| {heading} |")[1].split("\n\n")[0].splitlines()[2:]


def test_every_metric_is_listed_with_its_type(exported):
    listed = [re.fullmatch(rf"\| `({METRIC})` \| (\w+) \| .+ \|", row) for row in rows("metric")]

    assert all(listed)
    assert {row[1]: row[2] for row in listed if row} == exported


def test_the_alerts_name_metrics_that_there_are(exported):
    rules = GUIDE.split("## Alerts")[1].split("## ")[0]
    named = set(re.findall(METRIC, rules))

    assert named
    assert {name.removesuffix("_bucket") for name in named} <= exported.keys()


def test_every_event_is_listed():
    listed = re.findall(r"`([A-Z]\w+)`", " ".join(row.split("|")[1] for row in rows("event")))

    assert sorted(listed) == sorted(kind.__name__ for kind in events.Event.__subclasses__())


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", GUIDE, re.S))
def test_the_examples_run(block, monkeypatch, tmp_path):
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'shop.db'}")
    monkeypatch.setattr("prometheus_client.REGISTRY", CollectorRegistry())
    names: dict[str, Any] = {"__name__": __name__}  # Flask looks for the module

    exec(block, names)

    names.get("unsubscribe", lambda: None)()
