"""Serve under eventlet, which patches Python after sa_railway has been imported: PORT."""

import sys

import eventlet

import sa_railway.engine.liveness  # noqa: F401 - before the patching

eventlet.monkey_patch()

import served  # noqa: E402
from eventlet import wsgi  # noqa: E402

wsgi.server(eventlet.listen(("127.0.0.1", int(sys.argv[1]))), served.application)
