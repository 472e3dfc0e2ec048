"""``sa-railway doctor``, ``url`` and ``budget`` in processes of their own."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import termios
from pathlib import Path

import jsonschema
import pytest
from marked import MARK, MarkedPostgres, in_text

from sa_railway import __version__
from sa_railway.testing import ChaosProxy

COMMAND = Path(sys.executable).with_name("sa-railway")
DOCS = Path(__file__).parents[2] / "docs"
SECRET = MARK
WITHOUT_RICH = [
    sys.executable,
    "-c",
    "import sys; sys.modules['rich'] = None; from sa_railway.cli import main; sys.exit(main())",
]


@pytest.fixture(scope="module")
def server(postgres_binaries):
    with MarkedPostgres(password=SECRET) as server:
        yield server


def run(*arguments, **environ):
    done = subprocess.run(
        [COMMAND, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environ},
        timeout=60,
    )
    assert SECRET not in done.stdout + done.stderr
    return done.returncode, done.stdout, done.stderr


def on_terminal(command, *arguments, **environ):
    """Run *command* on a terminal of 80 columns; return the exit status and all that it shows."""
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    environ = {**os.environ, "TERM": "xterm-256color", **environ}
    environ = {k: v for k, v in environ.items() if k not in ("COLUMNS", "NO_COLOR", "CI")}
    with subprocess.Popen(
        [*command, *arguments], stdin=slave, stdout=slave, stderr=slave, env=environ
    ) as process:
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError):  # the end of a terminal
            while part := os.read(master, 65536):
                shown += part
    os.close(master)
    assert SECRET.encode() not in shown
    return process.returncode, shown.decode()


def test_nothing_found(server):
    status, out, err = run("doctor", in_text(server.url))

    assert (status, err) == (0, "")
    assert out.endswith("\n\nNo problem found; 15 of 16 checks are good, 1 not run.\n")


def test_the_sample_of_the_guide(server):
    """The set-up of the sample, and its output but for the numbers."""
    sample = (DOCS / "doctor.md").read_text().split("```text\n")[1].split("```")[0]
    environ = {
        "DATABASE_URL": "",
        "PGHOST": "127.0.0.1",
        "PGPORT": str(server.port),
        "PGUSER": "postgres",
        "PGPASSWORD": SECRET,
        "PGDATABASE": "postgres",
    }
    status, out, err = run("doctor", "--replicas", "2", "--processes", "4", **environ)

    assert (status, err) == (1, "")
    assert without_numbers(out) == without_numbers(sample)
    assert max(len(line) for line in out.splitlines()) <= 80


def without_numbers(text):
    text = re.sub(r"PostgreSQL \d.*", "PostgreSQL N", text)
    return re.sub(r"\d[\d.]*", "N", " ".join(text.split()))


def test_json(server):
    url = in_text(server.url.set(password=f"wrong-{SECRET}"))
    status, out, err = run("doctor", url, "--json")

    assert (status, err) == (1, "")
    printed = json.loads(out)
    jsonschema.validate(printed, json.loads((DOCS / "doctor.schema.json").read_text()))
    assert [finding["code"] for finding in printed["findings"]] == ["wrong-password"]


def test_the_doctor_on_a_terminal(server):
    status, shown = on_terminal([COMMAND], "doctor", in_text(server.url), "--table", "absent")

    assert status == 1
    assert "\x1b[32mgood" in shown
    assert "\x1b[1;31merror" in shown
    assert "╭─" in shown
    assert "examining: " in shown
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown)
    assert "sa-railway doctor --explain tables-missing" in plain
    assert max(len(line) for line in plain.replace("\r", "\n").split("\n")) <= 80


def test_the_doctor_on_a_terminal_without_rich(server):
    status, shown = on_terminal(WITHOUT_RICH, "doctor", in_text(server.url))

    assert status == 0
    assert "\r\x1b[Kexamining: DNS" in shown
    report = shown.rpartition("\r\x1b[K")[2]
    assert report.startswith("good     environment     not on Railway; ")
    assert "\x1b" not in report


@pytest.mark.parametrize("wanted", ["tables-missing", 'relation "orders" does not exist'])
def test_an_explanation(wanted):
    status, out, err = run("doctor", "--explain", wanted)

    assert (status, err) == (0, "")
    assert out.startswith("tables-missing (error): Not there: <missing>\n   why   The migrations ")
    assert out.endswith("   text  asyncpg.exceptions.UndefinedTableError\n")


def test_an_explanation_as_json():
    status, out, err = run("doctor", "--explain", "tables-missing", "--json")

    assert (status, err) == (0, "")
    assert [finding["code"] for finding in json.loads(out)["findings"]] == ["tables-missing"]


def test_what_cannot_be_explained():
    assert run("doctor", "--explain", "no such thing") == (
        1,
        "",
        "no finding has this name or stands for this text\n",
    )


def test_progress_does_not_get_into_a_pipe(server):
    master, slave = os.openpty()
    done = subprocess.run(
        [COMMAND, "doctor", in_text(server.url), "--json"],
        stdout=subprocess.PIPE,
        stderr=slave,
        timeout=60,
    )
    os.close(slave)

    assert json.loads(done.stdout)["healthy"] is True
    assert b"examining: " in os.read(master, 65536)
    os.close(master)


def test_ctrl_c(server):
    with ChaosProxy(server.url) as proxy:
        proxy.freeze()
        with subprocess.Popen(
            [COMMAND, "doctor", in_text(proxy.url), "--timeout", "60"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            proxy.wait_for(lambda: proxy.accepted >= 2)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)

    assert (process.returncode, out, err) == (130, b"", b"")


@pytest.mark.parametrize("arguments", [["url"], ["budget"], ["budget", "--json"]])
def test_a_reader_that_has_gone(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([COMMAND, *arguments], stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)

    assert (done.returncode, done.stderr) == (141, b"")


def test_the_package_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "sa_railway", "--version"], capture_output=True, timeout=60
    )

    assert (done.returncode, done.stdout) == (0, f"sa-railway {__version__}\n".encode())


@pytest.mark.parametrize("command", ["doctor", "budget"])
def test_wrong_usage_as_json(command):
    message = "replicas is 0; allowed: a whole number, 1 or more"
    status, out, err = run(command, "--replicas", "0", "--json")

    assert (status, err) == (2, f"Error: {message}\n")
    assert json.loads(out) == {"error": message}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--replicas", "0"], "replicas is 0; allowed: a whole number, 1 or more"),
        (["--timeout", "-1"], "timeout is -1.0; allowed: more than 0 seconds"),
    ],
)
def test_wrong_usage(arguments, message):
    assert run("doctor", *arguments) == (2, "", f"Error: {message}\n")


def test_the_url_that_is_used():
    url = f"postgresql://postgres:{SECRET}@postgres.railway.internal:5432/railway"
    status, out, err = run("url", DATABASE_URL=url)

    assert (status, err) == (0, "")
    assert out == (
        "used     DATABASE_URL\n"
        "URL      postgresql+psycopg2://postgres:***@postgres.railway.internal:5432/railway\n"
        "network  Railway's private network\n"
    )


def test_the_unpooled_url():
    environ = {"DATABASE_URL": "postgresql://a/d", "DATABASE_UNPOOLED_URL": "postgresql://b/d"}

    assert run("url", **environ)[1].startswith("used  DATABASE_URL\n")
    assert run("url", "--unpooled", **environ)[1].startswith("used  DATABASE_UNPOOLED_URL\n")


def test_no_url():
    assert run("url") == (
        1,
        "used     none\nnot set  DATABASE_URL, DATABASE_PRIVATE_URL, PGHOST, DATABASE_PUBLIC_URL\n",
        "",
    )


def test_a_url_that_was_passed_over():
    status, out, _ = run("url", DATABASE_URL=f"'postgresql://u:{SECRET}@h/d")

    assert status == 1
    assert out == (
        "used         none\n"
        "passed over  DATABASE_URL begins or ends with a quotation mark; remove it where\n"
        "             the value is set\n"
    )


def test_the_url_as_json():
    good = f"postgres://postgres:{SECRET}@h:5432/railway"
    status, out, err = run("url", "--json", DATABASE_URL=f"'{good}", DATABASE_PUBLIC_URL=good)

    assert (status, err) == (0, "")
    assert json.loads(out) == {
        "used": "DATABASE_PUBLIC_URL",
        "url": "postgresql+psycopg2://postgres:***@h:5432/railway",
        "passed_over": {
            "DATABASE_URL": "DATABASE_URL begins or ends with a quotation mark; remove it where "
            "the value is set"
        },
    }


def test_no_url_as_json():
    status, out, err = run("url", "--json")

    assert (status, err) == (1, "")
    assert json.loads(out) == {"used": None, "url": None, "passed_over": {}}


def test_a_budget_as_json():
    status, out, err = run("budget", "--json", "--max-connections", "28")

    assert (status, err) == (1, "")
    assert json.loads(out) == {
        "peak": 30,
        "available": 25,
        "fits": False,
        "recommended_pool_size": 5,
        "recommended_max_overflow": 7,
        "sentences": [
            "At peak 30: 1 replica x 1 process x 15 connections x 2 deployments at once.",
            "The server allows 28 and reserves 3: 25 are left.",
            "That is 5 too many; pool_size=5 and max_overflow=7 would fit, with 24 at peak.",
        ],
    }


def test_a_budget_that_fits():
    status, out, err = run("budget", "--max-connections", "100")

    assert (status, err) == (0, "")
    assert out == (
        "At peak 30: 1 replica x 1 process x 15 connections x 2 deployments at once.\n"
        "The server allows 100 and reserves 3: 97 are left.\n"
        "That fits, with 67 to spare.\n"
    )


def test_a_budget_that_does_not_fit():
    status, out, _ = run(
        *("budget", "--replicas", "2", "--extra", "7", "--max-connections", "60"),
        *("--reserved", "5", "--overlap", "3", "--max-overflow", "20"),
        WEB_CONCURRENCY="3",
        SA_RAILWAY_POOL_SIZE="2",
    )

    assert status == 1
    assert out == (
        "At peak 403: 2 replicas x 3 processes x 22 connections x 3 deployments at once + 7 of "
        "others.\n"
        "The server allows 60 and reserves 5: 55 are left.\n"
        "That is 348 too many; pool_size=2 and max_overflow=0 would fit, with 43 at peak.\n"
    )


def test_a_budget_without_a_limit():
    status, out, _ = run("budget", "--processes", "4", "--pool-size", "1")

    assert status == 0
    assert out == (
        "At peak 88: 1 replica x 4 processes x 11 connections x 2 deployments at once.\n"
        "The server's limit is not known; SHOW max_connections tells it.\n"
    )


def test_a_budget_of_bad_numbers():
    assert run("budget", "--overlap", "0") == (
        2,
        "",
        "Error: overlap is 0; allowed: a whole number, 1 or more\n",
    )
