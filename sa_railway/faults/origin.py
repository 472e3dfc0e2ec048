"""Where an exception comes from: the database, or something else in the same work."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator

from sqlalchemy.exc import DBAPIError, StatementError

DRIVERS = frozenset({"psycopg2", "psycopg", "asyncpg"})
"""The packages of the drivers that are known."""

# Where asyncpg's errors of the network may arise, besides the standard library.
_BENEATH_ASYNCPG = sys.stdlib_module_names | {"asyncpg", "uvloop", "winloop"}


def is_database_error(error: BaseException) -> bool:
    """Return whether *error* itself is SQLAlchemy's or a driver's.

    An error that was raised from a database's error is not one: it says something else now. A group
    is one if all its members are.
    """
    if isinstance(error, ExceptionGroup):
        return all(map(is_database_error, error.exceptions))
    if isinstance(error, StatementError) and not isinstance(error, DBAPIError):
        return error.orig is not None and is_database_error(error.orig)  # a value's own conversion
    return "sqlalchemy" in _packages_of_class(error) or is_driver_error(error)


def is_driver_error(error: BaseException) -> bool:
    """Return whether *error* itself is that of a driver that is known.

    asyncpg raises ``OSError`` and ``TimeoutError`` as they are, and so do HTTP clients, time limits
    and handlers of signals: such an error is the driver's if it arose within it. The errors that
    SQLAlchemy defines for asyncpg are not the driver's own.
    """
    if not DRIVERS.isdisjoint(_packages_of_class(error)):
        return True
    return isinstance(error, OSError) and _arose_in_asyncpg(error)


def _packages_of_class(error: BaseException) -> set[str]:
    return {_package(cls.__module__) for cls in type(error).__mro__}


def _arose_in_asyncpg(error: BaseException) -> bool:
    """Return whether *error* was raised in asyncpg, or in what the standard library does for it.

    The frames tell, which Python adds from the place where the error was raised outwards. A handler
    of a signal runs on top of asyncpg's frames, but in a module of the application.
    """
    frames = traceback.walk_tb(error.__traceback__)
    packages = [_package(frame.f_globals.get("__name__") or "") for frame, _ in frames]
    if "asyncpg" not in packages:
        return False
    return _BENEATH_ASYNCPG.issuperset(packages[packages.index("asyncpg") :])


def _package(module: str) -> str:
    return module.partition(".")[0]


def members(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors that a group holds, also within further groups; else *error* itself."""
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from members(member)
    else:
        yield error


def severity_of(error: BaseException) -> str | None:
    """Return the severity that the server sent with *error*, in English; None without one."""
    if (cause := error.__cause__) is not None and hasattr(cause, "severity_en"):
        error = cause  # asyncpg's, which SQLAlchemy's adapter has translated
    severity = getattr(error, "severity_en", None)
    diagnostics = getattr(error, "diag", None)  # psycopg2 and psycopg
    return severity or getattr(diagnostics, "severity_nonlocalized", None)
