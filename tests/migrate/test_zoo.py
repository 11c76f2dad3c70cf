"""Laws over every field class: what peewee creates looks unchanged, and what the migrator creates is the same."""

from __future__ import annotations

import contextlib
import random

import peewee
import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from tests import zoo
from tests.conftest import Place, stamp
from tests.migrate.test_convergence import wipe
from whatspire_db import MigrationRefused, MigrationRunner
from whatspire_db.migrate.engines.base import engine_for


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


def _damage(place: Place, db: peewee.Database, models: list[type[peewee.Model]], draw: random.Random) -> str:
    """Choose a statement that takes something away from the database."""
    model = draw.choice(models)
    table = ".".join(
        '"' + part.replace('"', '""') + '"' for part in (model._meta.schema, model._meta.table_name) if part
    )
    cascade = "" if place.is_sqlite else " CASCADE"
    kind = draw.choice(["column", "column", "index", "constraint", "table"])
    keys = model._meta.get_primary_keys()
    columns = [f.column_name.replace('"', '""') for f in model._meta.sorted_fields if f not in keys]
    if kind == "column" and columns:
        return f'ALTER TABLE {table} DROP COLUMN "{draw.choice(columns)}"{cascade}'
    if kind == "index" and place.is_sqlite:
        found = db.execute_sql(
            "SELECT name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL ORDER BY name"
        ).fetchall()
        return f'DROP INDEX "{draw.choice(found)[0]}"' if found else "SELECT 1"
    if kind == "index":
        found = db.execute_sql(
            "SELECT quote_ident(schemaname), quote_ident(indexname) FROM pg_indexes WHERE schemaname IN ('public', 'other') ORDER BY 1, 2"
        ).fetchall()
        return "DROP INDEX {}.{}".format(*draw.choice(found))
    if kind == "constraint" and not place.is_sqlite:
        found = db.execute_sql(
            "SELECT conrelid::regclass::text, quote_ident(conname) FROM pg_constraint JOIN pg_namespace AS n "
            "ON n.oid = connamespace WHERE contype IN ('f', 'c', 'u') AND nspname IN ('public', 'other') ORDER BY 1, 2"
        ).fetchall()
        return "ALTER TABLE {} DROP CONSTRAINT {} CASCADE".format(*draw.choice(found)) if found else "SELECT 1"
    return f"DROP TABLE {table}{cascade}"


@given(seed=st.integers(0, 2**32), number=st.integers(1, 12))
def test_any_damage_is_mended_or_refused(
    place: Place, models: list[type[peewee.Model]], seed: int, number: int
) -> None:
    draw = random.Random(seed)  # not hypothesis' own: what there is to choose from, the database says
    db = place.connect()
    with db.connection_context(), db.bind_ctx(models, bind_refs=False, bind_backrefs=False):
        if place.is_sqlite:
            wipe(place, db)
        else:
            db.execute_sql("DROP SCHEMA IF EXISTS other CASCADE")
            wipe(place, db)  # takes the extension along
            db.execute_sql("CREATE SCHEMA other")
            db.execute_sql("CREATE EXTENSION vector")
        db.create_tables(models)
        stamp(db, models)
        for _ in range(number):
            statement = _damage(place, db, models, draw)
            note(statement)
            with contextlib.suppress(peewee.PeeweeException):  # SQLite keeps a column that something needs
                db.execute_sql(statement)
        runner = MigrationRunner(db, models)
        refused = runner.plan().refused
        if refused:
            assert place.is_sqlite
            assert all("STORED" in refusal.reason for refusal in refused)
            with pytest.raises(MigrationRefused):
                runner.up()
        else:
            runner.up()
            assert not runner.verify_schema(), str(runner.verify_schema())
            assert not runner.plan(), str(runner.plan())
    if hasattr(db, "close_all"):
        db.close_all()


def test_tables_of_one_name_in_two_schemas(postgres: Place) -> None:
    class Archived(peewee.Model):
        code = peewee.TextField(unique=True)

        class Meta:
            table_name = "people"
            schema = "archive"

    class People(peewee.Model):
        code = peewee.TextField(unique=True)
        old = peewee.ForeignKeyField(Archived, null=True)
        old_code = peewee.ForeignKeyField(Archived, field=Archived.code, null=True)

        class Meta:
            table_name = "people"
            indexes = [peewee.SQL("CREATE INDEX people_by_text ON public.people (code, old_id)")]

    models = [Archived, People]
    db = postgres.connect()
    db.execute_sql("CREATE SCHEMA archive")
    with db.bind_ctx(models, bind_refs=False, bind_backrefs=False):
        db.create_tables(models)
        runner = MigrationRunner(db, models)
        assert not runner.plan(), str(runner.plan())
        db.execute_sql("DROP INDEX people_by_text")
        assert [missing.name for missing in runner.verify_schema().missing] == ["people_by_text"]
        db.execute_sql("DROP TABLE people")
        db.execute_sql("DROP SCHEMA archive CASCADE")
        assert "create_schema" in {step.kind for step in runner.up().applied}
        assert not runner.verify_schema()


def test_indexes_of_a_table_that_another_schema_refers_to(postgres: Place) -> None:
    class Person(peewee.Model):
        code = peewee.TextField(unique=True)

        class Meta:
            indexes = [peewee.SQL("CREATE INDEX person_by_text ON public.person (lower(code))")]

    class Entry(peewee.Model):
        person = peewee.ForeignKeyField(Person)

        class Meta:
            schema = "archive"

    models = [Person, Entry]
    db = postgres.connect()
    db.execute_sql("CREATE SCHEMA archive")
    with db.bind_ctx(models, bind_refs=False, bind_backrefs=False):
        db.create_tables(models)
        runner = MigrationRunner(db, models)
        assert not runner.plan(), str(runner.plan())
        db.execute_sql("DROP INDEX person_code, person_by_text")
        assert {missing.name for missing in runner.verify_schema().missing} == {"person_code", "person_by_text"}
        runner.up()
        assert not runner.verify_schema()
