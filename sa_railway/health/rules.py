"""The rules of health: what is found in the facts about an engine, and what to do about it.

Each rule looks at the facts and finds something or nothing. This module changes when another sign
of bad health is known, or better advice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from sa_railway.config.profile import Profile
from sa_railway.health.pool import PoolState
from sa_railway.health.probe import Probe
from sa_railway.metrics.snapshot import Window


class Severity(StrEnum):
    """What a recommendation means for the status, the worst first."""

    CRITICAL = "critical"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True)
class Recommendation:
    """Something that was found, and what to do about it.

    Attributes:
        severity: a warning makes the status degraded, a critical one critical.
        rule: the name of the rule that found it.
        message: what was found.
        action: what to do.
    """

    severity: Severity
    rule: str
    message: str
    action: str


@dataclass(frozen=True)
class RuleInput:
    """What the rules look at."""

    profile: Profile
    probe: Probe
    pool: PoolState | None
    window: Window


def judge(facts: RuleInput) -> list[Recommendation]:
    """Return what the rules find in *facts*, the worst first."""
    found = [recommendation for rule in _RULES if (recommendation := rule(facts))]
    return sorted(found, key=lambda r: list(Severity).index(r.severity))


def humanize(seconds: float) -> str:
    """Return a time as people say it, such as ``"5 minutes"``."""
    for unit, length in (("hour", 3600), ("minute", 60)):
        if seconds >= length and seconds % length == 0:
            return _count(int(seconds // length), unit)
    return f"{seconds:g} seconds"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _server(facts: RuleInput) -> Recommendation | None:
    probe = facts.probe
    if probe.failure is None:
        return None
    return Recommendation(Severity.CRITICAL, "server", probe.failure, probe.advice)


def _connections(facts: RuleInput) -> Recommendation | None:
    server, profile = facts.probe.server, facts.profile
    if server is None:
        return None
    share = server.connections / server.connection_limit
    if share < min(profile.health_connections_warn, profile.health_connections_critical):
        return None
    is_critical = share >= profile.health_connections_critical
    return Recommendation(
        Severity.CRITICAL if is_critical else Severity.WARNING,
        "connections",
        f"{server.connections:,} of the server's {server.connection_limit:,} connections are in "
        f"use ({share:.0%}).",
        "Run fewer processes, lower pool_size and max_overflow, or put a pooler in between. "
        "application_name in pg_stat_activity tells what holds them.",
    )


def _success_rate(facts: RuleInput) -> Recommendation | None:
    window, least = facts.window, facts.profile.health_success_rate
    rate = window.success_rate
    if rate is None or rate >= least:
        return None
    statements = _count(window.successes + window.failures, "statement")
    return Recommendation(
        Severity.WARNING,
        "success_rate",
        f"{window.failures:,} of {statements} failed in the last {humanize(window.seconds)}: "
        f"{rate:.1%} succeeded, and {least:.1%} should.",
        "Look for their errors in the application's log; what sa_railway adds to an error says "
        "what to do.",
    )


def _reconnections(facts: RuleInput) -> Recommendation | None:
    window = facts.window
    if window.reconnections <= facts.profile.health_reconnections:
        return None
    return Recommendation(
        Severity.WARNING,
        "reconnections",
        f"Connections were lost and replaced {window.reconnections:,} times in the last "
        f"{humanize(window.seconds)}.",
        "Look into the log of the database service for restarts. If it has none, a proxy or a "
        "timeout ends connections that are idle: lower pool_recycle below its limit.",
    )


def _rollbacks(facts: RuleInput) -> Recommendation | None:
    window = facts.window
    if window.rollbacks <= facts.profile.health_rollbacks:
        return None
    return Recommendation(
        Severity.WARNING,
        "rollbacks",
        f"{window.rollbacks:,} transactions were rolled back in the last "
        f"{humanize(window.seconds)}.",
        "Look for the errors before them in the application's log, and commit what shall stay.",
    )


def _pool(facts: RuleInput) -> Recommendation | None:
    pool = facts.pool
    if pool is None or not pool.is_saturated:
        return None
    waits = f", and {_count(pool.waiting, 'checkout')} waiting" if pool.waiting else ""
    return Recommendation(
        Severity.WARNING,
        "pool",
        f"The pool is exhausted: {pool.checked_out:,} of {pool.limit:,} connections are in "
        f"use{waits}.",
        "Return connections sooner: no slow work while one is held; with leak_after, the report "
        "says what holds them. Then raise pool_size or max_overflow, as far as the server's "
        "connections allow.",
    )


def _idle_in_transaction(facts: RuleInput) -> Recommendation | None:
    server, profile = facts.probe.server, facts.profile
    if server is None or not server.idle_in_transaction:
        return None
    return Recommendation(
        Severity.INFO,
        "idle_in_transaction",
        f"Idle in a transaction for more than {humanize(profile.health_idle_in_transaction)}: "
        f"{_count(server.idle_in_transaction, 'session')}.",
        "They hold locks and keep VACUUM from its work. Commit before slow work, and set "
        "idle_in_transaction_session_timeout on the server.",
    )


_RULES: tuple[Callable[[RuleInput], Recommendation | None], ...] = (
    _server,
    _connections,
    _success_rate,
    _reconnections,
    _rollbacks,
    _pool,
    _idle_in_transaction,
)
