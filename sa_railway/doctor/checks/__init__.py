"""The checks of the doctor, by what they look at, and the kinds of what each of them can find."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass

from sa_railway.doctor.case import Case, Seen
from sa_railway.doctor.checks import (
    admission,
    certificates,
    configuration,
    indexes,
    login,
    names,
    network,
    pooling,
    server,
    sessions,
    tables,
    timeouts,
)
from sa_railway.doctor.checks.names import SERVERS
from sa_railway.doctor.findings import Kind

__all__ = ["CHECKS", "KINDS", "Check"]


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        title: for people.
        examine: returns what was seen and found; raises ``NotRunError`` if it cannot.
        is_vital: whether an error that it finds leaves nothing to examine for those that follow.
        backends: the databases that it is for; None is all of them.
    """

    title: str
    examine: Callable[[Case], Seen]
    is_vital: bool = False
    backends: Container[str] | None = ("postgresql",)


CHECKS = (
    Check("environment", configuration.check_environment, is_vital=True, backends=None),
    Check("URL", configuration.check_url, is_vital=True, backends=None),
    Check("DNS", names.check_dns, is_vital=True, backends=SERVERS),
    Check("TCP", network.check_tcp, is_vital=True, backends=SERVERS),
    Check("TLS", network.check_tls, is_vital=True, backends=SERVERS),
    Check("authentication", login.check_login, is_vital=True, backends=None),
    Check("version", server.check_version),
    Check("read-only", server.check_read_only),
    Check("timeouts", timeouts.check_timeouts),
    Check("pool", pooling.check_pool, backends=None),
    Check("round trip", pooling.check_round_trip, backends=None),
    Check("pooler", pooling.check_pooler),
    Check("budget", pooling.check_budget),
    Check("sessions", sessions.check_sessions),
    Check("indexes", indexes.check_indexes),
    Check("tables", tables.check_tables, backends=None),
)
"""All checks, in the order in which each can rely on those before it."""

_MODULES = (
    *(configuration, names, network, login, admission, certificates, server, timeouts, pooling),
    *(sessions, indexes, tables),
)

KINDS: tuple[Kind, ...] = tuple(
    kind for module in _MODULES for kind in vars(module).values() if isinstance(kind, Kind)
)
"""All kinds of findings, in the order of the checks."""
