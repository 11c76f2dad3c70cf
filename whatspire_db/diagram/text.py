"""Texts of names and values as pictures show them: escaped, with a width, cut where they are long."""

from __future__ import annotations

import html
import unicodedata

from ..errors import printable

ELLIPSIS = "…"


def plain(text: str) -> str:
    """Return a text in one line without control characters, lone surrogates, or what XML does not take."""
    shown = printable(text)
    return "".join(f"\\u{ord(c):04x}" if "\ud800" <= c <= "\udfff" or c in "\ufffe\uffff" else c for c in shown)


def escaped(text: str) -> str:
    """Return a text for XML and HTML, in an element and in a quoted attribute."""
    return html.escape(plain(text), quote=True)


def cells(text: str) -> int:
    """Return how many columns of a terminal, or letters of a monospaced font, a text takes."""
    if text.isascii():
        return len(text)
    return sum(map(_cells, text))


def _cells(letter: str) -> int:
    if unicodedata.combining(letter) or unicodedata.category(letter) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def cut(text: str, width: int) -> str:
    """Return a text that takes at most so many columns; one that is longer ends in an ellipsis."""
    if cells(text) <= width:
        return text
    kept, left = "", width - 1
    for letter in text:
        if (left := left - _cells(letter)) < 0:
            break
        kept += letter
    return kept.rstrip() + ELLIPSIS if width > 0 else ""
