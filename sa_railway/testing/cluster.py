"""A database cluster in its own folder: created, owned by a user other than root, and removed.

PostgreSQL refuses to run as root. For root, the cluster therefore belongs to the user ``nobody``,
and so do the processes that work on it.
"""

from __future__ import annotations

import functools
import os
import pwd
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sa_railway.exc import RailwayError
from sa_railway.testing.binaries import copy_binaries, find_binaries

# Waits for a line, or for the end of its input, which comes when the process that holds the other
# end is dead, however it died.
_GUARD = """
read -r line
read -r postmaster <"$1/data/postmaster.pid" &&
    kill -QUIT "$postmaster" && kill -CONT "$postmaster" && sleep 1
rm -rf "$1"
"""


class TemporaryPostgresError(RailwayError):
    """A throwaway server did not do as it was told; with the end of its log where there is one."""


class Cluster:
    """An empty cluster with the superuser ``postgres``; ``remove()`` it, or the process's end will.

    Args:
        password: of the superuser, which then needs it (SCRAM); None lets every client in.

    Raises:
        PostgresNotFoundError: this machine has no PostgreSQL.
        TemporaryPostgresError: ``initdb`` fails; with what it said.
    """

    def __init__(self, password: str | None) -> None:
        self._account = _account()
        binaries = find_binaries()
        # root's TMPDIR may lie where no other user can go
        parent = "/tmp" if self._account else None  # noqa: S108 - mkdtemp() is safe there
        self._folder = Path(tempfile.mkdtemp(prefix="sa-railway-", dir=parent))
        self._give_away(self._folder)
        self._guard = self._popen(
            "sh", "-c", _GUARD, "sa-railway-guard", self._folder, stdin=subprocess.PIPE
        )
        try:
            self._binaries = self._usable(binaries)
            self._initialise(password)
        except BaseException:
            self.remove()
            raise

    def spawn(self, settings: Mapping[str, object]) -> subprocess.Popen[bytes]:
        """Start a postmaster with *settings* and return at once; its log begins again."""
        options = [word for item in settings.items() for word in ("-c", f"{item[0]}={item[1]}")]
        with self._log.open("wb") as log:
            return self._popen(
                self._binaries / "postgres", "-D", self._data, *options, stdout=log, stderr=log
            )

    def is_ready(self, pid: int) -> bool:
        """Return whether the postmaster *pid* accepts connections.

        It says so in its own file, so no other server that has its port can be taken for it.
        """
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def log(self) -> str:
        """Return what the last postmaster has logged."""
        return self._log.read_text(errors="replace")

    def remove(self) -> None:
        """Remove the folder, and end a server that still runs in it. To be called once."""
        # not by the end of input alone: a forked child may hold it open, too
        self._guard.communicate(b"\n")

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    @property
    def _log(self) -> Path:
        return self._folder / "server.log"

    def _popen(self, *command: str | Path, **streams: Any) -> subprocess.Popen[bytes]:
        """Start a program as the owner of the cluster, out of reach of the terminal's Ctrl-C."""
        quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        return subprocess.Popen(  # noqa: S603 - the programs of PostgreSQL and our guard
            command,
            cwd="/",  # the owner may not be allowed into the present folder
            env=_environment(),
            start_new_session=True,
            **{**quiet, **self._account, **streams},
        )

    def _give_away(self, path: Path) -> None:
        if self._account:
            os.chown(path, self._account["user"], self._account["group"])

    def _usable(self, binaries: Path) -> Path:
        """Return *binaries*, or a copy if they lie where the owner of the cluster may not go."""
        try:
            self._popen(binaries / "postgres", "--version").wait()
        except PermissionError:
            copy = self._folder / "programs"
            binaries = copy_binaries(binaries, copy)
            for path in (copy, *copy.rglob("*")):
                self._give_away(path)
        return binaries

    def _initialise(self, password: str | None) -> None:
        options = ["--username=postgres", "--encoding=UTF8", "--no-locale", "--no-sync"]
        secret = self._folder / "password"
        if password is None:
            options.append("--auth=trust")
        else:
            secret.touch(mode=0o600)
            secret.write_text(password)
            self._give_away(secret)
            options += ["--auth=scram-sha-256", f"--pwfile={secret}"]
        initdb = self._popen(
            self._binaries / "initdb",
            f"--pgdata={self._data}",
            *options,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        output = initdb.communicate()[0].decode(errors="replace")
        secret.unlink(missing_ok=True)
        if initdb.returncode != 0:
            raise TemporaryPostgresError(f"initdb failed:\n{output}")


@functools.cache
def _account() -> Mapping[str, Any]:
    """Whom the cluster belongs to, as arguments of ``Popen``; nothing means: to us."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _environment() -> dict[str, str]:
    """The environment without libpq's variables; in C, because log messages are looked into."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**kept, "LC_ALL": "C"}
