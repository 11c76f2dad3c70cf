"""A restore over a database of PostgreSQL: all that belongs to it stays, and no row that was acknowledged is lost."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.extensions
import pytest

from tests import writer
from tests.backup.postgres_ground import (
    MODULE,
    SCRATCH,
    at,
    done,
    dump_text,
    files,
    identifier,
    kept_of,
    name_of,
    refused,
    rows,
    scratches,
    spare,
    two_lines,
)
from tests.conftest import POSTGRES_VERSION, Place, Server, postgres_programs
from tests.servers import GONE as ENDED
from tests.servers import Node, eventually, new_node, psql
from whatspire_db import Settings, backup
from whatspire_db.backup.engines.postgres.server import session
from whatspire_db.backup.engines.postgres.swapping import old_name, replaced
from whatspire_db.dsn.postgres import parse_postgres
from whatspire_db.errors import BackupFailed

pytestmark = pytest.mark.sampled

ROW = ("CREATE TABLE kept (a integer)", "INSERT INTO kept VALUES (1)")
GONE = [f"DROP OWNED BY {role} CASCADE" for role in ("owner", "second", "third")]
CATALOG = """
    SELECT r.rolname, d.encoding, d.datcollate, d.datctype, d.datconnlimit, d.datistemplate,
        (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(d.datacl) AS a),
        shobj_description(d.oid, 'pg_database'), to_jsonb(d) -> 'datlocprovider', to_jsonb(d) -> 'datlocale',
        (SELECT array_agg(s.setrole::regrole || ' ' || s.setconfig::text ORDER BY 1)
            FROM pg_db_role_setting AS s WHERE s.setdatabase = d.oid)
    FROM pg_database AS d JOIN pg_roles AS r ON r.oid = d.datdba WHERE d.datname = %s
