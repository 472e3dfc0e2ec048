"""The commands ``wait``, ``doctor``, ``url`` and ``budget``."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from sqlalchemy.exc import SQLAlchemyError

from sa_railway.cli.command import Command, Database, json_option, report_error, table_option
from sa_railway.config.budget import count_processes, plan_budget
from sa_railway.config.masking import masked
from sa_railway.config.profile import Profile, load_profile
from sa_railway.config.url import find_url
from sa_railway.doctor.progress import has_rich, shown_progress
from sa_railway.doctor.sources import look_up
from sa_railway.exc import ConfigurationError, NotReadyError
from sa_railway.faults import classify, first_line
from sa_railway.recovery.wait import wait_for_database

if TYPE_CHECKING:
    from sa_railway.doctor.findings import Diagnosis

_OK, _NOT_OK = 0, 1


def _width() -> int:
    """Return the columns of the terminal, but for one that is too wide to read."""
    return min(shutil.get_terminal_size().columns, 100)


@click.command(
    cls=Command,
    short_help="Wait until the database answers.",
    epilog="Exit status: 0 it is ready, 1 it is not, 2 the command was not understood.",
)
@click.option(
    "--timeout", metavar="S", default=120.0, show_default=True, help="Seconds to wait at most."
)
@table_option
@click.option(
    "--revision", metavar="REV", help="The Alembic revision to be reached: an id, or head."
)
@click.option(
    "--alembic-config",
    metavar="PATH",
    default="alembic.ini",
    show_default=True,
    help="For --revision head.",
)
@json_option
@click.option("--quiet", is_flag=True, help="Print nothing but what went wrong.")
def wait(database: Database, *, as_json: bool, quiet: bool, **wanted: Any) -> int:
    """Wait until the database answers, and holds what is asked for.

    A wrong password or a missing database ends it at once.
    """
    url = find_url(database.url)
    started = time.monotonic()
    result: dict[str, Any] = {"ready": True, "database": masked(url)}
    if as_json or quiet:
        wanted["progress"] = lambda line: None
    try:
        _wait_for(database, url, **wanted)
    except NotReadyError as error:
        result |= {"ready": False, "error": str(error), "missing": error.missing}
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"the driver of {url.drivername} is missing: {error}") from error
    except (SQLAlchemyError, OSError) as error:
        advice = classify(error).advice
        result |= {"ready": False, "error": first_line(error), "advice": advice}
    result["seconds"] = round(time.monotonic() - started, 1)
    if as_json:
        click.echo(json.dumps(result))
    elif not result["ready"]:
        report_error("\n".join([f"not ready: {result['error']}", *_advice(result)]))
    elif not quiet:
        is_found = database.url is not None or any(source.url for source in look_up(os.environ))
        note = "" if is_found else " (no database URL is set)"
        click.echo(f"ready after {result['seconds']} s: {result['database']}{note}")
    return _OK if result["ready"] else _NOT_OK


def _advice(result: dict[str, Any]) -> list[str]:
    return [result["advice"]] if "advice" in result else []


def _wait_for(database: Database, url: Any, **wanted: Any) -> None:
    engine = database.engine
    if engine is None or not engine.dialect.is_async:
        wait_for_database(engine or url, **wanted)
        return
    import asyncio

    from sqlalchemy.ext.asyncio import AsyncEngine

    from sa_railway.asyncio import wait_for_database as wait_for_database_async

    asyncio.run(wait_for_database_async(AsyncEngine(engine), **wanted))


def _scale(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what the connection budget depends on."""
    for option in (
        click.option(
            "--extra",
            metavar="N",
            default=0,
            show_default=True,
            help="Connections of other programs.",
        ),
        click.option(
            "--processes",
            metavar="N",
            type=int,
            help="Processes in each.  [default: WEB_CONCURRENCY, or 1]",
        ),
        click.option(
            "--replicas", metavar="N", default=1, show_default=True, help="Of the service."
        ),
        click.option(
            "--profile",
            metavar="NAME",
            help="A named profile.  [default: that of the application's engine, or web]",
        ),
    ):
        command = option(command)
    return command


