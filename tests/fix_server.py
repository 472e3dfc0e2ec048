"""Servers of HTTP, each in a process group by itself."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

from fix_waiting import wait_until


class ServerProcess:
    """What does not depend on how it is started: a subclass does that, and names its log."""

    process: subprocess.Popen[Any]
    log: Path

    def text(self) -> str:
        """Return what is in the log."""
        return self.log.read_text() if self.log.exists() else ""

    def gunicorn_port(self) -> int:
        """Return the port of a Gunicorn that was to choose one, as soon as it listens."""
        return int(wait_until(self._listening)[1])

    def _listening(self) -> re.Match[str] | None:
        if self.process.poll() is not None:
            raise AssertionError(self.text())
        return re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", self.text())

    def close(self) -> None:
        """Kill all of its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
