"""The stamp: which declared schemas a database was verified to hold, and the engine's mark of it at that time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from operator import is_

import peewee

from ..errors import WhatspireDBError
from ..light_stdlib import Any, NamedTuple, dataclass, replace
from ..peewee_compat import field_types
from .ddl import ModelType, create_indexes, create_table, deferred_foreign_keys
from .schema import Difference

KEPT = 8  # declared schemas a database: some releases of a few services that share it
BYTES = 1 << 16  # many times what so many take
_KEPT_DDL = "whatspire_ddl"
_FORMAT = 3  # rises when the comparison itself changes, so that nobody trusts what an older one verified


@dataclass(frozen=True)
class Stamps:
    """Pairs of a declared schema's fingerprint and the database's mark, the newest first.

    `drifted` are those with drift, and what differs there. `unrecorded` is the fingerprint of
    a run that changes something after its transaction, until it has recorded it. `finished` are hashes of the names of
    data migrations that are finished together; the schema does not matter to them.
    """

    verified: tuple[tuple[str, str], ...] = ()
    unrecorded: str = ""
    drifted: tuple[tuple[str, str, tuple[Difference, ...]], ...] = ()
    finished: tuple[str, ...] = ()

    def differences(self, declared: str, mark: str) -> tuple[Difference, ...] | None:
        """Return what a look found to have drifted in a database with this very mark; None where there was no look."""
        if declared == self.unrecorded:
            return None
        if (declared, mark) in self.verified:
            return ()
        return next((found for *pair, found in self.drifted if pair == [declared, mark]), None)

    def adding(self, declared: str, mark: str, differences: Sequence[Difference] = ()) -> Stamps:
        """Return the stamps with one more, which takes the place of its declared schema's last; the oldest go.

        Differences that are too many to store are left out, and every start looks for them again.
        """
        verified = [pair for pair in self.verified if pair[0] != declared]
        drifted = [entry for entry in self.drifted if entry[0] != declared]
        if differences:
            drifted.insert(0, (declared, mark, tuple(differences)))
        else:
            verified.insert(0, (declared, mark))
        stamps = replace(self, verified=tuple(verified[:KEPT]), drifted=tuple(drifted[:KEPT]))
        while stamps.drifted and len(stamps.to_text()) > BYTES:
            stamps = replace(stamps, drifted=stamps.drifted[:-1])
        return stamps

    def to_text(self) -> str:
        """Return the stamps as they are stored."""
        drifted = {"drifted": self.drifted} if self.drifted else {}
        finished = {"finished": self.finished} if self.finished else {}
        return json.dumps({"whatspire_db": self.verified, "unrecorded": self.unrecorded, **drifted, **finished})

    @classmethod
    def from_text(cls, text: str | None) -> Stamps | None:
        """Read stored stamps; None where the text is not of this package, and is not to be overwritten."""
        if not text:
            return cls()
        try:
            document = json.loads(text) if len(text) <= BYTES else {}
            pairs = tuple((_text_of(declared), _text_of(mark)) for declared, mark in document["whatspire_db"])
            drifted = tuple(map(_drifted, document.get("drifted", ())))
            finished = tuple(map(_text_of, document.get("finished", ())))
            return cls(pairs[:KEPT], _text_of(document["unrecorded"]), drifted[:KEPT], finished[:KEPT])
        except (KeyError, TypeError, ValueError, RecursionError):
            return None


def _drifted(entry: Any) -> tuple[str, str, tuple[Difference, ...]]:
    declared, mark, differences = entry
    return _text_of(declared), _text_of(mark), tuple(map(_difference, differences))


def _difference(parts: Any) -> Difference:
    kind, table, name, declared, live = parts
    sides = [None if side is None else _text_of(side) for side in (declared, live)]
    return _text_of(kind), _text_of(table), _text_of(name), sides[0], sides[1]


def _text_of(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


@dataclass(frozen=True)
class Standing:
    """What one question says of a database: the recorded version, its mark, its stamps, and whether it takes others.

    `stamps` is None where somebody else keeps something in their place. Where it was asked for, `finished` has names of
    data migrations, or hashes of such names, and `is_working` tells whether a run that changes many rows holds its
    lock.
    """

    version: int
    mark: str
    stamps: Stamps | None
    may_write: bool
    finished: frozenset[str] = frozenset()
    is_working: bool = False


class ForeignHistory(WhatspireDBError):
    """The table migration_versions is not the one of this package and of the Go service."""

    def __init__(self, why: str, hint: str = "use another database or schema, or rename that table") -> None:
        super().__init__(why, hint)


def recorded_version(newest: Any) -> int:
    """Return the newest version of migration_versions as a number; 0 before the first run.

    :raises ForeignHistory: when the table holds something else there.
    """
    try:
        return int(newest or 0)
    except (TypeError, ValueError):
        raise ForeignHistory(
            "table migration_versions seems to belong to another program: its version is not a number"
        ) from None


def fingerprint(db: peewee.Database, models: Sequence[ModelType], accepted: Sequence[Difference] = ()) -> str:
    """Return a hash of all that the models declare on this kind of database, without asking it anything.

    :param accepted: the differences that count as none.
    """
    parts = [str(_FORMAT), peewee.__version__, type(db).__name__, declared_text(db, models)]
    parts += [repr(sorted(map(repr, accepted)))] if accepted else []
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def declared_text(db: peewee.Database, models: Sequence[ModelType]) -> str:
    """Return all that the models and those that they refer to declare, in an order of its own."""
    return "\0".join(sorted(_text(db, model) for model in _with_targets(models)))


def hash_of(names: Collection[str]) -> str:
    """Return a hash of the names of data migrations."""
    return mark_of(sorted(names))


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


class Rendered(NamedTuple):
    """A model's DDL: the statements of its table, its indexes by name, and by column the references that come last."""

    table: list[str]
    indexes: list[tuple[str, str]]
    deferred: list[tuple[str, str]]


