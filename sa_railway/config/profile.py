"""Every setting of the package in one frozen value, with its default and the reason for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from sa_railway.exc import ConfigurationError
from sa_railway.faults import Fault, check_kinds, classify

ENVIRONMENT_PREFIX = "SA_RAILWAY_"
_PROFILE_VARIABLE = ENVIRONMENT_PREFIX + "PROFILE"


def _knob(
    default: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Any:
    """A dataclass field with a default and the bounds that ``Profile`` checks."""
    bounds = {"above": above, "at_least": at_least, "at_most": at_most}
    return field(default=default, metadata=bounds)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How an engine treats its connections. All times are seconds.

    A profile is a value: make a variant with ``dataclasses.replace(profile, pool_size=2)``.

    Attributes:
        name: shown in logs and by the doctor.
        pool_size: connections kept open. 5 is SQLAlchemy's own default.
        max_overflow: connections beyond the pool in a burst; closed when returned.
        pool_timeout: wait for a free connection. 20 is below Gunicorn's worker timeout of 30, so
            that a starved pool is an error with a text and not a killed worker.
        pool_recycle: a connection older than this is replaced at checkout. 240 is below every
            idle limit known of a host (Azure's 4 minutes being the shortest).
        recycle_jitter: the share of ``pool_recycle`` by which single connections are replaced
            earlier, so that a pool that was filled at once is not emptied at once.
        idle_release: connections that have been idle for this long are closed; None keeps them.
            A pool by itself never closes an idle connection.
        metrics: whether what happens is counted, for the health report. ``Railway(app, db)`` counts
            for its engines whatever is said here; elsewhere a checkout costs nothing for it.
        leak_after: a connection that is held for longer is logged, with the stack of its checkout;
            None does not watch. 30, Gunicorn's worker timeout, is longer than a request may take.
        pre_ping: whether a connection is checked at checkout.
        trust_idle: a connection idle for less than this is checked by a look at its socket alone;
            pgx asks the server after 1 second, too.
        ping_timeout: how long the server may take to answer a ping. Without it, a peer that
            accepts and never answers blocks the checkout without end. A pooler may take
            ``pool_timeout``, because it lets a ping wait for a free server.
        connect_timeout: limit for one attempt to connect.
        connect_patience: how long a connect is tried again while the server is away. 10 for
            web requests, whose clients wait; 60 for scripts and workers.
        backoff_base: the longest first pause between two attempts; it doubles with each.
        backoff_cap: no pause is longer, so that a server that is back is found within this time.
        breaker_pause: once the patience has run out, connects fail at once for this long.
        keepalives: whether TCP keepalives find a dead peer of an idle connection.
        keepalives_idle: silence before the first keepalive probe.
        keepalives_interval: pause between two probes.
        keepalives_count: unanswered probes until the connection is dead.
        tcp_user_timeout: limit for data that the peer's kernel does not acknowledge. Keepalives
            do not cover a query in flight; this does (Linux only).
        application_name: shown in ``pg_stat_activity``; None takes that of Railway's
            service, elsewhere none; the empty text sends none. PostgreSQL keeps the first 63 bytes.
        transaction_pooler: whether a pooler in transaction mode, such as PgBouncer, is in between.
            It may run every transaction on another backend, where a prepared statement is unknown
            or, worse, another one under the same name; so none is kept.
        resolve_commit: whether a COMMIT whose answer was lost is looked up on a new connection, so
            that ``commit()`` returns if it has happened. It costs writers one round trip more.
        resolve_timeout: how long the server is asked for it.
        commit_marker: whether a transaction that writes leaves a row in the table
            ``sa_railway_commit_marker``, by which its outcome can be proved after crashes and
            promotions, too: with ``resolve_commit`` every transaction, without it those of
            ``run_transaction()``. The row takes the place of the other round trip, and costs none
            with psycopg.
        probe_timeout: how long readiness and health wait for the server. A client must wait a
            little longer; Kubernetes does not unless its ``timeoutSeconds`` is raised from 1.
        probe_cache: an answer of the server serves all probes within this time, so that probes
            cannot become load.
        health_window: success rate, reconnections and rollbacks are counted over this time: long
            enough for a quiet application, short enough to forget what is over.
        health_success_rate: health is degraded if a smaller share of the statements succeeds.
        health_reconnections: health is degraded by more reconnections in the window.
        health_rollbacks: health is degraded by more rollbacks in the window.
        health_connections_warn: health is degraded from this share of the server's connections on.
            This and the next one are where Railway itself draws the lines.
        health_connections_critical: health is critical from this share on.
        health_idle_in_transaction: a session that has been idle in a transaction for longer is
            counted. 60 is twice what Gunicorn grants a request.
        fault_kinds: overrules what an error means: SQLSTATE to the name of a fault kind.
    """

    name: str = "web"
    pool_size: int = _knob(5, at_least=1)
    max_overflow: int = _knob(10, at_least=-1)
    pool_timeout: float = _knob(20.0, above=0)
    pool_recycle: float = _knob(240.0, above=0)
    recycle_jitter: float = _knob(0.2, at_least=0)
    idle_release: float | None = _knob(None, above=0)
    metrics: bool = False
    leak_after: float | None = _knob(None, above=0)
    pre_ping: bool = True
    trust_idle: float = _knob(1.0, at_least=0)
    ping_timeout: float = _knob(2.0, above=0)
    connect_timeout: float = _knob(10.0, at_least=1)
    connect_patience: float = _knob(10.0, at_least=0)
    backoff_base: float = _knob(0.05, above=0)
    backoff_cap: float = _knob(1.0, above=0)
    breaker_pause: float = _knob(2.0, at_least=0)
    keepalives: bool = True
    keepalives_idle: int = _knob(20, at_least=1)
    keepalives_interval: int = _knob(10, at_least=1)
    keepalives_count: int = _knob(5, at_least=1)
    tcp_user_timeout: float = _knob(15.0, at_least=0)
    application_name: str | None = None
    transaction_pooler: bool = False
    resolve_commit: bool = False
    resolve_timeout: float = _knob(30.0, above=0)
    commit_marker: bool = False
    probe_timeout: float = _knob(2.0, above=0)
    probe_cache: float = _knob(1.0, at_least=0)
    health_window: float = _knob(300.0, above=0)
    health_success_rate: float = _knob(0.95, at_least=0, at_most=1)
    health_reconnections: int = _knob(10, at_least=0)
    health_rollbacks: int = _knob(20, at_least=0)
    health_connections_warn: float = _knob(0.7, above=0, at_most=1)
    health_connections_critical: float = _knob(0.9, above=0, at_most=1)
    health_idle_in_transaction: float = _knob(60.0, above=0)
    fault_kinds: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what no engine could work with."""
        for setting in fields(self):
            value = getattr(self, setting.name)
            _check_type(setting.name, str(setting.type), value)
            if setting.metadata and value is not None:
                _check_bound(setting.name, value, **setting.metadata)
        if self.recycle_jitter >= 1:
            raise ConfigurationError(
                f"recycle_jitter is {self.recycle_jitter!r}; allowed: 0 or more and less than 1"
            )
        check_kinds(self.fault_kinds)

    def classify(self, error: BaseException) -> Fault:
        """Say what *error* means to this profile, whose ``fault_kinds`` overrule the tables.

        Args:
            error: as of ``sa_railway.classify()``. Any thread may call it, and a forked child.
        """
        return classify(error, kinds=self.fault_kinds)


_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "a string"),
    "bool": ((bool,), "True or False"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number of seconds"),
    "Mapping[str, str]": ((Mapping,), "a mapping of SQLSTATE to fault kind"),
}


def _check_type(name: str, annotation: str, value: object) -> None:
    """Raise unless *value* is of the type that *annotation* spells."""
    base = annotation.removesuffix(" | None")
    if value is None and base != annotation:
        return
    types, allowed = _TYPES[base]
    # bool is an int to Python, but pool_size=True is a mistake
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise ConfigurationError(f"{name} is {value!r}; allowed: {allowed}")


def _check_bound(
    name: str,
    value: float,
    *,
    above: float | None,
    at_least: float | None,
    at_most: float | None,
) -> None:
    """Raise unless *value* is finite and within its bounds."""
    if not math.isfinite(value):
        raise ConfigurationError(f"{name} is {value!r}; allowed: a finite number")
    if above is not None and value <= above:
        raise ConfigurationError(f"{name} is {value!r}; allowed: more than {above:g}")
    if at_least is not None and value < at_least:
        raise ConfigurationError(f"{name} is {value!r}; allowed: {at_least:g} or more")
    if at_most is not None and value > at_most:
        raise ConfigurationError(f"{name} is {value!r}; allowed: {at_most:g} or less")


PROFILES: Mapping[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(name="web"),
        Profile(name="worker", connect_patience=60.0),
        Profile(name="script", connect_patience=60.0),
        # Railway lets a service sleep after 10 minutes without one outbound packet; a keepalive
        # probe is one, and so is the answer to a probe of the server, so nothing may stay open.
        Profile(name="serverless", keepalives=False, idle_release=30.0),
    )
}


def load_profile(
    profile: str | Profile,
    overrides: Mapping[str, Any],
    environ: Mapping[str, str],
) -> Profile:
    """Resolve *profile* and apply the environment, then *overrides*; the later one wins.

    ``SA_RAILWAY_PROFILE`` replaces the name of a named profile, and ``SA_RAILWAY_<FIELD>``
    a field of it. A ``Profile`` that was built by hand is taken as it is, but for its fields
    that the environment names. An ``application_name`` of None becomes ``PGAPPNAME``, or the
    names of the Railway service and replica, if there are any.

    Raises:
        ConfigurationError: an unknown profile or field, or a value that is not allowed.
    """
    if not isinstance(profile, Profile):
        asked = environ.get(_PROFILE_VARIABLE, "").strip()
        profile = _named(_PROFILE_VARIABLE, asked) if asked else _named("profile", profile)
    known = [setting.name for setting in fields(Profile)]
    for name in overrides:
        if name not in known:
            raise ConfigurationError(
                f"{name} is not a field of a profile{suggest(name, known)}; "
                f"allowed: {', '.join(known)}"
            )
    resolved = replace(profile, **{**_from_environment(environ), **overrides})
    if resolved.application_name is None:
        resolved = replace(resolved, application_name=_application_name(environ))
    return resolved


def _named(source: str, name: object) -> Profile:
    allowed = ", ".join(PROFILES)
    if not isinstance(name, str):
        raise ConfigurationError(f"{source} is {name!r}; allowed: {allowed}, or a Profile")
    if name not in PROFILES:
        guess = suggest(name, PROFILES)
        raise ConfigurationError(f"{source} is {name!r}; allowed: {allowed}{guess}")
    return PROFILES[name]


def _application_name(environ: Mapping[str, str]) -> str | None:
    """Name this process for ``pg_stat_activity``, as libpq would or by its place on Railway."""
    place = (environ.get("RAILWAY_SERVICE_NAME"), environ.get("RAILWAY_REPLICA_ID"))
    return environ.get("PGAPPNAME") or "-".join(filter(None, place)) or None


def suggest(name: str, candidates: Mapping[str, object] | list[str]) -> str:
    """Return `` (did you mean ...?)`` for the closest candidate, or nothing."""
    import difflib  # needed by mistakes only

    close = difflib.get_close_matches(name, list(candidates), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """Read the fields that ``SA_RAILWAY_*`` variables name."""
    known = {
        ENVIRONMENT_PREFIX + setting.name.upper(): setting
        for setting in fields(Profile)
        if setting.name not in ("name", "fault_kinds")
    }
    found = {}
    for variable, text in environ.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable == _PROFILE_VARIABLE:
            continue
        if variable not in known:
            raise ConfigurationError(_unknown_variable(variable, [*known, _PROFILE_VARIABLE]))
        if text.strip():
            setting = known[variable]
            found[setting.name] = _parse(variable, str(setting.type), text.strip())
            _check_alone(variable, setting.name, found[setting.name])
    return found


def _check_alone(variable: str, name: str, value: Any) -> None:
    """Refuse a *value* that no profile can have, by the name of the *variable* that it is from."""
    try:
        Profile(**{name: value})
    except ConfigurationError as error:
        raise ConfigurationError(variable + str(error).removeprefix(name)) from None


def _unknown_variable(variable: str, known: list[str]) -> str:
    # compared without the prefix, in which all are alike
    guess = suggest(
        variable.removeprefix(ENVIRONMENT_PREFIX),
        [name.removeprefix(ENVIRONMENT_PREFIX) for name in known],
    ).replace("'", f"'{ENVIRONMENT_PREFIX}", 1)
    allowed = ", ".join(sorted(known))
    return f"{variable} is set, but there is no such setting{guess}; allowed: {allowed}"


_WORDS = {"true": True, "1": True, "yes": True, "on": True}
_WORDS |= {"false": False, "0": False, "no": False, "off": False}


def _parse(variable: str, annotation: str, text: str) -> Any:
    """Convert *text* to the type that *annotation* spells."""
    base = annotation.removesuffix(" | None")
    if base != annotation and text.lower() == "none":
        return None
    try:
        if base == "bool":
            return _WORDS[text.lower()]
        return {"int": int, "float": float, "str": str}[base](text)
    except (KeyError, ValueError):
        raise ConfigurationError(f"{variable} is {text!r}; allowed: {_TYPES[base][1]}") from None
