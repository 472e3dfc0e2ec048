"""normalize_url() compared with libpq's own parser, and with SQLAlchemy's, over many made-up URLs.

What it is to differ in stands in ``FROM_LIBPQ`` and ``FROM_SQLALCHEMY``, and nowhere else.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import psycopg
import psycopg2
import psycopg2.extensions
import pytest
import sqlalchemy
from marked import MARK, in_text
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from sa_railway.config.masking import masked
from sa_railway.config.url import normalize_url
from sa_railway.exc import ConfigurationError

COUNT = 1500
LETTERS = "abz09_-é"
DELIMITERS = ":/?#@,[]%&=+$'\"{} ."
HOSTS = ("h", "h.example", "10.0.0.1", "[::1]", "[fd12::2]", "%2Fvar%2Frun", "[fe80::1%25e]")
PARAMETERS = (
    *("host=q.example", "host=q.example:6000", "host=%2Ftmp", "host=q1,q2&port=1,2", "port=6543"),
    *("hostaddr=10.0.0.2", "user=q", "password=q%40q", "dbname=q", "sslmode=require", "ssl=true"),
    *("connect_timeout=3", "options=-c%20work_mem%3D5MB", "target_session_attrs=read-write"),
    *("application_name=a+b", "application_name=%C3%A9%2B"),
)


class MadeUp:
    """URLs with all that can stand in one, mostly where it belongs; the same at every run."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def urls(self, password: Callable[[str], str] = str) -> Iterator[str]:
        for _ in range(COUNT):
            scheme = self._pick("postgresql", "postgres")
            login = self._login(password)
            yield f"{scheme}://{login}{self._servers()}{self._path()}{self._query()}"

    def _pick(self, *choices: str) -> str:
        return self._random.choice(choices)

    def _text(self, share_of_odd: float) -> str:
        alphabet = LETTERS + DELIMITERS if self._random.random() < share_of_odd else LETTERS
        text = "".join(self._random.choices(alphabet, k=self._random.randint(1, 6)))
        return quote(text, safe="") if self._random.random() < 0.3 else text

    def _login(self, password: Callable[[str], str]) -> str:
        user, secret = self._text(0.2), password(self._text(0.6))
        return self._pick("", f"{user}@", f"{user}:{secret}@", f"{user}:@", f":{secret}@", "@")

    def _servers(self) -> str:
        servers = [
            self._pick(*HOSTS) + self._pick("", ":5432", ":5433", ":6432")
            for _ in range(self._random.choice([1, 1, 1, 2, 3]))
        ]
        return self._pick("", ":5433", *[",".join(servers)] * 6)

    def _path(self) -> str:
        return self._pick("", "/", "/d", "/d", "/" + self._text(0.2))

    def _query(self) -> str:
        chosen = "&".join(self._random.sample(PARAMETERS, k=self._random.choice([0, 0, 0, 1, 2])))
        is_repeated = len(set(names := re.findall(r"(\w+)=", chosen))) < len(names)
        return "" if is_repeated or not chosen else f"?{chosen}"


def arguments(url: URL) -> dict[str, str]:
    """Return what psycopg2 is called with for *url*, the ports as one for each host."""
    dialect: Any = url.get_dialect()()
    given = dialect.create_connect_args(url)[1]
    return with_all_ports({key: str(value) for key, value in given.items()})


def with_all_ports(given: dict[str, str]) -> dict[str, str]:
    """Spell the ports out as libpq understands them: none is 5432, and one that of all."""
    ports = [port or "5432" for port in given.get("port", "").split(",")]
    hosts = given.get("host", "").split(",")
    return {**given, "port": ",".join(ports * len(hosts) if len(ports) == 1 else ports)}


def rest_of(text: str) -> str:
    return text.partition("://")[2]


def by_sqlalchemy(text: str) -> dict[str, str] | None:
    try:
        url = make_url(re.sub(r"\Apostgres(ql)?:", "postgresql+psycopg2:", text))
        return arguments(url)
    except Exception:  # noqa: BLE001 - it has many ways to fail
        return None


def by_psycopg2(text: str) -> dict[str, str]:
    return psycopg2.extensions.parse_dsn(text)


def by_psycopg(text: str) -> dict[str, str]:
    return {key: str(value) for key, value in conninfo_to_dict(text).items()}


def by_us(text: str) -> dict[str, str] | None:
    try:
        return arguments(normalize_url(text, driver="psycopg2"))
    except (ConfigurationError, ArgumentError):
        return None


def login_by_libpq(text: str) -> str:
    found = re.match(r"[^@/]*@", rest_of(text))
    return found[0] if found else ""


