"""The catalogue of database URLs: what comes out of each, a URL or the exact error."""

from __future__ import annotations

import importlib.machinery
import logging
import sys
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from marked import MARK
from sqlalchemy import URL, make_url

import sa_railway
from sa_railway.config import drivers
from sa_railway.config.parse import plugin_parameters
from sa_railway.config.url import (
    database_url,
    find_url,
    is_private_host,
    is_public_proxy,
    normalize_url,
    on_railway,
)
from sa_railway.exc import ConfigurationError

PASSWORD = MARK

FIX = (
    "on Railway, set DATABASE_URL=${{Postgres.DATABASE_URL}} on this service, with the name of "
    "your PostgreSQL service for Postgres"
)
EMPTY = (
    "is empty: this is what Railway makes of a reference to a service or variable that does not "
    f"exist; {FIX}"
)
UNRESOLVED = (
    "holds a reference that was not resolved: Railway resolves ${{...}} in the variables of a "
    f"service only, and only if the service and the variable exist; {FIX}"
)
SPACE = "begins or ends with white space; remove it where the value is set"
QUOTED = "begins or ends with a quotation mark; remove it where the value is set"
HALF = (
    "is half-rendered, its host or port is empty: Railway fills them in once the database service "
    "has a private domain or, for a public URL, a TCP proxy; enable that and deploy again, or use "
    "${{Postgres.DATABASE_URL}}, which needs no TCP proxy"
)
UNREADABLE = (
    "cannot be read as a database URL; allowed: scheme://user:password@host:port/database, where "
    "the characters @ : / ? # in user and password are percent-encoded"
)
PORT = "PGPORT is not a port; allowed: a number from 1 to 65535"
NOTHING = (
    "no database URL is set, and a container's disk is lost at every deploy, so no SQLite file is "
    f"used instead; {FIX}"
)

GOOD = "postgresql://postgres:pw@postgres.railway.internal:5432/railway"
FOUND = "postgresql+psycopg2://postgres:pw@postgres.railway.internal:5432/railway"


