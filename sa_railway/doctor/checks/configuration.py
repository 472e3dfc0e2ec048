"""What can be examined without a network: the environment, and the URL that it leads to."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import sqlalchemy
from sqlalchemy import URL

from sa_railway.config.masking import masked
from sa_railway.config.parse import plugin_parameters, tidied
from sa_railway.config.profile import load_profile
from sa_railway.config.url import find_url, is_public_proxy, normalize_url
from sa_railway.doctor.case import Case, Seen
from sa_railway.doctor.findings import Finding, Kind, Severity
from sa_railway.doctor.sources import Source, look_up, try_source
from sa_railway.exc import ConfigurationError

_SET = (
    "set DATABASE_URL=${{Postgres.DATABASE_URL}} on this service, with the name of your PostgreSQL "
    "service for Postgres."
)
_REFERENCE = f"On Railway, {_SET}"
_UNREADABLE_ERROR = (
    "sqlalchemy.exc.ArgumentError: Could not parse SQLAlchemy URL from given URL string"
)

SETTING = Kind(
    "setting",
    Severity.ERROR,
    "A setting cannot be used: <message>",
    "Every engine of this application fails with the same error when it is made.",
    "Correct the variable, or remove it; the page on configuration has a table of them.",
)
NO_URL = Kind(
    "no-url",
    Severity.ERROR,
    "No database URL is set",
    "The variables of a PostgreSQL service are its own: on Railway, another service sees only "
    "what it refers to. Outside of Railway, database_url() takes the SQLite file app.db instead.",
    _REFERENCE + " Elsewhere, set DATABASE_URL to postgresql://user:password@host:port/database.",
    (
        "no database URL is set, and a container's disk is lost at every deploy",
        "RuntimeError: DATABASE_URL is required",
        "RuntimeError: Either 'SQLALCHEMY_DATABASE_URI' or 'SQLALCHEMY_BINDS' must be set.",
    ),
)
EMPTY = Kind(
    "url-empty",
    Severity.ERROR,
    "<variable> is empty",
    "This is what Railway makes of a reference to a service or a variable that does not exist.",
    _REFERENCE
    + " Elsewhere, set it to postgresql://user:password@host:port/database, or unset it.",
    ("is empty: this is what Railway makes of a reference", _UNREADABLE_ERROR),
)
REFERENCE = Kind(
    "url-reference",
    Severity.ERROR,
    "<variable> holds a reference that was not resolved",
    "Railway resolves ${{...}} in the variables of a service only, and only if the service and "
    "the variable that it names exist. Nothing resolves ${...} there, which is a shell's.",
    "Correct the name of the service, and set it as a variable of this service, not in an .env "
    "file. " + _REFERENCE,
    ("holds a reference that was not resolved", _UNREADABLE_ERROR),
)
SPACE = Kind(
    "url-space",
    Severity.WARNING,
    "<variable> begins or ends with white space",
    "It was copied along with the value, and is a part of it.",
    "Remove it where the value is set.",
    ("begins or ends with white space", _UNREADABLE_ERROR),
)
QUOTES = Kind(
    "url-quotes",
    Severity.ERROR,
    "<variable> begins or ends with a quotation mark",
    "A shell removes quotation marks; Railway's variables and Docker's --env-file keep them.",
    "Remove them where the value is set.",
    ("begins or ends with a quotation mark", _UNREADABLE_ERROR),
)
HALF_RENDERED = Kind(
    "url-half-rendered",
    Severity.ERROR,
    "<variable> is half-rendered: its host or port is empty",
    "Railway fills them in once the database service has a private domain or, for a public URL, "
    "a TCP proxy, and only with the next deploy.",
    "Use the private URL, which needs no TCP proxy: DATABASE_URL=${{Postgres.DATABASE_URL}}. From "
    "outside of Railway, enable Public Access of the database, then deploy again.",
    (
        "is half-rendered, its host or port is empty",
        "ValueError: invalid literal for int() with base 10: ''",
    ),
)
PORT = Kind(
    "url-port",
    Severity.ERROR,
    "There is no such port: <message>",
    "A port is a number from 1 to 65535, in digits.",
    "Correct it: PostgreSQL itself has 5432; on Railway, its TCP proxy has another, in "
    "RAILWAY_TCP_PROXY_PORT.",
    ("allowed: a number from 1 to 65535", 'invalid port number: "<port>"'),
)
SCHEME = Kind(
    "url-scheme",
    Severity.ERROR,
    "<variable> names a database or a driver that SQLAlchemy does not know",
    "A URL begins with the database and, after a plus sign, the driver: <message>.",
    "Correct it; postgresql:// and postgres:// always work.",
    ("sqlalchemy.exc.NoSuchModuleError: Can't load plugin: sqlalchemy.dialects:",),
)
UNREADABLE = Kind(
    "url-unreadable",
    Severity.ERROR,
    "<variable> cannot be read as a database URL",
    "Either it is no URL, or the user or the password in it holds one of the characters "
    "@ : / ? # as it is: a second @, for example.",
    "Write it as scheme://user:password@host:port/database, with these characters "
    "percent-encoded in user and password: @ is %40, : is %3A, / is %2F, ? is %3F, # is %23.",
    ("cannot be read as a database URL", _UNREADABLE_ERROR),
)
DRIVER = Kind(
    "driver-missing",
    Severity.ERROR,
    "The driver is not installed: <message>",
    "The URL names it, or SQLAlchemy chose it: for postgresql:// that is psycopg2 before "
    "SQLAlchemy 2.1, and psycopg since.",
    'Install it, such as by pip install "sa-railway[psycopg]", or name one that is installed: '
    "postgresql+psycopg2://.",
    ("ModuleNotFoundError: No module named 'psycopg2'", "no driver for postgresql is installed"),
)
SQLITE = Kind(
    "sqlite-on-railway",
    Severity.ERROR,
    "The database is an SQLite file on a container's own disk",
    "That disk is lost at every deploy, and each replica has another one.",
    _REFERENCE + " Or keep the file on a volume, below RAILWAY_VOLUME_MOUNT_PATH.",
    ("sqlite3.OperationalError: no such table: <table>",),
)
PUBLIC = Kind(
    "public-from-railway",
    Severity.WARNING,
    "<host> is Railway's TCP proxy, used from within Railway",
    "Traffic through the proxy leaves Railway's network and comes back: it is billed as egress, "
    "and every query takes longer.",
    f"Use the private network: {_SET}",
)
OLD_SCHEME = Kind(
    "url-postgres-scheme",
    Severity.NOTE,
    "<variable> begins with postgres://",
    "This package reads it, but SQLAlchemy by itself does not: whatever makes an engine without "
    "database_url(), such as the env.py of Alembic, fails.",
    "Take the URL from sa_railway.database_url() everywhere.",
    ("sqlalchemy.exc.NoSuchModuleError: Can't load plugin: sqlalchemy.dialects:postgres",),
)
SQLALCHEMY_ONLY = Kind(
    "url-plugin",
    Severity.WARNING,
    "<variable> has parameters that only SQLAlchemy knows: <parameters>",
    "psql, pg_dump and every driver by itself refuse the whole URL for them, and so do most other "
    "programs that read the variable.",
    "Remove them from the URL, and let the application name the plugin: "
    'sa_railway.create_engine(), or sqlalchemy.create_engine(url, plugins=["railway"]), with its '
    "settings as arguments or as SA_RAILWAY_* variables.",
    ('invalid URI query parameter: "plugin"', 'invalid connection option "plugin"'),
)
# told apart by the first of their texts, which is that of database_url()
_FLAWS = (EMPTY, REFERENCE, SPACE, QUOTES, HALF_RENDERED, PORT, UNREADABLE)


def check_environment(case: Case) -> Seen:
    """Look at the platform, the versions, and the settings of this package."""
    try:
        case.profile = load_profile(case.profile_name, {}, os.environ)
    except ConfigurationError as error:
        return "", [SETTING.found(message=error)]
    place = "not on Railway"
    if case.is_on_railway:
        service = os.environ.get("RAILWAY_SERVICE_NAME")
        place = f"Railway, service {service}" if service else "Railway"
    versions = f"Python {platform.python_version()}, SQLAlchemy {sqlalchemy.__version__}"
    return f"{place}; {versions}; profile {case.profile.name}", []


def check_url(case: Case) -> Seen:
    """Find the URL, and judge it and those that were passed over."""
    if case.given is None:
        sources = look_up(os.environ)
    else:
        sources = [try_source(case.giver, partial(find_url, case.given))]
    used = next((source for source in sources if source.url is not None), None)
    severity = Severity.WARNING if used else Severity.ERROR
    findings = [_flaw(source, severity) for source in sources if source.flaw]
    if used is None or used.url is None:
        return "", findings or [NO_URL.found()]
    try:
        case.url = normalize_url(used.url)
        case.url.get_dialect().import_dbapi()
    except (ConfigurationError, ImportError) as error:
        return "", [DRIVER.found(message=error), *findings]
    case.source = used.name
    findings += _judge(case)
    place = masked(case.url).partition("://")[2].rpartition("@")[2]
    return f"{used.name}: {place or 'in memory'}, by {case.url.get_driver_name()}", findings


def _flaw(source: Source, severity: Severity) -> Finding:
    kind = next((kind for kind in _FLAWS if kind.literal[0] in source.flaw), SCHEME)
    finding = kind.found(variable=source.name, message=source.flaw)
    return replace(finding, severity=severity)


def _judge(case: Case) -> Iterator[Finding]:
    """Judge a URL that can be read."""
    if case.is_on_railway and is_public_proxy(case.url.host):
        yield PUBLIC.found(host=case.url.host)
    if case.is_on_railway and case.url.get_backend_name() == "sqlite" and not _on_volume(case.url):
        yield SQLITE.found()
    raw = case.given if case.given is not None else os.environ.get(case.source, "")
    text, untidiness = tidied(str(raw))
    for kind in (SPACE, QUOTES):
        if kind.literal[0] == untidiness:  # this package leaves it out; others do not
            yield replace(kind.found(variable=case.source), severity=Severity.WARNING)
    if text.startswith("postgres:"):
        yield OLD_SCHEME.found(variable=case.source)
    if foreign := plugin_parameters(case.url):
        yield SQLALCHEMY_ONLY.found(variable=case.source, parameters=", ".join(foreign))


def _on_volume(url: URL) -> bool:
    """Return whether the file of *url* lies on a volume, which outlives a deploy."""
    volume = os.environ.get("RAILWAY_VOLUME_MOUNT_PATH")
    return volume is not None and Path(url.database or "").absolute().is_relative_to(volume)
