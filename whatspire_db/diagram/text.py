"""Texts of names and values as pictures show them: escaped, with a width, cut where they are long."""

from __future__ import annotations

import html

from ..errors import printable
from ..letters import cells, fitting

ELLIPSIS = "…"


def plain(text: str) -> str:
    """Return a text in one line without control characters, lone surrogates, or what XML does not take."""
    shown = printable(text)
    return "".join(f"\\u{ord(c):04x}" if "\ud800" <= c <= "\udfff" or c in "\ufffe\uffff" else c for c in shown)


def escaped(text: str) -> str:
    """Return a text for XML and HTML, in an element and in a quoted attribute."""
    return html.escape(plain(text), quote=True)


def cut(text: str, width: int) -> str:
    """Return a text that takes at most so many columns; one that is longer ends in an ellipsis."""
    if cells(text) <= width:
        return text
    return text[: fitting(text, width - 1)].rstrip() + ELLIPSIS if width > 0 else ""
