"""The stamp: which declared schemas a database was verified to hold, and the engine's mark of it at that time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import is_
from typing import Any

import peewee

from .ddl import ModelType, create_indexes, create_table, deferred_foreign_keys

KEPT = 8  # declared schemas a database: some releases of a few services that share it
_FORMAT = 1  # rises when the comparison itself changes, so that nobody trusts what an older one verified


@dataclass(frozen=True)
class Stamps:
    """Pairs of a declared schema's fingerprint and the database's mark, the newest first.

    `unrecorded` is the fingerprint of a run that changes something after its transaction, until it has recorded it.
    """

    verified: tuple[tuple[str, str], ...] = ()
    unrecorded: str = ""

    def hold(self, declared: str, mark: str) -> bool:
        """Tell whether a declared schema was found in a database with this very mark."""
        return declared != self.unrecorded and (declared, mark) in self.verified

    def adding(self, declared: str, mark: str) -> Stamps:
        """Return the stamps with one more, which takes the place of its declared schema's last; the oldest go."""
        others = [pair for pair in self.verified if pair[0] != declared]
        return replace(self, verified=((declared, mark), *others)[:KEPT])

    def to_text(self) -> str:
        """Return the stamps as they are stored."""
        return json.dumps({"whatspire_db": self.verified, "unrecorded": self.unrecorded})

    @classmethod
    def from_text(cls, text: str | None) -> Stamps | None:
        """Read stored stamps; None where the text is somebody else's, which is not to be overwritten."""
        if not text:
            return cls()
        try:
            document = json.loads(text)
            pairs = tuple((str(declared), str(mark)) for declared, mark in document["whatspire_db"])
            return cls(pairs, str(document["unrecorded"]))
        except (KeyError, TypeError, ValueError):
            return None


@dataclass(frozen=True)
class Standing:
    """What one question says of a database: the recorded version, its mark, its stamps, and whether it takes others.

    `stamps` is None where somebody else keeps something in their place.
    """

    version: int
    mark: str
    stamps: Stamps | None
    may_write: bool


def fingerprint(db: peewee.Database, models: Sequence[ModelType]) -> str:
    """Return a hash of all that the models declare on this kind of database, without asking it anything."""
    texts = sorted(_text(db, model) for model in _with_targets(models))
    parts = [str(_FORMAT), peewee.__version__, type(db).__name__, *texts]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def mark_of(facts: Sequence[Any]) -> str:
    """Return the mark of a schema that is known by its facts."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def _with_targets(models: Sequence[ModelType]) -> list[ModelType]:
    seen = dict.fromkeys(models)
    pending = list(models)
    while pending:
        for target in pending.pop()._meta.refs.values():
            if target not in seen:
                seen[target] = None
                pending.append(target)
    return list(seen)


def _text(db: peewee.Database, model: ModelType) -> str:
    """Return a model's DDL. It is kept with the model, for to render it takes longer than all the rest of a start."""
    kept = vars(model._meta).pop("whatspire_ddl", None)
    parts = _parts(db, model)
    if kept is None or len(kept[0]) != len(parts) or not all(map(is_, kept[0], parts)):
        meta = model._meta
        ddl = [
            (meta.schema or "", meta.table_name, sorted(getattr(meta, "extensions", ()))),
            create_table(db, model),
            list(create_indexes(db, model)),
            deferred_foreign_keys(db, model),
        ]
        kept = (_parts(db, model), repr(ddl))  # rendering lets peewee fill caches of its own
    vars(model._meta)["whatspire_ddl"] = kept
    return kept[1]


def _parts(db: peewee.Database, model: ModelType) -> list[Any]:
    """Return the objects that a model's DDL is made of; while they are the same ones, so is the DDL."""
    meta = model._meta
    parts = [type(db), db._field_types, *vars(meta).values()]
    parts += meta.indexes
    parts += meta.constraints or ()
    for field in meta.sorted_fields:
        parts += vars(field).values()
        parts += field.constraints or ()
    return parts