"""


def belongings(server: Server, name: str) -> Any:
    """Return what belongs to a database and is in no dump."""
    with closing(server.admin()) as connection, connection.cursor() as cursor:
        cursor.execute(CATALOG, [name])
        return cursor.fetchone()


@contextmanager
def roles(server: Server, **options: str) -> Iterator[None]:
    """Make roles for the block; what they own must be gone by its end."""
    for name, given in options.items():
        server.execute(f"CREATE ROLE {name} {given}")
    try:
        yield
    finally:
        for name in options:
            server.execute(f"DROP OWNED BY {name} CASCADE")
        for name in options:
            server.execute(f"DROP ROLE {name}")


GONE_OR_RENAMED = re.compile(f'{ENDED}|database ".*" does not exist')


# What belongs to a database


def furnish(server: Server, name: str) -> None:
    database = identifier(name)
    server.execute(
        f"ALTER DATABASE {database} OWNER TO owner",
        f"ALTER DATABASE {database} CONNECTION LIMIT 50",
        f"COMMENT ON DATABASE {database} IS 'it''s a \\ comment'",
        f'ALTER DATABASE {database} SET search_path = "$user", "Odd ""Schema, one", public',
        f"ALTER DATABASE {database} SET statement_timeout = '90s'",
        f"ALTER DATABASE {database} SET application_name = E'it''s a \\\\ \"name\"'",
        f"ALTER DATABASE {database} SET \"own.Setting\" = 'a=b, c'",
        f"ALTER DATABASE {database} SET default_transaction_isolation = 'repeatable read'",
        f"ALTER ROLE third IN DATABASE {database} SET search_path = 'none'",
        f"ALTER ROLE third IN DATABASE {database} SET work_mem = '7MB'",
        f"REVOKE CONNECT ON DATABASE {database} FROM PUBLIC",
        f"GRANT CONNECT ON DATABASE {database} TO third",
        f"GRANT CREATE, TEMPORARY ON DATABASE {database} TO second WITH GRANT OPTION",
        f"REVOKE TEMPORARY ON DATABASE {database} FROM owner",
        f"SET ROLE second; GRANT TEMPORARY ON DATABASE {database} TO third",
    )


@pytest.mark.soak
def test_all_that_belongs_to_a_database_stays_with_its_name(postgres: Place, server: Server) -> None:
    name = name_of(postgres)
    with ExitStack() as cleanup:
        cleanup.enter_context(roles(server, owner="", second="", third="LOGIN"))
        cleanup.callback(server.execute, f"ALTER DATABASE {name} OWNER TO postgres")
        cleanup.callback(rows, postgres, *GONE)
        furnish(server, name)
        psql(
            postgres.dsn,
            "CREATE SCHEMA hers AUTHORIZATION second; GRANT USAGE ON SCHEMA hers TO owner; CREATE TABLE hers.kept (a integer, b text);"
            "INSERT INTO hers.kept VALUES (1, 'x'); ALTER TABLE hers.kept OWNER TO owner;"
            "SET ROLE owner; GRANT SELECT, INSERT ON hers.kept TO second WITH GRANT OPTION;"
            "GRANT UPDATE (b) ON hers.kept TO third; RESET ROLE;"
            "ALTER DEFAULT PRIVILEGES FOR ROLE owner IN SCHEMA hers GRANT SELECT ON TABLES TO third;",
        )
        before, content = belongings(server, name), dump_text(postgres)
        made = done(postgres, "create")
        rows(postgres, "INSERT INTO hers.kept VALUES (2, 'late')")
        done(postgres, "restore", made["path"], "--force", "--trust-source")
        assert belongings(server, name) == before
        assert dump_text(postgres) == content
        assert kept_of(server, name) == []
        # Where there is no such database, all is as the manifest tells.
        with spare(server) as other:
            done(postgres, "restore", made["path"], "--to", other, "--trust-source")
            assert belongings(server, other) == before
            assert dump_text(at(postgres, other)) == content
            rows(at(postgres, other), *GONE)
        # What belongs to roles that are not there is left out.
        rows(postgres, "DROP OWNED BY third CASCADE")
        server.execute(f"ALTER ROLE third IN DATABASE {name} RESET ALL")
        server.execute("ALTER ROLE third RENAME TO fourth")
        cleanup.callback(server.execute, "ALTER ROLE fourth RENAME TO third")
        with spare(server) as other:
            done(
                postgres,
                "restore",
                made["path"],
                "--to",
                other,
                "--trust-source",
                warns="grants are left out: there is no role third",
            )
            assert "third" not in repr(belongings(server, other))
            assert belongings(server, other)[0] == "owner"
            assert rows(at(postgres, other), "SELECT tableowner FROM pg_tables WHERE schemaname = 'hers'") == [
                ("owner",)
            ]
            rows(at(postgres, other), *GONE[:2])
            server.execute(f"ALTER DATABASE {other} OWNER TO postgres")


@pytest.mark.soak
@pytest.mark.parametrize("moment", ["analyzing", "swapping"])
def test_what_is_set_for_a_database_while_it_is_restored_is_not_lost(
    postgres: Place, server: Server, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.setenv("WHATSPIRE_PG_BIN", postgres_programs())
    name = name_of(postgres)
    rows(postgres, *ROW)
    settings = Settings(driver="postgres", dsn=postgres.dsn)
    taken = backup.create(settings, postgres.folder)

    def change(what: str, done: int, total: int) -> None:
        if what == moment:
            server.execute(
                f"ALTER DATABASE {name} SET statement_timeout = '77s'",
                f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC",
                f"ALTER DATABASE {name} CONNECTION LIMIT 9",
                f"COMMENT ON DATABASE {name} IS 'late'",
            )

    told = backup.restore(taken, settings, postgres.folder, force=True, progress=change)
    assert told.kept == tuple(kept_of(server, name))
    # What came too late stays with the old database.
    late = belongings(server, told.kept[0] if moment == "swapping" else name)
    assert late[4] == 9
    assert late[7] == "late"
    assert "statement_timeout=77s" in repr(late)
    assert len(told.kept) == (moment == "swapping")
    for old in told.kept:
        server.execute(f'DROP DATABASE "{old}"')


NAMES = ['UPPER "quoted" it\'s \\', "postgres://u:p@h/d", "ü" * 31 + "x"]
MORE_NAMES = ["a b", "ünï 🎉", "n" * 63, "-c x=y", "%s %(name)s", "$x;--"]


@pytest.mark.parametrize("name", [*NAMES, *[pytest.param(name, marks=pytest.mark.soak) for name in MORE_NAMES]])
def test_any_name_is_backed_up_and_restored(postgres: Place, server: Server, name: str) -> None:
    place = at(postgres, name)
    server.execute(f"CREATE DATABASE {identifier(name)}")
    try:
        rows(place, *ROW)
        made = done(place, "create", "--test-restore")
        rows(place, "INSERT INTO kept VALUES (2)")
        told = done(place, "restore", "latest", "--force")
        assert rows(place, "SELECT a FROM kept") == [(1,)]
        server.execute(f"DROP DATABASE {identifier(name)}")
        done(place, "restore", told["safety_backup"])
        assert rows(place, "SELECT a FROM kept") == [(1,), (2,)]
        assert made["source"].endswith(f" {name}")
    finally:
        server.execute(f"DROP DATABASE IF EXISTS {identifier(name)} WITH (FORCE)")


LIKENESSES = ["ENCODING 'LATIN1' LOCALE 'C'", "ENCODING 'SQL_ASCII' LOCALE 'C'"]
if POSTGRES_VERSION >= 17:
    LIKENESSES += ["LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'"]


@pytest.mark.soak
@pytest.mark.parametrize("likeness", LIKENESSES)
def test_encoding_and_locale_stay(postgres: Place, server: Server, likeness: str) -> None:
    with spare(server, f"TEMPLATE template0 {likeness}") as name, spare(server) as other:
        place = at(postgres, name)
        psql(
            place.dsn,
            'SET client_encoding = \'UTF8\'; CREATE TABLE "Ünï" ("ä" text COLLATE "C", b text);'
            "INSERT INTO \"Ünï\" VALUES ('ö', 'z'), ('o', 'Ä')",
        )
        before = belongings(server, name)
        made = done(place, "create", "--test-restore")
        done(place, "restore", made["path"], "--force")
        done(place, "restore", made["path"], "--to", other)
        assert belongings(server, name) == belongings(server, other) == before
        assert dump_text(at(postgres, other)) == dump_text(place)


@pytest.mark.soak
@pytest.mark.parametrize("setting", ["quote_all_identifiers = on", "client_encoding = 'LATIN1'"])
def test_what_a_setting_does_to_names_and_texts_stops_nothing(postgres: Place, server: Server, setting: str) -> None:
    rows(postgres, "CREATE TABLE kept (a text)", "INSERT INTO kept VALUES ('€')", "COMMENT ON TABLE kept IS '€'")
    before = dump_text(postgres)
    server.execute(f"ALTER DATABASE {name_of(postgres)} SET {setting}")
    made = done(postgres, "create", "--test-restore")
    assert done(postgres, "restore", made["path"], "--force")["kept"] == []
    assert setting.split()[0] in repr(belongings(server, name_of(postgres)))
    server.execute(f"ALTER DATABASE {name_of(postgres)} RESET ALL")
    assert dump_text(postgres) == before


@pytest.mark.soak
def test_dsn_that_reads_alone_restores_all_the_same(postgres: Place) -> None:
    rows(postgres, *ROW)
    place = at(postgres, name_of(postgres), options="-c default_transaction_read_only=on -c work_mem=5MB")
    made = done(place, "create", "--test-restore")
    done(place, "restore", made["path"], "--force")
    assert rows(place, "SELECT a FROM kept") == [(1,)]


# What a database holds


@pytest.mark.soak
def test_views_on_tables_never_double_rows(postgres: Place, server: Server) -> None:
    rows(
        postgres,
        *ROW,
        "CREATE VIEW seen AS SELECT a FROM kept",
        "CREATE MATERIALIZED VIEW counted AS SELECT count(*) FROM seen",
        "CREATE VIEW again AS SELECT * FROM counted, seen",
    )
    made = done(postgres, "create", "--test-restore")
    content = dump_text(postgres)
    for _ in range(2):
        rows(
            postgres,
            "CREATE VIEW late AS SELECT a FROM kept",
            "INSERT INTO kept VALUES (2)",
            "REFRESH MATERIALIZED VIEW counted",
        )
        done(postgres, "restore", made["path"], "--force")
        assert dump_text(postgres) == content
        assert rows(postgres, "SELECT (SELECT count(*) FROM kept), count FROM counted") == [(1, 1)]


@pytest.mark.soak
def test_large_objects_are_data_too(postgres: Place) -> None:
    rows(postgres, "CREATE TABLE empty (a integer)")
    made = done(postgres, "create")
    rows(postgres, "SELECT lo_from_bytea(4711, '\\x00ff')")
    text = refused(postgres, 4, "restore", made["path"])
    assert "holds data" in text
    told = done(postgres, "restore", made["path"], "--force")
    assert rows(postgres, "SELECT count(*) FROM pg_largeobject_metadata") == [(0,)]
    rows(postgres, "DROP TABLE empty", "SELECT lo_from_bytea(4712, '\\x00')")
    assert "holds data" in refused(postgres, 4, "restore", told["safety_backup"])
    done(postgres, "restore", told["safety_backup"], "--force")
    assert rows(postgres, "SELECT lo_get(4711)::text, count(*) OVER () FROM pg_largeobject_metadata") == [
        ("\\x00ff", 1)
    ]


@pytest.mark.soak
def test_backup_of_a_standby_restores_unlogged_tables_without_their_rows(server: Server, tmp_path: Path) -> None:
    with new_node(server, "-c fsync=off") as primary, new_node(server, "-c fsync=off") as standby:
        primary.make()
        primary.start()
        place = Place("postgres", primary.dsn("source"), tmp_path)
        rows(at(place, "postgres"), "CREATE DATABASE source")
        rows(place, *ROW, "CREATE UNLOGGED TABLE fast (id serial, a text)", "INSERT INTO fast (a) VALUES ('x')")
        standby.copy(primary)
        standby.start()
        made = done(Place("postgres", standby.dsn("source"), tmp_path), "create", warns="unlogged table public.fast")
        assert made["content"]["tables"]["public.fast"]["rows"] == 0
        done(place, "verify", made["path"], "--test-restore")
        done(place, "restore", made["path"], "--force")
        assert rows(place, "SELECT a, (SELECT count(*) FROM fast) FROM kept") == [(1, 0)]


@pytest.mark.soak
def test_schemas_whose_names_begin_with_that_of_an_extensions_are_restored(postgres: Place, server: Server) -> None:
    rows(
        postgres,
        "CREATE SCHEMA x",
        "CREATE EXTENSION vector SCHEMA x",
        'CREATE SCHEMA "public data"',
        'CREATE SCHEMA "x y"',
        'CREATE TABLE "x y".kept AS SELECT 1 AS a',
        'CREATE TABLE "public data".kept AS SELECT 2 AS a',
    )
    made = done(postgres, "create")
    before = dump_text(postgres)
    for schema in ("x", "public"):
        with spare(server, "") as other:
            place = at(postgres, other)
            rows(place, f"CREATE SCHEMA IF NOT EXISTS {schema}", f"CREATE EXTENSION vector SCHEMA {schema}")
            done(place, "restore", made["path"], "--to", other)
            assert rows(place, 'SELECT a, (SELECT a FROM "public data".kept) FROM "x y".kept') == [(1, 2)]
            assert schema == "public" or dump_text(place) == before


# Before 17 there is none that fires when a session begins.
EVENT = "login" if POSTGRES_VERSION >= 17 else "sql_drop"


@pytest.mark.soak
def test_trigger_that_writes_when_a_session_begins_stops_nothing(postgres: Place, server: Server) -> None:
    rows(
        postgres,
        "CREATE TABLE seen (a text)",
        "CREATE FUNCTION see() RETURNS event_trigger LANGUAGE plpgsql AS "
        "$$BEGIN INSERT INTO public.seen VALUES (current_user); END$$",
        f"CREATE EVENT TRIGGER seeing ON {EVENT} EXECUTE FUNCTION see()",
        "ALTER EVENT TRIGGER seeing ENABLE ALWAYS",
    )
    made = done(postgres, "create", "--test-restore")
    told = done(postgres, "restore", made["path"], "--force")
    count = made["content"]["tables"]["public.seen"]["rows"]
    fires = POSTGRES_VERSION >= 17
    assert rows(postgres, "SELECT count(*) FROM seen") == [(count + fires,)]
    for old in told["kept"]:
        server.execute(f'DROP DATABASE "{old}"')  # the backup's own sessions wrote after its snapshot


# Makes a table the configuration of an extension, as its script would by pg_extension_config_dump.
CONFIGURED = (
    "CREATE EXTENSION vector",
    "CREATE TABLE job (name text, is_given boolean)",
    "INSERT INTO job VALUES ('given', true)",
    "GRANT ALL ON job TO PUBLIC",
    "ALTER EXTENSION vector ADD TABLE job",
    "UPDATE pg_extension SET extconfig = ARRAY['job'::regclass]::oid[], extcondition = ARRAY['WHERE NOT job.is_given'] "
    "WHERE extname = 'vector'",
)


@pytest.mark.soak
def test_rows_that_users_gave_to_an_extension_are_data_too(
    postgres: Place, server: Server, template: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHATSPIRE_PG_BIN", postgres_programs())
    rows(template, *CONFIGURED)
    job = "SELECT name FROM job ORDER BY 1"
    # A plain role's databases are copied from this template: those of a superuser would make the extension anew.
    with roles(server, plain="LOGIN CREATEDB"), spare(server, "OWNER plain") as name:
        place = at(postgres, name, user="plain")
        assert "nothing to back up" in refused(place, 1, "create")
        rows(place, "INSERT INTO job VALUES ('mine', false)")
        made = done(place, "create", "--test-restore")
        assert {table: one["rows"] for table, one in made["content"]["tables"].items()} == {"public.job": 1}
        rows(place, "INSERT INTO job VALUES ('second', false)")
        assert "holds data" in refused(place, 4, "restore", made["path"])
        told = done(place, "restore", made["path"], "--force")
        assert (told["kept"], rows(place, job)) == ([], [("given",), ("mine",)])
        settings = Settings(driver="postgres", dsn=place.dsn)

        def make(what: str, done: int, total: int) -> None:
            if what == "swapping":
                rows(place, "INSERT INTO job VALUES ('late', false)")

        taken = backup.find("latest", place.folder / "backups", settings)
        (old,) = backup.restore(taken, settings, place.folder / "backups", force=True, progress=make).kept
        assert rows(at(place, old), job) == [("given",), ("late",), ("mine",)]
        server.execute(f'DROP DATABASE "{old}"', f"DROP DATABASE {name}")


# Roles that may not do everything


@pytest.mark.soak
def test_role_without_the_right_to_make_databases_is_refused(postgres: Place, server: Server) -> None:
    name = name_of(postgres)
    with roles(server, clerk="LOGIN NOSUPERUSER NOCREATEDB"):
        server.execute(f"ALTER DATABASE {name} OWNER TO clerk")
        place = at(postgres, name, user="clerk")
        rows(place, *ROW)
        made = done(place, "create")
        assert "permission denied to create database" in refused(place, 1, "restore", made["path"], "--force")
        assert "permission denied to create database" in refused(place, 1, "create", "--test-restore")
        assert rows(place, "SELECT a FROM kept") == [(1,)]
        assert scratches(server) == []
        rows(place, "DROP TABLE kept")
        done(place, "restore", made["path"])
        assert rows(place, "SELECT a FROM kept") == [(1,)]
        server.execute(f"ALTER DATABASE {name} OWNER TO postgres")
        rows(postgres, "DROP TABLE kept")


@pytest.mark.soak
def test_grants_of_a_plain_owner_stay(postgres: Place, server: Server) -> None:
    with roles(server, plain="LOGIN CREATEDB", reader="LOGIN"), spare(server, "OWNER plain") as name:
        place = at(postgres, name, user="plain")
        rows(
            place,
            "CREATE TEMPORARY TABLE gone (a integer)",  # its schema is the first superuser's, and stays
            "CREATE SCHEMA s",
            "CREATE TABLE s.kept (a integer)",
            "INSERT INTO s.kept VALUES (1)",
            "GRANT USAGE ON SCHEMA s, public TO reader",
            "GRANT SELECT, UPDATE (a) ON s.kept TO reader WITH GRANT OPTION",
            "ALTER DEFAULT PRIVILEGES IN SCHEMA s GRANT SELECT ON TABLES TO reader",
            "ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC",
        )
        before = dump_text(place)
        made = done(place, "create", "--test-restore")
        done(place, "restore", made["path"], "--force")
        assert dump_text(place) == before
        assert rows(at(place, name, user="reader"), "SELECT a FROM s.kept") == [(1,)]
        # What another one granted cannot be granted again in its name.
        rows(at(place, name, user="reader"), "GRANT SELECT ON s.kept TO PUBLIC")
        made = done(place, "create")
        done(place, "restore", made["path"], "--force", warns="may not grant in the name of reader")
        assert rows(place, "SELECT relacl, relowner::regrole::text FROM pg_class WHERE relname = 'kept'") == [
            (None, "plain")
        ]
        server.execute(f"DROP DATABASE {name}")


@pytest.mark.soak
def test_member_that_may_not_act_for_the_owner_restores_as_its_own(postgres: Place, server: Server) -> None:
    with roles(server, owner="", boss="LOGIN CREATEDB"), spare(server) as other:
        server.execute("GRANT owner TO boss WITH ADMIN TRUE, SET FALSE, INHERIT TRUE")
        rows(postgres, *ROW, "ALTER TABLE kept OWNER TO owner")
        server.execute(f"ALTER DATABASE {name_of(postgres)} OWNER TO owner")
        made = done(postgres, "create")
        place = at(postgres, other, user="boss")
        done(place, "restore", made["path"], "--to", other, warns="belongs to this role")
        assert rows(place, "SELECT tableowner FROM pg_tables WHERE tablename = 'kept'") == [("boss",)]
        assert belongings(server, other)[0] == "boss"
        server.execute(f"DROP DATABASE {other}", f"ALTER DATABASE {name_of(postgres)} OWNER TO postgres")
        rows(postgres, "DROP TABLE kept")


@pytest.mark.parametrize("whose", ["DATABASE {}", "ROLE reader IN DATABASE {}"])
def test_setting_that_the_role_may_not_make_is_told_before_any_work(
    postgres: Place, server: Server, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    monkeypatch.setenv("WHATSPIRE_PG_BIN", postgres_programs())
    with roles(server, plain="LOGIN CREATEDB", reader="LOGIN"), spare(server, "OWNER plain") as name:
        place = at(postgres, name, user="plain")
        rows(place, "CREATE SCHEMA s", "CREATE TABLE s.kept AS SELECT 1 AS a")
        server.execute(f"ALTER {whose.format(name)} SET log_min_duration_statement = '250ms'")
        settings, done_so_far = Settings(driver="postgres", dsn=place.dsn), set()
        taken = backup.create(settings, place.folder)
        with pytest.raises(BackupFailed) as caught:
            backup.restore(taken, settings, place.folder, force=True, progress=lambda what, *_: done_so_far.add(what))
        assert "log_min_duration_statement" in caught.value.fact
        assert "log_min_duration_statement" in caught.value.hint
        assert "restoring" not in done_so_far
        assert scratches(server) == []
        server.execute(f"ALTER {whose.format(name)} RESET ALL", f"DROP DATABASE {name}")


@pytest.mark.soak
def test_schema_public_of_a_superuser_costs_a_plain_owner_no_grants(postgres: Place, server: Server) -> None:
    with roles(server, plain="LOGIN CREATEDB"), spare(server, "OWNER plain") as name:
        place = at(postgres, name, user="plain")
        rows(at(postgres, name), "ALTER SCHEMA public OWNER TO postgres", "GRANT ALL ON SCHEMA public TO PUBLIC")
        rows(place, *ROW, "GRANT SELECT ON kept TO PUBLIC")
        granted = "SELECT relacl::text FROM pg_class WHERE relname = 'kept'"
        before = rows(place, granted)
        made = done(place, "create")
        done(place, "restore", made["path"], "--force", warns="schema public is left as it is made")
        assert rows(place, granted) == before
        server.execute(f"DROP DATABASE {name}")


@pytest.mark.soak
@pytest.mark.parametrize(
    "named",
    ["CREATE POLICY own ON kept TO reader USING (true)", "CREATE USER MAPPING FOR reader SERVER far"],
)
def test_missing_role_that_is_named_is_told_before_any_work(postgres: Place, server: Server, named: str) -> None:
    with roles(server, reader=""):
        rows(postgres, *ROW, "CREATE FOREIGN DATA WRAPPER none", "CREATE SERVER far FOREIGN DATA WRAPPER none", named)
        made = done(postgres, "create", "--test-restore")
        done(postgres, "restore", made["path"], "--force")
        rows(postgres, "DROP OWNED BY reader")
    for verb in (["restore", made["path"], "--force"], ["verify", made["path"], "--test-restore"]):
        text = refused(postgres, 4, *verb)
        assert "that are not there: reader" in text
        assert 'CREATE ROLE "reader"' in text
    assert rows(postgres, "SELECT a FROM kept") == [(1,)]


@pytest.mark.soak
def test_missing_tablespace_is_left_out(postgres: Place, server: Server) -> None:
    space = "SELECT (SELECT spcname FROM pg_tablespace WHERE oid = reltablespace) FROM pg_class WHERE relname = 'kept'"
    rows(at(postgres, "postgres"), "SET allow_in_place_tablespaces = on", "CREATE TABLESPACE aside LOCATION ''")
    try:
        rows(postgres, *ROW, "ALTER TABLE kept SET TABLESPACE aside")
        made = done(postgres, "create", "--test-restore")
        done(postgres, "restore", made["path"], "--force")
        assert rows(postgres, space) == [("aside",)]
        rows(postgres, "DROP TABLE kept")
    finally:
        server.execute("DROP TABLESPACE aside")
    done(postgres, "restore", made["path"], warns="no right to aside")
    assert rows(postgres, space) == [(None,)]
    assert rows(postgres, "SELECT a FROM kept") == [(1,)]


@pytest.mark.soak
def test_plain_role_restores_a_superusers_backup_as_its_own(postgres: Place, server: Server) -> None:
    rows(postgres, *ROW, "CREATE VIEW seen AS SELECT a FROM kept", "GRANT SELECT ON kept TO PUBLIC")
    made = done(postgres, "create")
    with roles(server, plain="LOGIN NOSUPERUSER CREATEDB"), spare(server) as other:
        place = at(postgres, name_of(postgres), user="plain")
        done(place, "restore", made["path"], "--to", other, warns="belongs to this role")
        assert rows(
            at(place, other),
            "SELECT a, (SELECT relowner::regrole::text FROM pg_class WHERE relname = 'kept') FROM seen",
        ) == [(1, "plain")]
        assert belongings(server, other)[0] == "plain"
        server.execute(f"DROP DATABASE {other}")


@pytest.mark.soak
def test_backup_of_a_server_with_another_superuser_restores(postgres: Place, server: Server, node: Node) -> None:
    # There all is the first superuser's, of whom the catalog of dependencies says nothing.
    there = Place("postgres", node.dsn("source"), postgres.folder)
    node.ask("SELECT 1")
    with closing(psycopg2.connect(node.dsn())) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("CREATE DATABASE source")
            cursor.execute("CREATE ROLE root_of_another SUPERUSER LOGIN")
    rows(there, *ROW, "CREATE SCHEMA hers", "CREATE TYPE hers.mood AS ENUM ('ok')")
    with closing(psycopg2.connect(f"{node.dsn()} user=root_of_another")) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("ALTER ROLE postgres RENAME TO whatspire")
    there = at(there, "source", user="root_of_another")
    try:
        made = done(there, "create")
    finally:
        rows(there, "ALTER ROLE whatspire RENAME TO postgres")
    with spare(server) as other:
        done(postgres, "restore", made["path"], "--to", other, "--trust-source", warns="belongs to this role")
        assert rows(at(postgres, other), "SELECT a FROM kept") == [(1,)]


@pytest.mark.soak
def test_what_another_role_left_behind_stops_nobody(postgres: Place, server: Server) -> None:
    rows(postgres, *ROW)
    left = "whatspire_scratch_0123456789ab"
    with roles(server, plain="LOGIN NOSUPERUSER CREATEDB"), spare(server, "OWNER plain") as name:
        place = at(postgres, name, user="plain")
        rows(place, *ROW)
        server.execute(f"CREATE DATABASE {left} IS_TEMPLATE true")
        try:
            done(place, "create", "--test-restore")
            assert scratches(server) == [left]
            done(postgres, "create", "--test-restore")
            assert scratches(server) == []
        finally:
            server.execute(
                *[f"ALTER DATABASE {n} IS_TEMPLATE false" for n in scratches(server)],
                f"DROP DATABASE IF EXISTS {left}",
                f"DROP DATABASE {name}",
            )


NEAREST = "SELECT array_agg(id) FROM (SELECT id FROM near ORDER BY e <-> '[0.1,{},0.5]' LIMIT 9) AS n"


@pytest.fixture
def template(server: Server) -> Iterator[Place]:
    """template1, which is left as it was."""
    place = Place("postgres", server.of_database("template1"), Path())
    yield place
    rows(place, "DROP EXTENSION IF EXISTS vector")


@pytest.mark.soak
def test_extension_that_the_role_may_not_create(postgres: Place, server: Server, template: Place) -> None:
    with roles(server, plain="LOGIN NOSUPERUSER CREATEDB"), spare(server, "OWNER plain") as name:
        rows(at(postgres, name), "CREATE EXTENSION vector")
        place = at(postgres, name, user="plain")
        rows(
            place,
            "CREATE TABLE near (id serial PRIMARY KEY, e vector(3))",
            "INSERT INTO near (e) SELECT ARRAY[sin(n), cos(n), n / 100.0]::real[]::vector "
            "FROM generate_series(1, 300) AS n",
            "CREATE INDEX ON near USING hnsw (e vector_l2_ops)",
        )
        nearest = ["SET enable_seqscan = off", *[NEAREST.format(n / 7) for n in range(5)]]
        wanted = [rows(place, nearest[0], asked) for asked in nearest[1:]]
        made = done(place, "create")
        for verb in (
            ["create", "--test-restore"],
            ["restore", made["path"], "--force"],
            ["restore", made["path"], "--to", "elsewhere"],
        ):
            text = refused(place, 1, *verb)
            assert "may not create the extension vector" in text
            assert "CREATE EXTENSION vector in template1" in text
        assert scratches(server) == []
        with spare(server, "OWNER plain") as other:
            rows(at(postgres, other), "CREATE EXTENSION vector")
            done(place, "restore", made["path"], "--to", other)
            assert [rows(at(place, other), nearest[0], asked) for asked in nearest[1:]] == wanted
            server.execute(f"DROP DATABASE {other}")
        rows(template, "CREATE EXTENSION vector")
        rows(place, "DELETE FROM near WHERE id < 200")
        assert done(place, "create", "--test-restore")["tested_at"]
        done(place, "restore", made["path"], "--force")
        assert [rows(place, nearest[0], asked) for asked in nearest[1:]] == wanted
        server.execute(f"DROP DATABASE {name}")


@pytest.fixture(scope="module")
def node(server: Server) -> Iterator[Node]:
    with new_node(server, "-c max_prepared_transactions=5 -c wal_level=logical -c fsync=off") as node:
        node.make()
        node.start()
        yield node


# Others at work


@contextmanager
def worker(dsn: str, folder: Path, *writers: str) -> Iterator[subprocess.Popen[str]]:
    """Let a process write through the package's pool for the block."""
    command = [sys.executable, "-m", "tests.writer", dsn, str(folder), *writers]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        out, _ = process.communicate(timeout=90)
        told = json.loads(out)
        assert (told["hanging"], told["pool"]["in_use"]) == ([], 0)


