"""Old rows go, in short batches, by rules that somebody set; all others stay."""

from __future__ import annotations

import json
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import peewee
import pytest

from tests.conftest import Place
from tests.migrate.models import model
from tests.servers import eventually
from whatspire_db import (
    ConfigError,
    Event,
    LockTimeout,
    MigrationRunner,
    ModelError,
    Settings,
    TransactionError,
    WhatspireDBError,
)
from whatspire_db.data import Rule, retain, rules_of
from whatspire_db.data.engines import engine_of
from whatspire_db.data.pace import Pace
from whatspire_db.fields import InstantField, NaiveInstantField, utcnow
from whatspire_db.messages import hint, sqlstate

DAY = timedelta(days=1)
NOW = datetime.now(timezone.utc)


def logged(**fields: peewee.Field) -> type[peewee.Model]:
    """Return a model of a table with a time."""
    return model("Log", "log", {"at": InstantField(null=True, index=True), **fields})


def made(db: peewee.Database, *models: type[peewee.Model]) -> None:
    db.bind(models)
    MigrationRunner(db, models).up()


def filled(db: peewee.Database, log: type[peewee.Model], ages: list[float | None]) -> None:
    rows = [{"at": None if age is None else NOW - age * DAY} for age in ages]
    with db.atomic():
        for start in range(0, len(rows), 500):
            log.insert_many(rows[start : start + 500]).execute()


def rule(log: type[peewee.Model], days: float = 30, column: str = "at") -> Rule:
    return Rule(log, getattr(log, column), days * DAY, "test")


def ages_left(log: type[peewee.Model]) -> list[float | None]:
    found = [row.at for row in log.select().order_by(log.id)]
    return [at and round((NOW - at) / DAY, 3) for at in found]


def test_the_old_rows_go_and_all_others_stay(place: Place, db: peewee.Database) -> None:
    log = logged()
    made(db, log)
    ages = [0, 29.9, 30.1, None, 31, -5, 400, *(31 + number / 100 for number in range(2500)), 1]
    filled(db, log, ages)
    (counted,) = retain(db, [rule(log)], dry_run=True)
    assert (counted.rows, log.select().count()) == (2503, len(ages))
    told: list[int] = []
    (done,) = retain(db, [rule(log)], tell=lambda rule, rows: told.append(rows))
    assert (done.rows, done.is_done) == (2503, True)
    assert ages_left(log) == [0, 29.9, None, -5, 1]
    assert told[-1] == 2503
    steps = [later - earlier for earlier, later in zip([0, *told], told, strict=False)]
    engine = engine_of(db)
    assert steps[0] == engine.smallest
    assert max(steps) <= engine.largest
    assert retain(db, [rule(log)])[0].rows == 0


def test_a_column_without_an_index_is_remarked_on(place: Place, db: peewee.Database) -> None:
    log = logged(other=InstantField(null=True))
    made(db, log)
    assert retain(db, [rule(log)], dry_run=True)[0].is_indexed
    assert not retain(db, [rule(log, column="other")])[0].is_indexed


def test_wall_clocks_of_utc(place: Place, db: peewee.Database) -> None:
    log = model("Log", "log", {"at": NaiveInstantField(null=True)})
    made(db, log)
    filled(db, log, [29.9, 30.1])
    assert retain(db, [rule(log)])[0].rows == 1
    assert ages_left(log) == [29.9]


KEPT = [
    *(1_500_000_000, 1_500_000_000_000, 2.5, "", "never", "01/02/2019", "2019", "12:00", "2019-11-28", b"2019"),
    *("2019-01-01 00:00:00 +0000 UTC", "2019-01-01 00:00:00 +0200 EET m=+0.1", "2019-99-99 00:00:00+00:00"),
]
READ = [
    "2019-01-01T00:00:00Z",
    "2019-01-01 00:00:00",
    "2019-01-01 00:00:00.123456789-05:00",
    "0001-01-01 00:00:00+00:00",
]