@click.command(
    cls=Command,
    short_help="Say what is wrong between application and database.",
    epilog="Exit status: 0 nothing but notes was found, 1 errors or warnings were, 2 the command "
    "was not understood.",
)
@_scale
@table_option
@click.option(
    "--timeout",
    metavar="S",
    default=5.0,
    show_default=True,
    help="Seconds for every single wait.",
)
@click.option(
    "--explain",
    metavar="TEXT",
    help="Examine nothing; say what is known of a finding by its name, or of an error's text.",
)
@json_option
def doctor(
    database: Database, *, explain: str | None, profile: str | None, as_json: bool, **wanted: Any
) -> int:
    """Examine everything between the application and its database.

    Each finding says what is wrong, why, and how to mend it. Nothing is written to the database.
    """
    if explain is not None:
        from sa_railway.doctor.explanation import explain as print_explanation

        return _OK if print_explanation(explain, _width(), as_json=as_json) else _NOT_OK
    from sa_railway.doctor.examine import examine

    with shown_progress() as progress:
        diagnosis = examine(
            database.url,
            giver=database.giver,
            profile=profile or database.profile,
            progress=progress,
            **wanted,
        )
    _print_diagnosis(diagnosis, as_json=as_json)
    return _OK if diagnosis.is_healthy else _NOT_OK


def _print_diagnosis(diagnosis: Diagnosis, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(diagnosis.as_dict(), indent=2))
    elif sys.stdout.isatty() and has_rich():
        from sa_railway.doctor.screen import show

        show(diagnosis)
    else:
        from sa_railway.doctor.text import render

        click.echo(render(diagnosis, _width()))


@click.command(
    cls=Command,
    short_help="Show which database URL is used.",
    epilog="Exit status: 0 there is one, 1 there is none, 2 the command was not understood.",
)
@click.option("--unpooled", is_flag=True, help="Prefer DATABASE_UNPOOLED_URL, as migrations do.")
@json_option
def url(*, unpooled: bool, as_json: bool) -> int:
    """Show which database URL is used, and why not another one.

    The password is left out. Nothing is connected.
    """
    from sa_railway.doctor.sources import as_dict, describe
    from sa_railway.doctor.text import render_pairs

    sources = look_up(os.environ, unpooled=unpooled)
    if as_json:
        click.echo(json.dumps(as_dict(sources)))
    else:
        click.echo(render_pairs(describe(sources), _width()))
    return _OK if any(source.url is not None for source in sources) else _NOT_OK


@click.command(
    cls=Command,
    short_help="Compare connections with the server's limit.",
    epilog="Exit status: 0 it fits, or the limit is not known; 1 it does not; 2 the command was "
    "not understood.",
)
@_scale
@click.option("--pool-size", metavar="N", type=int, help="[default: the profile's]")
@click.option("--max-overflow", metavar="N", type=int, help="[default: the profile's]")
@click.option(
    "--overlap",
    metavar="N",
    default=2,
    show_default=True,
    help="Deployments at the same time.",
)
@click.option("--max-connections", metavar="N", type=int, help="What SHOW max_connections says.")
@click.option(
    "--reserved",
    metavar="N",
    default=3,
    show_default=True,
    help="What SHOW superuser_reserved_connections says.",
)
@json_option
def budget(
    *,
    database: Database = Database(),  # noqa: B008 - it is immutable
    profile: str | None,
    replicas: int,
    processes: int | None,
    pool_size: int | None,
    max_overflow: int | None,
    as_json: bool,
    **others: int,
) -> int:
    """Compare the connections that the application may open with what the server allows.

    Nothing is connected; the doctor asks the server for its limit.
    """
    chosen = profile or database.profile
    if not isinstance(chosen, Profile):
        chosen = load_profile(chosen, {}, os.environ)
    found = plan_budget(
        replicas,
        count_processes(os.environ) if processes is None else processes,
        chosen.pool_size if pool_size is None else pool_size,
        chosen.max_overflow if max_overflow is None else max_overflow,
        **others,
    )
    click.echo(json.dumps(asdict(found)) if as_json else "\n".join(found.sentences))
    return _NOT_OK if found.fits is False else _OK