def notes(folder: Path, *writers: str) -> list[list[Any]]:
    """Return what writers noted of each attempt: its key, when it began and ended, and the error."""
    lines = [line for writer in writers for line in (folder / writer).read_text().splitlines(keepends=True)]
    return [json.loads(line) for line in lines if line.endswith("\n")]


def acknowledged(folder: Path, *writers: str) -> set[str]:
    return {key for key, _, _, error, _ in notes(folder, *writers) if not error}


class Standing:
    """Sessions of every kind in a database, held open in threads."""

    STATEMENTS = ("SELECT 1", "SELECT count(*), pg_sleep(600) FROM entry", "LOCK TABLE tally IN ACCESS SHARE MODE")

    def __init__(self, place: Place) -> None:
        self.connections = [psycopg2.connect(place.dsn) for _ in self.STATEMENTS]
        self.connections[0].autocommit = True
        self.threads = []
        for connection, statement in zip(self.connections, self.STATEMENTS, strict=True):
            self.threads.append(threading.Thread(target=self._run, args=(connection, statement)))
            self.threads[-1].start()
        asked = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{name_of(place)}' AND query LIKE '%{{}}%'"
        for statement in self.STATEMENTS:
            eventually(lambda s=statement: rows(at(place, "postgres"), asked.format(s)) == [(1,)], statement)

    @staticmethod
    def _run(connection: Any, statement: str) -> None:
        try:
            connection.cursor().execute(statement)
        except psycopg2.Error:
            pass

    def ended(self) -> bool:
        """Tell whether all of them have been ended, and close them."""
        for thread in self.threads:
            thread.join(30)
        alive = 0
        for connection in self.connections:
            try:
                connection.cursor().execute("SELECT 1")
                alive += 1
            except psycopg2.Error:
                connection.close()
        return not alive


