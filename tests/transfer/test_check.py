"""What PostgreSQL cannot hold is found before anything is copied, with table, key and column, and never the value."""

from __future__ import annotations

import errno
import json
import os
import resource
import stat
import uuid
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import peewee as pw
import pytest

from tests.conftest import Place, Server
from tests.migrate.models import model, run
from tests.transfer.rows import contents
from whatspire_db import ConfigError, MigrationRunner, TransferRefused
from whatspire_db.fields import FlagField, InstantField, Int64Field, JSONBytesField, NaiveInstantField, TextField
from whatspire_db.transfer import check, transfer
from whatspire_db.transfer.columns import kind_of
from whatspire_db.transfer.reports import found_lines

FIELDS: dict[str, pw.Field] = {
    "id": pw.CharField(primary_key=True),
    "text": TextField(null=True, index=True),
    "short": pw.CharField(max_length=5, null=True),
    "int64": Int64Field(null=True),
    "int32": pw.IntegerField(null=True),
    "flag": FlagField(null=True),
    "at": InstantField(null=True),
    "naive": NaiveInstantField(null=True),
    "moment": pw.DateTimeField(null=True),
    "day": pw.DateField(null=True),
    "clock": pw.TimeField(null=True),
    "price": pw.DecimalField(max_digits=10, decimal_places=2, null=True),
    "real": pw.FloatField(null=True),
    "json": pw.JSONField(null=True),
    "data": JSONBytesField(null=True),
    "blob": pw.BlobField(null=True),
    "uuid": pw.UUIDField(null=True),
    "needed": TextField(default="x"),
}
BIG = 5000
# Each trap: the column, an SQL expression that makes the value, its kind, and what the model reads once it is replaced.
TRAPS: list[tuple[str, str, str, Any]] = [
    ("text", "'a' || char(0) || 'b'", "nul", "a\ufffdb"),
    ("text", "CAST(X'61FF62' AS TEXT)", "encoding", "a\ufffdb"),
    ("text", "X'41'", "type", "A"),
    ("short", "'123456'", "length", "12345"),
    ("int64", "9223372036854775808", "range", None),
    ("int64", "'three'", "type", None),
    ("int64", "''", "type", None),
    ("int64", "3.5", "type", None),
    ("int64", "CAST('1e999999999' AS BLOB)", "type", None),  # as a whole number it has no room in memory
    ("int32", "2147483648", "range", None),
    ("flag", "2", "type", True),
    ("flag", "0.5", "type", True),
    ("flag", "''", "type", False),
    ("at", "'2026-02-30 10:00:00+00:00'", "time", None),
    ("at", "'0000-01-01 10:00:00+00:00'", "time", None),
    ("at", "'now'", "time", None),
    ("at", "'infinity'", "time", None),
    ("at", "1764000000", "time", None),
    ("at", "'2026-11-22 09:05:03.5 +0300 EAT m=+0.1'", "time", None),
    ("at", "'2026-11-22 25:05:03+00:00'", "time", None),
    ("at", "'2026-11-22 09:05:03+00:00' || char(0) || 'x'", "time", None),  # SQLite's functions end at a zero byte
    ("naive", "'yesterday'", "time", None),
    ("moment", "'2026-11-22 09:05:03' || char(0) || 'x'", "time", None),
    ("moment", "'2026-11-22 09:05:03+02:00'", "time", None),
    ("moment", "'2026-02-30 09:05:03'", "time", None),
    ("day", "'2026-02-30'", "time", None),
    ("day", "'2026-11-22 09:05:03'", "precision", date(2026, 11, 22)),
    ("clock", "'2026-11-22 09:05:03'", "precision", "09:05:03"),
    ("day", "'0000-01-01'", "time", None),
    ("price", "1.005", "precision", "1.01"),
    ("price", "123456789.5", "range", None),
    ("price", "'cheap'", "type", None),
    ("real", "0.123456789012345", "precision", 0.12345679),
    ("real", "1e300", "range", None),
    ("json", '\'{"a":"\\u0000"}\'', "json", None),
    ("json", '\'{"a":"\\ud800"}\'', "json", None),
    ("json", "'{\"a\":NaN}'", "json", None),
    ("json", "'{'", "json", None),
    ("json", "'[1e5000]'", "json", None),
    ("json", "'[1e-20000]'", "json", None),
    ("json", "'[' || replace(hex(zeroblob(2500)), '0', '1') || ']'", "json", None),
    ("json", "replace(hex(zeroblob(450)), '0', '[') || replace(hex(zeroblob(450)), '0', ']')", "json", None),
    ("data", "5", "type", 5),
    ("blob", "'text'", "type", b"text"),
    ("uuid", "'none'", "type", None),
    ("json", "'[1]' || char(0)", "nul", None),
    ("uuid", "'00000000000000000000000000000001' || char(0)", "type", None),
]
# What looks like a trap and is none.
SOUND = [
    ("text", "'\\N tab' || char(9) || 'é'"),
    ("short", "'éééé🦉'"),
    ("int64", "9223372036854775807"),
    ("int64", "'7'"),
    ("int64", "3.0"),
    ("flag", "1"),
    ("at", "'2026-11-22 09:05:03.123456789+00:00'"),
    ("at", "'2026-11-22T09:05:03Z'"),
    ("at", "'2026-11-22 09:05:03.5+05:30'"),
    ("at", "'2026-11-22 09:05:03'"),
    ("at", "'2024-02-29 09:05:03+00:00'"),
    ("naive", "'2026-11-22 09:05:03.123456789+00:00'"),
    ("moment", "'2026-11-22'"),
    ("day", "'2026-11-22 00:00:00'"),
    ("day", "'2026-1-2'"),
    ("clock", "'9:05'"),
    ("price", "0.1"),
    ("price", "12345678.25"),
    ("real", "0.1"),
    ("json", "'\"\\\\u0000\"'"),
    ("json", '\'{"a":1,"a":2}\''),
    ("json", "'15'"),
    ("json", "'null'"),
    ("json", "'[9007199254740993, 1e999, 1.10, -0.0]'"),
    ("json", "replace(hex(zeroblob(200)), '0', '[') || replace(hex(zeroblob(200)), '0', ']')"),
    ("data", "'{\"a\":1}'"),
    ("uuid", "'0' || '0000000-0000-0000-0000-000000000001'"),
]


