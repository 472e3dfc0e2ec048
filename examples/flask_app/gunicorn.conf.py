"""Gunicorn reads this by itself when it is started here; it listens on ``$PORT``."""
# ruff: noqa: F401 - Gunicorn finds the hooks by their names

from sa_railway.gunicorn import (
    child_exit,
    on_starting,
    post_fork,
    post_worker_init,
    worker_abort,
    worker_exit,
)

wsgi_app = "app:create_app()"
workers = 2
threads = 4  # of each worker, so that many connections; its pool has room for 15
graceful_timeout = 20  # below drainingSeconds in railway.json, after which Railway kills