def rendered(db: peewee.Database, model: ModelType) -> Rendered:
    """Return a model's DDL, which is not to be changed.

    It is kept with the model, for to render it takes longer than all the rest of a start. Threads may ask at once, for
    one engine or for both: what is kept is replaced as a whole.
    """
    return _kept(db, model)[1]


def _text(db: peewee.Database, model: ModelType) -> str:
    return _kept(db, model)[2]


def _kept(db: peewee.Database, model: ModelType) -> tuple[list[Any], Rendered, str]:
    """Return what a model's DDL was made of, the DDL, and all that the model declares as one text."""
    texts: dict[type, tuple[list[Any], Rendered, str]] = vars(model._meta).get(_KEPT_DDL, {})
    kept = texts.get(type(db))
    parts = _parts(db, model)
    if kept is None or len(kept[0]) != len(parts) or not all(map(is_, kept[0], parts)):
        meta = model._meta
        place = (meta.schema or "", meta.table_name, sorted(getattr(meta, "extensions", ())))
        ddl = Rendered(create_table(db, model), list(create_indexes(db, model)), deferred_foreign_keys(db, model))
        kept = (_parts(db, model), ddl, repr([place, *ddl]))  # rendering lets peewee fill caches of its own
        vars(model._meta)[_KEPT_DDL] = {**texts, type(db): kept}
    return kept


def _parts(db: peewee.Database, model: ModelType) -> list[Any]:
    """Return the objects that a model's DDL is made of; while they are the same ones, so is the DDL."""
    meta = model._meta
    facts = {**vars(meta), _KEPT_DDL: None}
    parts = [field_types(db), *facts.values()]
    parts += meta.indexes
    parts += meta.constraints or ()
    for field in meta.sorted_fields:
        parts += vars(field).values()
        parts += field.constraints or ()
    return parts
