"""An application for any server: ``application`` for WSGI, ``asgi`` for ASGI.

A request for ``/pulse`` needs no database; any other answers the id of the backend that it used.
"""

import os
from pathlib import Path

import sqlalchemy
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

URL = make_url(os.environ["SERVED_URL"])
BACKEND = text("SELECT pg_backend_pid()")
IS_ASYNC = URL.drivername.endswith(("asyncpg", "psycopg_async"))

if IS_ASYNC:
    engine = create_async_engine(URL, plugins=["railway"])
else:
    engine = sqlalchemy.create_engine(URL, plugins=["railway"])
    if not os.environ.get("SERVED_PATCHED_LATER"):
        with engine.connect() as connection:  # and so before the fork of a server that preloads
            connection.execute(text("SELECT 1"))

# a worker that is killed while it is being loaded would fail without us as well
Path(f"loaded.{os.getpid()}").touch()


def application(environ, start_response):
    body = "ok"
    if environ["PATH_INFO"] != "/pulse":
        with engine.connect() as connection:
            body = str(connection.scalar(BACKEND))
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body.encode()]


async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    async with engine.connect() as connection:
        body = str(await connection.scalar(BACKEND)).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
