"""PostgreSQL: a run needs its time and all rows, whatever limits and policies a role has; running clients are named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import peewee as pw
import psycopg2
import pytest
from peewee import SQL

from tests.conftest import POSTGRES_VERSION, Place, Server
from tests.servers import psql
from whatspire_db import MigrationRunner
from whatspire_db.dsn.postgres import parse_postgres

pytestmark = pytest.mark.sampled

LIMIT = "250ms"
LIMITS = [
    "idle_session_timeout",
    "idle_in_transaction_session_timeout",
    "statement_timeout",
    *(["transaction_timeout"] if POSTGRES_VERSION >= 17 else []),
]
LONGER = 0.6  # seconds that a step, or what a run waits for, takes


def table(**fields: pw.Field) -> type[pw.Model]:
    own = {"tenant": pw.TextField(null=True), "x": pw.IntegerField(null=True)}
    return type("T", (pw.Model,), {**own, **fields, "Meta": type("Meta", (), {"table_name": "t"})})


# Time


@pytest.fixture(params=LIMITS)
def impatient(request: pytest.FixtureRequest, postgres: Place, server: Server) -> Iterator[Place]:
    """A database of rows that are slow to index, as a role sees it whose sessions have a time limit."""
    psql(
        postgres.dsn,
        f"""CREATE ROLE impatient LOGIN; ALTER ROLE impatient SET {request.param} = '{LIMIT}';
        GRANT CREATE ON SCHEMA public TO impatient; SET SESSION AUTHORIZATION impatient;
        CREATE TABLE t (id serial PRIMARY KEY, tenant text, x int) WITH (autovacuum_enabled = off); INSERT INTO t (x) VALUES (1), (2), (3);
        CREATE FUNCTION slow(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS
        $$BEGIN PERFORM pg_catalog.pg_sleep({LONGER / 3}); RETURN $1; END$$;""",
    )
    name = parse_postgres(postgres.dsn).arguments["dbname"]
    yield replace(postgres, dsn=server.of_database(name, user="impatient"))
    psql(postgres.dsn, "DROP OWNED BY impatient; DROP ROLE impatient;")


def slowly_indexed() -> type[pw.Model]:
    model = table()
    model.add_index(SQL("CREATE INDEX t_slow ON t (slow(x))"))
    return model


@pytest.mark.soak
def test_time_limit_of_a_role_does_not_end_a_run(postgres: Place, impatient: Place) -> None:
    def backup() -> None:
        psql(postgres.dsn, f"SELECT pg_sleep({LONGER})")

    db = impatient.connect()
    with db.connection_context():
        report = MigrationRunner(db, [slowly_indexed()], before_changes=backup).up()
        assert {step.kind for step in report.applied} == {"create_table", "create_index"}
    db.close_all()


def test_time_limit_of_a_role_does_not_end_an_online_step(impatient: Place) -> None:
    db = impatient.connect()
    with db.connection_context():
        report = MigrationRunner(db, [slowly_indexed()], online_rows=1).up()
        assert any(step.online for step in report.applied)
    db.close_all()


@pytest.mark.soak
def test_time_limit_of_a_role_does_not_end_a_look(impatient: Place) -> None:
    model = table()
    model.add_index(SQL("CREATE INDEX t_slow ON t (x) WHERE slow(1) + slow(2) + slow(3) > 0"))
    db = impatient.connect()
    with db.connection_context():
        assert MigrationRunner(db, [model]).plan().pending
        assert MigrationRunner(db, [model]).verify_schema().missing
    db.close_all()


def test_a_session_has_its_limits_again_after_a_run(impatient: Place) -> None:
    db = impatient.connect()
    with db.connection_context():
        settings = "SELECT name, setting FROM pg_settings WHERE name ~ 'timeout|row_security|search_path' ORDER BY 1"
        before = db.execute_sql(settings).fetchall()
        MigrationRunner(db, [slowly_indexed()]).up()
        assert db.execute_sql(settings).fetchall() == before
    db.close_all()


# Rows that a policy hides


@pytest.fixture
def hidden(postgres: Place, server: Server) -> Iterator[Place]:
    """A table of many rows whose policy shows none of them to anybody, as its owner sees it."""
    psql(
        postgres.dsn,
        """CREATE ROLE app LOGIN; GRANT CREATE ON SCHEMA public TO app; SET SESSION AUTHORIZATION app;
        CREATE TABLE t (id serial PRIMARY KEY, tenant text, x int) WITH (autovacuum_enabled = off);
        INSERT INTO t (tenant, x) SELECT 'a', i FROM generate_series(1, 20000) AS i;
        ALTER TABLE t ENABLE ROW LEVEL SECURITY; ALTER TABLE t FORCE ROW LEVEL SECURITY;
        CREATE POLICY own ON t USING (tenant = current_setting('app.tenant', true));""",
    )
    name = parse_postgres(postgres.dsn).arguments["dbname"]
    yield replace(postgres, dsn=server.of_database(name, user="app"))
    psql(postgres.dsn, "DROP OWNED BY app; DROP ROLE app;")


@pytest.mark.parametrize("analyzed", ["never", "while it was empty", "since"])
def test_table_whose_rows_a_policy_hides_counts_as_large(postgres: Place, hidden: Place, analyzed: str) -> None:
    if analyzed == "since":
        psql(postgres.dsn, "ANALYZE t")
    elif analyzed != "never":
        psql(
            postgres.dsn,
            "CREATE TEMP TABLE kept AS SELECT * FROM t; TRUNCATE t; ANALYZE t; INSERT INTO t SELECT * FROM kept",
        )
    db = hidden.connect()
    with db.connection_context():
        indexed = MigrationRunner(db, [table(x=pw.IntegerField(null=True, index=True))]).plan()
        (step,) = [step for step in indexed.pending if step.kind == "create_index"]
        assert "CONCURRENTLY" in step.sql[0]
        assert ("about 20,000 rows" if analyzed == "since" else "row level security") in str(step.cost)
        rewriting = table(r=pw.DoubleField(constraints=[SQL("DEFAULT random()")]))
        assert "would rewrite" in MigrationRunner(db, [rewriting]).plan().refused[0].reason
        required = table(r=pw.IntegerField())
        assert "NOT NULL without a default" in MigrationRunner(db, [required]).plan().refused[0].reason
    db.close_all()


def test_superuser_counts_the_rows_that_a_policy_hides(postgres: Place, hidden: Place) -> None:
    db = postgres.connect()
    with db.connection_context():
        required = table(r=pw.IntegerField())
        runner = MigrationRunner(db, [required], trust_source=True)
        assert "20,000 rows" in runner.plan().refused[0].reason
    db.close_all()


# Running clients


class Extended(pw.Model):
    x = pw.IntegerField(null=True)
    y = pw.IntegerField(null=True)

    class Meta:
        table_name = "t"


def test_plan_names_the_error_that_clients_with_prepared_statements_get(postgres: Place) -> None:
    psql(postgres.dsn, "CREATE TABLE t (id serial PRIMARY KEY, x int)")
    db = postgres.connect()
    with closing(psycopg2.connect(postgres.dsn)) as client, client.cursor() as cursor, db.connection_context():
        client.autocommit = True
        cursor.execute("PREPARE everything AS SELECT * FROM t; EXECUTE everything")
        runner = MigrationRunner(db, [Extended])
        plan = runner.plan()
        runner.up()
        with pytest.raises(psycopg2.errors.FeatureNotSupported) as raised:
            cursor.execute("EXECUTE everything")
        error = str(raised.value).splitlines()[0]
    db.close_all()
    assert f'"{error}" (0A000)' in str(plan)
    assert "SELECT * (or RETURNING *) of t " in str(plan)
    assert error in json.dumps(plan.to_json()["notes"]).replace("\\", "")


@pytest.mark.soak
def test_statements_of_a_plan_have_its_note_as_a_comment(postgres: Place) -> None:
    assert postgres.run("up").returncode == 0
    psql(postgres.dsn, "ALTER TABLE sessions DROP COLUMN jid")
    statements = postgres.run("plan", "--sql").stdout
    assert statements.splitlines()[1].startswith(
        "-- note: clients that hold a prepared SELECT * (or RETURNING *) of sess"
    )
    psql(postgres.dsn, statements)
    assert postgres.run("verify").returncode == 0


def test_plan_has_no_note_for_new_tables(place: Place, tmp_path: Path) -> None:
    db = place.connect()
    with db.connection_context():
        plan = MigrationRunner(db, [Extended]).plan()
        assert plan.pending
        assert plan.notes == ()
        assert "notes" not in plan.to_json()
