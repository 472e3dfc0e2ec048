"""What an error of the database means: ``classify(error)`` gives a ``Fault``.

The tables here say how an error is recognised by its class and its SQLSTATE, ``messages`` how by
its text, ``conditions`` what it then means, and ``origin`` where it comes from. The text of a
message counts only where the driver passes on no SQLSTATE: psycopg2 and psycopg give none at
connect, psycopg2 none for a killed connection. No driver is imported; an exception is known by its
attributes and the name of its class.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sqlalchemy.exc import DBAPIError

from sa_railway.exc import ConfigurationError
from sa_railway.faults.conditions import ADVICE, CONDITIONS, TRANSIENT, Condition, FaultKind
from sa_railway.faults.messages import condition_in
from sa_railway.faults.origin import DRIVERS, severity_of

__all__ = ["Fault", "FaultKind", "check_kinds", "classify", "first_line"]


@dataclass(frozen=True, slots=True)
class Fault:
    """What an error means.

    Attributes:
        kind: what went wrong. ``connect-transient`` and ``connect-permanent`` say that the work
            did not reach the server; after a ``disconnect`` that is uncertain, and if the
            statement was a COMMIT, its outcome is unknown.
        sqlstate: the server's SQLSTATE, or None if there is none. Where the driver drops it, it is
            read from the server's English message.
        transient: whether the same work may succeed if it is run again after a pause. Whether
            that is safe is for the caller to know.
        advice: one sentence on what to do. It holds nothing that was in the error.
    """

    kind: FaultKind
    sqlstate: str | None
    transient: bool
    advice: str

    @property
    def connection_lost(self) -> bool:
        """Whether a connection that worked has been lost."""
        return self.kind is FaultKind.DISCONNECT

    @property
    def server_unavailable(self) -> bool:
        """Whether it passes by itself: the server is away, or full of clients that came first."""
        return self.connection_lost or self.kind in _UNAVAILABLE

    @property
    def not_connected(self) -> bool:
        """Whether there is no connection to ask anything else with."""
        return self.connection_lost or self.kind in _NOT_CONNECTED

    @property
    def rolled_back(self) -> bool:
        """Whether the server has ended the transaction because of another one."""
        return self.kind in _ROLLED_BACK

    @property
    def outcome_ambiguous(self) -> bool:
        """Whether the server has not answered, or by an error that says nothing of the outcome."""
        return self.connection_lost or self.kind in _AMBIGUOUS


_UNAVAILABLE = {FaultKind.CONNECT_TRANSIENT, FaultKind.RESOURCE}
_NOT_CONNECTED = {FaultKind.CONNECT_TRANSIENT, FaultKind.CONNECT_PERMANENT}
_ROLLED_BACK = {FaultKind.SERIALIZATION, FaultKind.DEADLOCK}
# a driver's error without a code may be a loss, too
_AMBIGUOUS = {FaultKind.CONNECT_TRANSIENT, FaultKind.PERMANENT}

# What the classes of SQLAlchemy, of this package and of asyncpg's own errors say by themselves.
_CLASSES = {
    "sa_railway.exc.CommitOutcomeUnknownError": "08007",
    "sa_railway.exc.DatabaseUnavailableError": "unavailable",
    "sqlalchemy.exc.TimeoutError": "pool-exhausted",
    "sqlalchemy.exc.DisconnectionError": "lost",
    "sqlalchemy.exc.InvalidatePoolError": "lost",
    "asyncpg.exceptions._base.ClientConfigurationError": "bad-url",
    "asyncpg.exceptions._base.TargetServerAttributeNotMatched": "unreachable",
}

# What asyncpg lets through as it is. The exact class counts: its subclasses belong to others,
# such as the HTTP libraries.
_BUILTINS = {
    "builtins.ConnectionRefusedError": "refused",
    "socket.gaierror": "name-not-found",
    "builtins.TimeoutError": "timeout",
    "builtins.ConnectionError": "lost",
    "builtins.ConnectionResetError": "lost",
    "builtins.ConnectionAbortedError": "lost",
    "builtins.BrokenPipeError": "lost",
    "ssl.SSLCertVerificationError": "certificate",
    "ssl.SSLError": "lost",
    "ssl.SSLEOFError": "lost",
    "ssl.SSLZeroReturnError": "lost",
    "ssl.SSLSyscallError": "lost",
}
_UNREACHABLE = frozenset(
    {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EADDRNOTAVAIL}
)

# Whose messages are looked up besides those of the drivers, and of what a DBAPIError wraps, which
# is a driver's whatever its class. The message of the DBAPIError itself is not: it holds the SQL.
_SPEAKERS = frozenset(
    {
        "sqlalchemy.exc.InvalidRequestError",
        "sqlalchemy.exc.PendingRollbackError",
        "builtins.ConnectionError",
    }
)

# Codes that say too little by themselves: poolers send the first four whatever the matter is, and a
# feature that is not supported stays so, but for a plan that was kept too long, and on a standby.
_VAGUE = frozenset({"08P01", "08004", "58000", "XX000", "0A000"})

# What a pooler may say with severity ERROR, over a connection that goes on. All else that is said
# so is about the statement, and where it speaks of connections, about others than this one.
_SAID_ON = frozenset({"pooler-full", "pooler-waits", "stale-plan", "25006"})

# What the server says as its last word. With severity ERROR, it says so of another session.
_ENDS = frozenset({"25P03", "25P04", "57P01", "57P02", "57P04", "57P05"})

_CODE = re.compile(r"[0-9A-Z]{2}(?:[0-9A-Z]{3})?")


def classify(error: BaseException, *, kinds: Mapping[str, str] | None = None) -> Fault:
    """Say what *error* means, and what to do about it.

    It takes what the drivers, SQLAlchemy and this package raise, and the errors of the network
    that asyncpg raises as they are; these may also come from elsewhere, so ask only about errors
    of database work. Of a group, it takes the member that speaks most against another attempt. It
    follows ``orig`` and ``__cause__``. It does not follow ``__context__``:
    an error raised while another one was handled means something else.

    Whatever fails at connect with an unknown text counts as transient, because waiting in vain
    ends with the patience, and giving up in vain is an outage. Anything else that is unknown, and
    every exception that is not an ``Exception``, is permanent.

    Any thread may call it, and a forked child.

    Args:
        error: any exception.
        kinds: overrules the tables: a SQLSTATE or its class (the first two characters), and the
            name of a kind. ``{"25P01": "disconnect"}`` discards a connection that is not in the
            transaction it should be in.

    Raises:
        ConfigurationError: *kinds* cannot be used. Nothing else is ever raised, whatever *error*
            is.
    """
    overruled = check_kinds(kinds or {})
    if isinstance(error, ExceptionGroup):
        found = [classify(member, kinds=kinds) for member in error.exceptions]
        return min(found, key=lambda fault: fault.transient)
    try:
        key, sqlstate = _identify(list(_chain(error)))
    except Exception:  # noqa: BLE001 - an exception may have attributes that raise
        key, sqlstate = "permanent", None
    condition = (
        _look_up(overruled, sqlstate) or _look_up(CONDITIONS, key) or Condition(FaultKind.PERMANENT)
    )
    return Fault(
        condition.kind,
        sqlstate,
        condition.kind in TRANSIENT if condition.transient is None else condition.transient,
        condition.advice or ADVICE[condition.kind],
    )


def check_kinds(kinds: Mapping[str, str]) -> dict[str, Condition]:
    """Read the *kinds* of ``classify()``; call it early, so that a mistake shows at the start.

    Raises:
        ConfigurationError: a key is no SQLSTATE and no class of them, or a value is no kind.
    """
    for code, kind in kinds.items():
        if not isinstance(code, str) or not _CODE.fullmatch(code):
            raise ConfigurationError(
                f"fault_kinds has the key {code!r}; "
                "allowed: a SQLSTATE such as '40P01', or its first two characters"
            )
        if kind not in list(FaultKind):
            raise ConfigurationError(
                f"fault_kinds[{code!r}] is {kind!r}; allowed: {', '.join(FaultKind)}"
            )
    return {code: Condition(FaultKind(kind)) for code, kind in kinds.items()}


def _look_up(conditions: Mapping[str, Condition], key: str | None) -> Condition | None:
    """Find *key*, or else its class."""
    if key is None:
        return None
    return conditions.get(key) or conditions.get(key[:2])


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield *error* and what it wraps, outermost first, each once."""
    seen: set[int] = set()
    # SystemExit and the like end the work, whatever they were raised from
    while isinstance(error, Exception) and id(error) not in seen:
        seen.add(id(error))
        yield error
        orig = getattr(error, "orig", None)
        error = orig if isinstance(orig, BaseException) else error.__cause__


