"""What a text proves about its statement; tests/integration/test_tracking.py asks a server."""

import psycopg.sql
import psycopg2.sql
import pytest
import sqlalchemy as sa
from sqlalchemy import func, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, joinedload, mapped_column, relationship

from sa_railway.commit import sql
from sa_railway.commit.sql import Effects, Writes, effects_of, ends_transaction

READS = [
    "SELECT 1",
    "  select *\nfrom t where name = 'insert into t'",
    "SELECT count(*), max(n), coalesce(sum(n), 0) FROM t WHERE n IN (1, 2)",
    "SELECT n FROM t WHERE n = %(n_1)s",
    "SELECT n FROM t WHERE n = $1::INTEGER",
    "SELECT anon.n FROM (SELECT n FROM t) AS anon",
    "(SELECT n FROM t) UNION ALL (SELECT n FROM u)",
    "WITH a AS (SELECT n FROM t) SELECT * FROM a",
    "SELECT n FROM t FOR UPDATE SKIP LOCKED",
    "SELECT n FROM t FOR NO KEY UPDATE",
    'SELECT "update" FROM "delete"',
    "SELECT update, t.insert FROM delete AS merge",
    "SELECT 1 /* delete from t */ -- insert\n",
    "SELECT row_number() OVER (PARTITION BY a ORDER BY b) FROM t",
    "SELECT CAST(n AS NUMERIC(10, 2)) FROM t",
    "SELECT EXISTS (SELECT 1 FROM t)",
    "VALUES (1), (2)",
    "SHOW transaction_isolation",
    "SET LOCAL statement_timeout = 1000",
    "SAVEPOINT sa_savepoint_1",
    "RELEASE SAVEPOINT sa_savepoint_1",
    "ROLLBACK TO SAVEPOINT sa_savepoint_1",
    "SELECT 'it''s', now()",
    # the same with other words
    "",
    " ; -- nothing at all\n;",
    "SELECT 1;",
    "TABLE t",
    "DECLARE c CURSOR FOR SELECT 1",
    "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "SET CONSTRAINTS ALL DEFERRED",
    "SELECT pg_catalog.count(*), pg_catalog . now ( ) FROM t",
    "SELECT count /* of */ -- all\n (*) FROM t",
    "SELECT sum(n) FILTER (WHERE n > 1) FROM t GROUP BY (n) ORDER BY (n) FETCH FIRST (1) ROWS ONLY",
    "SELECT t.n FROM t JOIN (u JOIN v ON u.n = v.n) ON t.n = u.n",
    "SELECT n FROM t WHERE t.name ILIKE ('a' || 'b') AND t.name LIKE ('a' || 'b')",
    "SELECT CAST(name AS CHARACTER VARYING(10)), 1.5e-3, .5, n[1:2] FROM t",
    "SELECT n %% 2, n % 2, n %2, '%%s' FROM t WHERE größe = %(größe-1)s",
    "SELECT E'it\\'s', $$it's$$, $a$ $$ $b$ $a$, U&'d', B'01', x'ff', '\u2028' FROM t",
    "SELECT a$1 FROM t -- $$",
    "SELECT 1 /* a /* nested */ DELETE FROM t */",
]
MAY_WRITE = [
    "SELECT my_function(1)",
    "SELECT app.my_function(1)",
    'SELECT "my_function"(1)',
    'SELECT "a""b"(1), "count"(1)',
    "SELECT nextval('s')",
    "SELECT pg_advisory_xact_lock(1)",
    "SELECT my_function/**/(1)",
    "SELECT * FROM my_function()",
    "SELECT * FROM t TABLESAMPLE my_method (1)",
    "SELECT * FROM XMLTABLE('/a' PASSING x COLUMNS a text)",
    "SELECT * FROM JSON_TABLE(x, '$' COLUMNS (a int PATH '$'))",
    "SELECT * FROM GRAPH_TABLE (g MATCH (a) COLUMNS (a.n))",
    "SELECT 1 OPERATOR(s.+) 2",
    "DECLARE c CURSOR FOR SELECT my_function(1)",
    "EXPLAIN ANALYZE INSERT INTO t VALUES (1)",
    "LOCK TABLE t",
    "EXECUTE prepared",
    "COMMIT",
    "ROLLBACK",
    "ROLLBACK AND CHAIN",
    "SELECT 1; SELECT 2",
    # what the text does not tell, or not surely
    "%(select)s",
    "%s SELECT 1",
    "SELECT 'a\\b'",
    "SELECT E'it¥'",
    "SELECT 1 /* open",
    "SELECT 'open",
    "SELECT $a$ open $b$",
    "SELECT 1\0",
    "SELECT 1 \\gexec",
]
WRITES = [
    "INSERT INTO t VALUES (1)",
    "update t set n = 1",
    "DELETE FROM t",
    "MERGE INTO t USING u ON true WHEN MATCHED THEN DO NOTHING",
    "WITH a AS (DELETE FROM t RETURNING n) SELECT * FROM a",
    "WITH a AS (SELECT 1) MERGE INTO t USING a ON true WHEN MATCHED THEN DELETE",
    "SELECT * INTO new_table FROM t",
    "CALL my_procedure()",
    "DO $$ BEGIN DELETE FROM t; END $$",
    "COPY t FROM STDIN",
    "COPY (DELETE FROM t RETURNING n) TO STDOUT",
    "TRUNCATE t",
    "CREATE TABLE t (n int)",
    "NOTIFY channel, 'payload'",
    "/* a /* b */ c */ DELETE FROM t",
    "SELECT 1 /* a /* b */ c */; DELETE FROM t",
    "SELECT E'it\\'s'; DELETE FROM t --'",
    "SELECT $$'$$; DELETE FROM t --'",
    "SELECT '-- it''s' --\r; DELETE FROM t",
    "SELECT a$; DELETE FROM t --$",
    "INSERT INTO t VALUES ('a\\'); SELECT 1",
]
# In each of them, something that writes looks to a careless reader like something that does not.
HIDDEN = [
    "SELECT count\u00a0(1)",  # a blank for Python, a letter for PostgreSQL
    "SELECT \u0663f(1)",  # a digit for Python, a letter for PostgreSQL
    "SELECT ran\u212a(1)",  # str.lower() makes it rank
    "SELECT \u2028E'\\'; DELETE FROM t; --'",
    "SELECT €e'\\'; DELETE FROM t; --'",
    "SELECT U&\"f\" UESCAPE '!' (1)",
    "SELECT E'a'\n'\\''; DELETE FROM t; --'",
    "SELECT 1into new_table",
    "SELECT %sinto new_table",
    "SELECT '%s'",
    'SELECT 1 AS "%(n)s"',
    "SELECT 1 /* %s */",
    "SELECT 1 -- %%%s",
    "SELECT E'a' %s",
    "SELECT 1 WHERE 1 = %(it's)s OR f() = %(it's)s",
    "SELECT 1 WHERE 1 = %(a--b)s OR f()",
    "SELECT n FROM t JOIN u ON conflict(1) = 1",
    "SELECT n FROM t WHERE NOT materialized(1)",
    "SELECT n FROM t WHERE left join(1) = 1 AND is(1)",
    *(
        f"SELECT {name}(1)"
        for name in "by conflict cross cube filter first full if ilike inner is join last next "
        "nulls of over partition range recursive rollup rows set sets similar within".split()
    ),
]


