"""The end of a session: commit or roll back, log what was lost, give every connection back."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError

from sa_railway import events
from sa_railway.engine.naming import engine_name
from sa_railway.flask.circumstances import Circumstances
from sa_railway.flask.uncommitted import Uncommitted, connections_of

if TYPE_CHECKING:
    from flask_sqlalchemy.session import Session
    from sqlalchemy.orm import scoped_session

__all__ = ["end_session"]

logger = logging.getLogger("sa_railway.flask")


def end_session(scope: scoped_session[Any], error: BaseException | None, *, commit: bool) -> None:
    """Close the session that *scope* has for the current context, if any, and forget it.

    Args:
        scope: ``db.session``.
        error: what ended the context, as Flask tells it.
        commit: whether changes that a success has left uncommitted are committed.

    Raises:
        Exception: the commit failed. A rollback that fails does not raise: the server has rolled
            back what it can no longer be asked to.
    """
    if not scope.registry.has():
        return
    try:
        _end(scope.registry(), Circumstances.of(error), commit=commit)
    finally:
        # its key is the address of the context, and a later context may come to lie there
        scope.registry.clear()


def _end(session: Session, circumstances: Circumstances, *, commit: bool) -> None:
    try:
        left = Uncommitted.of(session)
        engines = {engine_name(connection.engine) for connection in connections_of(session)}
        commit = commit and (bool(left) or left.perhaps) and not circumstances.failed
        if commit:
            session.commit()
    finally:
        _close(session)
    if left:
        _log(left, circumstances, committed=commit)
    if left and not commit:
        for engine in engines or {""}:
            rolled_back = events.LeftoversRolledBack(
                engine, circumstances.where, circumstances.failed
            )
            events.announce(rolled_back)


def _close(session: Session) -> None:
    """Close *session* and give back all of its connections, the dead ones invalidated."""
    connections = connections_of(session)
    try:
        session.close()
    except DBAPIError as error:
        logger.debug("A connection could not be rolled back: %s", error.orig)
        # close() has stopped at the first such connection; the others are still checked out
        for connection in connections:
            with contextlib.suppress(DBAPIError):
                connection.close()
            # its transaction is over now, so this only returns it, which older SQLAlchemy has not
            connection.close()


def _log(left: Uncommitted, circumstances: Circumstances, *, committed: bool) -> None:
    where = circumstances.where
    if committed:
        logger.info("Committed what %s left uncommitted (%s)", where, left)
    elif circumstances.failed:
        logger.debug("Rolled back what %s left uncommitted when it failed (%s)", where, left)
    else:
        logger.warning(
            "Rolled back what %s left uncommitted (%s). "
            "If the changes are wanted, call db.session.commit() before it ends",
            where,
            left,
        )
