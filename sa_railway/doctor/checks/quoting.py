"""Names in the SQL of a fix, which must work as it is printed."""

from __future__ import annotations

import getpass
import os

from sa_railway.doctor.case import Case


def quoted(name: str) -> str:
    """Return *name* as an identifier of SQL."""
    return '"' + name.replace('"', '""') + '"'


def user_of(case: Case) -> str:
    """Return the user of the URL, or the one that drivers take by default."""
    return case.url.username or os.environ.get("PGUSER") or getpass.getuser()


def database_of(case: Case) -> str:
    """Return the database of the URL, or the one that drivers take by default."""
    return case.url.database or os.environ.get("PGDATABASE") or user_of(case)
