"""What a session holds when its transaction is run again: new objects, and work of others."""

import asyncio

import pytest
import sqlalchemy
from fix_engines import SYNC, plain_engine
from sqlalchemy import ForeignKey, Identity, text
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    relationship,
    sessionmaker,
)

import sa_railway
from sa_railway import run_transaction
from sa_railway.asyncio import run_transaction as run_async_transaction
from sa_railway.exc import ConfigurationError
from sa_railway.testing import ChaosProxy


class Model(DeclarativeBase):
    pass


class Parent(Model):
    __tablename__ = "parent"
    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    name: Mapped[str] = mapped_column(default="nameless")
    version: Mapped[int] = mapped_column()
    made: Mapped[str] = mapped_column(server_default=text("now()"))
    children: Mapped[list["Child"]] = relationship(back_populates="parent", order_by="Child.id")
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - the form that SQLAlchemy takes


class Child(Model):
    __tablename__ = "child"
    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    parent_id: Mapped[int] = mapped_column(ForeignKey("parent.id"))
    parent: Mapped[Parent] = relationship(back_populates="children")


@pytest.fixture
def plain(postgres):
    engine = plain_engine(postgres.url)
    Model.metadata.drop_all(engine)
    Model.metadata.create_all(engine)
    return engine


def stored(plain):
    with plain.connect() as connection:
        return (
            connection.execute(text("SELECT id, name, version FROM parent")).all(),
            list(connection.scalars(text("SELECT parent_id FROM child"))),
        )


@pytest.mark.parametrize("driver", SYNC)
def test_objects_made_outside_are_inserted_again_without_what_the_database_gave_them(
    postgres, plain, driver
):
    parent = Parent(children=[Child(), Child()])

    def work(session):
        session.add(parent)
        session.flush()

    with ChaosProxy(postgres.url_for(driver)) as proxy:
        engine = sa_railway.create_engine(proxy.url)
        with proxy.cut(before="COMMIT") as cut:
            run_transaction(sessionmaker(engine, expire_on_commit=False), work)
        engine.dispose()

    assert cut.happened
    assert stored(plain) == ([(parent.id, "nameless", 1)], [parent.id] * 2)
    assert parent.id == 2  # the first one was rolled back
    assert [child.parent for child in parent.children] == [parent] * 2


def test_objects_are_inserted_again_in_asyncio(postgres, plain):
    parent = Parent(name="mine", children=[Child()])

    async def work(session):
        session.add(parent)
        await session.flush()

    async def main(proxy):
        engine = sa_railway.create_async_engine(proxy.url)
        with proxy.cut(before="COMMIT") as cut:
            await run_async_transaction(async_sessionmaker(engine, expire_on_commit=False), work)
        await engine.dispose()
        return cut.happened

    with ChaosProxy(postgres.url_for("asyncpg")) as proxy:
        assert asyncio.run(main(proxy))
    assert stored(plain) == ([(2, "mine", 1)], [2])


def test_a_child_of_a_parent_that_is_there_already_keeps_it(postgres, plain):
    with Session(plain) as session:
        session.add(Parent())
        session.commit()
    child = Child()

    def work(session):
        child.parent = session.get(Parent, 1)
        session.add(child)
        session.flush()

    with ChaosProxy(postgres.url) as proxy:
        engine = sa_railway.create_engine(proxy.url)
        with proxy.cut(before="COMMIT") as cut:
            run_transaction(sessionmaker(engine), work)
        engine.dispose()

    assert cut.happened
    assert stored(plain)[1] == [1]


REFUSED = (
    "transactor is a session with uncommitted changes, which could not be run again; commit them "
    "or roll them back before run_transaction()"
)


@pytest.mark.parametrize(
    "statement",
    ["INSERT INTO parent (name, version) VALUES ('mine', 1)", "NOTIFY channel, 'mine'"],
)
def test_uncommitted_work_in_another_database_of_the_session_is_refused(postgres, plain, statement):
    main, other = (sa_railway.create_engine(postgres.url) for _ in range(2))
    session = Session(main, binds={Parent: other})
    session.execute(text("SELECT 1"))
    session.execute(text(statement), bind_arguments={"mapper": Parent})

    with pytest.raises(ConfigurationError) as caught:
        run_transaction(session, lambda session: session.execute(text("SELECT 1")))

    assert str(caught.value) == REFUSED
    session.commit()
    assert len(stored(plain)[0]) == (1 if "INSERT" in statement else 0)
    for engine in (main, other):
        engine.dispose()


def test_a_session_that_has_read_from_several_databases_may_go_on(postgres, plain):
    main, other = (sa_railway.create_engine(postgres.url) for _ in range(2))
    session = Session(main, binds={Parent: other})
    session.execute(text("SELECT 1"))
    session.execute(text("SELECT count(*) FROM parent"), bind_arguments={"mapper": Parent})

    run_transaction(session, lambda session: session.add(Parent()))

    assert len(stored(plain)[0]) == 1
    for engine in (main, other):
        engine.dispose()


def test_an_object_that_was_changed_outside_keeps_the_work_from_being_run_again(postgres, plain):
    with Session(plain, expire_on_commit=False) as session:
        parent = Parent()
        session.add(parent)
        session.commit()
    parent.name = "lost"
    with ChaosProxy(postgres.url) as proxy:
        engine = sa_railway.create_engine(proxy.url)
        factory = sessionmaker(engine, expire_on_commit=False)
        with proxy.cut(before="COMMIT"), pytest.raises(sqlalchemy.exc.DBAPIError) as caught:
            run_transaction(factory, lambda session: session.add(parent))
        parent = Session(plain, expire_on_commit=False).get_one(Parent, 1)
        of_parent = sqlalchemy.orm.object_session(parent)
        assert of_parent is not None
        of_parent.close()
        parent.name = "changed"
        with proxy.cut(before="CommandComplete", of="COMMIT") as cut:
            run_transaction(factory, lambda session: session.add(parent))
        engine.dispose()

    assert caught.value.__notes__ == [
        "sa_railway: run_transaction() cannot run the work again: a Parent was changed before it "
        "was added to the session, and has lost the change with the rollback; change it in the "
        "callback"
    ]
    assert cut.happened
    assert [name for _, name, _ in stored(plain)[0]] == ["changed"]
