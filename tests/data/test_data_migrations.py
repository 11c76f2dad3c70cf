"""Data migrations change rows once: batch by batch or in one transaction, by one run at a time, over every kill."""

from __future__ import annotations

import json
import logging
import random
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import peewee
import pytest

from tests.backup.ground import at_once
from tests.conftest import Place, ends_of
from tests.migrate.models import model
from tests.servers import eventually
from whatspire_db import (
    ConfigError,
    DataMigrationFailed,
    LockTimeout,
    MigrationRunner,
    ModelError,
    Settings,
    TransactionError,
    WhatspireDBError,
    connect,
    data_migration,
)
from whatspire_db.data import DataMigrations
from whatspire_db.data.engines import engine_of
from whatspire_db.data.keys import Keys
from whatspire_db.messages import is_disk_full
from whatspire_db.migrate import progress
from whatspire_db.models.base import declared_data
from whatspire_db.models.data_migrations import DataMigration

Model = type[peewee.Model]


def counted(**fields: Any) -> Model:
    """Return a model whose rows count how often they were changed."""
    return model("Counted", "counted", {"n": peewee.IntegerField(default=0), **fields})


def made(db: peewee.Database, *models: Model) -> None:
    db.bind(models)
    MigrationRunner(db, models).up()


def filled(db: peewee.Database, table: Model, rows: int) -> None:
    with db.atomic():
        for start in range(0, rows, 500):
            table.insert_many([{"n": 0}] * min(500, rows - start)).execute()


def add_one(table: Model) -> Callable[[Any], None]:
    def change(batch: Any) -> None:
        table.update(n=table.n + 1).where(batch).execute()

    return change


def counting(table: Model, **more: Any) -> DataMigration:
    return DataMigration("count", table, add_one(table), **more)


def counts(table: Model) -> set[int]:
    return {row[0] for row in table.select(table.n).distinct().tuples()}


def fail(*_: Any) -> None:
    raise KeyError("Zq7SECRETx9")


@pytest.fixture
def nothing_declared() -> Iterator[None]:
    before = dict(declared_data)
    declared_data.clear()
    yield
    declared_data.clear()
    declared_data.update(before)


# What is changed


def test_every_row_is_changed_once(place: Place, db: peewee.Database) -> None:
    table = counted()
    made(db, table)
    filled(db, table, 3210)
    told: list[int] = []
    data = DataMigrations(db, [counting(table)], tell=lambda migration, rows: told.append(rows))
    outcome = data.run()
    assert [(state.name, state.state, state.rows) for state in outcome.done] == [("count", "finished", 3210)]
    assert outcome.left == ()
    assert counts(table) == {1}
    steps = [later - earlier for earlier, later in zip([0, *told], told, strict=False)]
    assert steps[0] == engine_of(db).smallest
    assert max(steps) <= engine_of(db).largest
    assert data.run().done == ()
    assert counts(table) == {1}


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_a_batch_has_no_more_rows_than_it_says(place: Place, db: peewee.Database, batch: int) -> None:
    table = counted()
    made(db, table)
    filled(db, table, 50)
    sizes: list[int] = []

    def change(rows: Any) -> None:
        sizes.append(table.update(n=table.n + 1).where(rows).execute())

    DataMigrations(db, [DataMigration("count", table, change, batch)]).run()
    assert sum(sizes) == 50
    assert max(sizes) <= batch
    assert counts(table) == {1}


KEYS: dict[str, tuple[dict[str, peewee.Field], Callable[[int], dict[str, Any]]]] = {
    "text": ({"id": peewee.TextField(primary_key=True)}, lambda n: {"id": uuid.UUID(int=n * 7919).hex}),
    "uuid": ({"id": peewee.UUIDField(primary_key=True)}, lambda n: {"id": uuid.UUID(int=n * 7919)}),
    "bytes": ({"id": peewee.BlobField(primary_key=True)}, lambda n: {"id": n.to_bytes(3, "big")}),
    "decimal": (
        {"id": peewee.DecimalField(primary_key=True, max_digits=9, decimal_places=2)},
        lambda n: {"id": n / 4},
    ),
    "two": (
        {"a": peewee.IntegerField(), "b": peewee.TextField()},
        lambda n: {"a": n % 7, "b": f"{n % 3}'\n%{n}"},
    ),
}


@pytest.mark.parametrize("kind", KEYS)
def test_keys_of_any_form(place: Place, db: peewee.Database, kind: str) -> None:
    fields, key = KEYS[kind]
    meta = {"primary_key": peewee.CompositeKey("a", "b")} if kind == "two" else {}
    table = model("Keyed", "keyed", {"n": peewee.IntegerField(default=0), **fields}, **meta)
    made(db, table)
    table.insert_many([key(n) for n in range(333)]).execute()
    seen: list[int] = []

    def change(rows: Any) -> None:
        seen.append(table.select().where(rows).count())
        table.update(n=table.n + 1).where(rows).execute()

    DataMigrations(db, [DataMigration("count", table, change, 50)]).run()
    assert (sum(seen), counts(table)) == (333, {1})


