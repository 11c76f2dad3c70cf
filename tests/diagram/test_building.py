"""A picture as a value: which tables, keys and references it has, and which of them are shown."""

from __future__ import annotations

import peewee as pw
import pytest

from tests.conftest import Place
from tests.diagram.schemas import drawn, many_models, model, models_from_hell
from whatspire_db import ConfigError, MigrationRunner
from whatspire_db.diagram.building import chosen, diagram_of, keys_alone
from whatspire_db.diagram.models import schema_of_models
from whatspire_db.diagram.values import Diagram
from whatspire_db.migrate.schema import Column, Constraint, Schema, Table
from whatspire_db.models.service import SERVICE_MODELS

PRIMARY_KEY = Constraint("", "primary_key", "PRIMARY KEY (id)", ("id",))


def references(diagram: Diagram) -> set[tuple[str, tuple[str, ...], str, bool]]:
    return {(r.source[1], r.columns, r.target[1], r.is_implied) for r in diagram.references}


def test_references_of_the_service_are_implied_by_names() -> None:
    of_sessions = ("reactions", "receipts", "presence", "audit_logs", "events", "webhook_configs")
    expected = {(table, ("session_id",), "sessions", True) for table in of_sessions}
    assert references(drawn(SERVICE_MODELS)) == {*expected, ("audit_logs", ("api_key_id",), "api_keys", True)}


@pytest.mark.parametrize(
    ("column", "is_implied"),
    [
        ("city_id", True),  # cities
        ("box_id", True),  # boxes
        ("sheep_id", True),
        ("CITY_ID", True),
        ("number_id", False),  # a text, where the key is a number
        ("id", False),
        ("_id", False),
        ("nobody_id", False),
        ("citys", False),
    ],
)
def test_names_that_imply_a_reference(column: str, is_implied: bool) -> None:
    targets = [model(name, {}) for name in ("cities", "boxes", "sheep", "numbers")]
    kind = pw.TextField if column == "number_id" else pw.IntegerField
    own = model("owns", {"own": kind(column_name=column, null=True)} | ({"key": pw.TextField(primary_key=True)}))
    diagram = drawn([*targets, own])
    assert bool(diagram.references) is is_implied


def test_only_a_key_of_one_column_can_be_implied() -> None:
    meta = type("Meta", (), {"table_name": "logs", "primary_key": False})
    keyless = type("Drawn", (pw.Model,), {"n": pw.IntegerField(), "Meta": meta})
    meta = type("Meta", (), {"table_name": "pairs", "primary_key": pw.CompositeKey("a", "b")})
    pair = type("Drawn", (pw.Model,), {"a": pw.IntegerField(), "b": pw.IntegerField(), "Meta": meta})
    assert not drawn(
        [pair, keyless, model("owns", {"pair_id": pw.IntegerField(), "log_id": pw.IntegerField()})]
    ).references


@pytest.mark.parametrize(
    ("key", "kind", "is_implied"),
    [
        ("interval", "integer", False),  # "int" is in it, and it is no number
        ("point", "bigint", False),
        ("integer[]", "integer", False),
        ("int4range", "bigint", False),
        ("numeric", "integer", True),
        ("decimal(10, 0)", "integer", True),
        ("bigserial", "integer", True),
        ("unsigned big int", "int", True),
        ("uuid", "text", True),
        ("uuid", "integer", False),
    ],
)
def test_numbers_imply_references_to_numbers_alone(key: str, kind: str, is_implied: bool) -> None:
    boxes = Table(("", "boxes"), columns={"id": Column("id", key, True)}, constraints=(PRIMARY_KEY,))
    own = Table(("", "own"), columns={"box_id": Column("box_id", kind, False)})
    assert bool(diagram_of(Schema({t.key: t for t in (boxes, own)}), "", "").references) is is_implied


@pytest.mark.parametrize("names", [("Users", "users", "USERS"), ("USERS", "users", "Users")])
def test_of_tables_whose_names_differ_in_case_the_one_that_is_written_the_same_is_implied(names: list[str]) -> None:
    tables = [Table(("", n), columns={"id": Column("id", "integer", True)}, constraints=(PRIMARY_KEY,)) for n in names]
    tables.append(Table(("", "own"), columns={"user_id": Column("user_id", "integer", False)}))
    (reference,) = diagram_of(Schema({t.key: t for t in tables}), "", "").references
    assert reference.target == ("", "users")


def test_references_to_tables_that_are_not_there_are_listed(place: Place) -> None:
    """As to another schema, which a live picture leaves out."""
    db = place.connect()
    with db.connection_context():
        if place.is_sqlite:
            db.execute_sql("CREATE TABLE t (a integer REFERENCES nowhere (id), b integer)")
        else:
            db.execute_sql("CREATE SCHEMA nowhere")
            db.execute_sql("CREATE TABLE nowhere.n (id integer PRIMARY KEY)")
            db.execute_sql("CREATE TABLE t (a integer REFERENCES nowhere.n (id), b integer)")
    diagram = diagram_of(MigrationRunner(db, []).live_schema(), "", "")
    db.close()
    for table in (diagram.tables["", "t"], keys_alone(diagram).tables["", "t"]):
        assert table.columns[0].keys == ("FK",)
        (part,) = table.parts
        assert part.kind == "foreign key"
        assert "nowhere" in part.definition
    assert not diagram.references


def test_a_declared_reference_is_not_implied_too() -> None:
    target = model("sessions", {})
    diagram = drawn([target, model("events", {"session": pw.ForeignKeyField(target, unique=True, null=True)})])
    (reference,) = diagram.references
    assert (reference.is_implied, reference.is_unique, reference.is_optional) == (False, True, True)
    assert diagram.tables["", "events"].columns[1].keys == ("FK", "UQ")


