"""What the chaos tests share: a server that speaks TLS, and a PgBouncer.

The first speaks it also where PostgreSQL was built without.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
import pytest
from fix_doctor import running_pgbouncer
from fix_missing import missing
from marked import MARK, MarkedPostgres, conninfo
from sqlalchemy import URL

from sa_railway.testing import TemporaryPostgres

# Made for this test; they guard nothing.
KEY = """\
-----BEGIN EC PRIVATE KEY-----
MHcCAQEEIHCkNg4EC1dvMgjGBS8IGU/Icq9ece+CnYrqDQTUQfCDoAoGCCqGSM49
AwEHoUQDQgAElX9YfcKH8+ohQyH/aevAaGyFJT5EiH61kT81IJQFYQHwrjdXfN8R
Mio6h+TT3kRJ7ZJ2CXVj/1dtzUh7zbOkww==
-----END EC PRIVATE KEY-----
"""
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBgDCCASWgAwIBAgIUQaZ5lD9LYV78EPUKG1d1OWVVlfowCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJMTI3LjAuMC4xMCAXDTI2MTEyMTAxNDkzOVoYDzIxMjYxMDI4
MDE0OTM5WjAUMRIwEAYDVQQDDAkxMjcuMC4wLjEwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAASVf1h9wofz6iFDIf9p68BobIUlPkSIfrWRPzUglAVhAfCuN1d83xEy
KjqH5NPeREntknYJdWP/V23NSHvNs6TDo1MwUTAdBgNVHQ4EFgQUOICyhRo7NCXH
E0SNqfLfmAJcnfowHwYDVR0jBBgwFoAUOICyhRo7NCXHE0SNqfLfmAJcnfowDwYD
VR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNJADBGAiEAx6BD1zLa9BVuFmfsWWho
bV/OUu7jq/4Jg6mnW5cJ/KsCIQCJcNUFvPH9xW4YtSbQjbOSMYlvZ3qavFqk8D1S
pl7oWQ==
-----END CERTIFICATE-----
"""


class TlsFront:
    """Answers PostgreSQL's SSLRequest, and passes on what it deciphers to a server without TLS."""

    def __init__(self, context: ssl.SSLContext, upstream: tuple[str, int]) -> None:
        self._context = context
        self._upstream = upstream
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        """End when the last client has gone."""
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._serve, args=(client,)))
                self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(self._upstream) as server,
            client,
        ):
            client.recv(8)  # the SSLRequest
            client.sendall(b"S")
            with self._context.wrap_socket(client, server_side=True) as encrypted:
                pass_on(encrypted, server)
                # as a server does: the FIN behind what was said last, and no closing handshake
                encrypted.shutdown(socket.SHUT_WR)
                while encrypted.recv(65536):
                    pass


def pass_on(encrypted: ssl.SSLSocket, server: socket.socket) -> None:
    """Pass data on both ways until one side has ended."""
    ways = {encrypted: server, server: encrypted}
    while True:
        pending = [encrypted] if encrypted.pending() else None
        for source in pending or select.select(ways, [], [])[0]:
            data = source.recv(65536)
            if not data:
                return
            ways[source].sendall(data)


@pytest.fixture
def encrypted(postgres: TemporaryPostgres, tmp_path: Path) -> Iterator[Callable[[str], URL]]:
    """Puts the shared server behind TLS with the key and certificate that are given; gives its URL.

    The host speaks nothing else.
    """
    with contextlib.ExitStack() as stack:

        def start(pem: str) -> URL:
            (tmp_path / "server.pem").write_text(pem)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tmp_path / "server.pem")
            front = TlsFront(context, ("127.0.0.1", postgres.port))
            stack.callback(front.close)
            return postgres.url.set(port=front.port).update_query_dict({"sslmode": "require"})

        yield start


@pytest.fixture
def encrypting_url(encrypted: Callable[[str], URL]) -> URL:
    """The URL of the shared server behind TLS."""
    return encrypted(KEY + CERTIFICATE)


@pytest.fixture(scope="module")
def server(postgres_binaries: Path) -> Iterator[MarkedPostgres]:
    """A server for the tests of one file, which asks for the password."""
    with MarkedPostgres(password=MARK) as server:
        yield server


@pytest.fixture
def execute(server: MarkedPostgres) -> Iterator[Callable[[str], None]]:
    """Runs statements on ``server`` as the superuser, each in a transaction of its own."""
    with contextlib.closing(psycopg2.connect(conninfo(server.url))) as connection:
        connection.autocommit = True
        yield connection.cursor().execute


@pytest.fixture
def pgbouncer(postgres: TemporaryPostgres) -> Iterator[Callable[..., URL]]:
    """Starts a PgBouncer before the shared server; gives the URL that leads through it."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        missing("pgbouncer is not installed: apt-get install pgbouncer")
    with contextlib.ExitStack() as stack:
        yield lambda **settings: stack.enter_context(
            running_pgbouncer(program, postgres.url.set(password=MARK), settings)
        )
