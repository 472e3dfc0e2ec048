"""See what runs on a connection: SQLAlchemy's statements and those of the driver's own cursors.

psycopg2 and asyncpg take a class for connections, and cursors have one, too. Ours derive from the
classes that the caller chose, and look at each statement before it is sent. Where another library
makes the object, as SQLAlchemy's adapter of asyncpg does, we replace its class.

A connection that was made past the dialect, by ``creator`` or a ``do_connect`` listener, is not
seen; so each of its transactions may have written. What the connection itself is not asked for is
not seen either: a cursor that is made by a call of its class, and what lies below (``pgconn``).
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.engine.default import DefaultDialect

from sa_railway.commit.work import Work, is_idle, work_on

__all__ = ["has_plain_commit", "track", "unseen_cursor"]

_WORK = "railway_work"
# What a driver's cursor or connection can be told to do, where it has it.
_COMMANDS = "callproc copy copy_expert copy_from copy_to execute executemany stream".split()
_ASYNCPG_COMMANDS = (
    "copy_from_query copy_from_table copy_records_to_table copy_to_table cursor execute "
    "executemany fetch fetchmany fetchrow fetchval prepare transaction"
).split()
# What it sets for as long as the connection lives, by no statement of the caller's.
_ASYNCPG_SETTINGS = ("add_listener reset_type_codec set_builtin_type_codec set_type_codec").split()

# A derived class is made once. Those of a program that makes its own for every connection go again.
_remembered = functools.lru_cache(maxsize=64)

_Args = tuple[Any, ...]
_Kwargs = dict[str, Any]
_Look = Callable[[Any, _Args, _Kwargs], None]

# Modules whose calls of asyncpg are not the application's.
_NO_APPLICATION = ("asyncpg.", "sqlalchemy.dialects.", f"{__package__}.")


def unseen_cursor(connection: Any, **arguments: Any) -> Any:
    """Return a cursor of psycopg's *connection* for what is no work of the application."""
    factory = connection.cursor_factory
    return getattr(factory, "railway_base", factory)(connection, **arguments)


def track(engine: Engine) -> None:
    """See what runs on the connections that *engine* makes from now on."""
    dialect: Any = engine.dialect
    surround = _TRACKERS.get(dialect.driver)
    # one that was given as create_engine(module=...) may be no driver at all
    is_real = getattr(dialect.loaded_dbapi, "__name__", "") in ("psycopg", "psycopg2")
    if surround and dialect.name == "postgresql" and (is_real or dialect.is_async):
        dialect.connect = surround(dialect.connect, dialect.loaded_dbapi)


def _psycopg2(connect: Callable[..., Any], dbapi: Any) -> Callable[..., Any]:
    extensions = dbapi.extensions

    @functools.wraps(connect)
    def tracked(*args: Any, **kwargs: Any) -> Any:
        factory = kwargs.get("connection_factory") or extensions.connection
        seen = _seen_or_none(_psycopg2_connection, factory, extensions)
        if seen is None:
            return connect(*args, **kwargs)
        connection = connect(*args, **{**kwargs, "connection_factory": seen})
        connection.railway_work = Work(is_seen=True)
        return connection

    return tracked


