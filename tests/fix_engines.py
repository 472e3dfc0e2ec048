"""The drivers that tests run with, and engines of SQLAlchemy's own to see what has happened."""

from __future__ import annotations

import psycopg
import sqlalchemy
from marked import conninfo
from sqlalchemy import URL, Engine, text
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import NullPool, QueuePool

SYNC = ["psycopg2", "psycopg"]
ASYNC = ["asyncpg", "psycopg_async"]
DRIVERS = [*SYNC, *ASYNC]
PACKAGES = [*SYNC, "asyncpg"]


def plain_engine(url: URL, *statements: str) -> Engine:
    """Return an engine that keeps no connection, after *statements* in one transaction."""
    engine = sqlalchemy.create_engine(url, poolclass=NullPool)
    if statements:
        with engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))
    return engine


def terminate(url: URL, *backends: int) -> None:
    """End *backends*, and wait until they are gone."""
    with psycopg.connect(conninfo(url), autocommit=True) as admin:
        for pid in backends:
            row = admin.execute("SELECT pg_terminate_backend(%s, 10000)", [pid]).fetchone()
            if row != (True,):
                raise AssertionError("a backend outlived pg_terminate_backend()")


def pool_of(engine: Engine | AsyncEngine) -> QueuePool:
    """Return the pool of *engine*, for what only one with a queue can tell."""
    if not isinstance(engine.pool, QueuePool):
        raise TypeError(f"the pool has no queue: {engine.pool}")
    return engine.pool
