"""What the doctor says, as far as it needs no server; and its page in the documentation.

``python tests/unit/test_doctor_report.py`` writes the findings of the page again.
"""

import errno
import io
import json
import re
import socket
import textwrap
import threading
from pathlib import Path
from urllib.parse import quote

import jsonschema
import pytest
from marked import MARK
from rich.console import Console
from sqlalchemy import URL, make_url

from sa_railway import database_url, exc
from sa_railway.commit import resolver
from sa_railway.config.url import VARIABLES
from sa_railway.doctor import sources
from sa_railway.doctor.case import Address, Case, NotRunError
from sa_railway.doctor.checks import CHECKS, KINDS, configuration, names, network, server
from sa_railway.doctor.examine import examine
from sa_railway.doctor.explanation import find_kinds
from sa_railway.doctor.findings import Diagnosis, Kind, Outcome, Result, Severity
from sa_railway.doctor.redaction import redacted
from sa_railway.doctor.screen import show
from sa_railway.doctor.text import more, render, render_kinds, render_pairs

DOCS = Path(__file__).parents[2] / "docs"
SCHEMA = json.loads((DOCS / "doctor.schema.json").read_text())
BEGIN, END = "<!-- findings -->\n", "<!-- /findings -->\n"


def section(kind):
    """The section of the page on one kind of findings."""
    texts = "".join(f"{text}\n" for text in kind.literal)
    paragraphs = [
        f"**{shown(kind.what)}** ({kind.severity})",
        f"```text\n{texts}```" if texts else "",
        shown(kind.why),
        f"*Fix:* {shown(kind.fix)}",
    ]
    filled = [p if p.startswith("```") else fill(p) for p in paragraphs if p]
    return "\n\n".join([f"### `{kind.code}`", *filled]) + "\n"


def shown(text):
    """Show what stands for a value as code: Markdown would take it for HTML."""
    return re.sub(r"<(\w+)>", r"`<\1>`", text)


def fill(text):
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def written():
    return "\n".join(section(kind) for kind in KINDS)


def test_every_finding_is_documented_as_it_is():
    page = (DOCS / "doctor.md").read_text()

    assert page.split(BEGIN)[1].split(END)[0] == "\n" + written() + "\n"


def test_every_check_is_documented():
    page = (DOCS / "doctor.md").read_text()

    assert re.findall(r"^\| (\S[^|]*?) +\|", page, re.MULTILINE)[1:] == [c.title for c in CHECKS]


def test_codes_are_unique():
    assert len({kind.code for kind in KINDS}) == len(KINDS)


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


# The URL


@pytest.mark.parametrize("unpooled", [False, True])
def test_sources_are_looked_up_in_the_order_of_database_url(unpooled):
    hosts = {name: name.lower() for name in VARIABLES}
    environ = {name: f"postgresql://{host}/db" for name, host in hosts.items()}
    environ["PGHOST"] = hosts["PGHOST"]
    while hosts.keys() - {"DATABASE_UNPOOLED_URL"} or (unpooled and hosts):
        found = sources.look_up(environ, unpooled=unpooled)
        url = found[-1].url
        assert url is not None
        assert url.host == database_url(environ=environ, unpooled=unpooled).host
        assert len(found) == 1
        del environ[found[-1].name], hosts[found[-1].name]

    assert sources.look_up(environ, unpooled=unpooled) == []


def test_flaws_are_those_of_database_url():
    environ = {"DATABASE_URL": "", "PGHOST": "'x", "DATABASE_PUBLIC_URL": "postgresql://@:/db"}
    found = sources.look_up(environ)
    with pytest.raises(exc.ConfigurationError) as caught:
        database_url(environ=environ)

    assert "; ".join(source.flaw for source in found) == str(caught.value)


def test_the_description_of_sources():
    environ = {
        "DATABASE_URL": "${{Postgres.DATABASE_URL}}",
        "DATABASE_PUBLIC_URL": f"postgresql://postgres:{MARK}@roundhouse.proxy.rlwy.net:15140/db",
    }
    text = render_pairs(sources.describe(sources.look_up(environ)))

    assert text == textwrap.dedent("""\
        used         DATABASE_PUBLIC_URL
        URL          postgresql+psycopg2://postgres:***@roundhouse.proxy.rlwy.net:15140/db
        network      Railway's TCP proxy; what passes it is billed
        passed over  DATABASE_URL holds a reference that was not resolved: Railway
                     resolves ${{...}} in the variables of a service only, and only if
                     the service and the variable exist; on Railway, set
                     DATABASE_URL=${{Postgres.DATABASE_URL}} on this service, with the
                     name of your PostgreSQL service for Postgres""")


