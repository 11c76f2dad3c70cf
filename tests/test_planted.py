"""Code that somebody planted in a schema of the search_path never runs, whatever a superuser asks of the database."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.conftest import Place
from tests.planted import Planted, planted
from tests.servers import psql, up
from whatspire_db import Event, Session
from whatspire_db.sql import pinned

pytestmark = pytest.mark.sampled

# Where the planted schema stands: behind pg_catalog, before it, and before the schema of the tables.
PATHS = {"public": "public", "before pg_catalog": "public,pg_catalog", "of the attacker": "planted,pg_catalog,public"}
# What models declare without a schema means what the search_path leads to first, so that can be drift.
EXITS = {0, 1, 4}
RETAIN = ("retain", "--rule", "events.timestamp=30d")


@pytest.fixture(params=PATHS, ids=lambda name: name.replace(" ", "-"))
def hostile(request: pytest.FixtureRequest, postgres: Place) -> Iterator[tuple[Place, Planted]]:
    """A migrated database in which planted code waits, as a superuser sees it."""
    path = PATHS[request.param]
    schema = path.partition(",")[0]
    ground = replace(postgres, dsn=f"{postgres.dsn} search_path='{path}'")
    if schema != "public":
        psql(postgres.dsn, f"CREATE SCHEMA {schema}")
    up(ground)
    with planted(postgres.dsn, schema) as here:
        yield ground, here


def test_a_pinned_query_names_the_schema_of_all_that_it_calls() -> None:
    assert pinned("SELECT lower(t.x)::text FROM pg_class AS t WHERE a = ANY ('{=}') AND b::int > 1") == (
        "SELECT pg_catalog.lower(t.x)::pg_catalog.text FROM pg_catalog.pg_class AS t "
        "WHERE a OPERATOR(pg_catalog.=) ANY ('{=}') AND b::int OPERATOR(pg_catalog.>) 1"
    )
    assert pinned("SELECT a.f(%s), x -- = y\n, 'it''s =', \"<\" FROM t.pg_x WHERE (a).b OPERATOR(pg_catalog.=) 1") == (
        "SELECT a.f(%s), x -- = y\n, 'it''s =', \"<\" FROM t.pg_x WHERE (a).b OPERATOR(pg_catalog.=) 1"
    )


@pytest.mark.parametrize(
    "hidden", ["a IN (1)", "a LIKE 'b'", "a BETWEEN 1 AND 2", "CASE a WHEN 1 THEN 2 END", "a IS DISTINCT FROM 1"]
)
def test_a_query_that_hides_an_operator_is_not_pinned(hidden: str) -> None:
    with pytest.raises(ValueError, match="calls an operator of the search_path"):
        pinned(f"SELECT {hidden}")


@pytest.mark.soak
def test_planted_code_fits_the_calls(postgres: Place) -> None:
    with planted(postgres.dsn) as here:
        path = "SET search_path = public, pg_catalog; "
        for call in (
            "SELECT lower('X')",
            "SELECT count(*) FROM pg_catalog.pg_class",
            "SELECT 1 = 1",
            "SELECT 'x'::text",
            "SELECT set_config('search_path'::varchar, '', false)",
            "SELECT FROM pg_class LIMIT 1",
        ):
            before = here.runs()
            psql(postgres.dsn, path + call)
            assert here.runs() > before, call
        assert here.is_superuser()


@pytest.mark.soak
@pytest.mark.parametrize("command", ["up", "plan", "verify", "status", "version"])
def test_planted_code_does_not_run_in_a_migration_with_nothing_to_do(
    hostile: tuple[Place, Planted], command: str
) -> None:
    place, here = hostile
    done = place.run(command)
    assert here.is_harmless()
    assert done.returncode in EXITS, done.stderr


# Drift for each form of script: a type, a default, a CHECK, NOT NULL, indexes and keys, with rows to check.
DRIFT = """
ALTER TABLE api_keys DROP CONSTRAINT api_keys_pkey, ALTER role TYPE varchar(60), ALTER is_active SET DEFAULT false;
ALTER TABLE api_keys ADD PRIMARY KEY (key_hash);
ALTER TABLE events ALTER type DROP NOT NULL;
DROP INDEX idx_webhook_configs_session_id, idx_events_type;
CREATE INDEX idx_webhook_configs_session_id ON webhook_configs (session_id DESC);
CREATE INDEX idx_events_type ON events (session_id);
INSERT INTO api_keys (id, key_hash, role, created_at, is_active) VALUES ('1', 'h', 'read', now(), true);
INSERT INTO events VALUES ('1', 't', 's', '{}', now(), now());
"""


@pytest.mark.soak
def test_planted_code_does_not_run_in_what_mends_drift(postgres: Place) -> None:
    up(postgres)
    psql(postgres.dsn, DRIFT)
    script = postgres.run("verify", "--sql").stdout
    hostile = "public, pg_catalog"
    with planted(postgres.dsn) as here:
        found = replace(postgres, dsn=f"{postgres.dsn} search_path='{hostile}'").run("verify", "--sql")
        assert here.is_harmless()
        assert "compared by names alone" in found.stderr  # what may be another role's does not run
        psql(postgres.dsn, f"SET client_min_messages = warning; SET search_path = {hostile};\n{script}")
        assert here.is_harmless()
    assert postgres.run("verify").returncode == 0


def test_planted_code_does_not_run_in_the_search_for_schemas(hostile: tuple[Place, Planted]) -> None:
    place, here = hostile
    done = place.run("up", "--each-schema", "public")
    assert here.is_harmless()
    assert done.returncode in EXITS, done.stderr


def test_planted_code_does_not_run_in_a_health_check(hostile: tuple[Place, Planted]) -> None:
    place, here = hostile
    done = place.run(module="whatspire_db.health")
    assert here.is_harmless()
    assert done.returncode in EXITS, done.stderr


def test_planted_code_does_not_run_in_the_pool(hostile: tuple[Place, Planted]) -> None:
    place, here = hostile
    db = place.connect()
    for _ in range(2):  # a new connection, and one that was given back
        with db.connection_context(), db.atomic():
            assert list(Session.select(Session.id)) == []
    with db.replica(), db.connection_context():
        pass
    db.close_all()
    assert here.is_harmless()


@pytest.mark.soak
def test_planted_code_does_not_run_in_a_query_of_json_values(postgres: Place) -> None:
    up(postgres)
    psql(postgres.dsn, """INSERT INTO events VALUES ('1', 't', 's', '{"a": {"b": "c"}}', now(), now())""")
    with planted(postgres.dsn) as here:
        db = postgres.connect()
        with db.connection_context():
            found = Event.select(Event.id).where(Event.data.value("a", "b") == "c")
            assert [event.id for event in found] == ["1"]
            assert [event.id for event in Event.select(Event.id).where(Event.data.contains('"b"'))] == ["1"]
        db.close_all()
        assert here.is_harmless()


@pytest.mark.parametrize("dry_run", [True, False])
def test_planted_code_does_not_run_in_retention(hostile: tuple[Place, Planted], dry_run: bool) -> None:
    place, here = hostile
    safe = f"SET search_path = {PATHS['public']}, planted; "
    psql(here.dsn, f"{safe}INSERT INTO events VALUES ('1', 't', 's', '{{}}', '2020-01-01', '2020-01-01')")
    done = place.run(*RETAIN, *(["--dry-run"] if dry_run else []), module="whatspire_db")
    assert here.is_harmless()
    assert done.returncode == 0, done.stderr
    assert "1 row" in done.stdout
