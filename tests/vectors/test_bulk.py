"""Bulk inserts: what every other insert writes, in whole batches."""

from __future__ import annotations

import datetime
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import numpy as np
import peewee as pw
import pytest
from playhouse.postgres_ext import ArrayField

from tests.conftest import Place
from tests.servers import opened
from tests.vectors.clusters import clustered
from tests.vectors.models import MODELS, Pair, Passage, Topic
from whatspire_db import BaseModel, MigrationRunner, ValueRefused, bulk_insert
from whatspire_db.copy_in import copy_in
from whatspire_db.fields import FlagField, InstantField, JSONBytesField, JSONTextField


class Everything(BaseModel):
    key = pw.TextField(primary_key=True, default=lambda: str(uuid.uuid4()))
    text = pw.TextField(null=True)
    number = pw.IntegerField(default=7)
    real = pw.DoubleField(null=True)
    decimal = pw.DecimalField(12, 3, null=True)
    blob = pw.BlobField(null=True)
    flag = FlagField(null=True)
    instant = InstantField(null=True)
    date = pw.DateField(null=True)
    time = pw.TimeField(null=True)
    uuid = pw.UUIDField(null=True)
    json = JSONTextField(null=True)
    json_bytes = JSONBytesField(null=True)
    peewees_json = pw.JSONField(null=True)
    renamed = pw.TextField(column_name='Se"lect', null=True)
    topic = pw.ForeignKeyField(Topic, null=True)

    class Meta:
        abstract = True


AWKWARD = [
    {},
    {"text": "tab\t newline\n return\r backslash\\ \\N \\. ü€𝄞 'quote\" 100% %s"},
    {"text": "", "number": -5, "real": 0.1, "decimal": Decimal("12.340"), "blob": b"\x00\xff\\x", "flag": True},
    {"real": float("inf"), "flag": False, "json": {"a": [1, None, "\\"]}, "json_bytes": ["\t"], "renamed": "\\"},
    {"instant": datetime.datetime(2026, 11, 28, 9, 5, 3, 123000, datetime.timezone.utc)},
    {"date": datetime.date(2024, 2, 29), "time": datetime.time(23, 59, 1), "uuid": uuid.uuid4()},
    {"peewees_json": {"deep": ["x"]}},
]


@pytest.fixture
def tables(db: pw.Database) -> pw.Database:
    MigrationRunner(db, [*MODELS, Everything]).up()
    return db


def contents() -> list[dict[str, Any]]:
    return list(Everything.select().order_by(Everything.key).dicts())


def test_rows_are_those_that_insert_many_makes(tables: pw.Database) -> None:
    rows = [{"key": f"{n:03}", **row} for n, row in enumerate(AWKWARD * 3)]
    complete = [dict.fromkeys(f.name for f in Everything._meta.sorted_fields if f.null) | row for row in rows]
    for batch in (complete, [Everything(**row) for row in complete]):
        Everything.delete().execute()
        Everything.insert_many(complete).execute()
        expected = contents()
        Everything.delete().execute()
        given = iter(batch)
        names = [f.name for f in Everything._meta.sorted_fields]
        assert bulk_insert(Everything, given, names if batch is not complete else None, batch_rows=4) == len(rows)
        assert contents() == expected


def test_defaults_are_the_models(tables: pw.Database) -> None:
    assert bulk_insert(Everything, [{"text": "a"}, {"text": "b"}]) == 2
    rows = list(Everything.select())
    assert [row.number for row in rows] == [7, 7]
    assert len({row.key for row in rows}) == 2


def test_expressions_and_sequences_are_taken(tables: pw.Database) -> None:
    topic = Topic.create(name="a")
    rows = [("a", topic, pw.fn.UPPER("x")), ("b", topic, "y")]
    assert bulk_insert(Everything, rows, [Everything.key, "topic", Everything.text]) == 2
    assert [(r.key, r.topic_id, r.text) for r in Everything.select().order_by(Everything.key)] == [
        ("a", topic.id, "X"),
        ("b", topic.id, "y"),
    ]
    assert bulk_insert(Everything, []) == 0


def test_kind_that_has_no_text_of_its_own_is_inserted(postgres: Place) -> None:
    class Tagged(pw.Model):
        tags = ArrayField(pw.TextField)
        length = pw.IntegerField()

    with opened(postgres) as db, db.bind_ctx([Tagged]):
        db.create_tables([Tagged])
        bulk_insert(Tagged, [{"tags": ["a", "b,c"], "length": 2}])
        assert [row.tags for row in Tagged.select()] == [["a", "b,c"]]


def test_vectors_arrive_bit_for_bit(tables: pw.Database) -> None:
    data = clustered(250, 3)
    told: list[int] = []
    rows = ({"id": n, "embedding": vector} for n, vector in enumerate(data, 1))
    assert bulk_insert(Passage, rows, batch_rows=100, progress=told.append) == 250
    assert told == [100, 200, 250]
    stored = np.array([row.embedding for row in Passage.select().order_by(Passage.id)], np.float32)
    assert stored.tobytes() == data.tobytes()
    assert {row.text for row in Passage.select()} == {""}