@pytest.mark.parametrize(
    ("url", "codes"),
    [
        ("postgresql://u:p@roundhouse.proxy.rlwy.net:15140/db", ["public-from-railway"]),
        ("postgresql://u:p@postgres.railway.internal/db", []),
    ],
)
def test_the_tcp_proxy_from_within_railway(monkeypatch, url, codes):
    monkeypatch.setenv("RAILWAY_SERVICE_ID", "1")
    _, findings = configuration.check_url(Case(url))

    assert [finding.code for finding in findings] == codes


# The network


def fail_to_connect(monkeypatch, errors):
    def connect(address, seconds):
        raise errors[address.ip]

    monkeypatch.setattr(network, "_connect", connect)
    case = Case(make_url("postgresql://h/d"))
    case.addresses = [Address("h", 5432, ip) for ip in errors]
    return network.check_tcp(case)


def test_addresses_of_ipv6_without_a_route(monkeypatch):
    no_route = OSError(errno.ENETUNREACH, "Network is unreachable")
    detail, (finding,) = fail_to_connect(monkeypatch, {"fd12::1": no_route})

    assert detail == "[fd12::1]:5432: Network is unreachable"
    assert finding.code == "unreachable"
    assert finding.what == "This machine has no route to [fd12::1]:5432: Network is unreachable"
    assert finding.why.startswith("The name has addresses of IPv4: none; of IPv6: fd12::1. ")


def test_of_several_errors_the_one_that_says_most_counts(monkeypatch):
    _, (finding,) = fail_to_connect(
        monkeypatch,
        {
            "fd12::1": OSError(errno.ENETUNREACH, "Network is unreachable"),
            "10.0.0.1": TimeoutError("timed out"),
            "10.0.0.2": ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        },
    )

    assert (finding.code, finding.what) == ("refused", "Nothing listens at 10.0.0.2:5432")


def test_a_look_up_that_does_not_end(monkeypatch):
    released = threading.Event()

    def getaddrinfo(*args, **kwargs):
        released.wait()
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    _, (finding,) = names.check_dns(Case(url=make_url("postgresql://h/d"), timeout=0.01))
    released.set()

    assert finding.code == "name-not-found"
    assert "no answer within 0.01 s" in finding.why


def test_a_socket_of_the_file_system(tmp_path):
    case = Case(url=make_url(f"postgresql:///d?host={tmp_path}"), timeout=1)
    detail, findings = names.check_dns(case)
    _, (finding,) = network.check_tcp(case)

    assert (detail, findings) == (f"{tmp_path} is a folder", [])
    assert finding.what == f"Nothing listens at {tmp_path}/.s.PGSQL.5432"


def test_a_url_without_a_host():
    with pytest.raises(NotRunError, match=r"^the URL names no host; the driver takes its default$"):
        names.check_dns(Case(url=make_url("postgresql:///d")))


@pytest.mark.parametrize(
    ("ip", "mode", "offered", "codes"),
    [
        ("8.8.8.8", "disable", True, ["plain-text"]),
        ("8.8.8.8", "prefer", False, ["plain-text"]),
        ("10.0.0.1", "disable", True, []),
        ("fd12::1", "prefer", False, []),
        ("8.8.8.8", "verify-full", False, ["tls-missing"]),
    ],
)
def test_a_connection_without_tls(ip, mode, offered, codes):
    _, findings = network._without_tls(Address("h", 5432, ip), mode, offered=offered)

    assert [finding.code for finding in findings] == codes


# The server


