"""Type checkers accept what a user may write, and refuse the rest."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
USER_CODE = ROOT / "tests" / "typing" / "user_code.py"
WRONG = {
    number
    for number, line in enumerate(USER_CODE.read_text().splitlines(), 1)
    if line.endswith("# wrong")
}


def run(module, *arguments):
    command = [sys.executable, "-m", module, *arguments, str(USER_CODE)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT).stdout


def refused_by_mypy():
    errors = map(json.loads, run("mypy", "--strict", "--output=json").splitlines())
    return {error["line"] for error in errors if error["severity"] == "error"}


def refused_by_pyright():
    output = json.loads(run("pyright", "--outputjson", "--pythonpath", sys.executable))
    errors = [one for one in output["generalDiagnostics"] if one["severity"] == "error"]
    return {error["range"]["start"]["line"] + 1 for error in errors}


@pytest.mark.parametrize("refused", [refused_by_mypy, refused_by_pyright])
def test_a_type_checker_refuses_the_wrong_lines_and_no_other(refused):
    assert refused() == WRONG
