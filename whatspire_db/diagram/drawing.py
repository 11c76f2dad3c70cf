"""What users call: a Diagram of models, of a database, or of both; and its text in each format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import peewee

from ..migrate.ddl import ModelType
from ..migrate.full_look import Comparison
from ..migrate.schema import Schema
from .building import diagram_of
from .dbml import dbml
from .differences import differences_of, merged
from .mermaid import mermaid
from .models import schema_of_models
from .page import page
from .svg import svg
from .values import Diagram

if TYPE_CHECKING:
    from ..transfer.fence import Fence

FORMATS: dict[str, Callable[[Diagram], str]] = {"mermaid": mermaid, "html": page, "svg": svg, "dbml": dbml}
SUFFIXES = {".mmd": "mermaid", ".mermaid": "mermaid", ".html": "html", ".htm": "html", ".svg": "svg", ".dbml": "dbml"}


def of_models(models: Sequence[ModelType], db: peewee.Database, database: str) -> Diagram:
    """Return the picture of models alone; the database only says which engine's types they have.

    :param database: how outputs name the database.
    """
    return diagram_of(schema_of_models(models, db), database, "the models alone, the database was not opened")


def of_database(live: Schema, database: str, fence: Fence | None = None) -> Diagram:
    """Return the picture of a live schema alone.

    :param fence: where the rows of the database are now, if they were moved.
    """
    return replace(diagram_of(live, database, "the database alone"), notes=_moved(fence))


def _moved(fence: Fence | None) -> tuple[str, ...]:
    return (fence.fact,) if fence else ()


def of_both(comparison: Comparison, database: str, fence: Fence | None = None) -> Diagram:
    """Return the picture of a declared and a live schema, with what differs and the SQL that fixes it.

    :param fence: where the rows of the database are now, if they were moved.
    """
    schema, found = merged(comparison), differences_of(comparison)
    diagram = diagram_of(schema, database, "the models and the database", found)
    drift = comparison.mending.changes.drift
    unproved = comparison.declared.unproved
    notes = (*_moved(fence), *map(str, comparison.mending.changes.renamed))
    if unproved:
        notes += (f"compared by names alone: {unproved[0]}",)
    return replace(diagram, script=str(comparison.mending) if drift else "", notes=notes)
