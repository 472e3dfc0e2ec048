"""Show an application with and without the package while its server fails: python examples/demo.

The same application runs three times, each with its own Gunicorn and configuration. All three use
one throwaway PostgreSQL through one proxy and so meet the same faults at the same time, while
requests come in.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

import table
from faults import QUICK, WHOLE, Faults
from load import RATE, WRITE_EVERY, Load, running
from sqlalchemy import Engine, NullPool, text

from sa_railway import create_engine
from sa_railway.testing import ChaosProxy, PostgresNotFoundError, TemporaryPostgres

VARIANTS = {
    "plain": "Flask-SQLAlchemy as it comes",
    "pool_pre_ping": "with the options pool_pre_ping=True and pool_recycle=300",
    "sa_railway": "with engine_options(), Railway(app, db), and the hooks for Gunicorn",
}
INTRODUCTION = f"""\
One small Flask application, three times, each under a Gunicorn with 2 workers:

{"".join(f"  {variant:<15}{text}" + chr(10) for variant, text in VARIANTS.items())}
All use the same PostgreSQL server. Each is sent {RATE} requests a second,
one in {WRITE_EVERY} of them a write.
"""
MISSING = (
    "the application of the demonstration needs Flask and Gunicorn: "
    'pip install "sa-railway[flask,gunicorn]"'
)


def main() -> int:
    """Show what the failures of a server do to an application, without and with the package.

    Where there is no PostgreSQL to start, this shows the application on SQLite.

    Returns:
        the exit status.

    Raises:
        RuntimeError: an application does not answer; with its log.
    """
    parser = argparse.ArgumentParser(
        prog="python examples/demo",
        description="Run one Flask application with and without the package while its PostgreSQL "
        "is disturbed, and count the requests that fail: with a throwaway server, on this machine "
        "only. It takes about 40 seconds.",
        epilog="exit status: 0 it was shown, 1 it could not be, 2 wrong usage",
    )
    parser.add_argument("--quick", action="store_true", help="less of each fault: 15 seconds")
    parser.add_argument("--json", action="store_true", help="print one JSON object, and no more")
    options = parser.parse_args()
    if not all(map(find_spec, ("flask", "flask_sqlalchemy", "gunicorn"))):
        if options.json:
            print(json.dumps({"error": MISSING}))
        print(f"{parser.prog}: {MISSING}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like a Ctrl-C
    demo = _Demo(
        sys.stderr if options.json else sys.stdout, quick=options.quick, as_json=options.json
    )
    try:
        with tempfile.TemporaryDirectory(prefix="sa-railway-demo-") as folder:
            return 0 if demo.run(Path(folder)) else 1
    except KeyboardInterrupt:
        demo.tell("\nInterrupted; everything is stopped and removed.")
        return 130


class _Demo:
    """One run of it, which tells on *stream* how far it is."""

    def __init__(self, stream: TextIO, *, quick: bool, as_json: bool) -> None:
        self._started = time.monotonic()
        self._plan = QUICK if quick else WHOLE
        self._as_json = as_json
        self.tell = functools.partial(print, file=stream, flush=True)

    def _say(self, line: str) -> None:
        self.tell(f"{time.monotonic() - self._started:5.1f} s  {line}")

    def run(self, folder: Path) -> bool:
        try:
            with TemporaryPostgres() as server, ChaosProxy(server.url) as proxy:
                self._compare(folder, server, proxy)
        except PostgresNotFoundError as error:
            self.tell(error)
            self._show_sqlite(folder)
            return False
        return True

    def _compare(self, folder: Path, server: TemporaryPostgres, proxy: ChaosProxy) -> None:
        """Run all variants through all faults, and print what became of the requests."""
        self.tell(INTRODUCTION)
        self._say("starting the applications")
        admin = create_engine(server.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        faults = Faults(self._plan, server, proxy, admin)
        url = proxy.url.render_as_string(hide_password=False)
        with running(VARIANTS, folder, url) as applications:
            load = Load(applications)
            asyncio.run(faults.strike(load, self._say))
        self._say("done")
        outcome = [step.title for step in faults.steps], load.results, _stored_notes(admin)
        if self._as_json:
            print(json.dumps(table.as_dict(*outcome), indent=2))
        else:
            self.tell("", *table.render(*outcome), sep="\n")

    def _show_sqlite(self, folder: Path) -> None:
        """Run the application without a server, for a few requests."""
        self.tell("\nSo there is no server to break. The application on the SQLite file it uses:\n")
        with running(["sa_railway"], folder) as applications:
            asyncio.run(self._ask_a_little(Load(applications)))

    async def _ask_a_little(self, load: Load) -> None:
        await load.wait_until_ready()
        for method, path, note in (
            ("GET", "/health/ready", None),
            ("POST", "/notes", "A file will do."),
            ("GET", "/notes", None),
        ):
            status, body = await load.applications[0].request(method, path, note)
            self.tell(f"  {method:<5}{path:<15}{status}  {body.strip()}")


def _stored_notes(admin: Engine) -> Counter[str]:
    """Return how often each note is in the database."""
    with admin.connect() as connection:
        rows = connection.execute(text("SELECT text, count(*) FROM note GROUP BY text"))
        return Counter(dict(rows.all()))


if __name__ == "__main__":
    sys.exit(main())
