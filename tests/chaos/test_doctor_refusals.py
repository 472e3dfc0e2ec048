"""What the server or a pooler refuses: the first finding names the cause, and its fix works."""

import psycopg2
import pytest
from certificates import EXPIRED, FOR_LOCALHOST, GOOD, KEY, NOT_YET_VALID, ROOT
from fix_doctor import SECRET, codes, diagnose, first, result, sql_of, stands_for
from fix_engines import DRIVERS
from fix_missing import need
from fix_waiting import wait_until
from marked import MarkedPostgres, conninfo, in_text
from sqlalchemy import URL

from sa_railway.doctor.findings import Outcome

LIBPQ = ["psycopg2", "psycopg"]


def is_let_in(url):
    return result(diagnose(url), "authentication").outcome is Outcome.GOOD


def named_for(driver, kind):
    return f"{kind} {driver}", f'"{kind} {driver}"'


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(
    ("options", "what"),
    [
        ("LOGIN CONNECTION LIMIT 0", "The role {} has all connections that it may have"),
        ("NOLOGIN", "The role {} may not log in"),
        (
            "LOGIN VALID UNTIL '2000-01-01'",
            'The server refuses the password: password authentication failed for user "{}"',
        ),
    ],
)
def test_a_role_that_is_not_let_in(server, execute, driver, options, what):
    name, role = named_for(driver, options.partition(" ")[2] or "nologin")
    name, role = (text.replace("'", "") for text in (name, role))
    execute(f"CREATE ROLE {role} {options} PASSWORD '{SECRET}'")
    url = server.url_for(driver).set(username=name)
    finding = first(diagnose(url))

    assert finding.what == what.format(name)
    assert stands_for(finding, url)
    if "VALID" in options:
        execute(f"ALTER ROLE {role} VALID UNTIL 'infinity'")
        assert f"ALTER ROLE {role} VALID UNTIL 'infinity'" in finding.fix
    else:
        execute(sql_of(finding))
    assert is_let_in(url)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(
    ("flaw", "what"),
    [
        (
            "ALTER DATABASE {} CONNECTION LIMIT 0",
            "The database {} has all connections that it may have",
        ),
        ("ALTER DATABASE {} ALLOW_CONNECTIONS false", "The database {} takes no connections"),
        (
            "REVOKE CONNECT ON DATABASE {} FROM PUBLIC",
            "The role guest may not connect to the database {}",
        ),
    ],
)
def test_a_database_that_lets_no_client_in(server, execute, driver, flaw, what):
    name, database = named_for(driver, flaw.split("}")[1].strip())
    execute(f"CREATE DATABASE {database}")
    execute("DROP ROLE IF EXISTS guest")
    execute(f"CREATE ROLE guest LOGIN PASSWORD '{SECRET}'")
    execute(flaw.format(database))
    url = server.url_for(driver).set(username="guest", database=name)
    finding = first(diagnose(url))

    assert finding.what == what.format(name)
    assert stands_for(finding, url)
    execute(sql_of(finding))
    assert is_let_in(url)
    execute(f"DROP DATABASE {database} WITH (FORCE)")


def test_a_role_that_does_not_exist(postgres_binaries):
    with MarkedPostgres() as trusting:  # one that asks for a password does not say so
        url = trusting.url.set(username="stranger")
        finding = first(diagnose(url))

        assert finding.what == "There is no role stranger"
        assert stands_for(finding, url)


def test_a_url_without_a_password(server):
    url = URL.create(**{**server.url._asdict(), "password": None})
    finding = first(diagnose(url))

    assert finding.what == "The server asks for a password, and the URL has none"
    assert stands_for(finding, url)


@pytest.mark.parametrize("password", ["stranger", "x", "role", "exist", "does not"])
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_password_that_is_a_word_of_the_message(postgres, driver, password):
    url = postgres.url_for(driver).set(username="stranger", password=password, database="postgres")
    finding = first(diagnose(url))

    assert finding.what == "There is no role stranger"
    assert finding.literal == ('role "stranger" does not exist',)


