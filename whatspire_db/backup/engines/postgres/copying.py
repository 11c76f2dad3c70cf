"""Fingerprints of tables that are not safe to query: their rows are copied, and hashed away from the table.

To plan a query, PostgreSQL evaluates the constant parts of a table's index and statistics expressions. In a superuser's
session that runs functions of the table's owner as superuser. COPY plans nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from .server import Session

BATCH_BYTES = 1 << 20
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_CHARACTERS = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}


class Fingerprint:
    """The number of rows and the sum of their hashes, of the text that COPY writes into it.

    :param hashing: a session that computes hashes; the one that copies is busy.
    :param width: the number of columns.
    """

    def __init__(self, hashing: Session, width: int, encoding: str) -> None:
        self.rows = self.total = 0
        self._hashing, self._width, self._encoding = hashing, width, encoding
        self._begun = b""  # a line whose end is still to come
        self._plain: list[bytes] = []  # lines that the server can take apart itself
        self._escaped: list[list[bytes | None]] = []  # rows with a value that COPY had to escape
        self._size = 0

    def write(self, data: bytes) -> int:
        """Take some of COPY's output, in its text format."""
        *lines, self._begun = (self._begun + data).split(b"\n")
        for line in lines:
            if b"\\" in line.replace(rb"\N", b""):
                self._escaped.append([_value(field) for field in line.split(b"\t")])
            else:
                self._plain.append(line)
        self._size += len(data)
        if self._size >= BATCH_BYTES:
            self.flush()
        return len(data)

    def flush(self) -> None:
        """Hash the rows that are complete."""
        plain, escaped = self._plain, self._escaped
        self._plain, self._escaped, self._size = [], [], 0
        if plain:
            self._add(len(plain), *self._plain_rows(plain))
        if escaped:
            self._add(len(escaped), *self._escaped_rows(escaped))

    def _add(self, rows: int, row: str, source: str, *values: Any) -> None:
        self.total += int(
            self._hashing.value(f"SELECT sum(hashtextextended(ROW({row})::text, 0))::text FROM {source}", *values)
        )
        self.rows += rows

    def _plain_rows(self, lines: Sequence[bytes]) -> tuple[Any, ...]:
        """Return a row's expressions, a FROM clause, and its values."""
        if not self._width:
            return "", "generate_series(1, %s)", len(lines)
        # An empty text has no parts for string_to_array, so a line is put behind the last one and left out again.
        text = "string_to_array(convert_from(%s, %s), E'\\n')"
        source = f"unnest({text}) WITH ORDINALITY AS given (line, number)"
        if self._width == 1:
            row, split = "CASE WHEN line <> '\\N' THEN line END", source
        else:
            row = ", ".join(f"part[{number}]" for number in range(1, self._width + 1))
            split = f"{source}, string_to_array(line, E'\\t', '\\N') AS part"
        return row, f"{split} WHERE number <= %s", b"\n".join([*lines, b""]), self._encoding, len(lines)

    def _escaped_rows(self, rows: Sequence[Sequence[bytes | None]]) -> tuple[Any, ...]:
        names = [f"c{number}" for number in range(self._width)]
        row = ", ".join(f"convert_from({name}, encoding)" for name in names)
        arrays = ", ".join(["%s::bytea[]"] * self._width)
        source = f"unnest({arrays}) AS given ({', '.join(names)}), (VALUES (%s::name)) AS known (encoding)"
        return row, source, *map(list, zip(*rows, strict=True)), self._encoding


class _Texts:
    """Collects what COPY writes."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> int:
        self.data += data
        return len(data)


def fingerprint(reading: Session, hashing: Session, name: str, columns: Sequence[str]) -> tuple[int, str]:
    """Return a table's number of rows and its fingerprint, the same that a query would compute.

    :param columns: quoted; none of them generated, which COPY does not give.
    """
    encoding = reading.value("SHOW server_encoding")
    found = Fingerprint(hashing, len(columns), encoding)
    _copy(reading, name, columns, encoding, found)
    found.flush()
    return found.rows, str(found.total)


def newest(reading: Session, name: str) -> int:
    """Return the highest number in a table's column `version`; 0 without rows."""
    texts = _Texts()
    _copy(reading, name, ["version"], reading.value("SHOW server_encoding"), texts)
    return max((int(text) for text in bytes(texts.data).split() if text != rb"\N"), default=0)


def _copy(reading: Session, name: str, columns: Sequence[str], encoding: str, file: Any) -> None:
    listed = f" ({', '.join(columns)})" if columns else ""
    reading.copy(f"COPY {name}{listed} TO STDOUT (ENCODING '{encoding}')", file)


def _value(field: bytes) -> bytes | None:
    if field == rb"\N":
        return None
    return field if b"\\" not in field else _ESCAPED.sub(lambda found: _CHARACTERS.get(found[1], found[1]), field)
