"""A PostgreSQL server to throw away: start, stop, restart, freeze it, end its connections.

::

    with TemporaryPostgres() as server:
        engine = create_engine(server.url)
        server.restart()
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from sqlalchemy import URL

from sa_railway.exc import ConfigurationError
from sa_railway.testing.cluster import Cluster, TemporaryPostgresError

_DEADLINE = 60.0  # pg_ctl waits as long; starts and stops take well under a second as a rule
_POLL = 0.01
_SETTINGS: Mapping[str, object] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    # The data may be lost when the machine crashes. What was committed still survives a stop in
    # any mode: its log was handed to the kernel before the client got its answer.
    "fsync": "off",
    "full_page_writes": "off",
}
_STOP_SIGNALS = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}

StopMode = Literal["smart", "fast", "immediate"]


class TemporaryPostgres:
    """A separate server on 127.0.0.1, with the superuser and the database ``postgres``.

    Use it as a context manager, or call ``start()`` and ``close()``. Should the process die first,
    be it by ``SIGKILL``, the server and its data go all the same; a forked child that lives longer
    puts this off until its own end. An instance may be used by one thread at a time.

    Args:
        settings: settings as in ``postgresql.conf``; they hold for every start.
        password: of the superuser, which then needs it (SCRAM); None lets every client in.
        port: to listen on; None takes a free one. It stays the same when the server restarts.

    Attributes:
        port: where it listens; a port that was not given may change until the first start.
    """

    def __init__(
        self,
        *,
        settings: Mapping[str, object] | None = None,
        password: str | None = None,
        port: int | None = None,
    ) -> None:
        self.port = port or _free_port()
        self._port_may_change = port is None
        self._settings = {**_SETTINGS, **(settings or {})}
        self._password = password
        self._cluster: Cluster | None = None
        self._postmaster: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> URL:
        """The URL of the database ``postgres`` for psycopg2."""
        return self.url_for("psycopg2")

    def url_for(self, driver: str) -> URL:
        """Return the URL of the database ``postgres`` for *driver*, such as ``"asyncpg"``."""
        return URL.create(
            f"postgresql+{driver}",
            username="postgres",
            password=self._password,
            host="127.0.0.1",
            port=self.port,
            database="postgres",
        )

    @property
    def pid(self) -> int:
        """The process id of the postmaster, which is the parent of every backend.

        Raises:
            TemporaryPostgresError: the server is stopped.
        """
        if self._postmaster is None:
            raise TemporaryPostgresError("The server is stopped")
        return self._postmaster.pid

    def start(self) -> None:
        """Start the server and wait until it accepts connections. May be called twice.

        After ``stop()``, it comes back with the same data on the same port.

        Raises:
            PostgresNotFoundError: this machine has no PostgreSQL.
            TemporaryPostgresError: it does not start; with its log.
        """
        if self._postmaster is not None:
            return
        if self._cluster is None:
            self._cluster = Cluster(self._password)
        while not self._launch(self._cluster):
            self.port = _free_port()
        self._port_may_change = False

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server, even a frozen one, and wait until it is gone. May be called twice.

        Args:
            mode: ``"smart"`` waits for the clients to leave, ``"fast"`` disconnects them, and
                ``"immediate"`` is a crash, after which the next start recovers.

        Raises:
            TemporaryPostgresError: it is still there after 60 seconds.
        """
        if mode not in _STOP_SIGNALS:
            raise ConfigurationError(f"mode is {mode!r}; allowed: {', '.join(_STOP_SIGNALS)}")
        if self._postmaster is None:
            return
        self.thaw()
        self._postmaster.send_signal(_STOP_SIGNALS[mode])
        try:
            self._postmaster.wait(_DEADLINE)
        except subprocess.TimeoutExpired:
            raise TemporaryPostgresError(
                f"The server still runs {_DEADLINE:g} seconds after its stop in mode {mode!r}"
            ) from None
        self._postmaster = None

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop the server in *mode* and start it again."""
        self.stop(mode)
        self.start()

    def close(self) -> None:
        """Stop the server and remove its data. May be called twice; a later start begins empty."""
        self.stop("immediate")
        if self._cluster is not None:
            self._cluster.remove()
            self._cluster = None

    def terminate_backends(self) -> int:
        """End every client's connection by ``pg_terminate_backend()``; return how many there were.

        When it returns, they are gone, and each has sent its client the last message.

        Raises:
            TemporaryPostgresError: some are still there after 60 seconds.
        """
        with self._cursor() as cursor:
            cursor.execute(
                "SELECT pid FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
            ended = [row[0] for row in cursor.fetchall()]
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) AS pid", (ended,)
            )
            deadline = time.monotonic() + _DEADLINE
            while time.monotonic() < deadline:
                cursor.execute("SELECT 1 FROM pg_stat_activity WHERE pid = ANY(%s)", (ended,))
                if cursor.fetchone() is None:
                    return len(ended)
                time.sleep(_POLL)
        raise TemporaryPostgresError(f"Backends still run {_DEADLINE:g} seconds after their end")

    def freeze(self) -> None:
        """Halt every process of the server by ``SIGSTOP``. May be called twice.

        The kernel still accepts connections and acknowledges data: clients wait, without an error.
        """
        _signal([self.pid], signal.SIGSTOP)
        halted: set[int] = set()
        # looked for again, because one may have been born just before the postmaster stood still
        while newborn := _children(self.pid) - halted:
            _signal(newborn, signal.SIGSTOP)
            halted |= newborn

    def thaw(self) -> None:
        """Let a frozen server go on by ``SIGCONT``. Harmless when it is not frozen."""
        _signal([*_children(self.pid), self.pid], signal.SIGCONT)

    def _launch(self, cluster: Cluster) -> bool:
        """Start the postmaster; return False if its port is taken and another one may be tried."""
        self._postmaster = cluster.spawn({"port": self.port, **self._settings})
        deadline = time.monotonic() + _DEADLINE
        while self._postmaster.poll() is None and time.monotonic() < deadline:
            if cluster.is_ready(self._postmaster.pid):
                return True
            time.sleep(_POLL)
        self._postmaster.kill()
        self._postmaster.wait()
        self._postmaster = None
        log = cluster.log()
        if self._port_may_change and "Address already in use" in log:
            return False
        raise TemporaryPostgresError(f"The server did not start; its log:\n{log}")

    @contextlib.contextmanager
    def _cursor(self) -> Iterator[Any]:
        """Open a connection of the superuser for a few statements."""
        import psycopg2

        connection = psycopg2.connect(
            host="127.0.0.1",
            port=self.port,
            user="postgres",
            password=self._password,
            dbname="postgres",
            connect_timeout=10,
            application_name="sa_railway.testing",
        )
        with contextlib.closing(connection):
            connection.autocommit = True
            yield connection.cursor()


def _free_port() -> int:
    """Return a port on which nothing listens.

    It lies below the ports that Linux (32768) and others (49152) use for outgoing connections;
    one of those might take it, or even connect to itself, while the server restarts.
    """
    while True:
        port = random.randrange(15000, 32768)  # noqa: S311 - no secret
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _children(pid: int) -> set[int]:
    """Return the process ids of the children of *pid*."""
    return {child for child, parent in _processes() if parent == pid}


def _processes() -> Iterator[tuple[int, int]]:
    """Yield every process of the machine with its parent."""
    if not Path("/proc/self/stat").exists():
        listing = subprocess.run(
            ["ps", "-A", "-o", "pid=,ppid="],  # noqa: S607 - wherever the system has it
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for line in listing.splitlines():
            process, parent = line.split()
            yield int(process), int(parent)
        return
    # slim container images have no ps
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            # after the name, which is in parentheses and may hold anything: state, parent
            yield int(stat.parent.name), int(stat.read_text().rpartition(")")[2].split()[1])


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
