"""verify and health name the times in the rows that are not UTC."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from typing import Any

import peewee
import pytest

from tests.conftest import Place, Server
from tests.servers import up
from whatspire_db import ApiKey, BaseModel, MigrationRunner
from whatspire_db.fields import InstantField, NaiveInstantField, utcnow
from whatspire_db.health import check_health

EVENT = "INSERT INTO events (id, type, session_id, timestamp, created_at) VALUES ('{}', 't', 's', '{}', '{}')"
UTC = "2026-11-25 12:00:00.123456789+00:00"
CAIRO = "2026-11-25 14:00:00.123456789+02:00"


def both(place: Place) -> tuple[list[Any], list[Any]]:
    """Return the notes of verify and of health, both of which are content with the database."""
    verify, health = place.run("verify", "--json"), place.run("--json", module="whatspire_db.health")
    assert (verify.returncode, health.returncode) == (0, 0), verify.stderr + health.stderr
    return json.loads(verify.stdout)["times"], json.loads(health.stdout)["times"]


@pytest.mark.soak
def test_times_in_utc_are_no_news(place: Place) -> None:
    up(place)
    with closing(place.connect()) as db:
        db.execute_sql(EVENT.format("e", UTC, UTC))
        ApiKey.create(id="k", key_hash="h", role="read", last_used_at=utcnow(), revoked_at=utcnow())
    assert both(place) == ([], [])
    assert "note:" not in place.run("verify").stdout


@pytest.mark.soak
@pytest.mark.sampled
@pytest.mark.parametrize(
    ("text", "example"),
    [
        (CAIRO, "+02:00"),
        ("2026-11-25 07:00:00-05:00", "-05:00"),
        ("2026-11-25T14:00:00.5+0200", "+0200"),
        ("2026-11-25 14:00:00+02", "+02"),
        ("2026-11-25 14:00:00 +0200 EET m=+0.1", "+0200"),
    ],
)
def test_texts_with_another_offset_are_counted(sqlite: Place, text: str, example: str) -> None:
    up(sqlite)
    with closing(sqlite.connect()) as db:
        for number in range(3):
            db.execute_sql(EVENT.format(number, text, text))
        for form in (UTC, "2026-11-25 12:00:00", "2026-11-25 12:00:00Z", "2026-11-25", "2026-11-25 12:00:00 +0000 UTC"):
            db.execute_sql(EVENT.format(form, form, form))
    note = {"table": "events", "kind": "offset", "rows": 3, "of": 8, "example": example}
    verify, health = both(sqlite)
    assert verify == [{**note, "column": "timestamp"}, {**note, "column": "created_at"}]
    assert health == verify  # an index gives the newest rows, in which all columns are looked at
    said = sqlite.run("verify").stdout
    assert f"note: events.timestamp: 3 of 8 rows hold a time whose offset is not UTC's (such as {example})" in said
    assert "events.timestamp: 3 of 8 rows" in sqlite.run(module="whatspire_db.health").stdout


def test_health_looks_at_the_newest_rows_alone(sqlite: Place) -> None:
    up(sqlite)
    with closing(sqlite.connect()) as db:
        for table, columns in (
            ("events", "id, type, session_id, timestamp, created_at"),
            ("sessions", "id, name, status, created_at, updated_at"),
        ):
            for first, number, time in ((0, 5, "2025-01-01 14:00:00+02:00"), (5, 1000, "2026-01-01 12:00:00+00:00")):
                db.execute_sql(
                    "WITH RECURSIVE n(i) AS (SELECT ? UNION ALL SELECT i + 1 FROM n LIMIT ?) "
                    f"INSERT INTO {table} ({columns}) SELECT i, 't', 'pending', ?, ? FROM n",
                    (first, number, time, time),
                )
    verify, health = both(sqlite)
    assert [(note["table"], note["rows"], note["of"]) for note in verify] == [
        *[("sessions", 5, 1005)] * 2,
        *[("events", 5, 1005)] * 2,
    ]
    assert health == []


class Wall(BaseModel):
    seen_at = NaiveInstantField(null=True)
    local = peewee.DateTimeField(null=True)
    at = InstantField(default=utcnow)

    class Meta:
        abstract = True


@pytest.mark.soak
def test_wall_clock_in_the_future_is_named(postgres: Place) -> None:
    up(postgres)
    with closing(postgres.connect()) as db, db.connection_context():
        for number, ahead in enumerate((0, 2, 3)):
            db.execute_sql(
                "INSERT INTO api_keys (id, key_hash, role, created_at, last_used_at) VALUES "
                f"('{number}', '{number}', 'read', now(), now() AT TIME ZONE 'UTC' + interval '{ahead} hours')"
            )
    note = {"table": "api_keys", "column": "last_used_at", "kind": "future", "rows": 2, "of": 3, "example": None}
    assert both(postgres) == ([note], [note])
    assert (
        "api_keys.last_used_at: 2 of 3 rows hold a wall-clock time in the future of UTC"
        in postgres.run("verify").stdout
    )


@pytest.mark.soak
def test_rows_that_a_policy_hides_are_no_proof_of_right_times(server: Server, postgres: Place) -> None:
    up(postgres)
    name = postgres.connect().database
    role = f"owner_{name}"
    server.execute(f"CREATE ROLE {role} LOGIN")
    try:
        with closing(postgres.connect()) as db, db.connection_context():
            for table in ("api_keys", "migration_versions"):
                db.execute_sql(f"ALTER TABLE {table} OWNER TO {role}")
                db.execute_sql(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
                db.execute_sql(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        theirs = replace(postgres, dsn=server.of_database(name, user=role))
        note = {"table": "api_keys", "kind": "hidden", "rows": None, "of": None, "example": None}
        expected = [{**note, "column": "last_used_at"}, {**note, "column": "revoked_at"}]
        verify, health = both(theirs)
        assert (sorted(verify, key=str), health) == (sorted(expected, key=str), [])
        assert "api_keys.last_used_at: row level security hides rows" in theirs.run("verify").stdout
        for verb in ("status", "version"):
            done = theirs.run(verb)
            assert (done.returncode, done.stdout) == (1, "")
            assert "row level security hides the rows of migration_versions from this role" in done.stderr
        assert json.loads(theirs.run("verify", "--json").stdout)["version"] is None
        assert json.loads(theirs.run("--json", module="whatspire_db.health").stdout)["schema_version"] is None
        assert theirs.run("up").returncode == 0  # there is nothing to record
    finally:
        server.execute(f"ALTER DATABASE {name} OWNER TO CURRENT_USER")
        with closing(postgres.connect()) as db, db.connection_context():
            db.execute_sql(f"DROP OWNED BY {role}")
        server.execute(f"DROP ROLE {role}")


def test_column_of_a_plain_wall_clock_may_hold_a_future(postgres: Place) -> None:
    with closing(postgres.connect()) as db, db.connection_context():
        runner = MigrationRunner(db, [Wall])
        runner.up()
        with db.bind_ctx([Wall]):
            Wall.create(local="2999-01-01", seen_at=utcnow())
        assert runner.time_notes() == ()


@pytest.mark.soak
def test_wall_clocks_are_named_where_the_server_is_not_in_utc(server: Server, postgres: Place) -> None:
    up(postgres)
    name = postgres.connect().database
    server.execute(f"ALTER DATABASE {name} SET TimeZone = 'Africa/Cairo'")
    note = {"table": "api_keys", "kind": "time_zone", "rows": None, "of": None, "example": "Africa/Cairo"}
    expected = [{**note, "column": "last_used_at"}, {**note, "column": "revoked_at"}]
    verify, health = both(postgres)
    assert sorted(verify, key=str) == sorted(health, key=str) == sorted(expected, key=str)
    assert "the server's time zone is Africa/Cairo, not UTC" in postgres.run(module="whatspire_db.health").stdout


def test_tables_that_are_missing_are_no_news(place: Place) -> None:
    with closing(place.connect()) as db, db.connection_context():
        assert MigrationRunner(db).time_notes() == ()


def test_rows_of_a_locked_table_are_not_waited_for_by_health(postgres: Place) -> None:
    up(postgres)
    db, other = postgres.connect(), postgres.connect()
    with db.connection_context(), other.connection_context(), other.atomic():
        other.execute_sql("LOCK TABLE api_keys")
        health = check_health(db, timeout=0.2)
    assert (health.healthy, health.times) == (True, ())
    db.close_all()
    other.close_all()


def test_health_without_the_schema_looks_at_no_rows(sqlite: Place) -> None:
    up(sqlite)
    with closing(sqlite.connect()) as db, db.connection_context():
        db.execute_sql(EVENT.format("e", CAIRO, CAIRO))
        assert check_health(db, schema=False).times == ()
        assert {note.column for note in check_health(db).times} == {"timestamp", "created_at"}
