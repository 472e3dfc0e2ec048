"""The matrix: every Python that this machine has, with every SQLAlchemy that is supported.

``nox`` runs all of it, ``nox -p 3.12 -- tests/unit`` one row with arguments for pytest.
"""

import nox

nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = False


@nox.session(python=["3.11", "3.12", "3.13"])
@nox.parametrize("sqlalchemy", ["2.0", "2.1"])
def tests(session: nox.Session, sqlalchemy: str) -> None:
    session.install("--editable", ".", "--group", "tests", f"SQLAlchemy=={sqlalchemy}.*")
    session.run("python", "tests/ensure_postgres.py")
    session.run("pytest", *session.posargs)


@nox.session(python="3.11")
def lowest(session: nox.Session) -> None:
    """Run the tests on the lowest versions that are allowed of all dependencies."""
    session.install("--editable", ".", "--group", "tests", "--constraint", "tests/lowest.txt")
    session.run("python", "tests/ensure_postgres.py")
    session.run("pytest", *(session.posargs or ("tests/unit", "tests/integration", "tests/chaos")))
