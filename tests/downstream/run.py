"""Run the test suites of SQLAlchemy and its extensions, plain and with the plugin for every engine.

    python tests/downstream/run.py [RUN ...] [--json] [--keep FOLDER]

Each suite comes from the source distribution of the version that is installed. Both sides run at
the same time, each on a server and a copy of the sources of its own. A test that fails only with
the plugin has to be in ``known.toml``, with its reason; any other one makes the exit status 1, and
so does a test of that list that fails in no run, if all have been run.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy

from sa_railway.testing import TemporaryPostgres

HERE = Path(__file__).parent
DATABASE = "test"
SECONDS = 3_600  # for one side of one run


@dataclass(frozen=True)
class Run:
    """One suite, or a part of it, on one driver.

    Attributes:
        package: whose tests they are, as its distribution is called.
        paths: the files and folders to run, in the source distribution.
        driver: of the PostgreSQL server that the suite takes by ``--dburi``; "sqlite" is a file,
            and None is a suite that chooses by itself.
        everywhere: what the plugin is attached to, as in everywhere/sitecustomize.py.
    """

    package: str
    paths: tuple[str, ...]
    driver: str | None = None
    everywhere: str = "engines"


ENGINE = ("test/engine", "test/dialect/postgresql")
RUNS = {
    "sqlalchemy-psycopg2": Run("SQLAlchemy", (*ENGINE, "test/orm"), "psycopg2"),
    "sqlalchemy-psycopg": Run("SQLAlchemy", ENGINE, "psycopg"),
    "sqlalchemy-asyncpg": Run("SQLAlchemy", (*ENGINE, "test/ext/asyncio"), "asyncpg"),
    "sqlalchemy-sqlite": Run("SQLAlchemy", ("test/engine", "test/dialect/sqlite"), "sqlite"),
    "alembic-psycopg2": Run("alembic", ("tests",), "psycopg2"),
    "alembic-sqlite": Run("alembic", ("tests",), "sqlite"),
    "flask-sqlalchemy": Run("Flask-SQLAlchemy", ("tests",)),
    "flask-sqlalchemy-extension": Run("Flask-SQLAlchemy", ("tests",), everywhere="flask"),
    "flask-migrate": Run("Flask-Migrate", ("tests",)),
}


def sources(package: str, folder: Path) -> Path:
    """Return the unpacked source distribution of the installed version of *package*."""
    version = importlib.metadata.version(package)
    target = folder / f"{package}-{version}"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                *("--no-binary", ":all:", "--dest", temporary, f"{package}=={version}"),
            ],
            check=True,
        )
        (archive,) = Path(temporary).glob("*.tar.gz")
        with tarfile.open(archive) as opened:
            opened.extractall(temporary, filter="data")
        (unpacked,) = (path for path in Path(temporary).iterdir() if path.is_dir())
        unpacked.rename(target)
    return target


def prepare(server: TemporaryPostgres) -> None:
    """Make what SQLAlchemy's and Alembic's suites expect of a database."""
    in_database: list[tuple[str | None, tuple[str, ...]]] = [
        (None, (f"CREATE DATABASE {DATABASE}",)),
        (DATABASE, ("CREATE SCHEMA test_schema", "CREATE SCHEMA test_schema_2")),
        (DATABASE, ("CREATE EXTENSION hstore", "CREATE EXTENSION citext")),
    ]
    for database, statements in in_database:
        url = server.url.set(database=database) if database else server.url
        engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for statement in statements:
                # not every build of PostgreSQL has the extensions; both sides miss them alike
                with contextlib.suppress(sqlalchemy.exc.DBAPIError):
                    connection.exec_driver_sql(statement)
        engine.dispose()


def run_side(run: Run, source: Path, *, everywhere: str | None) -> dict[str, Any]:
    """Run one side in a copy of *source*; return what everywhere/outcomes.py has written."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        copy = shutil.copytree(source, folder / "sources")
        arguments = [*run.paths]
        if run.driver == "sqlite":
            arguments += ["--dburi", "sqlite:///querytest.db"]
        elif run.driver:
            server = TemporaryPostgres(settings={"max_prepared_transactions": 10})
            stack.enter_context(server)
            prepare(server)
            url = server.url_for(run.driver).set(database=DATABASE)
            arguments += ["--dburi", url.render_as_string(hide_password=False)]
        environment = {
            **{name: value for name, value in os.environ.items() if name != "DATABASE_URL"},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # for flask
            "PYTHONPATH": str(HERE / "everywhere"),
            "RAILWAY_OUTCOMES": str(folder / "outcomes.json"),
            "RAILWAY_ENGINES": str(folder / "engines"),
            "RAILWAY_EVERYWHERE": everywhere or "",
        }
        done = subprocess.run(
            [
                # -s: SQLAlchemy's suite takes the installed version, and not the sources beside it
                *(sys.executable, "-s", "-m", "pytest", "-q", "-p", "outcomes"),
                # sitecustomize.py imports us before pytest, and a suite may take warnings as errors
                *("-W", "ignore::pytest.PytestAssertRewriteWarning"),
                *(
                    "-p",
                    "no:cacheprovider",
                    "-p",
                    "no:xdist",
                    "-p",
                    "no:randomly",
                    "--maxfail=0",
                    *arguments,
                ),
            ],
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        outcomes = folder / "outcomes.json"
        if not outcomes.exists():
            raise SystemExit(f"{run.package}'s tests did not run:\n{done.stdout}\n{done.stderr}")
        engines = folder / "engines"
        count = engines.stat().st_size if engines.exists() else 0
        return {"engines": count, **json.loads(outcomes.read_text())}


def compare(name: str, plain: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Return what differs between the two sides of the run *name*."""
    known = reasons()
    failed = {
        _without_version(test)
        for test, outcome in ours["outcomes"].items()
        if outcome == "failed" and plain["outcomes"].get(test) != "failed"
    }
    missing = set(plain["outcomes"]) - set(ours["outcomes"])
    details = {_without_version(test): text for test, text in ours["details"].items()}
    return {
        "run": name,
        "tests": len(plain["outcomes"]),
        "engines": ours["engines"],
        "plain": dict(Counter(plain["outcomes"].values())),
        "with": dict(Counter(ours["outcomes"].values())),
        "only with the plugin": sorted((failed | missing) - set(known)),
        "known": {test: known[test] for test in sorted(failed & set(known))},
        "details": {test: details.get(test, "") for test in sorted(failed - set(known))},
    }


def reasons() -> dict[str, str]:
    """Return why each test of known.toml fails with the plugin."""
    entries = tomllib.loads((HERE / "known.toml").read_text())["known"]
    return {test: entry["reason"] for entry in entries for test in entry["tests"]}


def _without_version(test: str) -> str:
    """Return the id *test* without the driver and the version of the server."""
    return re.sub(r"_(?:postgresql|sqlite)\+\w+?_\d[\d_]*(?=::)", "", test)


def report(result: dict[str, Any]) -> None:
    """Print *result* for people."""
    failures = len(result["only with the plugin"])
    print(
        f"{result['run']}: {result['tests']} tests, {result['engines']} engines with the plugin, "
        f"{failures} failed only with it, {len(result['known'])} as known",
        flush=True,
    )
    if not result["engines"]:
        print("  no engine was made with the plugin, so this run shows nothing")
    for test in result["only with the plugin"]:
        print(f"  only with the plugin: {test}")
        lines = result["details"].get(test, "not run with it").strip().splitlines()
        print(*(f"      {line}" for line in lines[-6:]), sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", metavar="RUN", help=f"of: {', '.join(RUNS)}")
    parser.add_argument("--json", action="store_true", help="print one object for each run")
    parser.add_argument("--keep", type=Path, help="where the sources are kept for the next time")
    options = parser.parse_args()
    if unknown := set(options.runs) - set(RUNS):
        parser.error(f"there is no run {', '.join(sorted(unknown))}; there are: {', '.join(RUNS)}")
    good, failed = True, set()
    with contextlib.ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        pool = stack.enter_context(ThreadPoolExecutor(2))
        for name in options.runs or RUNS:
            run = RUNS[name]
            print(f"==> {name}", file=sys.stderr, flush=True)
            source = sources(run.package, folder)
            both = [
                pool.submit(run_side, run, source, everywhere=everywhere)
                for everywhere in (None, run.everywhere)
            ]
            result = compare(name, *(side.result() for side in both))
            print(json.dumps(result)) if options.json else report(result)
            good &= result["engines"] > 0
            good &= not result["only with the plugin"]
            failed |= set(result["known"])
    if not options.runs and (idle := sorted(set(reasons()) - failed)):
        good = False
        print(*(f"in known.toml, but it failed nowhere: {test}" for test in idle), sep="\n")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