def _identify(chain: list[BaseException]) -> tuple[str, str | None]:
    """Return the key of the condition, and the SQLSTATE if there is one."""
    for error in chain:
        if key := _CLASSES.get(_class_name(error)):
            return key, None
    if sqlstate := _sqlstate(chain):
        return _by_code(chain, sqlstate), sqlstate
    if any(_says_lost(error) for error in chain):
        return "lost", None
    key = _by_text(chain) or "permanent"
    return key, key if _CODE.fullmatch(key) else None


def _by_code(chain: list[BaseException], sqlstate: str) -> str:
    """Return the condition that *sqlstate* tells, or the text beside it."""
    key = (_by_text(chain) if sqlstate in _VAGUE else None) or sqlstate
    if key in _SAID_ON or any(_says_lost(error) for error in chain):
        return key
    if not any(severity_of(error) == "ERROR" for error in chain):
        return key
    if sqlstate == "08P01":
        return "permanent"  # such as a number of values that is not that of the statement
    if sqlstate in _ENDS or (sqlstate.startswith("08") and sqlstate != "08007"):
        return "elsewhere"
    return sqlstate


def _sqlstate(chain: list[BaseException]) -> str | None:
    """Return the first SQLSTATE, but asyncpg's own 08003 only if the server has not said why."""
    codes = [code for error in chain if (code := _code(error))]
    return next((code for code in codes if not code.startswith("08")), codes[0] if codes else None)


