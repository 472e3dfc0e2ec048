"""The variables that a database URL may come from, and what became of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sqlalchemy import URL

from sa_railway.config.masking import masked
from sa_railway.config.url import (
    VARIABLES,
    find_url,
    is_private_host,
    is_public_proxy,
    normalize_url,
)
from sa_railway.exc import ConfigurationError


@dataclass(frozen=True)
class Source:
    """A variable that is set, and what came of it: a URL, or the reason why it cannot be used."""

    name: str
    url: URL | None = field(default=None, repr=False)  # its query may hold a secret
    flaw: str = ""


def look_up(environ: Mapping[str, str], *, unpooled: bool = False) -> list[Source]:
    """Return the variables that ``database_url()`` looks at, up to the one that it uses."""
    sources = []
    for name in VARIABLES if unpooled else VARIABLES[1:]:
        if name not in environ:
            continue
        alone = {k: v for k, v in environ.items() if k == name or k not in VARIABLES}
        sources.append(try_source(name, partial(find_url, environ=alone, unpooled=unpooled)))
        if sources[-1].url is not None:
            break
    return sources


def try_source(name: str, find: Callable[[], URL]) -> Source:
    """Return what *find* finds, or why it finds nothing."""
    try:
        return Source(name, find())
    except ConfigurationError as error:
        return Source(name, flaw=str(error))


def describe(sources: list[Source]) -> Iterator[tuple[str, str]]:
    """Yield what there is to say about *sources*, as pairs of a word or two and a text."""
    used = next((source for source in sources if source.url is not None), None)
    if used is None or used.url is None:
        yield "used", "none"
    else:
        yield "used", used.name
        yield "URL", masked(normalize_url(used.url))
        if is_private_host(used.url.host):
            yield "network", "Railway's private network"
        if is_public_proxy(used.url.host):
            yield "network", "Railway's TCP proxy; what passes it is billed"
    for source in sources:
        if source.flaw:
            yield "passed over", source.flaw
    if not sources:
        yield "not set", ", ".join(VARIABLES[1:])


def as_dict(sources: list[Source]) -> dict[str, Any]:
    """Return what ``sa-railway url --json`` prints."""
    used = next((source for source in sources if source.url is not None), None)
    return {
        "used": used.name if used else None,
        "url": masked(normalize_url(used.url)) if used and used.url else None,
        "passed_over": {source.name: source.flaw for source in sources if source.flaw},
    }
