"""Whether the database holds the tables that are needed, and lets the role use them."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import Connection, text

from sa_railway.commit.marker_schema import TABLE, describe
from sa_railway.doctor.case import Case, NotRunError, Seen
from sa_railway.doctor.checks.quoting import quoted, user_of
from sa_railway.doctor.findings import Finding, Kind, Severity
from sa_railway.recovery.requirements import SchemaRequirements

TABLES = Kind(
    "tables-missing",
    Severity.ERROR,
    "Not there: <missing>",
    "The migrations have not been run on this database, or have put it into a schema that is not "
    "in the search path; or this is not the database it is taken for.",
    "Run the migrations as pre-deploy command, such as flask db upgrade or alembic upgrade head, "
    "and compare the name of the database.",
    (
        'relation "<table>" does not exist',
        "psycopg2.errors.UndefinedTable",
        "asyncpg.exceptions.UndefinedTableError",
    ),
)
DENIED = Kind(
    "table-denied",
    Severity.ERROR,
    "The role <user> may not <privileges> on <table>",
    "The table is there. It belongs to another role, often that of the migrations, which has not "
    "granted this one its use.",
    "As the owner of the table: <grant>.",
    (
        "permission denied for table <name>",
        "permission denied for schema <schema>",
        "psycopg2.errors.InsufficientPrivilege",
        "asyncpg.exceptions.InsufficientPrivilegeError",
    ),
)
MARKER = Kind(
    "commit-marker",
    Severity.WARNING,
    "commit_marker is on, but <flaw>",
    "Without its row in that table, the outcome of a COMMIT whose answer was lost is proved by the "
    "transaction's id, which cannot tell it after a crash, behind a pooler and on a promoted "
    "standby.",
    "Make it a table that this role can use. <fix>",
    ("commit_marker is on, but there is no table", "commit_marker is on, but the role may not"),
)

_WANTED = ("SELECT", "INSERT", "UPDATE", "DELETE")
_RIGHTS = text(
    "SELECT nspname, relname, relkind::text, has_schema_privilege(n.oid, 'USAGE') AS usage,"
    " ARRAY(SELECT wanted FROM unnest(CAST(:wanted AS text[])) WITH ORDINALITY AS w (wanted, place)"
    " WHERE NOT has_table_privilege(c.oid, wanted) ORDER BY place) AS lacking"
    " FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace"
    " WHERE relname = :name AND relkind IN ('r', 'p', 'v', 'm', 'f') AND"
    " CASE WHEN :schema = '' THEN pg_table_is_visible(c.oid) OR"
    " nspname = ANY(current_schemas(false)) ELSE nspname = :schema END LIMIT 1"
)
_CREATE = "Create it: sa-railway commit-marker --create."
_REPAIR = "sa-railway commit-marker --create makes them."


def check_tables(case: Case) -> Seen:
    """Look for the tables that were asked for, and that of the commit markers if it is used."""
    uses_marker = case.is_postgres and case.profile.commit_marker
    if not case.tables and not uses_marker:
        raise NotRunError("none was asked for (--table)")
    findings = []
    with case.connection() as connection:
        missing = SchemaRequirements(case.tables, None, "").missing(connection)
        if missing:
            first = missing[0].removeprefix("table ")
            findings.append(TABLES.found(missing=", ".join(missing), table=first))
        there = [table for table in case.tables if f"table {table}" not in missing]
        if case.is_postgres:
            findings += [f for table in there for f in _denied(case, connection, table)]
        if uses_marker:
            there.append(TABLE)
            findings += _judge_marker(case, connection)
    return "" if findings else f"there: {', '.join(there)}", findings


def _denied(case: Case, connection: Connection, table: str) -> list[Finding]:
    """Return what the role may not do with *table*; not to write is how a reader is."""
    schema, _, name = table.rpartition(".")
    row = connection.execute(_RIGHTS, {"schema": schema, "name": name, "wanted": list(_WANTED)})
    found = row.first()
    if found is None or (found.usage and not found.lacking):
        return []
    is_blind = not found.usage or "SELECT" in found.lacking
    if found.relkind in "vm" and not is_blind:
        return []
    role, space = quoted(user_of(case)), quoted(found.nspname)
    grants = [] if found.usage else [f"GRANT USAGE ON SCHEMA {space} TO {role}"]
    if found.lacking:
        rights = ", ".join(found.lacking)
        grants.append(f"GRANT {rights} ON {space}.{quoted(found.relname)} TO {role}")
    finding = DENIED.found(
        user=user_of(case),
        table=table,
        name=found.relname,
        schema=found.nspname,
        privileges=", ".join(found.lacking or _WANTED),
        grant="; ".join(grants),
    )
    return [finding if is_blind else replace(finding, severity=Severity.NOTE)]


def _judge_marker(case: Case, connection: Connection) -> list[Finding]:
    state = describe(connection)
    role = quoted(user_of(case))
    if state["table"] is None:
        flaw, fix = f"there is no table {TABLE} in the search path of this role", _CREATE
    elif not state["usable"]:
        flaw = f"the role may not read and write {state['table']}"
        fix = f"As its owner: GRANT {', '.join(_WANTED)} ON {state['table']} TO {role}."
    elif not state["complete"]:
        flaw, fix = f"{state['table']} lacks its first rows", _REPAIR
    else:
        return []
    return [MARKER.found(flaw=flaw, fix=fix)]
