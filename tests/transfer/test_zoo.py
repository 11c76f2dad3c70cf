"""Rows of models with every field that both engines have."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import date, datetime, time, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import peewee
import pytest

from tests import zoo
from tests.conftest import Place
from tests.migrate.models import model, run
from tests.transfer.rows import contents
from whatspire_db import MigrationRunner, TransferRefused
from whatspire_db.transfer import transfer

NOW = datetime(2026, 11, 22, 9, 5, 3, 120000)
TEXTS = ["", "plain", "tab\tline\nreturn\rback\\slash \\N \\.", "é 🦉 \u2028", "\\N", "'\"%s"]


def plain(number: int) -> dict[str, Any]:
    text = TEXTS[number % len(TEXTS)]
    return {
        "auto": number + 1,
        "big": (1 << 63) - 1 - number,
        "small": -number,
        "integer": 1 << 30,
        "real": [0.5, -0.0, 1e30, 0.1, float("inf"), 3.0][number % 6],
        "double": [1 / 3, 1e300, -5e-324, 0.1, float("-inf"), 1e15][number % 6],
        "decimal": Decimal("123456.125") - number,
        "char": text,
        "char_default": text,
        "fixed": f"{number}",
        "text": text if number % 2 else None,
        "blob": bytes(range(256)) if number else b"",
        "bits": number,
        "big_bits": b"\x00\xff",
        "uuid": uuid.UUID(int=number) if number % 2 else None,
        "binary_uuid": uuid.UUID(int=number),
        "date_time": NOW.replace(microsecond=number),
        "date": date(2024, 2, 29),
        "time": time(9, 5, 3, number),
        "timestamp": NOW.replace(microsecond=0),
        "ip": f"10.0.0.{number}",
        "boolean": bool(number % 2),
        "json": [{"a": [1, 2.5, None, "é"], "b": {"c": True}}, 5, "text", [], 1e5, "\\u0000 is six letters"][
            number % 6
        ],
        "compressed": b"x" * 100,
        "pickle": {"a": (1, 2)},
        "instant": NOW.replace(tzinfo=timezone.utc),
        "naive_instant": NOW.replace(tzinfo=timezone.utc),
        "flag": bool(number % 2),
        "int64": -(1 << 63) + number,
        "json_text": {"n": number},
        "json_bytes": [text],
        "renamed": number,
        "now": NOW,
    }


def fill(db: peewee.Database) -> None:
    """Put rows into every table of the zoo, some with references in a circle or to themselves."""
    zoo.Plain.insert_many([plain(number) for number in range(12)]).execute()
    for vector in ([3.4028234663852886e38, -0.0, 1.401298464324817e-45], [0.1, -1e-30, 7]):
        long = [number * 0.1 for number in range(2000)]
        zoo.Embedded.create(cosine=[0.1, 1 / 3, -0.0], far=None, product=[*vector, *long[3:]])
        zoo.Embedded.create(cosine=[1e-7, 2, 3], far=[0.1, -65504, 6e-8], product=None)
    for _ in range(3):
        zoo.BigAuto.create()
    for number, text in enumerate(TEXTS):
        zoo.TextKey.create(name=text, force_insert=True)
        zoo.UuidKey.create(id=uuid.UUID(int=number), force_insert=True)
        zoo.NoKey.insert(value=number % 2).execute()
        zoo.Composite.insert(first=number, second=text).execute()
        zoo.Generated.create(width=number)
        zoo.Mixed.create(select=text, order=text)
    child = zoo.Node.create(parent=None)
    child.parent = zoo.Node.create(parent=child)
    child.save()
    user = zoo.User.create(name="Ä", age=5, note="a")
    for number in range(5):
        zoo.Tweet.create(
            user=user, named="Ä", key=TEXTS[number], uuid=None, content=f"c{number}", is_published=True, priority=number
        )
    author = zoo.Author.create(name="x", favourite=None)
    zoo.Book.create(author=author, title="t")
    course = zoo.Course.create()
    course.students.add(zoo.Student.create(name="s"))


def another(place: Place) -> str:
    """Return the DSN of the same database after everything in it is gone."""
    db = place.connect()
    with db.connection_context():
        db.execute_sql("DROP SCHEMA public CASCADE")
        db.execute_sql("CREATE SCHEMA public")
    return place.dsn


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Sequence[type[peewee.Model]]:
    monkeypatch.setattr(zoo.User.name, "collation", None)  # which the engines name differently
    return zoo.BOTH


def test_every_field_reads_the_same_afterwards(
    sqlite: Place, postgres: Place, models: Sequence[type[peewee.Model]], tmp_path: Path
) -> None:
    db = sqlite.connect()
    with db.connection_context(), db.bind_ctx(models):
        MigrationRunner(db, models).up()
        fill(db)
    before = contents(sqlite, models)
    report = transfer(sqlite.dsn, postgres.dsn, models)
    assert contents(postgres, models) == before
    assert report.rows == sum(map(len, before.values()))
    target = postgres.connect()
    with target.connection_context():
        assert not MigrationRunner(target, models).verify_schema().missing
    back = Place("sqlite", str(tmp_path / "back.db"), tmp_path)
    assert transfer(postgres.dsn, back.dsn, models).rows == report.rows
    assert contents(back, models) == before
    assert [table.fingerprint for table in report.tables] == [
        table.fingerprint for table in transfer(back.dsn, another(postgres), models).tables
    ]


def test_sequences_go_on_behind_rows_that_are_gone(sqlite: Place, postgres: Place) -> None:
    """SQLite gives no key twice; a sequence of another column's goes on behind that column's values."""
    thing = model("Thing", "a.thing", {"n": peewee.BigIntegerField(null=True), "code": peewee.TextField(null=True)})
    gone = model("Gone", "gone", {"n": peewee.BigIntegerField(null=True), "code": peewee.TextField(null=True)})
    columns = "(id integer NOT NULL PRIMARY KEY AUTOINCREMENT, n integer, code text)"
    run(
        sqlite.connect(),
        *(f'CREATE TABLE "{name}" {columns}' for name in ("a.thing", "gone")),
        *(f"INSERT INTO \"{name}\" (n, code) VALUES (7, 'A7'), (5, 'A5')" for name in ("a.thing", "gone")),
        'DELETE FROM "a.thing" WHERE id = 2',
        "DELETE FROM gone",
    )
    run(
        postgres.connect(),
        "CREATE SEQUENCE codes",
        "CREATE TABLE \"a.thing\" (id serial PRIMARY KEY, n bigserial, code text DEFAULT 'A' || nextval('codes'))",
    )
    transfer(sqlite.dsn, postgres.dsn, [thing, gone])
    db = postgres.connect()
    with db.connection_context():
        assert db.execute_sql('INSERT INTO "a.thing" DEFAULT VALUES RETURNING id, n, code').fetchall() == [(3, 8, "A1")]
        assert db.execute_sql("INSERT INTO gone DEFAULT VALUES RETURNING id").fetchall() == [(3,)]


def test_a_sequence_without_room_is_refused_by_its_column(sqlite: Place, postgres: Place) -> None:
    thing = model("Thing", "thing", {"n": peewee.IntegerField(null=True)})
    run(
        sqlite.connect(),
        "CREATE TABLE thing (id integer NOT NULL PRIMARY KEY AUTOINCREMENT, n integer)",
        "INSERT INTO thing (id) VALUES (99999999999)",
        "UPDATE thing SET id = 1",
    )
    with pytest.raises(
        TransferRefused, match=r"thing\.id is at 99,999,999,999 in the source, and its sequence ends at 2,1"
    ):
        transfer(sqlite.dsn, postgres.dsn, [thing])
    assert not any(contents(postgres, [thing]).values())


def test_a_reference_keeps_its_comment(sqlite: Place, postgres: Place) -> None:
    parent = model("Parent", "parent", {})
    child = model("Child", "child", {"parent": peewee.ForeignKeyField(parent, constraint_name="of_parent")})
    for place in (sqlite, postgres):
        with place.connect().connection_context():
            MigrationRunner(place.connect(), [parent, child]).up()
    run(postgres.connect(), "COMMENT ON CONSTRAINT of_parent ON child IS 'it''s one'")
    run(sqlite.connect(), "INSERT INTO parent DEFAULT VALUES", "INSERT INTO child (parent_id) VALUES (1)")
    transfer(sqlite.dsn, postgres.dsn, [parent, child])
    db = postgres.connect()
    with db.connection_context():
        kept = "SELECT obj_description(oid, 'pg_constraint') FROM pg_constraint WHERE conname = 'of_parent'"
        assert db.execute_sql(kept).fetchall() == [("it's one",)]


def test_sequences_go_on(sqlite: Place, postgres: Place, models: Sequence[type[peewee.Model]]) -> None:
    db = sqlite.connect()
    with db.connection_context(), db.bind_ctx(models):
        MigrationRunner(db, models).up()
        for _ in range(3):
            zoo.BigAuto.create()
    transfer(sqlite.dsn, postgres.dsn, models)
    target = postgres.connect()
    with target.connection_context(), target.bind_ctx(models):
        assert zoo.BigAuto.create().id == 4
        assert zoo.Node.create().id == 1
