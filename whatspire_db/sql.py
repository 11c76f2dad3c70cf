"""What modules about SQL share: quoted names, and queries that nothing in PostgreSQL's search_path can change."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from .light_stdlib import Any, pattern

# A name without quotes, on either engine. One class for each place: where two classes match the same letters, a long
# name beyond ASCII that does not match after all is tried in every combination.
WORD = r"[A-Za-z_\x80-\U0010ffff][\w$\x80-\U0010ffff]*"
_TOKEN = pattern(
    r"""(?P<skip>'(?:[^']|'')*'|--[^\n]*|%%|%s|\s+)
    |(?P<cast>::\s*)
    |(?P<word>"(?:[^"]|"")*"|[A-Za-z_]\w*)
    |(?P<operator>[-+/<>=~!@#&|^]+)
    |(?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
# What may stand before a parenthesis without being a function of the catalog's. COALESCE and GREATEST call no operator
# that search_path decides on.
_SYNTAX_WORDS = (
    "all and any array as by coalesce conflict distinct else exists filter from greatest having in lateral least "
    "materialized not on operator or order over partition select then union using values when where with within"
)
_SYNTAX = frozenset(_SYNTAX_WORDS.split())
# Types that are words of the grammar, which always means pg_catalog's.
_GRAMMAR_WORDS = "bigint bit boolean char dec decimal float int integer numeric real smallint"
_GRAMMAR_TYPES = frozenset(_GRAMMAR_WORDS.split())
# Syntax that calls an operator by its bare name, which search_path decides on.
_HIDDEN = frozenset({"between", "in", "like", "ilike", "similar", "nullif", "overlaps"})

# A condition on a row of pg_class: a query of the relation runs no code of its owner with rights above the owner's. A
# view runs functions when it is read, and for a table's indexes alone the planner evaluates constant parts of their
# expressions. Whoever may run programs on the server, as every superuser may, can do everything anyway.
_IS_MIGHTY = "pg_has_role({}, 'pg_execute_server_program', 'MEMBER')"
SAFE_TO_QUERY = (
    f"relkind = ANY ('{{r,p}}') AND ({_IS_MIGHTY.format('relowner')} "
    f"OR NOT ({_IS_MIGHTY.format('current_user')} OR {_IS_MIGHTY.format('session_user')}))"
)


def version_of(text: str) -> tuple[int, ...]:
    """Return the numbers of a version, as of an extension, in their order; such versions can be compared."""
    return tuple(map(int, re.findall(r"\d+", text)))


def quoted(name: str) -> str:
    """Return a name as SQL takes it, on either engine."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Quote a text as PostgreSQL takes it, whatever standard_conforming_strings says."""
    in_quotes = "'" + text.replace("'", "''") + "'"
    return "E" + in_quotes.replace("\\", "\\\\") if "\\" in text else in_quotes


class _Text:
    """A text that psycopg2 writes as `literal` does."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._encoding = "utf-8"

    def __repr__(self) -> str:
        return repr(self._text)

    def __conform__(self, protocol: object) -> _Text:
        return self

    def prepare(self, connection: Any) -> None:
        from psycopg2.extensions import encodings

        self._encoding = encodings[connection.encoding]

    def getquoted(self) -> bytes:
        return literal(self._text).encode(self._encoding)


def written(value: Any) -> Any:
    """Return a value whose texts psycopg2 writes so that standard_conforming_strings does not change their meaning."""
    if isinstance(value, list | tuple):
        return type(value)(map(written, value))
    return _Text(value) if isinstance(value, str) and "\\" in value else value


@lru_cache(maxsize=256)
def pinned(sql: str) -> str:
    """Return a query whose functions, operators, types and pg_ relations are those of pg_catalog.

    A function or an operator that somebody made in a schema of the search_path can fit a call better than
    PostgreSQL's own; a qualified name leaves no choice. All operators of a pinned query bind alike, from the left:
    put what belongs together into parentheses.

    :raises ValueError: for syntax that calls an operator without naming it, like IN; write = ANY (...) instead.
    """
    return "".join(_pinned([(token.lastgroup, token.group()) for token in _TOKEN.finditer(sql)]))


def _pinned(tokens: Sequence[tuple[str | None, str]]) -> Iterator[str]:
    last = ""  # the token before, spaces and comments left out
    for number, (kind, text) in enumerate(tokens):
        if kind == "skip" and (text.isspace() or text.startswith("--")):
            yield text
            continue
        if kind == "word":
            yield _qualified(text, last, _next(tokens, number))
        else:
            yield f"OPERATOR(pg_catalog.{text})" if kind == "operator" and last != "." else text
        last = text.strip().lower()


def _next(tokens: Sequence[tuple[str | None, str]], number: int) -> str:
    following = (text.lower() for _, text in tokens[number + 1 : number + 4] if not text.isspace())
    return next(following, "")


def _qualified(word: str, last: str, following: str) -> str:
    name = word.lower()
    if name in _HIDDEN or (name == "distinct" and last == "is") or (name == "case" and following != "when"):
        raise ValueError(f"{word} in a pinned query calls an operator of the search_path")
    if "." in (last, following):
        return word
    if last == "::":
        return word if name in _GRAMMAR_TYPES else f"pg_catalog.{word}"
    is_function = following == "(" and last not in ("as", "with") and name not in _SYNTAX
    is_relation = name.startswith("pg_") and last in ("from", "join")
    return f"pg_catalog.{word}" if is_function or is_relation else word