def keys(place: Place) -> list[str]:
    return [key for (key,) in rows(place, "SELECT key FROM entry")]


def restored_under_writers(postgres: Place, server: Server, folder: Path) -> dict[str, int]:
    """Restore while others write; return how many acknowledged rows were found where."""
    writers = [f"w{number}" for number in range(4)]
    rows(postgres, writer.TABLES, *[f"INSERT INTO tally VALUES ('{name}', 0)" for name in writers])
    rows(postgres, "INSERT INTO entry SELECT 'before ' || n, 'w0' FROM generate_series(1, 5000) AS n")
    done(postgres, "create")
    for name in writers:
        (folder / name).touch()
    with worker(postgres.dsn, folder, *writers):
        for name in writers:
            eventually(lambda name=name: len(acknowledged(folder, name)) > 5, f"{name} writes")
        standing = Standing(postgres)
        told = done(postgres, "restore", "latest", "--force")
        assert standing.ended()
        swapped = {name: len(acknowledged(folder, name)) for name in writers}
        for name in writers:
            eventually(lambda name=name: len(acknowledged(folder, name)) > swapped[name] + 3, f"{name} goes on")
    found = {"new": keys(postgres), "safety": [], "old": []}
    with spare(server) as other:
        done(postgres, "restore", told["safety_backup"], "--to", other)
        found["safety"] = keys(at(postgres, other))
    kept = kept_of(server, name_of(postgres))
    assert kept == told["kept"]
    for name in kept:
        found["old"] = keys(at(postgres, name))
        server.execute(f'DROP DATABASE "{name}"')
        assert set(found["old"]) >= set(found["safety"])
    assert all(len(place) == len(set(place)) for place in found.values())
    written = acknowledged(folder, *writers)
    assert written - set().union(*found.values()) == set()
    assert not set(found["new"]) & set(found["safety"]) & written
    assert sum(key.startswith("before ") for key in found["new"]) == 5000
    errors = {f"{error}: {text}" for _, _, _, error, text in notes(folder, *writers) if error}
    assert all(GONE_OR_RENAMED.search(error) for error in errors), errors
    only_old = len(set(found["old"]) & written - set(found["safety"]))
    return {
        "acknowledged": len(written),
        "safety": len(set(found["safety"]) & written),
        "only in the old database": only_old,
        "new": len(set(found["new"]) & written),
        "failed attempts": sum(bool(error) for _, _, _, error, _ in notes(folder, *writers)),
    }