def made(place: Place, models: Sequence[type[pw.Model]], *statements: str) -> None:
    """Create the tables of models in a SQLite file and run statements in it."""
    db = place.connect()
    with db.connection_context():
        MigrationRunner(db, models).up()
        for statement in ("PRAGMA foreign_keys = 0", *statements):
            db.execute_sql(statement)


def trapped(place: Place, *traps: tuple[str, str]) -> type[pw.Model]:
    """Return a model whose table holds values of columns, each in a row of its own."""
    found = model("Trap", "traps", FIELDS)
    inserts = [
        f"INSERT INTO traps (id, {column}, needed) VALUES ('key {number}', {value}, 'x')"
        for number, (column, value) in enumerate(traps)
    ]
    made(place, [found], *inserts)
    return found


def test_every_trap_is_found(sqlite: Place, postgres: Place) -> None:
    trap = trapped(sqlite, *((column, value) for column, value, _, _ in TRAPS), *SOUND)
    before = Path(sqlite.dsn).read_bytes()
    found = check(sqlite.dsn, postgres.dsn, [trap])
    expected = {(f"key {number}", column, kind) for number, (column, _, kind, _) in enumerate(TRAPS)}
    assert {(each.key, each.column, each.kind) for each in found.findings} == expected
    assert (found.refused, found.more) == (len(TRAPS), 0)
    assert {each.table for each in found.findings} == {"traps"}
    with pytest.raises(TransferRefused, match=f"and {len(TRAPS) - 1} more"):
        transfer(sqlite.dsn, postgres.dsn, [trap])
    assert Path(sqlite.dsn).read_bytes() == before
    with postgres.connect().connection_context():
        assert postgres.connect().get_tables() == []


def test_a_whole_number_that_a_double_rounds_is_found(sqlite: Place, postgres: Place) -> None:
    number = model("Number", "number", {"id": pw.IntegerField(primary_key=True), "value": pw.DoubleField()})
    run(
        sqlite.connect(),
        "CREATE TABLE number (id integer NOT NULL PRIMARY KEY, value)",  # no type, as other programs declare columns
        f"INSERT INTO number VALUES (1, {2**53}), (2, {2**53 + 1}), (3, {-(2**53) - 1}), (4, {2**53 + 2})",
    )
    found = check(sqlite.dsn, postgres.dsn, [number]).findings
    assert [(finding.kind, finding.key) for finding in found] == [("precision", "2"), ("precision", "3")]