def test_the_log_hears_of_progress(
    db: peewee.Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = counted()
    made(db, table)
    filled(db, table, 300)
    monkeypatch.setattr(progress, "LOG_SECONDS", -1.0)
    with caplog.at_level(logging.INFO, "whatspire_db.migrate.progress"):
        DataMigrations(db, [counting(table)]).run()
    assert "data migration count: 300 rows done" in caplog.messages


def test_a_table_without_rows(place: Place, db: peewee.Database) -> None:
    table = counted()
    made(db, table)
    (state,) = DataMigrations(db, [counting(table)]).run().done
    assert (state.state, state.rows) == ("finished", 0)


def test_peewees_atomic_works_inside(place: Place, db: peewee.Database) -> None:
    table = counted()
    made(db, table)
    filled(db, table, 200)

    def change(rows: Any) -> None:
        with suppress(ZeroDivisionError), db.atomic():
            table.update(n=99).execute()
            raise ZeroDivisionError
        with db.atomic():
            table.update(n=table.n + 1).where(rows).execute()

    DataMigrations(db, [DataMigration("count", table, change)]).run()
    assert counts(table) == {1}


def test_one_transaction_is_all_or_nothing(place: Place, db: peewee.Database) -> None:
    table = counted()
    made(db, table)
    filled(db, table, 20)

    def change() -> None:
        table.update(n=table.n + 1).execute()
        if table.select().where(table.n == 1).count() == 20 and broken:
            raise ValueError("broken")

    broken = True
    data = DataMigrations(db, [DataMigration("once", table, change)])
    with pytest.raises(DataMigrationFailed, match="data migration once failed: ValueError at .*test_data_migrations"):
        data.run()
    assert counts(table) == {0}
    broken = False
    assert [state.state for state in data.retry("once").done] == ["finished"]
    assert counts(table) == {1}
    data.run()
    assert counts(table) == {1}


# Failures


def test_a_failure_is_recorded_with_its_position_and_the_rest_waits(place: Place, db: peewee.Database) -> None:
    table = counted()
    made(db, table)
    filled(db, table, 500)
    broken = True

    def change(rows: Any) -> None:
        table.update(n=table.n + 1).where(rows).execute()
        if broken and table.select().where(rows, table.id > 250).exists():
            fail()

    behind = DataMigration("behind", table, lambda: None)
    data = DataMigrations(db, [DataMigration("first", table, change, 100), behind])
    with pytest.raises(DataMigrationFailed) as failed:
        data.run()
    assert "KeyError at " in failed.value.fact
    assert "Zq7SECRETx9" not in str(failed.value)
    assert "whatspire-db data retry first" in failed.value.hint
    first, waiting = data.states()
    assert (first.state, waiting.state) == ("failed", "pending")
    done = table.select().where(table.n == 1).count()
    assert (first.rows, first.position) == (done, str(done))
    assert [state.state for state in data.run().left] == ["failed", "pending"]  # it is not tried again by itself
    assert table.select().where(table.n == 1).count() == done
    broken = False
    assert [state.state for state in data.retry("first").done] == ["finished", "finished"]
    assert counts(table) == {1}


def test_a_failed_one_can_be_skipped(place: Place, db: peewee.Database) -> None:
    table = counted()
    made(db, table)
    filled(db, table, 5)
    data = DataMigrations(db, [DataMigration("first", table, fail), counting(table)])
    for act in (data.skip, data.retry):
        with pytest.raises(WhatspireDBError, match="the data migration first has not failed"):
            act("first")
    with pytest.raises(DataMigrationFailed):
        data.run()
    with pytest.raises(WhatspireDBError, match="the data migration count has not failed: it is pending"):
        data.skip("count")
    data.skip("first")
    with pytest.raises(WhatspireDBError, match="the data migration first has not failed: it is skipped"):
        data.retry("first")
    assert [state.state for state in data.run().done] == ["finished"]
    first, second = data.states()
    assert (first.state, second.state) == ("skipped", "finished")
    assert first.error is not None
    assert counts(table) == {1}


def test_rows_that_are_locked_for_too_long_are_no_failure_of_the_function(postgres: Place) -> None:
    db, other = postgres.connect(), postgres.connect()
    table = counted()
    made(db, table)
    filled(db, table, 300)
    data = DataMigrations(db, [counting(table, batch=100)], lock_timeout=0.3)
    with other.atomic():
        other.execute_sql("SELECT 1 FROM counted WHERE id = 150 FOR UPDATE")
        with pytest.raises(LockTimeout, match="rows that are to be changed were locked"):
            data.run()
    (state,) = data.states()
    assert (state.state, state.rows) == ("running", 100)
    data.run()
    assert counts(table) == {1}


def test_within_a_transaction_it_is_refused(place: Place, db: peewee.Database) -> None:
    table = counted()
    made(db, table)
    with db.atomic(), pytest.raises(TransactionError):
        DataMigrations(db, [counting(table)]).run()
    with pytest.raises(ConfigError, match="stall is 0"):
        DataMigrations(db, [counting(table)], stall=0)


def test_a_key_that_cannot_be_kept(db: peewee.Database) -> None:
    from whatspire_db.data.keys import read, write

    with pytest.raises(ModelError, match="a key of type list cannot be stored"):
        write([[1]])
    key = [1, "é'\n", 2.5, b"\0\xff", uuid.uuid4()]
    assert read(write(key)) == key


def test_a_superuser_runs_no_trigger_of_another_role(postgres: Place) -> None:
    db = postgres.connect()
    table = counted()
    made(db, table)
    filled(db, table, 5)
    owner = f"data_{postgres.named.split('_')[-1]}"
    with db.connection_context():
        db.execute_sql(f"CREATE ROLE {owner}")
        try:
            db.execute_sql(f"ALTER TABLE counted OWNER TO {owner}")
            with pytest.raises(WhatspireDBError, match="would run code of"):
                DataMigrations(db, [counting(table)]).run()
            assert counts(table) == {0}
            DataMigrations(db, [counting(table)], trust_source=True).run()
            assert counts(table) == {1}
        finally:
            db.execute_sql(f"DROP OWNED BY {owner}; DROP ROLE {owner}")


@pytest.mark.parametrize("keys", [1, 2])
def test_the_condition_of_a_batch_calls_no_planted_operator(postgres: Place, keys: int) -> None:
    """The function runs with the search_path of its program, and the condition in it is ours."""
    db = postgres.connect()
    fields = {"id": peewee.CharField(), "second": peewee.CharField(default="x"), "n": peewee.IntegerField(default=0)}
    table = model("Keyed", "keyed", fields, primary_key=peewee.CompositeKey(*["id", "second"][:keys]))
    made(db, table)
    table.insert_many([{"id": str(n)} for n in range(300)]).execute()
    with db.connection_context():
        db.execute_sql(
            """CREATE FUNCTION planted(varchar, varchar) RETURNS bool LANGUAGE plpgsql AS
            $$ BEGIN RAISE 'planted code ran'; END $$;
            CREATE OPERATOR > (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = planted);
            CREATE OPERATOR < (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = planted);
            CREATE OPERATOR <= (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = planted);
            CREATE OPERATOR = (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = planted);"""
        )
    DataMigrations(db, [counting(table)]).run()
    assert counts(table) == {1}


# What a function must not do to a run


@pytest.mark.soak
def test_a_key_is_no_part_of_a_script(place: Place) -> None:
    """Keys come from outside, and a position is one."""
    app(place, "1 / 0", key="TextField(primary_key=True)")
    command(place, "up")
    db = place.connect()
    with db.connection_context():
        sql = "INSERT INTO counted (id, n) VALUES ({0}, 0), ({0}, 0)".format("?" if place.is_sqlite else "%s")
        db.execute_sql(sql, ("a\nDROP TABLE counted; --\x1b[31m", "b"))
        db.execute_sql("DELETE FROM whatspire_db_data_migrations")
        if not place.is_sqlite:
            db.execute_sql("COMMENT ON TYPE migration_versions IS NULL")
        command(place, "up")
        written = '[["str", "a\\nDROP TABLE counted; --\\u001b[31m"]]'
        db.execute_sql(f"UPDATE whatspire_db_data_migrations SET position = '{written}'")
    for arguments in (("plan", "--sql"), ("data", "status"), ("status",), ("health",)):
        told = command(place, *arguments).stdout
        assert "DROP TABLE counted" in told
        assert not [line for line in told.splitlines() if line.startswith("DROP")]
        assert "\x1b" not in told


@pytest.mark.parametrize("ends", ["COMMIT", "ROLLBACK", "COMMIT; BEGIN", "ROLLBACK; BEGIN"])
@pytest.mark.parametrize("raises", [False, True])
def test_a_function_that_ends_its_transaction_changes_no_row_twice(
    place: Place, db: peewee.Database, ends: str, raises: bool
) -> None:
    table = counted()
    made(db, table)
    filled(db, table, 60)
    broken = True

    def change(rows: Any) -> None:
        table.update(n=table.n + 1).where(rows).execute()
        if broken and table.select().where(rows, table.id > 30).exists():
            for statement in ends.split("; "):
                db.execute_sql(statement)
            if raises:
                raise KeyError

    data = DataMigrations(db, [DataMigration("ending", table, change, 10)])
    with pytest.raises(DataMigrationFailed, match="it ended the transaction of its batch") as failed:
        data.run()
    assert "check the rows that it changed, because a retry begins after them" in failed.value.hint
    broken = False
    data.retry("ending")
    assert counts(table) == {1}


@pytest.mark.parametrize("raises", [False, True])
def test_a_function_that_commits_half_of_its_work_is_not_finished(
    place: Place, db: peewee.Database, raises: bool
) -> None:
    table = counted()
    made(db, table)
    filled(db, table, 20)

    def change() -> None:
        table.update(n=table.n + 1).where(table.id <= 10).execute()
        db.commit()
        if raises:
            raise KeyError

    data = DataMigrations(db, [DataMigration("half", table, change)])
    fact = "it ended the transaction of its batch, whose rows may be changed"
    with pytest.raises(DataMigrationFailed, match=fact) as failed:
        data.run()
    assert "check the rows that it changed, because a retry calls it again" in failed.value.hint
    (state,) = data.states()
    assert (state.state, state.finished) == ("failed", None)
    assert "may be changed in part" in str(state.error)
    data.skip("half")
    assert [state.state for state in data.states()] == ["skipped"]


def test_a_function_that_goes_on_after_an_error_is_told_what_to_do(postgres: Place) -> None:
    db = postgres.connect()
    table = counted()
    made(db, table)
    filled(db, table, 20)

    def change(rows: Any) -> None:
        with suppress(peewee.IntegrityError):
            table.insert(id=1).execute()

    with pytest.raises(DataMigrationFailed, match=r"went on; what may fail belongs in a block of atomic\(\)"):
        DataMigrations(db, [DataMigration("swallows", table, change)]).run()


def test_a_full_disk_is_no_failure_of_the_function(sqlite: Place) -> None:
    db = sqlite.connect()
    table = counted(text=peewee.TextField(default=""))
    made(db, table)
    filled(db, table, 100)

    def change(rows: Any) -> None:
        table.update(n=table.n + 1, text="x" * 3000).where(rows).execute()

    data = DataMigrations(db, [DataMigration("grows", table, change)])
    with db.connection_context():
        pages = db.execute_sql("PRAGMA page_count").fetchone()[0]
        db.execute_sql(f"PRAGMA max_page_count = {pages + 12}")
        with pytest.raises(peewee.PeeweeException) as error:
            data.run()
        assert is_disk_full(error.value)
        (state,) = data.states()
        assert (state.state, state.error) == ("running", None)
        db.execute_sql("PRAGMA max_page_count = 100000")
        data.run()
    assert counts(table) == {1}


def test_a_failure_by_locks_or_isolation_is_tried_again(postgres: Place) -> None:
    db, other = postgres.connect(), postgres.connect()
    table = counted()
    made(db, table)
    filled(db, table, 30)
    with db.connection_context():
        db.execute_sql(
            f"ALTER DATABASE {postgres.named.split('=')[-1]} SET default_transaction_isolation = 'serializable'"
        )
    fresh = postgres.connect()
    meets = [1]

    def change(rows: Any) -> None:
        table.select().where(rows).count()
        if meets.pop() if meets else 0:
            with other.connection_context():
                other.execute_sql("UPDATE counted SET n = n + 10 WHERE id = 5")
        table.update(n=table.n + 1).where(rows).execute()

    with fresh.bind_ctx([table]):
        DataMigrations(fresh, [DataMigration("count", table, change)]).run()
        assert sorted(row[0] for row in table.select(table.n).tuples()) == [1] * 29 + [11]


@pytest.mark.soak
def test_a_lock_at_the_beginning_is_waited_for(place: Place, db: peewee.Database) -> None:
    import threading

    table = counted()
    made(db, table)
    filled(db, table, 5)
    data = DataMigrations(db, [counting(table)], lock_timeout=20)
    with pytest.raises(DataMigrationFailed):
        DataMigrations(db, [DataMigration("count", table, fail)]).run()
    with db.connection_context():
        db.execute_sql("UPDATE whatspire_db_data_migrations SET error = NULL")
    other, held = place.connect(), threading.Event()

    def holds() -> None:
        with other.connection_context(), other.atomic(*["IMMEDIATE"] * place.is_sqlite):
            other.execute_sql("UPDATE whatspire_db_data_migrations SET rows = 0")
            held.set()
            threading.Event().wait(1)

    def runs() -> None:
        held.wait(20)
        if place.is_sqlite:
            db.timeout = 0.1  # type: ignore[attr-defined]
        data.run()

    at_once(holds, runs)
    assert counts(table) == {1}


def test_a_key_that_the_driver_rounds_is_refused(postgres: Place) -> None:
    db = postgres.connect()
    table = model("Keyed", "keyed", {"id": peewee.FloatField(primary_key=True), "n": peewee.IntegerField(default=0)})
    made(db, table)
    table.insert_many([{"id": 0.1}, {"id": 0.3}]).execute()
    with pytest.raises(DataMigrationFailed, match="is rounded by the driver"):
        DataMigrations(db, [counting(table)]).run()


@pytest.mark.parametrize(("kind", "keys"), [("time", "24:00 23:59 00:00"), ("timetz", "10:00+05 05:00+00 04:00-03")])
def test_a_key_that_the_driver_takes_for_an_earlier_one_is_refused(postgres: Place, kind: str, keys: str) -> None:
    db = postgres.connect()
    table = model("Keyed", "keyed", {"id": peewee.TimeField(primary_key=True), "n": peewee.IntegerField(default=0)})
    db.bind([table])
    with db.connection_context():
        db.execute_sql(f"CREATE TABLE keyed (id {kind} PRIMARY KEY, n integer NOT NULL DEFAULT 0)")
        for key in keys.split():
            db.execute_sql("INSERT INTO keyed (id) VALUES (%s)", [key])
    with suppress(DataMigrationFailed):
        DataMigrations(db, [counting(table, batch=1)]).run()
    assert max(counts(table)) <= 1


def test_a_row_that_is_deleted_while_its_batch_is_found(postgres: Place) -> None:
    db, other = postgres.connect(), postgres.connect()
    table = counted()
    made(db, table)
    filled(db, table, 20)
    asked = []

    class Deleting(Keys):
        def _last(self, above: Any, size: int) -> Any:
            asked.append(found := super()._last(above, size))
            if len(asked) == 1:
                other.execute_sql("DELETE FROM counted WHERE id = 10")
            return found

    with db.connection_context(), other.connection_context():
        batch = Deleting(engine_of(db), table).batch(None, 10)
        assert batch is not None
        assert table.select().where(batch.selected).count() == batch.rows == 10
    assert [key for _, key in asked] == [(10,), (11,)]


def test_rows_without_a_key_are_refused(sqlite: Place) -> None:
    db = sqlite.connect()
    table = model("Keyed", "keyed", {"id": peewee.TextField(primary_key=True), "n": peewee.IntegerField(default=0)})
    db.bind([table])
    with db.connection_context():
        db.execute_sql("CREATE TABLE keyed (id text PRIMARY KEY, n integer NOT NULL)")
        db.execute_sql("INSERT INTO keyed VALUES ('a', 0), (NULL, 0)")
    with pytest.raises(DataMigrationFailed, match="have NULL in their primary key"):
        DataMigrations(db, [counting(table)]).run()


@pytest.mark.parametrize("raised", [SystemExit, GeneratorExit])
def test_an_exit_within_a_function_is_a_failure(place: Place, db: peewee.Database, raised: type[BaseException]) -> None:
    table = counted()
    made(db, table)

    def change() -> None:
        raise raised

    with pytest.raises(DataMigrationFailed, match=f"it raised {raised.__name__}"):
        DataMigrations(db, [DataMigration("exit", table, change)]).run()


def test_a_function_that_lost_another_connection_has_failed(postgres: Place) -> None:
    db, other = postgres.connect(), postgres.connect()
    table = counted()
    db.bind([table])

    def change() -> None:
        with other.connection_context():
            other.execute_sql("SELECT pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(DataMigrationFailed):
        MigrationRunner(db, [table], data=[DataMigration("lost", table, change)]).up()
    (state,) = DataMigrations(db, [DataMigration("lost", table, change)]).states()
    assert state.state == "failed"


def test_the_words_of_an_error_that_may_quote_a_row_are_left_out(postgres: Place) -> None:
    db = postgres.connect()
    table = counted()
    made(db, table)

    def asking(sql: str) -> Callable[[], Any]:
        return lambda: db.execute_sql(sql)

    for number, sql in enumerate(["SELECT 'Zq7SECRETx9 x'::tsquery", "DO $$BEGIN RAISE 'Zq7SECRETx9'; END$$"]):
        data = DataMigrations(db, [DataMigration(f"n{number}", table, asking(sql))])
        with pytest.raises(DataMigrationFailed) as failed:
            data.run()
        assert "Zq7SECRETx9" not in f"{failed.value} {data.states()}"
        assert "SQLSTATE" in failed.value.fact


def test_models_are_bound_during_the_run_alone(place: Place, tmp_path: Path) -> None:
    other = peewee.SqliteDatabase(str(tmp_path / "other.db"))
    table, second = counted(), model("Second", "second", {"n": peewee.IntegerField()})
    other.bind([table, second])
    with other:
        other.create_tables([table, second])
    db = place.connect()

    def change() -> None:
        second.insert(n=1).execute()
        table.insert(n=1).execute()

    twice = [DataMigration("one", table, change), DataMigration("two", table, change)]
    MigrationRunner(db, [table, second], data=twice).up()
    with db.bind_ctx([table, second]):
        assert (table.select().count(), second.select().count()) == (2, 2)
    with other:
        assert (table.select().count(), second.select().count()) == (0, 0)


def test_without_its_table_it_does_not_begin(place: Place, db: peewee.Database) -> None:
    table = counted()
    db.bind([table])
    data = DataMigrations(db, [counting(table)])
    with pytest.raises(WhatspireDBError, match="the table of Counted is not there") as missing:
        data.run()
    assert "run python -m whatspire_db.migrate" in missing.value.hint
    MigrationRunner(db, [table], data=[counting(table)]).up()
    assert data.states()[0].state == "finished"


def test_a_role_that_may_not_read_the_records_says_what_it_knows(postgres: Place) -> None:
    db = postgres.connect()
    table = counted()
    db.bind([table])
    data = [counting(table)]
    MigrationRunner(db, [table], data=data).up()
    reader = f"data_{postgres.named.split('_')[-1]}"
    with db.connection_context():
        db.execute_sql(f"CREATE ROLE {reader} LOGIN; GRANT SELECT ON counted, migration_versions TO {reader}")
    try:
        as_reader = connect(
            Settings(dsn=postgres.dsn.replace("user='postgres'", f"user='{reader}'"), log_level="silent")
        )
        runner = MigrationRunner(as_reader, [table], data=data)
        assert [state.state for state in runner.data_states()] == ["finished"]
        assert [
            s.state
            for s in MigrationRunner(as_reader, [table], data=[*data, DataMigration("b", table, fail)]).data_states()
        ] == ["unknown"] * 2
        as_reader.close_all()  # type: ignore[attr-defined]
        app(postgres)
        of_reader = {"WHATSAPP_DATABASE_DSN": postgres.dsn.replace("user='postgres'", f"user='{reader}'")}
        of_reader |= {"WHATSAPP_DATABASE_MODELS": "app", "WHATSAPP_DATABASE_ONLY_MODELS": "true"}
        for arguments in (("data", "status"), ("data", "run", "--json")):
            done = postgres.run(*arguments, module="whatspire_db", env=of_reader)
            assert done.returncode == 1
            assert "permission denied for table whatspire_db_data_migrations (database: postgres" in done.stderr
            assert postgres.named in done.stderr
    finally:
        with db.connection_context():
            db.execute_sql(f"DROP OWNED BY {reader}; DROP ROLE {reader}")


def test_a_backup_is_made_before_rows_change(sqlite: Place) -> None:
    app(sqlite)
    command(sqlite, "up")
    sql = "from app import Counted\nfrom whatspire_db import data_migration\n"
    (sqlite.folder / "app2.py").write_text(f"{sql}@data_migration(Counted)\ndef more():\n    print('said')\n")
    done = sqlite.run("up", "--backup", "--json", "--models", "app2", module="whatspire_db")
    assert data_of(done) == [("more", "finished")], done.stderr
    assert list((sqlite.folder / "backups").iterdir())
    assert "said" in done.stderr  # stdout is one document


def test_a_table_of_the_name_elsewhere_is_not_the_record(place: Place, db: peewee.Database) -> None:
    table = counted()
    made(db, table)
    filled(db, table, 3)
    with db.connection_context():
        db.execute_sql(
            "CREATE TEMPORARY TABLE whatspire_db_data_migrations (name text, started text, finished text, "
            "position text, rows bigint, error text)"
        )
        db.execute_sql(
            "INSERT INTO whatspire_db_data_migrations VALUES ('count', '2026-01-01', '2026-01-01', NULL, 0, NULL)"
        )
        MigrationRunner(db, [table], data=[counting(table)]).up()
        assert counts(table) == {1}


TRIGGER = "CREATE FUNCTION {0}.planted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'planted code ran'; END $$"


@pytest.mark.parametrize("kind", ["partition", "heir", "check", "records"])
def test_a_superuser_runs_nothing_of_another_role_that_a_table_reaches(postgres: Place, kind: str) -> None:
    db = postgres.connect()
    table = counted()
    stranger = f"data_{postgres.named.split('_')[-1]}"
    with db.connection_context():
        db.execute_sql(f"CREATE ROLE {stranger}; CREATE SCHEMA theirs AUTHORIZATION {stranger}")
        db.execute_sql(TRIGGER.format("theirs") + f"; ALTER FUNCTION theirs.planted() OWNER TO {stranger}")
        if kind == "partition":
            db.execute_sql("CREATE TABLE counted (id serial PRIMARY KEY, n integer NOT NULL) PARTITION BY RANGE (id)")
            db.execute_sql("CREATE TABLE theirs.part PARTITION OF counted FOR VALUES FROM (0) TO (100)")
        else:
            made(db, table)
        if kind == "heir":
            db.execute_sql("CREATE TABLE theirs.part () INHERITS (counted)")
        if kind in ("partition", "heir"):
            db.execute_sql(
                f"CREATE TRIGGER t BEFORE UPDATE ON theirs.part FOR EACH ROW EXECUTE FUNCTION theirs.planted(); "
                f"ALTER TABLE theirs.part OWNER TO {stranger}; INSERT INTO theirs.part VALUES (1, 0)"
            )
        if kind == "check":
            db.execute_sql(
                "CREATE FUNCTION theirs.fine(integer) RETURNS bool LANGUAGE sql RETURN true; "
                f"ALTER FUNCTION theirs.fine(integer) OWNER TO {stranger}; "
                "ALTER TABLE counted ADD CHECK (theirs.fine(n))"
            )
        db.bind([table])
        data = DataMigrations(db, [counting(table)])
        if kind == "records":
            with pytest.raises(DataMigrationFailed):
                DataMigrations(db, [DataMigration("count", table, lambda: fail())]).run()
            db.execute_sql(
                "CREATE TRIGGER t BEFORE UPDATE ON whatspire_db_data_migrations FOR EACH ROW "
                "EXECUTE FUNCTION theirs.planted()"
            )
        try:
            for act in (lambda: data.skip("count"), lambda: data.retry("count")) if kind == "records" else (data.run,):
                with pytest.raises(WhatspireDBError, match="would run code of"):
                    act()
        finally:
            db.execute_sql(f"DROP OWNED BY {stranger} CASCADE; DROP ROLE {stranger}")


# In a run of the migrator


def statements(db: peewee.Database, act: Callable[[], Any]) -> list[str]:
    """Return an entry for each statement that an act sends."""
    sent: list[str] = []
    usual = type(db).cursor

    def cursor(self: Any, *arguments: Any, **more: Any) -> Any:
        sent.append("a statement")
        return usual(self, *arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(db), "cursor", cursor)
        act()
    return sent


def test_a_run_of_the_migrator_ends_with_them_and_the_next_asks_once(place: Place, db: peewee.Database) -> None:
    table = counted()
    db.bind([table])
    runner = MigrationRunner(db, [table], data=[counting(table)])
    report = runner.up()
    assert report.data is not None
    assert [state.name for state in report.data.done] == ["count"]
    with db.connection_context():
        runner.up()
        assert len(statements(db, runner.up)) == 1
    filled(db, table, 3)
    assert runner.up().data is None
    assert counts(table) == {0}


def test_a_start_beside_a_running_one_asks_once_and_leaves_the_rest_to_it(place: Place, db: peewee.Database) -> None:
    table = counted()
    made(db, table)
    filled(db, table, 3)
    runner = MigrationRunner(db, [table], data=[counting(table)])
    with engine_of(place.connect()).alone(1), db.connection_context():
        runner.up()
        left: list[Any] = []
        sent = statements(db, lambda: left.extend(runner.up().data.left))  # type: ignore[union-attr]
        assert len(sent) == (2 if place.is_sqlite else 1)  # on SQLite one question fails: there is no table yet
        assert [state.state for state in left] == ["left to others"]
        assert counts(table) == {0}
    runner.up()
    assert counts(table) == {1}


def test_an_older_database_is_changed_again(place: Place, db: peewee.Database) -> None:
    """A restore brings back rows from before, whatever was noted beside them."""
    table = counted()
    made(db, table)
    filled(db, table, 3)
    runner = MigrationRunner(db, [table], data=[counting(table)])
    if place.is_sqlite:
        db.close()
        before = Path(place.dsn).read_bytes()
        runner.up()
        db.close_all()  # type: ignore[attr-defined]
        Path(place.dsn).write_bytes(before)
        for name in ("-wal", "-shm"):
            Path(place.dsn + name).unlink(missing_ok=True)
    else:
        runner.up()
        with db.connection_context():
            db.execute_sql("DROP TABLE whatspire_db_data_migrations")
            db.execute_sql("UPDATE counted SET n = 0")
            db.execute_sql("COMMENT ON TYPE migration_versions IS NULL")  # which no dump holds
    assert counts(table) == {0}
    runner.up()
    assert counts(table) == {1}


def test_one_that_fails_leaves_the_schema_done(place: Place, db: peewee.Database) -> None:
    table = counted()
    db.bind([table])
    runner = MigrationRunner(db, [table], data=[DataMigration("broken", table, lambda: fail())])
    with pytest.raises(DataMigrationFailed):
        runner.up()
    assert table.select().count() == 0
    report = runner.up()  # in another worker
    assert report.data is not None
    assert [state.state for state in report.data.left] == ["failed"]


# Many at once, and kills

WORKER = """
import sys
from tests.data.test_data_migrations import *
from whatspire_db import Settings, connect
db = connect(Settings(dsn=sys.argv[1]))
table = counted()
db.bind([table])
def change(rows):
    print("batch", flush=True)
    table.update(n=table.n + 1).where(rows).execute()
report = MigrationRunner(db, [table], data=[DataMigration("count", table, change, 100)]).up()
print("done", *[state.name for state in report.data.done] if report.data else ())
"""


def worker(place: Place) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, place.dsn], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.soak
def test_of_sixteen_at_once_one_runs_it(place: Place, db: peewee.Database) -> None:
    table = counted()
    made(db, table)
    filled(db, table, 2000)
    processes = [worker(place) for _ in range(16)]
    ends = ends_of(processes)
    assert [code for code, *_ in ends] == [0] * 16, [err for *_, err in ends]
    assert len([out for _, out, _ in ends if "done count" in out]) == 1
    assert len([out for _, out, _ in ends if "batch" in out]) == 1
    assert counts(table) == {1}


@pytest.mark.soak
def test_of_three_at_once_one_runs_it(place: Place, db: peewee.Database) -> None:
    table = counted()
    made(db, table)
    filled(db, table, 2000)
    processes = [worker(place) for _ in range(3)]
    ends = ends_of(processes)
    assert [code for code, *_ in ends] == [0] * 3, [err for *_, err in ends]
    assert len([out for _, out, _ in ends if "done count" in out]) == 1
    assert counts(table) == {1}


def killed_and_resumed(place: Place, db: peewee.Database, kills: int) -> None:
    table = counted()
    made(db, table)
    filled(db, table, 1000 * kills)  # more than the runs get through before they are killed
    resumed = 0
    for _ in range(kills):
        process = worker(place)
        assert process.stdout is not None
        for _ in range(random.randint(1, 4)):
            if not process.stdout.readline():
                break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        eventually(lambda: not engine_of(db).schema.is_working(standing(db, table)), "the lock is free")
        resumed += bool(table.select().where(table.n == 0).exists())
    out, err = worker(place).communicate(timeout=120)
    assert "done" in out, err
    assert counts(table) == {1}
    assert resumed == kills


def standing(db: peewee.Database, table: Model) -> Any:
    with db.connection_context() if db.is_closed() else db.atomic():
        return engine_of(db).schema.standing([table], with_rows=True)


@pytest.mark.soak
def test_killed_and_resumed_every_row_is_changed_once(place: Place, db: peewee.Database) -> None:
    killed_and_resumed(place, db, 2)


@pytest.mark.soak
def test_thirty_kills(place: Place, db: peewee.Database) -> None:
    killed_and_resumed(place, db, 30)


@pytest.mark.soak
def test_beside_four_writers_no_change_is_lost(place: Place, db: peewee.Database) -> None:
    import threading

    table = counted(other=peewee.IntegerField(default=0))
    made(db, table)
    filled(db, table, 100_000)
    stop = threading.Event()
    sizes: list[int] = []

    def writes() -> int:
        own, written = place.connect(), 0
        with own.connection_context():
            while not (stop.is_set() and written):
                key = random.randint(1, 100_000)
                written += own.execute_sql(
                    f"UPDATE counted SET other = other + 1 WHERE id = {'?' if place.is_sqlite else '%s'}", (key,)
                ).rowcount
        return written

    def runs() -> int:
        try:
            return sum(state.rows for state in data.run().done)
        finally:
            stop.set()

    data = DataMigrations(db, [counting(table)], tell=lambda migration, rows: sizes.append(rows))
    rows, *written = at_once(runs, *[writes] * 4)
    assert rows == 100_000
    assert len(sizes) > 100_000 / engine_of(db).largest
    assert counts(table) == {1}
    assert table.select(peewee.fn.SUM(table.other)).scalar() == sum(written)


# Declarations


def test_declarations_in_order_with_names(nothing_declared: None) -> None:
    table = counted()

    @data_migration(table)
    def second(batch: Any) -> None:
        """Change nothing."""

    @data_migration(table, name="first, by its name", batch=5, pause="10ms")
    def first() -> None:
        """Change nothing."""

    assert list(declared_data) == ["second", "first, by its name"]
    assert [each.in_batches for each in declared_data.values()] == [True, False]
    second(None)  # it stays the function that it is
    data_migration(table)(second)  # a module that is imported again
    assert list(declared_data) == ["second", "first, by its name"]
    with pytest.raises(ModelError, match="two data migrations have the name second"):
        data_migration(table, name="second")(first)


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        ({"model": None}, "a data migration without a model"),
        ({"model": fail}, "a data migration without a model"),
        ({"batch": 0}, "is not a number of rows"),
        ({"batch": "5"}, "is not a number of rows"),
        ({"name": "a\nb"}, "the name of a data migration"),
        ({"name": " a"}, "the name of a data migration"),
        ({"name": "a" * 201}, "the name of a data migration"),
        ({"name": "-x"}, "the name of a data migration"),
        ({"name": 5}, "the name of a data migration"),
        ({"pause": "soon"}, "the pause of a data migration"),
        ({"pause": -1}, "the pause of a data migration"),
    ],
)
def test_wrong_declarations(nothing_declared: None, arguments: dict[str, Any], fact: str) -> None:
    with pytest.raises(ModelError, match=fact):
        data_migration(**{"model": counted(), **arguments})(lambda batch: None)
    assert not declared_data


