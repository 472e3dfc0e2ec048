"""Which requests may see what is not public: those with the token.

On Railway an application is on the internet. A token that can be guessed opens nothing there, and
nor does debug mode, which is switched on by one variable of the environment; elsewhere both do, and
a warning says so.
"""

from __future__ import annotations

import functools
import hmac
import logging
import os
from collections.abc import Iterable, Mapping

from sa_railway.config.url import on_railway

logger = logging.getLogger("sa_railway.config.token")

TOKEN_SETTING = "RAILWAY_HEALTH_TOKEN"  # noqa: S105 - the name of a setting
# Characters. So many random ones cannot be guessed, however many requests are made.
_SHORTEST = 16
_HOW_TO_SEND = (
    "as the header X-Health-Token, as the header Authorization: Bearer, or in a browser as ?token="
)


def configured_token(setting: object) -> str | None:
    """Return the token from an application's *setting*, or else from the environment.

    Text that is empty or blank counts as none.
    """
    for value in (setting, os.environ.get(TOKEN_SETTING)):
        text = "" if value is None else str(value).strip()
        if text:
            return text
    return None


def may_see(
    token: str | None,
    headers: Iterable[tuple[str, str]],
    query: Mapping[str, str],
    *,
    debug: bool,
) -> bool:
    """Return whether a request may see what is not public.

    Args:
        token: as ``configured_token()`` gives it.
        headers: of the request, as pairs; the case of their names does not matter.
        query: the parameters of its URL.
        debug: whether the application is in debug mode.
    """
    if debug and not on_railway():
        return True
    if token is None or (_is_short(token) and on_railway()):
        return False
    warn_if_short(token)
    return _carries(token, headers, query)


def warn_if_short(token: str | None) -> None:
    """Say once that *token* can be guessed, if it can."""
    if token is not None and _is_short(token):
        _warn_of_length(len(token))


@functools.cache
def _warn_of_length(length: int) -> None:
    logger.warning(
        "%s can be guessed (length %d); set it to a random text of %d characters or more%s",
        *(TOKEN_SETTING, length, _SHORTEST),
        ". Until then it opens nothing" if on_railway() else "",
    )


def _is_short(token: str) -> bool:
    return len(token) < _SHORTEST


def _carries(token: str, headers: Iterable[tuple[str, str]], query: Mapping[str, str]) -> bool:
    named = {name.lower(): value for name, value in headers}
    scheme, _, bearer = named.get("authorization", "").partition(" ")
    sent = (
        named.get("x-health-token"),
        bearer if scheme.lower() == "bearer" else None,
        query.get("token"),
    )
    # in constant time; as bytes, because compare_digest() takes no text beyond ASCII, and because
    # servers hand on the bytes of a header, UTF-8 as a rule, as if they were Latin-1
    return any(
        hmac.compare_digest(value.strip().encode(encoding, "backslashreplace"), token.encode())
        for value in sent
        if value is not None
        for encoding in ("utf-8", "latin-1")
    )


def refusal_text(token: str | None) -> str:
    """Return the text of the answer to a request that may not see it."""
    if token is None:
        in_debug = (
            "On Railway it is needed in debug mode, too."
            if on_railway()
            else "In debug mode no token is needed."
        )
        return (
            f"This page needs a token, and none is set. Set {TOKEN_SETTING} to a long random text "
            "in the application's configuration or environment, and send it "
            f"{_HOW_TO_SEND}. {in_debug}\n"
        )
    if _is_short(token) and on_railway():
        return (
            f"This page needs a token that cannot be guessed. Set {TOKEN_SETTING} to a random text "
            f"of {_SHORTEST} characters or more, and send it {_HOW_TO_SEND}.\n"
        )
    return f"This page needs the token that {TOKEN_SETTING} is set to. Send it {_HOW_TO_SEND}.\n"
