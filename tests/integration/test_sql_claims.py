"""What a server says of the classifier's claims: what it calls a read assigns no transaction id."""

import random

import psycopg2
import pytest
from marked import conninfo

from sa_railway.commit.harmless import GRAMMAR, HARMLESS
from sa_railway.commit.sql import Writes, effects_of

FUNCTION = (
    "CREATE FUNCTION {}(int DEFAULT 1, int DEFAULT 1) RETURNS int LANGUAGE plpgsql"
    " AS $$BEGIN INSERT INTO t VALUES (1); RETURN 1; END$$"
)
# Letters and digits to PostgreSQL, but a blank, a digit and a k to Python.
ODD_NAMES = ["count\u00a0", "\u0663f", "ran\u212a"]


@pytest.fixture(scope="module")
def server(postgres):
    """A connection of psycopg2's, with a table and functions that write, each in a transaction."""
    url = conninfo(postgres.url)
    connection = psycopg2.connect(url)
    with connection, connection.cursor() as cursor:
        cursor.execute("DROP SCHEMA IF EXISTS claims CASCADE; CREATE SCHEMA claims")
        cursor.execute("SET search_path = claims; SET escape_string_warning = off")
        cursor.execute("CREATE TABLE t (n int, name text); INSERT INTO t VALUES (1, 'a')")
        cursor.execute('CREATE SEQUENCE numbers; CREATE DOMAIN "€e" AS text')
        cursor.execute("CREATE AGGREGATE summed(int) (sfunc = int4pl, stype = int)")
        for name in ["f", *ODD_NAMES, *written_words(cursor)]:
            cursor.execute(FUNCTION.format(f'"{name}"'))
    yield connection
    with connection, connection.cursor() as cursor:
        cursor.execute("DROP SCHEMA claims CASCADE")
    connection.close()


def written_words(cursor):
    """Return the words of the grammar that can name a function, and name none of PostgreSQL's."""
    cursor.execute(
        "SELECT word FROM pg_get_keywords() WHERE catcode IN ('U', 'T') AND word NOT IN"
        " (SELECT proname FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace)"
    )
    return [word for (word,) in cursor]


def writes(server, text, values=None, *, read_only=False):
    """Return whether *text* makes the server assign a transaction id; None if it refuses it."""
    with server.cursor() as cursor:
        try:
            if read_only:
                cursor.execute("SET TRANSACTION READ ONLY")
            cursor.execute("DECLARE c CURSOR FOR SELECT n FROM t; SAVEPOINT a")
            cursor.execute(text, values)
            cursor.execute("SELECT txid_current_if_assigned()")
            return cursor.fetchone() != (None,)
        except psycopg2.errors.ReadOnlySqlTransaction:
            raise
        except psycopg2.Error:
            return None
        finally:
            server.rollback()


