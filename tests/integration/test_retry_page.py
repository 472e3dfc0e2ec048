"""The page on retry() and waiting says what the code does, and its examples run."""

import inspect
import re
from pathlib import Path
from typing import Any

from fix_engines import plain_engine
from marked import in_text

from sa_railway import exc, retry
from sa_railway.recovery.retry import PRESETS

PAGE = (Path(__file__).parents[2] / "docs" / "retry.md").read_text()


def test_the_examples_run(database_url, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", in_text(database_url))
    plain_engine(database_url, "CREATE TABLE orders (n int)")
    names: dict[str, Any] = {}

    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "retry.md", "exec"), names)
    names["engine"].dispose()

    assert names["version"]


def test_the_table_of_presets():
    for name, limits in PRESETS.items():
        row = next(line for line in PAGE.splitlines() if f'`@retry("{name}")`' in line)
        assert row.endswith(
            f"| {limits.attempts} | {limits.backoff_base:g} s, doubling up to "
            f"{limits.backoff_cap:g} s | {limits.deadline:g} s |"
        )


def test_the_docstring_names_the_same_numbers():
    text = " ".join((inspect.getdoc(retry) or "").split())

    assert "3 attempts, waits of 0.5 s doubling to 5 s, a deadline of 20 s" in text
    assert "5 attempts, 2 s doubling to 32 s, 120 s" in text


def test_the_tree_of_errors_is_complete():
    for name in exc.__all__:
        assert name in exc.__doc__