@pytest.mark.parametrize(
    ("statement", "by_name"),
    [
        ("SELECT 1", False),
        ("SELECT count(*) FROM t", True),
        ("SELECT a FROM t WHERE a IN (1, 2) AND (b = 1)", False),
        ("SELECT coalesce(a, 1), CAST(a AS numeric(5, 2)) FROM t", False),
        ("SELECT pg_catalog.round(1.5)", True),
        ("SELECT round (a) FROM t", True),
        ("SELECT round FROM t", False),
    ],
)
def test_what_rests_on_the_name_of_a_function_is_told(statement, by_name):
    assert effects_of(statement) == Effects(Writes.NO, keeps_session=True, by_name=by_name)


@pytest.mark.parametrize("statement", READS)
def test_what_provably_reads_neither_writes_nor_leaves_anything_in_the_session(statement):
    assert effects_of(statement)[:2] == (Writes.NO, True)


@pytest.mark.parametrize("statement", MAY_WRITE)
def test_what_cannot_be_proved_may_write_and_may_change_the_session(statement):
    assert effects_of(statement) == Effects(Writes.MAYBE, keeps_session=False)


@pytest.mark.parametrize("statement", WRITES)
def test_what_surely_writes(statement):
    assert effects_of(statement).writes is Writes.YES


@pytest.mark.parametrize("statement", HIDDEN)
def test_what_hides_a_write_is_not_taken_for_a_read(statement):
    assert effects_of(statement).writes > Writes.NO