def test_what_is_no_time_is_kept(sqlite: Place) -> None:
    db = sqlite.connect()
    log = logged()
    made(db, log)
    with db.connection_context():
        for value in [*KEPT, *READ]:
            db.execute_sql("INSERT INTO log (at) VALUES (?)", [value])
        before = [row[0] for row in db.execute_sql("SELECT at FROM log ORDER BY id LIMIT ?", [len(KEPT)])]
        assert retain(db, [rule(log)], dry_run=True)[0].rows == len(READ)
        assert retain(db, [rule(log)])[0].rows == len(READ)
        assert [row[0] for row in db.execute_sql("SELECT at FROM log ORDER BY id")] == before


@pytest.mark.parametrize("hours", [-12, -5, 0, 2, 14])
def test_a_time_of_another_offset_is_the_instant_that_it_means(sqlite: Place, hours: int) -> None:
    db = sqlite.connect()
    log = logged()
    made(db, log)
    zone, limit = timezone(timedelta(hours=hours)), utcnow() - 30 * DAY
    with db.connection_context():
        for moment in (limit - timedelta(minutes=5), limit + timedelta(minutes=5)):
            db.execute_sql("INSERT INTO log (at) VALUES (?)", [moment.astimezone(zone).isoformat(" ")])
        assert retain(db, [rule(log)])[0].rows == 1
        assert [row.id for row in log.select()] == [2]


def test_a_dry_run_counts_no_more_than_its_limit(place: Place, db: peewee.Database) -> None:
    log, other = logged(), model("Other", "other", {"at": InstantField(null=True)})
    made(db, log, other)
    filled(db, log, [40.0] * 20)
    filled(db, other, [40.0] * 20)
    done = retain(db, [rule(log), rule(other)], limit=25, dry_run=True)
    assert sum(each.rows for each in done) == 25
    assert sorted(each.is_done for each in done) == [False, True]


@pytest.mark.parametrize("limit", [1, 150, 1000])
def test_a_limit_and_the_next_run(place: Place, db: peewee.Database, limit: int) -> None:
    log, other = logged(), model("Other", "other", {"at": InstantField(null=True)})
    made(db, log, other)
    filled(db, log, [40.0] * 200)
    filled(db, other, [40.0] * 100)
    done = retain(db, [rule(log), rule(other)], limit=limit)
    assert sum(each.rows for each in done) == min(limit, 300)
    assert all(each.is_done for each in done) == (limit == 1000)
    retain(db, [rule(log), rule(other)])
    assert (log.select().count(), other.select().count()) == (0, 0)


def test_a_run_stops_behind_a_batch(place: Place, db: peewee.Database) -> None:
    log = logged()
    made(db, log)
    filled(db, log, [40.0] * 500)
    stop = threading.Event()
    (done,) = retain(db, [rule(log)], stop=stop, tell=lambda rule, rows: stop.set())
    assert not done.is_done
    assert done.rows == engine_of(db).smallest
    assert log.select().count() == 500 - done.rows


def test_keys_of_any_form(place: Place, db: peewee.Database) -> None:
    at = {"at": InstantField(null=True)}
    two = model(
        "Two",
        "two",
        {"a": peewee.IntegerField(), "b": peewee.TextField(), **at},
        primary_key=peewee.CompositeKey("a", "b"),
    )
    made(db, two)
    two.insert_many([{"a": n % 7, "b": str(n), "at": NOW - (40 - n % 2 * 20) * DAY} for n in range(300)]).execute()
    assert retain(db, [rule(two)])[0].rows == 150
    assert all(int(row.b) % 2 for row in two.select())
    none = model("Nothing", "nothing", at, primary_key=False)
    made(db, none)
    with pytest.raises(ModelError, match="Nothing has no primary key"):
        retain(db, [rule(none)])


def keyed() -> type[peewee.Model]:
    return model("Keyed", "keyed", {"id": peewee.TextField(primary_key=True), "at": InstantField(null=True)})


