"""What one user of a PostgreSQL connection leaves behind, the next one does not find; and who leaves nothing pays nothing."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import peewee
import psycopg2
import psycopg2.extras
import psycopg2.sql
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from playhouse.postgres_ext import PostgresqlExtDatabase

from tests.conftest import Place, Server
from whatspire_db import Settings, connect
from whatspire_db.connection.engines.postgres.session import _PLAIN, changes_session
from whatspire_db.models.service import Event

# All that a session can hold, as far as its own server tells.
STATE = """
SELECT current_user, session_user, pg_is_in_recovery(),
    (SELECT json_object_agg(name, setting ORDER BY name) FROM pg_settings WHERE source = 'session')::text,
    (SELECT count(*) FROM pg_prepared_statements), (SELECT count(*) FROM pg_cursors WHERE name <> ''),
    (SELECT count(*) FROM pg_listening_channels()),
    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
    (SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema() AND relkind = 'r')
"""
HELPER = """
CREATE FUNCTION sneaky() RETURNS text LANGUAGE sql AS $$ SELECT set_config('work_mem', '99MB', false) $$;
CREATE SEQUENCE numbers
"""
LEFT_BEHIND = [
    "SET work_mem = '99MB'",
    "set session statement_timeout = 12345",
    "SET TIME ZONE 'Asia/Shanghai'",
    "SET datestyle TO 'German'",
    "SET search_path = pg_catalog",
    "SET ROLE pg_read_all_data",
    "SET SESSION AUTHORIZATION pg_monitor",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "SELECT set_config('work_mem', '99MB', false)",
    "SELECT pg_catalog.set_config('work_mem', '99MB', false)",
    "SELECT \"set_config\"('work_mem', '99MB', false)",
    "SELECT set_config /* here */ ('work_mem', '99MB', false)",
    "SELECT sneaky()",
    "WITH s AS (SELECT sneaky()) SELECT count(*) FROM s",
    "VALUES (sneaky())",
    "UPDATE pg_settings SET setting = '99MB' WHERE name = 'work_mem'",
    "SELECT 1; SET work_mem = '99MB'",
    "BEGIN; SET work_mem = '99MB'; COMMIT",
    "DO $$ BEGIN PERFORM pg_advisory_lock(7); END $$",
    "SELECT pg_advisory_lock(7)",
    "SELECT pg_try_advisory_lock_shared(7, 8)",
    "CREATE TEMP TABLE scratch (n int)",
    "CREATE TEMPORARY TABLE scratch AS SELECT 1",
    "SELECT 1 AS n INTO TEMP scratch",
    "EXPLAIN ANALYZE CREATE TEMP TABLE scratch AS SELECT 1",
    "LISTEN events",
    "PREPARE one AS SELECT 1",
    "BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1; COMMIT",
    "LOAD 'plpgsql'; SET plpgsql.check_asserts = off",
    "BEGIN",
    "BEGIN; SELECT pg_advisory_xact_lock(7)",
]


@pytest.fixture
def db(postgres: Place) -> Iterator[Any]:
    database = connect(Settings(driver="postgres", dsn=postgres.dsn, max_open_conns=1), bind=False)
    with database.connection_context():
        database.execute_sql(HELPER)
    yield database
    database.close_all()


def ask(db: Any, question: str) -> tuple[Any, ...]:
    with db.connection_context():
        return db.execute_sql(question).fetchone()


def backend(db: Any) -> int:
    return int(ask(db, "SELECT pg_backend_pid()")[0])


@pytest.mark.parametrize("statement", LEFT_BEHIND)
def test_what_a_statement_leaves_behind_is_gone(db: Any, statement: str) -> None:
    before = ask(db, STATE)
    pid = backend(db)
    with db.connection_context():
        db.execute_sql(statement)
    assert ask(db, STATE) == before
    assert backend(db) == pid


def test_an_error_in_an_open_transaction_is_gone(db: Any) -> None:
    with db.connection_context():
        db.execute_sql("BEGIN")
        with pytest.raises(peewee.DataError):
            db.execute_sql("SELECT 1 / 0")
    assert ask(db, "SELECT 1") == (1,)


def through_a_cursor(connection: Any) -> None:
    connection.cursor().execute("SET work_mem = '99MB'")


def through_many(connection: Any) -> None:
    connection.cursor().executemany("SELECT set_config('work_mem', %s, false)", [["99MB"]])


def through_a_function(connection: Any) -> None:
    connection.cursor().callproc("sneaky")


def through_a_copy(connection: Any) -> None:
    connection.cursor().copy_expert("COPY (SELECT set_config('work_mem', '99MB', false)) TO STDOUT", io.StringIO())


def through_another_cursor(connection: Any) -> None:
    connection.cursor(cursor_factory=psycopg2.extras.DictCursor).execute("SET work_mem = '99MB'")


def through_another_factory(connection: Any) -> None:
    connection.cursor_factory = psycopg2.extras.DictCursor
    connection.cursor().execute("SET work_mem = '99MB'")


def through_composition(connection: Any) -> None:
    connection.cursor().execute(psycopg2.sql.SQL("SET work_mem = '99MB'"))


def through_bytes(connection: Any) -> None:
    connection.cursor().execute(b"SET work_mem = '99MB'")


def through_a_held_cursor(connection: Any) -> None:
    cursor = connection.cursor("held", withhold=True)
    cursor.execute("SELECT generate_series(1, 10)")


def as_a_session(connection: Any) -> None:
    connection.set_session(isolation_level="SERIALIZABLE", readonly=True)


def in_another_encoding(connection: Any) -> None:
    connection.set_client_encoding("LATIN1")


def not_in_autocommit(connection: Any) -> None:
    connection.autocommit = False
    connection.cursor().execute("SELECT 1")


@pytest.mark.parametrize(
    "leave",
    [through_a_cursor, through_many, through_a_function, through_a_copy, through_another_cursor, through_another_factory,
     through_composition, through_bytes, through_a_held_cursor, as_a_session, in_another_encoding, not_in_autocommit],
)  # fmt: skip
def test_what_the_driver_leaves_behind_is_gone(db: Any, leave: Any) -> None:
    before = ask(db, STATE)
    with db.connection_context():
        leave(db.connection())
        if not db.connection().autocommit:
            assert db.connection().get_transaction_status() != psycopg2.extensions.TRANSACTION_STATUS_IDLE
    assert ask(db, STATE) == before
    assert ask(db, "SELECT 'ä', now()")[0] == "ä"
    with db.connection_context():
        assert db.connection().autocommit
        assert not isinstance(db.cursor(), psycopg2.extras.DictCursor)


def test_notifications_of_one_user_are_not_read_by_the_next(db: Any) -> None:
    with db.connection_context():
        db.execute_sql("LISTEN events")
        db.execute_sql("NOTIFY events")
        assert db.connection().notifies
    with db.connection_context():
        assert not db.connection().notifies


def test_a_server_with_dates_of_its_own_is_still_read(postgres: Place, server: Server) -> None:
    name = postgres.dsn.split("dbname='")[1].rstrip("'")
    server.execute(f"ALTER DATABASE {name} SET datestyle TO 'German, DMY'")
    db = connect(Settings(driver="postgres", dsn=postgres.dsn, max_open_conns=1), bind=False)
    for _ in range(2):
        assert ask(db, "SELECT DATE '2026-11-23'")[0].isoformat() == "2026-11-23"
        ask(db, "SELECT set_config('work_mem', '99MB', false)")
    db.close_all()


def test_what_the_dsn_sets_stays(postgres: Place) -> None:
    dsn = f"{postgres.dsn} search_path=pg_catalog TimeZone=Asia/Shanghai"
    db = connect(Settings(driver="postgres", dsn=dsn, max_open_conns=1), bind=False)
    shown = "SELECT current_setting('search_path'), current_setting('TimeZone')"
    ask(db, "SELECT set_config('search_path', 'public', false)")
    assert ask(db, shown) == ("pg_catalog", "Asia/Shanghai")
    db.close_all()


# Who leaves nothing behind pays nothing


def last_statement(postgres: Place, pid: int) -> str:
    connection = psycopg2.connect(postgres.dsn)
    with connection.cursor() as cursor:
        cursor.execute("SELECT query FROM pg_stat_activity WHERE pid = %s", [pid])
        text = cursor.fetchone()[0]
    connection.close()
    return str(text)


def test_ordinary_work_needs_no_reset(db: Any, postgres: Place) -> None:
    pid = backend(db)
    with db.bind_ctx([Event]), db.connection_context():
        db.create_tables([Event])
    with db.bind_ctx([Event]), db.connection_context():
        with db.atomic():
            event = Event.create(type="a", session_id="s", data={"n": 1}, timestamp=datetime.now(timezone.utc))
            with db.atomic():
                Event.update(type="b").where(Event.id == event.id).execute()
        rows = Event.select(peewee.fn.COUNT(Event.id), peewee.fn.MAX(Event.timestamp)).where(Event.type.in_(["a", "b"]))
        assert rows.tuples()[0][0] == 1
        Event.delete().where(Event.id == event.id).execute()
    assert last_statement(postgres, pid).startswith("DELETE")
    with db.connection_context():
        db.execute_sql("SET work_mem = '99MB'")
    assert last_statement(postgres, pid) == "DISCARD ALL"


@pytest.mark.parametrize(
    "statement",
    [
        'INSERT INTO "a" ("b", "c") VALUES (%s, %s) ON CONFLICT ("b") DO UPDATE SET "c" = EXCLUDED."c" RETURNING "a"."b"',
        'INSERT INTO "s"."a" ("b") SELECT "x" FROM "y" WHERE ("x" IN (%s, %s))',
        'INSERT INTO "a" DEFAULT VALUES',
        'SELECT COUNT(*), COALESCE(MAX("t1"."n"), 0) FROM "t" AS "t1" INNER JOIN "u" ON ("t1"."id" = "u"."id") FOR UPDATE',
        "BEGIN ISOLATION LEVEL SERIALIZABLE",
        '(SELECT "t1"."n" FROM "b" AS "t1") UNION ALL (SELECT "t2"."n" FROM "b" AS "t2")',
        'SELECT "t1"."n" FROM "b" AS "t1" LEFT JOIN LATERAL (SELECT "t2"."n" FROM "b" AS "t2" LIMIT %s) AS "t3" ON %s',
        'SAVEPOINT "s0123";',
        "COMMIT",
    ],
)
def test_ordinary_statements_are_known(statement: str) -> None:
    assert not changes_session(statement)


def test_other_databases_of_peewee_are_left_as_they_are(postgres: Place) -> None:
    arguments = psycopg2.extensions.parse_dsn(postgres.dsn)
    db = PostgresqlExtDatabase(arguments.pop("dbname"), **arguments)
    db.execute_sql("SET work_mem = '99MB'")
    assert db.execute_sql("SHOW work_mem").fetchone() == ("99MB",)
    db.close()


def test_an_idle_connection_is_asked_before_it_is_lent_again(postgres: Place, server: Server) -> None:
    db = connect(
        Settings(driver="postgres", dsn=postgres.dsn, max_open_conns=1, conn_max_lifetime=timedelta(0)), bind=False
    )
    pid = backend(db)
    server.execute(f"SELECT pg_terminate_backend({pid}, 30000)")
    assert backend(db) != pid
    db.close_all()


PIECES = [
    "SELECT ",
    "WHERE",
    "AND",
    "OR",
    "AS",
    "FROM",
    "LIMIT",
    "(",
    ")",
    ".",
    " ",
    '"a"',
    '"t1"."id"',
    "%s",
    "=",
    "9",
]


@given(st.lists(st.sampled_from(PIECES), max_size=10).map("".join))
@example("ASWHERE (9)")
@example('"s".WHERE (9)')
@example('"s". WHERE (9)')
@example("9OR (9)")
def test_statement_that_is_known_at_a_glance_changes_nothing(text: str) -> None:
    statement = f"SELECT {text}"
    # Behind a blank it is not known at a glance, and gets the careful look.
    assert not (_PLAIN.fullmatch(statement) and changes_session(f" {statement}"))
