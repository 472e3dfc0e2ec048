"""docs/logs.md says what is logged, and how."""

import json
import logging
import logging.config
import re
from pathlib import Path
from typing import Any

import pytest

import sa_railway

GUIDE = (Path(__file__).parents[2] / "docs" / "logs.md").read_text()


def loggers_and_sources():
    for file in Path(sa_railway.__file__).parent.rglob("*.py"):
        source = file.read_text()
        for name in re.findall(r'getLogger\("([\w.]+)"\)', source):
            yield name, source


def test_every_logger_is_listed_that_says_more_than_debug_shows():
    rows = GUIDE.split("| logger | level | line |")[1].split("\n\n")[0].splitlines()[2:]
    listed = re.findall(r"`(sa_railway[\w.]*)`", " ".join(row.split("|")[1] for row in rows))
    used = {n for n, source in loggers_and_sources() if re.search(r"\blogger\.(?!debug)", source)}

    assert set(listed) == used


def test_all_loggers_belong_to_one_tree():
    assert {name.split(".")[0] for name, _ in loggers_and_sources()} == {"sa_railway"}


@pytest.fixture
def _restored_logging():
    loggers = [logging.getLogger(name) for name in ("", "gunicorn.error", "gunicorn.access")]
    before = [(one.level, one.handlers[:], one.propagate) for one in loggers]
    yield
    for one, (level, handlers, propagate) in zip(loggers, before, strict=True):
        one.level, one.handlers[:], one.propagate = level, handlers, propagate


@pytest.mark.usefixtures("_restored_logging")
def test_the_examples_run_and_log_what_is_shown(capsys):
    application, gunicorn = re.findall(r"```python\n(.*?)```", GUIDE, re.S)
    (shown,) = re.findall(r"```json\n(.*?)```", GUIDE, re.S)

    exec(application, {})

    logged = json.loads(capsys.readouterr().out)
    assert {**logged, "time": "now"} == {**json.loads(shown), "time": "now"}

    names: dict[str, Any] = {}
    exec(gunicorn, names)
    logging.config.dictConfig(names["logconfig_dict"])