def test_old_rows_without_a_key_are_refused_before_anything_is_deleted(sqlite: Place) -> None:
    db = sqlite.connect()
    table, log = keyed(), logged()
    made(db, log)
    filled(db, log, [40.0])
    db.bind([table])
    with db.connection_context():
        db.execute_sql("CREATE TABLE keyed (id text PRIMARY KEY, at datetime)")
        db.execute_sql(
            "INSERT INTO keyed VALUES (NULL, '2019-01-01 00:00:00+00:00'), ('a', '2019-01-01 00:00:00+00:00')"
        )
        with pytest.raises(ModelError, match="old rows of keyed have NULL in their primary key"):
            retain(db, [rule(log), rule(table)])
        assert (log.select().count(), table.select().count()) == (1, 2)
        db.execute_sql("UPDATE keyed SET at = '9019-01-01 00:00:00+00:00' WHERE id IS NULL")
        assert retain(db, [rule(table)])[0].rows == 1


def test_a_young_row_with_the_key_of_an_old_one_stays(place: Place, db: peewee.Database) -> None:
    table = keyed()
    db.bind([table])
    db.execute_sql(f"CREATE TABLE keyed (id text, at {'datetime' if place.is_sqlite else 'timestamptz'})")
    table.insert_many([{"id": "a", "at": NOW - 40 * DAY}, {"id": "a", "at": NOW}]).execute()
    assert retain(db, [rule(table)])[0].rows == 1
    assert [row.at for row in table.select()] == [NOW]


def test_a_batch_that_a_trigger_refuses_says_what_is_gone(place: Place, db: peewee.Database) -> None:
    log = logged()
    made(db, log)
    filled(db, log, [41.0] * engine_of(db).smallest + [40.0])
    last = log.select(peewee.fn.MAX(log.id)).scalar()
    if place.is_sqlite:
        raising = f"WHEN old.id = {last} BEGIN SELECT RAISE(ABORT, 'no'); END"
    else:
        body = f"BEGIN IF old.id = {last} THEN RAISE EXCEPTION ''no''; END IF; RETURN old; END"
        db.execute_sql(f"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS '{body}'")
        raising = "FOR EACH ROW EXECUTE FUNCTION refuse()"
    db.execute_sql(f"CREATE TRIGGER k BEFORE DELETE ON log {raising}")
    with pytest.raises(WhatspireDBError, match="rows of log cannot be deleted: no") as error:
        retain(db, [rule(log)])
    assert "nothing was changed" not in error.value.hint
    # Python 3.10 keeps that a constraint failed, and not which.
    assert "others refer" not in error.value.hint.replace("others refer to them, or a trigger refuses", "")
    assert [row.id for row in log.select()] == [last]


def test_rows_that_a_trigger_keeps_are_no_success(place: Place, db: peewee.Database) -> None:
    log = logged()
    made(db, log)
    filled(db, log, [40.0] * 60)
    if place.is_sqlite:
        db.execute_sql("CREATE TRIGGER k BEFORE DELETE ON log WHEN old.id < 50 BEGIN SELECT RAISE(IGNORE); END")
    else:
        body = "BEGIN IF old.id < 50 THEN RETURN NULL; END IF; RETURN old; END"
        db.execute_sql(f"CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS '{body}'")
        db.execute_sql("CREATE TRIGGER k BEFORE DELETE ON log FOR EACH ROW EXECUTE FUNCTION keep()")
    with pytest.raises(WhatspireDBError, match="rows of log were not deleted: a trigger or a rule of it keeps them"):
        retain(db, [rule(log)])
    assert log.select().where(log.id < 50).count() == 49


