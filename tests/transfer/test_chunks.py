"""Rows are read in chunks that fit into memory, however large the rows are."""

from __future__ import annotations

from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from whatspire_db.transfer.chunks import BYTES, FIRST, MOST, MOST_BYTES, chunks, most_rows


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(0, 5000))
def test_every_row_comes_once_and_in_order(widths: list[int], count: int) -> None:
    rows = iter([(number, "x" * (widths[number % len(widths)] if widths else 0)) for number in range(count)])
    found = list(chunks(lambda size: list(islice(rows, size))))
    assert [row[0] for chunk in found for row in chunk] == list(range(count))
    assert all(len(chunk) <= MOST for chunk in found)


def test_large_rows_come_one_by_one_and_small_ones_together() -> None:
    large = iter([(bytes(BYTES),)] * (FIRST + 3))
    assert [len(chunk) for chunk in chunks(lambda size: list(islice(large, size)))] == [FIRST, 1, 1, 1]
    large = iter([(bytes(BYTES),)] * 3)
    assert [len(chunk) for chunk in chunks(lambda size: list(islice(large, size)), most_rows(MOST_BYTES))] == [1, 1, 1]
    small = iter([(1, None, "x")] * (FIRST + 2 * MOST))
    assert [len(chunk) for chunk in chunks(lambda size: list(islice(small, size)))] == [FIRST, MOST, MOST]
