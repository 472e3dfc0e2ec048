"""What in a database URL is secret, and how to show the rest.

SQLAlchemy hides the password before the host only; drivers take secrets in the query as well, such
as ``password`` and ``sslpassword``, which unlocks the key of a client certificate.
"""

from __future__ import annotations

import re

from sqlalchemy import URL

SECRET = re.compile(
    r"passw|pwd|secret|token|credential|api_?key|(?:access|account|private|shared)_?key",
    re.IGNORECASE,
)
"""What the name of a secret parameter holds.

passwd is MySQL's, oauth_client_secret libpq's, PWD ODBC's; keys and credentials are those of cloud
databases. libpq's sslkey is the name of a file.
"""


def masked(url: URL) -> str:
    """Return *url* for people: without the password, and without the secrets in its query."""
    if shows_password(url):
        return f"{url.drivername}://***"
    query = {
        name: "***" if SECRET.search(name) else _without_secret(value)
        for name, value in url.query.items()
    }
    return url.set(query=query).render_as_string().replace("%2A%2A%2A", "***")


def shows_password(url: URL) -> bool:
    """Return whether what looks like a password, or a part of one, is in the host or database."""
    host, (before, at, rest) = url.host or "", (url.database or "").partition("@")
    if "@" in host or "]" in host:
        return True
    has_server = url.drivername.lower().startswith(("postgres", "mysql", "maria"))
    return has_server and at == "@" and (":" in before or "/" in rest)


def _without_secret(value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """Mask the secrets of a URL within a value, such as asyncpg's ``dsn``."""
    if not isinstance(value, str):
        return tuple(_masked_parameters(text) for text in value)
    return _masked_parameters(value)


def _masked_parameters(text: str) -> str:
    # in odbc_connect, semicolons part them
    parts = re.split(r"([&;])", text)
    return "".join(_masked_parameter(part) for part in parts)


def _masked_parameter(text: str) -> str:
    """Mask what follows a secret's name and an equals sign; each character is looked at once."""
    *names, _ = pieces = text.split("=")
    for number, name in enumerate(names, 1):
        if SECRET.search(name):
            return "=".join([*pieces[:number], "***"])
    return text