# pg_hba.conf


@pytest.fixture
def with_tls(postgres_binaries):
    """A server that speaks TLS; gives it, once pg_hba.conf has nothing but a line."""
    with MarkedPostgres(password=SECRET) as server:
        need("TLS", server)
        connection = psycopg2.connect(conninfo(server.url))
        connection.autocommit = True
        cursor = connection.cursor()

        def copy(text, setting, folder=""):
            cursor.execute("SELECT current_setting(%s)", (setting,))
            path = cursor.fetchone()[0] + folder
            lines = ", ".join(f"('{line}')" for line in text.splitlines())
            cursor.execute(f"COPY (VALUES {lines}) TO PROGRAM 'umask 077 && cat > {path}'")

        copy(KEY, "data_directory", "/server.key")
        copy(GOOD, "data_directory", "/server.crt")
        cursor.execute("ALTER SYSTEM SET ssl = on")

        def set_up(line):
            copy(line, "hba_file")
            cursor.execute("SELECT pg_reload_conf()")
            return server

        yield set_up
        connection.close()


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(
    ("line", "mode", "code", "fix"),
    [
        ("hostssl", "disable", "tls-demanded", "require"),
        ("hostnossl", "require", "tls-refused", "disable"),
    ],
)
def test_a_server_that_is_particular_about_tls(with_tls, driver, line, mode, code, fix):
    server = with_tls(f"{line} all all all scram-sha-256")
    url = server.url_for(driver).update_query_dict({"sslmode": mode})
    wait_until(lambda: code in codes(diagnose(url)))  # the postmaster reads the file by and by
    finding = first(diagnose(url))

    assert finding.code == code
    assert f"sslmode={mode}" in finding.what
    assert stands_for(finding, url)
    assert finding.fix.startswith(f"Set sslmode={fix} in the URL")
    assert codes(diagnose(url.update_query_dict({"sslmode": fix}))) == []


@pytest.mark.parametrize("mode", ["disable", "require", "prefer"])
def test_a_server_without_a_line_for_the_client(with_tls, mode):
    server = with_tls("hostssl all other all scram-sha-256")
    url = server.url.update_query_dict({"sslmode": mode})
    wait_until(lambda: "hba" in codes(diagnose(url)))
    finding = first(diagnose(url))

    assert finding.what.startswith(
        "pg_hba.conf does not admit user postgres to database postgres from here: no pg_hba.conf "
        'entry for host "127.0.0.1", user "postgres", database "postgres", '
    )
    assert 'host "postgres" "postgres" 127.0.0.1/32 scram-sha-256' in finding.fix


# Certificates


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(
    ("certificate", "code", "what"),
    [
        (
            EXPIRED,
            "certificate-expired",
            "The certificate of the server expired on Jan  1 00:00:00 2021 GMT",
        ),
        (
            NOT_YET_VALID,
            "certificate-not-yet-valid",
            "The certificate of the server is valid only from Jan  1 00:00:00 2100 GMT on",
        ),
        (
            FOR_LOCALHOST,
            "certificate-host",
            "The certificate of the server is for localhost, db.internal, and the URL has the host "
            "127.0.0.1",
        ),
    ],
)
def test_a_certificate_that_is_not_accepted(encrypted, tmp_path, driver, certificate, code, what):
    (tmp_path / "root.crt").write_text(ROOT)
    mode = {"sslmode": "verify-full", "sslrootcert": str(tmp_path / "root.crt")}
    url = encrypted(KEY + certificate).set(drivername=f"postgresql+{driver}")
    finding = first(diagnose(url.update_query_dict(mode)))

    assert (finding.code, finding.what) == (code, what)
    assert stands_for(finding, url.update_query_dict(mode))
    good = encrypted(KEY + GOOD).set(drivername=f"postgresql+{driver}")
    assert codes(diagnose(good.update_query_dict(mode))) == []


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_certificate_for_another_host_is_verified_by_its_root(encrypted, tmp_path, driver):
    (tmp_path / "root.crt").write_text(ROOT)
    mode = {"sslmode": "verify-ca", "sslrootcert": str(tmp_path / "root.crt")}
    url = encrypted(KEY + FOR_LOCALHOST).set(drivername=f"postgresql+{driver}")

    assert codes(diagnose(url.update_query_dict(mode))) == []


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_root_certificate_that_is_not_there(encrypted, tmp_path, driver, content):
    path = tmp_path / "root.crt"
    if content is not None:
        path.write_text(content)
    mode = {"sslmode": "verify-full", "sslrootcert": str(path)}
    url = encrypted(KEY + GOOD).set(drivername=f"postgresql+{driver}").update_query_dict(mode)
    finding = first(diagnose(url))

    assert finding.what == f"There is no root certificate in {path}"
    path.write_text(ROOT)
    assert codes(diagnose(url)) == []


