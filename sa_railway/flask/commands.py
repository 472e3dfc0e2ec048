"""The commands ``flask railway``: those of ``sa-railway``, for the databases of an application.

Each is for the database that the application has, with the profile of its engine, wherever its
configuration has that from.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import click
from flask.cli import AppGroup, with_appcontext

from sa_railway.cli import commands
from sa_railway.cli.command import Database, Way
from sa_railway.cli.commit_marker import commit_marker
from sa_railway.engine.state import profile_of
from sa_railway.exc import ConfigurationError

if TYPE_CHECKING:
    from flask import Flask
    from sqlalchemy import Engine


logger = logging.getLogger("sa_railway.flask")


def add_commands(app: Flask, engines: Callable[[], Mapping[str, Engine]]) -> None:
    """Add the commands to *app*.

    Args:
        app: an application.
        engines: returns the engines by their names; called within a context of *app*.
    """

    @with_appcontext
    def choose(name: str) -> Database:
        found = engines()
        if name not in found:
            raise ConfigurationError(f"database is {name!r}; allowed: {', '.join(found)}")
        engine = found[name]
        return Database(engine.url, f"bind {name}", engine, profile_of(engine))

    by_bind = Way(
        click.Option(
            ["--database"], default="default", show_default=True, help="The name of its bind."
        ),
        choose,
    )
    if "railway" in app.cli.commands:
        logger.warning(
            "Flask app %r has a command of the name railway already, so it has none of ours",
            app.name,
        )
        return
    group = AppGroup("railway", help="Look after the connections of this application.")
    for template in (commands.wait, commands.doctor, commands.budget, commit_marker):
        group.add_command(by_bind.to(template))
    app.cli.add_command(group)