READS = [
    ("SELECT count(*), max(n), coalesce(sum(n), 0) FROM t WHERE n IN (1, 2)", None),
    ("(SELECT n FROM t) UNION ALL (SELECT n FROM t)", None),
    ("WITH a AS (SELECT n FROM t) SELECT * FROM a", None),
    (
        "WITH RECURSIVE a AS (VALUES (1) UNION ALL (SELECT n FROM t)) SELECT * FROM a LIMIT (2)",
        None,
    ),
    ("SELECT row_number() OVER (PARTITION BY (n) ORDER BY (n)) FROM t", None),
    ("SELECT sum(n) FILTER (WHERE n > 1) FROM t GROUP BY (name) ORDER BY (name)", None),
    ("SELECT name FROM t GROUP BY GROUPING SETS ((name), ()) FETCH FIRST (1) ROWS ONLY", None),
    ("SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY n) FROM t", None),
    ("SELECT t.n FROM t JOIN (t AS u JOIN t AS v ON u.n = v.n) ON t.n = u.n", None),
    ("SELECT t.n FROM t LEFT OUTER JOIN (SELECT n FROM t) AS u ON t.n = u.n", None),
    ("SELECT n FROM t WHERE t.name ILIKE ('a' || 'b') OR name LIKE ('a' || 'b')", None),
    ("SELECT CAST(name AS CHARACTER VARYING(10)), CAST(n AS NUMERIC(10, 2)) FROM t", None),
    ("SELECT EXISTS (SELECT 1 FROM t), ARRAY(SELECT n FROM t), 1 = ANY (ARRAY[1])", None),
    ("SELECT generate_series(1, 2), now(), random(), pg_catalog.now ( )", None),
    ("SELECT date_trunc('day', now()), extract(year FROM now()), interval '1 day'", None),
    ("SELECT E'it\\'s', 'it''s', $$it's$$, $a$ $$ $a$, U&'d', B'01', 1.5e-3, .5", None),
    ("SELECT '; DELETE FROM t' /* ; DELETE FROM t /* */ ' */ -- ; DELETE FROM t", None),
    ("SELECT n AS größe, n AS update, n AS delete FROM t AS merge", None),
    ("SELECT %s", ("'; DELETE FROM t --",)),
    ("SELECT %(a)s, n %% 2, '%%s' FROM t", {"a": "\\'; DELETE FROM t --"}),
    ("VALUES (1), (2)", None),
    ("TABLE t", None),
    ("SHOW search_path", None),
    ("SET LOCAL statement_timeout = 1000", None),
    ("SET CONSTRAINTS ALL DEFERRED", None),
    ("FETCH 1 FROM c", None),
    ("MOVE c", None),
    ("CLOSE c", None),
    ("DECLARE d CURSOR FOR SELECT 1", None),
    ("SAVEPOINT b", None),
    ("RELEASE SAVEPOINT a", None),
    ("ROLLBACK WORK TO SAVEPOINT a", None),
]
WRITES = [
    ("INSERT INTO t VALUES (1)", None),
    ("WITH a AS (DELETE FROM t RETURNING n) SELECT * FROM a", None),
    ("SELECT * INTO new_table FROM t", None),
    ("SELECT nextval('numbers')", None),
    ("SELECT lo_create(0)", None),
    ("SELECT f/* */ -- \n (1)", None),
    ('SELECT "f"(1)', None),
    ("SELECT claims . f (1)", None),
    ("SELECT U&\"f\" UESCAPE '!' (1)", None),
    ("SELECT * FROM f()", None),
    ("SELECT * FROM ROWS FROM (f())", None),
    ("SELECT t.n FROM t, LATERAL f(t.n)", None),
    ("VALUES (f())", None),
    ("DECLARE d CURSOR FOR SELECT f(); FETCH d", None),
    ("EXPLAIN ANALYZE DELETE FROM t", None),
    ("EXPLAIN ANALYZE SELECT f()", None),
    ("PREPARE p AS SELECT f(); EXECUTE p", None),
    ("DO $$BEGIN DELETE FROM t; END$$", None),
    ("SELECT E'it\\'s'; DELETE FROM t --'", None),
    ("SELECT E'a'\n'\\''; DELETE FROM t; --'", None),
    ("SELECT $a$ $b$ $a$; DELETE FROM t --$b$", None),
    ("SELECT 1 --\r; DELETE FROM t", None),
    ("SELECT 1 /* /* */ */; DELETE FROM t", None),
    ("SELECT €e'\\'; DELETE FROM t; --'", None),
    ("SELECT u.n FROM t AS u JOIN t AS v ON conflict(1) = 1", None),
    *((f"SELECT {name}(1)", None) for name in ODD_NAMES),
    # the values of psycopg2 are in the text
    ("SELECT %sinto new_table", ("a",)),
    ("SELECT '%s'", ("; DELETE FROM t --",)),
    ("SELECT 1 /* %s */", ("*/; DELETE FROM t; /*",)),
    ("SELECT 1 -- %s", ("\n; DELETE FROM t --",)),
    ("SELECT E'a'\n%s", ("\\'; DELETE FROM t --",)),
    ("SELECT 1 WHERE 1 = %(it's)s OR f() = %(it's)s", {"it's": 3}),
]
# what some versions take for a statement that writes, and others refuse
REFUSED = ["SELECT 1into new_table", "SELECT 1.into new_table", "SELECT 1\v;DELETE FROM t"]


@pytest.mark.parametrize(("text", "values"), READS, ids=[text for text, _ in READS])
def test_what_is_called_a_read_runs_where_nothing_may_be_written(server, text, values):
    assert effects_of(text).writes is Writes.NO
    assert writes(server, text, values, read_only=True) is False
    assert writes(server, text, values) is False


@pytest.mark.parametrize("lock", ["UPDATE SKIP LOCKED", "NO KEY UPDATE", "SHARE", "KEY SHARE"])
def test_a_lock_on_rows_is_no_write_although_it_needs_an_id(server, lock):
    text = f"SELECT n FROM t FOR {lock}"
    assert effects_of(text).writes is Writes.NO
    assert writes(server, text) is True
    with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
        writes(server, text, read_only=True)


@pytest.mark.parametrize(("text", "values"), WRITES, ids=[text for text, _ in WRITES])
def test_what_writes_is_not_called_a_read(server, text, values):
    assert writes(server, text, values) is True
    assert effects_of(text).writes > Writes.NO


@pytest.mark.parametrize("text", REFUSED)
def test_what_writes_on_some_servers_is_not_called_a_read(server, text):
    assert writes(server, text) in (True, None)
    assert effects_of(text).writes > Writes.NO


