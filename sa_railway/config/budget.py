"""How many connections an application opens at its peak, and whether the server has as many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sa_railway.exc import ConfigurationError


@dataclass(frozen=True)
class ConnectionBudget:
    """The connections of an application against what the server allows.

    Attributes:
        peak: connections when every pool is full, in the middle of a deploy.
        available: what the server allows, without those it reserves; None if that is not known.
        fits: whether the peak is within that; None if it is not known.
        recommended_pool_size: what was asked about if that fits, else what does; None if not even
            one connection per process fits.
        recommended_max_overflow: likewise.
        sentences: all of that, for people.
    """

    peak: int
    available: int | None
    fits: bool | None
    recommended_pool_size: int | None
    recommended_max_overflow: int | None
    sentences: tuple[str, ...]


def plan_budget(
    replicas: int,
    processes: int,
    pool_size: int,
    max_overflow: int,
    *,
    overlap: int = 2,
    extra: int = 0,
    max_connections: int | None = None,
    reserved: int = 3,
) -> ConnectionBudget:
    """Compare the connections that an application may open with those that the server allows.

    Pure: nothing is connected.

    Args:
        replicas: containers of the service. Railway tells none of them how many there are.
        processes: processes, each with its own pool, such as Gunicorn's workers.
        pool_size: of each pool.
        max_overflow: of each pool.
        overlap: how many deployments run at the same time. 2 because Railway starts the new one
            before it stops the old one.
        extra: connections of others: workers, cron jobs, migrations, people.
        max_connections: what ``SHOW max_connections`` says; None if it is not known.
        reserved: of these, ``superuser_reserved_connections``; 3 is PostgreSQL's default.

    Raises:
        ConfigurationError: a number cannot be used.
    """
    counts = {"replicas": replicas, "processes": processes, "pool_size": pool_size}
    for name, value in {**counts, "overlap": overlap}.items():
        _check(name, value, 1)
    for name, value in {"max_overflow": max_overflow, "extra": extra, "reserved": reserved}.items():
        _check(name, value, 0)
    if max_connections is not None:
        _check("max_connections", max_connections, reserved + 1)

    pools = replicas * processes * overlap
    peak = pools * (pool_size + max_overflow) + extra
    demand = _demand(replicas, processes, pool_size + max_overflow, overlap, extra, peak)
    if max_connections is None:
        unknown = "The server's limit is not known; SHOW max_connections tells it."
        return ConnectionBudget(peak, None, None, pool_size, max_overflow, (demand, unknown))
    available = max_connections - reserved
    each = min((available - extra) // pools, pool_size + max_overflow)
    size, overflow = (min(pool_size, each), max(each - pool_size, 0)) if each > 0 else (None, None)
    supply = f"The server allows {max_connections} and reserves {reserved}: {available} are left."
    verdict = _verdict(peak - available, size, overflow, pools * each + extra)
    return ConnectionBudget(
        peak, available, peak <= available, size, overflow, (demand, supply, verdict)
    )


def count_processes(environ: Mapping[str, str]) -> int:
    """Return how many workers Gunicorn starts by default: ``WEB_CONCURRENCY``, or 1.

    Raises:
        ConfigurationError: the variable is no number of processes.
    """
    given = environ.get("WEB_CONCURRENCY", "").strip() or "1"
    if not given.isdecimal() or int(given) < 1:
        raise ConfigurationError(
            f"WEB_CONCURRENCY is {given!r}; allowed: a whole number, 1 or more"
        )
    return int(given)


def _check(name: str, value: int, at_least: int) -> None:
    if type(value) is not int or value < at_least:  # True is an int, too
        raise ConfigurationError(
            f"{name} is {value!r}; allowed: a whole number, {at_least} or more"
        )


def _demand(replicas: int, processes: int, each: int, overlap: int, extra: int, peak: int) -> str:
    terms = [_count(replicas, "replica"), _count(processes, "process"), _count(each, "connection")]
    if overlap > 1:
        terms.append(f"{overlap} deployments at once")
    others = f" + {extra} of others" if extra else ""
    return f"At peak {peak}: {' x '.join(terms)}{others}."


def _count(number: int, noun: str) -> str:
    plural = "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{plural if number != 1 else ''}"


def _verdict(excess: int, size: int | None, overflow: int | None, peak: int) -> str:
    if excess <= 0:
        return f"That fits, with {-excess} to spare."
    if size is None:
        return (
            f"That is {excess} too many, and not even one per process would fit: run fewer "
            "processes, or put PgBouncer before the server."
        )
    return (
        f"That is {excess} too many; pool_size={size} and max_overflow={overflow} would fit, with "
        f"{peak} at peak."
    )
