"""The one line of JSON that Railway's log viewer reads."""

from __future__ import annotations

import json
import logging
import logging.config
import math
import subprocess
import sys

import pytest

from sa_railway.logs import json_formatter, logging_config

RECORD = {
    "name": "shop.orders",
    "levelno": logging.INFO,
    "msg": "sold %s",
    "args": ("tea",),
    "created": 1767225600.25,
}


def line(**fields: object) -> str:
    return json_formatter().format(logging.makeLogRecord({**RECORD, **fields}))


def entry(**fields: object) -> dict[str, object]:
    return json.loads(line(**fields))


def test_a_record_becomes_what_the_viewer_reads():
    assert entry() == {
        "message": "sold tea",
        "level": "info",
        "logger": "shop.orders",
        "time": "2026-01-01T00:00:00.250+00:00",
    }


@pytest.mark.parametrize(
    ("level", "named"),
    [
        (5, "debug"),
        (logging.DEBUG, "debug"),
        (logging.INFO, "info"),
        (25, "info"),
        (logging.WARNING, "warn"),
        (logging.ERROR, "error"),
        (logging.CRITICAL, "error"),
    ],
)
def test_every_level_is_one_of_the_four(level: int, named: str):
    assert entry(levelno=level)["level"] == named


def test_what_is_passed_as_extra_becomes_attributes():
    found = entry(order=7, tags=["a", "b"], path="/orders")

    assert (found["order"], found["tags"], found["path"]) == (7, ["a", "b"], "/orders")


def test_an_attribute_does_not_replace_what_the_viewer_needs():
    found = entry(level="mine", logger="mine", time="mine")

    assert (found["level"], found["logger"]) == ("info", "shop.orders")


class Odd:
    def __str__(self) -> str:
        return "odd"


class Mute:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


CIRCLE: list[object] = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Odd(), "odd"),
        (math.nan, "nan"),
        ({(1, 2): 3}, "{(1, 2): 3}"),
        (CIRCLE, "[[...]]"),
        (Mute(), "<Mute that cannot be shown>"),
        ({(1, 2): Mute()}, "<dict that cannot be shown>"),
    ],
    ids=["an object", "not a number", "a key that is no text", "a circle", "mute", "mute within"],
)
def test_what_json_does_not_know_is_shown_as_text(value: object, shown: str):
    assert entry(value=value)["value"] == shown


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"msg": "%d of %s", "args": ("two",)}, "%d of %s % ('two',)"),
        ({"msg": "done", "args": (1,)}, "done % (1,)"),
        ({"msg": Mute(), "args": ()}, "<Mute that cannot be shown> % ()"),
    ],
)
def test_a_mistake_in_a_call_does_not_cost_its_message(fields: dict[str, object], shown: str):
    assert entry(**fields)["message"] == shown


def test_an_exception_is_one_string_and_the_line_stays_one():
    try:
        raise ValueError("no\ntea")
    except ValueError as error:
        text = line(exc_info=(type(error), error, error.__traceback__), msg="a\nb\u2028c", args=())

    assert len(text.splitlines()) == 1
    assert json.loads(text)["message"] == "a\nb\u2028c"
    assert json.loads(text)["exception"].startswith("Traceback (most recent call last):\n  File ")
    assert json.loads(text)["exception"].endswith("\nValueError: no\ntea")


