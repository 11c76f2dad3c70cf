"""Rows a chunk at a time: many where they are small, few where they are large."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

Row = tuple[Any, ...]
Chunk = Sequence[Row]

FIRST, MOST = 10, 2000  # rows
BYTES = 4 << 20  # of a chunk, about
LOOKED_AT = 20  # rows of a chunk by which the next one is measured


def chunks(fetch: Callable[[int], Chunk]) -> Iterator[Chunk]:
    """Yield chunks of rows until there are no more.

    :param fetch: returns as many rows as it is asked for, and fewer only at the end.
    """
    size = FIRST
    while chunk := fetch(size):
        yield chunk
        size = _fitting(chunk)


def _fitting(chunk: Chunk) -> int:
    """Return how many rows like these make a chunk."""
    some = chunk[:: max(1, len(chunk) // LOOKED_AT)]
    total = sum(len(value) for row in some for value in row if isinstance(value, str | bytes | memoryview))
    return max(1, min(MOST, BYTES * len(some) // max(total, 1)))
