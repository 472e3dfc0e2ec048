"""The errors of sa_railway, raised only where SQLAlchemy and the drivers have none.

::

    RailwayError
    ├── ConfigurationError (ValueError)          a knob, a profile or a URL is wrong
    └── DatabaseUnavailableError (OperationalError)  away for too long already to wait again

Everything else that goes wrong reaches the caller as the driver's or SQLAlchemy's own exception.
No message in this module ever holds a password.
"""

from __future__ import annotations

from sqlalchemy import exc as sa_exc

__all__ = ["ConfigurationError", "DatabaseUnavailableError", "RailwayError"]


class RailwayError(Exception):
    """The root of all errors that this package defines."""


class ConfigurationError(RailwayError, ValueError):
    """A setting cannot be used; the message names it, what was given, and what is allowed."""


class DatabaseUnavailableError(RailwayError, sa_exc.OperationalError):
    """Connecting was not tried, because it has failed for a whole patience already.

    It is an ``OperationalError``, so code that answers 503 to one of those does so here too.

    Attributes:
        retry_after: seconds until the next attempt may be made; fit for an HTTP ``Retry-After``.
        orig: the driver's exception that ended the last attempt.
    """

    def __init__(self, message: str, *, retry_after: float, orig: BaseException) -> None:
        sa_exc.OperationalError.__init__(self, None, None, orig)
        self.args = (message,)
        self.retry_after = retry_after

    def __str__(self) -> str:
        """Return the message alone: SQLAlchemy would add a link to a page that does not know it."""
        return str(self.args[0])

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the fields when pickled: task queues send errors between processes."""
        return _rebuild_unavailable, (self.args[0], self.retry_after, self.orig)


def _rebuild_unavailable(
    message: str, retry_after: float, orig: BaseException
) -> DatabaseUnavailableError:
    return DatabaseUnavailableError(message, retry_after=retry_after, orig=orig)
