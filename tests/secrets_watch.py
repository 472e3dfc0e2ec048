"""Fail the test during which the marked password shows up anywhere.

The URLs of the suite's servers hold the mark, so whatever the package says while it is tested must
be without it. Looked at are, as they arise:

* log records of every logger, and those of ``sa_railway`` at every level, whether anybody wants
  them or not: message, arguments, attributes, traceback, and the line of JSON;
* what is printed, also by programs that the tests start: to the terminal, into a pipe, a pseudo
  terminal or a file below the temporary folder of pytest;
* answers of HTTP servers, of Flask's test client, and of the health endpoints;
* errors: those that a test expects, those that SQLAlchemy wraps, those of the package; with their
  notes, attributes, causes and contexts;
* ``repr()`` and ``str()`` of the package's values, when they are made and when a file of tests
  ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import http.client
import importlib
import logging
import os
import pkgutil
import re
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy.exc
import werkzeug.test
from marked import MARK

import sa_railway
from sa_railway.logs import json_formatter

# Programs other than ours that have to be told a password by file.
GIVEN_IN_FILES = {"users.txt", "pgpass"}  # of PgBouncer and of libpq
LARGEST_FILE = 1 << 24

_FOUND = re.compile(re.escape(MARK), re.IGNORECASE)
_STANDS_FOR_IT = "<the password>"


class Watch:
    """What has been found since it was last asked for; any thread may look."""

    def __init__(self) -> None:
        self._leaks: list[str] = []
        self._busy = threading.local()

    def look(self, where: str, what: object) -> None:
        """Remember if *what*, a text or bytes, holds the mark."""
        text = what.decode(errors="replace") if isinstance(what, bytes) else str(what)
        if _FOUND.search(text):
            text = hide(text)
            begin = text.index(_STANDS_FOR_IT)
            self._leaks.append(f"{where}: {text[max(begin - 80, 0) : begin + 80]!r}")

    def look_by(self, where: str, read: Callable[[], object]) -> None:
        """Look at what *read* returns, if it does; what it calls is not looked at meanwhile."""
        if getattr(self._busy, "reading", False):
            return
        self._busy.reading = True
        try:
            with contextlib.suppress(Exception):  # an object that is half made, for instance
                self.look(where, read())
        finally:
            self._busy.reading = False

    def take(self) -> list[str]:
        """Return what has been found, each finding once, and forget it."""
        leaks, self._leaks = self._leaks, []
        return list(dict.fromkeys(leaks))


watch = Watch()


def hide(text: str) -> str:
    return _FOUND.sub(_STANDS_FOR_IT, text)


# --- log records ---


def look_at_record(record: logging.LogRecord) -> None:
    where = f"log record of {record.name}, {record.levelname}"
    watch.look_by(where, record.getMessage)
    watch.look_by(f"{where}, attributes", lambda: [(k, str(v)) for k, v in vars(record).items()])
    watch.look_by(f"{where}, as JSON", lambda: json_formatter().format(record))
    if record.exc_info and record.exc_info[1]:
        look_at_error(where, record.exc_info[1])


def watch_logs() -> None:
    is_enabled, handle = logging.Logger.isEnabledFor, logging.Logger.handle

    def is_enabled_or_ours(self: logging.Logger, level: int) -> bool:
        return self.name.partition(".")[0] == "sa_railway" or is_enabled(self, level)

    def look_and_handle(self: logging.Logger, record: logging.LogRecord) -> None:
        look_at_record(record)
        if is_enabled(self, record.levelno):
            handle(self, record)

    logging.Logger.isEnabledFor = is_enabled_or_ours  # type: ignore[method-assign]
    logging.Logger.handle = look_and_handle  # type: ignore[method-assign]


# --- what is printed or received ---


class Tee:
    """A file whose content is looked at as it is read."""

    def __init__(self, file: Any, where: str) -> None:
        self._file = file
        self._where = where
        self._tail = ""

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._file, name)
        if name not in ("read", "read1", "readline", "readlines"):
            return found
        return lambda *size: self._look(found(*size))

    def readinto(self, buffer: Any) -> int:
        size: int = self._file.readinto(buffer)
        self._look(bytes(memoryview(buffer)[:size]))
        return size

    def __iter__(self) -> Iterator[Any]:
        return map(self._look, self._file)

    def __next__(self) -> Any:
        return self._look(next(self._file))

    def __enter__(self) -> Tee:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def _look(self, data: Any) -> Any:
        for part in data if isinstance(data, list) else [data]:
            text = part.decode(errors="replace") if isinstance(part, bytes) else part or ""
            watch.look(self._where, self._tail + text)
            self._tail = (self._tail + text)[-len(MARK) + 1 :]
        return data


def after(owner: Any, name: str, look: Callable[..., object]) -> None:
    """Have *look* called with the result and the arguments of every call of a method."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def looked_at(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        look(result, *args)
        return result

    setattr(owner, name, looked_at)


