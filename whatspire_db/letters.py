"""How wide a text is, in columns of a terminal or letters of a monospaced font."""

from __future__ import annotations

import unicodedata


def cells(text: str) -> int:
    """Return how many columns a text takes: a wide letter takes two, and one that joins the letter before it none."""
    return len(text) if text.isascii() else sum(map(_cells, text))


def _cells(letter: str) -> int:
    if unicodedata.category(letter) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def fitting(text: str, room: int) -> int:
    """Return how many letters of a text fit into so many columns."""
    taken = 0
    for number, letter in enumerate(text):
        taken += _cells(letter)
        if taken > room:
            return number
    return len(text)
