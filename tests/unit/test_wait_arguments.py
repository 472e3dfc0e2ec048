"""Arguments of wait_for_database() that cannot be used, before anybody connects."""

import asyncio
import pickle
import sys

import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import create_async_engine

from sa_railway import wait_for_database
from sa_railway.asyncio import wait_for_database as wait_async
from sa_railway.exc import ConfigurationError, NotReadyError

NOWHERE = "postgresql://u:p@127.0.0.1:1/d"


def wait_in_asyncio(target, **arguments):
    asyncio.run(wait_async(target, **arguments))


both = pytest.mark.parametrize("wait_for", [wait_for_database, wait_in_asyncio])


@both
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"timeout": 0}, "timeout is 0; allowed: more than 0 seconds"),
        ({"timeout": -1.5}, "timeout is -1.5; allowed: more than 0 seconds"),
        ({"timeout": float("nan")}, "timeout is nan; allowed: more than 0 seconds"),
        ({"timeout": True}, "timeout is True; allowed: more than 0 seconds"),
        ({"timeout": "60"}, "timeout is '60'; allowed: more than 0 seconds"),
        ({"tables": "orders"}, "tables is 'orders'; allowed: a list of names such as ['orders']"),
        ({"tables": [1]}, "tables is [1]; allowed: a list of names such as ['orders']"),
        ({"tables": [""]}, "tables is ['']; allowed: a list of names such as ['orders']"),
        ({"revision": ""}, "revision is ''; allowed: the id of a revision, or 'head'"),
        ({"revision": 7}, "revision is 7; allowed: the id of a revision, or 'head'"),
        (
            {"revision": "head", "alembic_config": "absent.ini"},
            "alembic_config is 'absent.ini', which is no file; allowed: the path of an alembic.ini",
        ),
    ],
)
def test_arguments_that_cannot_be_used(wait_for, arguments, message):
    with pytest.raises(ConfigurationError) as caught:
        wait_for(NOWHERE, **arguments)

    assert str(caught.value) == message


def test_migrations_that_cannot_be_read(tmp_path):
    config = tmp_path / "alembic.ini"
    config.write_text(f"[alembic]\nscript_location = {tmp_path / 'absent'}\n")

    with pytest.raises(ConfigurationError) as caught:
        wait_for_database(NOWHERE, revision="head", alembic_config=str(config))

    assert str(caught.value).startswith(
        f"alembic_config is {str(config)!r}, and its migrations cannot be read: "
    )


def test_head_needs_alembic(tmp_path, monkeypatch):
    config = tmp_path / "alembic.ini"
    config.write_text("[alembic]\n")
    monkeypatch.setitem(sys.modules, "alembic.config", None)

    with pytest.raises(ConfigurationError) as caught:
        wait_for_database(NOWHERE, revision="head", alembic_config=str(config))

    assert str(caught.value) == (
        "revision is 'head', which needs Alembic; install alembic, or name a revision"
    )


def test_each_twin_names_the_other():
    with pytest.raises(ConfigurationError) as caught:
        wait_for_database(create_async_engine("sqlite+aiosqlite://"))  # type: ignore[arg-type]
    assert str(caught.value) == (
        "target is of type AsyncEngine; allowed: a URL or an Engine; for an AsyncEngine, "
        "sa_railway.asyncio.wait_for_database()"
    )

    with pytest.raises(ConfigurationError) as caught:
        wait_in_asyncio(sqlalchemy.create_engine("sqlite://"))
    assert str(caught.value) == (
        "target is of type Engine; allowed: a URL or an AsyncEngine; for an Engine, "
        "sa_railway.wait_for_database()"
    )


@both
def test_sqlite_is_always_there(wait_for):
    name = "sqlite+aiosqlite://" if wait_for is wait_in_asyncio else "sqlite://"

    wait_for(name, timeout=0.001)


def test_the_error_survives_a_task_queue():
    error = pickle.loads(pickle.dumps(NotReadyError("not yet", missing=("table t",))))

    assert str(error) == "not yet"
    assert error.missing == ("table t",)
