"""The rows of two databases, read through models, to compare them without the proof."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from math import inf

import peewee

from tests import gorm
from tests.conftest import Place
from whatspire_db import MigrationRunner
from whatspire_db.models.service import SERVICE_MODELS
from whatspire_db.transfer.records import Transfer

ROWS = [model for model in SERVICE_MODELS if model._meta.table_name != "migration_versions"]


def contents(place: Place, models: Sequence[type[peewee.Model]]) -> dict[str, list[str]]:
    """Return every row of models as they read it, in an order of its own."""
    db = place.connect()
    found = {}
    with db.connection_context(), db.bind_ctx(models):
        for model in models:
            rows = peewee.ModelSelect(model, model._meta.sorted_fields).tuples()
            found[model.__name__] = sorted(repr(tuple(map(_plain, row))) for row in rows)
    return found


def _plain(value: object) -> object:
    """Return a value so that those have one repr that Python finds equal: 1 and 1.0, 0.0 and -0.0, equal decimals."""
    if isinstance(value, dict):
        return sorted((key, _plain(each)) for key, each in value.items())
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, Decimal):
        return value.normalize()
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and abs(value) >= 10**308:
        return inf if value > 0 else -inf  # as SQLite's text of the number is read
    return bytes(value) if isinstance(value, memoryview | bytearray) else value


def go_database(place: Place) -> None:
    """Make the service's database with rows as Go writes them, as this package brings it up to date."""
    db = place.connect()
    with db.connection_context():
        gorm.create(place, db)
        MigrationRunner(db).up()


def transfers(place: Place) -> list[tuple[str, str | None]]:
    """Return the state and the error of each attempt that the target knows of."""
    db = place.connect()
    with db.connection_context():
        return list(Transfer.select(Transfer.state, Transfer.error).order_by(Transfer.id).tuples().execute(db))
