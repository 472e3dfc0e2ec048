"""What of a message may be shown: all of it but the credentials, where they stand.

The words and names of a message are left alone, also where the password is one of them: to replace
it would mutilate the message, and the gap would tell what the password is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

from sqlalchemy import URL

from sa_railway.config.drivers import last_value
from sa_railway.config.masking import SECRET

# scheme://user:password@host; the password ends at the last "@", as one that is not encoded may
# hold others
_IN_URL = re.compile(r"(\w://[^\s:/?#@]*:)[^\s\"']*(?=@)")
# password=..., PWD='it\'s', "sslpassword": "..." of conninfo, ODBC, a call, JSON and a repr
_VALUE = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s&;,'"()]+"""
_FIELD = re.compile(
    rf"(?i)(\b\w*(?:passw|pwd|secret|token)\w*\s*=\s*|['\"]\w*(?:passw|pwd|secret|token)\w*['\"]"
    rf"\s*:\s*)(?:{_VALUE})"
)
# but for isn't, and what the message says to be a name
_QUOTED = re.compile(
    r"""(\b(?:role|user|database|host|name|schema|relation|table|column) )?"""
    r"""(?<!\w)(?:"[^"\n]*"|'[^'\n]*'|`[^`\n]*`)(?!\w)"""
)
_IS_NO_WORD = re.compile(r"(?=.*[0-9])(?=.*[A-Za-z]).{8,}", re.DOTALL)


def redacted(message: str, url: URL) -> str:
    """Return *message* without the credentials of *url*, or those of others.

    They stand in URLs, in fields such as ``password=...``, and in quotation marks, into which
    programs put a value that they cannot use. A secret that cannot be a word is hidden everywhere.
    """
    message = _IN_URL.sub(r"\1***", message)
    message = _FIELD.sub(r"\1***", message)
    names = set(_names(url))
    for secret in _spellings(url):
        if secret in names:
            continue  # it is shown as the name of a user, a host or a database
        if _IS_NO_WORD.fullmatch(secret):
            message = message.replace(secret, "***")
        else:
            message = _hide_in_quotes(message, secret)
    return message


def _hide_in_quotes(message: str, secret: str) -> str:
    if {*secret} & {*"\"'`\n"}:  # where the quotation ends cannot be told then
        return message.replace(secret, "***") if len(secret) > 1 else message
    alone = re.compile(rf"(?<!\w){re.escape(secret)}(?!\w)")
    return _QUOTED.sub(lambda q: q[0] if q[1] else alone.sub("***", q[0]), message)


def _names(url: URL) -> Iterator[str]:
    yield from filter(None, (url.username, url.host, url.database, str(url.port or "")))
    for value in url.query.get("host", ()), url.query.get("hostaddr", ()):
        yield from (value,) if isinstance(value, str) else value


def _spellings(url: URL) -> Iterator[str]:
    """Yield the secrets of *url*, as they are and as a URL or a repr has them, longest first."""
    values = [last_value(value) for name, value in url.query.items() if SECRET.search(name)]
    secrets = filter(None, (url.password, *values))
    spelled = {f(secret) for secret in secrets for f in (str, quote, quote_plus, _escaped)}
    yield from sorted(spelled, key=len, reverse=True)


def _escaped(secret: str) -> str:
    return repr(secret)[1:-1]
