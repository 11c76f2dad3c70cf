"""What a restore of PostgreSQL cannot bring back is named: left out with a warning, or refused before the swap."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2
import pytest

from tests.backup.postgres_ground import at, done, dump_text, refused, rows, spare
from tests.backup.postgres_ground import backup as backup_command
from tests.conftest import POSTGRES_VERSION, Place, Server, postgres_programs
from tests.servers import Node, new_node
from whatspire_db import Settings, backup

pytestmark = pytest.mark.sampled

ROW = ("CREATE TABLE kept (a integer)", "INSERT INTO kept VALUES (1)")


# Replication slots


@pytest.fixture(scope="module")
def logical(server: Server) -> Iterator[Node]:
    with new_node(server, "-c wal_level=logical -c fsync=off -c autovacuum=off") as node:
        node.make()
        node.start()
        yield node


@contextmanager
def published(node: Node, folder: Path) -> Iterator[Place]:
    """A database with a logical slot that nobody reads at the moment."""
    admin = Place("postgres", node.dsn(), folder)
    rows(admin, "CREATE DATABASE published")
    place = at(admin, "published")
    try:
        rows(place, *ROW, "SELECT pg_create_logical_replication_slot('other', 'pgoutput')")
        yield place
    finally:
        rows(admin, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots", "DROP DATABASE published")


def slots(node: Node) -> list[tuple[str, str]]:
    return node.ask("SELECT slot_name::text, database::text FROM pg_replication_slots")


def test_database_with_a_replication_slot_is_not_replaced(logical: Node, tmp_path: Path) -> None:
    with published(logical, tmp_path) as place:
        done(place, "create")
        rows(place, "INSERT INTO kept VALUES (2)")
        text = refused(place, 4, "restore", "latest", "--force")
        assert "database published has logical replication slots" in text
        assert "pg_drop_replication_slot('other')" in text
        assert slots(logical) == [("other", "published")]
        assert rows(place, "SELECT a FROM kept ORDER BY a") == [(1,), (2,)]
        done(place, "restore", "latest", "--to", "copied")
        assert rows(at(place, "copied"), "SELECT a FROM kept") == [(1,)]
        rows(at(place, "postgres"), "DROP DATABASE copied")


@pytest.mark.soak
def test_database_without_its_slot_is_replaced(logical: Node, tmp_path: Path) -> None:
    with published(logical, tmp_path) as place:
        done(place, "create")
        rows(place, "INSERT INTO kept VALUES (2)", "SELECT pg_drop_replication_slot('other')")
        assert done(place, "restore", "latest", "--force")["kept"] == []
        assert rows(place, "SELECT a FROM kept") == [(1,)]


def test_database_that_gets_a_slot_at_the_last_moment_is_kept(
    logical: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHATSPIRE_PG_BIN", postgres_programs())
    with published(logical, tmp_path) as place:
        settings, folder = Settings(driver="postgres", dsn=place.dsn), tmp_path / "backups"
        rows(place, "SELECT pg_drop_replication_slot('other')")
        taken = backup.create(settings, folder)

        def make(what: str, done: int, total: int) -> None:
            if what == "swapping":
                rows(place, "SELECT pg_create_logical_replication_slot('late', 'pgoutput')")

        (old,) = backup.restore(taken, settings, folder, force=True, progress=make).kept
        assert slots(logical) == [("late", old)]
        rows(place, "SELECT pg_drop_replication_slot('late')")
        rows(at(place, "postgres"), f'DROP DATABASE "{old}"')


# What belongs to extensions


@pytest.mark.soak
def test_sequences_of_extensions_are_made_anew_and_those_of_users_come_back(postgres: Place, server: Server) -> None:
    rows(
        postgres,
        "CREATE EXTENSION vector",
        "CREATE SEQUENCE jobs",
        "CREATE TABLE own (id serial)",
        "ALTER EXTENSION vector ADD SEQUENCE jobs",
        "SELECT nextval('jobs')",
        "INSERT INTO own DEFAULT VALUES",
    )
    made = done(postgres, "create", "--test-restore")
    assert made["content"]["details"]["sequences"] == {"public.own_id_seq": [1, 1]}
    with spare(server) as other:
        done(postgres, "restore", made["path"], "--to", other)
        assert rows(at(postgres, other), "SELECT last_value FROM own_id_seq") == [(1,)]


# Names


@pytest.mark.soak
@pytest.mark.parametrize(
    "separator", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r", "\n", "\r\n"]
)
def test_line_separators_in_names_are_letters(postgres: Place, server: Server, separator: str) -> None:
    tables = [f'"x{separator}77 y"', f'"a{separator}999999; b"', f'"{separator};"']
    for table in tables:
        rows(postgres, f"CREATE TABLE {table} (id integer)", f"INSERT INTO {table} VALUES (42)")
    made = done(postgres, "create", "--test-restore")
    with spare(server) as other:
        done(postgres, "restore", made["path"], "--to", other)
        for table in tables:
            assert rows(at(postgres, other), f"SELECT id FROM {table}") == [(42,)]


# What only a superuser can make


@contextmanager
def plain_role(server: Server, name: str = "plain") -> Iterator[None]:
    server.execute(f"CREATE ROLE {name} LOGIN CREATEDB")
    try:
        yield
    finally:
        server.execute(f"DROP OWNED BY {name} CASCADE", f"DROP ROLE {name}")


SUPERUSERS = {
    "publication everything": ["CREATE PUBLICATION everything FOR ALL TABLES"],
    "publication tables in schema": ["CREATE PUBLICATION whole FOR TABLES IN SCHEMA s"],
    "event trigger watch": [
        "CREATE FUNCTION s.watched() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'",
        "ALTER FUNCTION s.watched() OWNER TO plain",
        "CREATE EVENT TRIGGER watch ON sql_drop EXECUTE FUNCTION s.watched()",
        "COMMENT ON EVENT TRIGGER watch IS 'a comment'",
    ],
    "cast (point as text)": [
        "CREATE CAST (point AS text) WITH INOUT",
        "COMMENT ON CAST (point AS text) IS 'a comment'",
    ],
    "foreign data wrapper none": [
        "CREATE FOREIGN DATA WRAPPER none",
        "CREATE SERVER far FOREIGN DATA WRAPPER none",
        "CREATE FOREIGN TABLE s.distant (a integer DEFAULT 1) SERVER far",
        "ALTER SERVER far OWNER TO plain",
        "ALTER FOREIGN TABLE s.distant OWNER TO plain",
    ],
    "operator family": ["CREATE OPERATOR FAMILY s.own USING btree"],
    "text search template": ["CREATE TEXT SEARCH TEMPLATE s.own (LEXIZE = dsimple_lexize)"],
}


@pytest.mark.soak
@pytest.mark.parametrize("named", SUPERUSERS)
def test_what_a_plain_role_may_not_make_is_left_out_with_a_warning(postgres: Place, server: Server, named: str) -> None:
    with plain_role(server), spare(server, "OWNER plain") as name, spare(server) as other:
        place = at(postgres, name, user="plain")
        rows(place, "CREATE SCHEMA s", "CREATE TABLE s.kept (a integer)", "INSERT INTO s.kept VALUES (1)")
        rows(at(postgres, name), *SUPERUSERS[named])
        made = done(place, "create", "--test-restore", warns="left out: ")
        ran = backup_command(place, "restore", made["path"], "--to", other)
        assert ran.returncode == 0, ran
        assert f"left out: {named}" in ran.stderr.lower()
        assert rows(at(place, other), "SELECT a FROM s.kept") == [(1,)]
        # A superuser restores all of it, and nothing is left out.
        server.execute(f"DROP DATABASE {other}")
        done(at(postgres, name), "restore", made["path"], "--to", other, "--trust-source")
        assert dump_text(at(postgres, other)) == dump_text(at(postgres, name))
        server.execute(f"DROP DATABASE {other}", f"DROP DATABASE {name}")


@pytest.mark.soak
def test_grants_stay_where_only_a_publication_is_a_superusers(postgres: Place, server: Server) -> None:
    with plain_role(server), spare(server, "OWNER plain") as name:
        place = at(postgres, name, user="plain")
        rows(place, "CREATE SCHEMA s", "CREATE TABLE s.kept AS SELECT 1 AS a", "GRANT SELECT ON s.kept TO PUBLIC")
        rows(at(postgres, name), "CREATE PUBLICATION part FOR TABLE s.kept")
        granted = "SELECT relacl::text FROM pg_class WHERE relname = 'kept'"
        before = rows(place, granted)
        made = done(place, "create")
        done(place, "restore", made["path"], "--force")
        assert rows(place, granted) == before
        assert rows(place, "SELECT pubname, tablename FROM pg_publication_tables") == [("part", "kept")]
        server.execute(f"DROP DATABASE {name}")


@pytest.mark.soak
def test_what_tables_need_is_refused_before_the_swap(postgres: Place, server: Server) -> None:
    with plain_role(server), spare(server, "OWNER plain") as name:
        place = at(postgres, name, user="plain")
        rows(
            at(postgres, name),
            "CREATE SCHEMA s AUTHORIZATION plain",
            "CREATE OPERATOR CLASS s.own FOR TYPE integer USING btree AS OPERATOR 1 <, OPERATOR 3 =, "
            "FUNCTION 1 btint4cmp(integer, integer)",
        )
        rows(place, "CREATE TABLE s.kept AS SELECT 1 AS a", "CREATE INDEX by_own ON s.kept (a s.own)")
        made = done(place, "create")
        rows(place, "INSERT INTO s.kept VALUES (2)")
        text = refused(place, 1, "restore", made["path"], "--force")
        assert "operator" in text
        assert "s.own" in text
        assert "superuser" in text
        assert rows(place, "SELECT count(*) FROM s.kept") == [(2,)]
        server.execute(f"DROP DATABASE {name}")


# What derives its rows


BARE = (
    "CREATE FUNCTION norm(t text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT lower(t)'",
    "CREATE FUNCTION slug(t text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN norm(t); END'",
)


@pytest.mark.soak
def test_views_that_cannot_be_refreshed_are_named_and_the_rest_comes_back(postgres: Place, server: Server) -> None:
    rows(
        postgres,
        *ROW,
        "CREATE MATERIALIZED VIEW mine AS SELECT a, current_setting('app.tenant') AS tenant FROM kept WITH NO DATA",
        "SET app.tenant = 'a'; REFRESH MATERIALIZED VIEW mine",
        "CREATE UNIQUE INDEX ON mine (a)",
        "CREATE MATERIALIZED VIEW of_mine AS SELECT count(*) FROM mine",
        "CREATE MATERIALIZED VIEW total AS SELECT count(*) FROM kept",
        "CREATE MATERIALIZED VIEW of_total AS SELECT * FROM total",
        "CREATE MATERIALIZED VIEW empty AS SELECT * FROM kept WITH NO DATA",
    )
    made = done(postgres, "create", "--test-restore", warns="public.mine is restored without its rows")
    with spare(server) as other:
        done(postgres, "restore", made["path"], "--to", other, warns="REFRESH MATERIALIZED VIEW public.mine")
        there = at(postgres, other)
        assert rows(there, "SELECT count FROM of_total") == [(1,)]
        populated = "SELECT matviewname FROM pg_matviews WHERE ispopulated ORDER BY 1"
        assert rows(there, populated) == [("of_total",), ("total",)]
        assert rows(there, "SET app.tenant = 'b'; REFRESH MATERIALIZED VIEW mine", "SELECT a, tenant FROM mine") == [
            (1, "b")
        ]


SECRETS = {
    "by a bare name": (*BARE, "CREATE TABLE page (title text, slug text GENERATED ALWAYS AS (slug(title)) STORED)"),
    "in an index": (*BARE, "CREATE TABLE page (title text)", "CREATE INDEX ON page (slug(title))"),
    "raised": (
        "CREATE TABLE allowed AS SELECT 'Confidential title' AS title",
        "CREATE FUNCTION may(t text) RETURNS boolean LANGUAGE plpgsql AS $$BEGIN "
        "IF NOT EXISTS (SELECT FROM public.allowed WHERE title = t) THEN RAISE EXCEPTION "
        "'function % does not exist', t; END IF; RETURN true; END$$",
        "CREATE TABLE page (title text CHECK (may(title)))",
    ),
}


@pytest.mark.parametrize("how", SECRETS)
def test_dump_that_cannot_be_restored_is_explained_without_its_rows(postgres: Place, how: str) -> None:
    rows(postgres, *SECRETS[how], "INSERT INTO page (title) VALUES ('Confidential title')")
    if how == "raised":
        rows(postgres, "DELETE FROM allowed")
    text = refused(postgres, 1, "create", "--test-restore")
    assert "Confidential" not in text
    assert "page" in text
    assert "search_path" in text
    assert "public.may" in text if how == "raised" else "norm" in text


@pytest.mark.soak
def test_words_of_a_server_are_bounded_and_printable(postgres: Place, server: Server) -> None:
    with plain_role(server), spare(server, "OWNER plain") as name:
        place = at(postgres, name, user="plain")
        odd = '"' + "x\x1b]0;y\x07" * 5 + '"'
        rows(place, "CREATE SCHEMA s", f"CREATE TABLE s.{odd} (a integer)")
        rows(
            at(postgres, name),
            f"CREATE FUNCTION s.{odd}() RETURNS integer LANGUAGE internal AS 'pg_backend_pid'",
            f"CREATE VIEW s.seen AS SELECT s.{odd}() AS a, '{'long ' * 9000}' AS b",
        )
        made = done(place, "create", warns="only a superuser can restore it")
        ran = backup_command(place, "restore", made["path"], "--to", "elsewhere")
        assert ran.returncode == 1
        assert "\x1b" not in ran.stderr
        assert "internal" in ran.stderr
        assert len(ran.stderr) < 2000
        server.execute(f"DROP DATABASE {name}")


# What a backup lacks, said when it is made


@pytest.mark.soak
def test_invalid_index_is_named_when_a_backup_is_made(postgres: Place, server: Server) -> None:
    rows(postgres, *ROW, "INSERT INTO kept VALUES (1)")
    with pytest.raises(psycopg2.errors.UniqueViolation):
        rows(postgres, "CREATE UNIQUE INDEX CONCURRENTLY half ON kept (a)")
    done(postgres, "create", warns="index public.half is INVALID")
    assert "index public.half is INVALID" in backup_command(postgres, "create", "--quiet").stderr
    rows(postgres, "DROP INDEX half")
    done(postgres, "create")


@pytest.mark.soak
def test_options_of_a_user_mapping_that_the_role_may_not_read_are_named(postgres: Place, server: Server) -> None:
    with plain_role(server), spare(server, "OWNER plain") as name:
        place = at(postgres, name, user="plain")
        rows(place, "CREATE SCHEMA s", "CREATE TABLE s.kept AS SELECT 1 AS a")
        rows(
            at(postgres, name),
            "CREATE FOREIGN DATA WRAPPER none",
            "CREATE SERVER far FOREIGN DATA WRAPPER none",
            "CREATE USER MAPPING FOR postgres SERVER far OPTIONS (password 'secret')",
        )
        done(place, "create", warns="user mapping of postgres for server far is in this backup without its options")
        assert done(at(postgres, name), "create")
        server.execute(f"DROP DATABASE {name}")


HAZARDS = {
    "generated column": (*BARE, "CREATE TABLE t (a text, b text GENERATED ALWAYS AS (slug(a)) STORED)"),
    "index": (*BARE, "CREATE TABLE t (a text)", "CREATE INDEX ON t (public.slug(a))"),
    "check": (*BARE, "CREATE TABLE t (a text CHECK (slug(a) <> ''))"),
    "domain": (*BARE, "CREATE DOMAIN d AS text CHECK (slug(VALUE) <> '')", "CREATE TABLE t (a d)"),
    "behind another": (
        *BARE,
        "CREATE FUNCTION outer_one(t text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT public.slug(t)'",
        "CREATE TABLE t (a text CHECK (outer_one(a) <> ''))",
    ),
    "table": (
        "CREATE TABLE norm (a text)",
        "CREATE FUNCTION slug(t text) RETURNS bigint LANGUAGE plpgsql STABLE AS "
        "$$BEGIN RETURN (SELECT count(*) FROM norm WHERE a = t); END$$",
        "CREATE TABLE t (a text CHECK (slug(a) < 9))",
    ),
}


@pytest.mark.parametrize("where", HAZARDS)
def test_function_that_a_restore_cannot_run_is_named_when_a_backup_is_made(postgres: Place, where: str) -> None:
    rows(postgres, *HAZARDS[where])
    done(postgres, "create", warns="function public.slug uses norm by its bare name")


def test_functions_that_a_restore_can_run_are_not_named(postgres: Place) -> None:
    rows(
        postgres,
        BARE[0],
        "CREATE FUNCTION one(t text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS "
        "$$BEGIN RETURN public.norm(t); -- as norm(t) does\nEND$$",
        "CREATE FUNCTION two(t text) RETURNS text LANGUAGE plpgsql IMMUTABLE SET search_path = public AS "
        "'BEGIN RETURN norm(t); END'",
        "CREATE FUNCTION three(t text) RETURNS text LANGUAGE sql IMMUTABLE RETURN norm(t)",
        "CREATE FUNCTION four(t text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN lower(t); END'",
        "CREATE FUNCTION unused(t text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN norm(t); END'",
        "CREATE TABLE t (a text CHECK (one(a) <> '' AND two(a) <> '' AND three(a) <> '' AND four(a) <> ''))",
        "INSERT INTO t VALUES ('x')",
    )
    done(postgres, "create", "--test-restore")


@pytest.mark.soak
def test_functions_that_come_with_a_type_are_no_lack(postgres: Place, server: Server) -> None:
    with plain_role(server), spare(server, "OWNER plain") as name:
        place = at(postgres, name, user="plain")
        rows(place, "CREATE SCHEMA s", "CREATE TYPE s.span AS RANGE (subtype = float8)", "CREATE TABLE s.t (a s.span)")
        made = done(place, "create")
        done(place, "restore", made["path"], "--force")
        server.execute(f"DROP DATABASE {name}")


@pytest.mark.soak
def test_rows_that_change_partitions_are_compared_as_those_of_the_whole(postgres: Place, server: Server) -> None:
    rows(
        postgres,
        "CREATE TYPE mood AS ENUM ('a', 'b', 'c', 'd', 'e', 'f')",
        "CREATE TABLE t (mood mood, n integer) PARTITION BY HASH (mood)",
        *(f"CREATE TABLE t{i} PARTITION OF t FOR VALUES WITH (MODULUS 4, REMAINDER {i})" for i in range(4)),
        "INSERT INTO t SELECT (enum_range(NULL::mood))[1 + n % 6], n FROM generate_series(1, 60) AS n",
    )
    made = done(postgres, "create", "--test-restore")
    with spare(server) as other:
        done(postgres, "restore", made["path"], "--to", other)
        assert rows(at(postgres, other), "SELECT count(*), sum(n) FROM t") == [(60, 1830)]


@pytest.mark.soak
def test_a_setting_of_a_role_does_not_change_what_is_restored(postgres: Place, server: Server) -> None:
    with plain_role(server), spare(server, "OWNER plain") as name:
        place = at(postgres, name, user="plain")
        rows(
            place,
            "CREATE SCHEMA s",
            "CREATE TABLE s.t (a text[])",
            "INSERT INTO s.t VALUES ('{NULL, a}')",
        )
        server.execute("ALTER ROLE plain SET array_nulls = off")
        made = done(place, "create", "--test-restore")
        done(place, "restore", made["path"], "--force")
        assert rows(place, "SELECT a FROM s.t") == [([None, "a"],)]
        server.execute(f"DROP DATABASE {name}")


# Sessions


@pytest.mark.soak
def test_time_limits_of_a_role_end_no_session(postgres: Place, server: Server) -> None:
    with plain_role(server), spare(server, "OWNER plain") as name:
        place = at(postgres, name, user="plain")
        rows(
            place,
            "CREATE SCHEMA s",
            "CREATE TABLE s.kept AS SELECT n AS a, repeat('x', 1000) AS b FROM generate_series(1, 200000) AS n",
            "CREATE MATERIALIZED VIEW s.total AS SELECT count(*) FROM s.kept",
        )
        limits = ["idle_session_timeout", "idle_in_transaction_session_timeout", "lock_timeout"]
        limits += ["transaction_timeout"] if POSTGRES_VERSION >= 17 else []
        server.execute(*[f"ALTER ROLE plain SET {limit} = '1s'" for limit in limits])
        made = done(place, "create", "--test-restore")
        done(place, "restore", made["path"], "--force")
        assert rows(place, "SELECT count FROM s.total") == [(200000,)]
        server.execute(f"DROP DATABASE {name}")


def test_database_that_cannot_be_compared_once_it_is_replaced_is_kept_and_the_warning_says_why(
    postgres: Place, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WHATSPIRE_PG_BIN", postgres_programs())
    with plain_role(server, "own_only"), spare(server, "OWNER own_only") as name:
        place = at(postgres, name, user="own_only")
        rows(place, "CREATE SCHEMA s", "CREATE TABLE s.kept (a integer)", "INSERT INTO s.kept VALUES (1)")
        settings = Settings(driver="postgres", dsn=place.dsn)
        taken = backup.create(settings, postgres.folder)

        def hide(what: str, done: int, total: int) -> None:
            if what == "swapping":
                rows(at(postgres, name), "CREATE TABLE s.hidden (a integer)")

        (old,) = backup.restore(taken, settings, postgres.folder, force=True, progress=hide).kept
        said = [record.getMessage() for record in caplog.records if old in record.getMessage()]
        assert len(said) == 1
        assert said[0].startswith(f"database {old} is kept, because it could not be compared or dropped (")
        assert "permission denied for table hidden" in said[0]
        assert rows(at(postgres, old), "SELECT a FROM s.kept") == [(1,)]
        server.execute(f'DROP DATABASE "{old}"', f"DROP DATABASE {name}")


# Before 18 a generated column is stored, and a row that it cannot be computed for is not there.
TENTH = "10 / a) VIRTUAL" if POSTGRES_VERSION >= 18 else "10 * a) STORED"


@pytest.mark.soak
def test_virtual_column_that_cannot_be_computed_stops_no_backup(postgres: Place, server: Server) -> None:
    rows(
        postgres,
        f"CREATE TABLE t (a integer, b integer GENERATED ALWAYS AS ({TENTH})",
        "INSERT INTO t VALUES (0)",
    )
    made = done(postgres, "create", "--test-restore")
    with spare(server) as other:
        done(postgres, "restore", made["path"], "--to", other)
        assert rows(at(postgres, other), "SELECT a FROM t") == [(0,)]
