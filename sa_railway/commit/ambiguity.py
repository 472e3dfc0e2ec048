"""Marks on the errors of all engines, for what an exception does not say by itself.

A lost COMMIT and a lost ROLLBACK raise the same exception, and a statement in autocommit fails like
one within a transaction. Code that runs work again must tell them apart: what may have been
committed must not be done twice. So each error is examined where it arises.
"""

from __future__ import annotations

import traceback
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from sa_railway.commit.sql import effects_of, ends_transaction
from sa_railway.engine.hooks import never_raises
from sa_railway.engine.state import engine_name, fault_kinds_of
from sa_railway.exc import CommitOutcomeUnknownError
from sa_railway.faults import FaultKind, classify
from sa_railway.faults.origin import is_database_error, members

_AMBIGUOUS = "railway_ambiguous"
_ENGINE = "railway_engine"
_KINDS = "railway_fault_kinds"

_lost: weakref.WeakSet[Connection] = weakref.WeakSet()


def mark_errors() -> None:
    """Look at the errors of every engine in this process from now on; may be called twice."""
    if not event.contains(Engine, "handle_error", _mark):
        event.listen(Engine, "handle_error", _mark)


def mark_not_committed(error: BaseException) -> None:
    """Say of a driver's *error* that nothing was committed, although it arose during a COMMIT."""
    setattr(error, _AMBIGUOUS, False)


def was_lost(connection: Connection) -> bool:
    """Return whether an error of the database ended *connection*, and not a call of the caller's.

    Seen are errors since ``mark_errors()``.
    """
    return connection in _lost


def is_ambiguous(error: BaseException, *, since: BaseException | None = None) -> bool:
    """Return whether what failed with *error* may have been committed all the same.

    Whatever was being handled when *error* was raised counts, too: the report of a lost COMMIT may
    have failed like the COMMIT itself.

    Args:
        error: as the work has raised it.
        since: what was being handled when the work began, which is not of its doing.
    """
    heads: list[BaseException | None] = list(members(error))
    for e in _history(error, since):
        if isinstance(e, CommitOutcomeUnknownError) or getattr(e, _AMBIGUOUS, False):
            return True
        if hasattr(e, _AMBIGUOUS) and e.__context__ is not e.__cause__:
            heads.append(e.__context__)  # what was going on when this rollback failed, for instance
    return any(_is_unseen_loss(head) for head in heads if head is not None and head is not since)


def engine_of(error: BaseException) -> str:
    """Return the name of the engine that *error* comes from; "" if no engine has seen it."""
    return next((getattr(e, _ENGINE) for e in _history(error, None) if hasattr(e, _ENGINE)), "")


def kinds_of(error: BaseException) -> Mapping[str, str]:
    """Return what the engine that *error* comes from overrules of the meaning of errors."""
    return next((getattr(e, _KINDS) for e in _history(error, None) if hasattr(e, _KINDS)), {})


def _history(error: BaseException | None, since: BaseException | None) -> Iterator[BaseException]:
    """Yield *error* and all that led to it, each once."""
    seen = {id(since)}
    found: list[Any] = [error]
    while found:
        current = found.pop()
        if isinstance(current, BaseException) and id(current) not in seen:
            seen.add(id(current))
            yield current
            found += [current.__context__, current.__cause__, getattr(current, "orig", None)]
            found += getattr(current, "exceptions", ())  # of a group


def _is_unseen_loss(error: BaseException) -> bool:
    """Return whether *error* is a loss that no engine has seen, and so could be that of a COMMIT.

    It is the driver's own, whose connection was used without SQLAlchemy, or comes from another
    process. What is lost while a pool connects is not seen either, but had not begun to work.
    """
    if any(hasattr(e, _AMBIGUOUS) for e in (error, error.__cause__, getattr(error, "orig", None))):
        return False
    is_without_statement = isinstance(error, DBAPIError) and error.statement is None
    if isinstance(error, SQLAlchemyError) and not is_without_statement:
        return False
    if not classify(error).connection_lost:
        return False
    return ("sqlalchemy.pool.base", "connect") not in _functions(error)


@never_raises
def _mark(context: ExceptionContext) -> None:
    error = context.original_exception
    if context.engine is not None:
        setattr(error, _ENGINE, engine_name(context.engine))
        setattr(error, _KINDS, fault_kinds_of(context.engine))
    if not hasattr(error, _AMBIGUOUS):
        setattr(error, _AMBIGUOUS, _may_be_committed(context))
    connection = context.connection
    # one that is invalid already was so before this error, which only says it
    if connection is not None and not connection.invalidated and _is_loss(context):
        _lost.add(connection)


def _is_loss(context: ExceptionContext) -> bool:
    if not is_database_error(context.sqlalchemy_exception or context.original_exception):
        return False
    kinds = fault_kinds_of(context.engine) if context.engine is not None else {}
    fault = classify(context.original_exception, kinds=kinds)
    # one to a server that became read-only is given up for another server
    return context.is_disconnect or fault.connection_lost or fault.kind is FaultKind.READ_ONLY


def _may_be_committed(context: ExceptionContext) -> bool:
    error, statement = context.original_exception, context.statement
    if not classify(error).outcome_ambiguous:
        return False  # the server has answered, and rolled back
    if statement is None:
        # a COMMIT, a ROLLBACK or a BEGIN: only the functions it has passed through can tell
        return any(name.startswith("do_commit") for _, name in _functions(error))
    if ends_transaction(statement) is not None:
        return True
    return bool(effects_of(statement).writes) and commits_by_itself(context.connection)


def _functions(error: BaseException) -> Iterator[tuple[str, str]]:
    """Yield the module and name of every function that *error* has passed through."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        yield frame.f_globals.get("__name__", ""), frame.f_code.co_name


def commits_by_itself(connection: Connection | None) -> bool:
    """Return whether *connection* is in autocommit, as its driver says."""
    if connection is None:
        return False
    return getattr(connection.connection.dbapi_connection, "autocommit", False) is True
