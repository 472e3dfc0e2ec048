"""The application, the tests and the script of docs/testing.md, run as their reader would."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE = re.compile(r"`(\w+\.py)`:\n\n```python\n(.*?)```", re.DOTALL)


@pytest.fixture
def run(tmp_path, postgres_binaries):
    """Runs a command in a folder with the files of the guide; gives its output."""
    files = dict(FILE.findall((ROOT / "docs" / "testing.md").read_text()))
    assert sorted(files) == ["conftest.py", "script.py", "shop.py", "test_shop.py"]
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, "-W", "error", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_the_tests_of_the_guide_pass(run):
    assert "7 passed" in run("-m", "pytest", "-q", "-p", "no:cacheprovider")


def test_the_script_of_the_guide_works(run):
    assert run("script.py") == "200 OK\n"