def install(monkeypatch: pytest.MonkeyPatch, modules: Iterable[str]) -> None:
    """Make it look as if of all drivers these *modules* were installed."""
    specs = {name: importlib.machinery.ModuleSpec(name, None) for name in modules}
    monkeypatch.setattr(drivers, "find_spec", specs.get)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(GOOD, FOUND, id="Railway's template"),
        pytest.param(
            "postgresql://postgres:pw@shuttle.proxy.rlwy.net:15140/railway",
            "postgresql+psycopg2://postgres:pw@shuttle.proxy.rlwy.net:15140/railway",
            id="Railway's template, public",
        ),
        pytest.param(
            "postgres://postgres:pw@pgvector.railway.internal:5432/railway",
            "postgresql+psycopg2://postgres:pw@pgvector.railway.internal:5432/railway",
            id="postgres:// of pgvector, Heroku and others",
        ),
        pytest.param("POSTGRES://u:pw@h/d", "postgresql+psycopg2://u:pw@h/d", id="upper case"),
        pytest.param(
            "postgresql://u:pw@[fd12::1]:5432/d",
            "postgresql+psycopg2://u:pw@[fd12::1]:5432/d",
            id="IPv6",
        ),
        pytest.param(
            "postgresql://u:p%40%3A%2F%3F%23w@h/d",
            "postgresql+psycopg2://u:p%40%3A%2F%3F%23w@h/d",
            id="percent-encoded password",
        ),
        pytest.param(
            "postgresql://u:pw@h/d?sslmode=require&connect_timeout=3",
            "postgresql+psycopg2://u:pw@h/d?sslmode=require&connect_timeout=3",
            id="query parameters",
        ),
        pytest.param(
            "postgres://u:pw@h/d?plugin=railway&railway_profile=worker",
            "postgresql+psycopg2://u:pw@h/d?plugin=railway&railway_profile=worker",
            id="the plugin's own parameters",
        ),
        pytest.param(
            "postgresql:///d?host=/var/run/postgresql",
            "postgresql+psycopg2:///d?host=/var/run/postgresql",
            id="Unix socket",
        ),
        pytest.param(
            "postgresql://u:pw@:5432/d?host=/var/run/postgresql",
            "postgresql+psycopg2://u:pw@:5432/d?host=/var/run/postgresql",
            id="Unix socket with a port",
        ),
        pytest.param("postgresql:///d", "postgresql+psycopg2:///d", id="default socket"),
        pytest.param(
            "postgresql://u:pw@h1:5433,h2/d?target_session_attrs=read-write",
            "postgresql+psycopg2://u:pw@/d?target_session_attrs=read-write"
            "&host=h1:5433&host=h2:5432",
            id="several hosts as libpq writes them",
        ),
        pytest.param(
            "postgresql://u:pw@/d?host=h1:5433&host=h2:5432",
            "postgresql+psycopg2://u:pw@/d?host=h1:5433&host=h2:5432",
            id="several hosts as SQLAlchemy writes them",
        ),
        pytest.param(
            "postgresql://h/d?user=u&password=pw",
            "postgresql+psycopg2://u:pw@h/d",
            id="user and password in the query",
        ),
        pytest.param(
            "postgresql://u:pw@h/d?application_name=me@home&sslcert=/home/me@home/c",
            "postgresql+psycopg2://u:pw@h/d?application_name=me@home&sslcert=/home/me@home/c",
            id="@ in the query",
        ),
        pytest.param(
            "postgresql://u:pw@h1,h2:5433/d",
            "postgresql+psycopg2://u:pw@h1,h2:5433/d",
            id="one port for several hosts, as SQLAlchemy reads it",
        ),
        pytest.param(
            "postgresql://u:pw@[::1]:1,[::2]/d",
            "postgresql+psycopg2://u:pw@/d?host=::1,::2&port=1,5432",
            id="several IPv6 hosts",
        ),
        pytest.param(
            "postgresql://u:pw@%2Fvar%2Frun%2Fpostgresql:5433/d",
            "postgresql+psycopg2://u:pw@:5433/d?host=/var/run/postgresql",
            id="Unix socket as libpq writes it",
        ),
        pytest.param(
            "postgresql://u:pw@[fe80::1%25eth0]/d",
            "postgresql+psycopg2://u:pw@[fe80::1%eth0]/d",
            id="IPv6 with a zone",
        ),
        pytest.param(
            "postgresql://u:pw@/d?host=h&port=5433",
            "postgresql+psycopg2://u:pw@h:5433/d",
            id="host and port in the query",
        ),
        pytest.param(
            "postgresql://u:pw@other:1/d?host=h:5433",
            "postgresql+psycopg2://u:pw@h:5433/d",
            id="a host with its port in the query",
        ),
        pytest.param(
            "postgresql://u:pw@/d?host=h1,h2&port=5433",
            "postgresql+psycopg2://u:pw@/d?host=h1,h2&port=5433,5433",
            id="one port for several hosts in the query",
        ),
        pytest.param(
            "postgresql://h?dbname=d", "postgresql+psycopg2://h/d", id="database in the query"
        ),
        pytest.param(
            "postgresql://u:pw@:5433/d?hostaddr=10.0.0.1",
            "postgresql+psycopg2://u:pw@:5433/d?hostaddr=10.0.0.1",
            id="the address of a host that has no name",
        ),
        pytest.param(
            "postgresql://scott@server:tiger@server.example/d",
            "postgresql+psycopg2://scott%40server:tiger@server.example/d",
            id="user@server, as on Azure",
        ),
        *[
            pytest.param(
                f"postgresql://u:{password}@h:5433/d",
                f"postgresql+psycopg2://u:{quote(password)}@h:5433/d",
                id=f"a password with {password}",
            )
            for password in (
                *(
                    "a,b",
                    "x,y?z=1",
                    "x,y/z",
                    "a${b}c",
                    "a/b#c:d",
                    "a[1]b",
                    "50%off",
                    "a b",
                    "a${{b",
                ),
                *(
                    ",",
                    "?",
                    "&",
                    "+",
                    "=",
                    ":",
                    "[",
                    "]",
                    "'",
                    "`",
                    "$",
                    "${",
                    "/",
                    "//",
                    "a?host=b",
                ),
            )
        ],
        pytest.param(
            "postgresql://u:pw@h/d'", "postgresql+psycopg2://u:pw@h/d'", id="quote at end"
        ),
        pytest.param("postgresql://u@h/me@home", "postgresql+psycopg2://u@h/me@home", id="@ in d"),
        pytest.param(
            "postgresql://u:pw@h/d?application_name=me@home:",
            "postgresql+psycopg2://u:pw@h/d?application_name=me@home:",
            id="@ and : in the query",
        ),
        *[
            pytest.param(f"{explicit}://u:pw@h/d", f"{explicit}://u:pw@h/d", id=f"kept: {explicit}")
            for explicit in (
                "postgresql+psycopg2",
                "postgresql+psycopg",
                "postgresql+psycopg_async",
                "postgresql+asyncpg",
                "postgresql+pg8000",
                "mysql+mysqldb",
                "mysql+pymysql",
                "mariadb+pymysql",
                "oracle",
            )
        ],
        pytest.param("postgres+psycopg://h/d", "postgresql+psycopg://h/d", id="postgres+driver"),
        pytest.param("sqlite:///app.db", "sqlite:///app.db", id="SQLite file"),
        pytest.param("sqlite://", "sqlite://", id="SQLite memory"),
        pytest.param("sqlite:///a@b].db", "sqlite:///a@b].db", id="SQLite file with odd name"),
        pytest.param("sqlite+aiosqlite:///a.db", "sqlite+aiosqlite:///a.db", id="aiosqlite"),
    ],
)
def test_url_is_normalized(given: str, expected: str) -> None:
    result = normalize_url(given)
    assert result == make_url(expected)
    assert normalize_url(result) == result


