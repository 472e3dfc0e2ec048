"""What a session has not committed: its objects, and the statements that it has executed.

Only a look at the statements finds every kind of write: a flush, a bulk operation, SQL as text, and
whatever is executed on ``session.connection()``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet, ref

from sqlalchemy import event
from sqlalchemy.orm import Session

from sa_railway.commit.sql import Writes, effects_of
from sa_railway.engine.driver import is_idle
from sa_railway.engine.known import Known

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine
    from sqlalchemy.orm import SessionTransaction

_WRITES, _MAY_HAVE_WRITTEN = attrgetter("writes"), attrgetter("may_have_written")

_watched: WeakSet[Any] = WeakSet()  # dialects, which an engine and its copies have in common


class Uncommitted(NamedTuple):
    """What would be lost if a session were closed now; false if that is nothing.

    Attributes:
        new: objects to insert with the next flush.
        changed: objects to update with it.
        deleted: objects to delete with it.
        writes: statements that have written in the open transaction, those of flushes included.
        may_have_written: whether another one may have, such as a query that calls a function.
    """

    new: int
    changed: int
    deleted: int
    writes: int
    may_have_written: bool

    @classmethod
    def of(cls, session: Session) -> Uncommitted:
        """Look at *session*; the server is not asked."""
        # a connection that the caller has given to the session stays open after a commit
        connections = connections_of(session) if session.in_transaction() else ()
        tallies = [
            tally
            for each in connections
            if (tally := _tallies.get(each)) and not (session.is_active and _is_over(each))
        ]
        # the objects that can be changed or deleted are in the map; most requests leave nothing
        new, is_empty = session.new, not session.identity_map
        if not (tallies or new) and (is_empty or not (session.dirty or session.deleted)):
            return _NOTHING
        return cls(
            new=len(new),
            changed=sum(_is_modified(session, each) for each in session.dirty),
            deleted=len(session.deleted),
            writes=sum(map(_WRITES, tallies)),
            may_have_written=any(map(_MAY_HAVE_WRITTEN, tallies)),
        )

    def __bool__(self) -> bool:
        return bool(self.new or self.changed or self.deleted or self.writes)

    def __str__(self) -> str:
        return (
            f"objects: {self.new} new, {self.changed} changed, {self.deleted} deleted; "
            f"statements executed: {self.writes}"
        )


def _is_modified(session: Session, instance: object) -> bool:
    """Return whether a flush would update *instance*, also if its values cannot be compared."""
    try:
        return session.is_modified(instance)
    except Exception:  # noqa: BLE001 - whatever the application's own values and types raise
        return True


def _is_over(connection: Connection) -> bool:
    """Return whether the driver knows of no transaction: in autocommit, or after a COMMIT as text.

    One that is lost was in one, as far as anything is known.
    """
    if connection.closed or connection.invalidated:
        return False
    driver: Any = connection.connection.driver_connection
    if connection.dialect.name == "sqlite":
        return getattr(driver, "in_transaction", True) is False
    return connection.dialect.name == "postgresql" and is_idle(driver)


_NOTHING = Uncommitted(0, 0, 0, 0, may_have_written=False)
UNKNOWN = _NOTHING._replace(may_have_written=True)


def connections_of(session: Session) -> list[Connection]:
    """Return the connections that *session* has begun a transaction on and not given back."""
    begun = [reference() for reference in _begun.get(id(session), ())]
    return [each for each in begun if each is not None and not each.closed]


def watch(engine: Engine) -> None:
    """Count what sessions write through *engine*; may be called twice.

    A listener to an event of the engine would cost every ``Connection`` some 20 microseconds, so
    the methods of the dialect are surrounded, as in ``sa_railway.metrics.collect``.
    """
    dialect: Any = engine.dialect
    if dialect in _watched:
        return
    _watched.add(dialect)
    execute, executemany = dialect.do_execute, dialect.do_executemany
    execute_no_params, savepoint = dialect.do_execute_no_params, dialect.do_savepoint
    rollback_to_savepoint = dialect.do_rollback_to_savepoint

    def do_execute(cursor: Any, statement: Any, parameters: Any, context: Any = None) -> None:
        execute(cursor, statement, parameters, context)
        _executed(statement, context)

    def do_executemany(cursor: Any, statement: Any, parameters: Any, context: Any = None) -> None:
        executemany(cursor, statement, parameters, context)
        _executed(statement, context)

    def do_execute_no_params(cursor: Any, statement: Any, context: Any = None) -> None:
        execute_no_params(cursor, statement, context)
        _executed(statement, context)

    def do_savepoint(connection: Connection, name: str) -> None:
        savepoint(connection, name)
        tally = _tally_of(connection)
        tally.at_savepoint[name] = tally.writes

    def do_rollback_to_savepoint(connection: Connection, name: str) -> None:
        rollback_to_savepoint(connection, name)
        tally = _tally_of(connection)
        tally.writes = tally.at_savepoint.get(name, tally.writes)

    dialect.do_execute, dialect.do_executemany = do_execute, do_executemany
    dialect.do_execute_no_params, dialect.do_savepoint = do_execute_no_params, do_savepoint
    dialect.do_rollback_to_savepoint = do_rollback_to_savepoint


@dataclass
class _Tally:
    """How many statements have written on a connection, and how many had at each savepoint."""

    writes: int = 0
    may_have_written: bool = False
    at_savepoint: dict[str, int] = field(default_factory=dict)


# Of those connections on which something was written, or a savepoint was made.
_tallies: WeakKeyDictionary[Connection, _Tally] = WeakKeyDictionary()


def _tally_of(connection: Connection) -> _Tally:
    return _tallies.setdefault(connection, _Tally())


def _executed(statement: object, context: Any) -> None:
    writes = effects_of(statement).writes
    if writes is Writes.NO or context is None:
        return
    tally = _tally_of(context.root_connection)
    if writes is Writes.YES:
        tally.writes += 1
    else:
        tally.may_have_written = True


# The connections on which each session has begun, which may lead to the session themselves. Its own
# info belongs to the application.
_begun: Known[list[ref[Connection]]] = Known()


# The class of all sessions, for each extension makes its own: Flask-SQLAlchemy a class, and
# Flask-SQLAlchemy-Lite one for every application and, below an AsyncSession, none at all.
@event.listens_for(Session, "after_begin")
def _begin(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    if transaction.nested:
        return
    others = [each for each in connections_of(session) if each is not connection]
    _begun.add(session, [ref(each) for each in (*others, connection)])
    _tallies.pop(connection, None)  # of a connection that the session is bound to, and shares
