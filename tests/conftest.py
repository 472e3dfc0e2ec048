"""The rings of the tests, and the PostgreSQL servers that they run against."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
import sqlalchemy
from fix_missing import missing
from marked import MARK, MarkedPostgres
from pytest_postgresql import factories
from sqlalchemy import URL, make_url

from sa_railway.testing import PostgresNotFoundError, TemporaryPostgres
from sa_railway.testing.binaries import find_binaries

pytest_plugins = ["fix_events", "secrets_watch"]

if "PYTEST_XDIST_WORKER" in os.environ:
    # a worker is measured if the tests are; the programs that it starts are not
    os.environ.pop("COVERAGE_PROCESS_CONFIG", None)

RINGS = Path(__file__).parent
DEVELOPERS_OWN = re.compile(r"DATABASE_URL|DATABASE_.*_URL|PG.*|RAILWAY_.*|SA_RAILWAY_.*")


def pytest_configure(config: pytest.Config) -> None:
    """Leave to SQLAlchemy what is its own.

    Before 2.0.54 it left connections for asyncio to the garbage collector where its first questions
    fail, with and without us. What we leave there shows on the newer versions.
    """
    if tuple(map(int, re.findall(r"\d+", sqlalchemy.__version__)[:3])) < (2, 0, 54):
        config.addinivalue_line("filterwarnings", "ignore::pytest.PytestUnraisableExceptionWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test with its ring, which is the folder that it is in."""
    for item in items:
        if item.path.is_relative_to(RINGS):
            item.add_marker(item.path.relative_to(RINGS).parts[0])


@pytest.fixture(scope="session", autouse=True)
def _clean_environment() -> Iterator[None]:
    """Hide the databases and the deployment that the developer's shell knows."""
    with pytest.MonkeyPatch.context() as patch:
        for name in filter(DEVELOPERS_OWN.fullmatch, list(os.environ)):
            patch.delenv(name)
        yield


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Let programs that the tests start be interrupted, also where a shell runs us with ``&``."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # which they would inherit
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres_binaries() -> Path:
    """The programs of PostgreSQL; needed by every test that starts a server of its own."""
    try:
        return find_binaries()
    except PostgresNotFoundError as error:
        missing(str(error))


@pytest.fixture(scope="session")
def postgres(postgres_binaries: Path) -> Iterator[TemporaryPostgres]:
    """A server that many tests share. Whoever stops or freezes one takes ``own_postgres``."""
    with MarkedPostgres() as server:
        yield server


@pytest.fixture
def own_postgres(postgres_binaries: Path) -> Iterator[TemporaryPostgres]:
    """A server for this test alone."""
    with MarkedPostgres() as server:
        yield server


@pytest.fixture(scope="module")
def guarded_postgres(postgres_binaries: Path) -> Iterator[TemporaryPostgres]:
    """A server for the tests of one file, which asks for the password."""
    with MarkedPostgres(password=f"right-{MARK}") as server:
        yield server


@pytest.fixture(scope="session")
def server_url(request: pytest.FixtureRequest) -> URL:
    """The server for tests that only need a database: TEST_DATABASE_URL, or ``postgres``."""
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        return make_url(given).set(drivername="postgresql+psycopg2")
    server: TemporaryPostgres = request.getfixturevalue("postgres")
    return server.url


@pytest.fixture(scope="session")
def server_address(server_url: URL) -> SimpleNamespace:
    """``server_url`` in the words of pytest-postgresql."""
    return SimpleNamespace(
        host=server_url.host,
        port=server_url.port or 5432,
        user=server_url.username,
        password=server_url.password,
        options="",
        maintenance_dbname=server_url.database,
        template_dbname="template1",
    )


databases = factories.postgresql_noproc(depends_on="server_address", dbname="sa_railway_test")
database = factories.postgresql("databases")


@pytest.fixture
def database_url(server_url: URL, database: psycopg.Connection) -> URL:
    """The URL of an empty database, which is dropped after the test."""
    name = database.info.dbname
    database.close()  # only the database is wanted; a backend more would be in the way
    return server_url.set(database=name)
