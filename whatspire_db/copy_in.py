"""COPY into PostgreSQL through psycopg2: the stream that it reads, and values as its text format has them."""

from __future__ import annotations

import io
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock, get_ident
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


class _Hook:
    """What Python calls for uncaught exceptions while COPYs run: keeps why a server ended a session, by thread."""

    def __init__(self, before: Callable[..., Any]) -> None:
        self.before, self.found = before, defaultdict[int, list[BaseException]](list)
        self.users = 0

    def __call__(self, kind: type[BaseException], error: BaseException, trace: Any) -> None:
        found = self.found.get(get_ident())
        if found is None or kind is not SystemError or error.__cause__ is None:
            self.before(kind, error, trace)
        else:
            found.append(error.__cause__)


_hook: _Hook | None = None
_hooking = Lock()


@contextmanager
def _hooked() -> Iterator[list[BaseException]]:
    """Have one hook for all threads that copy, for as long as one of them does; yield what it finds for this one."""
    global _hook
    with _hooking:
        if _hook is None:
            _hook = sys.excepthook = _Hook(sys.excepthook)
        hook = _hook
        hook.users += 1
        found = hook.found[get_ident()]
    try:
        yield found
    finally:
        with _hooking:
            hook.users -= 1
            if not hook.users:
                _hook = None
                if sys.excepthook is hook:
                    sys.excepthook = hook.before


@contextmanager
def _first_error() -> Iterator[None]:
    """Raise why a server ended the session during a COPY.

    The driver prints that as an uncaught exception, with a traceback, and raises that the connection is lost.
    """
    with _hooked() as found:
        try:
            yield
        except Exception as error:
            if found:
                raise found.pop() from error
            raise


def lines_of(columns: Sequence[Sequence[str]]) -> bytes:
    """Return rows as COPY takes them, from the texts of each column."""
    return ("\n".join(map("\t".join, zip(*columns, strict=True))) + "\n").encode()