def test_a_refusal_names_a_value_that_nothing_was_chosen_for(sqlite: Place, postgres: Place) -> None:
    event = model("Event", "events", {"text": TextField(), "at": InstantField()})
    made(sqlite, [event], "INSERT INTO events (text, at) VALUES ('a' || char(0), 'yesterday')")
    chosen = {"all": "replace"}  # NULL cannot take the place of a time here
    text = "events.text, key 1: a zero byte in a text, to replace"
    time = "events.at, key 1: a text or a number that is no time, in a column that is NOT NULL"
    assert list(found_lines(check(sqlite.dsn, postgres.dsn, [event], on=chosen))) == [
        text,
        time,
        "nul: 1 to replace (a zero byte in a text)",
        "time: 1 (a text or a number that is no time)",
    ]
    with pytest.raises(TransferRefused) as refused:
        transfer(sqlite.dsn, postgres.dsn, [event], on=chosen)
    assert refused.value.fact == f"PostgreSQL cannot hold what is in {time}"
    assert refused.value.hint.endswith("correct the rows, or give --on time=set-aside --side-file FILE")


@pytest.mark.parametrize(
    ("value", "live", "ways"),
    [
        ("'a' || char(0), NULL", False, "give --on nul=replace or --on nul=set-aside --side-file FILE"),
        ("'a' || char(0), NULL", True, "give --on nul=replace"),
        ("'a', 7", False, "give --on orphan=set-aside --side-file FILE"),
        ("'a', 7", True, "transfer without --live, while nothing writes, with --on orphan=set-aside --side-file FILE"),
    ],
)
def test_a_refusal_offers_only_what_the_transfer_takes(
    sqlite: Place, postgres: Place, value: str, live: bool, ways: str
) -> None:
    fields = {"text": TextField(), "above": pw.ForeignKeyField("self", null=True)}
    node = model("Node", "nodes", fields)
    made(sqlite, [node], f"INSERT INTO nodes (text, above_id) VALUES ({value})")
    with pytest.raises(TransferRefused) as refused:
        transfer(sqlite.dsn, postgres.dsn, [node], live=live)
    assert refused.value.hint.endswith(f"correct the rows, or {ways}")


def test_sound_values_are_moved(sqlite: Place, postgres: Place) -> None:
    trap = trapped(sqlite, *SOUND)
    assert not check(sqlite.dsn, postgres.dsn, [trap]).counts
    assert transfer(sqlite.dsn, postgres.dsn, [trap]).rows == len(SOUND)
    assert contents(postgres, [trap]) == contents(sqlite, [trap])


def test_values_are_replaced_where_that_is_chosen(sqlite: Place, postgres: Place) -> None:
    trap = trapped(sqlite, *((column, value) for column, value, _, _ in TRAPS), *SOUND)
    report = transfer(sqlite.dsn, postgres.dsn, [trap], on={"all": "replace"})
    assert (report.replaced, report.set_aside) == (len(TRAPS), 0)
    db = postgres.connect()
    with db.connection_context(), db.bind_ctx([trap]):
        for number, (column, value, _, expected) in enumerate(TRAPS):
            row = trap.get(trap.id == f"key {number}")
            found = getattr(row, column)
            found = bytes(found) if isinstance(found, memoryview) else found
            assert (str(found) if column in ("price", "clock") and found else found) == expected, value


def test_rows_are_set_aside_where_that_is_chosen(sqlite: Place, postgres: Place, tmp_path: Path) -> None:
    trap = trapped(sqlite, *((column, value) for column, value, _, _ in TRAPS), *SOUND)
    file = tmp_path / "aside.jsonl"
    with pytest.raises(ConfigError, match="no file for them"):
        transfer(sqlite.dsn, postgres.dsn, [trap], on={"all": "set-aside"})
    report = transfer(sqlite.dsn, postgres.dsn, [trap], on={"all": "set-aside"}, side_file=str(file))
    assert (report.set_aside, report.rows, report.side_file) == (len(TRAPS), len(SOUND), str(file))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["row"]["id"] for line in lines] == [f"key {number}" for number in range(len(TRAPS))]
    assert lines[1]["row"]["text"] == {"text_base64": "Yf9i"}
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600


