"""Columns of vectors: bytes on SQLite, pgvector's text on PostgreSQL, and the same bits on both."""

from __future__ import annotations

from math import isfinite
from typing import Any

from ..vectors.codec import Codec
from . import faults
from .kinds import Kind


class VectorKind(Kind):
    """vector and halfvec, as a VectorField stores them."""

    @property
    def codec(self) -> Codec:
        return Codec(self.modifiers[0], self.name)

    def doubt(self, c: str) -> str:
        return f"{c} IS NOT NULL"  # SQLite sees no NaN in a BLOB

    def fault(self, value: Any) -> str | None:
        if not isinstance(value, bytes) or len(value) != self.codec.length:
            return faults.TYPE
        return None if isfinite(sum(self.codec.unpacked(value))) else faults.RANGE

    def text(self, value: Any) -> str:
        codec = self.codec
        return codec.text(codec.unpacked(value))

    def of_postgres(self, value: Any) -> bytes:
        codec = self.codec
        return codec.packed(codec.unpacked(value))

    def stored(self, value: Any) -> bytes:
        return self.of_postgres(value)
