"""What is shown of a URL."""

import pytest
import sqlalchemy
from marked import MARK
from sqlalchemy import URL, make_url

from sa_railway.config.masking import masked
from sa_railway.engine.state import engine_name

SHOWN = [
    (f"postgresql://u:{MARK}@h/d", "postgresql://u:***@h/d"),
    ("postgresql://u@h/d?sslmode=require", "postgresql://u@h/d?sslmode=require"),
    (f"postgresql://h/d?user=u&password={MARK}", "postgresql://h/d?password=***&user=u"),
    (f"postgresql://h/d?password={MARK}&password={MARK}", "postgresql://h/d?password=***"),
    (f"postgresql://u@h/d?sslpassword={MARK}", "postgresql://u@h/d?sslpassword=***"),
    (f"postgresql://u@h/d?SSLPASSWORD={MARK}", "postgresql://u@h/d?SSLPASSWORD=***"),
    (f"mysql://u@h/d?passwd={MARK}", "mysql://u@h/d?passwd=***"),
    (f"postgresql://h/d?oauth_client_secret={MARK}", "postgresql://h/d?oauth_client_secret=***"),
    (
        f"snowflake://h/d?private_key={MARK}&apikey={MARK}",
        "snowflake://h/d?apikey=***&private_key=***",
    ),
    (f"bigquery://h/d?credentials_base64={MARK}", "bigquery://h/d?credentials_base64=***"),
    (
        f"mssql+pyodbc://?odbc_connect=UID%3Du%3BPWD%3D{MARK}%3BAPP%3Da",
        "mssql+pyodbc://?odbc_connect=UID%3Du%3BPWD%3D***%3BAPP%3Da",
    ),
    ("postgresql://u@h/d?sslkey=/run/key", "postgresql://u@h/d?sslkey=%2Frun%2Fkey"),
    ("postgresql://h/d?passfile=/run/pgpass", "postgresql://h/d?passfile=%2Frun%2Fpgpass"),
    (
        f"postgresql+asyncpg://u@h/d?dsn=postgresql://?sslpassword={MARK}%26sslkey=k",
        "postgresql+asyncpg://u@h/d?dsn=postgresql%3A%2F%2F%3Fsslpassword%3D***%26sslkey%3Dk",
    ),
    ("sqlite:////srv/me@home/app.db", "sqlite:////srv/me@home/app.db"),
    ("postgresql://u@h/me@home", "postgresql://u@h/me@home"),
    # an "@" in the password, and so a part of it in the host, or in the database
    (f"postgresql://u:p@{MARK}@h/d", "postgresql://***"),
    (f"postgresql://u:p@x/{MARK}@h/d", "postgresql://***"),
    (f"postgresql:///u:{MARK}@h", "postgresql://***"),
    ("postgresql:///me@home", "postgresql:///me@home"),
]


@pytest.mark.parametrize(("url", "shown"), SHOWN, ids=[shown for _, shown in SHOWN])
def test_what_is_secret_is_masked(url, shown):
    assert masked(make_url(url)).replace("%40", "@") == shown


# a search that begins again at each character would take minutes for these
LONG = [
    pytest.param("passw" * 100_000, "passw" * 100_000, id="names without a value"),
    pytest.param("a" * 500_000, "a" * 500_000, id="one word"),
    pytest.param("token&" * 100_000, "token&" * 100_000, id="parameters without a value"),
    pytest.param("a=" * 200_000, "a=" * 200_000, id="equals signs"),
    pytest.param(f"password={MARK}=" * 50_000, "password=***", id="secrets"),
    pytest.param(f"&secret={MARK}" * 50_000, "&secret=***" * 50_000, id="parameters"),
]


@pytest.mark.parametrize(("given", "shown"), LONG)
def test_a_long_value_is_masked_in_one_pass(given, shown):
    url = URL.create("postgresql+asyncpg", host="h", query={"dsn": given})

    assert dict(make_url(masked(url)).query) == {"dsn": shown}


def test_an_engine_is_called_by_its_masked_url():
    engine = sqlalchemy.create_engine(f"postgresql://u:{MARK}@h/d?sslpassword={MARK}")

    assert engine_name(engine) == f"{engine.url.drivername}://u:***@h/d?sslpassword=***"