@pytest.mark.soak
def test_acknowledged_rows_are_never_lost_and_workers_go_on(postgres: Place, server: Server, tmp_path: Path) -> None:
    found = restored_under_writers(postgres, server, tmp_path)
    assert min(found["safety"], found["new"]) > 0


@pytest.mark.soak
def test_acknowledged_rows_are_never_lost_by_any_of_many_restores(
    postgres: Place, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = []
    for number in range(20):
        (tmp_path / str(number)).mkdir()
        told.append(restored_under_writers(postgres, server, tmp_path / str(number)))
    with capsys.disabled():
        sys.stdout.write(f"\n20 restores: { {key: sum(one[key] for one in told) for key in told[0]} }\n")
    assert sum(one["only in the old database"] for one in told) > 0


@pytest.mark.soak
def test_database_that_others_hold_is_refused_and_unchanged(server: Server, node: Node, tmp_path: Path) -> None:
    places = {name: Place("postgres", f"{node.dsn(name)}", tmp_path / name) for name in ("prepared", "held")}
    admin = Place("postgres", node.dsn(), tmp_path)
    rows(admin, "CREATE ROLE plain LOGIN CREATEDB")
    content = {}
    for name, place in places.items():
        place.folder.mkdir()
        rows(admin, f"CREATE DATABASE {name} OWNER plain")
        rows(at(place, name, user="plain"), *ROW)
        rows(admin, f"ALTER DATABASE {name} IS_TEMPLATE true")
        done(place, "create")
        rows(place, "INSERT INTO kept VALUES (2)")
        content[name] = dump_text(place)
    rows(places["prepared"], "BEGIN; INSERT INTO kept VALUES (3); PREPARE TRANSACTION 'one'")
    with closing(psycopg2.connect(node.dsn("held"))) as holding:
        holding.cursor().execute("SELECT 1")
        started = {
            "prepared": places["prepared"].start("restore", "latest", "--force", "--trust-source", module=MODULE),
            "held": at(places["held"], "held", user="plain").start("restore", "latest", "--force", module=MODULE),
        }
        for name, process in started.items():
            out, err = process.communicate(timeout=60)
            text = two_lines(subprocess.CompletedProcess([], process.returncode, out, err), 4)
            assert f"database {name} is in use" in text
            assert "There is 1 prepared transaction" if name == "prepared" else "There is 1 other session" in text
            # The backup that was made before stays, and is named.
            dumps = [f for f in files(places[name].folder / "backups") if f.endswith(".dump")]
            assert len(dumps) == 2
            assert f"{dumps[1]}\n" in text
        holding.cursor().execute("SELECT 1")
    rows(places["prepared"], "ROLLBACK PREPARED 'one'")
    for name, place in places.items():
        assert dump_text(place) == content[name]
        done(place, "restore", "latest", "--force", "--trust-source")
        assert rows(place, "SELECT a FROM kept") == [(1,)]
        rows(admin, f"ALTER DATABASE {name} IS_TEMPLATE false", f"DROP DATABASE {name}")
    assert rows(admin, SCRATCH) == []
    rows(admin, "DROP ROLE plain")


@pytest.mark.soak
def test_old_database_that_cannot_be_dropped_is_kept_and_told(server: Server, node: Node, tmp_path: Path) -> None:
    admin = Place("postgres", node.dsn(), tmp_path)
    rows(admin, "CREATE ROLE plain LOGIN CREATEDB", "CREATE DATABASE subscribed OWNER plain")
    place = at(admin, "subscribed", user="plain")
    rows(place, *ROW)
    done(place, "create")
    rows(place, "INSERT INTO kept VALUES (2)")
    rows(  # which only its owner may drop, and a database not before it
        at(admin, "subscribed"),
        "SET client_min_messages = error",
        "CREATE SUBSCRIPTION news CONNECTION '' PUBLICATION news WITH (connect = false, slot_name = NONE)",
    )
    told = done(place, "restore", "latest", "--force", warns="subscription news is not in this backup")
    assert rows(place, "SELECT a FROM kept") == [(1,)]
    (old,) = told["kept"]
    assert rows(at(place, old), "SELECT a FROM kept") == [(1,), (2,)]
    rows(at(admin, old), "DROP SUBSCRIPTION news")
    rows(admin, f'DROP DATABASE "{old}"', "DROP DATABASE subscribed", "DROP ROLE plain")


@pytest.mark.soak
def test_database_that_subscribes_is_restored_and_its_slot_stays(server: Server, tmp_path: Path) -> None:
    with new_node(server, "-c wal_level=logical -c fsync=off") as node:
        node.make()
        node.start()
        admin = Place("postgres", node.dsn(), tmp_path)
        rows(admin, "CREATE DATABASE source", "CREATE DATABASE taker")
        source, place = at(admin, "source"), at(admin, "taker")
        rows(source, *ROW, "CREATE PUBLICATION news FOR TABLE kept")
        rows(source, "SELECT pg_create_logical_replication_slot('slot', 'pgoutput')")
        rows(
            place,
            ROW[0],
            f"CREATE SUBSCRIPTION \"the news\" CONNECTION '{node.dsn('source')}' PUBLICATION news "
            "WITH (create_slot = false, slot_name = 'slot')",
        )
        eventually(lambda: rows(place, "SELECT a FROM kept"), "the row arrives")
        done(place, "create", "--test-restore")
        assert rows(admin, SCRATCH) == []
        assert "ALTER SUBSCRIPTION" in refused(place, 4, "restore", "latest", "--force")
        rows(place, 'ALTER SUBSCRIPTION "the news" DISABLE')
        assert done(place, "restore", "latest", "--force", warns="restored disabled")["kept"] == []
        assert rows(place, "SELECT subslotname FROM pg_subscription") == [("slot",)]
        assert rows(source, "SELECT slot_name FROM pg_replication_slots WHERE slot_name = 'slot'") == [("slot",)]


@pytest.mark.soak
def test_restore_over_the_database_to_which_others_connect_first(node: Node, tmp_path: Path) -> None:
    place = Place("postgres", node.dsn("postgres"), tmp_path)
    rows(place, *ROW)
    done(place, "create", "--test-restore")
    rows(place, "INSERT INTO kept VALUES (2)")
    told = done(place, "restore", "latest", "--force")
    assert rows(place, "SELECT a FROM kept") == [(1,)]
    assert told["kept"] == []
    rows(place, "DROP TABLE kept")


def test_two_restores_in_a_second_keep_two_databases(postgres: Place, server: Server) -> None:
    name, now = name_of(postgres), datetime(2026, 11, 22, 11, 9, 30, tzinfo=timezone.utc)
    taken = f"{name}_old_20261122T110930Z"
    server.execute(f'CREATE DATABASE "{taken}"')
    try:
        with session(parse_postgres(server.dsn)) as admin:
            assert old_name(admin, name, now) == f"{name}_old_20261122T110931Z"
            long = "é" * 31
            assert len(old_name(admin, long, now).encode()) <= 63
    finally:
        server.execute(f'DROP DATABASE "{taken}"')


# What is there besides rows


@pytest.mark.soak
@pytest.mark.parametrize(
    "made",
    [
        "CREATE VIEW seen AS SELECT a FROM kept",
        "CREATE FUNCTION one() RETURNS integer LANGUAGE sql RETURN 1",
        "CREATE INDEX found ON kept (a)",
        "COMMENT ON TABLE kept IS 'mine'",
        "GRANT SELECT ON kept TO PUBLIC",
    ],
)
def test_what_is_made_at_the_last_moment_stays_in_the_old_database(
    postgres: Place, server: Server, monkeypatch: pytest.MonkeyPatch, made: str
) -> None:
    monkeypatch.setenv("WHATSPIRE_PG_BIN", postgres_programs())
    rows(postgres, *ROW)
    settings = Settings(driver="postgres", dsn=postgres.dsn)
    folder = postgres.folder / "backups"
    taken = backup.create(settings, folder)

    def make(what: str, done: int, total: int) -> None:
        if what == "swapping":
            rows(postgres, made)

    told = backup.restore(taken, settings, folder, force=True, progress=make)
    assert told.kept == tuple(kept_of(server, name_of(postgres)))
    assert len(told.kept) == 1
    assert "holds what a restore replaced" in backup_by_hand(postgres)
    server.execute(f'DROP DATABASE "{told.kept[0]}"')
    assert backup_by_hand(postgres) == ""
    assert backup.restore(taken, settings, folder, force=True).kept == ()


def backup_by_hand(place: Place) -> str:
    """Make a backup by the command line and return what it says besides."""
    ran = place.run("create", "--json", module=MODULE)
    assert ran.returncode == 0, ran
    return ran.stderr


@pytest.mark.soak
@pytest.mark.parametrize(
    "made",
    [
        "CREATE TYPE mood AS ENUM ('ok')",
        "CREATE DOMAIN short AS text",
        "CREATE FUNCTION one() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        "CREATE SCHEMA apart",
        "CREATE TEXT SEARCH CONFIGURATION own (COPY = pg_catalog.simple)",
        'CREATE COLLATION low FROM "C"',
        "CREATE OPERATOR === (LEFTARG = integer, RIGHTARG = integer, FUNCTION = int4eq)",
        "CREATE CAST (point AS text) WITH INOUT",
        "CREATE PUBLICATION news",
    ],
)
def test_what_is_no_table_is_backed_up_and_replaced_too(postgres: Place, made: str) -> None:
    rows(postgres, made, *ROW)
    full, content = done(postgres, "create")["path"], dump_text(postgres)
    rows(postgres, "DROP TABLE kept")
    bare, without = done(postgres, "create", "--test-restore")["path"], dump_text(postgres)
    told = done(postgres, "restore", full)
    assert dump_text(postgres) == content
    assert (told["kept"], told["safety_backup"] is None) == ([], False)
    done(postgres, "restore", bare, "--force")
    assert dump_text(postgres) == without


@pytest.mark.soak
def test_database_without_rows_is_replaced_without_force_and_kept_all_the_same(postgres: Place, server: Server) -> None:
    rows(postgres, *ROW)
    made = done(postgres, "create")["path"]
    rows(postgres, "DROP TABLE kept", "CREATE VIEW work AS SELECT 1 AS one")
    bare = dump_text(postgres)
    safety = done(postgres, "restore", made)["safety_backup"]
    assert rows(postgres, "SELECT a FROM kept") == [(1,)]
    done(postgres, "restore", str(postgres.folder / safety), "--force")
    assert dump_text(postgres) == bare


@pytest.mark.soak
def test_names_on_the_server_that_are_not_utf8_are_none_of_its_business(node: Node, tmp_path: Path) -> None:
    admin = Place("postgres", node.dsn(), tmp_path)
    rows(admin, "CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'")
    rows(admin, "CREATE DATABASE strict")
    latin, place = at(admin, "latin"), at(admin, "strict")
    rows(place, *ROW)
    rows(latin, 'CREATE DATABASE "bäse"', 'CREATE DATABASE "strict_old_ä"', 'CREATE ROLE "rolé"')
    try:
        done(place, "create", "--test-restore")
        assert done(place, "restore", "latest", "--force")["kept"] == []
        text = refused(place, 2, "restore", "latest", "--force", "--to", os.fsdecode(b"a\xffb"))
        assert "a\\udcffb" in text
    finally:
        rows(latin, 'DROP DATABASE "bäse"', 'DROP DATABASE "strict_old_ä"', 'DROP ROLE "rolé"')
        rows(admin, "DROP DATABASE latin", "DROP DATABASE strict")


@pytest.mark.parametrize(("size", "others"), [(3, ""), (3, "y"), (42, ""), (42, "y"), (43, ""), (43, "y"), (60, "y")])
def test_what_was_put_aside_is_only_told_of_where_it_is_ones_own(node: Node, size: int, others: str) -> None:
    name, old = "x" * size, f"{'x' * min(size, 42)}_old_20260102T030405Z"
    with session(parse_postgres(node.dsn())) as asked:
        databases = [name, old, *([f"{'x' * 42}{others}"] if others else [])]
        for database in databases:
            asked.rows(f'CREATE DATABASE "{database}"')
        assert replaced(asked, name) == ([] if others and size > 3 else [old])
        moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
        assert old_name(asked, name, moment).endswith("_old_20260102T030406Z")
        for database in databases:
            asked.rows(f'DROP DATABASE "{database}"')
