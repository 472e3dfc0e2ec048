"""The end of a session: commit or roll back, log what was lost, give every connection back."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from flask import current_app
from sqlalchemy.exc import DBAPIError

from sa_railway import events
from sa_railway.engine.state import engine_name
from sa_railway.flask.context import EndedContext
from sa_railway.flask.uncommitted import UNKNOWN, Uncommitted, connections_of

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    from sa_railway.flask.database import Database

logger = logging.getLogger("sa_railway.flask")


def end_sessions(database: Database, error: BaseException | None, *, commit: bool) -> None:
    """Close the sessions that the current context has used, if any, and forget them.

    Args:
        database: where they are.
        error: what ended the context, as Flask tells it.
        commit: whether changes that a success has left uncommitted are committed.

    Raises:
        Exception: a commit failed; the other sessions have ended all the same. A rollback that
            fails does not raise: the server has rolled back what it can no longer be asked to.
    """
    sessions, async_sessions = database.sessions(), database.async_sessions()
    if not sessions and not async_sessions:
        return
    try:
        if sessions:
            _end_each(sessions, partial(EndedContext, error), commit=commit)
    finally:
        try:
            if async_sessions:
                end_each = current_app.ensure_sync(_end_each_async)
                end_each(async_sessions, EndedContext(error), commit=commit)
        finally:
            database.forget()


# What has ended is looked at only where that matters, since most requests leave nothing. Another
# thread, in which asyncio may run, knows nothing of a command, so it gets what was seen here.
Look = Callable[[], EndedContext]


def _end_each(sessions: Sequence[Session], look: Look, *, commit: bool) -> None:
    """End them all, also if one raises."""
    first, *others = sessions
    try:
        _end(first, look, commit=commit)
    finally:
        if others:
            _end_each(others, look, commit=commit)


async def _end_each_async(
    sessions: Sequence[AsyncSession], ended: EndedContext, *, commit: bool
) -> None:
    first, *others = sessions
    try:
        await first.run_sync(_end, lambda: ended, commit=commit)
    finally:
        if others:
            await _end_each_async(others, ended, commit=commit)


def _end(session: Session, look: Look, *, commit: bool) -> None:
    try:
        left = _left_by(session)
        is_left = bool(left)
        commit = commit and (is_left or left.may_have_written) and not look().failed
        engines = {each.engine for each in connections_of(session)} if is_left else set()
        if commit:
            session.commit()
    finally:
        _close(session)
    if is_left:
        _log(left, look(), committed=commit)
        if not commit:
            _announce(engines, look())


def _left_by(session: Session) -> Uncommitted:
    """Look at *session*; what one has left that cannot be looked at, such as a mock, is unknown."""
    try:
        return Uncommitted.of(session)
    except Exception as error:  # noqa: BLE001 - whatever the application's own session raises
        logger.warning("What %s has left uncommitted is unknown: %r", type(session), error)
        return UNKNOWN


def _close(session: Session) -> None:
    """Close *session* and give back all of its connections, the dead ones invalidated."""
    try:
        session.close()
    except DBAPIError as error:
        logger.debug("A connection could not be rolled back: %s", error.orig)
        # close() has stopped at the first such connection; the others are still checked out
        for connection in connections_of(session):
            with contextlib.suppress(DBAPIError):
                connection.close()
            # its transaction is over now, so this only returns it, which older SQLAlchemy has not
            connection.close()


def _log(left: Uncommitted, ended: EndedContext, *, committed: bool) -> None:
    where = ended.where
    if committed:
        logger.info("Committed what %s left uncommitted (%s)", where, left)
    elif ended.failed:
        logger.debug("Rolled back what %s left uncommitted when it failed (%s)", where, left)
    else:
        logger.warning(
            "Rolled back what %s left uncommitted (%s). "
            "If the changes are wanted, call db.session.commit() before it ends",
            where,
            left,
        )


def _announce(engines: Iterable[Engine], ended: EndedContext) -> None:
    for name in {engine_name(engine) for engine in engines} or {""}:
        events.publish(events.LeftoversRolledBack(name, ended.where, ended.failed))
