"""What a session has not committed: its objects, and the statements that it has executed.

Only a look at the statements finds every kind of write: a flush, a bulk operation, SQL as text, and
whatever is executed on ``session.connection()``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import event
from sqlalchemy.orm import Session

from sa_railway.commit.sql import Writes, effects_of

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine
    from sqlalchemy.orm import SessionTransaction

__all__ = ["Uncommitted", "connections_of", "watch"]

_CONNECTIONS = "sa_railway.flask.connections"

_watched: WeakSet[Any] = WeakSet()  # dialects, which an engine and its copies have in common


@dataclass(frozen=True)
class Uncommitted:
    """What would be lost if a session were closed now; false if that is nothing.

    Attributes:
        new: objects to insert with the next flush.
        changed: objects to update with it.
        deleted: objects to delete with it.
        writes: statements that have written in the open transaction, those of flushes included.
        perhaps: whether another one may have, such as a query that calls a function.
    """

    new: int
    changed: int
    deleted: int
    writes: int
    perhaps: bool

    @classmethod
    def of(cls, session: Session) -> Uncommitted:
        """Look at *session*; the server is not asked."""
        return cls(
            new=len(session.new),
            changed=sum(session.is_modified(instance) for instance in session.dirty),
            deleted=len(session.deleted),
            writes=sum(_tallies[connection].writes for connection in connections_of(session)),
            perhaps=any(_tallies[connection].perhaps for connection in connections_of(session)),
        )

    def __bool__(self) -> bool:
        return any((self.new, self.changed, self.deleted, self.writes))

    def __str__(self) -> str:
        return (
            f"objects: {self.new} new, {self.changed} changed, {self.deleted} deleted; "
            f"statements executed: {self.writes}"
        )


def connections_of(session: Session) -> list[Connection]:
    """Return the connections on which *session* has a transaction open."""
    return list(session.info.get(_CONNECTIONS, ()))


def watch(engine: Engine) -> None:
    """Count what sessions write through *engine*; may be called twice.

    A listener to an event of the engine would cost every ``Connection`` some 20 microseconds, so
    the methods of the dialect are surrounded, as in ``sa_railway.engine.counting``.
    """
    dialect: Any = engine.dialect
    if dialect in _watched:
        return
    _watched.add(dialect)
    execute, executemany = dialect.do_execute, dialect.do_executemany
    execute_no_params = dialect.do_execute_no_params

    def do_execute(cursor: Any, statement: Any, parameters: Any, context: Any = None) -> None:
        execute(cursor, statement, parameters, context)
        _executed(statement, context)

    def do_executemany(cursor: Any, statement: Any, parameters: Any, context: Any = None) -> None:
        executemany(cursor, statement, parameters, context)
        _executed(statement, context)

    def do_execute_no_params(cursor: Any, statement: Any, context: Any = None) -> None:
        execute_no_params(cursor, statement, context)
        _executed(statement, context)

    dialect.do_execute, dialect.do_executemany = do_execute, do_executemany
    dialect.do_execute_no_params = do_execute_no_params


@dataclass
class _Tally:
    """How many statements have written on a connection, and how many had at each savepoint."""

    writes: int = 0
    perhaps: bool = False
    at_savepoint: WeakKeyDictionary[SessionTransaction, int] = field(
        default_factory=WeakKeyDictionary
    )


# By the connection that a session has begun a transaction on. Nothing in a value may refer to the
# key, which would then stay for ever; a transaction does.
_tallies: WeakKeyDictionary[Connection, _Tally] = WeakKeyDictionary()


# The class of all sessions, for each extension makes its own: Flask-SQLAlchemy a class, and
# Flask-SQLAlchemy-Lite one for every application and, below an AsyncSession, none at all.
@event.listens_for(Session, "after_begin")
def _begun(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    if transaction.nested:
        tally = _tallies[connection]
        tally.at_savepoint[transaction] = tally.writes
    else:
        session.info.setdefault(_CONNECTIONS, []).append(connection)
        _tallies[connection] = _Tally()


@event.listens_for(Session, "after_soft_rollback")
def _rolled_back(session: Session, transaction: SessionTransaction) -> None:
    for connection in connections_of(session):
        tally = _tallies[connection]
        tally.writes = tally.at_savepoint.get(transaction, tally.writes)


@event.listens_for(Session, "after_transaction_end")
def _ended(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        session.info.pop(_CONNECTIONS, None)


def _executed(statement: object, context: Any) -> None:
    tally = _tallies.get(context.root_connection) if context is not None else None
    if tally is None:
        return
    writes = effects_of(statement).writes
    if writes is Writes.YES:
        tally.writes += 1
    elif writes:
        tally.perhaps = True
