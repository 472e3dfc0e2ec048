"""Log lines as Railway's log viewer reads them: one line of JSON each, on stdout.

The package itself only logs, below the logger ``sa_railway``, and leaves it to the application
where that goes. This module is for applications that want it in the viewer with its level and its
attributes: there, what goes to stderr is an error, and a traceback is as many errors as it has
lines.
"""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any

__all__ = ["json_formatter", "logging_config"]

# "Structured logs" in Railway's documentation: message, level in debug|info|warn|error, attributes
_LEVELS = ((logging.ERROR, "error"), (logging.WARNING, "warn"), (logging.INFO, "info"))

_NO_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

# In JSON, where a quotation mark within a text has a backslash before it. Each of these looks at a
# character a few times at most: a log line may be long, and hold what a client has sent.
_RUN = re.compile(r"""(?:\\[^nrt]|[^\s"\\])+""")
_LOGIN = re.compile(r"""://[^\s:/@"\\]*:""")
_ATTRIBUTE = re.compile(r"""(passw(?:or)?d": )(?:"(?:[^"\\]|\\.)*"|-?\d[\w.+-]*)""", re.IGNORECASE)
_IN_TEXT = re.compile(
    r"""(passw(?:or)?d(?:[ ]?=[ ]?|(?:'|\\"):[ ]?)|[?&]token=)"""
    r"""(?:'(?:[^'"\\]|\\.)*'|\\"[^"\\]*\\"|'?(?:\\[^nrt]|[^\s&,;"'\\])+)""",
    re.IGNORECASE,
)


def json_formatter() -> logging.Formatter:
    r"""Return a formatter that makes one line of JSON of each record.

    It holds ``message``, ``level`` (``debug``, ``info``, ``warn`` or ``error``), ``logger``,
    ``time`` (UTC), ``exception`` and ``stack`` if there are any, with their lines in one string,
    and whatever was passed as ``extra``. Passwords are masked in URLs, after ``password=``, and in
    attributes whose name ends so; so is ``token=`` in the query of a URL. That is a last defence:
    nothing of this package logs one. A record whose arguments do not fit its format is shown with
    both.

    It may be used by several handlers, and named in ``logging.config.dictConfig()`` as
    ``{"()": "sa_railway.logs.json_formatter"}``.
    """
    return _JsonFormatter()


def logging_config(*, access: bool = False) -> dict[str, Any]:
    """Return what makes ``logging.config.dictConfig()`` log everything as JSON to stdout.

    It is a setting of Gunicorn, too: ``logconfig_dict``. The level of the root logger becomes
    INFO; those of the others stay.

    Args:
        access: whether Gunicorn logs every request as well; Railway keeps at most 500 lines a
            second.
    """
    own = {"handlers": ["stdout"], "propagate": False}
    loggers = ("gunicorn.error", "gunicorn.access") if access else ("gunicorn.error",)
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": "sa_railway.logs.json_formatter"}},
        "handlers": {
            "stdout": {
                "class": "logging.StreamHandler",
                "stream": "ext://sys.stdout",
                "formatter": "json",
            }
        },
        "root": {"level": "INFO", "handlers": ["stdout"]},
        "loggers": {name: dict(own) for name in loggers},
    }


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        attributes = {k: v for k, v in vars(record).items() if k not in _NO_ATTRIBUTES}
        entry = {
            **attributes,
            "message": _message(record),
            "level": next((name for level, name in _LEVELS if record.levelno >= level), "debug"),
            "logger": record.name,
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        elif record.exc_text:  # of a record that comes from another process
            entry["exception"] = record.exc_text
        if record.stack_info:
            entry["stack"] = self.formatStack(record.stack_info)
        return _masked(_dump(entry))


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - a mistake in a call must not cost its message
        return f"{_text(record.msg)} % {_text(record.args)}"


def _text(value: object) -> str:
    """Return *value* as text, also if its class fails to make one."""
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - likewise
        return f"<{type(value).__name__} that cannot be shown>"


def _dump(entry: dict[str, Any]) -> str:
    """Return *entry* as one line of JSON, whatever its attributes are."""
    try:
        return json.dumps(entry, default=_text, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        # not a number, a key that is no text, something that contains itself
        return json.dumps({key: _text(value) for key, value in entry.items()})


def _masked(line: str) -> str:
    """Return *line*, which is JSON, without what looks like a password."""
    if "://" in line:
        line = _RUN.sub(_without_login, line)
    return _IN_TEXT.sub(r"\1***", _ATTRIBUTE.sub(r'\1"***"', line))


def _without_login(run: re.Match[str]) -> str:
    """Mask in a run without spaces what reaches to its last @, for a password may hold one, too."""
    text = run[0]
    login, end = _LOGIN.search(text), text.rfind("@")
    if login is None or end < login.end():
        return text
    return f"{text[: login.end()]}***{text[end:]}"
