"""What a VectorField takes and gives: the same on both engines, and nothing that one of them would not take."""

from __future__ import annotations

import math
import pickle
import struct
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
import peewee as pw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Place
from tests.servers import opened
from tests.vectors.models import MODELS, Pair, Passage, Plain, Short, Topic
from whatspire_db import BaseModel, MigrationRunner, ModelError, ValueRefused, VectorField, nearest
from whatspire_db.dsn.postgres import parse_postgres
from whatspire_db.vectors.codec import Codec

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
HALVES = st.floats(width=16, allow_nan=False, allow_infinity=False)


@pytest.fixture
def tables(db: pw.Database) -> pw.Database:
    MigrationRunner(db, MODELS).up()
    return db


@given(st.lists(FLOATS, min_size=3, max_size=3))
def test_every_finite_number_of_32_bits_keeps_its_bits(numbers: list[float]) -> None:
    codec = Codec(3)
    found = codec.numbers(numbers)
    for stored in (codec.packed(found), codec.text(found), memoryview(codec.packed(found)), np.array(numbers, "f4")):
        assert codec.packed(codec.unpacked(stored)) == struct.pack("<3f", *numbers)


def test_any_bits_that_are_finite_survive_the_text_of_postgres() -> None:
    bits = np.random.default_rng(5).integers(0, 2**32, 20_000, dtype=np.uint32).view(np.float32)
    numbers = bits[np.isfinite(bits)][:16_000]
    codec = Codec(len(numbers))
    assert codec.packed(codec.unpacked(codec.text(codec.numbers(numbers)))) == numbers.tobytes()


@given(st.lists(HALVES, min_size=2, max_size=2))
def test_every_finite_number_of_16_bits_keeps_its_bits(numbers: list[float]) -> None:
    codec = Codec(2, "halfvec")
    found = codec.numbers(numbers)
    for stored in (codec.packed(found), codec.text(found)):
        assert codec.packed(codec.unpacked(stored)) == struct.pack("<2e", *numbers)


def test_rows_keep_extreme_numbers_bit_for_bit(tables: pw.Database) -> None:
    numbers = [3.4028234663852886e38, -0.0, 1.401298464324817e-45]
    Pair.create(first=1, second="a", product=numbers)
    (read,) = Pair.select()
    assert struct.pack("<3d", *read.product) == struct.pack("<3d", *numbers)


TAKEN: list[Any] = [
    [1, 2.5, -3],
    (1, 2.5, -3),
    array("d", [1, 2.5, -3]),
    array("f", [1, 2.5, -3]),
    np.array([1, 2.5, -3], dtype=np.float64),
    np.array([1, 2.5, -3], dtype=np.float32),
    np.array([1, 2.5, -3, 0, 0, 0], dtype=np.float32).reshape(2, 3)[0],
    [np.float32(1), np.float64(2.5), np.int64(-3)],
]


def test_every_kind_of_vector_is_read_as_a_list_of_floats(tables: pw.Database) -> None:
    for value in TAKEN:
        Passage.create(embedding=value)
        Passage.insert_many([{"embedding": value}]).execute()
    rows = list(Passage.select())
    assert [row.embedding for row in rows] == [[1.0, 2.5, -3.0]] * 2 * len(TAKEN)
    assert {type(number) for row in rows for number in row.embedding} == {float}


REFUSED = {
    "short": ([1, 2], "3 dimensions, not 2"),
    "long": ([1, 2, 3, 4], "3 dimensions, not 4"),
    "empty": ([], "3 dimensions, not 0"),
    "nan": ([1, math.nan, 3], "one is NaN or infinite"),
    "infinity": ([1, -math.inf, 3], "one is NaN or infinite"),
    "cancelling": ([math.inf, -math.inf, 0], "one is NaN or infinite"),
    "text": ("[1,2,3]", "not a value of type str"),
    "bytes": (b"123456789012", "not a value of type bytes"),
    "number": (5, "not a value of type int"),
    "mixed": ([1, "secret", 3], "holds something else"),
    "none": ([1, None, 3], "holds something else"),
    "nested": ([[1, 2, 3]], "holds something else"),
    "matrix": (np.ones((1, 3)), "holds something else"),
    "dict": ({1: 2}, "not a value of type dict"),
    "large": ([1e39, 0, 0], "one is larger"),
    "integer": ([10**400, 0, 0], "holds something else"),
    "zero": ([0, 0, 0], "a length of zero"),
    "underflow": ([1e-46, 0, 0], "a length of zero"),
    "faint": ([1e-30, 0, 0], "a length outside 1e-15 to 1e+18"),
}


