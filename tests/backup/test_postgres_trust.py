"""A superuser's restore does not run what others left in a database, unless the user says to trust them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.backup.ground import rewritten
from tests.backup.postgres_ground import at, backup, done, name_of, refused, rows, scratches, spare
from tests.conftest import Place, Server
from tests.planted import planted
from tests.servers import up
from whatspire_db.backup.archive import read

pytestmark = pytest.mark.sampled

# Each is run by a restore: by COPY, by CREATE INDEX, by REFRESH, by ALTER TABLE.
CODE = """
CREATE FUNCTION public.strike() RETURNS void LANGUAGE plpgsql AS $$BEGIN
    IF (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) current_user) THEN
        EXECUTE 'ALTER ROLE mallory SUPERUSER';
    END IF; END$$;
CREATE FUNCTION public.evil(a integer) RETURNS integer LANGUAGE plpgsql IMMUTABLE AS
    $$BEGIN PERFORM public.strike(); RETURN a; END$$
"""
PLACES = {
    "check": "CREATE TABLE evil (a integer CHECK (public.evil(a) > 0))",
    "generated column": "CREATE TABLE evil (a integer, b integer GENERATED ALWAYS AS (public.evil(a)) STORED)",
    "index": "CREATE TABLE evil (a integer); CREATE INDEX ON evil (public.evil(a))",
    "view": "CREATE TABLE evil (a integer); CREATE MATERIALIZED VIEW seen AS SELECT public.evil(a) FROM evil",
    "domain": "CREATE DOMAIN d AS integer CHECK (public.evil(VALUE) > 0); CREATE TABLE evil (a d)",
}


@contextmanager
def role(server: Server, name: str = "mallory") -> Iterator[None]:
    server.execute(f'CREATE ROLE "{name}" LOGIN CREATEDB')
    try:
        yield
    finally:
        server.execute(f'DROP OWNED BY "{name}" CASCADE', f'DROP ROLE "{name}"')


@contextmanager
def tenants(postgres: Place, server: Server, where: str = "check") -> Iterator[Place]:
    """Give a tenant's database, as the superuser reaches it."""
    with role(server), spare(server, "OWNER mallory") as name:
        rows(at(postgres, name, user="mallory"), CODE, PLACES[where], "INSERT INTO evil VALUES (1)")
        yield at(postgres, name)
        server.execute(f"DROP DATABASE {name}")


def is_superuser(place: Place, name: str = "mallory") -> bool:
    return bool(rows(place, f"SELECT rolsuper FROM pg_roles WHERE rolname = '{name}'")[0][0])


@pytest.mark.soak
@pytest.mark.parametrize("where", PLACES)
def test_superuser_does_not_run_what_a_tenant_left(postgres: Place, server: Server, where: str) -> None:
    with tenants(postgres, server, where) as place:
        made = done(place, "create")["path"]
        rows(at(place, name_of(place), user="mallory"), "INSERT INTO evil VALUES (2)")
        for verb in (
            ["create", "--test-restore"],
            ["verify", made, "--test-restore"],
            ["restore", made, "--force"],
            ["restore", made, "--to", "elsewhere"],
        ):
            text = refused(place, 4, *verb)
            assert "mallory" in text
            assert "--trust-source" in text
        assert not is_superuser(place)
        assert rows(place, "SELECT count(*) FROM evil") == [(2,)]
        assert scratches(server) == []
        assert done(place, "verify", made)["verified"]


@pytest.mark.soak
@pytest.mark.parametrize("path", ["", "planted, pg_catalog"])
def test_no_statement_of_a_backup_runs_what_is_planted(postgres: Place, server: Server, path: str) -> None:
    """With the second search_path, which an owner may set, what is planted even hides PostgreSQL's own."""
    up(postgres)
    with planted(postgres.dsn, "planted" if path else "public") as trap, spare(server) as other:
        if path:
            server.execute(f"ALTER DATABASE {name_of(postgres)} SET search_path = {path}")
        made = done(postgres, "create")["path"]
        done(postgres, "verify", made)
        done(postgres, "list")
        done(postgres, "prune", "--keep-last", "9")
        assert "--trust-source" in refused(postgres, 4, "create", "--test-restore")
        assert "--trust-source" in refused(postgres, 4, "verify", made, "--test-restore")
        assert "--trust-source" in refused(postgres, 4, "restore", made, "--to", other)
        # Of what is planted nothing is a check or an index, so that a trusted restore runs none of it either.
        done(postgres, "create", "--test-restore", "--trust-source")
        done(postgres, "restore", made, "--to", other, "--trust-source")
        assert trap.is_harmless()


@pytest.mark.soak
def test_trusted_backup_of_a_tenant_is_restored_by_a_superuser(postgres: Place, server: Server) -> None:
    with role(server, "tenant"), spare(server, "OWNER tenant") as name:
        place = at(postgres, name)
        rows(at(place, name, user="tenant"), "CREATE TABLE own (a integer)", "INSERT INTO own VALUES (1)")
        made = done(place, "create", "--test-restore", "--trust-source")["path"]
        done(place, "verify", made, "--test-restore", "--trust-source")
        done(place, "restore", made, "--force", "--trust-source")
        assert rows(place, "SELECT a, tableowner FROM own, pg_tables WHERE tablename = 'own'") == [(1, "tenant")]
        server.execute(f"DROP DATABASE {name}")