def test_no_file_is_overwritten_and_none_is_left_by_a_failure(sqlite: Place, postgres: Place, tmp_path: Path) -> None:
    trap = trapped(sqlite, ("flag", "2"))
    file = tmp_path / "aside.jsonl"
    file.write_text("mine")
    with pytest.raises(ConfigError, match="whatspire.db-journal for part of the SQLite database whatspire.db"):
        transfer(sqlite.dsn, postgres.dsn, [trap], on={"all": "set-aside"}, side_file=f"{sqlite.dsn}-journal")
    with pytest.raises(ConfigError, match="is there already"):
        transfer(sqlite.dsn, postgres.dsn, [trap], on={"type": "set-aside"}, side_file=str(file))
    assert file.read_text() == "mine"
    file.unlink()
    db = postgres.connect()
    with db.connection_context():
        MigrationRunner(db, [trap]).up()
        db.execute_sql("ALTER TABLE traps ADD CHECK (id = 'nothing')")
    made(sqlite, [trap], "INSERT INTO traps (id, needed) VALUES ('sound', 'x')")
    with pytest.raises(TransferRefused, match="PostgreSQL refused rows of traps by traps_id_check"):
        transfer(sqlite.dsn, postgres.dsn, [trap], on={"type": "set-aside"}, side_file=str(file))
    assert not file.exists()
    assert contents(postgres, [trap]) == {"Trap": []}


def test_a_side_file_that_cannot_be_written_to_its_end_goes(sqlite: Place, postgres: Place, tmp_path: Path) -> None:
    trap = trapped(sqlite, ("text", "hex(zeroblob(200000)) || char(0)"))
    file, limits = tmp_path / "aside.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))  # bytes of any file
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)) as failed:
            transfer(sqlite.dsn, postgres.dsn, [trap], on={"nul": "set-aside"}, side_file=str(file))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert failed.value.filename == str(file)  # else a command would say that of stdout
    assert not file.exists()


def test_nulls_in_keys_and_in_columns_that_take_none(sqlite: Place, postgres: Place) -> None:
    lax = model("Lax", "rows", {"id": pw.TextField(primary_key=True), "name": pw.TextField(null=True)})
    strict = model("Strict", "rows", {"id": pw.TextField(primary_key=True), "name": pw.TextField()})
    db = sqlite.connect()
    with db.connection_context():
        db.execute_sql("CREATE TABLE rows (id TEXT PRIMARY KEY, name TEXT)")
        db.execute_sql("INSERT INTO rows VALUES (NULL, 'x'), ('a', NULL)")
    assert [(f.kind, f.column) for f in check(sqlite.dsn, postgres.dsn, [lax]).findings] == [("null", "id")]
    found = check(sqlite.dsn, postgres.dsn, [strict]).findings
    assert [(f.kind, f.column, f.key) for f in found] == [("null", "id", "None"), ("null", "name", "a")]


def test_duplicates_under_a_unique_index_of_the_target(sqlite: Place, postgres: Place, tmp_path: Path) -> None:
    fields = {"id": pw.TextField(primary_key=True), "name": pw.TextField(null=True), "at": InstantField(null=True)}
    unique = model("Unique", "rows", fields, indexes=((("name",), True), (("at",), True)))
    db = sqlite.connect()
    with db.connection_context():
        db.execute_sql("CREATE TABLE rows (id TEXT PRIMARY KEY, name TEXT, at datetime)")
        db.execute_sql(
            "INSERT INTO rows VALUES ('a', 'x', NULL), ('b', 'X', NULL), ('c', 'x', '2026-11-22 09:00:00+00:00'), "
            "('d', NULL, '2026-11-22T10:00:00+01:00'), ('e', NULL, NULL)"
        )
    found = check(sqlite.dsn, postgres.dsn, [unique]).findings
    assert [(f.kind, f.column, f.key) for f in found] == [("duplicate", "name", "c"), ("duplicate", "at", "d")]
    report = transfer(
        sqlite.dsn, postgres.dsn, [unique], on={"duplicate": "set-aside"}, side_file=str(tmp_path / "aside")
    )
    assert (report.rows, report.set_aside) == (4, 1)  # once c is out, d shares its time with no other row


