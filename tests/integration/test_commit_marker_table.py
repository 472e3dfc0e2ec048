"""The table of commit markers: made by the command line, by Alembic, and by its own SQL."""

import json
from typing import Any

import pytest
import sqlalchemy
from alembic.migration import MigrationContext
from alembic.operations import Operations
from fix_engines import plain_engine
from marked import in_text
from sqlalchemy import text

from sa_railway.alembic import include_name
from sa_railway.cli import main
from sa_railway.commit import marker_schema as marker
from sa_railway.config.masking import masked

TABLE = "public.sa_railway_commit_marker"


@pytest.fixture
def command(database_url, monkeypatch, capsys):
    monkeypatch.setenv("DATABASE_URL", in_text(database_url))

    def run(*arguments):
        status = main(["commit-marker", *arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def engine(database_url):
    return plain_engine(database_url)


def has_table(engine):
    return sqlalchemy.inspect(engine).has_table(marker.TABLE)


def test_it_is_created_once_and_told_about_and_dropped(command, engine, database_url):
    where = f"{masked(database_url)}\n"

    assert command() == (1, f"no sa_railway_commit_marker in the search path: {where}", "")
    for _ in range(2):
        assert command("--create") == (0, f"{TABLE} can be used, and holds 0 markers: {where}", "")
    assert has_table(engine)
    assert command("--drop") == (0, f"no sa_railway_commit_marker in the search path: {where}", "")
    assert not has_table(engine)


def test_machines_read_json(command, database_url):
    state = {
        "database": masked(database_url),
        "table": TABLE,
        "usable": True,
        "found": True,
        "complete": True,
        "rows": 0,
    }

    assert [json.loads(command(*a, "--json")[1]) for a in (["--create"], [])] == [state, state]
    assert json.loads(command("--drop", "--json")[1]) == {
        **state,
        "table": None,
        "usable": False,
        "found": False,
        "complete": False,
        "rows": None,
    }
    assert json.loads(command("--sql", "--json")[1]) == {"sql": marker.create_sql()}


@pytest.mark.parametrize("lost", [marker.REMOVED, marker.HOME, None], ids=["point", "home", "all"])
def test_a_table_that_has_lost_its_first_rows_gets_new_ones(command, engine, database_url, lost):
    where = f"{masked(database_url)}\n"
    command("--create")
    home = text(f"SELECT removed_before FROM {TABLE} WHERE id = '{marker.HOME}'")
    with engine.begin() as connection:
        before = connection.scalar(home)
        connection.execute(
            text(f"DELETE FROM {TABLE} WHERE :lost IS NULL OR id = CAST(:lost AS uuid)"),
            {"lost": lost and str(lost)},
        )

    lacking = f"{TABLE} is there, but lacks its first rows, which sa-railway commit-marker --create"
    assert command() == (1, f"{lacking} makes: {where}", "")
    for _ in range(2):
        assert command("--create") == (0, f"{TABLE} can be used, and holds 0 markers: {where}", "")
    with engine.connect() as connection:
        assert connection.scalar(home) not in (before, None)


def test_what_is_complete_stays_as_it_is(command, engine):
    command("--create")
    rows = text(f"SELECT * FROM {TABLE} ORDER BY id")
    with engine.connect() as connection:
        before = connection.execute(rows).all()
    command("--create")

    with engine.connect() as connection:
        assert connection.execute(rows).all() == before


def test_the_sql_that_is_printed_creates_it(command, engine):
    status, sql, _ = command("--sql", "--grant-to", 'odd"role')

    assert status == 0
    assert not has_table(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql('CREATE ROLE "odd""role"')
        connection.exec_driver_sql(sql)
        query = f"SELECT has_table_privilege('odd\"role', '{TABLE}', 'DELETE')"
        assert connection.exec_driver_sql(query).scalar()
        connection.rollback()


@pytest.mark.parametrize(
    ("arguments", "status", "printed"),
    [
        (
            ["--create", "--schema", "nope"],
            1,
            'sa-railway commit-marker: schema "nope" does not exist',
        ),
        (
            ["--drop", "--grant-to", "app"],
            2,
            "Error: --grant-to is given; allowed: together with --create, or with --sql alone",
        ),
        (
            ["sqlite://", "--create"],
            2,
            "Error: the database is sqlite; allowed: PostgreSQL, the only "
            "database with commit markers",
        ),
    ],
)
def test_what_cannot_be_done_is_said(command, arguments, status, printed):
    assert command(*arguments) == (status, "", f"{printed}\n")


def test_a_migration_creates_and_drops_it(engine):
    with engine.begin() as connection:
        operations: Any = Operations(MigrationContext.configure(connection))
        operations.create_commit_marker()
        assert sqlalchemy.inspect(connection).has_table(marker.TABLE)
        operations.drop_commit_marker()
        assert not sqlalchemy.inspect(connection).has_table(marker.TABLE)


def test_autogenerate_leaves_it_alone(engine):
    from alembic.autogenerate import compare_metadata

    with engine.begin() as connection:
        for statement in marker.create_sql():
            connection.execute(text(statement))
        empty = sqlalchemy.MetaData()
        found = [
            compare_metadata(MigrationContext.configure(connection, opts=options), empty)
            for options in ({}, {"include_name": include_name})
        ]
        connection.rollback()

    assert [len(differences) for differences in found] == [1, 0]


def test_the_operations_can_be_reversed():
    from sa_railway.alembic import CreateCommitMarker, DropCommitMarker

    there = CreateCommitMarker("app").reverse()
    back = DropCommitMarker("app").reverse()

    assert (type(there), there.schema) == (DropCommitMarker, "app")
    assert (type(back), back.schema) == (CreateCommitMarker, "app")


def test_a_schema_that_the_application_does_not_find_is_told(command, engine, database_url):
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA other")

    assert command("--create", "--schema", "other") == (
        1,
        "other.sa_railway_commit_marker is there, but not in the search path of this role: "
        f"{masked(database_url)}\n",
        "",
    )
    assert command("--schema", "public") == (
        1,
        f"no sa_railway_commit_marker in schema public: {masked(database_url)}\n",
        "",
    )
    assert command("--drop", "--schema", "other")[0] == 0


def test_a_role_that_may_create_nothing_finds_what_is_there(
    command, engine, database_url, monkeypatch
):
    command("--create")
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE ROLE marker_user LOGIN")
        connection.exec_driver_sql(
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON {TABLE} TO marker_user"
        )
    url = database_url.set(username="marker_user", drivername="postgresql+asyncpg")
    try:
        assert command(in_text(url), "--create")[0] == 0
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP OWNED BY marker_user")
            connection.exec_driver_sql("DROP ROLE marker_user")


def test_without_a_url_it_says_what_is_missing(command, monkeypatch):
    monkeypatch.delenv("DATABASE_URL")

    assert command() == (
        2,
        "",
        "Error: there is no URL, and without one the database is SQLite; pass a "
        "URL, or set DATABASE_URL\n",
    )