def test_references_that_are_written_as_sql() -> None:
    fields = {
        "a": pw.IntegerField(),
        "b": pw.IntegerField(),
        "c": pw.IntegerField(constraints=[pw.SQL("REFERENCES t (id)")]),
    }
    own = model("own", fields)
    own._meta.constraints = [pw.SQL('CONSTRAINT both FOREIGN KEY (a, "b") REFERENCES pairs (x, y) ON DELETE CASCADE')]
    pairs = model("pairs", {"x": pw.IntegerField(), "y": pw.IntegerField()})
    assert references(drawn([own, pairs, model("t", {})])) == {
        ("own", ("a", "b"), "pairs", False),
        ("own", ("c",), "t", False),
    }


def test_unique_and_check_that_are_written_as_sql() -> None:
    fields = {
        "a": pw.IntegerField(constraints=[pw.SQL("UNIQUE")]),
        "b": pw.IntegerField(constraints=[pw.SQL("DEFAULT 7")]),
    }
    own = model("own", fields)
    own._meta.constraints = [pw.SQL('CONSTRAINT "pair" UNIQUE (a, "b")'), pw.SQL("CHECK (a < b)")]
    table = drawn([own]).tables["", "own"]
    assert [(column.name, column.keys) for column in table.columns] == [("id", ("PK",)), ("a", ("UQ",)), ("b", ())]
    assert table.columns[2].column.default == "7"
    assert [(part.kind, part.name, part.definition) for part in table.parts] == [
        ("unique", "pair", "(a, b)"),
        ("unique", "", "(a)"),
        ("check", "", "(a < b)"),
    ]


def test_indexes_of_models_are_drawn_with_their_order_and_condition() -> None:
    own = model("own", {"a": pw.IntegerField(), "b": pw.TextField()})
    own.add_index(own.a, own.b.desc(), name="ordered")
    own.add_index(own.a, where=own.b == "x", unique=True, name="some")
    own.add_index(pw.SQL("CREATE UNIQUE INDEX raw ON own (lower(b), a)"))
    parts = {part.name: part.text for part in drawn([own]).tables["", "own"].parts}
    assert parts["ordered"] == "index (a, b DESC)"
    assert parts["raw"] == "unique (lower(b), a)"
    assert parts["some"].startswith("unique (a) WHERE ")
    assert drawn([own]).tables["", "own"].columns[1].keys == ()  # unique among some rows alone


def test_models_alone_are_drawn_as_the_database_stores_them(place: Place) -> None:
    """Types of PostgreSQL have other names there, so those alone are compared on SQLite."""
    db = place.connect()
    runner = MigrationRunner(db, SERVICE_MODELS)
    runner.up()
    live = diagram_of(runner.live_schema(), "", "")
    kind = pw.SqliteDatabase if place.is_sqlite else pw.PostgresqlDatabase
    alone = diagram_of(schema_of_models(SERVICE_MODELS, kind(None)), "", "")
    assert references(alone) == references(live)
    assert alone.tables.keys() == live.tables.keys()
    for key, table in alone.tables.items():
        facts = [
            {(c.name, c.column.not_null, c.keys, c.type if place.is_sqlite else "") for c in one.columns}
            for one in (table, live.tables[key])
        ]
        assert facts[0] == facts[1], key
        assert len(table.parts) == len(live.tables[key].parts)
    db.close()


def test_live_schema_of_many_tables_is_drawn_without_models(place: Place) -> None:
    models, db = many_models(), place.connect()
    with db.bind_ctx(models):
        db.create_tables(models)
    live = diagram_of(MigrationRunner(db, []).live_schema(), "", "")
    assert references(live) == references(drawn(models))
    assert {key[1] for key in live.tables} == {m._meta.table_name for m in models}
    db.close()


def test_tables_are_chosen_by_pattern_with_their_neighbours() -> None:
    diagram = drawn(SERVICE_MODELS)

    def names(*patterns: str, neighbours: int = 0) -> set[str]:
        return {table.label for table in chosen(diagram, patterns, neighbours).tables.values()}

    assert names("API_keys") == {"api_keys"}
    assert names("re*", "events") == {"reactions", "receipts", "events"}
    assert names("api_keys", neighbours=1) == {"api_keys", "audit_logs"}
    assert names("api_keys", neighbours=2) == {"api_keys", "audit_logs", "sessions"}
    assert len(names("api_keys", neighbours=3)) == 8  # all but migration_versions
    assert not chosen(diagram, ["events"]).references
    with pytest.raises(ConfigError, match="no table matches evnts") as failed:
        names("evnts")
    assert "events" in failed.value.hint


def test_a_pattern_that_is_the_name_of_a_table_chooses_it() -> None:
    diagram = drawn([model(name, {}) for name in ("old[1]", "old", "what?")])
    assert list(chosen(diagram, ["old[1]"]).tables) == [("", "old[1]")]


def test_tables_of_one_name_in_two_schemas_are_two() -> None:
    diagram = drawn(models_from_hell())
    assert {("north", "orders"), ("south", "orders")} <= diagram.tables.keys()
    assert list(chosen(diagram, ["south.*"]).tables) == [("south", "orders")]


def test_keys_alone_leave_out_other_columns_and_count_them() -> None:
    table = keys_alone(drawn(SERVICE_MODELS)).tables["", "audit_logs"]
    assert [column.name for column in table.columns] == ["id", "api_key_id", "session_id"]
    assert table.hidden == 6
    assert not table.parts