@pytest.mark.parametrize(
    ("type_", "unique", "values"),
    [
        ("char(5)", "UNIQUE (value)", ("'a'", "'a  '")),
        ("text", "UNIQUE NULLS NOT DISTINCT (value)", ("NULL", "NULL")),
        ("timestamptz", "UNIQUE NULLS NOT DISTINCT (value)", ("NULL", "NULL")),
    ],
)
def test_duplicates_that_only_the_targets_index_sees(
    sqlite: Place, postgres: Place, type_: str, unique: str, values: tuple[str, str]
) -> None:
    field = InstantField(null=True) if type_ == "timestamptz" else pw.TextField(null=True)
    thing = model("Thing", "things", {"value": field})
    made(
        sqlite,
        [thing],
        "CREATE UNIQUE INDEX one ON things (value)",
        *(f"INSERT INTO things (value) VALUES ({v})" for v in values),
    )
    run(
        postgres.connect(),
        f"CREATE TABLE things (id serial PRIMARY KEY, value {type_}, {unique})",
    )
    (found,) = check(sqlite.dsn, postgres.dsn, [thing]).findings
    assert (found.kind, found.column, found.key) == ("duplicate", "value", "2")


def test_duplicates_that_replacing_makes(sqlite: Place, postgres: Place) -> None:
    key = model("Key", "keys", {"id": pw.TextField(primary_key=True)})
    made(sqlite, [key], "INSERT INTO keys VALUES ('a' || char(0)), ('a' || char(0xFFFD))")
    found = check(sqlite.dsn, postgres.dsn, [key], on={"nul": "replace"})
    assert [(each.kind, each.key) for each in found.findings] == [("nul", "a\\x00"), ("duplicate", "a\ufffd")]
    assert (found.replaced, found.refused) == (1, 1)


def test_times_of_columns_that_keep_fewer_digits(sqlite: Place, postgres: Place) -> None:
    fields = {"at": InstantField(null=True), "moment": pw.DateTimeField(null=True), "clock": pw.TimeField(null=True)}
    thing = model("Thing", "things", fields)
    values = [
        ("at", "2026-11-22 09:05:03.1239+00:00"),
        ("moment", "2026-11-22 09:05:03.1239"),
        ("clock", "09:05:03.1239"),
    ]
    fits = [(column, text.replace("1239", "123")) for column, text in values]
    made(sqlite, [thing], *(f"INSERT INTO things ({column}) VALUES ('{text}')" for column, text in [*values, *fits]))
    columns = "at timestamptz(3), moment timestamp(3), clock time(3)"
    run(postgres.connect(), f"CREATE TABLE things (id serial PRIMARY KEY, {columns})")
    found = check(sqlite.dsn, postgres.dsn, [thing])
    assert [(each.kind, each.column, each.key) for each in found.findings] == [
        ("precision", column, str(number)) for number, (column, _) in enumerate(values, 1)
    ]
    assert transfer(sqlite.dsn, postgres.dsn, [thing], on={"precision": "replace"}).replaced == 3
    db = postgres.connect()
    with db.connection_context():
        rows = db.execute_sql("SELECT count(DISTINCT at), count(DISTINCT moment), count(DISTINCT clock) FROM things")
        assert rows.fetchall() == [(1, 1, 1)]


def test_a_moment_that_is_cut_is_counted() -> None:
    """Python reads more than six digits from 3.11 on."""
    field = pw.DateTimeField()
    field.bind(model("Thing", "things", {}), "at")
    kind = kind_of(field, "timestamp without time zone", not_null=False)
    for text in ("2026-11-22 09:05:03.1234567", "2026-11-22 09:05:03.1234560", "2026-11-22 09:05:03"):
        kind.of_sqlite(text)
    assert kind.shortened == 1