# PgBouncer


def console(url):
    """Return the cursor of PgBouncer's console."""
    plain = url.set(drivername="postgresql", database="pgbouncer")
    connection = psycopg2.connect(in_text(plain))
    connection.autocommit = True
    return connection.cursor()


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_database_that_the_pooler_has_disabled(pgbouncer, driver):
    url = pgbouncer(databases={"shop": "dbname=postgres"}, admin_users="postgres")
    url = url.set(drivername=f"postgresql+{driver}", database="shop")
    console(url).execute("DISABLE shop")
    finding = first(diagnose(url))

    assert finding.what == "The pooler has the database shop disabled"
    assert stands_for(finding, url)
    console(url).execute(sql_of(finding))
    assert codes(diagnose(url)) == []


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_database_that_the_pooler_does_not_have(pgbouncer, driver):
    url = pgbouncer(databases={"shop": "dbname=postgres"})
    url = url.set(drivername=f"postgresql+{driver}", database="stop")
    finding = first(diagnose(url))

    assert finding.what == "The pooler has no database stop"
    assert stands_for(finding, url)
    assert codes(diagnose(url.set(database="shop"))) == []


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("part", ["username", "password"])
def test_a_user_that_the_pooler_does_not_let_in(pgbouncer, driver, part):
    right = pgbouncer().set(drivername=f"postgresql+{driver}")
    wrong = right.set(**{part: f"wrong-{SECRET}" if part == "password" else "stranger"})
    finding = first(diagnose(wrong))

    assert finding.code == "pooler-password"
    assert stands_for(finding, wrong)
    assert codes(diagnose(right)) == []


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_pooler_that_is_full(pgbouncer, driver):
    url = pgbouncer(max_client_conn=1, admin_users="postgres").set(
        drivername=f"postgresql+{driver}"
    )
    plain = conninfo(url)
    first_client = psycopg2.connect(plain)
    finding = first(diagnose(url))

    assert finding.what == (
        "The pooler accepts no further client: no more connections allowed (max_client_conn)"
    )
    assert stands_for(finding, url)
    first_client.close()


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_pooler_that_demands_tls(pgbouncer, driver):
    url = pgbouncer(
        files={"server.key": KEY, "server.crt": GOOD},
        client_tls_sslmode="require",
        client_tls_key_file="server.key",
        client_tls_cert_file="server.crt",
    ).set(drivername=f"postgresql+{driver}")
    plain = url.update_query_dict({"sslmode": "disable"})
    finding = first(diagnose(plain))

    assert finding.code == "tls-demanded"
    assert stands_for(finding, plain)
    assert codes(diagnose(url.update_query_dict({"sslmode": "require"}))) == []


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_pooler_whose_server_is_away(pgbouncer, driver):
    url = pgbouncer(databases={"shop": "port=1"}, client_login_timeout=1).set(
        drivername=f"postgresql+{driver}", database="shop"
    )
    finding = first(diagnose(url))

    assert finding.code == "pooler-waits"
    assert stands_for(finding, url)
