"""The commands ``flask railway doctor`` and ``flask railway wait``.

They are ``sa-railway doctor`` and ``wait`` for the database that the application has, with the
profile of its engine, wherever its configuration has that from.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
from flask.cli import AppGroup
from sqlalchemy.exc import SQLAlchemyError

from sa_railway.engine.state import profile_of
from sa_railway.exc import ConfigurationError, NotReadyError
from sa_railway.faults import classify, first_line
from sa_railway.recovery.wait import wait_for_database

if TYPE_CHECKING:
    from flask import Flask
    from sqlalchemy import Engine

__all__ = ["add_commands"]

_WIDEST = 100  # columns; longer lines are hard to read

_database = click.option(
    "--database", default="default", help="The name of its bind.", show_default=True
)
_tables = click.option(
    "--table", "tables", multiple=True, help="A table that must be there; may be repeated."
)


def add_commands(app: Flask, engines: Callable[[], Mapping[str, Engine]]) -> None:
    """Add the commands to *app*.

    Args:
        app: an application.
        engines: returns the engines by their names; called within a context of *app*.
    """
    group = AppGroup("railway", help="Look after the connections of this application.")

    @group.command("doctor")
    @_database
    @_tables
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object, and no more.")
    @click.pass_context
    def doctor(
        context: click.Context, database: str, tables: tuple[str, ...], *, as_json: bool
    ) -> None:
        """Examine everything between this application and its database."""
        with _wrong_usage():
            engine = _chosen(engines(), database)
            status = _examine(engine, database, tables, as_json=as_json)
        context.exit(status)

    @group.command("wait")
    @_database
    @_tables
    @click.option("--timeout", default=120.0, help="Seconds.", show_default=True)
    @click.pass_context
    def wait(
        context: click.Context, database: str, tables: tuple[str, ...], timeout: float
    ) -> None:
        """Wait until the database answers, and holds what is asked for."""
        with _wrong_usage():
            status = _wait(_chosen(engines(), database), tables, timeout)
        context.exit(status)

    app.cli.add_command(group)


@contextmanager
def _wrong_usage() -> Iterator[None]:
    """Let click say what is wrong with the arguments, and exit with 2."""
    try:
        yield
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error


def _chosen(engines: Mapping[str, Engine], name: str) -> Engine:
    if name in engines:
        return engines[name]
    raise ConfigurationError(f"database is {name!r}; allowed: {', '.join(engines)}")


def _examine(engine: Engine, name: str, tables: tuple[str, ...], *, as_json: bool) -> int:
    from sa_railway.doctor.examine import examine
    from sa_railway.doctor.text import render

    profile = profile_of(engine)
    diagnosis = examine(engine.url, giver=f"bind {name}", profile=profile, tables=tables)
    if as_json:
        click.echo(json.dumps(diagnosis.as_dict(), indent=2))
    else:
        click.echo(render(diagnosis, min(shutil.get_terminal_size().columns, _WIDEST)))
    return 0 if diagnosis.is_healthy else 1


def _wait(engine: Engine, tables: tuple[str, ...], timeout: float) -> int:
    try:
        _wait_for(engine, tables, timeout)
    except NotReadyError as error:
        click.echo(f"not ready: {error}", err=True)
    except (SQLAlchemyError, OSError) as error:
        click.echo(f"not ready: {first_line(error)}\n{classify(error).advice}", err=True)
    else:
        return 0
    return 1


def _wait_for(engine: Engine, tables: tuple[str, ...], timeout: float) -> None:
    if not engine.dialect.is_async:
        wait_for_database(engine, timeout=timeout, tables=tables)
        return
    import asyncio

    from sqlalchemy.ext.asyncio import AsyncEngine

    from sa_railway.asyncio import wait_for_database as wait_for_database_async

    waiting = wait_for_database_async(AsyncEngine(engine), timeout=timeout, tables=tables)
    asyncio.run(waiting)
