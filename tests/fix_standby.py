"""A streaming standby of a throwaway server."""

from __future__ import annotations

import subprocess
import threading
import time
from typing import Any

from marked import MarkedPostgres

from sa_railway.testing import TemporaryPostgres, TemporaryPostgresError
from sa_railway.testing.cluster import Cluster

DEADLINE = 30.0


class _Copy(Cluster):
    """The cluster of a standby, made by ``pg_basebackup``."""

    def __init__(self, primary: TemporaryPostgres, name: str) -> None:
        self._source = f"host=127.0.0.1 port={primary.port} user=postgres application_name={name}"
        super().__init__(None)

    def _initialise(self, password: str | None) -> None:
        backup = self._popen(
            self._binaries / "pg_basebackup",
            f"--pgdata={self._data}",
            f"--dbname={self._source}",
            "--write-recovery-conf",
            "--checkpoint=fast",
            "--no-sync",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        output = backup.communicate()[0].decode(errors="replace")
        if backup.returncode != 0:
            raise TemporaryPostgresError(f"pg_basebackup failed:\n{output}")


class Standby(MarkedPostgres):
    """A hot standby; *name* is what ``synchronous_standby_names`` of *primary* knows it by.

    It is copied when it is made, and streams once it is started. After a failover it may take over
    the address of its primary: assign ``port`` before it starts.
    """

    def __init__(self, primary: TemporaryPostgres, name: str = "standby", **settings: Any) -> None:
        super().__init__(settings=settings)
        self._cluster = _Copy(primary, name)

    def catch_up(self, primary: TemporaryPostgres) -> None:
        """Wait until everything that *primary* has in its log is here and can be seen."""
        (end,) = _row(primary, "SELECT pg_current_wal_lsn()::text")
        self._wait_for(f"pg_last_wal_replay_lsn() >= '{end}'::pg_lsn")

    def promote(self) -> None:
        """Make a primary of it, and wait until it takes writes."""
        _row(self, "SELECT pg_promote(wait => false)")
        self._wait_for("NOT pg_is_in_recovery()")

    def _wait_for(self, condition: str) -> None:
        deadline = time.monotonic() + DEADLINE
        while _row(self, f"SELECT {condition}") != (True,):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{condition} is not true after {DEADLINE:g} seconds")
            threading.Event().wait(0.01)


def _row(server: TemporaryPostgres, query: str) -> Any:
    with server._cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone()
