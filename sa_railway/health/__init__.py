"""The health of an engine: asked for, judged, and shown.

``probe`` asks the server and ``pool`` looks at the pool; ``rules`` judges what they find, and
``report`` puts it together; ``readiness`` is the short form of it. ``endpoints`` shows it over
HTTP, ``asgi`` to a server of that kind; ``page``, with ``history`` and ``plots``, to people.
"""

from sa_railway.health.asgi import HealthApp
from sa_railway.health.endpoints import Answer, respond
from sa_railway.health.report import (
    HealthReport,
    Status,
    check_health,
    check_health_async,
)
from sa_railway.health.rules import Recommendation, Severity

__all__ = [
    "Answer",
    "HealthApp",
    "HealthReport",
    "Recommendation",
    "Severity",
    "Status",
    "check_health",
    "check_health_async",
    "respond",
]
