"""The watch for passwords: whatever shows one makes its test fail."""

import io
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from marked import MARK
from secrets_watch import Tee, watch

TESTS = Path(__file__).parents[1]
LEAKS = """
import http.client, http.server, logging, os, subprocess, sys, threading
from dataclasses import dataclass

import psycopg2, pytest, sqlalchemy
from flask import Flask
from marked import MARK

from sa_railway import events, exc
from sa_railway.doctor.findings import Finding

PRINT = "import os; print(os.environ['SECRET'])"
ENVIRONMENT = {**os.environ, "SECRET": f"x{MARK}y"}
ours = logging.getLogger("sa_railway.engine")
theirs = logging.getLogger("other")


def test_nothing():
    ours.warning("all is well")
    print("all is well")


def test_a_message():
    theirs.warning("%s", MARK)


def test_a_message_that_nobody_wants():
    ours.debug("connected by %s", MARK)


def test_an_attribute():
    theirs.warning("connected", extra={"url": [MARK]})


def test_a_logged_traceback():
    try:
        raise ValueError(MARK)
    except ValueError:
        theirs.exception("failed")


def test_a_note_of_a_logged_error():
    try:
        error = ValueError("no")
        error.add_note(MARK)
        raise error
    except ValueError:
        theirs.exception("failed")


def test_printed():
    print(MARK)


def test_printed_as_the_test_reads_it(capsys):
    print(MARK)
    capsys.readouterr()


def test_printed_by_a_program():
    subprocess.run([sys.executable, "-c", PRINT], env=ENVIRONMENT)


def test_read_from_a_program():
    subprocess.run([sys.executable, "-c", PRINT], env=ENVIRONMENT, capture_output=True)


def test_read_from_one_pipe_line_by_line():
    command = [sys.executable, "-c", PRINT]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        for _ in process.stdout:
            pass


def test_read_from_a_terminal():
    master, slave = os.openpty()
    subprocess.run([sys.executable, "-c", PRINT], env=ENVIRONMENT, stdout=slave)
    os.close(slave)
    os.read(master, 5), os.read(master, 1000)
    os.close(master)


def test_an_answer_of_a_server():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(MARK.encode())

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        client = http.client.HTTPConnection("127.0.0.1", server.server_port)
        client.request("GET", "/")
        client.getresponse().read()
        client.close()
        thread.join()


@pytest.fixture
def client():
    app = Flask("shop")
    app.add_url_rule("/body", "body", lambda: MARK)
    app.add_url_rule("/header", "header", lambda: ("", {"X-Database": MARK}))
    return app.test_client()


def test_an_answer_to_the_test_client(client):
    client.get("/body")


def test_a_header_to_the_test_client(client):
    client.get("/header")


def test_an_expected_error():
    with pytest.raises(ValueError, match="."):
        raise ValueError(MARK)


def test_a_cause_of_an_expected_error():
    with pytest.raises(RuntimeError):
        raise RuntimeError("no") from ValueError(MARK)


def test_an_attribute_of_an_expected_error():
    with pytest.raises(ValueError, match="no"):
        error = ValueError("no")
        error.url = MARK
        raise error


def test_an_error_of_a_group():
    with pytest.raises(ExceptionGroup):
        raise ExceptionGroup("all", [ValueError(MARK)])


def test_an_error_of_the_driver():
    def connect():
        raise psycopg2.OperationalError(MARK)

    try:
        sqlalchemy.create_engine("postgresql+psycopg2://", creator=connect).connect()
    except sqlalchemy.exc.OperationalError:
        pass


def test_an_error_of_the_package():
    try:
        raise exc.ConfigurationError(MARK)
    except exc.ConfigurationError:
        pass


def test_an_event():
    events.DisconnectSeen("shop", ValueError(MARK))


def test_a_file(tmp_path):
    (tmp_path / "gunicorn.log").write_text(MARK)


def test_a_failure():
    assert MARK == "other"
"""
# of the test that is the last of its file
LAST = """
from marked import MARK
from sa_railway.testing.toxics import Answer


def test_a_value_that_has_changed(request):
    request.session.kept = Answer("57P03", "starting", 1)
    request.session.kept._sqlstate = MARK
"""
WHERE = {
    "a_message": "log record of other, WARNING: '<the password>'",
    "a_message_that_nobody_wants": "log record of sa_railway.engine, DEBUG: 'connected by <",
    "an_attribute": "log record of other, WARNING, attributes: ",
    "a_logged_traceback": "log record of other, ERROR, traceback of ValueError: ",
    "a_note_of_a_logged_error": "log record of other, ERROR, as JSON: ",
    "printed": "Captured stdout call: ",
    "printed_as_the_test_reads_it": "what was printed: ",
    "printed_by_a_program": "Captured stdout call: ",
    "read_from_a_program": "what os.read() has read: ",  # by communicate()
    "read_from_one_pipe_line_by_line": "stdout of a program: ",
    "read_from_a_terminal": "what os.read() has read: ",
    "an_answer_of_a_server": "answer of an HTTP server: ",
    "an_answer_to_the_test_client": "answer to the test client: ",
    "a_header_to_the_test_client": "answer to the test client: ",
    "an_expected_error": "error that a test expects, ValueError, str(): ",
    "a_cause_of_an_expected_error": "error that a test expects, ValueError, str(): ",
    "an_attribute_of_an_expected_error": "error that a test expects, ValueError, attributes: ",
    "an_error_of_a_group": "error that a test expects, ValueError, str(): ",
    "an_error_of_the_driver": "error of the driver, OperationalError, str(): ",
    "an_error_of_the_package": "str() of sa_railway.exc.ConfigurationError: ",
    "an_event": "repr() of sa_railway.events.DisconnectSeen: ",
    "a_failure": "AssertionError: assert '<the password>' == 'other'",
    "a_value_that_has_changed": "repr() of sa_railway.testing.toxics.Answer: ",
}


