"""COPY into PostgreSQL through psycopg2: the stream that it reads, and values as its text format has them."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

NULL_TEXT = "\\N"
ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"})
BUFFER_BYTES = 1 << 20


class _Stream(io.RawIOBase):
    """What COPY reads: the chunks that an iterator makes. `error` is what it raised, which the driver puts in words."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._chunk, self._at = b"", 0
        self.error: BaseException | None = None

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while self._at >= len(self._chunk):
            try:
                chunk = next(self._chunks, None)
            except BaseException as error:
                self.error = error
                raise
            if chunk is None:
                return b""
            self._chunk, self._at = chunk, 0
        end = len(self._chunk) if size < 0 else self._at + size
        part, self._at = self._chunk[self._at : end], end
        return part


def copy_in(cursor: Any, place: str, columns: Sequence[str], lines: Iterable[bytes]) -> None:
    """Copy chunks of lines into columns of a table; all of these names are quoted.

    What making the lines raises is raised as it is.
    """
    stream = _Stream(lines)
    try:
        statement = f"COPY {place} ({', '.join(columns)}) FROM STDIN WITH (ENCODING 'UTF8')"
        with _first_error():
            cursor.copy_expert(statement, stream, BUFFER_BYTES)
    except Exception as error:
        if stream.error is not None:
            raise stream.error from None
        if "KeyboardInterrupt" in str(error):  # a signal just before a read, of which the driver keeps the words alone
            raise KeyboardInterrupt from None
        raise


@contextmanager
def _first_error() -> Iterator[None]:
    """Raise why a server ended the session during a COPY.

    The driver prints that as an uncaught exception, with a traceback, and raises that the connection is lost.
    """
    before, found = sys.excepthook, []

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if kind is SystemError and error.__cause__ is not None:
            found.append(error.__cause__)
        else:
            before(kind, error, trace)

    sys.excepthook = hook
    try:
        yield
    except Exception as error:
        if found:
            raise found[0] from error
        raise
    finally:
        sys.excepthook = before


def lines_of(columns: Sequence[Sequence[str]]) -> bytes:
    """Return rows as COPY takes them, from the texts of each column."""
    return ("\n".join(map("\t".join, zip(*columns, strict=True))) + "\n").encode()
