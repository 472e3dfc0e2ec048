"""The command line, as far as nobody connects."""

import pytest

import sa_railway
from sa_railway.cli import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "sa-railway: error: the following arguments are required: COMMAND\n"),
        (["wait", "--table"], "sa-railway wait: error: argument --table: expected one argument\n"),
        (
            ["wait", "--timeout", "soon"],
            "sa-railway wait: error: argument --timeout: invalid float value: 'soon'\n",
        ),
    ],
)
def test_arguments_that_cannot_be_parsed(capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        main(arguments)

    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith(message)


def test_the_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])

    assert caught.value.code == 0
    assert capsys.readouterr().out == f"sa-railway {sa_railway.__version__}\n"
