"""``sa-railway wait`` in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy
from marked import MARK, in_text
from sqlalchemy import text

from sa_railway.testing import ChaosProxy

COMMAND = Path(sys.executable).with_name("sa-railway")


def start(*arguments: str, environ: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [COMMAND, "wait", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environ or {})},
    )


def run(*arguments: str, environ: dict[str, str] | None = None) -> tuple[int, str, str]:
    with start(*arguments, environ=environ) as process:
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_ready(guarded_postgres):
    status, out, err = run(in_text(guarded_postgres.url))

    assert status == 0
    assert re.fullmatch(r"ready after [\d.]+ s: postgresql\+psycopg2://postgres:\*\*\*@.*\n", out)
    assert err == ""


def test_the_url_comes_from_the_environment(guarded_postgres):
    status, out, _ = run(
        "--quiet", environ={"DATABASE_URL": in_text(guarded_postgres.url_for("asyncpg"))}
    )

    assert status == 0
    assert out == ""


def test_a_wrong_password(guarded_postgres):
    status, out, err = run(in_text(guarded_postgres.url.set(password=f"wrong-{MARK}")))

    assert status == 1
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 2
    assert re.fullmatch(
        r"sa-railway wait: not ready: .*FATAL:  password authentication failed for .*", lines[0]
    )
    assert lines[1].startswith("The password is wrong: ")
    assert MARK not in err


def test_a_server_that_does_not_come(guarded_postgres):
    with ChaosProxy(guarded_postgres.url) as proxy:
        proxy.down()
        status, out, err = run(in_text(proxy.url), "--timeout", "0.2", "--quiet")

    assert status == 1
    assert out == ""
    assert "Connection refused\nNothing listens at this address: " in err


def test_a_server_that_comes_later(guarded_postgres):
    with ChaosProxy(guarded_postgres.url) as proxy:
        answer = proxy.answer("57P03", times=None)
        with start(in_text(proxy.url)) as process:
            proxy.wait_for(lambda: proxy.accepted >= 2)
            answer.remove()
            out, err = process.communicate(timeout=60)

    assert process.returncode == 0
    assert out.startswith("ready after ")
    assert err == ""


def test_json_when_ready(guarded_postgres):
    status, out, err = run(in_text(guarded_postgres.url), "--json")

    assert status == 0
    result = json.loads(out)
    assert result.pop("seconds") >= 0
    assert result == {
        "ready": True,
        "database": guarded_postgres.url.render_as_string(hide_password=True),
    }
    assert err == ""


def test_json_when_not_ready(guarded_postgres):
    status, out, err = run(
        in_text(guarded_postgres.url),
        *("--json", "--timeout", "0.2", "--table", "orders", "--table", "billing.invoice"),
        *("--revision", "1975ea83b712"),
    )

    assert status == 1
    result = json.loads(out)
    assert not result["ready"]
    assert result["missing"] == [
        "table orders",
        "table billing.invoice",
        "revision 1975ea83b712 (found: none)",
    ]
    assert "it still lacks: table orders, table billing.invoice, revision" in result["error"]
    assert err == ""
    assert MARK not in out


def test_json_of_an_error(guarded_postgres):
    status, out, _ = run(in_text(guarded_postgres.url.set(database="absent")), "--json")

    assert status == 1
    result = json.loads(out)
    assert result["error"].endswith('database "absent" does not exist')
    assert result["advice"] == (
        "There is no such database: create it, or correct its name in DATABASE_URL."
    )


def test_a_table_that_is_there(guarded_postgres):
    engine = sqlalchemy.create_engine(guarded_postgres.url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE present (n int)"))
    engine.dispose()

    assert run(in_text(guarded_postgres.url), "--quiet", "--table", "present") == (0, "", "")


def test_the_revision_of_the_code(guarded_postgres, tmp_path):
    versions = tmp_path / "migrations" / "versions"
    versions.mkdir(parents=True)
    (versions / "aaaa.py").write_text("revision = 'aaaa'\ndown_revision = None\n")
    config = tmp_path / "alembic.ini"
    config.write_text(f"[alembic]\nscript_location = {tmp_path / 'migrations'}\n")

    status, _, err = run(
        in_text(guarded_postgres.url),
        *("--timeout", "0.1", "--revision", "head", "--alembic-config", str(config)),
    )

    assert status == 1
    assert err.endswith("it still lacks: revision aaaa (found: none)\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--timeout", "0"], "Error: timeout is 0.0; allowed: more than 0 seconds\n"),
        (
            ["--revision", "head", "--alembic-config", "absent.ini"],
            "Error: alembic_config is 'absent.ini', which is no file; allowed: the path "
            "of an alembic.ini\n",
        ),
    ],
)
def test_wrong_usage(guarded_postgres, arguments, message):
    assert run(in_text(guarded_postgres.url), *arguments) == (2, "", message)


def test_a_url_that_cannot_be_used():
    status, out, err = run(f"postgresql://postgres:{MARK}@:/railway")

    assert status == 2
    assert out == ""
    assert err.startswith("Error: url is half-rendered, its host or port is empty: ")
    assert MARK not in err


def test_ctrl_c(guarded_postgres):
    with ChaosProxy(guarded_postgres.url) as proxy:
        proxy.answer("57P03", times=None)
        with start(in_text(proxy.url)) as process:
            proxy.wait_for(lambda: proxy.accepted >= 2)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)

    assert process.returncode == 130
    assert (out, err) == ("", "")
