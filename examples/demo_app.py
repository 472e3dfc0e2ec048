"""The application of ``flask_app/`` with three configurations of its database, for ``demo.py``.

Run as a program, it makes the tables.
"""

import os

from flask import Flask
from models import db
from views import notes


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
    from sa_railway import database_url, engine_options
    from sa_railway.flask import Railway

    app = _application(
        SQLALCHEMY_DATABASE_URI=database_url(),
        SQLALCHEMY_ENGINE_OPTIONS=engine_options(),
    )
    Railway(app, db)
    return app


def _application(**config: object) -> Flask:
    # an SQLite file goes where the demo has a folder that it removes
    app = Flask("app", instance_path=os.getcwd())
    app.config.update(config)
    db.init_app(app)
    app.register_blueprint(notes)
    return app


if __name__ == "__main__":
    with sa_railway().app_context():
        db.create_all()
