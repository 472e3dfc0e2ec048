"""The errors of sa_railway, raised only where SQLAlchemy and the drivers have none.

::

    RailwayError
    ├── ConfigurationError (ValueError)          a setting, a profile or a URL is wrong
    ├── DatabaseUnavailableError (OperationalError)  away for too long already to wait again
    ├── NotReadyError (TimeoutError)             it can be reached, but lacks what was waited for
    └── CommitOutcomeUnknownError (SQLAlchemyError)  it is unknown whether a COMMIT was executed

Everything else that goes wrong reaches the caller as the driver's or SQLAlchemy's own exception.
No message in this module ever holds a password.
"""

from __future__ import annotations

from functools import partial

from sqlalchemy import exc as sa_exc

__all__ = [
    "CommitOutcomeUnknownError",
    "ConfigurationError",
    "DatabaseUnavailableError",
    "NotReadyError",
    "RailwayError",
]


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
        fields = {name: getattr(self, name) for name in ("retry_after", "orig")}
        return partial(DatabaseUnavailableError, **fields), self.args


class NotReadyError(RailwayError, TimeoutError):
    """The database could be reached, but what it was to hold has not come in time.

    Attributes:
        missing: what was still missing: tables and revisions, each as a few words.
    """

    def __init__(self, message: str, *, missing: tuple[str, ...]) -> None:
        super().__init__(message)
        self.missing = missing

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the fields when pickled."""
        return partial(NotReadyError, missing=self.missing), self.args


class CommitOutcomeUnknownError(RailwayError, sa_exc.SQLAlchemyError):
    """A COMMIT was sent, its answer was lost, and what became of it cannot be proved.

    It is no ``OperationalError``: code that runs work again after one of those must not do so here.

    Attributes:
        transaction_id: the server's id of the transaction, with its epoch; None if it was not read.
        marker: the id of the transaction's row in the table of commit markers; None without one.
        orig: the driver's exception that ended the COMMIT.
    """

    def __init__(
        self, *, transaction_id: int | None, marker: str | None = None, orig: BaseException
    ) -> None:
        super().__init__(_unknown(transaction_id, marker))
        self.transaction_id = transaction_id
        self.marker = marker
        self.orig = orig

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the fields when pickled."""
        fields = {name: getattr(self, name) for name in ("transaction_id", "marker", "orig")}
        return partial(CommitOutcomeUnknownError, **fields), ()


def _unknown(transaction_id: int | None, marker: str | None) -> str:
    what, hint = "the transaction", "it has no id that the server could be asked for"
    if marker is not None:
        what = f"the transaction with the commit marker {marker}"
        hint = (
            "SELECT committed FROM sa_railway_commit_marker WHERE id = "  # noqa: S608 - a text
            f"'{marker}' says true if it was, false if it was not and cannot be any more, and "
            "nothing if that is open"
        )
    elif transaction_id is not None:
        what = f"transaction {transaction_id}"
        hint = (
            f"SELECT txid_status({transaction_id}) says 'committed', 'aborted', 'in progress', or "
            "NULL if the server has forgotten; after a crash it may mean another transaction"
        )
    return (
        f"it is unknown whether {what} was committed: the connection was lost during COMMIT, and "
        f"the outcome could not be proved; {hint}; do not run the work again before you know"
    )