@pytest.mark.soak
def test_owner_restores_without_a_word_of_trust(postgres: Place, server: Server) -> None:
    with tenants(postgres, server) as place:
        own = at(place, name_of(place), user="mallory")
        made = done(own, "create", "--test-restore")["path"]
        done(own, "restore", made, "--force")
        assert not is_superuser(place)


@pytest.mark.soak
def test_backup_before_a_migration_runs_no_code(postgres: Place, server: Server) -> None:
    with tenants(postgres, server) as place:
        ran = place.run("up", "--backup", "--trust-source", "--json")
        assert ran.returncode == 0, ran
        assert json.loads(ran.stdout)["backup"]
        assert not is_superuser(place)


@pytest.mark.soak
def test_manifest_does_not_decide_who_is_trusted(postgres: Place, server: Server) -> None:
    with tenants(postgres, server) as place:
        one = read(Path(done(place, "create")["path"]))
        forged = {**one.manifest.content.details, "roles": {"owners": ["postgres"]}}
        content = one.manifest.content.__class__(**{**vars(one.manifest.content), "details": forged})
        rewritten(one, content=content)
        assert "mallory" in refused(place, 4, "restore", str(one.file), "--to", "elsewhere")
        assert not is_superuser(place)


@pytest.mark.soak
def test_owner_who_is_not_there_any_more_is_not_trusted(postgres: Place, server: Server) -> None:
    with role(server, "tenant"):
        rows(postgres, "CREATE TABLE own (a integer)", "ALTER TABLE own OWNER TO tenant")
        made = done(postgres, "create")["path"]
        rows(postgres, "ALTER TABLE own OWNER TO postgres")
    assert "tenant" in refused(postgres, 4, "restore", made, "--to", "elsewhere")
    with spare(server) as other:
        done(postgres, "restore", made, "--to", other, "--trust-source", warns="belongs to this role")


@pytest.mark.parametrize(
    "name", ["evil postgres", "evil; Owner: postgres", 'postgres";', "postgres\n", "OWNER TO postgres"]
)
def test_name_that_looks_like_a_superusers_is_not_trusted(postgres: Place, server: Server, name: str) -> None:
    quoted = '"' + name.replace('"', '""') + '"'
    server.execute(f"CREATE ROLE {quoted}")
    try:
        rows(postgres, "CREATE TABLE own (a integer)", f"ALTER TABLE own OWNER TO {quoted}")
        made = done(postgres, "create")["path"]
        assert "--trust-source" in refused(postgres, 4, "restore", made, "--to", "elsewhere")
    finally:
        rows(postgres, f"DROP OWNED BY {quoted}", f"DROP ROLE {quoted}")


@pytest.mark.soak
def test_owner_of_large_objects_alone_is_not_trusted(postgres: Place, server: Server) -> None:
    with role(server):
        rows(postgres, "SELECT lo_create(7)", "ALTER LARGE OBJECT 7 OWNER TO mallory")
        made = done(postgres, "create")["path"]
        told = [
            backup(postgres, *arguments).stderr
            for arguments in (
                ("create", "--test-restore"),
                ("verify", made, "--test-restore"),
                ("restore", made, "--to", "elsewhere"),
            )
        ]
        rows(postgres, "DROP OWNED BY mallory")
    assert [("mallory" in words, "--trust-source" in words) for words in told] == [(True, True)] * 3


def test_function_that_names_an_owner_is_no_owner(postgres: Place, server: Server) -> None:
    rows(
        postgres,
        "CREATE FUNCTION hand() RETURNS void LANGUAGE plpgsql AS $$BEGIN\nALTER TABLE x OWNER TO someone;\nEND$$",
        "CREATE TABLE own (a integer)",
    )
    done(postgres, "create", "--test-restore")


@pytest.mark.soak
def test_role_that_a_database_gives_its_sessions_hides_no_superuser(postgres: Place, server: Server) -> None:
    with tenants(postgres, server) as place:
        rows(at(place, name_of(place), user="mallory"), f"ALTER DATABASE {name_of(place)} SET role = mallory")
        made = done(place, "create")["path"]
        assert "mallory" in refused(place, 4, "create", "--test-restore")
        assert "mallory" in refused(place, 4, "restore", made, "--force")


def test_backup_alone_takes_no_word_of_trust(place: Place) -> None:
    up(place)
    for verb in (["create"], ["verify"]):
        ran = backup(place, *verb, "--trust-source")
        assert ran.returncode == 2
        assert "--trust-source goes with --test-restore" in ran.stderr


