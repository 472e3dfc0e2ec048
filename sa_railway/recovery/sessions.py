"""The sessions that work is done in, which must be rolled back before it is done again."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, scoped_session

from sa_railway.exc import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session

    AnySession = Session | scoped_session[Any] | AsyncSession | async_scoped_session[Any]


class OpenSession(NamedTuple):
    """A session as it was found when the work began.

    Attributes:
        session: a Session or an AsyncSession.
        had_transaction: whether it held earlier work, which a rollback would lose.
    """

    session: Any
    had_transaction: bool

    def roll_back(self) -> None:
        """Roll back. One that fails has ended the transaction all the same: the server is gone."""
        with contextlib.suppress(DBAPIError, OSError):
            self.session.rollback()

    async def roll_back_async(self) -> None:
        """Do the same, whichever kind of session it is."""
        with contextlib.suppress(DBAPIError, OSError):
            result = self.session.rollback()
            if inspect.isawaitable(result):
                await result


Source = Callable[[], OpenSession | None]

_sources: tuple[Source, ...] = ()


def add_session_finder(source: Source) -> None:
    """Let *source* find the session of wherever work is done, such as a request; None if none.

    It is asked when work begins that names no session. May be called twice.
    """
    global _sources
    if source not in _sources:
        _sources = (*_sources, source)


def open_sessions(session: AnySession | None, arguments: Iterable[object]) -> list[OpenSession]:
    """Return the sessions that the work is done in, as they are now.

    That is *session* if it is given, or those among the *arguments* of the work, or else those that
    the sources find.
    """
    given = filter(_is_session, arguments) if session is None else [session]
    found = [_look_at(one) for one in given]
    return found or [one for source in _sources if (one := source()) is not None]


def _look_at(session: Any) -> OpenSession:
    current = session() if callable(session) else session  # a scoped_session makes one
    # Code that begins a transaction may repeat it. It begins with the first change to any object,
    # too.
    return OpenSession(current, had_transaction=current.in_transaction())


def is_asyncio(session: object) -> bool:
    """Return whether *session* can only be rolled back with ``await``."""
    return inspect.iscoroutinefunction(getattr(type(session), "rollback", None))


def check_session(session: object) -> None:
    """Refuse what is no session, such as a sessionmaker.

    Raises:
        ConfigurationError: it is none.
    """
    if not _is_session(session):
        raise ConfigurationError(
            f"session is of type {type(session).__name__}; allowed: a Session, a scoped_session, "
            "or their asyncio twins"
        )


def _is_session(value: object) -> bool:
    # only the type is looked at: an argument may be a proxy for what is not there
    if issubclass(type(value), Session | scoped_session):
        return True
    return is_asyncio(value) and hasattr(type(value), "dirty")  # an AsyncConnection has none
