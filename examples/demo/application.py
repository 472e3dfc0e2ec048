"""The application of the demonstration, with three configurations of its database.

Gunicorn calls one of them by name. Run as a program, this makes the tables.
"""

from __future__ import annotations

import os
from typing import Any

from flask import Flask, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sa_railway import database_url, engine_options
from sa_railway.flask import Railway

__all__ = ["Note", "plain", "pool_pre_ping", "sa_railway"]


class Base(DeclarativeBase):
    """The base of the one model."""


db = SQLAlchemy(model_class=Base)


class Note(Base):
    """A line of text that a visitor has left."""

    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


def plain() -> Flask:
    """Flask-SQLAlchemy as it comes."""
    return _application(SQLALCHEMY_DATABASE_URI=os.environ["DATABASE_URL"])


def pool_pre_ping() -> Flask:
    """The usual recipe against lost connections."""
    return _application(
        SQLALCHEMY_DATABASE_URI=os.environ["DATABASE_URL"],
        SQLALCHEMY_ENGINE_OPTIONS={"pool_pre_ping": True, "pool_recycle": 300},
    )


def sa_railway() -> Flask:
    """The lines of this package; Gunicorn is given its hooks as well."""
    app = _application(
        SQLALCHEMY_DATABASE_URI=database_url(),
        SQLALCHEMY_ENGINE_OPTIONS=engine_options(),
    )
    Railway(app, db)
    return app


def _application(**config: object) -> Flask:
    # an SQLite file goes where the demonstration has a folder that it removes
    app = Flask("app", instance_path=os.getcwd())
    app.config.update(config)
    db.init_app(app)
    app.add_url_rule("/notes", view_func=newest)
    app.add_url_rule("/notes", view_func=add, methods=["POST"])
    return app


def newest() -> list[dict[str, Any]]:
    """Return the 20 newest notes."""
    found = db.session.scalars(select(Note).order_by(Note.id.desc()).limit(20))
    return [{"id": note.id, "text": note.text} for note in found]


def add() -> tuple[dict[str, Any], int]:
    """Store the note ``{"text": "..."}``."""
    note = Note(text=request.get_json()["text"])
    db.session.add(note)
    db.session.flush()
    answer = {"id": note.id, "text": note.text}  # before the commit, or it is read once more
    db.session.commit()
    return answer, 201


if __name__ == "__main__":
    with sa_railway().app_context():
        db.create_all()
