"""The ``sa-railway`` command.

Exit statuses: 0, it is as it should be; 1, it is not; 2, the command was not used correctly;
130, Ctrl-C; 141, the reader of the output has gone, as in ``| head``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

import sa_railway
from sa_railway.cli import commands
from sa_railway.cli.command import Database, Way
from sa_railway.cli.commit_marker import commit_marker

__all__ = ["main"]

_INTERRUPTED, _UNREAD = 130, 141
_NAME = "sa-railway"


@click.group(help="Look after the connections to a hosted PostgreSQL.")
@click.version_option(sa_railway.__version__, prog_name=_NAME, message="%(prog)s %(version)s")
def _group() -> None:
    pass


_BY_URL = Way(
    click.Argument(["database"], metavar="[URL]", required=False),
    lambda given: Database(given),
)
for _template in (commands.wait, commands.doctor, commit_marker):
    _group.add_command(_BY_URL.to(_template))
_group.add_command(commands.url)
_group.add_command(commands.budget)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with *arguments*, or those of the process, and return its exit status."""
    try:
        try:
            return _run(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            print(end="", flush=True)
    except BrokenPipeError:
        # or Python would complain at its end that it could not write the rest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _UNREAD


def _run(arguments: list[str]) -> int:
    try:
        with _group.make_context(_NAME, arguments) as context:
            _group.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except KeyboardInterrupt:
        return _INTERRUPTED
    return 0