@pytest.mark.parametrize(
    "statement",
    [b"SELECT 1", None, psycopg2.sql.SQL("SELECT 1"), psycopg.sql.SQL("SELECT 1")],
    ids=["bytes", "nothing", "composed for psycopg2", "composed for psycopg"],
)
def test_what_is_no_text_proves_nothing(statement):
    assert effects_of(statement) == Effects(Writes.MAYBE, keeps_session=False)


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO t VALUES (1)",
        'INSERT INTO app."t" (n) VALUES (lower(%s)) ON CONFLICT (n) DO NOTHING',
        "INSERT INTO t (n) SELECT max(n) FROM t",
        "UPDATE t SET n = 1 WHERE n IN (SELECT n FROM u)",
        "DELETE FROM t",
        "COPY t (n) FROM STDIN",
        "COPY (SELECT n FROM t) TO STDOUT",
        "NOTIFY channel",
        "WITH a AS (DELETE FROM t RETURNING n) SELECT * FROM a",
    ],
)
def test_a_plain_write_leaves_the_session_as_it_was(statement):
    assert effects_of(statement) == Effects(Writes.YES, keeps_session=True)


@pytest.mark.parametrize(
    ("statement", "writes"),
    [
        ("SET ROLE other", Writes.NO),
        ("SET search_path = other", Writes.NO),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", Writes.NO),
        ('SET "search_path" = local', Writes.NO),
        ("SET local.setting = 1", Writes.NO),
        ("SET transaction.setting TO 1", Writes.NO),
        ("SELECT set_config('role', 'other', false)", Writes.MAYBE),
        ("SELECT pg_advisory_lock(1)", Writes.MAYBE),
        ("LISTEN channel", Writes.MAYBE),
        ("PREPARE p AS SELECT 1", Writes.MAYBE),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", Writes.MAYBE),
        ("CREATE TEMP TABLE a (n int)", Writes.YES),
        ("SELECT 1 AS n INTO TEMP a", Writes.YES),
        ("INSERT INTO t SELECT pg_advisory_lock(1)", Writes.YES),
        ("INSERT INTO t VALUES (my_function())", Writes.YES),
        ("UPDATE t SET n = nextval('s')", Writes.YES),
        ("COPY (SELECT n FROM pg_advisory_lock(1)) TO STDOUT", Writes.YES),
        ("INSERT INTO t VALUES (1); SET ROLE other", Writes.YES),
        ("INSERT INTO t VALUES (%sinto)", Writes.YES),
    ],
)
def test_what_may_outlive_the_transaction_does_not_keep_the_session(statement, writes):
    assert effects_of(statement) == Effects(writes, keeps_session=False)


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "author"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Book(Base):
    __tablename__ = "book"
    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int] = mapped_column(sa.ForeignKey("author.id"))
    author: Mapped[Author] = relationship()


ODD = sa.table("update", *map(sa.column, ["it's", "a%", "größe", "delete"]))
OTHER = aliased(Author)
QUERIES = [
    select(Author),
    select(Book).options(joinedload(Book.author)).where(Book.author_id.in_([1, 2])).limit(5),
    select(func.count()).select_from(select(Author).where(Author.name.icontains("%s")).subquery()),
    select(func.rank().over(partition_by=Book.author_id, order_by=Book.id.desc())),
    select(func.sum(Book.id).filter(Book.id > 1) % 7).group_by(Book.author_id).having(sa.exists()),
    select(Author).join(OTHER, OTHER.id == Author.id).with_for_update(of=Author, skip_locked=True),
    select(select(Author.id).where(Author.name.ilike("a%")).cte("a")).order_by("id"),
    select(Author.id).join(select(Book).lateral(), sa.literal(value=True)).distinct(),
    select(ODD.c["a%"], ODD.c["delete"]).where(ODD.c["größe"] == sa.bindparam("größe")),
    sa.union_all(select(Author.id), select(Book.id).where(sa.tuple_(Book.id).in_([(1,)]))),
    select(Author.name.concat("'; DELETE FROM t --").op("||")("\\")).fetch(3),
]
CHANGES = [
    sa.insert(Author),
    sa.insert(Author).values([{"name": "a"}, {"name": "b"}]).returning(Author.id, Author.name),
    sa.insert(Author).from_select(["name"], select(func.lower(Author.name))),
    postgresql.insert(Author).values(name="a").on_conflict_do_nothing(index_elements=["id"]),
    sa.update(Author).where(Author.name == "a").values(name=func.coalesce(Author.name, "b")),
    sa.delete(Author).where(Author.id.in_(select(Book.author_id))),
]
DIALECTS = [postgresql.psycopg2, postgresql.psycopg, postgresql.asyncpg]


@pytest.mark.parametrize("dialect", DIALECTS, ids=["psycopg2", "psycopg", "asyncpg"])
@pytest.mark.parametrize("query", QUERIES, ids=range(len(QUERIES)))
def test_what_sqlalchemy_makes_of_a_query_provably_reads(query, dialect):
    compiled = query.compile(dialect=dialect.dialect(), compile_kwargs={"render_postcompile": True})

    assert effects_of(str(compiled))[:2] == (Writes.NO, True)


