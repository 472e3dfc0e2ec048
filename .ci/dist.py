"""Build the distributions twice, compare them byte for byte, and try the wheel by itself.

    python .ci/dist.py DIRECTORY

DIRECTORY gets the wheel and the source distribution; what it holds is removed before.
"""

from __future__ import annotations

import filecmp
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
SMOKE = """
import sa_railway, sqlalchemy
with sa_railway.create_engine("sqlite://").connect() as connection:
    assert connection.scalar(sqlalchemy.text("SELECT 1")) == 1
assert sa_railway.create_engine("postgresql://host/name").dialect.driver == "psycopg2"
print("the wheel works:", sa_railway.__version__, sa_railway.__file__)
"""


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    subprocess.run([str(part) for part in command], check=True, cwd=cwd)


def build(target: Path) -> list[Path]:
    """Build both distributions into *target*; the wheel is made from the source distribution."""
    run(sys.executable, "-m", "build", "--outdir", target, ROOT)
    return sorted(target.iterdir())


def main() -> None:
    target = Path(sys.argv[1]).resolve()
    shutil.rmtree(target, ignore_errors=True)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        built, again = build(target), build(scratch / "again")
        names = [path.name for path in built]
        _, different, missing = filecmp.cmpfiles(target, scratch / "again", names, shallow=False)
        if different or missing or len(built) != len(again):
            raise SystemExit(f"two builds differ: {different or missing or again}")
        run(sys.executable, "-m", "twine", "check", "--strict", *built)

        venv.create(scratch / "venv", with_pip=True)
        python = scratch / "venv" / "bin" / "python"
        (wheel,) = target.glob("*.whl")
        run(python, "-m", "pip", "install", "-q", wheel)
        run(python, "-c", SMOKE, cwd=scratch)
        run(python, "-m", "sa_railway", "--version", cwd=scratch)
    print(f"built twice, the same bytes: {', '.join(names)}")


if __name__ == "__main__":
    main()
