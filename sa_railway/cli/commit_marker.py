"""The command ``commit-marker``: create the table of commit markers, or say if it can be used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from sqlalchemy import URL, Engine
from sqlalchemy.exc import SQLAlchemyError

from sa_railway.cli.command import Command, Database, json_option, report_error
from sa_railway.commit.marker_schema import TABLE, create_sql, describe, drop_sql, repair_sql
from sa_railway.config.masking import masked
from sa_railway.config.url import find_url, normalize_url
from sa_railway.exc import ConfigurationError
from sa_railway.faults import first_line
from sa_railway.plugin import create_engine


@click.command(
    "commit-marker",
    cls=Command,
    short_help="Create the table that proves every COMMIT.",
    epilog="Exit status: 0 the table can be used, or is gone as asked; 1 it cannot be used, or the "
    "server refused; 2 the command was not understood.",
)
@click.option("--create", is_flag=True, help="Create it, or repair what is there.")
@click.option("--drop", is_flag=True, help="Drop it.")
@click.option(
    "--sql",
    is_flag=True,
    help="Print the SQL that would create it, or drop it, and execute nothing.",
)
@click.option(
    "--schema", metavar="NAME", help="[default: the first of the application's search path]"
)
@click.option("--grant-to", metavar="ROLE", help="Let this role use it, too.")
@json_option
def commit_marker(
    database: Database,
    *,
    create: bool,
    drop: bool,
    sql: bool,
    schema: str | None,
    grant_to: str | None,
    as_json: bool,
) -> int:
    """Create the table by which the outcome of every COMMIT can be proved.

    Without --create or --drop, say whether the role of the URL can use it, as it is needed for
    create_engine(commit_marker=True).
    """
    if create and drop:
        raise ConfigurationError("--create and --drop are given; allowed: one of them")
    if grant_to and (drop or not (create or sql)):
        raise ConfigurationError(
            "--grant-to is given; allowed: together with --create, or with --sql alone"
        )
    statements = drop_sql(schema) if drop else create_sql(schema, grant_to=grant_to)
    if sql:
        click.echo(json.dumps({"sql": statements}) if as_json else ";\n".join(statements) + ";")
        return 0
    with _engine_for(database) as engine:
        state = _change(engine, schema, statements if create or drop else [], repairs=create)
        where = masked(engine.url)
    is_usable = state["usable"] and state["found"] and state["complete"]
    is_as_asked = not state["table"] if drop and "error" not in state else is_usable
    if as_json:
        click.echo(json.dumps({"database": where, **state}))
    elif "error" in state:
        report_error(state["error"])
    else:
        click.echo(f"{_describe(state, schema)}: {where}")
    return 0 if is_as_asked else 1


@contextmanager
def _engine_for(database: Database) -> Iterator[Engine]:
    if database.engine is not None and not database.engine.dialect.is_async:
        yield database.engine
        return
    engine = create_engine(_find_postgresql(database.url), profile="script")
    try:
        yield engine
    finally:
        engine.dispose()


def _change(
    engine: Engine, schema: str | None, statements: list[str], *, repairs: bool
) -> dict[str, Any]:
    """Execute *statements*, which create the table or drop it; return what is there then.

    If it can be used already, and *repairs*, only what it lacks is made.
    """
    try:
        with engine.begin() as connection:
            state = describe(connection, schema)
            if repairs and state["usable"]:
                # to create what is there takes a right on the schema, which the role need not have
                statements = [*([] if state["complete"] else repair_sql(schema)), *statements[2:]]
            for statement in statements:
                connection.exec_driver_sql(statement)
            return describe(connection, schema) if statements else state
    except SQLAlchemyError as error:
        unknown = {"table": None, "usable": False, "found": False, "complete": False}
        return {**unknown, "error": first_line(error)}


def _find_postgresql(given: str | URL | None) -> URL:
    """Return the URL of the database, with a driver that waits for no event loop."""
    url = find_url(given)
    if url.get_dialect().is_async:  # nothing here waits for an event loop
        url = normalize_url(url.set(drivername=url.get_backend_name()))
    if url.get_backend_name() != "postgresql":
        if given is None:
            raise ConfigurationError(
                "there is no URL, and without one the database is SQLite; pass a URL, or set "
                "DATABASE_URL"
            )
        raise ConfigurationError(
            f"the database is {url.get_backend_name()}; allowed: PostgreSQL, the only database "
            "with commit markers"
        )
    return url


def _describe(state: dict[str, Any], schema: str | None) -> str:
    table = state["table"]
    if not table:
        place = f"schema {schema}" if schema else "the search path"
        return f"no {TABLE} in {place}"
    if not state["found"]:
        return f"{table} is there, but not in the search path of this role"
    if not state["usable"]:
        return f"{table} is there, but this role may not read and write it"
    if not state["complete"]:
        command = click.get_current_context().command_path
        return f"{table} is there, but lacks its first rows, which {command} --create makes"
    return f"{table} can be used, and holds {state['rows']} markers"