def test_value_that_is_refused_leaves_the_batches_before_it(tables: pw.Database) -> None:
    rows = [{"id": n, "embedding": [1, 2, 3] if n != 8 else [1, float("nan"), 3]} for n in range(1, 11)]
    with pytest.raises(ValueRefused, match="passage.embedding takes finite numbers, .* in the row with id 8"):
        bulk_insert(Passage, rows, batch_rows=5)
    assert Passage.select().count() == 5
    with pytest.raises(ValueRefused, match="in row 1 of those given"):
        bulk_insert(Passage, [{"embedding": [1]}])
    with pytest.raises(pw.IntegrityError):
        bulk_insert(Pair, [{"first": 1, "second": "a", "product": [1, 2, 3]}] * 2)
    assert Pair.select().count() == 0


def test_rows_of_a_transaction_that_is_rolled_back_are_gone(tables: pw.Database) -> None:
    with tables.atomic() as block:
        bulk_insert(Passage, [{"embedding": [1, 2, 3]}] * 10, batch_rows=3)
        block.rollback()
    assert Passage.select().count() == 0


def test_rows_that_do_not_fit_are_refused(tables: pw.Database) -> None:
    cases: list[tuple[Any, Any, str]] = [
        ([(1, 2)], None, "names no fields"),
        ([{"nothing": 1}], None, "passage has no field 'nothing'"),
        ([{"text": "a"}, {"text": "a", "topic": 1}], None, "row 2 for passage has a field topic"),
        ([{"text": "a", "id": 1}, {"text": "a"}], None, "row 2 lacks id"),
        ([("a", 1, 2)], ["text"], "row 1 has 3 values"),
    ]
    for rows, fields, fact in cases:
        with pytest.raises(ValueRefused, match=fact):
            bulk_insert(Passage, rows, fields)
        with pytest.raises(ValueRefused, match="not a number of rows"):
            bulk_insert(Passage, rows, fields, batch_rows=0)
    assert Passage.select().count() == 0


def test_instances_that_set_more_than_the_first_are_not_cut_short(tables: pw.Database) -> None:
    rows = [Passage(text="a", embedding=None), Passage(text="b", embedding=[1, 2, 3])]
    assert bulk_insert(Passage, rows) == 2
    assert [row.embedding for row in Passage.select().order_by(Passage.text)] == [None, [1.0, 2.0, 3.0]]
    for more in (Passage(embedding=[1, 2, 3]), Passage(id=77)):
        with pytest.raises(ValueRefused, match="row 2 for passage has a field (embedding|id), and the first row does"):
            bulk_insert(Passage, [Passage(text="a"), more])
    assert bulk_insert(Passage, [Passage(text="c"), Passage(embedding=[1, 2, 3])], ["text", "embedding"]) == 2
    assert Passage.select().where(Passage.embedding.is_null(False)).count() == 2


def test_field_that_is_named_twice_is_refused(tables: pw.Database) -> None:
    topic = Topic.create(name="a")
    for rows, fields in (([("a", "b")], ["text", "text"]), ([{"topic": topic, "topic_id": 5}], None)):
        with pytest.raises(ValueRefused, match="passage is given (text|topic) twice"):
            bulk_insert(Passage, rows, fields)


@pytest.mark.soak
def test_statement_with_expressions_has_no_more_values_than_sqlite_takes(tables: pw.Database) -> None:
    sizes: list[int] = []
    tables.query_hooks.append(lambda event: sizes.append(len(event.params or ())))
    rows = [{"text": pw.fn.UPPER("x"), "embedding": [1, 2, n], "topic": None} for n in range(1, 12_001)]
    assert bulk_insert(Passage, rows, batch_rows=12_000) == 12_000
    assert 1_000 < max(sizes) <= 32_766
    assert Passage.select().where(Passage.text == "X").count() == 12_000


def test_bar_shows_the_rows(tables: pw.Database, capsys: pytest.CaptureFixture[str]) -> None:
    bulk_insert(Passage, [{"embedding": [1, 2, 3]}] * 25, batch_rows=10, progress=True)
    assert "25.0/25.0" in capsys.readouterr().err


def test_copies_of_two_threads_leave_the_hook_for_exceptions_as_it_was(postgres: Place) -> None:
    """The first to begin is the first to end, so neither can give back what it has found."""
    before = sys.excepthook
    begun, ended = [threading.Event(), threading.Event()], threading.Event()

    def lines(number: int, until: threading.Event) -> Iterator[bytes]:
        begun[number].set()
        assert until.wait(30)
        yield b"%d\n" % number

    def copy(number: int, until: threading.Event) -> None:
        with opened(postgres) as db, db.atomic():
            copy_in(db.cursor(), "copied", ["n"], lines(number, until))

    with opened(postgres) as db, ThreadPoolExecutor(2) as threads:
        db.execute_sql("CREATE TABLE copied (n int)")
        first = threads.submit(copy, 0, begun[1])
        assert begun[0].wait(30)
        second = threads.submit(copy, 1, ended)
        first.result(30)
        ended.set()
        second.result(30)
        assert db.execute_sql("SELECT n FROM copied ORDER BY n").fetchall() == [(0,), (1,)]
    assert sys.excepthook is before
