"""The page on limits names the defaults that the code has."""

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest

from sa_railway import Profile, run_transaction, wait_for_database
from sa_railway.recovery import wait
from sa_railway.recovery.retry import PRESETS

PAGE = (Path(__file__).parents[2] / "docs" / "limits.md").read_text()
ROWS = {
    name: default.strip()
    for names, default in re.findall(r"^\| ([^|]*`[^|]*) \|([^|]*)\|", PAGE, re.M)
    for name, default in zip(
        re.findall(r"`([^`]+)`", names), default.strip().split(", "), strict=False
    )
}
FIELDS = {knob.name for knob in fields(Profile)}


@pytest.mark.parametrize("name", sorted(FIELDS & ROWS.keys()))
def test_the_default_of_a_field(name):
    assert ROWS[name] == repr(getattr(Profile(), name))


@pytest.mark.parametrize(
    "name",
    sorted(name for name in FIELDS if re.search(r"timeout|patience|pause|idle|keepalives_", name)),
)
def test_every_limit_of_the_profile_is_there(name):
    assert name in ROWS or name == "health_idle_in_transaction"


def test_the_defaults_of_functions():
    assert ROWS["retry(deadline=)"] == f"{PRESETS['query'].deadline:g}"
    assert f'"startup"` {PRESETS["startup"].deadline:g}' in PAGE
    for function in (run_transaction, wait_for_database):
        default = inspect.signature(function).parameters["timeout"].default
        assert ROWS[f"{function.__name__}(timeout=)"] == f"{default:g}"
    assert f"or {wait._DEFAULT_LIMIT:g} where a plain engine has none" in PAGE
