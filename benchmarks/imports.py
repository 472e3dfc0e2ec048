"""What ``import sa_railway`` adds to ``import sqlalchemy``, in fresh interpreters.

python benchmarks/imports.py [--rounds 15]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

PROGRAM = """
import time, sqlalchemy
started = time.perf_counter()
import sa_railway
print(time.perf_counter() - started)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    times = [
        float(
            subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True).stdout
        )
        for _ in range(rounds)
    ]
    median, worst = statistics.median(times) * 1e3, max(times) * 1e3
    print(f"import sa_railway after sqlalchemy: median {median:.1f} ms, worst {worst:.1f} ms")


if __name__ == "__main__":
    main()
