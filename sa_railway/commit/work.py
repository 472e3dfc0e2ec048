"""What is known of one connection: what its transaction has done, and what its session holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from sa_railway.commit.decision import Server
from sa_railway.commit.sql import READS, Writes, effects_of, ends_transaction, remembered
from sa_railway.engine.driver import is_idle
from sa_railway.engine.known import Known

# A driver that writes values into the text itself puts these there as constants. Of others it may
# make any SQL, as psycopg2 does of AsIs(), and of a tuple behind the name of a function.
_CONSTANTS = frozenset((date, datetime, time, timedelta, UUID)) | frozenset(
    (type(None), bool, int, float, Decimal, str, bytes, bytearray, memoryview)
)


class Work:
    """What is known of one connection.

    Attributes:
        writes: whether a statement of the transaction has written, or may have.
        has_session_state: whether what was executed since ``begin_session()`` may have left a
            setting, a lock or the like that outlives its transaction.
        by_name: whether the transaction has called functions that read if they are the server's.
        is_noted: whether any statement of the transaction was seen.
        is_seen: whether everything that runs on the connection is seen.
        nesting: how many of psycopg's own transactions are open.
        refuse_end: called with a command that would end the transaction, before it is sent; raises.
        refuse_early: called before something is sent that the server would commit at once: on
            asyncpg's own connection before SQLAlchemy has begun, in a transaction of psycopg's, or
            in autocommit; raises.
        server: a look at the server that this connection has, once there was one.
    """

    __slots__ = tuple(
        "by_name has_session_state is_noted is_seen nesting refuse_early refuse_end server "
        "writes".split()
    )

    def __init__(self, *, is_seen: bool) -> None:
        self.is_seen = is_seen
        self.refuse_end: Callable[[str], None] | None = None
        self.refuse_early: Callable[[], None] | None = None
        self.server: Server | None = None
        self.nesting = 0
        self.writes = Writes.NO
        self.begin_session()

    def note(self, connection: Any, statement: object, values: Iterable[object] = ()) -> None:
        """Take *statement* into account, which is about to be sent on the driver's *connection*.

        Args:
            connection: the driver's own.
            statement: what it was given; None is anything.
            values: what the driver will write into the text.
        """
        if (
            # what an application mostly executes: a text that was proved harmless before
            statement.__class__ is str
            and remembered.get(statement) is READS
            and not (self.writes or values or self.refuse_early or self.refuse_end)
        ):
            self.is_noted = True
            return
        if self.refuse_early is not None and getattr(connection, "autocommit", False) is True:
            self.refuse_early()
        if self.refuse_end is not None:
            text = statement
            if hasattr(statement, "as_string"):  # what psycopg2.sql and psycopg.sql compose
                text = statement.as_string(connection)
            command = ends_transaction(text)
            if command is not None:
                self.refuse_end(command)
        if self.writes and is_idle(connection):
            self.end_transaction()  # what wrote was rolled back
        self.is_noted = True
        writes, keeps_session, by_name = effects_of(statement)
        if values and writes is not Writes.YES and not all(map(_is_constant, values)):
            writes, keeps_session = Writes.MAYBE, False
        if writes > self.writes:
            self.writes = writes
        self.by_name |= by_name
        if not keeps_session:
            self.has_session_state = True

    def begin_session(self) -> None:
        """Forget what was executed for others: by the listeners of a new connection, or before."""
        self.has_session_state = not self.is_seen
        self.end_transaction()

    def end_transaction(self) -> None:
        """Forget what the transaction has done."""
        self.by_name = self.is_noted = False
        self.writes = Writes.NO if self.is_seen else Writes.MAYBE

    def lose_sight(self) -> None:
        """Note that something is executed on the connection from now on that cannot be seen."""
        self.is_seen = False
        self.has_session_state = True
        self.writes = max(self.writes, Writes.MAYBE)


# Of the connections that are seen. None is kept on them: an application's own class may refuse it.
works: Known[Work] = Known()


def work_on(driver_connection: Any) -> Work:
    """Return what has run on *driver_connection*; one that is not seen may have done anything."""
    return works.get(id(driver_connection)) or Work(is_seen=False)


def _is_constant(value: object) -> bool:
    if isinstance(value, list):
        return all(map(_is_constant, value))
    if isinstance(value, dict):
        return all(map(_is_constant, value.values()))
    return type(value) in _CONSTANTS