def watch_output() -> None:
    def tee_pipes(_: None, process: subprocess.Popen[Any], *args: Any) -> None:
        for name in ("stdout", "stderr"):
            if getattr(process, name) is not None:
                setattr(process, name, Tee(getattr(process, name), f"{name} of a program"))

    def tee_answer(_: None, response: Any, *args: Any) -> None:
        response.fp = Tee(response.fp, "answer of an HTTP server")

    tails: dict[int, bytes] = {}

    def look_at_read(data: bytes, descriptor: int, size: int) -> None:
        watch.look("what os.read() has read", tails.get(descriptor, b"") + data)
        tails[descriptor] = (tails.get(descriptor, b"") + data)[-len(MARK) + 1 :]

    def look_at_answer(answer: Any, *args: Any) -> None:
        watch.look_by("answer to the test client", lambda: str(answer.headers))
        watch.look_by("answer to the test client", answer.get_data)

    def look_at_printed(printed: tuple[str, str], *args: Any) -> None:
        for text in printed:
            watch.look("what was printed", text)

    after(subprocess.Popen, "__init__", tee_pipes)
    after(http.client.HTTPResponse, "__init__", tee_answer)
    after(os, "read", look_at_read)
    after(werkzeug.test.Client, "open", look_at_answer)
    after(pytest.CaptureFixture, "readouterr", look_at_printed)


# --- errors ---


def look_at_error(where: str, error: BaseException) -> None:
    """Look at *error* and at all that led to it."""
    watch.look_by(
        f"{where}, traceback of {type(error).__name__}",
        lambda: "".join(traceback.format_exception(error)),
    )
    for each in all_of(error):
        name = f"{where}, {type(each).__name__}"
        watch.look_by(f"{name}, str()", functools.partial(str, each))
        watch.look_by(f"{name}, repr()", functools.partial(repr, each))
        watch.look_by(f"{name}, attributes", functools.partial(attributes, each))


def attributes(error: BaseException) -> object:
    # psycopg's own, with all that it has connected by
    return error.args, {k: v for k, v in vars(error).items() if k != "_pgconn"}


def all_of(error: BaseException) -> list[BaseException]:
    """Return *error*, what it was raised from and what it wraps, each once."""
    found: list[BaseException] = []
    pending: list[Any] = [error]
    while pending:
        each = pending.pop()
        if isinstance(each, BaseException) and not any(each is known for known in found):
            found.append(each)
            pending += [each.__cause__, each.__context__, getattr(each, "orig", None)]
            pending += getattr(each, "exceptions", ())
    return found


def watch_errors() -> None:
    after(
        pytest.ExceptionInfo,
        "fill_unfilled",
        lambda _, info, *args: look_at_error("error that a test expects", info.value),
    )
    after(
        sqlalchemy.exc.DBAPIError,
        "instance",
        lambda wrapper, *args: look_at_error("error of the driver", wrapper),
    )


# --- the values of the package ---


def look_at_value(value: object) -> None:
    where = f"{type(value).__module__}.{type(value).__qualname__}"
    watch.look_by(f"repr() of {where}", lambda: repr(value))
    watch.look_by(f"str() of {where}", lambda: str(value))


def watch_values() -> set[type]:
    """Look at every value of the package when it is made; return the types to find
    among those that are alive."""
    for module in pkgutil.walk_packages(sa_railway.__path__, "sa_railway."):
        with contextlib.suppress(ModuleNotFoundError):  # an extra that is not installed
            importlib.import_module(module.name)
    modules = [module for name, module in sys.modules.items() if name.startswith("sa_railway")]
    types = {
        kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type) and kind.__module__.startswith("sa_railway")
    }
    values = {kind for kind in types if dataclasses.is_dataclass(kind)}
    errors = {kind for kind in types if issubclass(kind, BaseException)}
    for kind in values | errors:
        after(kind, "__init__", lambda _, value, *args: look_at_value(value))
    inherited: Any = object.__repr__
    return {kind for kind in types if kind.__repr__ is not inherited}


def look_at_values_alive() -> None:
    for value in gc.get_objects():
        if type(value) in TYPES:
            look_at_value(value)


# --- files ---


class Files:
    """The files below the temporary folder of pytest, each looked at again when it has changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, tuple[int, int]] = {}

    def look(self) -> None:
        for folder, _, names in os.walk(self._folder):
            for name in set(names) - GIVEN_IN_FILES:
                with contextlib.suppress(OSError):  # gone meanwhile
                    self._look_at(os.path.join(folder, name))

    def _look_at(self, path: str) -> None:
        status = os.lstat(path)
        state = status.st_mtime_ns, status.st_size
        if not os.path.isfile(path) or self._known.get(path) == state:
            return
        self._known[path] = state
        with open(path, "rb") as file:
            watch.look(f"file {path}", file.read(LARGEST_FILE))


# --- pytest ---

watch_logs()
watch_output()
watch_errors()
TYPES = watch_values()
files: list[Files] = []


@pytest.fixture(scope="session", autouse=True)
def _watched_files(tmp_path_factory: pytest.TempPathFactory) -> None:
    files.append(Files(tmp_path_factory.getbasetemp()))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    yield
    if nextitem is None or nextitem.path != item.path:
        for each in files:
            each.look()
        look_at_values_alive()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    for title, text in report.sections:
        if title.endswith(call.when):
            watch.look(title, text)
    report.sections = [(title, hide(text)) for title, text in report.sections]
    if _FOUND.search(report.longreprtext):
        report.longrepr = hide(report.longreprtext)
    leaks = watch.take()
    if leaks:
        told = [report.longreprtext] if report.failed else []
        report.outcome = "failed"
        report.longrepr = "\n".join([*told, "A password shows up, in:", *leaks])
    return report