@pytest.mark.parametrize("keys", [1, 2])
def test_a_batch_is_no_larger_where_the_server_knows_nothing_of_the_table(postgres: Place, keys: int) -> None:
    db = postgres.connect()
    fields = {"a": peewee.IntegerField(), "b": peewee.IntegerField(), "at": InstantField(index=True)}
    log = model("Log", "log", fields, primary_key=peewee.CompositeKey("a", "b")) if keys == 2 else logged()
    made(db, log)
    with db.connection_context():
        db.execute_sql("ALTER TABLE log SET (autovacuum_enabled = off)")
        filling = "a, b, at) SELECT n, n," if keys == 2 else "at) SELECT"
        db.execute_sql(f"INSERT INTO log ({filling} now() + interval '1 day' FROM generate_series(1, 2) AS n")
        db.execute_sql("VACUUM ANALYZE log")
        db.execute_sql(f"INSERT INTO log ({filling} now() - interval '40 days' FROM generate_series(3, 900) AS n")
        for way in ("hashjoin", "hashagg", "mergejoin", "material"):  # as the server chooses where it expects few rows
            db.execute_sql(f"SET enable_{way} = off")
        (done,) = retain(db, [rule(log)], limit=70)
        assert (done.rows, log.select().count()) == (70, 830)


def test_rows_that_a_policy_hides_are_an_error(postgres: Place) -> None:
    db = postgres.connect()
    log = logged()
    made(db, log)
    filled(db, log, [40.0] * 5)
    role = f"limited_{uuid.uuid4().hex}"
    with db.connection_context():
        for statement in ("CREATE ROLE {0}", "GRANT ALL ON log TO {0}", "CREATE POLICY few ON log USING (id > 3)"):
            db.execute_sql(statement.format(role))
        db.execute_sql("ALTER TABLE log ENABLE ROW LEVEL SECURITY")
        db.execute_sql(f"SET ROLE {role}")
        try:
            for dry_run in (True, False):
                with pytest.raises(peewee.PeeweeException) as error:
                    retain(db, [rule(log)], dry_run=dry_run)
                assert sqlstate(error.value) == "42501"
                assert hint(error.value).startswith("use a role with BYPASSRLS")
        finally:
            db.execute_sql("RESET ROLE")
            db.execute_sql(f"DROP OWNED BY {role}")
            db.execute_sql(f"DROP ROLE {role}")
        assert log.select().count() == 5


def family(on_delete: str | None) -> tuple[type[peewee.Model], type[peewee.Model]]:
    parent = logged()
    field = peewee.ForeignKeyField(parent, on_delete=on_delete, null=True)
    child = model("Child", "child", {"at": InstantField(null=True), "parent": field})
    return parent, child


def test_rows_that_refer_to_others_go_first(place: Place, db: peewee.Database) -> None:
    parent, child = family(None)
    made(db, parent, child)
    filled(db, parent, [40.0, 1.0])
    child.insert_many([{"at": NOW - 40 * DAY, "parent": 1}, {"at": NOW, "parent": 2}]).execute()
    done = retain(db, [rule(parent), rule(child)])
    assert [(each.rule.model, each.rows) for each in done] == [(parent, 1), (child, 1)]


def test_rows_that_others_refer_to_stay(place: Place, db: peewee.Database) -> None:
    parent, child = family(None)
    made(db, parent, child)
    filled(db, parent, [40.0])
    child.create(at=NOW, parent=1)
    with pytest.raises(WhatspireDBError, match="rows of log cannot be deleted") as error:
        retain(db, [rule(parent)])
    assert "give those a rule" in error.value.hint
    assert parent.select().count() == 1


def test_rows_that_refer_to_older_ones_of_their_table_go_first(place: Place, db: peewee.Database) -> None:
    log = logged(parent=peewee.ForeignKeyField("self", null=True))
    made(db, log)
    filled(db, log, [40.0] * 150)
    log.update(parent=log.id - 1).where(log.id > 1).execute()
    assert retain(db, [rule(log)])[0].rows == 150