async def waits(batch: Any) -> None:
    """Would not run when it is called."""


def yields(batch: Any) -> Iterator[int]:
    """Neither would this."""
    yield 1


@pytest.mark.parametrize(
    "change", [waits, yields, lambda a, b: None, lambda *batches: None, lambda **more: None, print, object()]
)
def test_functions_that_would_not_run(nothing_declared: None, change: Any) -> None:
    with pytest.raises(ModelError, match="of a data migration|a data migration is not a function"):
        data_migration(counted(), name="x")(change)
    assert not declared_data


def test_a_second_function_of_the_name_is_refused(nothing_declared: None) -> None:
    table = counted()
    data_migration(table, name="x")(lambda batch: None)
    with pytest.raises(ModelError, match="two data migrations have the name x"):
        data_migration(table, name="x")(lambda batch: None)
    with pytest.raises(ModelError, match="two data migrations have one name"):
        DataMigrations(peewee.SqliteDatabase(":memory:"), [counting(table), counting(table)])


def test_a_loop_that_declares_several_of_one_name_is_refused(nothing_declared: None) -> None:
    first, second = counted(), model("Other", "other", {"n": peewee.IntegerField(default=0)})

    def declare(*tables: Model) -> None:
        for table in tables:

            @data_migration(table)
            def fill(batch: Any) -> None: ...

    with pytest.raises(ModelError, match="two data migrations have the name fill"):
        declare(first, second)
    assert [migration.model for migration in declared_data.values()] == [first]


