"""What is shown of a URL."""

import pytest
import sqlalchemy
from marked import MARK
from sqlalchemy import make_url

from sa_railway.config.masking import masked
from sa_railway.engine.naming import engine_name

SHOWN = [
    (f"postgresql://u:{MARK}@h/d", "postgresql://u:***@h/d"),
    ("postgresql://u@h/d?sslmode=require", "postgresql://u@h/d?sslmode=require"),
    (f"postgresql://h/d?user=u&password={MARK}", "postgresql://h/d?password=***&user=u"),
    (f"postgresql://h/d?password={MARK}&password={MARK}", "postgresql://h/d?password=***"),
    (f"postgresql://u@h/d?sslpassword={MARK}", "postgresql://u@h/d?sslpassword=***"),
    (f"postgresql://u@h/d?SSLPASSWORD={MARK}", "postgresql://u@h/d?SSLPASSWORD=***"),
    (f"mysql://u@h/d?passwd={MARK}", "mysql://u@h/d?passwd=***"),
    (f"postgresql://h/d?oauth_client_secret={MARK}", "postgresql://h/d?oauth_client_secret=***"),
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
]


@pytest.mark.parametrize(("url", "shown"), SHOWN, ids=[shown for _, shown in SHOWN])
def test_what_is_secret_is_masked(url, shown):
    assert masked(make_url(url)).replace("%40", "@") == shown


def test_an_engine_is_called_by_its_masked_url():
    engine = sqlalchemy.create_engine(f"postgresql://u:{MARK}@h/d?sslpassword={MARK}")

    assert engine_name(engine) == f"{engine.url.drivername}://u:***@h/d?sslpassword=***"