@pytest.mark.parametrize(
    ("version", "number", "code", "what"),
    [
        ("9.6.24", "90624", "old-server", "PostgreSQL 9.6.24 is older than 10"),
        (
            "12.22",
            "120022",
            "unsupported-server",
            "PostgreSQL 12.22 gets no security fixes since November 2024",
        ),
    ],
)
def test_a_server_that_is_too_old(monkeypatch, version, number, code, what):
    class Old:
        def __enter__(self):
            return self

        def __exit__(self, *args):
            pass

        def scalar(self, query):
            return {"SHOW server_version": version, "SHOW server_version_num": number}[str(query)]

    monkeypatch.setattr(Case, "connection", lambda self: Old())
    detail, (finding,) = server.check_version(Case())

    assert detail == f"PostgreSQL {version}"
    assert (finding.code, finding.what) == (code, what)


def test_the_oldest_server_is_that_of_the_resolver():
    assert resolver._FIRST_VERSION == (server._OLDEST,)


# Credentials in messages


@pytest.mark.parametrize("password", ["nobody", "x", "role", "exist", "does", "e", "5432", "FATAL"])
@pytest.mark.parametrize(
    "message",
    [
        'FATAL: role "nobody" does not exist',
        "connection to server at \"h\", port 5432 failed: it isn't there; the host isn't, either",
        "Access denied for user 'nobody'@'h' (using password: YES)",
        "fe_sendauth: no password supplied",
    ],
)
def test_the_words_and_names_of_a_message_are_shown(password, message):
    assert redacted(message, URL.create("postgresql", "nobody", password, "h")) == message


@pytest.mark.parametrize(
    "password", ["word", "x y", "it's", 'a"b', "p@ss:w/rd", "ä%", "back\\slash"]
)
@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("invalid URI: postgresql://joe:{url}@h/d", "invalid URI: postgresql://joe:***@h/d"),
        (
            "invalid dsn: host=h password='{dsn}' user=joe",
            "invalid dsn: host=h password=*** user=joe",
        ),
        ("connect(user='joe', password={repr})", "connect(user='joe', password=***)"),
        ("{{'user': 'joe', 'password': {repr}}}", "{{'user': 'joe', 'password': ***}}"),
        ("PWD={quoted};UID=joe", "PWD=***;UID=joe"),
        ('missing "=" after "{url}" in connection info string', None),
        ("invalid literal for int() with base 10: '{url}@h'", None),
    ],
)
def test_credentials_in_a_message_are_hidden_where_they_stand(password, message, shown):
    forms = {
        "url": quote(password, safe=""),
        "dsn": password.replace("\\", "\\\\").replace("'", "\\'"),
        "repr": repr(password),
        "quoted": '"' + password.replace('"', '\\"') + '"',
    }
    said = redacted(message.format(**forms), URL.create("postgresql", "joe", password, "h"))

    assert said == (shown or message).replace("{url}", "***").replace("{{", "{").replace("}}", "}")


def test_a_password_that_cannot_be_a_word_is_hidden_everywhere():
    url = URL.create("postgresql", "joe", MARK, "h", query={"sslpassword": f"key-{MARK}"})

    assert redacted(f"{MARK} by key-{MARK} of joe", url) == "*** by *** of joe"


def test_a_name_that_is_also_the_password_is_shown():
    url = URL.create("postgresql", "joe2026joe", "joe2026joe", "h")

    assert redacted("no such user: joe2026joe", url) == "no such user: joe2026joe"


# What is known of a finding


@pytest.mark.parametrize(
    ("wanted", "codes"),
    [
        ("over-budget", ["over-budget"]),
        ("the database system is starting up", ["starting"]),
        ('FATAL:  role "joe" does not exist', ["role-missing"]),
        ("IDLE-SESSION timeout", ["idle-session-timeout", "timeout-too-short"]),
        ("no such thing", []),
        ("a", []),
    ],
)
def test_a_finding_is_known_by_its_name_or_an_error(wanted, codes):
    assert sorted(kind.code for kind in find_kinds(wanted)) == codes


def test_every_link_leads_to_an_explanation():
    for kind in KINDS:
        assert find_kinds(more(kind.found()).removeprefix("sa-railway doctor --explain ")) == [kind]


def test_the_text_of_an_explanation():
    assert render_kinds([kind for kind in KINDS if kind.code == "role-missing"], 60) == (
        textwrap.dedent("""\
            role-missing (error): There is no role <user>
               why   The server has no user of this name.
               fix   Correct the user in the URL, or create it: CREATE
                     ROLE <role> LOGIN PASSWORD '...'.
               text  role "<user>" does not exist""")
    )


