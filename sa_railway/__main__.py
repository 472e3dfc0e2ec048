"""``python -m sa_railway`` is ``sa-railway``, where the command is not on the path."""

import sys

from sa_railway.cli import main

if __name__ == "__main__":
    sys.exit(main())
