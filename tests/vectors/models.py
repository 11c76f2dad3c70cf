"""Models with vectors: of the package's BaseModel, and a plain one of Peewee's; abstract, so that they are tables of
these tests alone."""

from __future__ import annotations

import peewee as pw

from whatspire_db import BaseModel, VectorField


class Topic(BaseModel):
    name = pw.TextField()

    class Meta:
        abstract = True


class Passage(BaseModel):
    topic = pw.ForeignKeyField(Topic, null=True)
    text = pw.TextField(default="")
    embedding = VectorField(3, null=True)

    class Meta:
        abstract = True


class Short(BaseModel):
    place = VectorField(3, "l2", type="halfvec")

    class Meta:
        abstract = True


class Indexed(BaseModel):
    topic = pw.IntegerField(index=True, default=0)
    embedding = VectorField(3, index="hnsw", m=8, ef_construction=32, null=True)

    class Meta:
        abstract = True


class Pair(BaseModel):
    first = pw.IntegerField()
    second = pw.TextField()
    product = VectorField(3, "inner_product")

    class Meta:
        abstract = True
        primary_key = pw.CompositeKey("first", "second")


class Plain(pw.Model):
    embedding = VectorField(3, index="hnsw")


MODELS = [Topic, Passage, Short, Indexed, Pair]