# What PostgreSQL evaluates when it plans a query of a table, though the query asks for none of it.
PLANNED = {
    "index": "CREATE INDEX ON note ((id + public.evil(1)))",
    "predicate": "CREATE INDEX ON note (id) WHERE public.evil(1) = 1",
    "statistics": "CREATE STATISTICS seen ON (id + public.evil(1)) FROM note",
    "check": "ALTER TABLE note ADD CHECK (id > 0 OR public.evil(1) = 1)",
    "history": "CREATE INDEX ON migration_versions ((version + public.evil(1)))",
}
LOGS = """
CREATE FUNCTION public.strike() RETURNS void LANGUAGE plpgsql AS $$BEGIN
    COPY (SELECT current_user) TO PROGRAM 'cat >> %s';
    EXCEPTION WHEN insufficient_privilege THEN END$$;
CREATE FUNCTION public.evil(a integer) RETURNS integer LANGUAGE plpgsql IMMUTABLE AS
    $$BEGIN PERFORM public.strike(); RETURN a; END$$
"""


@contextmanager
def planned(postgres: Place, server: Server, where: str, ran: Path, encoding: str = "UTF8") -> Iterator[Place]:
    """Give a tenant's database whose tables run code when a superuser's query of them is planned."""
    options = f"OWNER mallory ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"
    with role(server), spare(server, options) as name:
        rows(
            at(postgres, name, user="mallory"),
            LOGS % ran,
            "CREATE TABLE note (id integer PRIMARY KEY, text text)",
            "INSERT INTO note VALUES (1, 'a')",
            "CREATE TABLE migration_versions (version bigint PRIMARY KEY)",
            "INSERT INTO migration_versions VALUES (9), (10)",
            PLANNED[where],
        )
        rows(at(postgres, name), f"ALTER DATABASE {name} SET constraint_exclusion = on")
        yield at(postgres, name)
        server.execute(f"DROP DATABASE {name}")


@pytest.fixture
def ran() -> Iterator[Path]:
    """A file that the server's programs can write to; empty as long as no code of the tenant has run as superuser."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder, "ran")
        path.touch()
        path.chmod(0o666)
        yield path


@pytest.mark.soak
@pytest.mark.parametrize("where", PLANNED)
def test_reading_a_tenants_tables_for_a_backup_plans_none_of_his_code(
    postgres: Place, server: Server, where: str, ran: Path
) -> None:
    with planned(postgres, server, where, ran) as place:
        made = read(Path(done(place, "create")["path"]).with_suffix(".json")).manifest
        done(place, "verify", "latest")
        assert ran.read_text() == ""
        assert made.content.schema_version == 10
        assert made.content.tables["public.note"].rows == 1


@pytest.mark.soak
def test_looking_for_rows_in_a_target_plans_none_of_its_owners_code(postgres: Place, server: Server, ran: Path) -> None:
    up(postgres)
    made = done(postgres, "create")["path"]
    with planned(postgres, server, "index", ran) as place:
        assert "--force" in refused(place, 4, "restore", made, "--to", name_of(place))
        assert ran.read_text() == ""


VALUES = r"""
CREATE TABLE odd (
    "a""b" text, n integer, number numeric, raw bytea, list text[], pair point, "%" jsonb,
    twice integer GENERATED ALWAYS AS (n * 2) STORED
);
INSERT INTO odd VALUES
    (NULL, NULL, NULL, NULL, NULL, NULL, NULL), ('', 1, 1.50, '', '{}', '(1,2)', '{"a": "\\n"}'),
    (E'\t\n\r\b\f\x0b\\ \\N "q" (a,b)', 2, 'NaN', '\x00ff', ARRAY[NULL, '', 'a"b', E'\n'], '(0,0)', '[]'),
    ('\N', -1, 0, '\x5c', '{"\\"}', NULL, '"x"');
CREATE TABLE nothing ();
INSERT INTO nothing DEFAULT VALUES;
CREATE TABLE one (a text);
INSERT INTO one VALUES (''), (NULL), ('\N'), ('N'), ('(');
CREATE TABLE blank (a text);
INSERT INTO blank VALUES ('');
CREATE TABLE two (a text, b text);
INSERT INTO two VALUES ('', ''), (NULL, ''), ('', NULL), (NULL, NULL);
CREATE TABLE empty (a integer);
"""


@pytest.mark.soak
@pytest.mark.parametrize("encoding", ["UTF8", "LATIN1", "SQL_ASCII", "EUC_JP"])
def test_fingerprint_of_what_was_copied_is_that_of_a_query(
    postgres: Place, server: Server, encoding: str, ran: Path
) -> None:
    with planned(postgres, server, "index", ran, encoding) as place:
        owner = at(place, name_of(place), user="mallory")
        rows(owner, VALUES)
        if encoding in ("UTF8", "LATIN1"):
            rows(owner, "INSERT INTO odd VALUES (U&'\\00e4\\00a0')")
        elif encoding == "SQL_ASCII":
            rows(owner, "INSERT INTO odd VALUES (E'\\xe4\\xff')")
        queried, copied = (
            read(Path(done(one, "create")["path"]).with_suffix(".json")).manifest.content for one in (owner, place)
        )
        assert copied.tables["public.odd"].fingerprint.startswith("copied ")  # a generated column is left out
        differing = {name for name, table in queried.tables.items() if copied.tables[name] != table}
        assert differing == {"public.odd"}
        done(owner, "verify", "latest", "--test-restore")
        assert ran.read_text() == ""
