"""The extension object: what it checks, and what it hangs on an application."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sa_railway.exc import ConfigurationError
from sa_railway.flask import circumstances, uncommitted
from sa_railway.flask.teardown import end_session

if TYPE_CHECKING:
    from flask import Flask
    from flask_sqlalchemy import SQLAlchemy

__all__ = ["Railway"]

_LEFTOVERS = ("rollback", "commit")


class Railway:
    """The Flask extension: ``Railway(app, db)``, or ``init_app()`` in an application factory.

    One object may serve several applications; what belongs to one of them is kept in its
    ``app.extensions["railway"]``.

    Args:
        app: initialised at once if given.
        db: the Flask-SQLAlchemy extension; None takes the one that is registered on the app.
        leftovers: what happens to changes that a request or command leaves uncommitted:
            ``"rollback"``, or ``"commit"`` for code that relies on it. They are committed only
            after a success: no exception, and a status below 400. The key ``RAILWAY_LEFTOVERS``
            of an app's configuration overrules this for that app.

    Raises:
        ConfigurationError: *leftovers* is neither; otherwise as ``init_app()``.
    """

    def __init__(
        self,
        app: Flask | None = None,
        db: SQLAlchemy | None = None,
        *,
        leftovers: str = "rollback",
    ) -> None:
        self._db = db
        self._leftovers = _checked("leftovers", leftovers)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask, db: SQLAlchemy | None = None) -> None:
        """Take over the end of the sessions of *app*; once for each app, after ``db.init_app()``.

        Args:
            app: a configured application.
            db: as for the class; given here, it counts for this app only.

        Raises:
            ConfigurationError: *app* has no Flask-SQLAlchemy extension yet, has another one than
                *db*, or has a ``Railway`` already; or ``RAILWAY_LEFTOVERS`` is not allowed.
        """
        if "railway" in app.extensions:
            raise ConfigurationError(
                f"Flask app {app.name!r} has a Railway extension already; "
                "call Railway.init_app() once for each app"
            )
        state = _AppState(
            db=_registered(app, db or self._db),
            leftovers=_checked(
                "RAILWAY_LEFTOVERS", app.config.get("RAILWAY_LEFTOVERS", self._leftovers)
            ),
        )
        with app.app_context():
            for engine in state.db.engines.values():
                uncommitted.watch(engine)
        app.extensions["railway"] = state
        circumstances.watch(app)
        # registered later than Flask-SQLAlchemy's own, so Flask calls it earlier
        app.teardown_appcontext(state.end_session)


@dataclass(frozen=True)
class _AppState:
    """What one application has of this extension."""

    db: SQLAlchemy
    leftovers: str

    def end_session(self, error: BaseException | None) -> None:
        end_session(self.db.session, error, commit=self.leftovers == "commit")


def _checked(name: str, value: object) -> str:
    """Return *value* if the setting *name* may have it."""
    if value not in _LEFTOVERS:
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