def test_a_module_that_is_imported_again_declares_the_same(nothing_declared: None) -> None:
    code = "@declare(table)\ndef fill(batch): ..."
    for table in (counted(), counted()):
        exec(compile(code, "models.py", "exec"), {"declare": data_migration, "table": table})  # noqa: S102
        assert [migration.model for migration in declared_data.values()] == [table]


def test_a_table_without_a_key(nothing_declared: None) -> None:
    table = model("Nothing", "nothing", {"n": peewee.IntegerField()}, primary_key=False)
    with pytest.raises(ModelError, match="which has no primary key"):
        data_migration(table)(lambda batch: None)


# The commands

MODULE = """
from peewee import IntegerField, TextField
from whatspire_db import BaseModel, data_migration

class Counted(BaseModel):
    n = IntegerField(default=0)
    {key}

@data_migration(Counted)
def count(batch):
    Counted.update(n=Counted.n + 1).where(batch).execute()
    {extra}
"""


def command(place: Place, *arguments: str) -> subprocess.CompletedProcess[str]:
    return place.run(*arguments, module="whatspire_db", env={"WHATSAPP_DATABASE_MODELS": "app"})


def app(place: Place, extra: str = "", key: str = "") -> None:
    (place.folder / "app.py").write_text(MODULE.format(extra=extra, key=f"id = {key}" if key else ""))


