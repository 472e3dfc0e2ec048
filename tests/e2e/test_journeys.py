"""The journeys through the package can be traced, and the documentation has them."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def names(table):
    return [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()[2:]]


def test_the_page_has_every_journey():
    command = [sys.executable, str(ROOT / "tests" / "journeys.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    page = (ROOT / "docs" / "architecture.md").read_text()
    table = page.split("<!-- journeys -->\n")[1].split("<!-- /journeys -->")[0]

    assert names(table) == names(done.stdout)
    assert len(names(table)) == 9
