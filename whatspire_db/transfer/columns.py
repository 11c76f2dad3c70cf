"""From a column's type on PostgreSQL and the field that reads it to its kind."""

from __future__ import annotations

import re

import peewee

from ..errors import ModelError
from ..fields import InstantField
from ..vectors.codec import Codec
from .kinds import (
    INTEGERS,
    BooleanKind,
    BytesKind,
    FloatKind,
    IntegerKind,
    JsonKind,
    Kind,
    NumericKind,
    TextKind,
    UuidKind,
)
from .time_kinds import InstantKind, MomentKind
from .vector_kinds import VectorKind

VECTORS = ("vector", "halfvec")  # behind the schema of the extension, where search_path does not lead there

_MODIFIERS = re.compile(r"(?P<name>[^()]+?) ?(?:\((?P<first>-?\d+)(?:,(?P<second>-?\d+))?\))?(?P<rest> [a-z ]+)?")

_KINDS: dict[str, type[Kind]] = {
    **dict.fromkeys(("text", "character varying", "character", "citext"), TextKind),
    **dict.fromkeys(INTEGERS, IntegerKind),
    **dict.fromkeys(("real", "double precision"), FloatKind),
    **dict.fromkeys(("json", "jsonb"), JsonKind),
    **dict.fromkeys(("date", "time without time zone"), MomentKind),
    "boolean": BooleanKind,
    "numeric": NumericKind,
    "bytea": BytesKind,
    "uuid": UuidKind,
}


def kind_of(field: peewee.Field, type_: str, not_null: bool) -> Kind:
    """Return the kind of a column, from the type that it has on PostgreSQL and the field that reads it.

    :raises ModelError: for a type whose values this package cannot bring from one engine to the other.
    """
    match = _MODIFIERS.fullmatch(type_)
    found: type[Kind] | None = None
    if match is not None:
        name = match["name"] + (match["rest"] or "")
        modifiers = tuple(int(number) for number in (match["first"], match["second"]) if number is not None)
        if name in ("timestamp with time zone", "timestamp without time zone"):
            found = InstantKind if isinstance(field, InstantField) else MomentKind
        elif name.rpartition(".")[2] in VECTORS and isinstance(getattr(field, "codec", None), Codec):
            name, found = name.rpartition(".")[2], VectorKind
        else:
            found = _KINDS.get(name)
    if found is None:
        raise ModelError(
            f"{field.model._meta.table_name}.{field.column_name} has the type {type_}, which is not transferred",
            "leave the column's model out (--models), and bring its rows over yourself",
        )
    return found(field, name, modifiers, not_null)