def document(done: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(done.stdout)


def data_of(done: subprocess.CompletedProcess[str]) -> Sequence[tuple[str, str]]:
    return [(each["name"], each["state"]) for each in document(done)["data"]]


def test_the_commands_tell_what_is_pending_and_done(place: Place) -> None:
    app(place)
    planned = command(place, "plan", "--json")
    assert (planned.returncode, data_of(planned)) == (3, [("count", "pending")])
    assert "-- data migration count: pending" in command(place, "plan", "--sql").stdout
    done = command(place, "up", "--json")
    assert (done.returncode, data_of(done)) == (0, [("count", "finished")])
    for verb in ("status", "data status", "health"):
        told = command(place, *verb.split(), "--json")
        assert (told.returncode, data_of(told)) == (0, [("count", "finished")]), told.stderr
    assert command(place, "plan").returncode == 0
    assert command(place, "plan", "--sql").stdout == ""
    assert "data" not in document(command(place, "up", "--json"))
    assert "Nothing to do" in command(place, "data").stdout


@pytest.mark.soak
def test_the_commands_after_a_failure(place: Place) -> None:
    app(place, "1 / 0")
    first = command(place, "up")
    assert first.returncode == 0, first.stderr
    db = place.connect()
    with db.connection_context():
        db.execute_sql("INSERT INTO counted (n) VALUES (0)")
        db.execute_sql("DELETE FROM whatspire_db_data_migrations")
        if not place.is_sqlite:
            db.execute_sql("COMMENT ON TYPE migration_versions IS NULL")
    failed = command(place, "up")
    fact, hint = failed.stderr.splitlines()[-2:]
    assert failed.returncode == 1
    assert fact.startswith("error: data migration count failed: ZeroDivisionError at ")
    assert hint.startswith("hint:  correct the function, then run: whatspire-db data retry count")
    assert command(place, "up").returncode == 0  # of another worker
    script = command(place, "plan", "--sql")
    assert script.returncode == 3
    assert script.stdout.splitlines()[0].startswith(f"-- database: {place.driver} ")
    assert "-- data migration count: failed" in script.stdout
    health = command(place, "health")
    assert health.returncode == 1
    assert "error: data migration count: failed" in health.stderr
    assert command(place, "data", "status").returncode == 1
    assert command(place, "data", "retry", "count").returncode == 1
    app(place)
    retried = command(place, "data", "retry", "count", "--json")
    assert (retried.returncode, data_of(retried)) == (0, [("count", "finished")]), retried.stderr
    assert command(place, "health").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "fact"),
    [
        (["data", "retry"], 2, "retry needs the name of a data migration"),
        (["data", "status", "count"], 2, "status takes no name"),
        (["data", "retry", "other"], 2, "no data migration 'other' is declared"),
        (["data", "skip", "count"], 1, "the data migration count has not failed"),
        (["data", "fix"], 2, ""),
        (["data", "--lock-timeout", "x"], 2, "--lock-timeout"),
    ],
)
def test_bad_input_of_the_command(sqlite: Place, arguments: list[str], code: int, fact: str) -> None:
    app(sqlite)
    done = command(sqlite, *arguments)
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"error: {fact}")


def test_a_module_with_data_migrations_alone(sqlite: Place) -> None:
    app(sqlite)
    (sqlite.folder / "changes.py").write_text(
        "from app import Counted\nfrom whatspire_db import data_migration\n"
        "@data_migration(Counted)\ndef more():\n    Counted.update(n=5).execute()\n"
    )
    done = sqlite.run("data", "status", "--models", "changes", "--json", module="whatspire_db")
    assert data_of(done) == [("count", "pending"), ("more", "pending")]
