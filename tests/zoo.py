"""Models of every kind that peewee knows, to show that none looks changed after peewee itself created it."""

from __future__ import annotations

import peewee as pw
from peewee import SQL, Check
from pgvector.peewee import FixedBitField, HalfVectorField, SparseVectorField, VectorField
from playhouse.fields import CompressedField, PickleField
from playhouse.postgres_ext import (
    ArrayField,
    BinaryJSONField,
    DateTimeTZField,
    IntervalField,
    TSVectorField,
)
from playhouse.postgres_ext import JSONField as PostgresJSONField
from playhouse.sqlite_ext import FTS5Model, SearchField

from whatspire_db import VectorField as OwnVectorField
from whatspire_db import fields


class Base(pw.Model):
    class Meta:
        legacy_table_names = False


class Plain(Base):
    """Every field class of peewee, and those of this package."""

    auto = pw.AutoField()
    big = pw.BigIntegerField()
    small = pw.SmallIntegerField()
    integer = pw.IntegerField(constraints=[SQL("DEFAULT 5")])
    real = pw.FloatField()
    double = pw.DoubleField()
    decimal = pw.DecimalField(max_digits=12, decimal_places=3)
    char = pw.CharField(max_length=40, index=True)
    char_default = pw.CharField(constraints=[SQL("DEFAULT 'it''s (100%%), \"so\"'")])
    fixed = pw.FixedCharField(max_length=7, unique=True)
    text = pw.TextField(null=True)
    blob = pw.BlobField()
    bits = pw.BitField()
    big_bits = pw.BigBitField()
    uuid = pw.UUIDField(null=True)
    binary_uuid = pw.BinaryUUIDField()
    date_time = pw.DateTimeField()
    date = pw.DateField()
    time = pw.TimeField()
    timestamp = pw.TimestampField(index=True)
    ip = pw.IPField()
    boolean = pw.BooleanField(constraints=[SQL("DEFAULT true")])
    json = pw.JSONField(null=True)
    compressed = CompressedField()
    pickle = PickleField()
    instant = fields.InstantField()
    naive_instant = fields.NaiveInstantField()
    flag = fields.FlagField()
    int64 = fields.Int64Field()
    json_text = fields.JSONTextField()
    json_bytes = fields.JSONBytesField()
    renamed = pw.IntegerField(column_name="Other Name", null=True)
    now = pw.DateTimeField(constraints=[SQL("DEFAULT CURRENT_TIMESTAMP")])


class BigAuto(Base):
    id = pw.BigAutoField()


class TextKey(Base):
    name = pw.CharField(primary_key=True)


class UuidKey(Base):
    id = pw.UUIDField(primary_key=True)


class NoKey(Base):
    value = pw.IntegerField()

    class Meta:
        primary_key = False


class Composite(Base):
    first = pw.IntegerField()
    second = pw.TextField()

    class Meta:
        primary_key = pw.CompositeKey("second", "first")


class Node(Base):
    parent = pw.ForeignKeyField("self", null=True, backref="children", on_delete="CASCADE", on_update="SET NULL")


class User(Base):
    name = pw.CharField(unique=True, collation="NOCASE")
    age = pw.IntegerField(constraints=[Check("age >= 0 AND age < 200", name="sane_age")])
    note = pw.TextField(constraints=[Check("note <> ''")])

    class Meta:
        table_name = "users"
        constraints = [Check("age > 1 OR note LIKE 'a%%'"), SQL("UNIQUE (age, note)")]


class Tweet(Base):
    user = pw.ForeignKeyField(User, backref="tweets", on_delete="CASCADE")
    named = pw.ForeignKeyField(User, field=User.name, constraint_name="tweet_named", deferrable="INITIALLY DEFERRED")
    key = pw.ForeignKeyField(TextKey, null=True, on_delete="RESTRICT")
    uuid = pw.ForeignKeyField(UuidKey, null=True, unique=True)
    content = pw.TextField()
    is_published = pw.BooleanField()
    priority = pw.IntegerField()

    class Meta:
        indexes = ((("user", "is_published"), False), (("content", "priority"), True))


Tweet.add_index(Tweet.content, Tweet.priority.desc(), name="tweet_latest")
Tweet.add_index(Tweet.index(Tweet.content, where=Tweet.is_published == True, name="tweet_partial"))  # noqa: E712
Tweet.add_index(Tweet.index(Tweet.priority, where=(Tweet.priority > 3) & (Tweet.content != "x'y"), unique=True))
Tweet.add_index(SQL("CREATE INDEX tweet_lower ON tweet (lower(content), priority DESC)"))
Tweet.add_index(pw.Index("tweet_sum", Tweet._meta.table, [pw.fn.ABS(Tweet.priority + 1)]))


