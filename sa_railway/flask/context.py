"""What an application context was for, and whether that succeeded."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click
from flask import after_this_request, g, has_request_context, request
from flask.globals import app_ctx
from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

if TYPE_CHECKING:
    from flask import Flask, Request, Response


_REQUEST, _STATUS = "_railway_request", "_railway_status"


def watch(app: Flask, *, always: bool) -> None:
    """Keep what Flask has forgotten when the application context of a request ends.

    That is kept of requests that use a session, from then on; *always* also keeps the status of
    those that begin after they have been answered.
    """
    if always:
        app.after_request(_keep_status)


# The class of all sessions, as in sa_railway.flask.uncommitted. Each use of one of Flask's
# proxies is expensive, so each is asked once.
@event.listens_for(Session, "after_transaction_create")
def _keep_request(_session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is not None or not has_request_context():
        return
    context = app_ctx._get_current_object()  # type: ignore[attr-defined]  # of a proxy
    # another application may have no Railway, and a class of g without a place for this
    kept = getattr(context.g, "__dict__", None)
    if kept is None or "railway" not in context.app.extensions:
        return
    current = request._get_current_object()  # type: ignore[attr-defined]  # of a proxy
    if kept.get(_REQUEST) is not current:  # a test may make several in one application context
        kept[_REQUEST] = current
        after_this_request(partial(_keep_status_in, kept))


def _keep_status(response: Response) -> Response:
    return _keep_status_in(getattr(g._get_current_object(), "__dict__", {}), response)


def _keep_status_in(kept: dict[str, Any], response: Response) -> Response:
    """Keep the status: a teardown does not learn of an exception that a handler has answered."""
    kept[_STATUS] = response.status_code
    return response


class EndedContext:
    """Those of the current application context, which ends.

    Args:
        error: what has ended it, or None.
    """

    def __init__(self, error: BaseException | None) -> None:
        self._error = error
        self._request: Request | None = getattr(g, _REQUEST, None)
        self._command: click.Context | None = None
        if self._request is None:
            self._command = click.get_current_context(silent=True)
        if self._command is not None:
            # older click does not hand the exception on to what it closes
            self._error = error or sys.exc_info()[1]

    @property
    def where(self) -> str:
        """The request by method and path, or the command by name."""
        if self._request is not None:
            # quoted as on the wire: a line break in a path would forge a line of the log
            return f"{self._request.method} {quote(self._request.path)}"
        return "an application context" if self._command is None else _name(self._command)

    @property
    def failed(self) -> bool:
        """Whether it ended with an exception, or was answered with a status of 400 or more.

        A command that ends by ``ctx.exit(3)`` is not seen to fail: click closes the context before.
        """
        if self._command is not None:
            return _is_failure(self._error)
        return self._error is not None or getattr(g, _STATUS, 0) >= 400


def _name(command: click.Context) -> str:
    """Return the command as it was typed, without its arguments."""
    return " ".join(filter(None, [command.command_path, command.invoked_subcommand]))


def _is_failure(error: BaseException | None) -> bool:
    """Return whether *error* says that a command failed: successful ones end by exceptions, too."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code != 0
    if isinstance(error, SystemExit):
        return error.code not in (None, 0)
    return error is not None
