"""The checks of the doctor, by what they look at, and the kinds of what each of them can find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sa_railway.observe.case import Case, Seen
from sa_railway.observe.checks import (
    configuration,
    login,
    names,
    network,
    pooling,
    server,
    sessions,
)
from sa_railway.observe.findings import Kind

__all__ = ["CHECKS", "KINDS", "Check"]


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        title: for people.
        examine: returns what was seen and found; raises ``NotRunError`` if it cannot.
        is_vital: whether an error that it finds leaves nothing to examine for those that follow.
        for_postgres: whether it makes no sense for another database.
    """

    title: str
    examine: Callable[[Case], Seen]
    is_vital: bool = False
    for_postgres: bool = True


CHECKS = (
    Check("environment", configuration.check_environment, is_vital=True, for_postgres=False),
    Check("URL", configuration.check_url, is_vital=True, for_postgres=False),
    Check("DNS", names.check_dns, is_vital=True),
    Check("TCP", network.check_tcp, is_vital=True),
    Check("TLS", network.check_tls, is_vital=True),
    Check("authentication", login.check_login, is_vital=True, for_postgres=False),
    Check("version", server.check_version),
    Check("read-only", server.check_read_only),
    Check("timeouts", server.check_timeouts),
    Check("pool", pooling.check_pool, for_postgres=False),
    Check("round trip", pooling.check_round_trip, for_postgres=False),
    Check("pooler", pooling.check_pooler),
    Check("budget", pooling.check_budget),
    Check("sessions", sessions.check_sessions),
    Check("tables", server.check_tables, for_postgres=False),
)
"""All checks, in the order in which each can rely on those before it."""

KINDS: tuple[Kind, ...] = tuple(
    kind
    for module in (configuration, names, network, login, server, pooling, sessions)
    for kind in vars(module).values()
    if isinstance(kind, Kind)
)
"""All kinds of findings, in the order of the checks."""