class Author(Base):
    name = pw.TextField()
    favourite = pw.DeferredForeignKey("Book", null=True)


class Book(Base):
    author = pw.ForeignKeyField(Author)
    title = pw.TextField()


class Student(Base):
    name = pw.TextField()


class Course(Base):
    students = pw.ManyToManyField(Student, backref="courses")


class Generated(Base):
    width = pw.IntegerField()
    area = pw.IntegerField(null=True, constraints=[SQL("GENERATED ALWAYS AS (width * 2) STORED")])


class Mixed(Base):
    """Names that need quotes."""

    select = pw.TextField(column_name="Select")
    order = pw.TextField(column_name='or"der', index=True)

    class Meta:
        table_name = "Mixed Case"


class LongNamesThatPostgresqlHasToCutBecauseTheyAreLongerThanSixtyThree(Base):
    a_rather_long_column_name_that_makes_the_index_too_long = pw.TextField(index=True)


class Embedded(Base):
    """This package's own vectors; those of pgvector's Python package are in Vectors."""

    cosine = OwnVectorField(3, index="hnsw", m=8)
    far = OwnVectorField(3, "l2", null=True, index="hnsw", type="halfvec", ef_construction=99)
    product = OwnVectorField(2000, "inner_product", null=True)


BOTH = [
    *(Plain, BigAuto, TextKey, UuidKey, NoKey, Composite, Node, User, Tweet, Author, Book, Student, Course),
    *(Course.students.get_through_model(), Generated, Mixed, Embedded),
    LongNamesThatPostgresqlHasToCutBecauseTheyAreLongerThanSixtyThree,
]


class Strict(Base):
    name = pw.TextField()

    class Meta:
        strict_tables = True
        without_rowid = True
        primary_key = pw.CompositeKey("name")


class Virtual(Base):
    a = pw.IntegerField()
    b = pw.IntegerField(null=True, constraints=[SQL("GENERATED ALWAYS AS (a + 1) VIRTUAL")])
    c = pw.TextField(collation="RTRIM", constraints=[SQL("UNIQUE")])


class Document(FTS5Model):
    title = SearchField()
    body = SearchField(unindexed=True)

    class Meta:
        options = {"tokenize": "porter"}
        legacy_table_names = False


SQLITE = [Strict, Virtual, Document]


class Postgres(Base):
    id = pw.IdentityField()
    at = DateTimeTZField()
    numbers = ArrayField(pw.IntegerField)
    words = ArrayField(pw.CharField, field_kwargs={"max_length": 9}, dimensions=2, index=False)
    json = PostgresJSONField()
    jsonb = BinaryJSONField()
    search = TSVectorField()
    interval = IntervalField()
    sequence = pw.IntegerField(sequence="own_sequence")
    always = pw.TextField(collation='"C"')
    total = pw.IntegerField(null=True, constraints=[SQL("GENERATED ALWAYS AS (id + 1) STORED")])


class Vectors(Base):
    embedding = VectorField(dimensions=3)
    half = HalfVectorField(dimensions=3)
    sparse = SparseVectorField(dimensions=5)
    bits = FixedBitField(max_length=8)

    class Meta:
        indexes = [
            SQL("CREATE INDEX vectors_hnsw ON vectors USING hnsw (embedding vector_l2_ops) WITH (m = 8)"),
            SQL("CREATE INDEX vectors_half ON vectors USING hnsw (half halfvec_cosine_ops)"),
        ]


class Indexed(Base):
    a = pw.TextField()
    b = pw.IntegerField(null=True)
    c = pw.IntegerField(index=True, index_type="HASH")

    class Meta:
        constraints = [SQL("UNIQUE (b) DEFERRABLE")]
        indexes = [
            SQL("CREATE INDEX indexed_opclass ON indexed (a text_pattern_ops, b DESC NULLS LAST)"),
            SQL('CREATE UNIQUE INDEX indexed_include ON indexed (a COLLATE "C") INCLUDE (b, c) WHERE b IS NOT NULL'),
            SQL("CREATE INDEX indexed_brin ON indexed USING brin (b) WITH (pages_per_range = 16)"),
            SQL("CREATE INDEX indexed_expression ON indexed ((a || 'x%%'), lower(a))"),
        ]


class Elsewhere(Base):
    code = pw.CharField(unique=True)

    class Meta:
        schema = "other"
        table_name = "users"


class Across(Base):
    there = pw.ForeignKeyField(Elsewhere)
    here = pw.ForeignKeyField(User)
    back = pw.ForeignKeyField("self", null=True)
    value = pw.IntegerField(constraints=[Check("value > 0")])

    class Meta:
        schema = "other"


class Beside(Base):
    there = pw.ForeignKeyField(Elsewhere)


POSTGRES = [Postgres, Vectors, Indexed, Elsewhere, Across, Beside]
