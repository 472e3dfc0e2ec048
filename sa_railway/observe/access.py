"""Who may see what is not for everybody: the holder of a token.

This module changes when a token may be sent in another way.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterable, Mapping

__all__ = ["TOKEN_SETTING", "carries_token", "configured_token", "refusal_text"]

TOKEN_SETTING = "RAILWAY_HEALTH_TOKEN"  # noqa: S105 - the name of a setting
_HOW_TO_SEND = (
    "as the header X-Health-Token, as the header Authorization: Bearer, or in a browser as ?token="
)


def configured_token(setting: object, environ: Mapping[str, str] | None = None) -> str | None:
    """Return the token from an application's *setting*, or else from the environment.

    Text that is empty or blank counts as none.
    """
    variables = os.environ if environ is None else environ
    for value in (setting, variables.get(TOKEN_SETTING)):
        text = "" if value is None else str(value).strip()
        if text:
            return text
    return None


def carries_token(
    token: str | None, headers: Iterable[tuple[str, str]], query: Mapping[str, str]
) -> bool:
    """Return whether a request carries *token*; without a token, none does.

    Args:
        token: as ``configured_token()`` gives it.
        headers: of the request, as pairs; the case of their names does not matter.
        query: the parameters of its URL.
    """
    if token is None:
        return False
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
    """Return what a request without *token* is told."""
    if token is None:
        return (
            f"This page needs a token, and none is set. Set {TOKEN_SETTING} to a long random text "
            "in the application's configuration or environment, and send it "
            f"{_HOW_TO_SEND}. In debug mode no token is needed.\n"
        )
    return f"This page needs the token that {TOKEN_SETTING} is set to. Send it {_HOW_TO_SEND}.\n"