@pytest.mark.parametrize(
    ("given", "flaw"),
    [
        pytest.param("", EMPTY, id="empty"),
        pytest.param("  \n", EMPTY, id="blank"),
        pytest.param("${{Postgres.DATABASE_URL}}", UNRESOLVED, id="unresolved"),
        pytest.param('"${{ Postgres.DATABASE_URL }}"', UNRESOLVED, id="unresolved, in quotes"),
        pytest.param(
            "postgresql://u:${{Postgres.PGPASSWORD}}@h:5432/d", UNRESOLVED, id="unresolved within"
        ),
        pytest.param("${DATABASE_URL}", UNRESOLVED, id="a shell's reference"),
        pytest.param("postgresql://u:pw@${PGHOST}:5432/d", UNRESOLVED, id="a shell's, as the host"),
        pytest.param(
            f"postgresql://u:{PASSWORD}@h/d?sslmode=${{{{Postgres.MODE}}}}",
            UNRESOLVED,
            id="unresolved in the query",
        ),
        pytest.param(f"'postgresql://u:{PASSWORD}@h/d", QUOTED, id="one quotation mark in front"),
        pytest.param(f"postgresql://postgres:{PASSWORD}@:/railway", HALF, id="no host, no port"),
        pytest.param(f"postgresql://postgres:{PASSWORD}@:5432/railway", HALF, id="no host"),
        pytest.param(f"postgresql://postgres:{PASSWORD}@h.proxy.rlwy.net:/d", HALF, id="no port"),
        pytest.param("postgresql://:@:/", HALF, id="nothing rendered"),
        pytest.param("postgresql://:@:", HALF, id="nothing rendered, no path"),
        pytest.param(f"postgresql://u:{PASSWORD}@h:port/d", UNREADABLE, id="port of letters"),
        pytest.param(
            f"postgresql://u:{PASSWORD}@h:65536/d",
            "has the port 65536; allowed: a number from 1 to 65535",
            id="port out of range",
        ),
        pytest.param(
            f"postgresql://u:{PASSWORD}@h:0/d",
            "has the port 0; allowed: a number from 1 to 65535",
            id="port 0",
        ),
        pytest.param(f"u:{PASSWORD}@h/d", UNREADABLE, id="no scheme"),
        pytest.param(f"DATABASE_URL=postgresql://u:{PASSWORD}@h", UNREADABLE, id="an assignment"),
        pytest.param(f"postgresql://u:x@{PASSWORD}@h/d", UNREADABLE, id="@ in the password"),
        pytest.param(
            f"postgresql://u:x@y:{PASSWORD}@h/d", UNREADABLE, id="@ and : in the password"
        ),
        pytest.param(
            f"postgresql://u:x@y/{PASSWORD}@h/d", UNREADABLE, id="@ and / in the password"
        ),
        pytest.param(
            f"postgresql://u:x@y?{PASSWORD}@h/d", UNREADABLE, id="@ and ? in the password"
        ),
        pytest.param(
            f"postgresql://u:x@y?a=b&{PASSWORD}@h/d", UNREADABLE, id="@, ? and & in the password"
        ),
        pytest.param(
            f"mysql://u:x@y/{PASSWORD}?z@h/d", UNREADABLE, id="@, / and ? in it, of MySQL"
        ),
        pytest.param(f"postgresql:///u:{PASSWORD}@h/d", UNREADABLE, id="a slash too many"),
        pytest.param(f"postgresql://@h/x:{PASSWORD}@h/d", UNREADABLE, id="a slash in the user"),
        pytest.param(
            f"postgresql://h/d?host=u:{PASSWORD}@h", UNREADABLE, id="a login as the host in a query"
        ),
        pytest.param("postgresql://u:pw@[::1]:1,::2/d", UNREADABLE, id="a list of IPv6, one bare"),
        pytest.param("postgresql://h1:1,h2:2/d?host=h3", UNREADABLE, id="two ports for one host"),
        pytest.param(
            f"postgresql://u:{PASSWORD}@h1:65536,h2/d", UNREADABLE, id="port out of range in a list"
        ),
        pytest.param(
            "postgresql://u:20260101",
            "has a port that is out of range; allowed: a number from 1 to 65535",
            id="a password of digits, and no host",
        ),
        pytest.param(
            "postgresql://h/d?railway_profil=worker",
            "has the parameter 'railway_profil'; allowed of this package: railway_profile",
            id="unknown parameter of ours",
        ),
        pytest.param(
            "postgresql://h/d?plugin=railway&railway_profile=workers",
            "has the railway_profile 'workers' (did you mean 'worker'?); allowed: web, worker, "
            "script, serverless",
            id="unknown profile",
        ),
        pytest.param(
            f"https://u:{PASSWORD}@h/d",
            "has the scheme 'https'; allowed: postgres, postgresql, mysql, mariadb, sqlite, and "
            "those of other SQLAlchemy dialects that are installed",
            id="unknown scheme",
        ),
        pytest.param(
            f"postgresql+psycopg3://u:{PASSWORD}@h/d",
            "names the driver 'psycopg3'; allowed: psycopg2, psycopg, asyncpg "
            "(did you mean 'psycopg'?)",
            id="unknown driver",
        ),
        pytest.param(
            "mysql+foo://h/d",
            "names the driver 'foo'; allowed: mysqldb, pymysql, asyncmy, aiomysql",
            id="unknown driver of MySQL",
        ),
        pytest.param(
            "postgresql+psycopg2+x://h/d",
            "names the driver 'psycopg2+x'; allowed: psycopg2, psycopg, asyncpg "
            "(did you mean 'psycopg2'?)",
            id="two drivers",
        ),
    ],
)
def test_broken_url_is_refused_with_its_cause(given: str, flaw: str) -> None:
    with pytest.raises(ConfigurationError) as argument:
        normalize_url(given)
    assert str(argument.value) == f"url {flaw}"
    with pytest.raises(ConfigurationError) as variable:
        database_url(environ={"DATABASE_URL": given})
    assert str(variable.value) == f"DATABASE_URL {flaw}"
    # nor may a log that follows the chain of exceptions show what the parser quotes
    assert variable.value.__context__ is None