def test_what_one_engine_would_not_take_is_refused_on_both(tables: pw.Database) -> None:
    row = Passage.create(embedding=[1, 2, 3])
    for value, what in REFUSED.values():
        writes: list[Callable[[Any], Any]] = [
            lambda value: setattr(row, "embedding", value) or row.save(),
            lambda value: Passage.create(embedding=value),
            lambda value: Passage.insert_many([{"embedding": value}]).execute(),
            lambda value: Passage.update(embedding=value).execute(),
        ]
        for write in writes:
            with pytest.raises(ValueRefused) as refused:
                write(value)
            assert refused.value.fact.startswith("passage.embedding takes ")
            assert what in refused.value.fact
            assert "secret" not in str(refused.value)
    assert [row.embedding for row in Passage.select()] == [[1.0, 2.0, 3.0]]


def test_refusal_names_the_key_of_the_row(tables: pw.Database) -> None:
    row = Passage.create(embedding=[1, 2, 3])
    row.embedding = [1, 2]
    with pytest.raises(
        ValueRefused, match=rf"passage.embedding takes 3 dimensions, not 2, in the row with id {row.id}"
    ):
        row.save()
    with pytest.raises(ValueRefused, match="in the row with first 2, second 'b'"):
        Pair.create(first=2, second="b", product=[1])


def test_zero_has_no_direction_and_is_taken_by_the_other_metrics(tables: pw.Database) -> None:
    Short.create(place=[0, 0, 0])
    Pair.create(first=1, second="a", product=[0, 0, 0])
    with pytest.raises(ValueRefused, match="the distance from short.place takes a vector with a direction"):
        Short.place.cosine_distance([0, 0, 0])
    (distance,) = Short.select(Short.place.cosine_distance([1, 2, 3]).alias("d")).tuples()
    assert distance == (None,)


def test_halfvec_rounds_to_16_bits_and_refuses_what_is_larger(tables: pw.Database) -> None:
    Short.create(place=[0.1, 65504, 1e-9])
    assert Short.get().place == [0.0999755859375, 65504.0, 0.0]
    with pytest.raises(ValueRefused, match="numbers of 16 bits, up to 65504, and one is larger"):
        Short.create(place=[0, 0, 65520])


def test_save_writes_a_vector_only_where_it_changed(tables: pw.Database) -> None:
    Passage.create(embedding=[0.1, 0.2, 0.3], text="a")
    row = Passage.get()
    row.embedding = list(row.embedding)
    assert row.save() == 0
    row.embedding = np.array(row.embedding, np.float32)
    assert row.save() == 0
    row.embedding[1] = 7
    assert row.save() == 1
    assert Passage.get().embedding[1] == 7
    row.embedding = None
    assert row.save() == 1
    assert Passage.get().embedding is None
    copy = pickle.loads(pickle.dumps(Passage.get()))  # noqa: S301
    copy.embedding = (1, 2, 3)
    assert copy.save() == 1


def test_instance_holds_what_was_assigned_as_a_list(tables: pw.Database) -> None:
    row = Passage(embedding=np.array([0.1, 0.2, 0.3]))
    assert row.embedding == np.array([0.1, 0.2, 0.3], np.float32).tolist()
    row.save()
    assert row.embedding == Passage.get().embedding


class Defaults(BaseModel):
    given = VectorField(3, default=[0.1, 2, 3])
    made = VectorField(3, default=lambda: np.array([1, 2, 3]))
    label = pw.TextField(default="")

    class Meta:
        abstract = True


def test_default_is_a_list_of_each_rows_own(db: pw.Database) -> None:
    MigrationRunner(db, [Defaults]).up()
    first = Defaults()
    first.given[0] = 9
    assert (first.save(), first.save()) == (1, 0)
    first.label = "changed"
    assert first.save() == 1
    Defaults.insert_many([{"label": "a"}]).execute()
    rounded = np.float32(0.1).item()
    assert [(row.given, row.made) for row in Defaults.select().order_by(Defaults.id)] == [
        ([9.0, 2.0, 3.0], [1.0, 2.0, 3.0]),
        ([rounded, 2.0, 3.0], [1.0, 2.0, 3.0]),
    ]
    assert Defaults(label="b").given == [rounded, 2.0, 3.0]


def test_lists_are_compared_as_vectors(tables: pw.Database) -> None:
    for value in ([0.1, 2, 3], (0.1, 2, 3), np.array([0.1, 2, 3])):
        row, _ = Passage.get_or_create(embedding=value)
        assert Passage.get(Passage.embedding == value) == row
        assert Passage.select().where(Passage.embedding != value).count() == 0
    assert Passage.select().count() == 1
    assert len({Passage.embedding, Passage.text}) == 2


def test_bulk_update_stores_null(tables: pw.Database) -> None:
    Passage.bulk_create([Passage(embedding=(1, 2, number)) for number in range(3)])
    rows = list(Passage.select().order_by(Passage.id))
    for stored in ([None, [4, 5, 6], None], [None, None, None]):
        for row, value in zip(rows, stored, strict=True):
            row.embedding = value
        Passage.bulk_update(rows, [Passage.embedding])
        assert [row.embedding for row in Passage.select().order_by(Passage.id)] == stored


