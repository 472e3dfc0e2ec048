"""The ``sa-railway`` command.

A subcommand is a function that adds its parser to the others and names the function that runs it,
which takes the parsed arguments and returns the exit status; it is listed in ``_COMMANDS``.

Exit statuses: 0, it is as it should be; 1, it is not; 2, the command was not used correctly;
130, Ctrl-C; 141, the reader of the output has gone, as in ``| head``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError

import sa_railway
from sa_railway.cli import commit_marker
from sa_railway.config.budget import count_processes, plan_budget
from sa_railway.config.masking import masked
from sa_railway.config.profile import load_profile
from sa_railway.config.url import find_url
from sa_railway.doctor.progress import has_rich, shown_progress
from sa_railway.exc import ConfigurationError, NotReadyError
from sa_railway.faults import classify, first_line
from sa_railway.recovery.wait import wait_for_database

if TYPE_CHECKING:
    from sa_railway.doctor.findings import Diagnosis

__all__ = ["main"]

_OK, _NOT_OK, _USAGE, _INTERRUPTED, _UNREAD = 0, 1, 2, 130, 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with *arguments*, or those of the process, and return its exit status.

    Raises:
        SystemExit: the arguments cannot be parsed (2), or help was asked for (0).
    """
    try:
        try:
            return _run(_parser().parse_args(arguments))
        finally:
            print(end="", flush=True)
    except BrokenPipeError:
        # or Python would complain at its end that it could not write the rest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _UNREAD


def _run(options: argparse.Namespace) -> int:
    try:
        status: int = options.run(options)
    except ConfigurationError as error:
        _print_error(str(error), options)
        return _USAGE
    except KeyboardInterrupt:
        return _INTERRUPTED
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sa-railway", description="Look after the connections to a hosted PostgreSQL."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {sa_railway.__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in _COMMANDS:
        add(subparsers)
    return parser


def _print_error(message: str, options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps({"error": message}))
    print(f"{options.prog}: {message}", file=sys.stderr)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object, and no more")


def _add_tables(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--table",
        metavar="NAME",
        dest="tables",
        action="append",
        default=[],
        help="a table that must be there, such as orders or billing.invoice; may be repeated",
    )


def _add_wait(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "wait",
        help="wait until the database answers, and holds what is asked for",
        description="Wait until the database answers, and holds what is asked for. A wrong "
        "password or a missing database ends it at once.",
        epilog="exit status: 0 ready, 1 not ready, 2 wrong usage",
    )
    parser.set_defaults(run=_wait, prog=parser.prog)
    parser.add_argument("url", metavar="URL", nargs="?", help="default: from the environment")
    parser.add_argument(
        "--timeout", metavar="S", type=float, default=120.0, help="seconds; default: %(default)g"
    )
    _add_tables(parser)
    parser.add_argument(
        "--revision", metavar="REV", help="the Alembic revision to be reached: an id, or head"
    )
    parser.add_argument(
        "--alembic-config",
        metavar="PATH",
        default="alembic.ini",
        help="for --revision head; default: %(default)s",
    )
    _add_json(parser)
    parser.add_argument("--quiet", action="store_true", help="print nothing but what went wrong")


def _wait(options: argparse.Namespace) -> int:
    url = find_url(options.url)
    started = time.monotonic()
    result: dict[str, Any] = {"ready": True, "database": masked(url)}
    try:
        _wait_for(url, options)
    except NotReadyError as error:
        result |= {"ready": False, "error": str(error), "missing": error.missing}
    except (SQLAlchemyError, OSError) as error:
        advice = classify(error).advice
        result |= {"ready": False, "error": first_line(error), "advice": advice}
    result["seconds"] = round(time.monotonic() - started, 1)
    _print_result(result, options)
    return _OK if result["ready"] else _NOT_OK


def _wait_for(url: URL, options: argparse.Namespace) -> None:
    is_silent = options.json or options.quiet
    wait_for_database(
        url,
        timeout=options.timeout,
        tables=options.tables,
        revision=options.revision,
        alembic_config=options.alembic_config,
        progress=(lambda line: None) if is_silent else None,
    )


def _print_result(result: dict[str, Any], options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps(result))
    elif not result["ready"]:
        print(f"{options.prog}: not ready: {result['error']}", file=sys.stderr)
        if "advice" in result:
            print(result["advice"], file=sys.stderr)
    elif not options.quiet:
        print(f"ready after {result['seconds']} s: {result['database']}")