def test_a_target_of_another_encoding_is_refused(sqlite: Place, server: Server) -> None:
    trap = trapped(sqlite, ("text", "'é'"))
    name = f"t_{uuid.uuid4().hex[:12]}"
    server.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    try:
        with pytest.raises(TransferRefused, match="the target's encoding is LATIN1"):
            check(sqlite.dsn, server.of_database(name), [trap])
    finally:
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_orphans_and_those_that_setting_a_row_aside_makes(sqlite: Place, postgres: Place, tmp_path: Path) -> None:
    parent = model("Parent", "parents", {"id": pw.TextField(primary_key=True), "flag": FlagField(null=True)})
    child = model(
        "Child", "children", {"id": pw.TextField(primary_key=True), "parent": pw.ForeignKeyField(parent, null=True)}
    )
    grandchild = model(
        "Grandchild", "grandchildren", {"id": pw.TextField(primary_key=True), "child": pw.ForeignKeyField(child)}
    )
    models = [grandchild, child, parent]
    made(
        sqlite,
        models,
        "INSERT INTO parents VALUES ('p', 1), ('bad', 7)",
        "INSERT INTO children VALUES ('a', 'p'), ('b', NULL), ('c', 'gone'), ('d', 'bad')",
        "INSERT INTO grandchildren VALUES ('1', 'a'), ('2', 'c'), ('3', 'd')",
    )
    found = check(sqlite.dsn, postgres.dsn, models).findings
    assert [(f.kind, f.table, f.key) for f in found] == [("type", "parents", "bad"), ("orphan", "children", "c")]
    report = transfer(sqlite.dsn, postgres.dsn, models, on={"all": "set-aside"}, side_file=str(tmp_path / "aside"))
    assert report.set_aside == 5
    assert contents(postgres, models) == {
        "Parent": ["('p', True)"],
        "Child": ["('a', 'p')", "('b', None)"],
        "Grandchild": ["('1', 'a')"],
    }


def test_a_text_that_an_index_has_no_room_for(sqlite: Place, postgres: Place) -> None:
    trap = trapped(sqlite, ("text", f"hex(randomblob({BIG}))"), ("text", f"hex(zeroblob({BIG}))"))
    found = check(sqlite.dsn, postgres.dsn, [trap]).findings
    assert [(f.kind, f.column, f.key) for f in found] == [("index", "text", "key 0")]  # the other one is compressed


def test_a_table_of_many_columns(sqlite: Place, postgres: Place) -> None:
    wide = model("Wide", "wide", {f"c{number}": InstantField(null=True) for number in range(1200)})
    columns = ", ".join(f"c{number} datetime" for number in range(1200))
    run(
        sqlite.connect(),
        f"CREATE TABLE wide (id integer NOT NULL PRIMARY KEY, {columns})",
        "INSERT INTO wide (c1) VALUES ('never')",
    )
    assert [each.column for each in check(sqlite.dsn, postgres.dsn, [wide]).findings] == ["c1"]


def test_rows_that_nothing_tells_apart_are_refused(sqlite: Place, postgres: Place) -> None:
    names = ("rowid", "_rowid_", "oid")
    hidden = model("Hidden", "hidden", {name: pw.TextField(null=True) for name in names}, primary_key=False)
    run(sqlite.connect(), "CREATE TABLE hidden (rowid text, oid text, _rowid_ text)")
    with pytest.raises(TransferRefused, match="columns hide its rowid"):
        check(sqlite.dsn, postgres.dsn, [hidden])


def test_a_table_with_a_large_row_is_read_in_small_parts(sqlite: Place, postgres: Place) -> None:
    trap = trapped(sqlite, ("blob", "zeroblob(40000000)"), ("blob", "X'00'"))
    (table,) = check(sqlite.dsn, postgres.dsn, [trap]).tables
    assert table.most == 1


def test_many_findings_are_counted(sqlite: Place, postgres: Place) -> None:
    trap = trapped(sqlite, *[("flag", "2")] * 100)
    found = check(sqlite.dsn, postgres.dsn, [trap])
    assert (len(found.findings), found.more, found.refused) == (20, 80, 100)


@pytest.mark.parametrize(
    ("given", "fact"),
    [({"nothing": "replace"}, "no kind"), ({"nul": "ignore"}, "no choice"), ({"orphan": "replace"}, "nothing can")],
)
def test_wrong_choices(sqlite: Place, postgres: Place, given: dict[str, str], fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        check(sqlite.dsn, postgres.dsn, on=given)
