"""Which statements may have written."""

import pytest

from sa_railway.engine.statements import may_write

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
]
MAY_WRITE = [
    "INSERT INTO t VALUES (1)",
    "update t set n = 1",
    "DELETE FROM t",
    "MERGE INTO t USING u ON true WHEN MATCHED THEN DO NOTHING",
    "WITH a AS (DELETE FROM t RETURNING n) SELECT * FROM a",
    "SELECT * INTO new_table FROM t",
    "SELECT my_function(1)",
    "SELECT app.my_function(1)",
    'SELECT "my_function"(1)',
    "SELECT nextval('s')",
    "SELECT setval('s', 1)",
    "SELECT pg_advisory_xact_lock(1)",
    "CALL my_procedure()",
    "DO $$ BEGIN DELETE FROM t; END $$",
    "COPY t FROM STDIN",
    "TRUNCATE t",
    "CREATE TABLE t (n int)",
    "EXPLAIN ANALYZE INSERT INTO t VALUES (1)",
    "LOCK TABLE t",
    "EXECUTE prepared",
    "SELECT E'it\\'s'; DELETE FROM t --'",
    "SELECT $$'$$; DELETE FROM t --'",
    "",
]


@pytest.mark.parametrize("statement", READS)
def test_what_provably_reads(statement):
    assert may_write(statement) is False


@pytest.mark.parametrize("statement", MAY_WRITE)
def test_what_may_write(statement):
    assert may_write(statement) is True
