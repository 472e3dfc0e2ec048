"""The extension object: what it checks, and what it hangs on an application."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from flask import current_app, has_app_context

from sa_railway.engine.state import has_plugin, profile_of
from sa_railway.exc import ConfigurationError
from sa_railway.flask import context, uncommitted
from sa_railway.flask.commands import add_commands
from sa_railway.flask.database import Database, database_of, teardown_before
from sa_railway.flask.routes import (
    HEALTH_SETTING,
    METRICS_SETTING,
    add_health,
    add_metrics,
    check_token,
    checked_path,
)
from sa_railway.flask.teardown import end_sessions
from sa_railway.metrics import collect
from sa_railway.recovery.sessions import OpenSession, add_session_finder

if TYPE_CHECKING:
    import flask_sqlalchemy
    import flask_sqlalchemy_lite
    from flask import Flask
    from sqlalchemy import Engine

    SQLAlchemy = flask_sqlalchemy.SQLAlchemy | flask_sqlalchemy_lite.SQLAlchemy

logger = logging.getLogger("sa_railway.flask")

Leftovers = Literal["rollback", "commit"]

_HEALTH = "health endpoints"
_METRICS = "page of metrics"


class Railway:
    """The Flask extension: ``Railway(app, db)``, or ``init_app()`` in an application factory.

    One object may serve several applications; what belongs to one of them is kept in its
    ``app.extensions["railway"]``.

    Args:
        app: initialised at once if given.
        db: the extension, Flask-SQLAlchemy or Flask-SQLAlchemy-Lite; None takes the one that is
            registered on the app.
        leftovers: what happens to changes that a request or command leaves uncommitted:
            ``"rollback"``, or ``"commit"`` for code that relies on it. They are committed only
            after a success: no exception, and a status below 400. The key ``RAILWAY_LEFTOVERS``
            of an app's configuration overrules this for that app.
        health: the prefix of the endpoints ``live``, ``ready`` and ``database``, or None for none.
            The key ``RAILWAY_HEALTH`` of an app's configuration overrules this for that app.
        metrics: the path of a page of metrics for Prometheus, or None for none. The key
            ``RAILWAY_METRICS`` of an app's configuration overrules this for that app.

    Raises:
        ConfigurationError: *leftovers*, *health* or *metrics* is not allowed; otherwise as
            ``init_app()``.
    """

    def __init__(
        self,
        app: Flask | None = None,
        db: SQLAlchemy | None = None,
        *,
        leftovers: Leftovers = "rollback",
        health: str | None = "/health",
        metrics: str | None = None,
    ) -> None:
        self._db = db
        self._leftovers = _checked("leftovers", leftovers)
        self._health = checked_path("health", health, _HEALTH)
        self._metrics = checked_path("metrics", metrics, _METRICS)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask, db: SQLAlchemy | None = None) -> None:
        """Take over the end of the sessions of *app*; once for each app, after ``db.init_app()``.

        The application also gets the commands ``flask railway doctor`` and others.

        Args:
            app: a configured application.
            db: as for the class; given here, it counts for this app only.

        Raises:
            ConfigurationError: *app* has no SQLAlchemy extension yet, has another one than *db*,
                has a ``Railway`` already, or has a view already where a health endpoint
                or the metrics belong; or a setting is not allowed.
            ImportError: metrics are wanted, and ``prometheus_client`` is not installed.
        """
        if "railway" in app.extensions:
            raise ConfigurationError(
                f"Flask app {app.name!r} has a Railway extension already; "
                "call Railway.init_app() once for each app"
            )
        state = _AppState(
            database=database_of(_registered(app, db or self._db)),
            leftovers=_checked(
                "RAILWAY_LEFTOVERS", app.config.get("RAILWAY_LEFTOVERS", self._leftovers)
            ),
        )
        prefix = app.config.get(HEALTH_SETTING, self._health)
        if (prefix := checked_path(HEALTH_SETTING, prefix, _HEALTH)) is not None:
            add_health(app, prefix, state.engines)
        path = app.config.get(METRICS_SETTING, self._metrics)
        if (path := checked_path(METRICS_SETTING, path, _METRICS)) is not None:
            add_metrics(app, path)
        if prefix is not None or path is not None:
            check_token(app)
        add_commands(app, state.engines)
        with app.app_context():
            for name, engine in state.engines().items():
                _warn_if_unprotected(app, state.database, name, engine)
                uncommitted.watch(engine)
                collect.listen(engine, profile_of(engine))
        app.extensions["railway"] = state
        context.watch(app, always=state.leftovers == "commit")
        add_session_finder(_current_session)
        teardown_before(app, state.db, state.end_sessions)


@dataclass(frozen=True)
class _AppState:
    """What one application has of this extension."""

    database: Database
    leftovers: str

    @property
    def db(self) -> SQLAlchemy:
        """The extension for SQLAlchemy."""
        extension: SQLAlchemy = self.database.extension
        return extension

    def engines(self) -> dict[str, Engine]:
        """Return the engines by the names of their binds; to be called in a context of the app."""
        return self.database.engines()

    def end_sessions(self, error: BaseException | None) -> None:
        end_sessions(self.database, error, commit=self.leftovers == "commit")


def _current_session() -> OpenSession | None:
    """Return ``db.session`` of the current context, for ``retry()`` to roll back."""
    state = current_app.extensions.get("railway") if has_app_context() else None
    session = state.database.current() if state is not None else None
    if session is None:
        return None
    left = uncommitted.Uncommitted.of(session)
    return OpenSession(session, had_transaction=bool(left))


def _warn_if_unprotected(app: Flask, database: Database, name: str, engine: Engine) -> None:
    """Say that *engine* is without the plugin; an SQLite file has no connection to lose."""
    if not has_plugin(engine) and engine.dialect.name != "sqlite":
        logger.warning(
            "Flask app %r: database %r is not protected, as its engine is without the plugin. "
            "Configure %s, with engine_options from sa_railway",
            *(app.name, name, database.how_to_protect(name)),
        )


def _checked(name: str, value: object) -> str:
    """Return *value* if the setting *name* may have it."""
    if value not in get_args(Leftovers):
        raise ConfigurationError(f"{name} is {value!r}; allowed: 'rollback', 'commit'")
    return str(value)


def _registered(app: Flask, db: SQLAlchemy | None) -> SQLAlchemy:
    """Return the Flask-SQLAlchemy extension of *app*, which must be *db* if that is given."""
    registered: SQLAlchemy | None = app.extensions.get("sqlalchemy")
    if registered is None:
        raise ConfigurationError(
            f"Flask app {app.name!r} has no SQLAlchemy extension yet; "
            "call db.init_app(app) before Railway.init_app(app, db)"
        )
    if db is not None and db is not registered:
        raise ConfigurationError(
            f"db is not the SQLAlchemy extension of Flask app {app.name!r}; "
            "pass the one whose init_app(app) was called, or leave it out"
        )
    return registered
