"""The application factory: Gunicorn's command line names it, and the ``flask`` command finds it."""

from flask import Flask
from models import db
from views import notes

from sa_railway.flask import Railway


def create_app() -> Flask:
    app = Flask(__name__)
    app.config.from_object("config.Config")
    db.init_app(app)
    Railway(app, db)
    app.register_blueprint(notes)

    @app.cli.command("create-tables")
    def create_tables() -> None:
        """Create the tables that are missing; once per deploy, before the new version runs."""
        db.create_all()

    return app
