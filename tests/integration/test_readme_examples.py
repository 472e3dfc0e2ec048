"""The Python of the README and of the pages, run as it stands."""

import re
from pathlib import Path
from typing import Any

import pytest
from marked import in_text
from sqlalchemy import Engine

ROOT = Path(__file__).parents[2]
NAMES = (
    "README",
    *(f"docs/{name}" for name in ("flask", "servers", "start", "scripts", "transactions")),
)
PAGES = "".join((ROOT / f"{name}.md").read_text() for name in NAMES)
BLOCKS = re.findall(r"```python\n(.*?)```", PAGES, re.DOTALL)
PRINTED = {
    "SELECT 'connected'": "connected\n",
    "SELECT 'answered'": "answered\n",
    "run_transaction(engine, transfer)": "200\n",
}


@pytest.mark.parametrize("block", BLOCKS, ids=[b.split("\n")[0][:40] for b in BLOCKS])
def test_an_example_runs(block, database_url, monkeypatch, tmp_path, capsys):
    for name in ("DATABASE_URL", "AUDIT_DATABASE_URL"):
        monkeypatch.setenv(name, in_text(database_url))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "example"}

    exec(compile(block, "README.md", "exec"), names)

    engines = [value for value in names.values() if isinstance(value, Engine)]
    if "db" in names:
        app = names["app"] if "app" in names else names["create_app"]()
        with app.app_context():
            engines += names["db"].engines.values()
    for engine in engines:
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT 1").scalar() == 1
        engine.dispose()
    expected = "".join(printed for part, printed in PRINTED.items() if part in block)
    assert capsys.readouterr().out == expected


def test_there_are_examples():
    assert len(BLOCKS) >= 4
