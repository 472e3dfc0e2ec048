"""Flask-Migrate in batch mode: a parent's table is changed and changed back; its children stay.

Batch mode rebuilds the table on SQLite: it copies the rows, drops the old table, and renames the
new one. Where foreign keys are checked meanwhile, the DROP deletes or unties the children; a child
that refuses stops it, and so has a database to itself.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import side
import sqlalchemy
from sqlalchemy import URL, text

from sa_railway.testing import TemporaryPostgres

APPLICATION = """
import os

from flask import Flask
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy

from sa_railway import engine_options

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]
if os.environ["PLUGIN"]:
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = engine_options(os.environ["DATABASE_URL"])
db = SQLAlchemy(app)


class Parent(db.Model):
    id = db.Column(db.Integer, primary_key=True)
    name = db.Column(db.String(9), nullable=os.environ["STEP"] == "1")


def child(name, ondelete):
    return db.Table(
        name,
        db.Column("id", db.Integer, primary_key=True),
        db.Column("parent_id", db.ForeignKey("parent.id", name=f"fk_{name}", ondelete=ondelete)),
    )


for name in os.environ["CHILDREN"].split():
    child(name, {"cascading": "CASCADE", "untied": "SET NULL", "refusing": None}[name])
Migrate(app, db, render_as_batch=True)
"""
COMMANDS = [  # the step of the models, and what is run
    ("1", "init"),
    ("1", "migrate"),
    ("1", "upgrade"),
    ("2", "migrate"),
    ("2", "upgrade"),
    ("1", "downgrade"),
]


def fill(engine: sqlalchemy.Engine, children: list[str]) -> None:
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO parent VALUES (1, 'a'), (2, 'b')"))
        for name in children:
            connection.execute(text(f"INSERT INTO {name} VALUES (1, 1), (2, 2)"))


def missing(engine: sqlalchemy.Engine, children: list[str]) -> list[str]:
    with engine.connect() as connection:
        return [
            f"{engine.dialect.name}: {name} has {rows}"
            for name in children
            if (rows := connection.execute(text(f"SELECT * FROM {name} ORDER BY id")).all())
            != [(1, 1), (2, 2)]
        ]


def migrate(report: side.Report, url: URL, children: list[str], *, plugin: bool) -> None:
    """Run every command on the database *url*; look at the children afterwards."""
    engine = sqlalchemy.create_engine(url)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "shop.py").write_text(APPLICATION)
        for step, command in COMMANDS:
            report.tried += 1
            done = subprocess.run(
                [sys.executable, "-m", "flask", "--app", "shop", "db", command],
                cwd=folder,
                env=side.environment(
                    plugin=plugin, url=url, STEP=step, CHILDREN=" ".join(children)
                ),
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            if done.returncode:
                error = side.last_error(done.stderr)
                report.fail(f"{engine.dialect.name}, step {step}, {command}: {error}")
                break
            if (step, command) == ("1", "upgrade"):
                fill(engine, children)
        report.lost += missing(engine, children)
    engine.dispose()


def run(plugin: bool) -> side.Report:
    report = side.Report("batch migrations on SQLite and PostgreSQL")
    with tempfile.TemporaryDirectory() as folder, TemporaryPostgres() as server:
        sqlite = URL.create("sqlite", database=f"{folder}/shop.db")
        refusing = sqlite.set(database=f"{folder}/refusing.db")
        migrate(report, sqlite, ["cascading", "untied"], plugin=plugin)
        migrate(report, refusing, ["refusing"], plugin=plugin)
        migrate(report, server.url, ["cascading", "untied", "refusing"], plugin=plugin)
    return report


if __name__ == "__main__":
    side.main(run)
