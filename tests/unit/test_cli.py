"""The command line, as far as nothing is connected."""

import json
import re

import pytest

import sa_railway
from sa_railway.cli import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "No such command 'nope'."),
        (["wait", "--table"], "Option '--table' requires an argument."),
        (
            ["wait", "--timeout", "soon"],
            "Invalid value for '--timeout': 'soon' is not a valid float.",
        ),
    ],
)
def test_arguments_that_cannot_be_parsed(capsys, arguments, message):
    assert main(arguments) == 2

    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith(f"Error: {message}\n")


def test_machines_read_what_was_wrong_with_the_arguments(capsys):
    assert main(["doctor", "--json", "--timeout", "soon"]) == 2

    out, err = capsys.readouterr()
    message = "Invalid value for '--timeout': 'soon' is not a valid float."
    assert json.loads(out) == {"error": message}
    assert err.endswith(f"\nError: {message}\n")


def test_without_a_command_the_help_is_shown(capsys):
    status = main([])
    help_of = capsys.readouterr()

    assert main(["--help"]) == 0
    assert (status, capsys.readouterr().out) == (2, help_of.err)


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sa-railway {sa_railway.__version__}\n"


def test_a_default_that_stands_for_a_missing_url_is_named(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    assert main(["wait"]) == 0
    assert re.fullmatch(
        r"ready after [\d.]+ s: sqlite:///app\.db \(no database URL is set\)\n",
        capsys.readouterr().out,
    )


def test_a_driver_that_is_missing_is_named(capsys: pytest.CaptureFixture[str]):
    assert main(["wait", "postgresql+pg8000://h/d"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "Error: the driver of postgresql+pg8000 is missing: No module named 'pg8000'"
    )
