"""What ``import sa_railway`` adds to ``import sqlalchemy``, in fresh interpreters.

    python benchmarks/imports.py [--rounds 15]

The modules are compiled beforehand, as they are where the package is installed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile

PROGRAM = """
import time, sqlalchemy
started = time.perf_counter()
import sa_railway
print(time.perf_counter() - started)
"""


def measure(folder: str) -> float:
    """Return the seconds of one import, with compiled modules in *folder*."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, "-c", PROGRAM]
    run = subprocess.run(command, env=environment, capture_output=True, check=True)
    return float(run.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        measure(folder)  # compiles
        times = [measure(folder) for _ in range(rounds)]
    median, worst = statistics.median(times) * 1e3, max(times) * 1e3
    print(f"import sa_railway after sqlalchemy: median {median:.1f} ms, worst {worst:.1f} ms")


if __name__ == "__main__":
    main()