@pytest.mark.parametrize(
    ("around", "flaw"),
    [
        (" {}", SPACE),
        ("{}\n", SPACE),
        ("\t{} \r\n", SPACE),
        ('"{}"', QUOTED),
        ("'{}'\n", QUOTED),
        ('" {} "', QUOTED),
    ],
)
@pytest.mark.parametrize("url", [GOOD, "sqlite:///app.db"])
def test_what_was_copied_along_with_a_url_is_left_out_with_a_warning(
    around: str, flaw: str, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    flaw = flaw.replace("; ", ", which is left out; ")
    assert database_url(environ={"DATABASE_URL": around.format(url)}) == normalize_url(url)
    assert caplog.messages == [f"DATABASE_URL {flaw}"]


def test_what_was_copied_along_with_a_host_is_left_out_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert database_url(environ={"PGHOST": "h\n", "PGPORT": " 5433"}).host == "h"
    assert caplog.messages == [f"PGHOST {SPACE.replace('; ', ', which is left out; ')}"]


@pytest.mark.parametrize(
    ("environ", "variable"),
    [
        ({"DATABASE_URL": "postgresql://u:${PGPASSWORD}@h/d"}, "DATABASE_URL"),
        ({"PGHOST": "h", "PGPASSWORD": "${PGPASSWORD}"}, "PGPASSWORD"),
    ],
)
def test_a_password_that_a_shell_was_to_fill_in_is_taken_with_a_warning(
    environ: dict[str, str], variable: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert database_url(environ=environ).password == "${PGPASSWORD}"
    assert caplog.messages == [
        f"{variable} has a password of the form ${{NAME}}, which is taken literally; a shell's "
        "reference is not resolved here"
    ]


def test_a_port_in_the_query_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError) as caught:
        normalize_url(f"postgresql://h/d?port={PASSWORD}")
    assert str(caught.value) == (
        "port in the query of url is not a port; allowed: a number from 1 to 65535"
    )


def test_url_of_another_type_is_refused() -> None:
    with pytest.raises(ConfigurationError) as caught:
        normalize_url(b"postgresql://h/d")  # type: ignore[arg-type]
    assert str(caught.value) == "url is of type bytes; allowed: a string or a sqlalchemy.URL"


@pytest.mark.parametrize("parts", [{"host": f"{PASSWORD}@h"}, {"database": f"{PASSWORD}@h/d"}])
def test_broken_url_object_is_refused(parts: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        normalize_url(URL.create("postgresql", **{"host": "h", **parts}))
    assert str(caught.value) == f"url {UNREADABLE}"


def test_database_with_an_at_sign_is_taken_from_a_url_object() -> None:
    assert normalize_url(URL.create("postgresql", host="h", database="me@home")).database == (
        "me@home"
    )


@pytest.mark.parametrize("driver", [None, "asyncpg", "psycopg"])
@pytest.mark.parametrize("place", ["u:{}@h/d", "h/d?user=u&password={}"])
def test_text_of_the_result_hides_the_password(place: str, driver: str | None) -> None:
    result = normalize_url("postgresql://" + place.format(PASSWORD), driver=driver)
    assert result.password == PASSWORD
    assert str(result) == f"postgresql+{driver or 'psycopg2'}://u:***@h/d"
    assert PASSWORD not in repr(result)


@pytest.mark.parametrize(
    ("given", "installed", "expected"),
    [
        ("postgresql://h/d", {"psycopg2", "psycopg", "asyncpg"}, "postgresql+psycopg2"),
        ("postgresql://h/d", {"psycopg", "asyncpg"}, "postgresql+psycopg"),
        ("postgres://h/d", {"asyncpg"}, "postgresql+asyncpg"),
        ("mysql://h/d", {"MySQLdb", "pymysql"}, "mysql+mysqldb"),
        ("mysql://h/d", {"pymysql"}, "mysql+pymysql"),
        ("mariadb://h/d", {"pymysql"}, "mariadb+pymysql"),
    ],
)
def test_bare_scheme_gets_a_driver_that_is_installed(
    given: str, installed: set[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, installed)
    assert normalize_url(given).drivername == expected


@pytest.mark.parametrize(
    ("given", "asyncio", "expected"),
    [
        (
            "postgresql://h/d",
            False,
            "no driver for postgresql is installed; install one of: psycopg2, psycopg, asyncpg, "
            'for example by pip install "sa-railway[psycopg]"',
        ),
        (
            "postgresql://h/d",
            True,
            "no driver for postgresql is installed; install one of: asyncpg, psycopg, "
            'for example by pip install "sa-railway[asyncpg]"',
        ),
        (
            "mysql://h/d",
            False,
            "no driver for mysql is installed; install one of: mysqldb, pymysql, asyncmy, aiomysql",
        ),
    ],
)
def test_bare_scheme_without_any_driver_is_refused(
    given: str, asyncio: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, ())
    with pytest.raises(ConfigurationError) as caught:
        normalize_url(given, asyncio=asyncio)
    assert str(caught.value) == expected


def test_no_driver_is_imported_to_choose_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("psycopg2", "psycopg", "asyncpg", "pymysql"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    normalize_url("postgresql://h/d")
    normalize_url("postgresql://h/d", asyncio=True)
    normalize_url("mysql://h/d")
    assert not {"psycopg2", "psycopg", "asyncpg", "pymysql"} & sys.modules.keys()


@pytest.mark.parametrize(
    ("given", "driver", "expected"),
    [
        ("postgres://h/d", "psycopg", "postgresql+psycopg"),
        ("postgresql+psycopg2://h/d", "asyncpg", "postgresql+asyncpg"),
        ("postgresql+asyncpg://h/d", "psycopg2", "postgresql+psycopg2"),
        ("postgresql://h/d", "pg8000", "postgresql+pg8000"),
        ("mysql://h/d", "pymysql", "mysql+pymysql"),
        ("sqlite:///a.db", "aiosqlite", "sqlite+aiosqlite"),
        ("sqlite:///a.db", "psycopg", "sqlite"),
        ("sqlite:///a.db", "asyncpg", "sqlite+aiosqlite"),
        ("sqlite+aiosqlite:///a.db", "psycopg2", "sqlite"),
    ],
)
def test_driver_asked_for_is_used(given: str, driver: str, expected: str) -> None:
    assert normalize_url(given, driver=driver).drivername == expected


@pytest.mark.parametrize(
    ("given", "driver", "expected"),
    [
        (
            "postgresql://h/d",
            "psycopg3",
            "driver is 'psycopg3'; allowed for postgresql: psycopg2, psycopg, asyncpg "
            "(did you mean 'psycopg'?)",
        ),
        (
            "postgresql://h/d",
            "pymysql",
            "driver is 'pymysql'; allowed for postgresql: psycopg2, psycopg, asyncpg",
        ),
        (
            "postgresql://h/d",
            "postgresql+psycopg",
            "driver is 'postgresql+psycopg'; allowed for postgresql: psycopg2, psycopg, asyncpg",
        ),
        (
            "sqlite://",
            "foo",
            "driver is 'foo'; allowed for sqlite: pysqlite, aiosqlite",
        ),
        ("oracle://h/d", "foo", "driver is 'foo'; allowed for oracle: its own"),
    ],
)
def test_unknown_driver_asked_for_is_refused(given: str, driver: str, expected: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        normalize_url(given, driver=driver)
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("postgresql://h/d", "postgresql+asyncpg"),
        ("postgresql+psycopg2://h/d", "postgresql+asyncpg"),
        ("postgresql+psycopg://h/d", "postgresql+psycopg"),
        ("postgresql+psycopg_async://h/d", "postgresql+psycopg_async"),
        ("sqlite://", "sqlite+aiosqlite"),
        ("oracle+oracledb://h/d", "oracle+oracledb"),
    ],
)
def test_asyncio_replaces_only_what_it_cannot_use(given: str, expected: str) -> None:
    assert normalize_url(given, asyncio=True).drivername == expected


@pytest.mark.parametrize(
    ("make", "driver"),
    [
        (sa_railway.create_engine, "psycopg"),
        (sa_railway.create_async_engine, "psycopg"),
        (sa_railway.create_async_engine, "asyncpg"),
    ],
)
def test_the_error_about_a_driver_that_is_missing_names_the_extra(
    make: Callable[[str], object], driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, driver, None)

    with pytest.raises(ModuleNotFoundError) as caught:
        make(f"postgresql+{driver}://u@h/d")

    assert caught.value.__notes__ == [
        f'sa_railway: install the driver by pip install "sa-railway[{driver}]"'
    ]


def test_the_extras_are_those_of_the_package() -> None:
    settings = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    extras = settings["project"]["optional-dependencies"]

    assert set(drivers.EXTRAS.values()) <= set(extras)


def test_asyncio_falls_back_to_psycopg(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {"psycopg2", "psycopg"})
    assert normalize_url("postgresql://h/d", asyncio=True).drivername == "postgresql+psycopg"


@pytest.mark.parametrize(
    ("libpq", "asyncpg"),
    [
        ({"sslmode": "require"}, {"ssl": "require"}),
        (
            {"application_name": "a b&c", "sslmode": "verify-ca", "sslrootcert": "/root.crt"},
            {
                "dsn": "postgresql://?application_name=a%20b%26c&sslrootcert=%2Froot.crt",
                "ssl": "verify-ca",
            },
        ),
        ({"options": "-c work_mem=5MB"}, {"dsn": "postgresql://?options=-c%20work_mem%3D5MB"}),
        ({"target_session_attrs": "read-write"}, {"target_session_attrs": "read-write"}),
        ({"host": ("h1:1", "h2:2")}, {"host": ("h1:1", "h2:2")}),
        ({"host": "h1,h2", "port": "1,2"}, {"host": "h1,h2", "port": "1,2"}),
        ({"plugin": "railway"}, {"plugin": "railway"}),
    ],
)
def test_query_is_translated_for_asyncpg_and_back(
    libpq: dict[str, str], asyncpg: dict[str, str]
) -> None:
    given = URL.create("postgresql", host="h", database="d", query=libpq)
    translated = normalize_url(given, driver="asyncpg")
    assert dict(translated.query) == asyncpg
    assert normalize_url(translated) == translated
    assert normalize_url(translated, driver="psycopg2").query == given.query


@pytest.mark.parametrize(
    ("query", "mode"),
    [
        ("ssl=true", "require"),
        ("ssl=False", "disable"),
        ("ssl=verify-ca", "verify-ca"),
        ("ssl=true&sslmode=verify-full", "verify-full"),
    ],
)
def test_ssl_is_spelled_for_the_driver(query: str, mode: str) -> None:
    given = f"postgresql://h/d?{query}"
    assert dict(normalize_url(given).query) == {"sslmode": mode}
    assert dict(normalize_url(given, driver="asyncpg").query) == {"ssl": mode}


@pytest.mark.parametrize(
    ("given", "hosts"),
    [
        ("postgresql://u@h1,h2/d", ("h1:5432", "h2:5432")),
        ("postgresql://u@h1,h2:5433/d", ("h1:5433", "h2:5433")),
    ],
)
def test_several_hosts_are_told_to_asyncpg_one_by_one(given: str, hosts: tuple[str, ...]) -> None:
    translated = normalize_url(given, driver="asyncpg")
    assert translated == URL.create(
        "postgresql+asyncpg", username="u", database="d", query={"host": hosts}
    )


def test_query_that_names_asyncpg_is_translated_as_well() -> None:
    translated = normalize_url("postgresql+asyncpg://h/d?sslmode=disable")
    assert str(translated) == "postgresql+asyncpg://h/d?ssl=disable"


def test_dsn_of_the_caller_is_kept() -> None:
    translated = normalize_url(
        "postgresql+asyncpg://h/d?dsn=postgresql://%3Fjit%3Doff&application_name=x"
    )
    assert translated.query["dsn"] == "postgresql://?jit=off&application_name=x"


def test_sqlalchemys_cache_size_does_not_reach_libpq() -> None:
    given = "postgresql+asyncpg://h/d?prepared_statement_cache_size=0"
    assert dict(normalize_url(given).query) == {"prepared_statement_cache_size": "0"}
    assert dict(normalize_url(given, driver="psycopg").query) == {}


def test_what_asyncpg_cannot_be_told_is_left_out_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = "postgresql://h/d?channel_binding=require&connect_timeout=3&sslmode=require"
    assert dict(normalize_url(given, driver="asyncpg").query) == {"ssl": "require"}
    assert caplog.messages == [
        "asyncpg takes no channel_binding, connect_timeout from a URL; left out"
    ]


PARTS = {
    "PGHOST": "postgres.railway.internal",
    "PGPORT": "5432",
    "PGUSER": "postgres",
    "PGPASSWORD": "pw",
    "PGDATABASE": "railway",
}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        pytest.param(PARTS, FOUND, id="all"),
        pytest.param({"PGHOST": "h"}, "postgresql+psycopg2://h:5432", id="host only"),
        pytest.param(
            {"PGHOST": "h", "PGPORT": "", "PGPASSWORD": ""},
            "postgresql+psycopg2://h:5432",
            id="empty ones are not set",
        ),
        pytest.param(
            {**PARTS, "PGSSLMODE": "require", "PGPASSWORD": "$p @:/'"},
            "postgresql+psycopg2://postgres:%24p %40%3A%2F'@postgres.railway.internal:5432/railway"
            "?sslmode=require",
            id="TLS and a password of odd characters",
        ),
        pytest.param(
            {"PGHOST": "/var/run/postgresql", "PGDATABASE": "d"},
            "postgresql+psycopg2://:5432/d?host=/var/run/postgresql",
            id="Unix socket",
        ),
        pytest.param(
            {"PGHOST": "h1,h2", "PGPORT": "5433,5434"},
            "postgresql+psycopg2://?host=h1,h2&port=5433,5434",
            id="several hosts",
        ),
        pytest.param(
            {"PGHOST": "h", "PGUSER": "u", "PGPASSWORD": "a${b}c"},
            "postgresql+psycopg2://u:a${b}c@h:5432",
            id="a shell's reference in the password",
        ),
        pytest.param({"PGUSER": "u", "PGDATABASE": "d"}, "sqlite:///app.db", id="no host"),
    ],
)
def test_url_is_built_from_the_variables_of_libpq(environ: dict[str, str], expected: str) -> None:
    assert database_url(environ=environ) == make_url(expected)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"PGHOST": ""}, f"PGHOST {EMPTY}"),
        ({"PGHOST": "${{Postgres.PGHOST}}"}, f"PGHOST {UNRESOLVED}"),
        ({"PGHOST": "h", "PGPASSWORD": "${{Postgres.PGPASSWORD}}"}, f"PGPASSWORD {UNRESOLVED}"),
        ({"PGHOST": '"h'}, f"PGHOST {QUOTED}"),
        ({"PGHOST": "h", "PGUSER": "${PGUSER}"}, f"PGUSER {UNRESOLVED}"),
        ({"PGHOST": "h1,h2", "PGPORT": "1,x"}, PORT),
        ({"PGHOST": "h", "PGPORT": PASSWORD}, PORT),
        ({"PGHOST": "h", "PGPORT": "65536"}, PORT),
        ({"PGHOST": "h", "PGPORT": "0"}, PORT),
        ({"PGHOST": "h", "PGPORT": "\u0663"}, PORT),
        ({"PGHOST": "h", "PGPORT": "9" * 5000}, PORT),
        ({"PGHOST": "[::1]"}, f"PGHOST {UNREADABLE}"),
        ({"PGHOST": f"postgres://u:{PASSWORD}@h/d"}, f"PGHOST {UNREADABLE}"),
    ],
)
def test_broken_variable_of_libpq_is_refused(environ: dict[str, str], expected: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        database_url(environ=environ)
    assert str(caught.value) == expected


ALL = {
    "DATABASE_UNPOOLED_URL": "postgresql://unpooled/d",
    "DATABASE_URL": "postgresql://url/d",
    "DATABASE_PRIVATE_URL": "postgresql://private/d",
    "PGHOST": "parts",
    "DATABASE_PUBLIC_URL": "postgresql://public/d",
}


def test_variables_are_looked_at_in_order() -> None:
    environ = dict(ALL)
    hosts = []
    while environ:
        hosts.append(database_url(environ=environ, unpooled=True).host)
        del environ[next(iter(environ))]
    assert hosts == ["unpooled", "url", "private", "parts", "public"]


def test_unpooled_url_is_used_only_when_asked_for() -> None:
    assert database_url(environ=ALL).host == "url"
    assert database_url(environ={"DATABASE_URL": GOOD}, unpooled=True) == make_url(FOUND)


def test_argument_comes_before_the_environment() -> None:
    assert database_url("postgresql://mine/d", environ=ALL).host == "mine"


def test_broken_argument_is_refused_though_the_environment_is_good() -> None:
    with pytest.raises(ConfigurationError) as caught:
        database_url("", environ=ALL)
    assert str(caught.value) == f"url {EMPTY}"


@pytest.mark.parametrize("name", ["DATABASE_URL", "DATABASE_PRIVATE_URL", "PGHOST"])
def test_broken_variable_is_passed_over_for_a_good_one(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    environ = {name: "", "DATABASE_PUBLIC_URL": f"postgresql://u:{PASSWORD}@public:5432/d"}
    assert database_url(environ=environ).host == "public"
    assert caplog.record_tuples == [
        (
            "sa_railway.config",
            logging.WARNING,
            f"Using DATABASE_PUBLIC_URL, because {name} {EMPTY}",
        )
    ]


@pytest.mark.parametrize("host", ["[::1]", f"postgres://u:{PASSWORD}@h/d"])
def test_a_host_that_is_none_is_passed_over_too(
    host: str, caplog: pytest.LogCaptureFixture
) -> None:
    environ = {"PGHOST": host, "DATABASE_PUBLIC_URL": "postgresql://public/d"}
    assert database_url(environ=environ).host == "public"
    assert caplog.messages == [f"Using DATABASE_PUBLIC_URL, because PGHOST {UNREADABLE}"]


def test_unknown_scheme_is_passed_over_too(caplog: pytest.LogCaptureFixture) -> None:
    environ = {"DATABASE_URL": "https://example.org", "PGHOST": "h"}
    assert database_url(environ=environ).host == "h"
    assert len(caplog.messages) == 1


def test_error_lists_every_broken_variable() -> None:
    environ = {
        "DATABASE_URL": "${{Postgres.DATABASE_URL}}",
        "PGHOST": "",
        "DATABASE_PUBLIC_URL": f"postgresql://postgres:{PASSWORD}@:/railway",
    }
    with pytest.raises(ConfigurationError) as caught:
        database_url(environ=environ)
    assert str(caught.value) == (
        f"DATABASE_URL {UNRESOLVED}; PGHOST {EMPTY}; DATABASE_PUBLIC_URL {HALF}"
    )


RAILWAY = [
    "RAILWAY_ENVIRONMENT_ID",
    "RAILWAY_ENVIRONMENT_NAME",
    "RAILWAY_ENVIRONMENT",
    "RAILWAY_PROJECT_ID",
    "RAILWAY_SERVICE_ID",
]


@pytest.mark.parametrize("variable", RAILWAY)
def test_without_a_url_railway_gets_an_error(variable: str) -> None:
    assert on_railway({variable: "x"})
    with pytest.raises(ConfigurationError) as caught:
        database_url(environ={variable: "x"})
    assert str(caught.value) == NOTHING


@pytest.mark.parametrize("environ", [{}, {"RAILWAY_ENVIRONMENT": ""}, {"RAILWAY_TOKEN": "x"}])
def test_without_a_url_development_gets_sqlite(environ: dict[str, str]) -> None:
    assert not on_railway(environ)
    assert str(database_url(environ=environ)) == "sqlite:///app.db"
    assert str(database_url(driver="psycopg", environ=environ)) == "sqlite:///app.db"
    assert str(database_url(asyncio=True, environ=environ)) == "sqlite+aiosqlite:///app.db"


def test_environment_is_read_at_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", GOOD)
    assert database_url() == make_url(FOUND)
    monkeypatch.setenv("DATABASE_URL", "postgresql://elsewhere/d")
    assert database_url().host == "elsewhere"


def test_find_url_leaves_driver_and_query_alone() -> None:
    environ = {"DATABASE_URL": "postgres://h/d?sslmode=require&ssl=true"}
    assert str(find_url(environ=environ)) == "postgresql://h/d?ssl=true&sslmode=require"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("proxy.rlwy.net", True),
        ("shuttle.proxy.rlwy.net", True),
        ("Shuttle.Proxy.RLWY.net", True),
        ("containers-us-west-45.railway.app", True),
        ("notproxy.rlwy.net", False),
        ("proxy.rlwy.net.evil.example", False),
        ("web-production.up.railway.app", False),
        ("postgres.railway.internal", False),
        ("", False),
        (None, False),
    ],
)
def test_public_proxy_is_told_by_its_host(host: str | None, expected: bool) -> None:
    assert is_public_proxy(host) is expected


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://proxy.rlwy.net:pw@h/d",
        "postgresql://u:proxy.rlwy.net@h/d",
        "postgresql://h/proxy.rlwy.net",
        "postgresql://h/d?application_name=x.proxy.rlwy.net",
        "postgresql://h/d?application_name=postgres.railway.internal",
    ],
)
def test_only_the_host_of_a_url_counts(url: str) -> None:
    host = normalize_url(url).host
    assert not is_public_proxy(host)
    assert not is_private_host(host)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("postgres.railway.internal", True),
        ("Postgres.Railway.Internal", True),
        ("railway.internal.example.org", False),
        ("postgresrailway.internal", False),
        ("fd12::1", False),
        ("", False),
        (None, False),
    ],
)
def test_private_host_is_told_by_its_name(host: str | None, expected: bool) -> None:
    assert is_private_host(host) is expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", []),
        ("?sslmode=require&application_name=railway_plugin", []),
        ("?plugin=railway&sslmode=require", ["plugin"]),
        ("?railway_profile=web&plugin=a&plugin=railway", ["plugin", "railway_profile"]),
    ],
)
def test_what_other_programs_refuse_in_a_url_is_known(query: str, expected: list[str]) -> None:
    assert plugin_parameters(find_url(f"postgresql://u:pw@h/d{query}")) == expected
