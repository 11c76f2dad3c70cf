"""A superuser's run never executes code of other roles: it is refused, unless the source is trusted."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace

import peewee as pw
import pytest
from peewee import SQL

from tests.conftest import Place, Server
from tests.planted import ask, planted
from tests.servers import psql, up
from whatspire_db import MigrationRefused, MigrationRunner, Session
from whatspire_db.health import check_health
from whatspire_db.models.service import MigrationVersion

pytestmark = pytest.mark.sampled


@pytest.fixture
def tenant(postgres: Place, server: Server) -> Iterator[str]:
    """A role that is no superuser and may make objects in the schema public."""
    role = f"tenant_{uuid.uuid4().hex[:8]}"
    psql(postgres.dsn, f"CREATE ROLE {role} LOGIN; GRANT ALL ON SCHEMA public TO {role};")
    yield role
    psql(postgres.dsn, f"SET client_min_messages = warning; DROP OWNED BY {role} CASCADE; DROP ROLE {role};")


def as_role(place: Place, role: str) -> Place:
    return replace(place, dsn=f"{place.dsn} user='{role}'")


def as_tenant(place: Place, role: str, statements: str) -> None:
    psql(place.dsn, f"SET SESSION AUTHORIZATION {role}; {statements}")


# One that a varchar fits better than pg_catalog's lower(text).
PLANTED = """
CREATE SEQUENCE ran; GRANT ALL ON SEQUENCE ran TO PUBLIC;
CREATE FUNCTION trap(x text) RETURNS text LANGUAGE plpgsql AS $$BEGIN PERFORM nextval('public.ran'); RETURN x; END$$;
CREATE FUNCTION lower(x varchar) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$BEGIN RETURN public.trap(x::text); END$$;
"""
RAN = "SELECT is_called FROM public.ran"


class Person(pw.Model):
    name = pw.CharField(constraints=[SQL("DEFAULT lower('Nobody'::varchar)")])

    class Meta:
        table_name = "person"
        constraints = (SQL("CONSTRAINT person_name CHECK (lower(name) <> '')"),)
        indexes = (SQL("CREATE INDEX person_lower ON person (lower(name)) WHERE lower('X'::varchar) = 'X'"),)


@pytest.fixture
def persons(postgres: Place, tenant: str) -> Iterator[MigrationRunner]:
    """A table with rows that lacks what its model declares, in a database where a tenant planted a function."""
    psql(postgres.dsn, "CREATE TABLE person (id serial PRIMARY KEY); INSERT INTO person DEFAULT VALUES")
    as_tenant(postgres, tenant, PLANTED)
    db = postgres.connect()
    with db.connection_context():
        yield MigrationRunner(db, [Person])
    db.close_all()


def test_superuser_runs_no_function_that_the_models_could_mean(
    postgres: Place, persons: MigrationRunner, tenant: str
) -> None:
    plan = persons.plan()
    (refusal,) = plan.refused
    assert plan.pending == ()
    assert f"function public.lower(x character varying) of {tenant}" in refusal.reason
    assert "--trust-source" in refusal.hint
    with pytest.raises(MigrationRefused):
        persons.up()
    assert persons.verify_schema().missing
    assert check_health(persons.db, [Person]).note
    assert not ask(postgres.dsn, RAN)


def test_superuser_who_trusts_the_source_runs_what_the_models_mean(postgres: Place, persons: MigrationRunner) -> None:
    assert MigrationRunner(persons.db, [Person], trust_source=True).up().applied
    assert ask(postgres.dsn, RAN)


@pytest.mark.soak
def test_command_line_refuses_with_exit_4_and_trusts_on_demand(postgres: Place, tenant: str) -> None:
    as_tenant(postgres, tenant, "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'")
    for verb in ("plan", "up"):
        done = postgres.run(verb)
        assert (done.returncode, f"function public.f() of {tenant}" in done.stdout + done.stderr) == (4, True)
    assert ask(postgres.dsn, "SELECT count(*) FROM pg_class WHERE relname = 'sessions'") == 0
    assert postgres.run("plan", "--trust-source").returncode == 3
    assert postgres.run("up", "--trust-source").returncode == 0


# Objects that a step runs without naming them

STRANGERS = {
    "operator": "CREATE FUNCTION eq(text, varchar) RETURNS bool LANGUAGE sql AS 'SELECT true';"
    "CREATE OPERATOR = (LEFTARG = text, RIGHTARG = varchar, FUNCTION = eq)",
    "domain": "CREATE DOMAIN positive AS int CHECK (VALUE > 0)",
    "cast": "CREATE TYPE own.kind AS ENUM ('a');"
    "CREATE FUNCTION own.as_text(own.kind) RETURNS text LANGUAGE sql AS 'SELECT 1::text';"
    "CREATE CAST (own.kind AS text) WITH FUNCTION own.as_text(own.kind) AS IMPLICIT",
    "trigger": "CREATE FUNCTION own.fired() RETURNS trigger LANGUAGE plpgsql AS "
    "$$BEGIN RETURN NEW; END$$; CREATE TRIGGER t BEFORE INSERT ON migration_versions "
    "FOR EACH ROW EXECUTE FUNCTION own.fired()",
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_object_of_another_role_that_a_step_could_run_is_refused(postgres: Place, tenant: str, kind: str) -> None:
    up(postgres)
    psql(
        postgres.dsn,
        f"DROP INDEX idx_sessions_jid; GRANT TRIGGER ON migration_versions TO {tenant};"
        f"CREATE SCHEMA own AUTHORIZATION {tenant}",
    )
    as_tenant(postgres, tenant, STRANGERS[kind])
    db = postgres.connect()
    with db.connection_context():
        (refusal,) = MigrationRunner(db).plan().refused
        assert f"{kind} " in refusal.reason
        assert tenant in refusal.reason
    db.close_all()


@pytest.mark.soak
def test_table_of_another_role_is_changed_by_that_role_alone(postgres: Place, tenant: str) -> None:
    up(as_role(postgres, tenant))
    psql(postgres.dsn, "DROP INDEX idx_sessions_jid")
    assert postgres.run("up").returncode == 4
    assert as_role(postgres, tenant).run("up").returncode == 0
    assert (postgres.run("up").returncode, postgres.run("verify").returncode) == (0, 0)


# What is not refused


@pytest.mark.soak
def test_start_with_nothing_to_do_is_never_refused(postgres: Place, tenant: str) -> None:
    up(as_role(postgres, tenant))
    with planted(postgres.dsn) as here:
        done = postgres.run("up")
        assert (done.returncode, here.is_harmless()) == (0, True)
        psql(postgres.dsn, "COMMENT ON TYPE migration_versions IS NULL")  # no stamp
        done = postgres.run("up")
        assert (done.returncode, here.is_harmless()) == (0, True), done.stderr


def test_start_that_would_only_be_recorded_is_not_when_that_runs_code_of_others(postgres: Place, tenant: str) -> None:
    up(postgres)
    psql(postgres.dsn, f"GRANT ALL ON migration_versions TO {tenant}")
    as_tenant(
        postgres,
        tenant,
        PLANTED + "CREATE FUNCTION fired() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM public.trap(''); "
        "RETURN NEW; END$$; CREATE TRIGGER t BEFORE INSERT ON migration_versions EXECUTE FUNCTION fired()",
    )
    db = postgres.connect()
    with db.connection_context():
        before = MigrationRunner(db).version()
        assert MigrationRunner(db, record_all=True).up().version == before
    db.close_all()
    assert not ask(postgres.dsn, RAN)


def test_objects_elsewhere_are_no_reason_to_refuse(postgres: Place, tenant: str) -> None:
    psql(postgres.dsn, f"CREATE SCHEMA own AUTHORIZATION {tenant}")
    as_tenant(
        postgres,
        tenant,
        "CREATE FUNCTION own.lower(varchar) RETURNS text LANGUAGE sql AS 'SELECT $1';"
        "CREATE TABLE own.t (a int CHECK (a > 0)); CREATE TABLE t (a int); CREATE TYPE mood AS ENUM ('good');",
    )
    assert postgres.run("up").returncode == 0


def test_extension_is_no_reason_to_refuse(postgres: Place) -> None:
    psql(postgres.dsn, "CREATE EXTENSION vector")
    assert postgres.run("up").returncode == 0


def test_role_without_the_rights_of_a_superuser_is_not_refused(postgres: Place, tenant: str) -> None:
    as_tenant(postgres, tenant, PLANTED)
    assert as_role(postgres, tenant).run("up").returncode == 0


def test_unfinished_index_of_another_role_stays_as_it_is(postgres: Place, tenant: str) -> None:
    up(as_role(postgres, tenant))
    psql(postgres.dsn, "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'idx_sessions_jid'::regclass")
    db = postgres.connect()
    with db.connection_context():
        report = MigrationRunner(db, [Session, MigrationVersion]).up()
        assert (report.applied, [drift.name for drift in report.drift]) == ((), ["idx_sessions_jid"])
    db.close_all()


# The history itself

HISTORIES = {
    "view": "CREATE VIEW migration_versions AS SELECT length(public.trap('x')) AS version, 'x' AS name, now() AS applied_at",
    "view of an immutable function": "CREATE VIEW migration_versions AS SELECT length(public.lower('x'::varchar)) "
    "AS version, 'x' AS name, now() AS applied_at",
    "index": "CREATE TABLE migration_versions (version bigint PRIMARY KEY, name text, applied_at timestamptz);"
    "INSERT INTO migration_versions VALUES (7, 'auto_migration', '2026-01-02 03:04:05.678+00');"
    "CREATE INDEX planted ON migration_versions (version) WHERE public.lower('x'::varchar) = 'x';"
    "ALTER SEQUENCE ran RESTART",
}


@pytest.mark.soak
@pytest.mark.parametrize("kind", HISTORIES)
def test_history_of_another_role_is_read_without_running_its_code(postgres: Place, tenant: str, kind: str) -> None:
    as_tenant(postgres, tenant, PLANTED + HISTORIES[kind])
    assert not ask(postgres.dsn, RAN)
    for verb in ("version", "status", "verify", "plan", "up"):
        done = postgres.run(verb)
        assert "Traceback" not in done.stderr
        assert not ask(postgres.dsn, RAN), (verb, done.stderr)
    postgres.run(module="whatspire_db.health")
    assert not ask(postgres.dsn, RAN)
    if kind == "index":
        assert postgres.run("version").stdout == "7\n"
        assert "7  2026-01-02 03:04:05 UTC  auto_migration" in postgres.run("status").stdout


@pytest.mark.soak
def test_superuser_looks_for_odd_times_in_no_table_of_another_role(postgres: Place, tenant: str) -> None:
    up(as_role(postgres, tenant))
    as_tenant(
        postgres,
        tenant,
        PLANTED + "CREATE INDEX planted ON api_keys (last_used_at) WHERE public.lower('x'::varchar) = 'x';"
        "CREATE INDEX ordered ON api_keys (last_used_at); ALTER SEQUENCE ran RESTART",
    )
    assert postgres.run("verify").returncode == 0
    postgres.run(module="whatspire_db.health")
    assert not ask(postgres.dsn, RAN)
