"""Schemas to draw: one of 95 tables, and one with names that break what does not quote them."""

from __future__ import annotations

import random
from collections.abc import Sequence

import peewee as pw

from whatspire_db.diagram.building import diagram_of
from whatspire_db.diagram.models import schema_of_models
from whatspire_db.diagram.values import Diagram
from whatspire_db.models.service import SERVICE_MODELS

Model = type[pw.Model]
WORDS = (
    "account user order item invoice payment refund shipment address country currency product category price stock "
    "warehouse supplier batch label tag note comment audit session token device event log metric report team member "
    "role permission plan subscription coupon campaign lead contact deal stage task project milestone board card file"
)
NAMES_FROM_HELL = [
    *("end", "class", "style", "one", "to", "many", "u", "pk", "title", "direction TB"),
    *('a "quoted" name', "o'brien", "50% off", "%%{init: {}}%%", "back\\slash", "semi;colon", "{ } [ ]", "a.b"),
    *("<script>alert(1)</script>", "</style></svg>", "&amp;", "line\nbreak", "tab\tstop", "\u202eright to left"),
    *("emoji 😀", "ключ", "表", "x" * 63, " padded ", "`tick`", "--dashes", "#37;", "1st", "ﬂ°°37¶ß"),
]


def model(name: str, fields: dict[str, pw.Field], schema: str | None = None) -> Model:
    """Return a model of a table."""
    meta = type("Meta", (), {"table_name": name, "schema": schema})
    return type("Drawn", (pw.Model,), {**fields, "Meta": meta})


def many_models(number: int = 95) -> list[Model]:
    """Return models with references, always the same: some tables have many, some none."""
    chance = random.Random(7)
    words, models = WORDS.split(), list[Model]()
    kinds: Sequence[type[pw.Field]] = (pw.TextField, pw.IntegerField, pw.BooleanField)
    for place in range(number):
        name = words[place % len(words)] + "_detail" * (place // len(words))
        fields: dict[str, pw.Field] = {"name": pw.CharField(), "created_at": pw.DateTimeField(index=True)}
        for each in range(chance.randint(0, 9)):
            fields[f"field_{each}"] = chance.choice(kinds)(null=chance.random() < 0.5)
        for _ in range(chance.choice([1, 1, 1, 2, 2, 3]) if models and chance.random() < 0.9 else 0):
            target = models[min(int(chance.expovariate(0.08)), len(models) - 1)]
            null = chance.random() < 0.3
            fields[target._meta.table_name] = pw.ForeignKeyField(target, null=null, backref="+")
        models.append(model(name, fields))
    return models


def models_from_hell() -> list[Model]:
    """Return models whose tables and columns have all of these names, each referring to the one before."""
    models: list[Model] = []
    for name in NAMES_FROM_HELL:
        columns = {f"f{n}": pw.TextField(null=True, column_name=each) for n, each in enumerate(NAMES_FROM_HELL)}
        if models:
            columns["before"] = pw.ForeignKeyField(models[-1], column_name=f"before {name}"[:63], backref="+")
        models.append(model(name, columns))
    twice = [model("orders", {"number": pw.TextField()}, schema) for schema in ("north", "south")]
    return [*models, *twice]


def drawn(models: Sequence[Model], db: pw.Database | None = None, database: str = "sqlite /srv/app/app.db") -> Diagram:
    """Return the picture of models alone."""
    return diagram_of(schema_of_models(models, db or pw.SqliteDatabase(None)), database, "the models alone")


def pictures() -> dict[str, Diagram]:
    """Return the pictures that every format is tested with."""
    return {"service": drawn(SERVICE_MODELS), "many": drawn(many_models()), "hell": drawn(models_from_hell())}