def login_by_sqlalchemy(text: str) -> str:
    found = re.match(r"[^:/]*(:[^@]*)?@", rest_of(text))
    return found[0] if found else ""


def server_of(text: str) -> str:
    found = re.match(r"[^/?]*", rest_of(text)[len(login_by_sqlalchemy(text)) :])
    return found[0] if found else ""


def path_of(text: str) -> str:
    found = re.match(r"[^/?]*([^?]*)", rest_of(text)[len(login_by_sqlalchemy(text)) :])
    return found[1] if found else ""


def is_tidied(text: str) -> bool:
    return text != text.strip()


FROM_LIBPQ = {
    "a login may hold a slash in its password and an @ in its user": lambda text: (
        login_by_libpq(text) != login_by_sqlalchemy(text)
    ),
    "a port behind the last of several hosts is that of all": lambda text: bool(
        re.search(r"\A[^:\[%]+,[^,:\[%]+:\d+\Z", server_of(text))
    ),
    "SQLAlchemy 2.0 takes the database as it is written": lambda text: (
        sqlalchemy.__version__.startswith("2.0") and "%" in path_of(text)
    ),
    "a plus sign in the query is a space": lambda text: "+" in text.partition("?")[2],
    "a host in the query may have a port": lambda text: "host=q.example:6000" in text,
    "white space is left out around it, and not around its parts": lambda text: " " in text,
    "a host in the query replaces several": lambda text: "," in server_of(text) and "host=" in text,
    "a list in the query takes no port from before it": lambda text: "host=q1,q2" in text,
}


@pytest.mark.parametrize("parse", [by_psycopg2, by_psycopg])
def test_a_url_means_what_it_means_to_libpq(parse: Callable[[str], dict[str, str]]) -> None:
    compared = 0
    for text in MadeUp(1).urls():
        ours = by_us(text)
        try:
            theirs = with_all_ports(parse(text))
        except (psycopg2.Error, psycopg.Error, UnicodeError):
            continue
        if ours is None or any(differs(text) for differs in FROM_LIBPQ.values()):
            continue
        compared += 1
        assert ours == theirs, text
    assert compared > COUNT / 3


FROM_SQLALCHEMY = {
    "a host may be percent-encoded": lambda text: "%" in server_of(text),
    "of several hosts, some are IPv6 addresses": lambda text: (
        ("]" in server_of(text).partition(",")[0] and "," in server_of(text))
        or "[" in server_of(text).partition(",")[2]
    ),
    "white space around it is left out": is_tidied,
}


def test_a_url_that_plain_sqlalchemy_reads_means_the_same() -> None:
    compared = 0
    for text in MadeUp(2).urls():
        ours, theirs = by_us(text), by_sqlalchemy(text)
        if None in (ours, theirs) or any(differs(text) for differs in FROM_SQLALCHEMY.values()):
            continue
        assert theirs is not None
        if theirs.pop("ssl", None):  # which libpq would refuse
            theirs.setdefault("sslmode", "require")
        compared += 1
        assert ours == theirs, text
    assert compared > COUNT / 3


def test_a_url_that_plain_sqlalchemy_reads_is_refused_for_few_reasons() -> None:
    refused = 0
    for text in MadeUp(3).urls():
        if by_sqlalchemy(text) is None or by_us(text) is not None:
            continue
        refused += 1
        after_login = rest_of(text)[len(login_by_sqlalchemy(text)) :]
        is_half_rendered = re.match(r":\d+([/?]|\Z)", after_login) is not None
        is_other = bool(re.search(r"[\[\]]", server_of(text))) or any(
            differs(text) for differs in FROM_SQLALCHEMY.values()
        )
        assert is_half_rendered or re.search("@|%40", after_login) or is_other, text
    assert refused > 0


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "asyncpg"])
def test_normalising_twice_changes_nothing(driver: str) -> None:
    for text in MadeUp(4).urls():
        try:
            once = normalize_url(text, driver=driver)
        except ConfigurationError:
            continue
        assert normalize_url(once) == once, text
        again = in_text(once)
        if by_us(again) and make_url(again) == once and not is_tidied(again):
            assert normalize_url(again) == once, text


def test_a_password_is_never_shown() -> None:
    shown = 0
    for text in MadeUp(5).urls(password=lambda text: f"{text}{MARK}{text}".replace("=", "")):
        try:
            url = normalize_url(text)
        except ConfigurationError as error:
            said = str(error)
        else:
            said = str(url) + repr(url) + masked(url)
        shown += MARK in text
        assert MARK not in said, text
    assert shown > COUNT / 5