@_remembered
def _psycopg2_connection(base: Any, extensions: Any) -> Any:
    """Return *base* with cursors that are seen, also where the caller names their class.

    The class of a cursor can only be asked for. It is known at the root, after the connections of
    psycopg2.extras and those of the application have chosen.
    """
    root = extensions.connection
    usual = _cursor_class(extensions.cursor)

    def cursor(
        self: Any, name: Any = None, cursor_factory: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        factory = cursor_factory or self.cursor_factory
        if factory is None:
            factory = usual
        else:
            seen = _seen_or_none(_cursor_class, factory)
            if seen is None:
                work_on(self).lose_sight()
            factory = seen or factory
        return root.cursor(self, name, factory, *args, **kwargs)

    def lobject(self: Any, *args: Any, **kwargs: Any) -> Any:
        work_on(self).note(self, None)  # made and written without a statement
        return base.lobject(self, *args, **kwargs)

    rooted = _derive(root, __slots__=(), cursor=cursor)
    members = {"commit": _seen_commit(base), "lobject": lobject}
    if base is not root:  # whose own cursor(), if it has one, comes first
        rooted = _derive(base, bases=(base, rooted))
        members["cursor"] = _seen_cursor(rooted)
    return _derive(rooted, bases=(rooted,), **members)


def _seen_cursor(base: Any) -> Callable[..., Any]:
    """Return the ``cursor()`` of the driver's connection *base*, with every command seen."""
    inherited = base.cursor

    @functools.wraps(inherited)
    def cursor(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = inherited(self, *args, **kwargs)
        if not hasattr(made, "railway_base"):
            seen = _seen_or_none(_cursor_class, type(made))
            try:
                made.__class__ = seen
            except TypeError:  # it is None, or the class is not written in Python
                work_on(self).lose_sight()
        return made

    return cursor


def _seen_commit(base: Any) -> Callable[[Any], Any]:
    """Return the ``commit()`` of the driver's connection *base*, which may be refused."""

    def refuse(connection: Any, _args: _Args, _kwargs: _Kwargs) -> None:
        # SQLAlchemy's adapter of asyncpg commits without a commit() of the driver's
        refuse_end = work_on(getattr(connection, "driver_connection", connection)).refuse_end
        if refuse_end is not None:
            refuse_end("COMMIT")

    return _preceded(base.commit, refuse)


def _psycopg(connect: Callable[..., Any], dbapi: Any) -> Callable[..., Any]:
    # A connection that is made of our class costs each statement less than one whose class is
    # replaced. Where another library has replaced connect(), that comes first.
    is_default = getattr(connect, "__func__", None) is DefaultDialect.connect

    @functools.wraps(connect)
    def tracked(*args: Any, **kwargs: Any) -> Any:
        if is_default and dbapi.connect == dbapi.Connection.connect:
            connection = _psycopg_connection(dbapi.Connection).connect(*args, **kwargs)
        else:
            connection = connect(*args, **kwargs)
        driver = getattr(connection, "driver_connection", connection)  # of SQLAlchemy's adapter
        if not hasattr(driver, _WORK):  # a creator may hand out a connection once more
            if not hasattr(driver, "railway_has_plain_commit"):
                seen = _seen_or_none(_psycopg_connection, type(driver))
                if seen is None:
                    return connection
                driver.__class__ = seen
            for name in ("cursor_factory", "server_cursor_factory"):
                factory = getattr(driver, name)
                setattr(driver, name, _seen_or_none(_cursor_class, factory) or factory)
        driver.railway_work = Work(is_seen=True)
        return connection

    return tracked


@_remembered
def _psycopg_connection(base: Any) -> Any:
    """Return *base* with cursors that are seen, and psycopg's own transactions."""
    is_own = base.commit.__module__.startswith("psycopg.")
    return _derive(
        base,
        railway_has_plain_commit=is_own,
        commit=_seen_commit(base),
        cursor=_seen_cursor(base),
        transaction=_seen_transaction(base),
    )


def _seen_transaction(base: Any) -> Callable[..., Any]:
    """Return the ``transaction()`` of psycopg's connection *base*, which commits by itself."""
    inherited = base.transaction

    @contextmanager
    def counted(self: Any) -> Iterator[None]:
        work = work_on(self)
        if work.refuse_early is not None and is_idle(self):
            work.refuse_early()
        work.nesting += 1
        try:
            yield
        finally:
            work.nesting -= 1

    if hasattr(base, "__aenter__"):

        @asynccontextmanager
        async def transaction(self: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            with counted(self):
                async with inherited(self, *args, **kwargs) as made:
                    yield made

        return transaction

    @contextmanager
    def sync_transaction(self: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with counted(self), inherited(self, *args, **kwargs) as made:
            yield made

    return sync_transaction


def has_plain_commit(connection: Any) -> bool:
    """Return whether ``commit()`` of psycopg's *connection* would do nothing but send COMMIT."""
    is_own = getattr(connection, "railway_has_plain_commit", False)
    return is_own and work_on(connection).nesting == 0


def _asyncpg(connect: Callable[..., Any], dbapi: Any) -> Callable[..., Any]:
    @functools.wraps(connect)
    def tracked(*args: Any, **kwargs: Any) -> Any:
        if "async_creator_fn" in kwargs:  # may know of no such argument
            return connect(*args, **kwargs)
        base = kwargs.get("connection_class") or dbapi.asyncpg.Connection
        seen = _seen_or_none(_asyncpg_connection, base)
        if seen is None:
            return connect(*args, **kwargs)
        connection = connect(*args, **{**kwargs, "connection_class": seen})
        # The dialect chooses the adapter's class; a derived class without new slots may replace it.
        adapter = _seen_or_none(_asyncpg_adapter, type(connection))
        if adapter is not None:
            connection.driver_connection.railway_work = Work(is_seen=True)
            connection.__class__ = adapter
        return connection

    return tracked


@_remembered
def _asyncpg_connection(base: Any) -> Any:
    """Return *base* with its own commands seen, but for those by which SQLAlchemy uses it."""

    def seen(name: str) -> _OfApplication:
        def look(connection: Any, args: _Args, kwargs: _Kwargs) -> None:
            work = work_on(connection)
            if work.refuse_early is not None and not connection.is_in_transaction():
                work.refuse_early()
            is_copy = name.startswith("copy")
            work.note(connection, None if is_copy else args[0] if args else _statement(kwargs))
            if name in ("cursor", "prepare"):  # executed whenever the caller likes
                work.lose_sight()

        return _OfApplication(getattr(base, name), look)

    def note_setting(connection: Any, _args: _Args, _kwargs: _Kwargs) -> None:
        work_on(connection).has_session_state = True

    def setting(name: str) -> Callable[..., Any]:
        return _preceded(getattr(base, name), note_setting)

    members: dict[str, Any] = {n: seen(n) for n in _ASYNCPG_COMMANDS if hasattr(base, n)}
    members |= {n: setting(n) for n in _ASYNCPG_SETTINGS if hasattr(base, n)}
    return _derive(base, **members)


@_remembered
def _asyncpg_adapter(base: Any) -> Any:
    """Return the class *base* of SQLAlchemy's adapted connections, with cursors that are seen."""

    def cursor(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = base.cursor(self, *args, **kwargs)
        made.__class__ = _asyncpg_cursor(made.__class__)
        return made

    return _derive(base, __slots__=(), cursor=cursor, commit=_seen_commit(base))


@_remembered
def _asyncpg_cursor(base: Any) -> Any:
    def look(cursor: Any, args: _Args, kwargs: _Kwargs) -> None:
        # A private attribute, for an adapted cursor shows its connection nowhere else;
        # tests/integration/test_tracking.py fails when it moves.
        driver = cursor._connection
        work_on(driver).note(driver, args[0] if args else _statement(kwargs))

    names = ("execute", "executemany")
    commands: dict[str, Any] = {name: _preceded(getattr(base, name), look) for name in names}
    return _derive(base, __slots__=(), **commands)


@_remembered
def _cursor_class(base: Any) -> Any:
    """Return the class *base* of a driver's cursors, with every command seen."""
    if hasattr(base, "railway_base"):
        return base
    writes_values = hasattr(base, "mogrify")  # psycopg2's, and ClientCursor of psycopg
    may_outlive = hasattr(base, "withhold")

    def seen(name: str) -> Callable[..., Any]:
        is_call = name == "callproc"

        def look(cursor: Any, args: _Args, kwargs: _Kwargs) -> None:
            connection = cursor.connection
            statement = None if is_call else args[0] if args else _statement(kwargs)
            values: Any = ()
            if writes_values and (kwargs or (len(args) > 1 and args[1] is not None)):
                values = _values(name, args, kwargs)
            work = getattr(connection, _WORK, None) or Work(is_seen=False)
            work.note(connection, statement, values)
            if may_outlive and cursor.withhold:  # WITH HOLD, which outlives the transaction
                work.has_session_state = True

        return _preceded(getattr(base, name), look)

    commands: dict[str, Any] = {name: seen(name) for name in _COMMANDS if hasattr(base, name)}
    return _derive(base, __slots__=(), railway_base=base, **commands)


def _seen_or_none(derive: Callable[..., Any], base: Any, *args: Any) -> Any:
    """Return what *derive* makes of the class *base*; None if that is none, or lets none derive."""
    try:
        return derive(base, *args) if isinstance(base, type) else None
    except Exception:  # noqa: BLE001 - whatever the application's own class or metaclass raises
        return None


def _preceded(inherited: Callable[..., Any], look: _Look) -> Callable[..., Any]:
    """Return *inherited*, before which *look* is called, as a function of the same kind.

    Programs ask a function whether they have to await it, or iterate over it.
    """

    async def awaited(self: Any, *args: Any, **kwargs: Any) -> Any:
        look(self, args, kwargs)
        return await inherited(self, *args, **kwargs)

    async def iterated_async(self: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        look(self, args, kwargs)
        async with aclosing(inherited(self, *args, **kwargs)) as items:
            async for item in items:
                yield item

    def iterated(self: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        look(self, args, kwargs)
        yield from inherited(self, *args, **kwargs)

    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        look(self, args, kwargs)
        return inherited(self, *args, **kwargs)

    preceded: Callable[..., Any] = called
    if inspect.iscoroutinefunction(inherited):
        preceded = awaited
    elif inspect.isasyncgenfunction(inherited):
        preceded = iterated_async
    elif inspect.isgeneratorfunction(inherited):
        preceded = iterated
    return functools.wraps(inherited)(preceded)


class _OfApplication:
    """A method that is preceded by a look where the application takes it from its connection.

    asyncpg begins and ends its transactions with the same methods, and SQLAlchemy prepares with
    them. They differ by the module that names the method: a coroutine, once made, is run by others.
    """

    def __init__(self, inherited: Callable[..., Any], look: _Look) -> None:
        self._inherited: Any = inherited
        self._preceded: Any = _preceded(inherited, look)

    def __get__(self, connection: Any, owner: type) -> Any:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        function = self._inherited if caller.startswith(_NO_APPLICATION) else self._preceded
        return function.__get__(connection, owner)


def _statement(kwargs: dict[str, Any]) -> object:
    """Return the text that a command was given, by whichever name its driver has for it."""
    names = ("query", "operation", "statement", "sql", "command")
    return next((kwargs[name] for name in names if name in kwargs), None)


def _values(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[object]:
    """Yield the values that the command *name* was given for its statement."""
    names = ("vars", "vars_list", "params", "params_seq")
    given = args[1] if args[1:] else next((kwargs[name] for name in names if name in kwargs), None)
    rows = given if name == "executemany" and isinstance(given, list | tuple) else [given]
    for row in rows:
        if isinstance(row, dict):
            yield from row.values()
        elif isinstance(row, list | tuple):
            yield from row
        else:
            yield row


def _derive(base: Any, *, bases: tuple[Any, ...] = (), **members: Any) -> Any:
    """Return a class like *base*, by the same name, with *members* in place of those of *base*."""
    members |= {"__module__": base.__module__, "__qualname__": base.__qualname__}
    return type(base)(base.__name__, bases or (base,), members)


_TRACKERS = {
    "psycopg2": _psycopg2,
    "psycopg": _psycopg,
    "psycopg_async": _psycopg,
    "asyncpg": _asyncpg,
}
