"""The extension for SQLAlchemy that an application has: its engines, and the sessions in use.

Flask-SQLAlchemy has one session a context, in a registry. Flask-SQLAlchemy-Lite has as many as the
context asks for by name, of asyncio as well, in ``flask.g``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flask import g
from sqlalchemy import Engine
from sqlalchemy.util import ScopedRegistry

if TYPE_CHECKING:
    from flask import Flask
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

# The packages whose teardowns close the sessions of a context.
_PACKAGES = ("flask_sqlalchemy", "flask_sqlalchemy_lite")


class Database:
    """Flask-SQLAlchemy; every method is called within a context of the application."""

    def __init__(self, extension: Any) -> None:
        self.extension = extension

    def binds(self) -> dict[str, Any]:
        """Return what stands for each engine, by the name of the bind.

        The one without a name comes first, as ``default`` unless a bind has that name.
        """
        binds = dict(self.extension.engines)
        unnamed = "SQLALCHEMY_DATABASE_URI" if "default" in binds else "default"
        main = {unnamed: binds.pop(None)} if None in binds else {}
        return main | {str(name): bind for name, bind in binds.items()}

    def engines(self) -> dict[str, Engine]:
        """Return the engines by the names of their binds.

        A test may put a connection in the place of an engine, for which its own engine stands.
        """
        found = {
            name: getattr(bind, "sync_engine", bind).engine for name, bind in self.binds().items()
        }
        return {name: engine for name, engine in found.items() if isinstance(engine, Engine)}

    def how_to_protect(self, name: str) -> str:
        """Return the setting that gives the bind *name* the plugin."""
        if name in ("default", "SQLALCHEMY_DATABASE_URI") and None in self.extension.engines:
            return "SQLALCHEMY_ENGINE_OPTIONS = engine_options()"
        return f'SQLALCHEMY_BINDS = {{"{name}": {{"url": url, **engine_options(url)}}}}'

    def current(self) -> Session | None:
        """Return the session that code of this context uses unless it names one."""
        session: Session = self.extension.session()
        return session

    def sessions(self) -> Sequence[Session]:
        """Return the sessions that this context has used."""
        scoped = self.extension.session
        registry = getattr(scoped, "registry", None)
        # A test may have put something else in its place, or keep the session by a remove() that
        # does nothing: Flask-SQLAlchemy calls that alone.
        if not isinstance(registry, ScopedRegistry) or "remove" in vars(scoped):
            return []
        return [registry()] if registry.has() else []

    def async_sessions(self) -> Sequence[AsyncSession]:
        """Return those of asyncio."""
        return []

    def forget(self) -> None:
        """Let go of the sessions of this context, which are closed."""
        # the key is the address of the context, and a later context may come to lie there
        self.extension.session.registry.clear()


class LiteDatabase(Database):
    """Flask-SQLAlchemy-Lite."""

    def binds(self) -> dict[str, Any]:
        """Return what stands for each engine, by its name; an engine of asyncio has its own."""
        extension = self.extension
        binds = dict(extension.engines)
        for name, bind in extension.async_engines.items():
            binds[f"{name} (async)" if name in binds else name] = bind
        return binds

    def how_to_protect(self, name: str) -> str:
        """Return the setting that gives the engine *name* the plugin."""
        setting = "SQLALCHEMY_ENGINES"
        if name not in self.extension.engines:
            setting, name = "SQLALCHEMY_ASYNC_ENGINES", name.removesuffix(" (async)")
        return f'{setting} = {{"{name}": {{"url": url, **engine_options(url)}}}}'

    def current(self) -> Session | None:
        """Return the session named ``default``; one of asyncio must be given by the caller."""
        if "default" not in self.extension.engines:
            return None
        session: Session = self.extension.session
        return session

    # Nothing but these keys of g tells which sessions a context has used: get_session() makes those
    # that are missing. tests/integration/test_flask_lite.py fails when they are renamed.

    def sessions(self) -> Sequence[Session]:
        """Return the sessions that this context has used."""
        found: Mapping[str, Session] = g.get("_sqlalchemy_sessions", {})
        return list(found.values())

    def async_sessions(self) -> Sequence[AsyncSession]:
        """Return those of asyncio."""
        found: Mapping[str, AsyncSession] = g.get("_sqlalchemy_async_sessions", {})
        return list(found.values())

    def forget(self) -> None:
        """Leave the sessions, which are closed: they end with the context."""


def database_of(extension: Any) -> Database:
    """Return *extension*, of either package, as a ``Database``."""
    is_lite = hasattr(type(extension), "async_engines")
    return LiteDatabase(extension) if is_lite else Database(extension)


def teardown_before(
    app: Flask, extension: Any, end: Callable[[BaseException | None], None]
) -> None:
    """Let *app* call *end* just before *extension* closes its sessions.

    Flask calls what was registered last first. So whatever the application itself does with its
    sessions when a context ends, such as to commit, it has done before *end*, no matter in which
    order they were registered.
    """
    functions = app.teardown_appcontext_funcs
    closing = [
        position
        for position, function in enumerate(functions)
        if getattr(function, "__self__", None) is extension
        or str(function.__module__).partition(".")[0] in _PACKAGES  # None of a built-in one
    ]
    functions.insert(closing[-1] + 1 if closing else 0, end)
