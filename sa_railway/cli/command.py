"""What the commands of ``sa-railway`` and of ``flask railway`` have in common.

A command is a function that takes its options and a ``Database``, and returns the exit status. The
two groups differ by the way in which the caller names the database.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import click
from sqlalchemy import URL, Engine

from sa_railway.config.profile import Profile
from sa_railway.exc import ConfigurationError


@dataclass(frozen=True)
class Database:
    """The database that a command is for.

    Attributes:
        url: as it was given; None is that of the environment.
        giver: where the URL came from, for people.
        engine: of the application that has the database, if there is one.
        profile: of the application.
    """

    url: str | URL | None = field(default=None, repr=False)  # it may hold a password
    giver: str = "the argument"
    engine: Engine | None = None
    profile: str | Profile = "web"


class Command(click.Command):
    """A command whose function returns the exit status, and which says as JSON what was wrong."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:
        """Parse *args*; where they are wrong, print that as JSON as well, if it is asked for."""
        as_json = "--json" in args
        try:
            return super().make_context(info_name, args, *rest, **extra)
        except click.UsageError as error:
            _print_as_json(error, as_json=as_json)
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run the function, and exit with the status that it returns."""
        try:
            status = super().invoke(ctx)
        except ConfigurationError as error:
            refused = _RefusedError(str(error))
            _print_as_json(refused, as_json=ctx.params["as_json"])
            raise refused from error
        ctx.exit(status)


class _RefusedError(click.ClickException):
    exit_code = 2


def _print_as_json(error: click.ClickException, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"error": error.format_message()}))


@dataclass(frozen=True)
class Way:
    """How the caller of a command names the database.

    Attributes:
        parameter: of the command, by the name ``database``.
        choose: returns the database for the value of the parameter.
    """

    parameter: click.Parameter
    choose: Callable[[Any], Database]

    def to(self, template: click.Command) -> click.Command:
        """Return the command *template* with this way to its database."""
        run = template.callback

        def with_database(database: Any, **options: Any) -> Any:
            return run(database=self.choose(database), **options) if run else None

        command = copy.copy(template)
        command.params = [self.parameter, *template.params]
        command.callback = with_database
        return command


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object, and no more."
)
table_option = click.option(
    "--table",
    "tables",
    metavar="NAME",
    multiple=True,
    help="A table that must be there, such as orders or billing.invoice; may be repeated.",
)


def report_error(text: str) -> None:
    """Print *text* on standard error, after the name of the command."""
    click.echo(f"{click.get_current_context().command_path}: {text}", err=True)