@pytest.mark.parametrize(
    "context",
    [
        "SELECT {}",
        "SELECT NOT {} = 1 AND {} = 1",
        "SELECT {}, n FROM t AS u WHERE {} = 1 GROUP BY {}, n HAVING {} = 1 ORDER BY {} LIMIT {}",
        "SELECT n FROM t WHERE n IN ({}) AND n BETWEEN {} AND {} AND n IS DISTINCT FROM {}",
        "SELECT * FROM {}",
        "SELECT * FROM t CROSS JOIN {}",
        "SELECT * FROM t, LATERAL {}",
        "SELECT * FROM t JOIN t AS u ON {} = 1",
        "SELECT CASE WHEN {} = 1 THEN {} ELSE {} END FROM t",
        "SELECT count(*) FILTER (WHERE {} = 1) OVER (PARTITION BY {} ORDER BY {}) FROM t",
        "SELECT ARRAY[{}], ({}), CAST({} AS int), -{} FROM t",
        "VALUES (1, {})",
        "WITH a AS NOT MATERIALIZED (SELECT {}) SELECT * FROM a",
        "SELECT n FROM t FETCH FIRST ({}) ROWS ONLY",
    ],
)
def test_no_word_of_the_grammar_that_names_a_function_hides_its_call(server, context):
    with server, server.cursor() as cursor:
        words = written_words(cursor)
    texts = [context.replace("{}", f"{word}{end}") for word in words for end in ("(1)", " (1, 1)")]
    reads = [text for text in texts if effects_of(text).writes is Writes.NO]

    assert len(texts) > 500
    assert [text for text in reads if writes(server, text)] == []


def test_every_harmless_word_is_reserved_or_a_function_of_postgresql_that_does_nothing(server):
    with server, server.cursor() as cursor:
        cursor.execute("SELECT word FROM pg_get_keywords() WHERE catcode IN ('R', 'C')")
        reserved = {word for (word,) in cursor}
        cursor.execute(
            "SELECT proname, bool_or(provolatile = 'v') FROM pg_proc"
            " WHERE pronamespace = 'pg_catalog'::regnamespace GROUP BY proname"
        )
        is_volatile = dict(cursor.fetchall())
    unknown = HARMLESS - reserved - set(is_volatile)
    volatile = {word for word in HARMLESS - reserved if is_volatile.get(word)}

    assert unknown == set()
    assert reserved >= GRAMMAR
    assert volatile == {"clock_timestamp", "gen_random_uuid", "pg_is_in_recovery", "random"}


# What texts are mixed from: all that begins or ends a quotation, and writes that it might hide.
QUOTES = (
    "' ' '' \" \" \\ \\' -- /* */ /**/ $$ $$ $a$ $é$ $a E' e' ␣E' U&' U&\" B' N' ␣ ␣ \t \f \n \r "
    "\x85 \u2028 \u00a0 ;DELETE␣FROM␣t; ;DELETE␣FROM␣t-- ;␣DELETE␣FROM␣t␣/* ␣f(1) ␣f␣(1) f (1) ( ) "
    "␣1 1 ␣'a' ␣x $1 , ␣AS␣ é € + - * / @ % ␣UESCAPE␣ '!' ␣FROM␣t ␣INTO␣n ␣text ␣SELECT␣ count "
    "␣UNION␣SELECT␣ ␣OR␣ next by join over filter"
)
PLACEHOLDERS = "%s %s %s %% %%s %( ' ' \" -- \n /* */ $$ ␣ 1 x 'a' E' - / * $ ␣f(1) ␣AS␣ ␣INTO␣n ,"
VALUES = [
    *("; DELETE FROM t --", "*/; DELETE FROM t; /*", "\n; DELETE FROM t --", "a\\", "'", -1, None),
    *("\\'; DELETE FROM t --", "$$; DELETE FROM t; --", 'x"; DELETE FROM t--', " f(1)"),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("standard", ["on", "off"])
@pytest.mark.parametrize("pieces", [QUOTES, PLACEHOLDERS], ids=["quotes", "placeholders"])
def test_no_mixture_of_quotes_comments_and_placeholders_hides_a_write(
    server, pieces, standard, seed
):
    chance = random.Random(seed)
    fragments = [piece.replace("␣", " ") for piece in pieces.split(" ")]
    texts = [
        "SELECT " + "".join(chance.choices(fragments, k=chance.randint(1, 10))) for _ in range(4000)
    ]
    reads = [text for text in texts if effects_of(text).writes is Writes.NO]
    with server, server.cursor() as cursor:
        cursor.execute(f"SET standard_conforming_strings = {standard}")
    found = []
    for text in reads:
        values = chance.choices(VALUES, k=text.count("%s"))
        try:
            found.append(writes(server, text, values or None))
        except (TypeError, ValueError, IndexError):  # psycopg2 does not take it
            found.append(None)
            server.rollback()
    with server, server.cursor() as cursor:
        cursor.execute("RESET standard_conforming_strings")

    assert [text for text, result in zip(reads, found, strict=True) if result] == []
    assert found.count(False) > 100
