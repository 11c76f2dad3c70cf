"""Kinds of columns, but for times: how the values of each are checked, copied, compared and brought back.

A value of SQLite's is here as the driver gives it, with texts decoded by `TEXTS`: bytes are always a BLOB.
"""

from __future__ import annotations

import math
import re
import struct
import uuid
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Context, Decimal, InvalidOperation
from fractions import Fraction
from functools import partial
from typing import Any

import peewee

from ..copy_in import ESCAPES, NULL_TEXT
from ..fields import UNREADABLE
from . import faults
from .json_values import json_doubt, json_fault, levelled

# A byte that is no UTF-8 becomes a lone surrogate, which no valid text holds.
TEXTS = partial(str, encoding="utf-8", errors="surrogateescape")
ALL_DIGITS = Context(prec=131072 + 16383)  # as many as a numeric has; Python's own context rounds to 28
INTEGERS = {"smallint": 15, "integer": 31, "bigint": 63}
MOST_DIGITS = 19  # of a bigint
MOST_EXACT = 1 << 53  # up to here a double has every whole number


def is_text(c: str) -> str:
    """Return the SQL condition for a text of which SQLite's functions see all: they end at a zero byte."""
    return f"typeof({c}) = 'text' AND instr({c}, char(0)) = 0"


class Kind:
    """Any column: what kinds of columns have in common.

    :param name: the type at the PostgreSQL side, without modifiers.
    :param modifiers: a length, or precision and scale.
    """

    reads_text = False  # its texts are looked at for bytes that are no UTF-8

    def __init__(self, field: peewee.Field, name: str, modifiers: tuple[int, ...], not_null: bool) -> None:
        self.field, self.name, self.modifiers, self.not_null = field, name, modifiers, not_null
        self.shortened = 0  # times whose digits beyond the microsecond were cut

    def doubt(self, c: str) -> str:
        """Return an SQL condition that holds for every value with a fault, and few others; `c` is the column."""
        raise NotImplementedError

    def fault(self, value: Any) -> str | None:
        """Return the kind of fault of a value that is not None."""
        raise NotImplementedError

    def mended(self, value: Any) -> Any:
        """Return what takes the place of a value with a fault; None where nothing is near it."""
        return None

    def text(self, value: Any) -> str:
        """Return a value that is not None as COPY takes it."""
        raise NotImplementedError

    def texts(self, values: Sequence[Any]) -> Sequence[str]:
        """Return many values as COPY takes them."""
        text = self.text
        return [NULL_TEXT if value is None else text(value) for value in values]

    def of_sqlite(self, value: Any) -> Any:
        """Return a stored value as both sides must read it."""
        return value

    def at_postgres(self, c: str) -> str:
        """Return what to ask PostgreSQL for; `c` is the column."""
        return c

    def of_postgres(self, value: Any) -> Any:
        """Return a value of the driver's as both sides must read it."""
        return value

    def stored(self, value: Any) -> Any:
        """Return a value of PostgreSQL's as SQLite stores it."""
        return value


class TextKind(Kind):
    """text, varchar, char, citext: a number is read as its text."""

    reads_text = True

    def doubt(self, c: str) -> str:
        too_long = f" OR length({c}) > {self.modifiers[0]}" if self.modifiers else ""
        return f"typeof({c}) = 'blob' OR instr({c}, char(0)){too_long}"

    def fault(self, value: Any) -> str | None:
        if isinstance(value, bytes):
            return faults.TYPE
        value = str(value)
        if "\0" in value:
            return faults.NUL
        if _is_no_utf8(value):
            return faults.ENCODING
        return faults.LENGTH if self.modifiers and len(value) > self.modifiers[0] else None

    def mended(self, value: Any) -> str:
        text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
        text = re.sub("[\0\ud800-\udfff]", "\ufffd", text)
        return text[: self.modifiers[0]] if self.modifiers else text

    def text(self, value: Any) -> str:
        return str(value).translate(ESCAPES)

    def texts(self, values: Sequence[Any]) -> Sequence[str]:
        try:
            joined = "".join(values)
        except TypeError:  # NULL, or a number
            return super().texts(values)
        return super().texts(values) if re.search(r"[\\\n\r\t]", joined) else values

    def of_sqlite(self, value: Any) -> str:
        return self.of_postgres(str(value))

    def of_postgres(self, value: str) -> str:
        return value.rstrip(" ") if self.name == "character" else value