def test_a_reference_that_is_checked_at_the_commit_keeps_its_row(place: Place, db: peewee.Database) -> None:
    log = logged()
    made(db, log)
    filled(db, log, [40.0])
    db.execute_sql("CREATE TABLE child (log integer REFERENCES log (id) DEFERRABLE INITIALLY DEFERRED)")
    db.execute_sql("INSERT INTO child VALUES (1)")
    with pytest.raises(WhatspireDBError, match="rows of log cannot be deleted"):
        retain(db, [rule(log)])
    assert log.select().count() == 1


def test_a_lock_on_a_row_that_refers_is_waited_for_no_longer_than_allowed(postgres: Place) -> None:
    db, other = postgres.connect(), postgres.connect()
    parent, child = family("CASCADE")
    made(db, parent, child)
    filled(db, parent, [40.0] * 10)
    child.create(parent=1)
    with other.atomic():
        other.execute_sql("SELECT 1 FROM child FOR UPDATE")
        with pytest.raises(LockTimeout, match="locked by others for 0.3 s"):
            retain(db, [rule(parent)], lock_timeout=0.3)
    assert retain(db, [rule(parent)])[0].rows == 10


def test_a_lock_on_the_whole_is_waited_for_no_longer_than_allowed(place: Place, db: peewee.Database) -> None:
    log = logged()
    made(db, log)
    filled(db, log, [40.0] * 10)
    other = place.connect()
    if place.is_sqlite:
        db.timeout = 0.1  # type: ignore[attr-defined]
    with other.atomic(*["IMMEDIATE"] * place.is_sqlite):
        if not place.is_sqlite:
            other.execute_sql("LOCK TABLE log IN ACCESS EXCLUSIVE MODE")
        for dry_run in (False, True)[: 1 if place.is_sqlite else 2]:
            with pytest.raises(LockTimeout, match="locked by others for 0.3 s"):
                retain(db, [rule(log)], lock_timeout=0.3, dry_run=dry_run)
    assert retain(db, [rule(log)])[0].rows == 10


def test_rows_that_somebody_has_locked_are_left_for_the_next_run(postgres: Place) -> None:
    db, other = postgres.connect(), postgres.connect()
    log = logged()
    made(db, log)
    filled(db, log, [40.0] * 10)
    with other.atomic():
        other.execute_sql("SELECT 1 FROM log WHERE id = 5 FOR UPDATE")
        assert retain(db, [rule(log)])[0].rows == 9
    assert retain(db, [rule(log)])[0].rows == 1


def test_within_a_transaction_it_is_refused(place: Place, db: peewee.Database) -> None:
    log = logged()
    made(db, log)
    filled(db, log, [40.0])
    with db.atomic(), pytest.raises(TransactionError, match="within a transaction"):
        retain(db, [rule(log)])
    assert log.select().count() == 1


@pytest.mark.parametrize(
    "wrong", [{"limit": 0}, {"limit": -1}, {"limit": True}, {"limit": "5"}, {"stall": 0}, {"stall": -1}]
)
def test_limits_that_are_wrong_delete_nothing(place: Place, db: peewee.Database, wrong: dict[str, object]) -> None:
    log = logged()
    made(db, log)
    filled(db, log, [40.0])
    with pytest.raises(ConfigError):
        retain(db, [rule(log)], **wrong)  # type: ignore[arg-type]
    assert log.select().count() == 1


def test_an_age_beyond_the_year_1(db: peewee.Database) -> None:
    (found,) = rules_of([Event], Settings(events_enabled=True, events_retention_days=999_999_999))
    with pytest.raises(ConfigError, match="leads back beyond the year 1"):
        retain(db, [found])
    with pytest.raises(ConfigError, match="is not above 0"):
        Rule(Event, Event.timestamp, timedelta(0), "test")