def test_a_stack_is_one_string():
    assert entry(stack_info="Stack (most recent call last):\n  here")["stack"] == (
        "Stack (most recent call last):\n  here"
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://u:secret@db:5432/x", "postgresql://u:***@db:5432/x"),
        ("postgresql+psycopg2://u:se@cr/et@db/x?y=1", "postgresql+psycopg2://u:***@db/x?y=1"),
        ("to redis://:secret@cache and back", "to redis://:***@cache and back"),
        ('postgresql://u:se"c\\ret@db/x', "postgresql://u:***@db/x"),
        ("host=db password=secret user=u", "host=db password=*** user=u"),
        ("postgresql://db/x?sslpassword=secret&a=b", "postgresql://db/x?sslpassword=***&a=b"),
        ("host=db password='my secret' user=u", "host=db password=*** user=u"),
        ("host=db password='se\"cret user=u", "host=db password=*** user=u"),
        ("password = secret; PGPASSWORD=secret sslpassword=secret", None),
        ("connect(**{'password': 'secret', 'port': 1})", "connect(**{'password': ***, 'port': 1})"),
        ('body {"password": "secret", "port": 1}', 'body {"password": ***, "port": 1}'),
        ("GET /health/database?token=secret HTTP/1.1", None),
        ("the password: it is wrong", None),
        ("postgresql:///x?user=u&password=secret&host=db", None),
        ("http://localhost:8000/orders\nmail to a@b.example", None),
        ("postgresql://u@db/x is fine", None),
        ("time: 12:30 @ noon", None),
    ],
)
def test_passwords_are_masked_and_the_rest_is_left(text: str, shown: str | None):
    shown = shown or text.replace("secret", "***")

    assert entry(msg=text, args=())["message"] == shown
    assert entry(url=text)["url"] == shown


def test_an_attribute_named_as_a_password_is_masked():
    found = entry(
        password='se"cret', login={"DB_PASSWORD": "secret", "user": "u"}, pin={"password": 7}
    )

    assert (found["password"], found["login"], found["pin"]) == (
        "***",
        {"DB_PASSWORD": "***", "user": "u"},
        {"password": "***"},
    )


def test_masking_ends_with_the_attribute_that_it_began_in():
    assert entry(first="password='secret", second="it's fine")["second"] == "it's fine"


@pytest.mark.parametrize("part", ["a.b-c+", "a://b:", "x:", "password='"])
def test_a_long_line_is_masked_in_a_time_that_grows_as_its_length_does(part: str):
    # in a process of its own, since otherwise it takes hours and cannot be interrupted
    program = (
        "import logging, sys; from sa_railway.logs import json_formatter;"
        "record = logging.makeLogRecord({'msg': sys.argv[1] * 300_000, 'levelno': 20});"
        "json_formatter().format(record)"
    )

    subprocess.run([sys.executable, "-c", program, part], check=True, timeout=60)


def test_a_password_in_an_exception_is_masked():
    try:
        raise ValueError("postgresql://u:hush@db/x")
    except ValueError as error:
        text = line(exc_info=(type(error), error, error.__traceback__), msg="failed", args=())

    assert "hush" not in text
    assert json.loads(text)["exception"].endswith("\nValueError: postgresql://u:***@db/x")


@pytest.fixture
def _restored_logging():
    loggers = [logging.getLogger(), logging.getLogger("gunicorn.error")]
    before = [(one.level, one.handlers[:], one.propagate) for one in loggers]
    yield
    for one, (level, handlers, propagate) in zip(loggers, before, strict=True):
        one.level, one.handlers[:], one.propagate = level, handlers, propagate


@pytest.mark.usefixtures("_restored_logging")
def test_the_configuration_sends_everything_to_stdout(capsys: pytest.CaptureFixture[str]):
    logging.config.dictConfig(logging_config())
    logging.getLogger("sa_railway.engine").warning("ours")
    logging.getLogger("gunicorn.error").error("Gunicorn's")
    logging.getLogger("shop").info("theirs", extra={"order": 7})

    captured = capsys.readouterr()
    shown = [json.loads(one) for one in captured.out.splitlines()]
    assert [(one["message"], one["level"], one.get("order")) for one in shown] == [
        ("ours", "warn", None),
        ("Gunicorn's", "error", None),
        ("theirs", "info", 7),
    ]
    assert captured.err == ""


def test_requests_are_logged_only_if_asked_for():
    assert "gunicorn.access" not in logging_config()["loggers"]
    assert "gunicorn.access" in logging_config(access=True)["loggers"]