class IntegerKind(Kind):
    """smallint, integer, bigint."""

    @property
    def limit(self) -> int:
        return 1 << INTEGERS[self.name]

    def doubt(self, c: str) -> str:
        range_ = "" if self.name == "bigint" else f" OR {c} NOT BETWEEN {-self.limit} AND {self.limit - 1}"
        return f"typeof({c}) NOT IN ('integer', 'null'){range_}"

    def fault(self, value: Any) -> str | None:
        if isinstance(value, float) and not -self.limit <= value < self.limit:
            return faults.RANGE
        if not isinstance(value, int):
            return faults.TYPE
        return None if -self.limit <= value < self.limit else faults.RANGE

    def mended(self, value: Any) -> int | None:
        try:
            number = Decimal(value.decode() if isinstance(value, bytes) else value)
            whole = int(number) if number.adjusted() < MOST_DIGITS else None  # 1e999999999 has no room in memory
        except (ArithmeticError, ValueError):
            return None
        return whole if whole is not None and whole == number and self.fault(whole) is None else None

    def text(self, value: Any) -> str:
        return str(value)

    def texts(self, values: Sequence[Any]) -> Sequence[str]:
        return [NULL_TEXT if value is None else str(value) for value in values]


class BooleanKind(Kind):
    """boolean: 1 and 0."""

    def doubt(self, c: str) -> str:
        return f"typeof({c}) NOT IN ('integer', 'null') OR {c} NOT IN (0, 1)"

    def fault(self, value: Any) -> str | None:
        return None if isinstance(value, int) and value in (0, 1) else faults.TYPE

    def mended(self, value: Any) -> int:
        return int(bool(value))

    def text(self, value: Any) -> str:
        return "t" if value else "f"

    def of_sqlite(self, value: Any) -> bool:
        return bool(self.field.python_value(value))

    def of_postgres(self, value: Any) -> bool:
        return bool(self.field.python_value(value))

    def stored(self, value: Any) -> int:
        return int(value)


class FloatKind(Kind):
    """real, double precision: infinity is a number of both engines; SQLite has no NaN."""

    def doubt(self, c: str) -> str:
        if self.name == "real":
            return f"{c} IS NOT NULL"
        is_exact = f"typeof({c}) = 'integer' AND {c} BETWEEN {-MOST_EXACT} AND {MOST_EXACT}"
        return f"NOT (typeof({c}) IN ('real', 'null') OR ({is_exact}))"

    def fault(self, value: Any) -> str | None:
        if not isinstance(value, int | float):
            return faults.TYPE
        if self.name == "real":
            try:
                return None if _as_real(value) == value else faults.PRECISION
            except OverflowError:
                return faults.RANGE
        return None if not isinstance(value, int) or int(float(value)) == value else faults.PRECISION

    def mended(self, value: Any) -> float | None:
        try:
            number = float(value)
            return _as_real(number) if self.name == "real" else number
        except (ValueError, OverflowError):
            return None

    def text(self, value: Any) -> str:
        return repr(float(value))

    def of_sqlite(self, value: Any) -> float:
        return float(value) + 0.0  # SQLite keeps no -0.0

    def of_postgres(self, value: Any) -> float:
        return float(value) + 0.0


class NumericKind(Kind):
    """numeric(precision, scale)."""

    def doubt(self, c: str) -> str:
        return f"{c} IS NOT NULL" if self.modifiers else f"typeof({c}) NOT IN ('integer', 'null')"

    def fault(self, value: Any) -> str | None:
        number = self._number(value)
        if number is None:
            return faults.TYPE
        if not number.is_finite() or (self.modifiers and self._rounded(number).copy_abs() >= self._limit):
            return faults.RANGE
        return faults.PRECISION if self.modifiers and self._rounded(number) != number else None

    @property
    def _limit(self) -> Decimal:
        precision, scale = (*self.modifiers, 0)[:2]
        return Decimal(10) ** (precision - scale)

    def _rounded(self, number: Decimal) -> Decimal:
        try:
            return number.quantize(Decimal(1).scaleb(-(*self.modifiers, 0)[1]), ROUND_HALF_UP, ALL_DIGITS)
        except InvalidOperation:  # more digits than a numeric has
            return number

    def _number(self, value: Any) -> Decimal | None:
        try:
            return None if isinstance(value, bytes) else Decimal(str(value))
        except InvalidOperation:
            return None

    def mended(self, value: Any) -> Any:
        number = self._number(value)
        if number is None or not number.is_finite():
            return None
        return None if self.fault(str(self._rounded(number))) else str(self._rounded(number))

    def text(self, value: Any) -> str:
        return str(Decimal(str(value)))

    def of_sqlite(self, value: Any) -> Any:
        return self.of_postgres(value)

    def of_postgres(self, value: Any) -> Any:
        number = Decimal(str(self.field.python_value(value)))
        return str(number.normalize(ALL_DIGITS) if number else 0)  # no trailing zeros, and no -0

    def stored(self, value: Any) -> str:
        return str(value)


