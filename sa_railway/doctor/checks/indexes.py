"""Whether indexes can be relied on: that they are valid, and in the order of their collation."""

from __future__ import annotations

from sqlalchemy import Connection, text

from sa_railway.doctor.case import Case, Seen
from sa_railway.doctor.checks.quoting import quoted
from sa_railway.doctor.findings import Finding, Kind, Severity

INVALID = Kind(
    "invalid-index",
    Severity.WARNING,
    "<count> invalid: <indexes>",
    "CREATE INDEX CONCURRENTLY or REINDEX CONCURRENTLY did not come to its end: it met "
    "duplicates, a deadlock or a timeout, or the migration was stopped. No query uses such an "
    "index, every write pays for it, and a unique one does not prove that there are no duplicates.",
    "Remove what stood in the way, such as duplicates, then for each: <rebuild>. Or drop it: "
    "<drop>.",
    (
        "could not create unique index",
        'relation "<index>" already exists',
    ),
)
COLLATION = Kind(
    "collation-version",
    Severity.WARNING,
    "<what> has another version of its collation than it was made with: <recorded>, now <actual>",
    "The image of the server was changed, and with it the library that sorts text. Indexes on text "
    "are still in the old order: a search may miss rows, and a unique index may let duplicates in.",
    "<rebuild>",
    (
        'database "<database>" has a collation version mismatch',
        'collation "<collation>" has version mismatch',
        "The database was created using collation version",
    ),
)

_SHOWN = 3  # by name; the others are counted
# one that is being built right now is invalid as well
_INVALID = text(
    "SELECT quote_ident(nspname) || '.' || quote_ident(i.relname) AS name, i.relname AS index,"
    " x.indrelid::regclass::text AS of_table FROM pg_index x"
    " JOIN pg_class i ON i.oid = indexrelid JOIN pg_namespace n ON n.oid = i.relnamespace"
    " WHERE NOT indisvalid AND i.relkind = 'i' AND NOT EXISTS"
    " (SELECT FROM pg_stat_progress_create_index p WHERE p.relid = x.indrelid) ORDER BY 1"
)
# NULL for C and POSIX, which never change
_OF_DATABASE = text(
    "SELECT datcollversion AS recorded, pg_database_collation_actual_version(oid) AS actual"
    " FROM pg_database WHERE datname = current_database()"
)
_OF_COLUMNS = text(
    "SELECT quote_ident(nspname) || '.' || quote_ident(collname) AS name, collversion AS recorded,"
    " pg_collation_actual_version(c.oid) AS actual FROM pg_collation c"
    " JOIN pg_namespace n ON n.oid = collnamespace WHERE collversion IS NOT NULL AND c.oid IN"
    " (SELECT attcollation FROM pg_attribute JOIN pg_class r ON r.oid = attrelid"
    " WHERE r.relkind = 'i' AND r.relnamespace <> 'pg_catalog'::regnamespace) ORDER BY 1"
)
_FIRST_WITH_PROGRESS, _FIRST_WITH_VERSION = 12, 15


def check_indexes(case: Case) -> Seen:
    """Look for invalid indexes, and for a collation that has changed since they were built."""
    with case.connection() as connection:
        major = int(connection.scalar(text("SHOW server_version_num"))) // 10000
        findings = _invalid(connection) if major >= _FIRST_WITH_PROGRESS else []
        if major >= _FIRST_WITH_VERSION:
            findings += _of_database(connection)
        findings += _of_columns(connection)
    return "" if findings else "all are valid, in the order of their collations", findings


def _invalid(connection: Connection) -> list[Finding]:
    rows = connection.execute(_INVALID).all()
    if not rows:
        return []
    names = [f"{row.name} on {row.of_table}" for row in rows[:_SHOWN]]
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    first = rows[0]
    count = f"{len(rows)} index is" if len(rows) == 1 else f"{len(rows)} indexes are"
    return [
        INVALID.found(
            count=count,
            indexes=", ".join(names) + more,
            index=first.index,
            rebuild=f"REINDEX INDEX CONCURRENTLY {first.name}",
            drop=f"DROP INDEX CONCURRENTLY {first.name}",
        )
    ]


def _of_database(connection: Connection) -> list[Finding]:
    row = connection.execute(_OF_DATABASE).one()
    if None in tuple(row) or row.recorded == row.actual:
        return []
    name = str(connection.scalar(text("SELECT current_database()")))
    return [
        COLLATION.found(
            what=f"The database {name}",
            database=name,
            recorded=row.recorded,
            actual=row.actual,
            rebuild=f"As its owner: REINDEX DATABASE {quoted(name)}; then ALTER DATABASE "
            f"{quoted(name)} REFRESH COLLATION VERSION.",
        )
    ]


def _of_columns(connection: Connection) -> list[Finding]:
    name = quoted(str(connection.scalar(text("SELECT current_database()"))))
    return [
        COLLATION.found(
            what=f"The collation {row.name} of an index",
            collation=row.name,
            recorded=row.recorded,
            actual=row.actual,
            rebuild=f"As its owner: REINDEX DATABASE {name}; then ALTER COLLATION {row.name} "
            "REFRESH VERSION.",
        )
        for row in connection.execute(_OF_COLUMNS)
        if row.actual is not None and row.recorded != row.actual
    ]
