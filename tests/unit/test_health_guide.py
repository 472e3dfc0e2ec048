"""docs/health.md says what the code does."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from sa_railway import Profile
from sa_railway.health import rules
from sa_railway.health.readiness import Readiness
from sa_railway.health.report import HealthReport

GUIDE = (Path(__file__).parents[2] / "docs" / "health.md").read_text()


def first_column(heading):
    table = GUIDE.split(f"| {heading} |")[1].split("\n\n")[0]
    return re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (.*?) \|", table, re.M)))


def test_every_field_of_the_profile_that_matters_is_named():
    named = set(re.findall(r"`((?:health|probe)_\w+)`", GUIDE))

    assert named == {f.name for f in fields(Profile) if f.name.startswith(("health_", "probe_"))}


def test_every_rule_is_listed():
    names = [rule.__name__.removeprefix("_") for rule in rules._RULES]

    assert list(dict.fromkeys(first_column("rule"))) == names


def test_every_part_of_the_report_is_listed():
    known = {f.name for f in fields(HealthReport)} | {"success_rate"}

    assert set(first_column("part")) == known - {"process", "time"}


def test_every_status_of_readiness_is_listed():
    assert set(first_column("status")) == set(Readiness)


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", GUIDE, re.S))
def test_the_examples_run(block, monkeypatch, tmp_path):
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    monkeypatch.setenv(
        "DATABASE_URL", url.replace("sqlite", "sqlite+aiosqlite") if "async" in block else url
    )

    exec(block, {})
