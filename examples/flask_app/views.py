"""What the application answers."""

from typing import Any

from flask import Blueprint, abort, current_app, request
from models import Note, db
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

notes = Blueprint("notes", __name__)


@notes.get("/notes")
def newest() -> list[dict[str, Any]]:
    """Return the 20 newest notes."""
    found = db.session.scalars(select(Note).order_by(Note.id.desc()).limit(20))
    return [note.as_dict() for note in found]


@notes.get("/notes/<int:note_id>")
def one(note_id: int) -> dict[str, Any]:
    """Return one note."""
    return db.get_or_404(Note, note_id).as_dict()


@notes.post("/notes")
def add() -> tuple[dict[str, Any], int]:
    """Store the note ``{"text": "..."}``."""
    content = request.get_json()
    if not isinstance(content, dict) or not isinstance(content.get("text"), str):
        abort(400, 'a note is an object with a text: {"text": "..."}')
    note = Note(text=content["text"])
    db.session.add(note)
    db.session.flush()
    answer = note.as_dict()  # before the commit, after which it would be read again
    db.session.commit()
    return answer, 201


@notes.app_errorhandler(OperationalError)
def database_is_away(error: OperationalError) -> tuple[dict[str, str], int, dict[str, str]]:
    """Ask the client to come again, if the database stayed away for longer than we wait for it."""
    current_app.logger.error("%s %s: %s", request.method, request.path, error.orig)
    retry_after = round(getattr(error, "retry_after", 0)) + 1
    return {"error": "the database cannot be reached"}, 503, {"Retry-After": str(retry_after)}