def test_a_superuser_runs_no_trigger_of_another_role(postgres: Place) -> None:
    db = postgres.connect()
    log = logged()
    made(db, log)
    filled(db, log, [40.0])
    owner = f"retain_{postgres.named.split('_')[-1]}"
    with db.connection_context():
        db.execute_sql(f"CREATE ROLE {owner}")
        try:
            db.execute_sql(f"ALTER TABLE log OWNER TO {owner}")
            with pytest.raises(WhatspireDBError, match="would run code of") as refused:
                retain(db, [rule(log)])
            assert "--trust-source" in refused.value.hint
            assert log.select().count() == 1
            assert retain(db, [rule(log)], trust_source=True)[0].rows == 1
        finally:
            db.execute_sql(f"DROP OWNED BY {owner}; DROP ROLE {owner}")


def test_two_tables_of_one_name_are_not_guessed_at() -> None:
    one = model("One", "log", {"at": InstantField()}, schema="a")
    two = model("Two", "log", {"at": InstantField()}, schema="b")
    with pytest.raises(ConfigError, match="One, Two all have a table 'log'"):
        rules_of([one, two], Settings(), ["log.at=30d"])


def test_a_secret_in_a_rule_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as error:
        rules_of([Event], Settings(), ["postgres://me:Zq7SECRETx9@host/db.events=30d"])
    assert "Zq7SECRETx9" not in str(error.value)


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_the_file_of_the_lock_is_as_open_as_the_database(sqlite: Place, mode: int) -> None:
    """Made by root for itself alone, it would keep a worker from reading its stamps."""
    db = sqlite.connect()
    log = logged()
    db.bind([log])
    with db.connection_context():
        db.create_tables([log])
    Path(sqlite.dsn).chmod(mode)
    retain(db, [rule(log)])
    assert Path(f"{sqlite.dsn}-stamps").stat().st_mode & 0o777 == mode


def test_one_run_at_a_time(place: Place, db: peewee.Database) -> None:
    log = logged()
    made(db, log)
    filled(db, log, [40.0])
    with engine_of(place.connect()).alone(1):
        with pytest.raises(LockTimeout, match="another run that changes many rows held the lock"):
            retain(db, [rule(log)], lock_timeout=0.1)
        assert log.select().count() == 1
        log.create(at=NOW)  # nobody else is kept out
    assert retain(db, [rule(log)])[0].rows == 1


def test_free_pages_leave_a_file_that_allows_it(sqlite: Place) -> None:
    db = sqlite.connect()
    log = logged(text=peewee.TextField(default="x" * 400))
    made(db, log)
    assert db.execute_sql("PRAGMA auto_vacuum").fetchone() == (2,)
    filled(db, log, [40.0] * 5000)
    (before,) = db.execute_sql("PRAGMA page_count").fetchone()
    retain(db, [rule(log)])
    assert db.execute_sql("PRAGMA freelist_count").fetchone() == (0,)
    assert db.execute_sql("PRAGMA page_count").fetchone()[0] < before / 10


def test_a_file_that_does_not_allow_it_keeps_its_free_pages(sqlite: Place) -> None:
    with peewee.SqliteDatabase(sqlite.dsn) as plain:
        plain.execute_sql("CREATE TABLE log (id integer PRIMARY KEY, at datetime)")
    db = sqlite.connect()
    log = logged()
    made(db, log)
    filled(db, log, [40.0] * 5000)
    assert retain(db, [rule(log)])[0].rows == 5000
    assert db.execute_sql("PRAGMA auto_vacuum").fetchone() == (0,)
    assert db.execute_sql("PRAGMA freelist_count").fetchone()[0] > 10


def writers(place: Place, log: type[peewee.Model], stop: threading.Event) -> Iterator[Callable[[], list[int]]]:
    """Yield what writes new rows, until it is to stop, and returns their ids."""

    def writes() -> list[int]:
        db = place.connect()
        ids = []
        with db.connection_context():
            while not (stop.is_set() and ids):
                ids.append(int(log.insert(at=utcnow()).execute(db)))
        return ids

    return iter([writes] * 4)


