"""What a build of PostgreSQL may lack, as that of the wheel does: the tests say so and go on."""

import os

import pytest
import sqlalchemy
from sqlalchemy import text

HAS = {
    "TLS": "SELECT setting LIKE '%-lssl%' FROM pg_config() WHERE name = 'LIBS'",
    "ICU": "SELECT count(*) > 1 FROM pg_collation WHERE collprovider = 'i'",
    "postgres_fdw": "SELECT count(*) = 1 FROM pg_available_extensions WHERE name = 'postgres_fdw'",
}


def need(what, server):
    """Go on if *server* was built with *what*; fail in CI, and skip the test elsewhere."""
    engine = sqlalchemy.create_engine(server.url)
    with engine.connect() as connection:
        has_it = connection.scalar(text(HAS[what]))
    engine.dispose()
    if not has_it:
        reason = f"this build of PostgreSQL has no {what}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
