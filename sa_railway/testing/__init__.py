"""Break the database of your application in your tests.

``TemporaryPostgres`` is a server to start, stop, freeze and throw away; ``ChaosProxy`` stands
between a client and its server and disturbs what they say to each other.
"""

from __future__ import annotations

from sa_railway.testing.binaries import PostgresNotFoundError
from sa_railway.testing.cluster import TemporaryPostgresError
from sa_railway.testing.postgres import TemporaryPostgres
from sa_railway.testing.proxy import ChaosProxy

__all__ = ["ChaosProxy", "PostgresNotFoundError", "TemporaryPostgres", "TemporaryPostgresError"]