class Series:
    """What a column of pandas looks like: numbers of 32 bits without numpy's methods."""

    dtype, ndim = "float32", 1

    def __init__(self, *numbers: float) -> None:
        self.numbers = list(numbers)

    def tolist(self) -> list[float]:
        return self.numbers


class OfPgvector:
    """What a vector of pgvector's Python package looks like."""

    def to_list(self) -> list[float]:
        return [1.0, 2.0, math.nan]


def test_vectors_of_other_packages_are_taken_or_refused_like_lists() -> None:
    assert Passage(embedding=Series(1, 2, 3)).embedding == [1.0, 2.0, 3.0]
    masked: Any = np.ma.array(np.array([1, 2, 3], "f4"), mask=[0, 1, 0])
    for value, what in ((OfPgvector(), "one is NaN"), (masked, "holds something else"), (Series(1e39, 0, 0), "larger")):
        with pytest.raises(ValueRefused, match=what):
            Passage(embedding=value)


def test_bulk_create_and_bulk_update_store_vectors(tables: pw.Database) -> None:
    Passage.bulk_create([Passage(embedding=(1, 2, number)) for number in range(3)])
    rows = list(Passage.select().order_by(Passage.id))
    for row in rows:
        row.embedding = [4, 5, 6 + row.id]
    Passage.bulk_update(rows, [Passage.embedding])
    assert [row.embedding for row in Passage.select().order_by(Passage.id)] == [[4, 5, 6 + row.id] for row in rows]


def test_column_takes_nothing_else_from_others(place: Place, tables: pw.Database) -> None:
    wrong = "x'00'" if place.is_sqlite else "'[1,2]'"
    for value in (wrong, "'abc'", "5"):
        with pytest.raises(pw.PeeweeException):
            tables.execute_sql(f"INSERT INTO passage (text, embedding) VALUES ('', {value})")


def test_stored_value_that_is_no_vector_names_its_row(sqlite: Place) -> None:
    with opened(sqlite) as db:
        db.execute_sql("CREATE TABLE passage (id INTEGER PRIMARY KEY, topic_id INTEGER, text TEXT, embedding)")
        db.execute_sql("INSERT INTO passage VALUES (7, NULL, '', x'0000')")
        with pytest.raises(ValueRefused, match="passage.embedding holds a value that is not a vector of 3 dim.* id 7"):
            Passage.get()


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        ({"dimensions": 0}, "a vector cannot have 0 dimensions"),
        ({"dimensions": 16_001}, "a vector cannot have 16001 dimensions"),
        ({"dimensions": True}, "cannot have True dimensions"),
        ({"dimensions": 3, "metric": "cosinus"}, "there is no metric 'cosinus'"),
        ({"dimensions": 3, "type": "bit"}, "there is no type 'bit'"),
        ({"dimensions": 3, "index": "ivfflat"}, "there is no index 'ivfflat'"),
        ({"dimensions": 3, "m": 8}, "m and ef_construction are for an index"),
        ({"dimensions": 2_001, "index": "hnsw"}, "at most 2,000 dimensions of type vector, not 2,001"),
        ({"dimensions": 4_001, "index": "hnsw", "type": "halfvec"}, "at most 4,000 dimensions of type halfvec"),
    ],
)
def test_field_that_no_engine_has_is_refused(arguments: dict[str, Any], fact: str) -> None:
    with pytest.raises(ModelError, match=fact):
        VectorField(**arguments)


def test_indexed_field_of_many_dimensions_points_to_halfvec() -> None:
    with pytest.raises(ModelError) as refused:
        VectorField(3_000, index="hnsw")
    assert 'type="halfvec"' in refused.value.hint
    VectorField(3_000, index="hnsw", type="halfvec")


def plain(place: Place) -> pw.PostgresqlDatabase:
    arguments = parse_postgres(place.dsn).arguments
    return pw.PostgresqlDatabase(arguments["dbname"], **{k: v for k, v in arguments.items() if k != "dbname"})


def test_plain_models_of_peewee_have_vectors(place: Place) -> None:
    db: pw.Database = pw.SqliteDatabase(":memory:") if place.is_sqlite else plain(place)
    with db.bind_ctx([Plain, Topic]):
        if not place.is_sqlite:
            db.execute_sql("CREATE EXTENSION vector")
        db.create_tables([Plain])
        Plain.insert_many([{"embedding": [1, number, 0]} for number in range(5)]).execute()
        found = nearest(Plain, Plain.embedding, [1, 0.1, 0], k=2)
        assert [(row.id, row.embedding) for row in found] == [(1, [1.0, 0.0, 0.0]), (2, [1.0, 1.0, 0.0])]
        Plain.update(embedding=[0, 0, 1]).where(Plain.id == 1).execute()
        assert [row.id for row in nearest(Plain, "embedding", (1, 0.1, 0), 2, where=Plain.id < 4)] == [2, 3]
        if not place.is_sqlite:
            assert db.execute_sql("SHOW hnsw.ef_search").fetchone() == ("40",)
            assert not db.connection().info.transaction_status
    db.close()
