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
from types import FunctionType, MethodDescriptorType
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.engine.default import DefaultDialect

from sa_railway.commit.work import Work, work_on, works
from sa_railway.engine.driver import is_idle

# What a driver's cursor or connection can be told to do, where it has it.
_COMMANDS = "callproc copy copy_expert copy_from copy_to execute executemany stream".split()
_ASYNCPG_COMMANDS = (
    "copy_from_query copy_from_table copy_records_to_table copy_to_table cursor execute "
    "executemany fetch fetchmany fetchrow fetchval prepare transaction"
).split()
# What it sets for as long as the connection lives, by no statement of the caller's.
_ASYNCPG_SETTINGS = ("add_listener reset_type_codec set_builtin_type_codec set_type_codec").split()


class _Same:
    """A class as a key, by its identity: a metaclass may make classes equal."""

    def __init__(self, of: Any) -> None:
        self.of = of

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.of is other.of

    def __hash__(self) -> int:
        return id(self.of)


def _remembered(derive: Callable[..., Any]) -> Callable[..., Any]:
    """Let *derive* make each class once. Those of a program that makes many go again."""

    @functools.lru_cache(maxsize=64)
    def derived(base: _Same, *args: Any) -> Any:
        return derive(base.of, *args)

    @functools.wraps(derive)
    def remembered(base: Any, *args: Any) -> Any:
        return derived(_Same(base), *args)

    return remembered


_Args = tuple[Any, ...]
_Kwargs = dict[str, Any]
_Look = Callable[[Any, _Args, _Kwargs], None]

# Whose classes are known to be made for others to derive from.
_DRIVERS = ("psycopg", "asyncpg.", "builtins", f"{__package__}.", "sqlalchemy.")

_FUNCTIONS = (FunctionType, MethodDescriptorType)
_CONTAINERS = (dict, tuple, list)

# Modules whose calls of asyncpg are not the application's.
_NO_APPLICATION = ("asyncpg.", "sqlalchemy.dialects.", f"{__package__}.")


def unseen_cursor(connection: Any, **arguments: Any) -> Any:
    """Return a cursor of psycopg's *connection* for what is no work of the application.

    It is of psycopg's own class: the application's may be anything that it can work with.
    """
    psycopg = sys.modules["psycopg"]
    connection = unwrapped(connection)
    is_async = isinstance(connection, psycopg.AsyncConnection)
    return (psycopg.AsyncCursor if is_async else psycopg.Cursor)(connection, **arguments)


def unwrapped(connection: Any) -> Any:
    """Return the driver's own connection, without the proxies of monitoring agents around it."""
    while hasattr(type(connection), "__wrapped__"):
        connection = connection.__wrapped__
    return connection


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
        # and not one that a replaced connect() has at hand, nor a proxy around ours
        if type(connection) is seen:
            works.add(connection, Work(is_seen=True))
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

    def note_setting(connection: Any, _args: _Args, _kwargs: _Kwargs) -> None:
        work_on(connection).has_session_state = True

    members: dict[str, Any] = {"commit": _seen_commit(base), "lobject": lobject}
    for name in ("set_session", "set_client_encoding"):  # which SQLAlchemy calls at connect only
        members[name] = _preceded(base, name, note_setting)
    if base is not root:  # whose own cursor(), if it has one, comes first
        rooted = _derive(base, bases=(base, rooted), __slots__=())
        members["cursor"] = _seen_cursor(rooted)
    return _derive(rooted, bases=(rooted,), __slots__=(), **members)