class BytesKind(Kind):
    """bytea: a text counts as its UTF-8 bytes where the field reads it so."""

    def doubt(self, c: str) -> str:
        return f"typeof({c}) NOT IN ('blob', 'null')"

    def fault(self, value: Any) -> str | None:
        if isinstance(value, bytes) or (isinstance(value, str) and hasattr(self.field, "holds_bytes")):
            return None
        return faults.TYPE

    def mended(self, value: Any) -> bytes:
        return str(value).encode(errors="surrogateescape")

    def text(self, value: Any) -> str:
        return "\\\\x" + self.of_sqlite(value).hex()

    def of_sqlite(self, value: Any) -> bytes:
        return value if isinstance(value, bytes) else value.encode(errors="surrogateescape")

    def of_postgres(self, value: Any) -> bytes:
        return bytes(value)

    def stored(self, value: Any) -> bytes:
        return bytes(value)


class UuidKind(Kind):
    """uuid: 32 hexadecimal digits or 16 bytes on SQLite."""

    def doubt(self, c: str) -> str:
        plain = f"{is_text(c)} AND length({c}) = 32 AND {c} NOT GLOB '*[^0-9a-fA-F]*'"
        return f"{c} IS NOT NULL AND NOT ({plain})"

    def fault(self, value: Any) -> str | None:
        return faults.TYPE if self._read(value) is None else None

    def _read(self, value: Any) -> uuid.UUID | None:
        try:
            if isinstance(value, bytes):
                return uuid.UUID(bytes=value)
            return value if isinstance(value, uuid.UUID) else uuid.UUID(value)
        except UNREADABLE:
            return None

    def text(self, value: Any) -> str:
        return str(self._read(value))

    def of_sqlite(self, value: Any) -> Any:
        return str(self._read(value))

    def of_postgres(self, value: Any) -> Any:
        return str(self._read(value))

    def stored(self, value: Any) -> Any:
        found = self._read(value)
        return (found.bytes if isinstance(self.field, peewee.BinaryUUIDField) else found.hex) if found else None


class JsonKind(Kind):
    """json and jsonb; SQLite makes a number of a text that looks like one."""

    reads_text = True

    def doubt(self, c: str) -> str:
        plain = f"{is_text(c)} AND json_valid({c}) AND instr({c}, '\\u') = 0 AND NOT ({json_doubt(c)})"
        return f"{c} IS NOT NULL AND NOT ({plain})"

    def fault(self, value: Any) -> str | None:
        if isinstance(value, bytes):
            return faults.TYPE
        if _is_no_utf8(str(value)):
            return faults.ENCODING
        return json_fault(str(value), self.name == "jsonb")

    def text(self, value: Any) -> str:
        return str(value).translate(ESCAPES)

    def of_sqlite(self, value: Any) -> str:
        return levelled(str(value))

    def at_postgres(self, c: str) -> str:
        return f"{c}::pg_catalog.text"  # the driver reads numbers as floats, and JSON's null as NULL

    def of_postgres(self, value: Any) -> str:
        return levelled(value)


def _is_no_utf8(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)


def _as_real(value: float) -> float:
    """Return a number as PostgreSQL's real is read: the shortest text that means its four bytes.

    A text halfway between two numbers also means one of them; PostgreSQL does not print it.
    """
    (kept,) = struct.unpack("<f", struct.pack("<f", value))
    if kept == 0 or math.isinf(kept):
        return kept
    low, high = sorted((kept + _next_real(kept, step)) / 2 for step in (-1, 1))
    texts = (f"{kept:.{digits}g}" for digits in range(1, 10))
    return next(float(text) for text in texts if low < Fraction(text) < high)


def _next_real(kept: float, step: int) -> float:
    """Return the next number of four bytes, away from zero or towards it; after the largest, where it would be."""
    (bits,) = struct.unpack("<I", struct.pack("<f", kept))
    (found,) = struct.unpack("<f", struct.pack("<I", bits + step))
    return math.copysign(2.0**128, kept) if math.isinf(found) else found
