"""Rows a chunk at a time: many where they are small, few where they are large."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

Row = tuple[Any, ...]
Chunk = Sequence[Row]

FIRST, MOST = 10, 2000  # rows
BYTES = 4 << 20  # of a chunk, about
MOST_BYTES = 64 << 20  # of a chunk whose rows are larger than those before them
LOOKED_AT = 20  # rows of a chunk by which the next one is measured


def chunks(fetch: Callable[[int], Chunk], most: int = MOST) -> Iterator[Chunk]:
    """Yield chunks of rows until there are no more.

    :param fetch: returns as many rows as it is asked for, and fewer only at the end.
    :param most: how many rows it is asked for at the most; see `most_rows`.
    """
    size = min(FIRST, most)
    while chunk := fetch(size):
        yield chunk
        size = min(_fitting(chunk), most)


def most_rows(largest: int) -> int:
    """Return how many rows have room in memory, if all were as large as the largest one of a table, in bytes."""
    return max(1, min(MOST, MOST_BYTES // max(largest, 1)))


def _fitting(chunk: Chunk) -> int:
    """Return how many rows like these make a chunk."""
    some = chunk[:: max(1, len(chunk) // LOOKED_AT)]
    total = sum(len(value) for row in some for value in row if isinstance(value, str | bytes | memoryview))
    return max(1, min(MOST, BYTES * len(some) // max(total, 1)))