@pytest.mark.soak
def test_beside_four_writers_exactly_the_old_rows_go(place: Place, db: peewee.Database) -> None:
    from tests.backup.ground import at_once

    log = logged(text=peewee.TextField(default="x" * 250))
    made(db, log)
    filled(db, log, [60 - number % 2 * 59.0 for number in range(100_000)])
    stop = threading.Event()
    batches: list[int] = []

    def retains() -> int:
        try:
            return retain(place.connect(), [rule(log)], tell=lambda rule, rows: batches.append(rows))[0].rows
        finally:
            stop.set()

    rows, *written = at_once(retains, *writers(place, log, stop))
    assert rows == 50_000
    assert len(batches) >= 50_000 / engine_of(db).largest
    left = {row[0] for row in log.select(log.id).tuples()}
    assert left == {*range(2, 100_001, 2), *(id for ids in written for id in ids)}


KILLED = """
import sys
from tests.data.test_retention import *
from tests.conftest import Place
from whatspire_db import Settings, connect
db = connect(Settings(dsn=sys.argv[1]))
log = logged()
db.bind([log])
retain(db, [rule(log)], tell=lambda rule, rows: print(rows, flush=True))
"""


def test_a_run_that_is_killed_has_deleted_whole_batches(place: Place, db: peewee.Database) -> None:
    import subprocess
    import sys

    log = logged()
    made(db, log)
    filled(db, log, [40.0] * 3000)
    process = subprocess.Popen([sys.executable, "-c", KILLED, place.dsn], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    told = [first, *map(int, process.stdout.read().split())]
    process.wait()
    eventually(lambda: 3000 - log.select().count() >= told[-1], "what was told is deleted")
    assert log.select().count() < 3000
    assert retain(db, [rule(log)])[0].is_done
    assert log.select().count() == 0


# Rules


def test_the_settings_rule_is_the_services(db: peewee.Database) -> None:
    def found(**settings: object) -> list[tuple[str, timedelta]]:
        return [(each.name, each.age) for each in rules_of([Event], Settings(**settings))]  # type: ignore[arg-type]

    assert found() == []
    assert found(events_enabled=True) == [("events.timestamp", 30 * DAY)]
    assert found(events_enabled=True, events_retention_days=7) == [("events.timestamp", 7 * DAY)]
    assert found(events_enabled=True, events_retention_days=0) == []
    assert found(events_enabled=False, events_retention_days=7) == []
    assert rules_of([], Settings(events_enabled=True)) == []


@pytest.mark.parametrize("age", [timedelta(days=90), "90d", "2160h"])
def test_the_rule_of_a_model(age: object) -> None:
    class Note(peewee.Model):
        made = InstantField(column_name="made_at")

        class Meta:
            retention = ("made", age)

    (found,) = rules_of([Note], Settings())
    assert (found.model, found.field, found.age, str(found)) == (
        Note,
        Note.made,
        90 * DAY,
        "note.made_at older than 90d",
    )


def test_rules_that_are_given_count_alone() -> None:
    (found,) = rules_of([Event], Settings(events_enabled=True), ["events.created_at=12h"])
    assert (found.field, found.age, found.source) == (Event.created_at, DAY / 2, "--rule")


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("", "--rule is not a rule"),
        ("events", "--rule is not a rule"),
        ("events.timestamp", "--rule is not a rule"),
        ("events=30d", "--rule is not a rule"),
        ("other.timestamp=30d", "--rule: no model has the table 'other'"),
        ("events.other=30d", "there is no such column"),
        ("events.type=30d", "not an InstantField"),
        ("events.timestamp=30", "that is not an age"),
        ("events.timestamp=0d", "not above 0"),
        ("events.timestamp=-1h", "not above 0"),
        ("events.timestamp=30days", "that is not an age"),
        ("events.timestamp=99999999d", "that is not an age"),
    ],
)
def test_texts_that_are_no_rules(text: str, fact: str) -> None:
    with pytest.raises(ConfigError) as error:
        rules_of([Event], Settings(), [text])
    assert fact in error.value.fact