# The report


NOTE = Kind("a-note", Severity.NOTE, "A note on <thing>", "Why.", "Fix.", ("text",)).found(thing=1)
WARNING = Kind("a-warning", Severity.WARNING, "A warning", "Why.", "Fix.").found()
ERROR = Kind(
    "an-error", Severity.ERROR, "An error", "It is " + "so long " * 10, "Fix.", ("1", "2", "3", "4")
).found()
DIAGNOSIS = Diagnosis(
    "postgresql://h/d",
    (
        Result("URL", Outcome.GOOD, "[red]fine[/red]", (NOTE,)),
        Result("DNS", Outcome.FOUND, "", (WARNING, ERROR)),
        Result("TCP", Outcome.NOT_RUN, "DNS failed"),
        Result("TLS", Outcome.NOT_RUN, "DNS failed"),
    ),
)


def test_the_worst_finding_comes_first():
    assert DIAGNOSIS.findings == (ERROR, WARNING, NOTE)
    assert not DIAGNOSIS.is_healthy
    assert Diagnosis("", (DIAGNOSIS.results[0], *DIAGNOSIS.results[2:])).is_healthy


def test_the_plain_report():
    assert render(DIAGNOSIS, 60) == textwrap.dedent("""\
        good     URL  [red]fine[/red]; see 3
        error    DNS  see 2, 1
        not run  TCP, TLS: DNS failed

        1. error: An error
           why   It is so long so long so long so long so long so
                 long so long so long so long so long
           fix   Fix.
           text  1
           text  2
           text  3
           more  sa-railway doctor --explain an-error

        2. warning: A warning
           why   Why.
           fix   Fix.
           more  sa-railway doctor --explain a-warning

        3. note: A note on 1
           why   Why.
           fix   Fix.
           text  text
           more  sa-railway doctor --explain a-note

        1 error, 1 warning, 1 note; 1 of 4 checks is good, 2 not
        run.""")


def test_the_report_of_a_healthy_database():
    diagnosis = Diagnosis("", (Result("URL", Outcome.GOOD, "fine"),) * 2)

    assert render(diagnosis) == textwrap.dedent("""\
        good     URL  fine
        good     URL  fine

        No problem found; 2 of 2 checks are good.""")


def test_the_report_on_a_terminal():
    file = io.StringIO()
    show(DIAGNOSIS, Console(width=60, file=file, color_system=None))
    lines = file.getvalue().splitlines()

    assert max(len(line) for line in lines) <= 60
    text = " ".join(" ".join(lines).split())
    assert "URL good [red]fine[/red]; see 3" in text
    assert "not run TCP, TLS: DNS failed" in text
    assert "─ 1. error ─" in text
    assert "─ sa-railway doctor --explain an-error ─" in text
    assert text.endswith("1 of 4 checks is good, 2 not run.")


def test_json():
    printed = json.loads(json.dumps(DIAGNOSIS.as_dict()))
    jsonschema.validate(printed, SCHEMA)

    assert printed["healthy"] is False
    assert [finding["code"] for finding in printed["findings"]] == [
        "an-error",
        "a-warning",
        "a-note",
    ]
    assert printed["checks"][1] == {
        "check": "DNS",
        "outcome": "found",
        "detail": "",
        "findings": ["a-warning", "an-error"],
        "seconds": 0.0,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"profile": "wbe"},
            "profile is 'wbe'; allowed: web, worker, script, serverless (did you mean 'web'?)",
        ),
        ({"replicas": 0}, "replicas is 0; allowed: a whole number, 1 or more"),
        ({"extra": -1}, "extra is -1; allowed: a whole number, 0 or more"),
        ({"timeout": 0}, "timeout is 0; allowed: more than 0 seconds"),
        ({"tables": "orders"}, "tables is 'orders'; allowed: a list of names such as ['orders']"),
    ],
)
def test_an_argument_that_cannot_be_used(arguments, message):
    with pytest.raises(exc.ConfigurationError) as caught:
        examine("postgresql://h/d", **arguments)

    assert str(caught.value) == message


if __name__ == "__main__":
    page = (DOCS / "doctor.md").read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    (DOCS / "doctor.md").write_text(f"{before}{BEGIN}\n{written()}\n{END}{after}")
