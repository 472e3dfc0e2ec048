"""What an application context was for, and whether that succeeded."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

import click
from flask import g, request

if TYPE_CHECKING:
    from flask import Flask, Response

__all__ = ["Circumstances", "watch"]


def watch(app: Flask) -> None:
    """Keep what Flask has forgotten when the application context of a request ends."""
    app.after_request(_keep_status)
    app.teardown_request(_keep_request)


def _keep_status(response: Response) -> Response:
    """Keep the status: when a handler has answered an exception, a teardown is told of none."""
    g._railway_status = response.status_code
    return response


def _keep_request(_error: BaseException | None) -> None:
    # quoted as on the wire: a path may hold a line break, which would forge a line of the log
    g._railway_request = f"{request.method} {quote(request.path)}"


@dataclass(frozen=True)
class Circumstances:
    """Those of an application context that ends.

    Attributes:
        where: the request by method and path, or the command by name.
        failed: it ended with an exception, or was answered with a status of 400 or more. A command
            that ends by ``ctx.exit(3)`` is not seen to fail: click closes the context before that.
    """

    where: str
    failed: bool

    @classmethod
    def of(cls, error: BaseException | None) -> Circumstances:
        """Look at the current context, which *error* has ended if it is not None."""
        if "_railway_request" in g:
            status = g.get("_railway_status", 0)
            return cls(g._railway_request, failed=error is not None or status >= 400)
        command = click.get_current_context(silent=True)
        if command is None:
            return cls("an application context", failed=error is not None)
        # older click does not hand the exception on to what it closes
        return cls(_name(command), failed=_is_failure(error or sys.exc_info()[1]))


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
