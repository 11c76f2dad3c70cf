"""The rows of two databases, read through models, to compare them without the proof."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import peewee

from tests.conftest import Place


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
    if isinstance(value, Decimal):
        return value.normalize()
    return bytes(value) if isinstance(value, memoryview | bytearray) else value
