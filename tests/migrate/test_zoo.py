"""Laws over every field class: what peewee creates looks unchanged, and what the migrator creates is the same."""

from __future__ import annotations

import peewee
import pytest

from tests import zoo
from tests.conftest import Place
from whatspire_db import MigrationRunner
from whatspire_db.migrate.engines import engine_for


def animals(place: Place) -> list[type[peewee.Model]]:
    own = zoo.SQLITE if place.is_sqlite else zoo.POSTGRES
    return [*zoo.BOTH, *own]


@pytest.fixture
def models(place: Place, db: peewee.Database) -> list[type[peewee.Model]]:
    # Collations are the one thing of the zoo that the engines name differently.
    zoo.User.name.collation = "NOCASE" if place.is_sqlite else '"C"'
    if not place.is_sqlite:
        db.execute_sql("CREATE SCHEMA other")
        db.execute_sql("CREATE EXTENSION vector")
    found = animals(place)
    with db.bind_ctx(found, bind_refs=False, bind_backrefs=False):
        yield found


def shapes(db: peewee.Database, models: list[type[peewee.Model]]) -> object:
    engine = engine_for(db)
    tables = engine.snapshot([engine.key(model) for model in models]).tables
    # The order of indexes and constraints is the catalog's.
    return {
        key: (t.kind, dict(t.columns), sorted(map(repr, t.indexes)), sorted(map(repr, t.constraints)), t.options)
        for key, t in tables.items()
    }


def test_nothing_that_peewee_created_looks_changed(db: peewee.Database, models: list[type[peewee.Model]]) -> None:
    db.create_tables(models)
    runner = MigrationRunner(db, models)
    assert not runner.plan(), str(runner.plan())
    assert not runner.verify_schema(), str(runner.verify_schema())


def test_deferred_reference_created_by_hand_is_known(postgres: Place) -> None:
    db = postgres.connect()
    with db.bind_ctx([zoo.Author, zoo.Book]):
        db.create_tables([zoo.Author, zoo.Book])
        zoo.Author._schema.create_foreign_key(zoo.Author.favourite)
        changes = MigrationRunner(db, [zoo.Author, zoo.Book]).verify_schema()
        assert not changes
        assert changes.extra == []


def test_round_trip_and_idempotence(db: peewee.Database, models: list[type[peewee.Model]]) -> None:
    runner = MigrationRunner(db, models)
    report = runner.up()
    assert {step.table for step in report.applied if step.kind == "create_table"} >= {"plain", "tweet", "node"}
    assert not runner.plan(), str(runner.plan())
    assert not runner.verify_schema(), str(runner.verify_schema())
    assert runner.up().applied == ()
    assert runner.version() == report.version


def test_migrator_creates_what_peewee_creates(
    place: Place, db: peewee.Database, models: list[type[peewee.Model]]
) -> None:
    db.create_tables(models)
    by_peewee = shapes(db, models)
    db.drop_tables(models)
    MigrationRunner(db, models).up()
    if not place.is_sqlite:
        # peewee leaves the reference that closes a cycle out; the migrator makes it.
        db.execute_sql('ALTER TABLE author DROP CONSTRAINT "fk_author_favourite_id_refs_book"')
    assert shapes(db, models) == by_peewee


@pytest.mark.parametrize("one", [*zoo.BOTH, *zoo.SQLITE], ids=lambda model: model.__name__)
def test_each_alone_on_sqlite(sqlite: Place, one: type[peewee.Model]) -> None:
    zoo.User.name.collation = "NOCASE"
    db = sqlite.connect()
    with db.bind_ctx([one]):
        db.create_tables([one])
        plan = MigrationRunner(db, [one]).plan()
        assert not plan, str(plan)
    db.close()


def test_names_that_the_engine_cuts_are_compared_as_well(postgres: Place) -> None:
    long = zoo.LongNamesThatPostgresqlHasToCutBecauseTheyAreLongerThanSixtyThree
    db = postgres.connect()
    with db.bind_ctx([long]):
        db.create_tables([long])
        db.execute_sql(f"DROP INDEX {db.get_indexes(long._meta.table_name[:63])[1].name}")
        db.execute_sql(f"ALTER TABLE {long._meta.table_name} ALTER id TYPE bigint")
        runner = MigrationRunner(db, [long])
        assert [drift.kind for drift in runner.plan().drift] == ["column_type"]
        assert [step.kind for step in runner.up().applied if step.table.startswith("long")] == ["create_index"]


def test_extension_of_a_type_is_created(postgres: Place) -> None:
    db = postgres.connect()
    runner = MigrationRunner(db, [zoo.Vectors])
    assert [step.kind for step in runner.plan().pending][:2] == ["create_extension", "create_table"]
    runner.up()
    assert not runner.verify_schema()
