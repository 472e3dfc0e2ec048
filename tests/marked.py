"""The mark in the passwords of the tests, and servers whose URLs hold it."""

from __future__ import annotations

from sqlalchemy import URL

from sa_railway.testing import TemporaryPostgres

# Letters and digits only, so that it is the same quoted, escaped, percent-encoded and as bytes.
# Tests build it into what they write, for a traceback shows the line of a program as it stands.
MARK = "".join(["Marked", "Password", "7"])


def in_text(url: URL) -> str:
    """Return *url* with its password."""
    return url.render_as_string(hide_password=False)


def conninfo(url: URL) -> str:
    """Return *url* as libpq and its drivers take it."""
    return in_text(url.set(drivername="postgresql"))


class MarkedPostgres(TemporaryPostgres):
    """A server that lets everybody in, as that is faster, and has a password in its URLs."""

    def url_for(self, driver: str) -> URL:
        url = super().url_for(driver)
        return url if url.password else url.set(password=MARK)
