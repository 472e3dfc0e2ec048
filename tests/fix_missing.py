"""What a machine may lack: a test that needs it fails in CI, and is skipped elsewhere."""

import os
from typing import NoReturn

import pytest
import sqlalchemy
from sqlalchemy import text

from sa_railway.testing import TemporaryPostgres

# what a build of PostgreSQL may lack, as that of the wheel does
HAS = {
    "TLS": "SELECT setting LIKE '%-lssl%' FROM pg_config() WHERE name = 'LIBS'",
    "ICU": "SELECT count(*) > 1 FROM pg_collation WHERE collprovider = 'i'",
    "postgres_fdw": "SELECT count(*) = 1 FROM pg_available_extensions WHERE name = 'postgres_fdw'",
}


def need(what: str, server: TemporaryPostgres) -> None:
    """Go on if *server* was built with *what*."""
    engine = sqlalchemy.create_engine(server.url)
    with engine.connect() as connection:
        has_it = connection.scalar(text(HAS[what]))
    engine.dispose()
    if not has_it:
        missing(f"this build of PostgreSQL has no {what}")


def missing(reason: str) -> NoReturn:
    """End the test for *reason*."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
