"""The database shared with the Go service: made by either, the other finds nothing to change."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta, timezone

import peewee
import pytest

from tests import gorm
from tests.conftest import Place
from whatspire_db import (
    ApiKey,
    AuditLog,
    Event,
    MigrationRunner,
    MigrationVersion,
    Session,
    ValueRefused,
    WebhookConfig,
)
from whatspire_db.migrate.engines.base import engine_for
from whatspire_db.models.service import SERVICE_MODELS

THREE = {"idx_events_session_timestamp", "idx_events_type_timestamp", "idx_events_session_type"}


def shapes(db: peewee.Database) -> dict[str, object]:
    engine = engine_for(db)
    found = engine.snapshot([engine.key(model) for model in SERVICE_MODELS])
    return {
        key[1]: (
            dict(table.columns),
            sorted((i.name, i.definition) for i in table.indexes if i.name not in THREE),
            sorted((c.kind, c.name, c.definition) for c in table.constraints),
        )
        for key, table in found.tables.items()
    }


def test_fresh_database_has_nine_tables_and_21_indexes_beside_our_records(place: Place) -> None:
    done = place.run("--json")
    assert done.returncode == 0, done.stderr
    db = place.connect()
    assert sorted(db.get_tables()) == sorted([*gorm.TABLES, "whatspire_db_runs"])
    engine = engine_for(db)
    tables = engine.snapshot([engine.key(model) for model in SERVICE_MODELS]).tables
    assert sum(len(table.indexes) for table in tables.values()) == 21
    db.close()


def test_differs_from_the_go_services_in_nothing_but_three_indexes(place: Place, db: peewee.Database) -> None:
    gorm.create(place, db, with_rows=False)
    by_go = shapes(db)
    for table in gorm.TABLES:
        db.execute_sql(f'DROP TABLE "{table}"')
    MigrationRunner(db).up()
    assert shapes(db) == by_go


@pytest.mark.parametrize("quote", ["`", '"', "["])
def test_quotes_of_the_ddl_do_not_matter_to_sqlite(sqlite: Place, quote: str) -> None:
    db = sqlite.connect()
    for statement in gorm.ddl(sqlite, quote="`"):
        db.execute_sql(statement.replace("`", quote) if quote != "[" else _bracketed(statement))
    plan = MigrationRunner(db).plan()
    assert {step.name for step in plan.pending} == THREE
    assert not plan.drift
    db.close()


def _bracketed(statement: str) -> str:
    parts = statement.split("`")
    return "".join(p if n % 2 == 0 else f"[{p}]" for n, p in enumerate(parts))


def test_plan_for_the_go_services_database_is_the_three_indexes(place: Place, db: peewee.Database) -> None:
    gorm.create(place, db)
    before = gorm.content(db)
    runner = MigrationRunner(db)
    plan = runner.plan()
    assert {step.name for step in plan.pending} == THREE
    assert not plan.drift
    assert not plan.refused
    report = runner.up()
    assert {step.name for step in report.applied} == THREE
    assert report.previous_version == 1707123460
    assert not runner.verify_schema()
    db.execute_sql("DELETE FROM migration_versions WHERE version = %d" % report.version)
    assert gorm.content(db) == before


def test_rows_of_the_go_service_read_as_python_objects(place: Place, db: peewee.Database) -> None:
    gorm.create(place, db)
    MigrationRunner(db).up()
    for number, (_, micros) in enumerate(gorm.TIMES):
        session = Session.get_by_id(str(uuid.UUID(int=number)))
        assert session.created_at == gorm.instant(micros)
        assert session.created_at.tzinfo is timezone.utc
        key = ApiKey.get_by_id(session.id)
        assert key.last_used_at == (None if number == 0 else gorm.instant(micros))
        assert key.is_active is bool(number % 2)
        event = Event.get_by_id(session.id)
        assert event.data == {"kind": "message", "n": number, "text": "<>"}
        assert event.timestamp == gorm.instant(micros)
        assert AuditLog.get_by_id(session.id).details == (["message", "status"] if number else None)
        assert WebhookConfig.get_by_id(session.id).events == (["message", "status"] if number else None)
        assert MigrationVersion.get_by_id(1707123456 + number).applied_at == gorm.instant(micros)


def test_times_compare_and_sort_next_to_those_that_go_wrote(place: Place, db: peewee.Database) -> None:
    gorm.create(place, db)
    ours = [0, 1, 2, 119999, 120000, 120001, 123455, 123457, 499999, 500000, 999999]
    for micros in ours:
        Session.create(name="ours", status="pending", created_at=gorm.instant(micros), updated_at=gorm.instant(0))
    times = [s.created_at for s in Session.select().order_by(Session.created_at)]
    assert times == sorted(times)
    for micros in (1, 120000, 500000):
        assert Session.select().where(Session.created_at == gorm.instant(micros)).count() == 2
    everything = sorted(ours + [micros for _, micros in gorm.TIMES])
    for micros in (0, 2, 120001, 500000):
        later = Session.select().where(Session.created_at > gorm.instant(micros)).count()
        assert later == sum(other > micros for other in everything)
    east = timezone(timedelta(hours=9))
    assert Session.select().where(Session.created_at == gorm.instant(1).astimezone(east)).count() == 2


def test_values_written_here_have_the_go_services_form(place: Place, db: peewee.Database) -> None:
    MigrationRunner(db).up()
    at = gorm.instant(500000)
    Event.create(id="e", type="t", session_id="s", data={"a": [1, "ü<"]}, timestamp=at, created_at=gorm.instant(0))
    data, text = db.execute_sql("SELECT data, timestamp FROM events").fetchone()
    assert bytes(data).decode() == '{"a":[1,"ü<"]}'
    assert text == ("2026-11-22 09:05:03.5+00:00" if place.is_sqlite else at)
    ApiKey.create(id="k", key_hash="h", role="read", last_used_at=at)
    active, used = db.execute_sql("SELECT is_active, last_used_at FROM api_keys").fetchone()
    assert active == (1 if place.is_sqlite else True)
    assert used == ("2026-11-22 09:05:03.5+00:00" if place.is_sqlite else at.replace(tzinfo=None))


def test_naive_datetimes_are_refused(place: Place, db: peewee.Database) -> None:
    MigrationRunner(db).up()
    for field in ({"created_at": datetime(2026, 1, 1)}, {"created_at": "2026-01-01"}):
        with pytest.raises(ValueRefused, match=r"sessions\.created_at takes"):
            Session.create(name="n", status="pending", **field)
    with pytest.raises(ValueRefused, match="no time zone"):
        list(Session.select().where(Session.created_at > datetime(2026, 1, 1)))
    with pytest.raises(ValueRefused, match=r"api_keys\.revoked_at"):
        ApiKey.update(revoked_at=datetime(2026, 1, 1)).execute()
    assert Session.select().count() == 0


def test_a_text_that_is_no_time_is_not_passed_on_silently(sqlite: Place) -> None:
    db = sqlite.connect()
    MigrationRunner(db).up()
    Session.create(id="x", name="n", status="pending")
    db.execute_sql("UPDATE sessions SET created_at = '2026-11-22 09:05:03.1 +0000 UTC m=+0.5'")
    with pytest.raises(ValueRefused, match=r"sessions\.created_at holds"):
        Session.get_by_id("x")
    db.close()


def test_an_object_with_a_given_key_is_saved_the_first_time(place: Place, db: peewee.Database) -> None:
    MigrationRunner(db).up()
    session = Session(name="main", status="pending")
    assert session.save() == 1
    session.status = "connected"
    assert session.save() == 1
    assert [s.status for s in Session.select()] == ["connected"]


def test_bulk_update_and_case_take_times(place: Place, db: peewee.Database) -> None:
    MigrationRunner(db).up()
    sessions = [Session.create(name=str(n), status="pending") for n in range(3)]
    for number, session in enumerate(sessions):
        session.updated_at = gorm.instant(number)
    assert Session.bulk_update(sessions, [Session.updated_at]) == 3
    assert [s.updated_at for s in Session.select().order_by(Session.name)] == [gorm.instant(n) for n in range(3)]


def test_values_that_cannot_be_stored_are_refused(place: Place, db: peewee.Database) -> None:
    MigrationRunner(db).up()
    early = datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5)))
    for values in ({"details": "\ud800"}, {"details": {1, 2}}, {"details": float("nan")}, {"created_at": early}):
        with pytest.raises(ValueRefused, match="audit_logs"):
            AuditLog.create(event_type="x", **values)
    assert AuditLog.select().count() == 0


def test_checks_hold(place: Place, db: peewee.Database) -> None:
    MigrationRunner(db).up()
    with pytest.raises(peewee.IntegrityError):
        Session.create(name="n", status="unheard of")


def test_peewees_own_safe_creation_can_be_repeated(place: Place, db: peewee.Database) -> None:
    for _ in range(2):
        db.create_tables(SERVICE_MODELS, safe=True)
    assert not MigrationRunner(db).plan()