def _seen_cursor(base: Any) -> Callable[..., Any]:
    """Return the ``cursor()`` of the driver's connection *base*, with every command seen."""

    @functools.wraps(base.cursor)
    def cursor(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = _inherited(base, "cursor", self)(*args, **kwargs)
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

    return _preceded(base, "commit", refuse)


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
        if id(driver) not in works:  # a creator may hand out a connection once more
            # a proxy, as monitoring agents make it, only says that it is psycopg's
            if not issubclass(type(driver), sys.modules["psycopg"].BaseConnection):
                return connection
            if not hasattr(driver, "railway_base"):
                seen = _seen_or_none(_psycopg_connection, type(driver))
                if seen is None:
                    return connection
                driver.__class__ = seen
            for name in ("cursor_factory", "server_cursor_factory"):
                factory = getattr(driver, name)
                setattr(driver, name, _seen_or_none(_cursor_class, factory) or factory)
        works.add(driver, Work(is_seen=True))
        return connection

    return tracked


@_remembered
def _psycopg_connection(base: Any) -> Any:
    """Return *base* with cursors that are seen, and psycopg's own transactions."""
    return _derive(
        base,
        railway_base=base,
        commit=_seen_commit(base),
        cursor=_seen_cursor(base),
        transaction=_seen_transaction(base),
    )


def _seen_transaction(base: Any) -> Callable[..., Any]:
    """Return the ``transaction()`` of psycopg's connection *base*, which commits by itself."""

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

        @functools.wraps(base.transaction)
        @asynccontextmanager
        async def transaction(self: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            with counted(self):
                inherited = _inherited(base, "transaction", self)
                async with inherited(*args, **kwargs) as made:
                    yield made

        return transaction

    @functools.wraps(base.transaction)
    @contextmanager
    def sync_transaction(self: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        inherited = _inherited(base, "transaction", self)
        with counted(self), inherited(*args, **kwargs) as made:
            yield made

    return sync_transaction


def has_plain_commit(connection: Any) -> bool:
    """Return whether ``commit()`` of psycopg's *connection* would do nothing but send COMMIT."""
    commit = getattr(getattr(connection, "railway_base", None), "commit", None)
    is_own = getattr(commit, "__module__", "").startswith("psycopg.")
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
        if adapter is not None and isinstance(connection.driver_connection, seen):
            works.add(connection.driver_connection, Work(is_seen=True))
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

        return _OfApplication(base, name, look)

    def note_setting(connection: Any, _args: _Args, _kwargs: _Kwargs) -> None:
        work_on(connection).has_session_state = True

    def setting(name: str) -> Callable[..., Any]:
        return _preceded(base, name, note_setting)

    members: dict[str, Any] = {n: seen(n) for n in _ASYNCPG_COMMANDS if hasattr(base, n)}
    members |= {n: setting(n) for n in _ASYNCPG_SETTINGS if hasattr(base, n)}
    return _derive(base, __slots__=(), **members)


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
    commands: dict[str, Any] = {name: _preceded(base, name, look) for name in names}
    return _derive(base, __slots__=(), **commands)


@_remembered
def _cursor_class(base: Any) -> Any:
    """Return the class *base* of a driver's cursors, with every command seen."""
    if hasattr(base, "railway_base"):
        return base
    if not hasattr(base, "connection"):  # a class that wraps a cursor, and shows nothing of it
        raise TypeError(base)
    writes_values = hasattr(base, "mogrify")  # psycopg2's, and ClientCursor of psycopg
    may_outlive = hasattr(base, "withhold")

    def seen(name: str) -> Callable[..., Any]:
        is_call = name == "callproc"

        def look(cursor: Any, args: _Args, kwargs: _Kwargs) -> None:
            connection = cursor.connection
            statement = None if is_call else args[0] if args else _statement(kwargs)
            values: Any = ()
            if writes_values:
                given = args[1] if len(args) > 1 else kwargs
                # SQLAlchemy passes an empty dict; an array of the application's has no truth value
                is_empty = given is None or (given.__class__ in _CONTAINERS and not given)
                if not is_empty:
                    values = _values(name, args, kwargs)
            work = works.get(id(connection)) or Work(is_seen=False)
            work.note(connection, statement, values)
            if may_outlive and cursor.withhold:  # WITH HOLD, which outlives the transaction
                work.has_session_state = True

        return _preceded(base, name, look)

    commands: dict[str, Any] = {name: seen(name) for name in _COMMANDS if hasattr(base, name)}
    return _derive(base, __slots__=(), railway_base=base, **commands)


def _seen_or_none(derive: Callable[..., Any], base: Any, *args: Any) -> Any:
    """Return what *derive* makes of the class *base*; None if that is none, or lets none derive."""
    try:
        is_safe = isinstance(base, type) and not any(map(_asks_for_its_class, base.__mro__))
        return derive(base, *args) if is_safe else None
    except Exception:  # noqa: BLE001 - whatever the application's own class or metaclass raises
        return None


def _asks_for_its_class(of: type) -> bool:
    """Return whether a method of *of* may call ``super(self.__class__, self)``, which recurses."""
    if of.__module__.startswith(_DRIVERS):
        return False
    codes = (getattr(member, "__code__", None) for member in vars(of).values())
    return any(
        code is not None and "super" in code.co_names and {"__class__", "type"} & {*code.co_names}
        for code in codes
    )


def _inherited(base: Any, name: str, instance: Any) -> Any:
    """Return the method *name* of the class *base* for *instance*.

    It is looked up at each call: a test may replace it for a while, also before the first use.
    """
    found = getattr(base, name)
    bind = getattr(type(found), "__get__", None)
    return found if bind is None else bind(found, instance, type(instance))


def _preceded(base: Any, name: str, look: _Look) -> Callable[..., Any]:
    """Return the method *name* of *base*, before which *look* is called, of the same kind.

    Programs ask a function whether they have to await it, or iterate over it.
    """

    async def awaited(self: Any, *args: Any, **kwargs: Any) -> Any:
        look(self, args, kwargs)
        return await _inherited(base, name, self)(*args, **kwargs)

    async def iterated_async(self: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        look(self, args, kwargs)
        async with aclosing(_inherited(base, name, self)(*args, **kwargs)) as items:
            async for item in items:
                yield item

    def iterated(self: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        look(self, args, kwargs)
        yield from _inherited(base, name, self)(*args, **kwargs)

    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        look(self, args, kwargs)
        found = getattr(base, name)
        if found.__class__ in _FUNCTIONS:  # what it is, as a rule: binding it would cost more
            return found(self, *args, **kwargs)
        return _inherited(base, name, self)(*args, **kwargs)

    inherited = getattr(base, name)
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

    def __init__(self, base: Any, name: str, look: _Look) -> None:
        self._base = base
        self._name = name
        self._preceded: Any = _preceded(base, name, look)

    def __get__(self, connection: Any, owner: type) -> Any:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if not caller.startswith(_NO_APPLICATION):
            return self._preceded.__get__(connection, owner)
        if connection is None:
            return getattr(self._base, self._name)
        return _inherited(self._base, self._name, connection)


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