def _code(error: BaseException) -> str | None:
    """Return the SQLSTATE as psycopg and asyncpg, or psycopg2, or the server's report give it."""
    for holder, name in (
        (error, "sqlstate"),
        (error, "pgcode"),
        (getattr(error, "diag", None), "sqlstate"),
    ):
        code = getattr(holder, name, None)
        if isinstance(code, str) and len(code) == 5:
            return code
    return None


def _says_lost(error: BaseException) -> bool:
    """Return whether SQLAlchemy, or the connection that psycopg2 names, is sure of the loss."""
    connection = getattr(getattr(error, "cursor", None), "connection", None)
    return bool(getattr(error, "connection_invalidated", False) or getattr(connection, "closed", 0))


def _by_text(chain: list[BaseException]) -> str | None:
    """Return the condition that a message tells, or the class of a builtin exception."""
    wrapped: BaseException | None = None
    for error in chain:
        name = _class_name(error)
        text = _message(error, name, is_drivers=error is wrapped)
        key = condition_in(text) or _BUILTINS.get(name)
        if key is not None:
            return key
        if name == "builtins.OSError" and _is_unreachable(error):
            return "unreachable"
        wrapped = error.orig if isinstance(error, DBAPIError) else None
    return None


def _message(error: BaseException, name: str, *, is_drivers: bool) -> str:
    """Return what *error* says, if it speaks of a connection."""
    if is_drivers or name.partition(".")[0] in DRIVERS:
        return str(error)
    if name in _SPEAKERS:
        return str(error).partition("\n")[0]  # SQL and its parameters follow in further lines
    return ""


def _is_unreachable(error: BaseException) -> bool:
    """Return whether a plain OSError is that of a connect; asyncio joins those of all addresses."""
    return getattr(error, "errno", None) in _UNREACHABLE or str(error).startswith(
        "Multiple exceptions: "
    )


def _class_name(error: BaseException) -> str:
    return f"{type(error).__module__}.{type(error).__qualname__}"


def first_line(error: BaseException) -> str:
    """Return the first line of what the driver says, which names host and port but no password."""
    cause = getattr(error, "orig", None) or error
    return next(iter(str(cause).strip().splitlines()), type(cause).__name__)
