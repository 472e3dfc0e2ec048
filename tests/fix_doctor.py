"""What the tests of the doctor share: examining, what plain SQLAlchemy says, strange servers."""

import asyncio
import contextlib
import json
import os
import pwd
import re
import socket
import subprocess
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import jsonschema
import pytest
import sqlalchemy
from marked import MARK
from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from sa_railway import normalize_url
from sa_railway.doctor.examine import examine
from sa_railway.doctor.findings import Diagnosis, Finding, Result
from sa_railway.doctor.text import render

SECRET = MARK
SCHEMA = json.loads((Path(__file__).parent.parent / "docs" / "doctor.schema.json").read_text())


def diagnose(url: str | URL | None = None, **options: Any) -> Diagnosis:
    """Examine, and hold whatever comes out against the schema and against the password."""
    diagnosis = examine(url, **options)
    printed = json.dumps(diagnosis.as_dict())
    jsonschema.validate(json.loads(printed), SCHEMA)
    for shown in (repr(diagnosis), printed, render(diagnosis)):
        assert SECRET not in shown
    for finding in diagnosis.findings:
        assert not re.search(r"<\w+>", finding.what + finding.why + finding.fix)
    return diagnosis


def codes(diagnosis: Diagnosis) -> list[str]:
    return [finding.code for finding in diagnosis.findings]


def first(diagnosis: Diagnosis) -> Finding:
    return diagnosis.findings[0]


def result(diagnosis: Diagnosis, check: str) -> Result:
    return next(result for result in diagnosis.results if result.check == check)


def stands_for(finding: Finding, url: str | URL, statement: str = "SELECT 1") -> bool:
    """Return whether *finding* holds what plain SQLAlchemy says to the same."""
    url = normalize_url(url)
    execute = execute_async if url.get_dialect().is_async else execute_sync
    # SQLAlchemy 2.0 wraps no error of asyncpg's that arises at connect
    expected = (sqlalchemy.exc.DBAPIError, asyncpg.PostgresError, OSError)
    with pytest.raises(expected) as caught:
        execute(url, statement)
    error = getattr(caught.value, "orig", caught.value)
    said = "".join(traceback.format_exception_only(error))
    return any(literal in said for literal in finding.literal)


def execute_sync(url: URL, statement: str) -> None:
    with sqlalchemy.create_engine(url, poolclass=NullPool).connect() as connection:
        connection.execute(text(statement))


def execute_async(url: URL, statement: str) -> None:
    async def execute() -> None:
        try:
            async with create_async_engine(url, poolclass=NullPool).connect() as connection:
                await connection.execute(text(statement))
        finally:
            # asyncpg leaves it to the loop to close a socket on which it was refused after TLS
            await asyncio.sleep(0.05)

    asyncio.run(execute())


@contextlib.contextmanager
def answering(*, with_bytes: bytes, behind: bytes | None = None) -> Iterator[int]:
    """A server that answers *with_bytes*, and closes; yields its port.

    It speaks first if *behind* is b"", otherwise when it has got these bytes, or any 8.
    """

    def is_asked(client: socket.socket) -> bool:
        got = b""
        while behind not in got if behind is not None else len(got) < 8:
            data = client.recv(64)
            if not data:
                return False
            got += data
        return True

    def serve(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            if is_asked(client):
                client.sendall(with_bytes)
                client.shutdown(socket.SHUT_WR)
                while client.recv(64):
                    pass

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threads.append(threading.Thread(target=serve, args=(listener.accept()[0],)))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads = [threading.Thread(target=accept)]
        threads[0].start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(10)


@contextlib.contextmanager
def running_pgbouncer(program: str, url: URL, settings: dict[str, Any]) -> Iterator[URL]:
    account: dict[str, Any] = {}
    if os.geteuid() == 0:  # it refuses to be root, whose folders it may not read then
        nobody = pwd.getpwnam("nobody")
        account = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(dir="/tmp" if account else None) as folder:
        config = configure_pgbouncer(Path(folder), url, {"listen_port": port, **settings})
        if account:
            os.chown(folder, account["user"], account["group"])
        with subprocess.Popen(
            [program, config], cwd=folder, stderr=subprocess.DEVNULL, **account
        ) as process:
            try:
                wait_until_listening(port)
                yield url.set(port=port)
            finally:
                process.kill()


def configure_pgbouncer(folder: Path, url: URL, settings: dict[str, Any]) -> Path:
    leads_to = f"host={url.host} port={url.port}"
    databases = settings.pop("databases", {"*": ""})
    for name, content in settings.pop("files", {}).items():
        (folder / name).write_text(content)
    (folder / "users.txt").write_text(f'"{url.username}" "{url.password}"\n')
    lines = {
        "listen_addr": "127.0.0.1",
        "unix_socket_dir": "",
        "auth_type": "plain",
        "auth_file": folder / "users.txt",
        "ignore_startup_parameters": "extra_float_digits",
        **settings,
    }
    config = folder / "pgbouncer.ini"
    sections = {
        "databases": {name: f"{leads_to} {more}" for name, more in databases.items()},
        "pgbouncer": lines,
    }
    config.write_text(
        "\n".join(
            "\n".join([f"[{section}]", *(f"{name} = {value}" for name, value in values.items())])
            for section, values in sections.items()
        )
    )
    return config


def wait_until_listening(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
        else:
            return


def sql_of(finding: Finding) -> str:
    """The first statement in the fix of *finding*, as it is printed."""
    found = re.search(
        r"\b(?:ALTER|GRANT|CREATE|REINDEX|ENABLE|SELECT pg_).*?(?=; |\. |\.?$)", finding.fix
    )
    assert found is not None
    return found[0]
