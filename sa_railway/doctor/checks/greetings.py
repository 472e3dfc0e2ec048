"""What answers at a port: the first bytes of PostgreSQL, and those of what is mistaken for it."""

from __future__ import annotations

import re
import struct

SSL_REQUEST = struct.pack("!ii", 8, 80877103)
"""Asks PostgreSQL for TLS; see its documentation, Message Formats."""

MYSQL = "MySQL or MariaDB"

_ERROR = re.compile(rb"E\x00\x00..[SVCM]|E[ -~]", re.DOTALL)  # the second from a fork that failed
_NAMES = (
    (rb"SSH-", "an SSH server"),
    (rb"HTTP/|<", "an HTTP server"),
    (rb"[+-](PONG|ERR|NOAUTH|DENIED|NOPERM|LOADING)", "Redis"),
    (rb"ERROR\r\n", "Memcached"),
    (rb"...\x00(\n[0-9]+\.|\xff..)", MYSQL),  # a greeting, or a refusal
    (rb"\x15\x03|\x16\x03", "a server that speaks TLS from the start, as HTTPS"),
    (rb"AMQP", "RabbitMQ"),
    (rb"220[ -]", "a mail or FTP server"),
)


def is_postgres(answer: bytes) -> bool:
    """Return whether *answer* to SSL_REQUEST is PostgreSQL's.

    That is one byte, yes or no, and nothing may follow it; or an error, as there is no place left
    even for this question.
    """
    return answer in (b"S", b"N") or _ERROR.match(answer) is not None


def name_of(answer: bytes) -> str:
    """Name what gives a first *answer* that is not PostgreSQL's."""
    for pattern, name in _NAMES:
        if re.match(pattern, answer, re.DOTALL):
            return name
    line = re.sub(rb"[^ -~]+", b" ", answer[:40]).decode().strip()
    return f"something that answers {line!r}" if line else "something that answers in bytes"
