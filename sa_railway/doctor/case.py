"""The case that the doctor examines: what was asked, what is known by now, and the connections."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import sqlalchemy
from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy.util import greenlet_spawn

from sa_railway.config.drivers import libpq_parameters
from sa_railway.config.options import engine_options
from sa_railway.config.profile import PROFILES, Profile
from sa_railway.config.url import on_railway
from sa_railway.doctor.findings import Finding
from sa_railway.doctor.redaction import redacted
from sa_railway.engine.waiting import single_attempt
from sa_railway.engine.watchdog import limit

Answer = TypeVar("Answer")
Seen = tuple[str, list[Finding]]
"""What a check returns: what it saw, in a line, and what it found."""


class NotRunError(Exception):
    """Raised by a check that cannot be made, or only in part.

    Args:
        reason: why, and what was not examined.
        findings: what the part that could be made has found.
    """

    def __init__(self, reason: str, findings: list[Finding] | None = None) -> None:
        super().__init__(reason)
        self.findings = findings or []


class SilentError(Exception):
    """The server had not answered when the time for a check was over."""


@dataclass(frozen=True)
class Address:
    """Where the server listens: a TCP port at an IP address, or the path of a socket.

    Attributes:
        host: as the URL has it.
        port: of TCP.
        ip: an address that the host's name resolves to; "" for a socket.
        path: of a Unix domain socket; "" for TCP.
    """

    host: str
    port: int = 5432
    ip: str = ""
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return self.path
        ip = self.ip or self.host
        return f"[{ip}]:{self.port}" if ":" in ip else f"{ip}:{self.port}"


@dataclass
class Case:
    """What was asked, and what the checks have found out for those that come after them.

    For one thread, and to be closed.

    Attributes:
        given: the URL that was given, if any.
        giver: where it came from, for people.
        profile_name: the profile that was asked for.
        replicas: containers of the application.
        processes: processes in each.
        extra: connections of others.
        tables: that must be there.
        timeout: seconds for each wait.
        source: where the URL was found, for people; "" until then.
        url: the database, once there is a source.
        profile: the profile with what the environment says.
        addresses: what the hosts of the URL resolve to.
        address: the first that can be connected to.
        has_pooler: whether a pooler is in between.
        offers_tls: whether the server offers TLS.
        settings: of the server, for the connections of this case alone.
    """

    given: str | URL | None = field(default=None, repr=False)  # it holds a password, as url does
    giver: str = "the argument"
    profile_name: str | Profile = "web"
    replicas: int = 1
    processes: int = 1
    extra: int = 0
    tables: Sequence[str] = ()
    timeout: float = 5.0
    source: str = ""
    url: URL = field(default_factory=lambda: URL.create("postgresql"), repr=False)
    profile: Profile = PROFILES["web"]
    addresses: list[Address] = field(default_factory=list)
    address: Address | None = None
    has_pooler: bool = False
    offers_tls: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    _runner: asyncio.Runner | None = None
    _engine: Engine | None = None

    @cached_property
    def is_on_railway(self) -> bool:
        """Whether this process has the variables of a Railway service."""
        return on_railway(os.environ)

    @property
    def is_postgres(self) -> bool:
        """Whether the database is PostgreSQL, or a pooler before it."""
        return self.url.get_backend_name() == "postgresql"

    @property
    def sslmode(self) -> str:
        """What the URL, or else the environment, asks for; libpq's default without either."""
        asked = libpq_parameters(self.url).get("sslmode")
        return asked or os.environ.get("PGSSLMODE") or "prefer"

    @property
    def engine(self) -> Engine:
        """The engine that the application would have, but for what would disturb or delay.

        No statement is prepared: behind a pooler in transaction mode, one of the doctor's would
        stay in a backend for others to stumble over. Connecting is tried once.
        """
        if self._engine is None:
            options = engine_options(
                self.url,
                profile=self.profile,
                transaction_pooler=True,
                connect_timeout=max(1.0, min(self.profile.connect_timeout, self.timeout)),
                pool_timeout=self.timeout,
                connect_args=self._connect_args(),
            )
            if self.url.get_dialect().is_async:
                from sqlalchemy.ext.asyncio import create_async_engine

                self._engine = create_async_engine(self.url, **options).sync_engine
            else:
                self._engine = sqlalchemy.create_engine(self.url, **options)
        return self._engine

    def _connect_args(self) -> dict[str, Any]:
        if self.url.get_driver_name() in ("mysqldb", "pymysql"):
            return {"read_timeout": max(1, round(self.timeout))}  # they have none by default
        if not self.settings:
            return {}
        if self.url.get_driver_name() == "asyncpg":
            return {"server_settings": dict(self.settings)}
        return {"options": " ".join(f"-c {name}={value}" for name, value in self.settings.items())}

    @contextmanager
    def variant(self, **changes: Any) -> Iterator[Case]:
        """Yield the same case with other fields: whether a change would help can be tried."""
        other = replace(self, **changes, _engine=None, _runner=None)
        try:
            yield other
        finally:
            if other._engine is not None:
                other._engine.dispose()

    def run(self, check: Callable[[Case], Answer]) -> Answer:
        """Return ``check(self)``, which may use an engine of asyncio, too."""
        if not self.url.get_dialect().is_async:
            return check(self)
        if self._runner is None:
            self._runner = asyncio.Runner()
        answer: Answer = self._runner.run(greenlet_spawn(check, self))
        return answer

    @contextmanager
    def connection(self, *, autocommit: bool = True) -> Iterator[Connection]:
        """Check a connection out, for ``timeout`` seconds altogether.

        Raises:
            SilentError: the time was over before the block was.
        """
        guards = ExitStack()
        expired: list[Callable[[], bool]] = []

        def guard(_connection: object, record: Any) -> None:
            """Limit also what the dialect asks of a connection before any other code gets it."""
            left = max(0.0, deadline - time.monotonic())
            expired.append(guards.enter_context(limit(record.driver_connection, left)))

        deadline = time.monotonic() + self.timeout
        token = single_attempt.set(True)
        event.listen(self.engine, "connect", guard, insert=True)
        try:
            with guards, self.engine.connect() as connection:
                if not expired:
                    guard(None, connection.connection)
                if autocommit:
                    connection.execution_options(isolation_level="AUTOCOMMIT")
                yield connection
        except Exception as error:
            if any(is_over() for is_over in expired):
                raise SilentError from error
            raise
        finally:
            event.remove(self.engine, "connect", guard)
            single_attempt.reset(token)

    def redact(self, message: str) -> str:
        """Return *message* without credentials, should a driver have put them there."""
        return redacted(message, self.url)

    def close(self) -> None:
        """Close all connections. May be called twice."""
        if self._engine is not None:
            self.run(lambda case: case.engine.dispose())
            self._engine = None
        if self._runner is not None:
            self._runner.close()
            self._runner = None
