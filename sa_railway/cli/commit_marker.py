"""``sa-railway commit-marker``: create the table of commit markers, or say if it can be used."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError

from sa_railway.commit.marker_schema import TABLE, create_sql, describe, drop_sql, repair_sql
from sa_railway.config.masking import masked
from sa_railway.config.url import find_url, normalize_url
from sa_railway.exc import ConfigurationError
from sa_railway.faults import first_line
from sa_railway.plugin import create_engine

__all__ = ["add"]


def add(subparsers: Any) -> None:
    """Add the command to those of ``sa-railway``."""
    parser = subparsers.add_parser(
        "commit-marker",
        help="create the table by which the outcome of every COMMIT can be proved",
        description="Create the table of commit markers, for create_engine(commit_marker=True), "
        "or say whether the role of the URL can use it.",
        epilog="exit status: 0 the table can be used, or is gone as asked; 1 it cannot be used, or "
        "the server refused; 2 wrong usage",
    )
    parser.set_defaults(run=_run, prog=parser.prog)
    parser.add_argument("url", metavar="URL", nargs="?", help="default: from the environment")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--create", action="store_true", help="create it, or repair what is there")
    action.add_argument("--drop", action="store_true", help="drop it")
    parser.add_argument(
        "--sql",
        action="store_true",
        help="print the SQL that would create it, or drop it, and execute nothing",
    )
    parser.add_argument(
        "--schema",
        metavar="NAME",
        help="default: the first of the application's search path",
    )
    parser.add_argument("--grant-to", metavar="ROLE", help="let this role use it, too")
    parser.add_argument("--json", action="store_true", help="print one JSON object, and no more")


def _run(options: argparse.Namespace) -> int:
    if options.grant_to and (options.drop or not (options.create or options.sql)):
        raise ConfigurationError(
            "--grant-to is given; allowed: together with --create, or with --sql alone"
        )
    statements = (
        drop_sql(options.schema)
        if options.drop
        else create_sql(options.schema, grant_to=options.grant_to)
    )
    if options.sql:
        print(json.dumps({"sql": statements}) if options.json else ";\n".join(statements) + ";")
        return 0
    url = _find_postgresql(options.url)
    engine = create_engine(url, profile="script")
    try:
        with engine.begin() as connection:
            state = describe(connection, options.schema)
            if options.create and state["usable"]:
                # to create what is there takes a right on the schema, which the role need not have
                statements = [] if state["complete"] else repair_sql(options.schema)
                statements += create_sql(options.schema, grant_to=options.grant_to)[2:]
            if options.create or options.drop:
                for statement in statements:
                    connection.exec_driver_sql(statement)
                state = describe(connection, options.schema)
    except SQLAlchemyError as error:
        unknown = {"table": None, "usable": False, "found": False, "complete": False}
        state = {**unknown, "error": first_line(error)}
    finally:
        engine.dispose()
    return _report(state, masked(url), options)


def _find_postgresql(given: str | None) -> URL:
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


def _report(state: dict[str, Any], database: str, options: argparse.Namespace) -> int:
    is_usable = state["usable"] and state["found"] and state["complete"]
    is_as_asked = not state["table"] if options.drop and "error" not in state else is_usable
    if options.json:
        print(json.dumps({"database": database, **state}))
    elif "error" in state:
        print(f"{options.prog}: {state['error']}", file=sys.stderr)
    elif not state["table"]:
        place = f"schema {options.schema}" if options.schema else "the search path"
        print(f"no {TABLE} in {place}: {database}")
    elif not state["found"]:
        print(f"{state['table']} is there, but not in the search path of this role: {database}")
    elif not state["usable"]:
        print(f"{state['table']} is there, but this role may not read and write it: {database}")
    elif not state["complete"]:
        print(
            f"{state['table']} is there, but lacks its first rows, which {options.prog} --create "
            f"makes: {database}"
        )
    else:
        print(f"{state['table']} can be used, and holds {state['rows']} markers: {database}")
    return 0 if is_as_asked else 1