@pytest.mark.parametrize("dialect", DIALECTS, ids=["psycopg2", "psycopg", "asyncpg"])
@pytest.mark.parametrize("change", CHANGES, ids=range(len(CHANGES)))
def test_what_sqlalchemy_makes_of_a_change_writes_and_keeps_the_session(change, dialect):
    compiled = change.compile(dialect=dialect.dialect())

    assert effects_of(str(compiled)) == Effects(Writes.YES, keeps_session=True)


def test_a_name_with_a_quote_makes_a_doubtful_placeholder_of_its_parameter():
    query = select(ODD.c["it's"]).where(ODD.c["it's"] == 1)
    compiled = str(query.compile(dialect=postgresql.psycopg2.dialect()))

    assert "%(it's_1)s" in compiled
    assert effects_of(compiled) == Effects(Writes.MAYBE, keeps_session=False)


@pytest.mark.parametrize(
    ("statement", "command"),
    [
        ("COMMIT", "COMMIT"),
        ("END WORK", "END"),
        ("ABORT", "ABORT"),
        ("ROLLBACK", "ROLLBACK"),
        ("ROLLBACK AND NO CHAIN", "ROLLBACK"),
        ("PREPARE TRANSACTION 'a'", "PREPARE TRANSACTION"),
        ("-- a\n/* b /* c */ d */ COMMIT", "COMMIT"),
        ("SELECT 'a;b'; ; COMMIT; SELECT 1", "COMMIT"),
        ("SELECT 'a\\b'; COMMIT", "COMMIT"),
        ("SELECT 1 %(2); ROLLBACK", "ROLLBACK"),
        ("CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END; COMMIT", "COMMIT"),
        (b"SELECT '\xff'; COMMIT", "COMMIT"),
    ],
)
def test_what_ends_the_transaction_is_named(statement, command):
    assert ends_transaction(statement) == command


@pytest.mark.parametrize(
    "statement",
    [
        "ROLLBACK TO SAVEPOINT a",
        "ROLLBACK WORK TO a",
        "SAVEPOINT commit",
        "PREPARE commit AS SELECT 1",
        "SELECT commit, rollback AS abort FROM t",
        "SELECT 'a'';COMMIT;'",
        "SELECT E'\\';COMMIT;'",
        "SELECT $a$;COMMIT;$a$",
        "SELECT 1 -- ;COMMIT\n",
        "SELECT 1 /* /* */ ;COMMIT; */",
        "DO $$ BEGIN COMMIT; END $$",
        "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; END",
        b"SELECT ';COMMIT;'",
        None,
        psycopg2.sql.SQL("COMMIT"),
    ],
)
def test_what_only_looks_like_an_end_of_the_transaction_is_none(statement):
    assert ends_transaction(statement) is None


@pytest.fixture
def examined(monkeypatch):
    """The lengths of the texts that were looked at, beginning with nothing remembered."""
    lengths = []
    tokens = sql._tokens

    def noting(text):
        lengths.append(len(text))
        return tokens(text)

    monkeypatch.setattr(sql, "_tokens", noting)
    before = dict(sql.remembered)
    sql.remembered.clear()
    yield lengths
    sql.remembered.clear()
    sql.remembered.update(before)


def literal_of(length, start="SELECT '"):
    return start + "a" * (length - len(start) - 1) + "'"


def test_a_short_text_is_examined_once_and_kept(examined):
    assert [effects_of(literal_of(4_096)).writes for _ in range(3)] == [Writes.NO] * 3
    assert examined == [4_096]
    assert list(sql.remembered) == [literal_of(4_096)]


def test_a_longer_text_is_examined_once_and_only_its_digest_kept(examined):
    assert [effects_of(literal_of(n)).writes for n in (4_097, 65_536) * 2] == [Writes.NO] * 4
    assert examined == [4_097, 65_536]
    assert [len(key) for key in sql.remembered] == [16, 16]


def test_of_an_enormous_text_only_the_first_word_is_looked_for(examined):
    assert effects_of(literal_of(65_537)) == Effects(Writes.MAYBE, keeps_session=False)
    assert effects_of(literal_of(10**6, "/**/ INSERT INTO t VALUES ('")).writes is Writes.YES
    assert examined == [4_096, 4_096]
    assert sql.remembered == {}


def test_no_more_than_1024_texts_are_remembered(examined):
    for n in range(1_100):
        effects_of(literal_of(4_000 + n))

    assert len(sql.remembered) == 1_100 - 1_024
