"""Code as a user writes it; a type checker must refuse the marked lines, and no other.

tests/unit/test_typing.py runs mypy and pyright on it.
"""

import os
from collections.abc import Callable

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Connection, Engine, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, scoped_session, sessionmaker

import sa_railway
import sa_railway.asyncio
from sa_railway import events, retry
from sa_railway.config.settings import Settings
from sa_railway.flask import Railway


class Shop(Session):
    def stock(self) -> int:
        return 1


# --- engines ---

engine: Engine = sa_railway.create_engine(profile="worker", pool_size=2, echo=True)
asynchronous: AsyncEngine = sa_railway.create_async_engine("postgresql://host/name", metrics=True)
options = sa_railway.engine_options(json_serializer=str, connect_args={"sslmode": "require"})
own = sa_railway.Profile(name="own", pool_size=3)
sa_railway.create_engine(profile=own)
common: Settings = {"pool_size": 3, "logging_name": "shop"}
sa_railway.create_engine(**common)

sa_railway.create_engine(profile="wep")  # wrong
sa_railway.create_engine(pool_siez=2)  # wrong
sa_railway.create_engine(pool_size="2")  # wrong
sa_railway.engine_options(leak_after="30")  # wrong
sa_railway.create_async_engine(idle_release=True, connect_patience=None)  # wrong
url: str = sa_railway.database_url(os.environ["DATABASE_URL"])  # wrong


# --- transactions ---


def on_connection(connection: Connection) -> int:
    return connection.scalar(text("SELECT 1")) or 0


def in_session(session: Session) -> str:
    return str(session.scalar(text("SELECT 1")))


def in_shop(shop: Shop) -> int:
    return shop.stock()


async def on_async_connection(connection: AsyncConnection) -> int:
    return 1


async def in_async_session(session: AsyncSession) -> str:
    return "1"


count: int = sa_railway.run_transaction(engine, on_connection)
name: str = sa_railway.run_transaction(sessionmaker(engine), in_session)
sa_railway.run_transaction(scoped_session(sessionmaker(engine)), in_session)
stock: int = sa_railway.run_transaction(sessionmaker(engine, class_=Shop), in_shop)

sa_railway.run_transaction(engine, in_session)  # wrong
sa_railway.run_transaction(sessionmaker(engine), on_connection)  # wrong
sa_railway.run_transaction(sessionmaker(engine), in_shop)  # wrong
sa_railway.run_transaction(asynchronous, on_async_connection)  # wrong
wrong_name: str = sa_railway.run_transaction(engine, on_connection)  # wrong


async def main() -> None:
    number: int = await sa_railway.asyncio.run_transaction(asynchronous, on_async_connection)
    factory = async_sessionmaker(asynchronous)
    word: str = await sa_railway.asyncio.run_transaction(factory, in_async_session)
    print(number, word)
    await sa_railway.asyncio.run_transaction(asynchronous, in_async_session)  # wrong
    await sa_railway.asyncio.run_transaction(engine, on_connection)  # wrong


# --- retry ---


@retry
def report(day: int) -> str:
    return str(day)


@retry("startup", attempts=10)
def load() -> int:
    return 1


said: str = report(1)
loaded: int = load()

report("today")  # wrong
retry("startp")  # wrong
retry(attempts="3")  # wrong


# --- events ---


def stale(event: events.StaleFound) -> None:
    print(event.engine, event.how)


def anything(event: events.Event) -> None:
    print(event.engine)


end: Callable[[], None] = events.subscribe(stale, events.StaleFound)
events.subscribe(anything)
events.subscribe(anything, events.StaleFound, events.Leaked)

events.subscribe(stale)  # wrong
events.subscribe(stale, events.Leaked)  # wrong


# --- Flask ---

app = Flask("shop")
db = SQLAlchemy(app)
Railway(app, db, leftovers="commit", health=None)

Railway(app, db, leftovers="comit")  # wrong
Railway(app, db, metrics=True)  # wrong
