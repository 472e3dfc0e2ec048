"""What the driver gets for one attempt to connect: several hosts of asyncpg."""

import asyncio
from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest

from sa_railway.engine.attempt import surround

PRIMARY, STANDBY = "primary", "standby"


class Servers:
    """An asyncpg whose hosts are what *kinds* says: a role, or the exception of a connect."""

    exceptions = asyncpg.exceptions

    def __init__(self, **kinds):
        self.kinds = kinds
        self.calls = []

    async def connect(self, *, host, target_session_attrs, **arguments):
        self.calls.append((host, target_session_attrs, arguments))
        kind = self.kinds[host]
        if isinstance(kind, Exception):
            raise kind
        suited = {"any": {PRIMARY, STANDBY}, "read-write": {PRIMARY}, "standby": {STANDBY}}
        if kind not in suited[target_session_attrs]:
            raise asyncpg.exceptions.TargetServerAttributeNotMatched("none is as wanted")
        return host


def connect(servers, **arguments):
    """Connect as the dialect of asyncpg does."""

    def dialect_connect(**kwargs):
        creator = kwargs.pop("async_creator_fn", None)
        return asyncio.run(creator(**kwargs)) if creator else kwargs

    dbapi = SimpleNamespace(asyncpg=servers)
    dialect = SimpleNamespace(connect=dialect_connect, driver="asyncpg", loaded_dbapi=dbapi)
    engine: Any = SimpleNamespace(dialect=dialect)
    surround(engine)
    return dialect.connect(**arguments)


def test_each_host_has_the_whole_limit():
    servers = Servers(a=TimeoutError(), b=PRIMARY)

    found = connect(servers, host=["a", "b"], port=[1, 2], timeout=7, user="u")

    assert found == "b"
    assert servers.calls == [
        ("a", "any", {"port": 1, "timeout": 7, "user": "u"}),
        ("b", "any", {"port": 2, "timeout": 7, "user": "u"}),
    ]


@pytest.mark.parametrize(
    "away",
    [
        ConnectionRefusedError(111, "refused"),
        TimeoutError(),
        asyncpg.exceptions.CannotConnectNowError("starting up"),
    ],
)
def test_a_host_that_is_away_is_passed_over(away):
    assert connect(Servers(a=away, b=PRIMARY), host=["a", "b"], port=5432) == "b"


def test_what_a_server_refuses_is_raised_at_once():
    servers = Servers(a=asyncpg.exceptions.InvalidPasswordError("wrong"), b=PRIMARY)

    with pytest.raises(asyncpg.exceptions.InvalidPasswordError):
        connect(servers, host=["a", "b"], port=[1, 2])
    assert len(servers.calls) == 1


@pytest.mark.parametrize(
    ("wanted", "kinds", "found"),
    [
        ("read-write", {"a": STANDBY, "b": PRIMARY}, "b"),
        ("standby", {"a": PRIMARY, "b": STANDBY}, "b"),
        ("prefer-standby", {"a": PRIMARY, "b": STANDBY}, "b"),
        ("prefer-standby", {"a": TimeoutError(), "b": PRIMARY}, "b"),
        ("prefer-standby", {"a": PRIMARY, "b": TimeoutError()}, "a"),
    ],
)
@pytest.mark.parametrize("where", ["argument", "environment"])
def test_the_host_is_as_wanted(wanted, kinds, found, where, monkeypatch):
    arguments = {"target_session_attrs": wanted} if where == "argument" else {}
    if where == "environment":
        monkeypatch.setenv("PGTARGETSESSIONATTRS", wanted)

    assert connect(Servers(**kinds), host=["a", "b"], port=[1, 2], **arguments) == found


def test_a_host_that_never_answers_is_not_asked_twice():
    servers = Servers(a=TimeoutError(), b=PRIMARY)

    connect(servers, host=["a", "b"], port=[1, 2], target_session_attrs="prefer-standby")

    assert [(host, wanted) for host, wanted, _ in servers.calls] == [
        ("a", "standby"),
        ("b", "standby"),
        ("b", "any"),
    ]


@pytest.mark.parametrize(
    ("a", "b", "raised"),
    [
        (PRIMARY, PRIMARY, asyncpg.exceptions.TargetServerAttributeNotMatched),
        (PRIMARY, TimeoutError(), TimeoutError),
        (TimeoutError(), PRIMARY, TimeoutError),
        (TimeoutError(), ConnectionRefusedError(), ConnectionRefusedError),
    ],
)
def test_the_last_failure_is_raised_and_rather_that_of_a_connect(a, b, raised):
    with pytest.raises(raised) as caught:
        connect(Servers(a=a, b=b), host=["a", "b"], port=[1, 2], target_session_attrs="standby")
    assert type(caught.value) is raised


@pytest.mark.parametrize(
    "arguments",
    [
        {"host": "a", "port": 1},
        {"host": ["a"], "port": [1]},
        {"host": ["a", "b"], "port": [1, 2, 3]},
        {"host": ["a", "b"], "port": 1, "dsn": "postgres://"},
        {"host": ["a", "b"], "port": 1, "service": "main"},
    ],
)
def test_what_asyncpg_alone_can_read_is_left_to_it(arguments):
    assert connect(Servers(), **arguments) == arguments


def test_a_service_of_the_environment_is_left_to_asyncpg(monkeypatch):
    monkeypatch.setenv("PGSERVICE", "main")
    arguments = {"host": ["a", "b"], "port": 1}

    assert connect(Servers(), **arguments) == arguments