@pytest.fixture(scope="module")
def told():
    """What is reported of the tests above, by their names."""
    # outside of the folder whose files are looked at
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "test_leaks.py").write_text(LEAKS)
        Path(folder, "test_values.py").write_text(LAST)
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-p", "secrets_watch", "-p", "no:cacheprovider"),
                *("-p", "no:randomly"),  # what the last test leaves behind is looked at with it
                *("-c", os.devnull, f"--rootdir={folder}", f"--basetemp={folder}/temporary"),
                *("-o", "junit_logging=all", f"--junit-xml={folder}/report.xml", folder),
            ],
            env={**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1, done.stdout + done.stderr
        report = Path(folder, "report.xml").read_text()
    assert MARK not in done.stdout + done.stderr + report
    told: dict[str, str] = {}
    for case in ElementTree.fromstring(report).iter("testcase"):
        texts = [bad.text or "" for bad in case if bad.tag in ("failure", "error")]
        told[case.get("name", "")] = told.get(case.get("name", ""), "") + "\n".join(texts)
    return told


def test_this_suite_is_watched(pytestconfig, own_postgres):
    assert pytestconfig.pluginmanager.hasplugin("secrets_watch")
    assert own_postgres.url.password == MARK


@pytest.mark.parametrize("leak", WHERE)
def test_a_leak_makes_its_test_fail(told, leak):
    assert WHERE[leak] in told[f"test_{leak}"]


def test_without_a_leak_a_test_passes(told):
    assert told["test_nothing"] == ""


def test_files_are_looked_at_when_their_tests_are_over(told):
    assert re.search(r"^file /.*/gunicorn\.log: '<the password>'$", told["test_a_failure"], re.M)


def test_every_leak_is_tried(told):
    assert told.keys() == {f"test_{name}" for name in (*WHERE, "nothing", "a_file")}


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_a_password_that_is_read_in_parts_is_found(monkeypatch, size):
    found = []
    monkeypatch.setattr(watch, "look", lambda where, text: found.append(MARK in text))
    with Tee(io.StringIO(f"a line with {MARK} in it"), "a file") as tee:
        while tee.read(size):
            pass

    assert any(found)
