"""A vector's numbers as each engine stores them, checked on the way in: 32-bit or 16-bit floating-point numbers."""

from __future__ import annotations

import json
import struct
import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import hypot, isfinite
from typing import Any

# Squares of longer or shorter vectors have no place in 32 bits, in which pgvector and sqlite-vec add them up.
SHORTEST, LONGEST = 1e-15, 1e18
NOT_NUMBERS = (TypeError, ValueError, OverflowError, struct.error)


class NotAVector(ValueError):
    """A value cannot be stored as a vector; `what` says why, and `hint` what to do."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what)
        self.what, self.hint = what, hint


@dataclass(frozen=True)
class Codec:
    """How the vectors of a column are stored.

    :param dimensions: how many numbers each has.
    :param type: vector, of 32-bit numbers, or halfvec, of 16-bit ones.
    :param refuses_zero: for cosine, which a vector without a direction has no distance by.
    """

    dimensions: int
    type: str = "vector"
    refuses_zero: bool = False

    @property
    def is_half(self) -> bool:
        return self.type == "halfvec"

    @property
    def length(self) -> int:
        """The bytes of a vector on SQLite."""
        return self.dimensions * (2 if self.is_half else 4)

    @property
    def declared(self) -> str:
        """The type of the column, on both engines."""
        return f"{self.type}({self.dimensions})"

    def numbers(self, value: Any) -> array[float]:
        """Return a value of the user's as it will be stored, in numbers of 32 bits.

        :raises NotAVector: for another dimension, for what is not a number or not finite, for a number that does not
            fit, and where a direction is needed for a vector without one.
        """
        found = self._rounded(value)
        if len(found) != self.dimensions:
            raise NotAVector(
                f"{self.dimensions:,} dimensions, not {len(found):,}", f"give {self.dimensions:,} numbers for a vector"
            )
        if self.refuses_zero and not SHORTEST < hypot(*found) < LONGEST:
            zero = not any(found)
            length = "a length of zero" if zero else f"a length outside {SHORTEST:g} to {LONGEST:g}"
            raise NotAVector(
                f"a vector with a direction, for its metric is cosine, and this one has {length}",
                'leave such vectors out, store NULL, or declare the field with metric="l2"',
            )
        return found

    def _rounded(self, value: Any) -> array[float]:
        try:
            found = _floats(value)
        except NOT_NUMBERS:
            raise _not_numbers(value) from None
        if not isfinite(sum(found)):
            raise _not_finite(value, "32")
        if self.is_half:
            try:
                return array("f", struct.unpack(f"<{len(found)}e", struct.pack(f"<{len(found)}e", *found)))
            except OverflowError:
                raise _not_finite(value, "16") from None
        return found

    def packed(self, found: array[float]) -> bytes:
        """Return checked numbers as SQLite stores them: little-endian, without a header."""
        if self.is_half:
            return struct.pack(f"<{len(found)}e", *found)
        return _little_endian(found).tobytes()

    def text(self, found: array[float]) -> str:
        """Return checked numbers as PostgreSQL reads them: nine digits are enough for every number of 32 bits."""
        return "[" + ",".join(["%.9g"] * len(found)) % tuple(found) + "]"

    def unpacked(self, stored: Any) -> array[float]:
        """Return the numbers that a driver gave: SQLite's bytes, PostgreSQL's text, or what pgvector makes of it.

        :raises ValueError: for what is none of these, or has another dimension.
        """
        found = self._unpacked(stored)
        if len(found) != self.dimensions:
            raise ValueError(f"{len(found)} dimensions")
        return found

    def _unpacked(self, stored: Any) -> array[float]:
        if isinstance(stored, (bytes, bytearray, memoryview)):
            if self.is_half:
                return array("f", [number for (number,) in struct.iter_unpack("<e", stored)])
            found = array("f")
            found.frombytes(stored)
            return _little_endian(found)
        if isinstance(stored, str):
            return array("f", json.loads(stored, parse_int=float))  # an integer would make 0 of -0
        return _floats(stored)


def _little_endian(found: array[float]) -> array[float]:
    if sys.byteorder == "big":
        found = found[:]
        found.byteswap()
    return found


def _floats(value: Any) -> array[float]:
    """Return numbers in 32 bits each; a number that does not fit becomes infinite."""
    if isinstance(value, (str, bytes, bytearray, memoryview, dict, set, frozenset)):
        raise TypeError
    kind = type(value)
    if (kind.__module__, kind.__name__) == ("numpy", "ndarray") and str(value.dtype) == "float32" and value.ndim == 1:
        return array("f", value.tobytes())
    found = _plain(value)
    if not isinstance(found, Sequence):
        raise TypeError
    return array("f", found)


def _plain(value: Any) -> Any:
    """Return the list of numbers of numpy, of array and their like, or of pgvector."""
    for name in ("tolist", "to_list"):
        if hasattr(value, name):
            return getattr(value, name)()
    return value


def _not_numbers(value: Any) -> NotAVector:
    kind = type(value).__name__
    hint = "give a list, a tuple, an array or a one-dimensional numpy array of numbers"
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, bytearray, memoryview, dict, set)):
        return NotAVector(f"numbers, and a value of type {kind} holds something else", hint)
    return NotAVector(f"a list of numbers, not a value of type {kind}", hint)


def _not_finite(value: Any, bits: str) -> NotAVector:
    if all(map(isfinite, _plain(value))):
        largest = "3.4e38" if bits == "32" else "65504"
        hint = "scale the vector" + ("" if bits == "32" else ', or declare the field with type="vector"')
        return NotAVector(f"numbers of {bits} bits, up to {largest}, and one is larger", hint)
    return NotAVector("finite numbers, and one is NaN or infinite", "leave such vectors out, or store NULL")
