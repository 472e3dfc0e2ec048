"""Flask: whatever became of its connections, a request or command ends with its session closed.

In an application::

    db = SQLAlchemy(app)
    Railway(app, db)

or in an application factory, with both objects made outside of it::

    db.init_app(app)
    railway.init_app(app, db)

Flask-SQLAlchemy ends a context with ``session.remove()``. When the server has closed a connection
within a transaction, that raises after the view has succeeded, keeps the dead session for a later
context, and leaves the connections of the other binds checked out. ``Railway`` ends the session
before that, but after the teardowns of the application itself, and says what was left uncommitted.

With Flask-SQLAlchemy-Lite it does the same for all sessions of the context, of asyncio as well.
"""

from sa_railway.flask.extension import Railway

__all__ = ["Railway"]
