"""Name the plugin for every engine of a process, and of the processes that it starts.

Python imports this module at its start wherever this folder is on ``PYTHONPATH``. A plugin named in
a URL reaches the first engine of a suite only, so the place is wrapped where plugins are found.
``RAILWAY_EVERYWHERE=flask`` attaches ``Railway(app, db)`` as well, where an application is given to
Flask-SQLAlchemy. The file ``RAILWAY_ENGINES`` grows by a byte for each engine.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any


def name_the_plugin() -> None:
    from sqlalchemy import URL

    # A private method; the suites count the engines, so its move would be seen.
    found = URL._instantiate_plugins

    @functools.wraps(found)
    def with_ours(self: Any, kwargs: Any) -> Any:
        with Path(os.environ["RAILWAY_ENGINES"]).open("ab") as engines:
            engines.write(b".")
        named = kwargs.pop("plugins", None) or []
        return found(self, {**kwargs, "plugins": ["railway", *named]})

    URL._instantiate_plugins = with_ours  # type: ignore[method-assign]


def attach_to_flask() -> None:
    from flask_sqlalchemy import SQLAlchemy

    from sa_railway.flask import Railway

    init_app = SQLAlchemy.init_app

    @functools.wraps(init_app)
    def with_ours(self: Any, app: Any) -> None:
        init_app(self, app)
        if "railway" not in app.extensions:  # a test gives one application to two databases
            Railway(app, self)

    SQLAlchemy.init_app = with_ours  # type: ignore[method-assign]


if everywhere := os.environ.get("RAILWAY_EVERYWHERE"):
    name_the_plugin()
    if everywhere == "flask":
        attach_to_flask()
