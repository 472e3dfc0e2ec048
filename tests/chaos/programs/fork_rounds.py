"""Fork with a transaction open, let the child do its worst, commit in the parent; say what is left.

Usage: fork_rounds.py URL ROUNDS plain|railway. Prints a JSON object.
"""

import asyncio
import contextlib
import gc
import json
import os
import sys

import sqlalchemy
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

URL, ROUNDS, KIND = sys.argv[1], int(sys.argv[2]), sys.argv[3]
OPTIONS = {"plugins": ["railway"]} if KIND == "railway" else {}
HELPLESS = 3
INSERT = text("INSERT INTO rounds (n) VALUES (:n)")


def misbehave(engine, connection, n):
    """Do to the inherited connection what programs do, then leave in one of two ways."""
    worst = [
        lambda: engine.dispose(),
        lambda: connection.close(),
        lambda: connection.get_transaction().rollback(),
        lambda: connection.invalidate(),
        lambda: connection.execute(INSERT, {"n": -1}),
        lambda: connection.connection.dbapi_connection.close(),
    ][n % 6]
    with contextlib.suppress(Exception):
        worst()
    gc.collect()
    works = True
    if KIND == "railway" and n % 10 < 2 and not engine.dialect.is_async:
        with engine.connect() as own:
            works = own.scalar(text("SELECT 41 + 1")) == 42
    if n % 2:
        os._exit(0 if works else HELPLESS)
    # unwinds through the parent's blocks, which may fail: they end a transaction that is not there
    sys.exit(0 if works else HELPLESS)


def sync_rounds():
    engine = sqlalchemy.create_engine(URL, **OPTIONS)
    idle = [engine.connect() for _ in range(3)]
    pids = {connection.scalar(text("SELECT pg_backend_pid()")) for connection in idle}
    for connection in idle:
        connection.close()
    children = []
    for n in range(ROUNDS):
        with engine.begin() as connection:
            connection.execute(INSERT, {"n": n})
            child = os.fork()
            if child == 0:
                misbehave(engine, connection, n)
            children.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    idle = [engine.connect() for _ in range(3)]
    after = {connection.scalar(text("SELECT pg_backend_pid()")) for connection in idle}
    report(children, pids == after)


async def async_rounds():
    engine = create_async_engine(URL, **OPTIONS)
    idle = [await engine.connect() for _ in range(3)]
    pids = {await connection.scalar(text("SELECT pg_backend_pid()")) for connection in idle}
    for connection in idle:
        await connection.close()
    children = []
    for n in range(ROUNDS):
        async with engine.begin() as connection:
            await connection.execute(INSERT, {"n": n})
            child = os.fork()
            if child == 0:
                misbehave(engine.sync_engine, connection.sync_connection, n)
            children.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    idle = [await engine.connect() for _ in range(3)]
    after = {await connection.scalar(text("SELECT pg_backend_pid()")) for connection in idle}
    report(children, pids == after)
    for connection in idle:
        await connection.close()
    await engine.dispose()


def report(children, same):
    print(json.dumps({"helpless_children": children.count(HELPLESS), "same_backends": same}))


if "asyncpg" in URL or "psycopg_async" in URL:
    asyncio.run(async_rounds())
else:
    sync_rounds()