def test_a_column_without_instants_is_answered_with_those_that_hold_them() -> None:
    for column in ("other", "type"):
        with pytest.raises(ConfigError) as error:
            rules_of([Event], Settings(), [f"events.{column}=30d"])
        assert error.value.hint == "events has timestamp, created_at"


NO_RULES: list[object] = [
    *("at", ("at",), ("at", 30), ("other", "30d"), ("id", "30d"), ("at", "x"), 5, {"at": "30d", "by": 1}),
    *(("at", timedelta(0)), ("at", -DAY), ("at", "0d"), (1, "30d")),
]


@pytest.mark.parametrize("declared", NO_RULES, ids=repr)
def test_rules_of_models_that_are_none(declared: object) -> None:
    class Note(peewee.Model):
        at = InstantField()

        class Meta:
            retention = declared

    with pytest.raises(ModelError, match="the retention of Note is not a rule"):
        rules_of([Note], Settings())


@pytest.mark.parametrize(
    ("rows", "seconds", "size"),
    [(100, 0.05, 100), (100, 0.025, 200), (100, 0.001, 200), (100, 0.5, 10), (1000, 0.01, 1000), (10, 5.0, 10)],
)
def test_batches_grow_slowly_and_shrink_at_once(rows: int, seconds: float, size: int) -> None:
    assert Pace(0.05, 10, 1000).after(rows, seconds) == size


# The command


def test_the_command(place: Place, db: peewee.Database) -> None:
    MigrationRunner(db).up()
    for number, age in enumerate([40, 20, 1]):
        Event.create(id=str(number), type="x", session_id="s", timestamp=NOW - age * DAY)

    def run(*arguments: str, **env: str) -> tuple[int, str, str]:
        done = place.run("retain", *arguments, module="whatspire_db", env=env)
        return done.returncode, done.stdout, done.stderr

    code, out, err = run()
    assert (code, out) == (2, "")
    assert err.splitlines()[0] == "error: there is no rule, so nothing is deleted"
    code, out, _ = run("--dry-run", WHATSAPP_EVENTS_ENABLED="true")
    assert (code, out.splitlines()[1]) == (
        0,
        "events.timestamp older than 30d (WHATSAPP_EVENTS_RETENTION_DAYS): 1 row would be deleted",
    )
    assert Event.select().count() == 3
    code, out, _ = run("--json", "--rule", "events.timestamp=10d", WHATSAPP_EVENTS_ENABLED="true")
    (found,) = json.loads(out)["rules"]
    assert (code, found["rows"], found["older_than"], found["source"]) == (0, 2, "10d", "--rule")
    assert [event.id for event in Event.select()] == ["2"]
    assert place.named.split()[0] in json.loads(out)["database"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--limit", "0"),
        ("--limit", "x"),
        ("--stall", "0s"),
        ("--stall", "1h"),
        ("--rule", "x"),
        ("--lock-timeout", "x"),
    ],
)
def test_bad_input_is_two_lines(sqlite: Place, arguments: tuple[str, str]) -> None:
    done = sqlite.run("retain", *arguments, module="whatspire_db", env={"WHATSAPP_EVENTS_ENABLED": "true"})
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 2
    assert not Path(sqlite.dsn).exists()


def test_tables_that_are_not_there_are_two_lines(place: Place) -> None:
    done = place.run("retain", module="whatspire_db", env={"WHATSAPP_EVENTS_ENABLED": "true"})
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 2
    assert done.stderr.startswith("error: nothing can be deleted: the table of Event is not there (database: ")
    assert not (place.is_sqlite and Path(place.dsn).exists())


def test_up_deletes_nothing(sqlite: Place) -> None:
    db = sqlite.connect()
    MigrationRunner(db).up()
    Event.create(id="1", type="x", session_id="s", timestamp=NOW - 400 * DAY)
    assert sqlite.run("up", env={"WHATSAPP_EVENTS_ENABLED": "true"}).returncode == 0
    assert Event.select().count() == 1