def _add_doctor(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "doctor",
        help="examine everything between the application and its database",
        description="Examine everything between the application and its database. Each finding "
        "says what is the matter, why, and what to do. Nothing is written to the database.",
        epilog="exit status: 0 nothing but notes was found, 1 errors or warnings, 2 wrong usage",
    )
    parser.set_defaults(run=_doctor, prog=parser.prog)
    parser.add_argument("url", metavar="URL", nargs="?", help="default: from the environment")
    _add_scale(parser)
    _add_tables(parser)
    parser.add_argument(
        "--timeout",
        metavar="S",
        type=float,
        default=5.0,
        help="seconds for every single wait; default: %(default)g",
    )
    parser.add_argument(
        "--explain",
        metavar="TEXT",
        help="examine nothing; say what is known of a finding by its name, or of an error's text",
    )
    _add_json(parser)


def _add_scale(parser: argparse.ArgumentParser) -> None:
    """Add what the connection budget depends on."""
    parser.add_argument("--profile", default="web", help="default: %(default)s")
    parser.add_argument(
        "--replicas", metavar="N", type=int, default=1, help="of the service; default: 1"
    )
    parser.add_argument(
        "--processes", metavar="N", type=int, help="in each; default: WEB_CONCURRENCY, or 1"
    )
    parser.add_argument(
        "--extra", metavar="N", type=int, default=0, help="connections of others; default: 0"
    )


def _doctor(options: argparse.Namespace) -> int:
    if options.explain is not None:
        from sa_railway.doctor.explanation import explain

        return _OK if explain(options.explain, _width(), as_json=options.json) else _NOT_OK
    from sa_railway.doctor.examine import examine

    with shown_progress() as progress:
        diagnosis = examine(
            options.url,
            profile=options.profile,
            replicas=options.replicas,
            processes=options.processes,
            extra=options.extra,
            tables=options.tables,
            timeout=options.timeout,
            progress=progress,
        )
    _print_diagnosis(diagnosis, as_json=options.json)
    return _OK if diagnosis.is_healthy else _NOT_OK


def _print_diagnosis(diagnosis: Diagnosis, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(diagnosis.as_dict(), indent=2))
    elif sys.stdout.isatty() and has_rich():
        from sa_railway.doctor.screen import show

        show(diagnosis)
    else:
        from sa_railway.doctor.text import render

        print(render(diagnosis, _width()))


def _width() -> int:
    """Return the columns of the terminal, but for one that is too wide to read."""
    return min(shutil.get_terminal_size().columns, 100)


def _add_url(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "url",
        help="show which database URL is used, and why not another one",
        description="Show which database URL is used, without its password, and what was passed "
        "over. Nothing is connected.",
        epilog="exit status: 0 there is one, 1 there is none, 2 wrong usage",
    )
    parser.set_defaults(run=_url, prog=parser.prog)
    parser.add_argument(
        "--unpooled", action="store_true", help="prefer DATABASE_UNPOOLED_URL, as migrations do"
    )
    _add_json(parser)


def _url(options: argparse.Namespace) -> int:
    from sa_railway.doctor.sources import as_dict, describe, look_up
    from sa_railway.doctor.text import render_pairs

    sources = look_up(os.environ, unpooled=options.unpooled)
    if options.json:
        print(json.dumps(as_dict(sources)))
    else:
        print(render_pairs(describe(sources), _width()))
    return _OK if any(source.url is not None for source in sources) else _NOT_OK


def _add_budget(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "budget",
        help="compare the connections the application may open with what the server allows",
        description="Compare the connections that the application may open with what the server "
        "allows. Nothing is connected; the doctor asks the server for its limit.",
        epilog="exit status: 0 it fits, or the limit is not known; 1 it does not; 2 wrong usage",
    )
    parser.set_defaults(run=_budget, prog=parser.prog)
    _add_scale(parser)
    parser.add_argument("--pool-size", metavar="N", type=int, help="default: the profile's")
    parser.add_argument("--max-overflow", metavar="N", type=int, help="default: the profile's")
    parser.add_argument(
        "--overlap",
        metavar="N",
        type=int,
        default=2,
        help="deployments at the same time; default: 2",
    )
    parser.add_argument(
        "--max-connections", metavar="N", type=int, help="what SHOW max_connections says"
    )
    parser.add_argument(
        "--reserved",
        metavar="N",
        type=int,
        default=3,
        help="superuser_reserved_connections; default: 3",
    )
    _add_json(parser)


def _budget(options: argparse.Namespace) -> int:
    profile = load_profile(options.profile, {}, os.environ)
    budget = plan_budget(
        options.replicas,
        count_processes(os.environ) if options.processes is None else options.processes,
        profile.pool_size if options.pool_size is None else options.pool_size,
        profile.max_overflow if options.max_overflow is None else options.max_overflow,
        overlap=options.overlap,
        extra=options.extra,
        max_connections=options.max_connections,
        reserved=options.reserved,
    )
    print(json.dumps(asdict(budget)) if options.json else "\n".join(budget.sentences))
    return _NOT_OK if budget.fits is False else _OK


_COMMANDS = (_add_wait, _add_doctor, _add_url, _add_budget, commit_marker.add)
