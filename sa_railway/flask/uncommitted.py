"""What a session has not committed: its objects, and the statements that it has executed.

Only a look at the statements finds every kind of write: a flush, a bulk operation, SQL as text, and
whatever is executed on ``session.connection()``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from flask_sqlalchemy.session import Session
from sqlalchemy import event

from sa_railway.commit.sql import Writes, effects_of

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine
    from sqlalchemy.orm import SessionTransaction

__all__ = ["Uncommitted", "connections_of", "watch"]

_CONNECTIONS = "sa_railway.flask.connections"


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
    """Count what the sessions of Flask-SQLAlchemy write through *engine*."""
    event.listen(engine, "after_cursor_execute", _executed)


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


# SQLAlchemy knows a listener by the address of its target, and would take a new scoped session for
# one that lay there before. So the target is the class of them all, which stays where it is.
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


def _executed(connection: Connection, _cursor: object, statement: str, *_how: object) -> None:
    tally = _tallies.get(connection)
    if tally is None:
        return
    writes = effects_of(statement).writes
    if writes is Writes.YES:
        tally.writes += 1
    elif writes:
        tally.perhaps = True
