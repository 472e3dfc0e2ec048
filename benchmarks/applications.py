"""Real applications, plain and with the plugin: what fails, and which rows are lost.

    python benchmarks/applications.py [NAME ...] [--json]

Each application of benchmarks/applications/ does the same on both sides, at the same time, each on
its own server or file. The plain side has ``pool_pre_ping``, where the application lets you
say so. Connections that end in the middle of a transaction cost either side that transaction.

The exit status is 1 if anything is worse with the plugin. `make applications` installs what they
need.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_suffix("")
NAMES = sorted(path.stem for path in FOLDER.glob("*_*.py"))
SECONDS = 600  # for one side of one application
COLUMNS = ("tried", "failed", "lost")
# what the shell may say about another database, and what would change the plugin
FOREIGN = ("DATABASE_URL", "PG", "RAILWAY_", "SA_RAILWAY_", "MLFLOW_")

Side = dict[str, Any]  # a Report of side.py


def run_side(name: str, side: str) -> Side:
    """Run one side of the application *name* and return its report."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
    process = subprocess.Popen(
        [sys.executable, str(FOLDER / f"{name}.py"), side],
        env={**kept, "DO_NOT_TRACK": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=SECONDS)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)  # with the workers that it has started
        raise
    if process.returncode:
        raise SystemExit(f"{name}, {side}, did not run:\n{errors}")
    report: Side = json.loads(output.splitlines()[-1])
    return {**report, "failed": sum(report["failures"].values()), "lost_rows": report["lost"]} | {
        "lost": len(report["lost"])
    }


def compare(name: str) -> dict[str, Any]:
    """Run both sides of the application *name*."""
    with ThreadPoolExecutor(2) as pool:
        plain, ours = pool.map(run_side, (name, name), ("plain", "plugin"))
    worse = any(ours[column] > plain[column] for column in ("failed", "lost"))
    return {"application": name, "did": ours["did"], "plain": plain, "with": ours, "worse": worse}


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as a table, and below it what went wrong with the plugin."""
    titles = "".join(f"{title:>8}" for title in COLUMNS)
    lines = [f"{'':<78}{'plain':>24}{'with the plugin':>24}", f"{'':<78}{titles}{titles}"]
    details = []
    for result in results:
        sides = [result["plain"], result["with"]]
        numbers = "".join(f"{side[column]:>8}" for side in sides for column in COLUMNS)
        worse = "  worse" if result["worse"] else ""
        lines.append(f"{result['application']:<18}{result['did']:<60}{numbers}{worse}")
        wrong = [f"{count} x {text}" for text, count in result["with"]["failures"].items()]
        wrong += [f"lost: {text}" for text in result["with"]["lost_rows"][:10]]
        details += [f"{result['application']}, with the plugin: {text}" for text in wrong]
    return "\n".join([*lines, "", *details])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(NAMES)}")
    parser.add_argument("--json", action="store_true", help="print one object per application")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(
            f"there is no application {', '.join(sorted(unknown))}; there are: {', '.join(NAMES)}"
        )
    results = []
    for name in options.names or NAMES:
        print(f"==> {name}", file=sys.stderr, flush=True)
        results.append(compare(name))
        if options.json:
            print(json.dumps(results[-1]), flush=True)
    if not options.json:
        print(table(results).strip("\n"))
    return int(any(result["worse"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
