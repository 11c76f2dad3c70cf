"""What only the text of CREATE TABLE and CREATE INDEX says in SQLite: checks, collations, expressions.

The grammar is that of https://www.sqlite.org/lang_createtable.html and lang_createindex.html. The texts
come from sqlite_schema, so SQLite has accepted them before.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from whatspire_db.light_stdlib import NamedTuple
from whatspire_db.migrate.ddl import quote_text
from whatspire_db.migrate.schema import folded_ascii
from whatspire_db.sql import WORD

_TOKEN = re.compile(
    rf"""(?P<skip>\s+|--[^\n]*|/\*.*?(?:\*/|\Z))
      |(?P<string>[xX]?'(?:[^']|'')*')
      |(?P<quoted>"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\])
      |(?P<word>{WORD})
      |(?P<number>0[xX][0-9a-fA-F_]+|(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][+-]?\d[\d_]*)?)
      |(?P<other>->>|->|\|\||<=|>=|<>|==|!=|<<|>>|.)""",
    re.VERBOSE | re.DOTALL,
)


# Words of which one is in every CREATE TABLE that says more than the pragmas.
_SAYS_MORE = re.compile(
    r"\b(?:as|autoincrement|check|collate|conflict|desc|references|strict|without)\b", re.IGNORECASE | re.ASCII
)
# Keywords that SQLite does not take, or reads as something else, where they are a name without quotes.
_RESERVED_WORDS = """
add all alter and as autoincrement between case cast check collate commit constraint create current_date
current_time current_timestamp default deferrable delete distinct drop else escape except exists foreign from
group having in index insert intersect into is isnull join limit not nothing notnull null on or order primary
raise references returning select set table then to transaction union unique update using values when where
"""
_RESERVED = frozenset(_RESERVED_WORDS.split())
# Two ways to write one thing.
_SPELLINGS = {"!=": "<>", "==": "=", "isnull": "is null", "notnull": "is not null"}
_ROWIDS = frozenset(("rowid", "oid", "_rowid_"))
_CONSTANTS = {"true": "1", "false": "0"}
_CLOCKS = ("current_date", "current_time", "current_timestamp")
_LARGEST = 2**63 - 1  # of an integer; what is larger is a real


class Token(NamedTuple):
    """A token of SQL.

    `text` is its canonical form, which SQLite reads as it reads the original: names in lower case, in quotes
    only where they need them. `name` is the name itself, where the token stands for one, and `literal` the string
    that it is where no column has that name.
    """

    kind: str
    text: str
    name: str
    start: int
    end: int
    literal: str | None = None

    def is_word(self, *words: str) -> bool:
        return self.kind == "word" and self.text in words


@dataclass(frozen=True)
class Check:
    """A CHECK constraint: its expression in canonical form and as written."""

    name: str
    expression: str
    sql: str
    words: frozenset[str]  # every identifier in it
    inline: str | None


@dataclass(frozen=True)
class Reference:
    """A FOREIGN KEY clause: what the pragma does not tell of it."""

    columns: tuple[str, ...]
    name: str
    deferrable: str


@dataclass
class TableText:
    """What the text of a CREATE TABLE says beyond the pragmas."""

    collations: dict[str, str] = field(default_factory=dict)
    generated: dict[str, str] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    references: list[Reference] = field(default_factory=list)
    options: tuple[str, ...] = ()


def tokenize(sql: str) -> list[Token]:
    """Split SQL into tokens, without space and comments."""
    tokens = []
    for match in _TOKEN.finditer(sql):
        kind, text = str(match.lastgroup), match.group()
        if kind != "skip":
            tokens.append(_token(kind, text, match.start(), match.end()))
    return tokens


def _token(kind: str, text: str, start: int, end: int) -> Token:
    if kind not in ("quoted", "string"):
        lower = folded_ascii(text)
        shown = _number(lower) if kind == "number" else _SPELLINGS.get(lower, lower)
        return Token(kind, shown, lower, start, end)
    if text[0] in "xX":
        return Token(kind, text.lower(), "", start, end)
    inner = text[1:-1].replace(text[0] * 2, text[0])
    name = folded_ascii(inner)
    if kind == "string":
        return Token(kind, text, name, start, end)
    plain = re.fullmatch(WORD, name) and name not in _RESERVED
    shown = name if plain else '"' + name.replace('"', '""') + '"'
    return Token(kind, shown, name, start, end, quote_text(inner) if text[0] == '"' else None)


def _number(text: str) -> str:
    """Return a number as SQLite shows it: 0x10 is 16, 1.50 is 1.5, and an integer of more than 64 bits a real."""
    text = text.replace("_", "")
    if text.startswith("0x"):
        value = int(text, 16)
        return str(value) if value <= _LARGEST else text
    if text.isdigit() and int(text) <= _LARGEST:
        return str(int(text))
    return repr(float(text))


def canonical_default(sql: str | None) -> str | None:
    """Return a column's default in canonical form: a word is a text, TRUE is 1, +1 is 1, and NULL is no default."""
    if sql is None:
        return None
    tokens = _stripped(tokenize(sql))
    if len(tokens) == 2 and tokens[0].text == "+" and tokens[1].kind == "number":
        tokens = tokens[1:]
    if len(tokens) == 1:
        only = tokens[0]
        if only.is_word("null"):
            return None
        if only.kind == "quoted" or (only.kind == "word" and not only.is_word(*_CONSTANTS, *_CLOCKS)):
            written = sql[only.start : only.end]
            return only.literal or quote_text(written if only.kind == "word" else written[1:-1])
        return _CONSTANTS.get(only.text, only.text) if only.kind == "word" else only.text
    return _join(tokens, ())


def canonical_arguments(sql: str) -> str:
    """Return the arguments of a virtual table in canonical form: what follows a `=` is a text, whatever its quotes."""
    found, is_value = [], False
    for token in tokenize(sql):
        if token.kind == "other" and token.text in ",=":
            is_value = token.text == "="
        found.append(token.literal if is_value and token.literal is not None else token.text)
    return " ".join(found)


def without_comments(text: str) -> str:
    """Return a column's type without the comments that SQLite keeps in it."""
    if "--" not in text and "/*" not in text:
        return text
    return " ".join(text[token.start : token.end] for token in tokenize(text))


def canonical(sql: str | None, columns: Collection[str] | None = None) -> str | None:
    """Return an expression in a form that does not depend on quotes, space, case and outer parentheses.

    :param columns: the table's columns in lower case: anything else in double quotes is a string. Default: everything
        in double quotes is a name.
    """
    return None if sql is None else _join(tokenize(sql), columns)


def _join(tokens: Sequence[Token], columns: Collection[str] | None) -> str:
    tokens = _stripped(tokens)
    texts = [_read(tokens, position, columns) for position in range(len(tokens))]
    for position in range(1, len(tokens) - 1):
        if (
            tokens[position].is_word("not")
            and tokens[position + 1].is_word("null")
            and _is_operand(tokens[position - 1])
        ):
            texts[position] = "is not"  # x NOT NULL is x IS NOT NULL
    return " ".join(texts)


def _is_operand(token: Token) -> bool:
    """Tell whether a postfix operator can follow a token."""
    return token.text == ")" if token.kind == "other" else not (token.kind == "word" and token.text in _RESERVED)


def _stripped(tokens: Sequence[Token]) -> Sequence[Token]:
    while len(tokens) > 2 and tokens[0].text == "(" and _group_end(tokens, 0) == len(tokens) - 1:
        tokens = tokens[1:-1]
    return tokens


def _read(tokens: Sequence[Token], position: int, columns: Collection[str] | None) -> str:
    """Return a token's text, as a string where SQLite takes what stands in double quotes for one."""
    token = tokens[position]
    if columns is None or token.literal is None or token.name in columns or token.name in _ROWIDS:
        return token.text
    before, after = (tokens[i].text if 0 <= i < len(tokens) else "" for i in (position - 1, position + 1))
    is_name = before in (".", "collate", "as") or after in (".", "(")
    return token.text if is_name else token.literal


def _group_end(tokens: Sequence[Token], start: int) -> int:
    """Return the position of the parenthesis that closes the one at `start`."""
    depth = 0
    for position in range(start, len(tokens)):
        if tokens[position].kind == "other":
            depth += {"(": 1, ")": -1}.get(tokens[position].text, 0)
        if depth == 0:
            return position
    return len(tokens) - 1


def _split(tokens: Sequence[Token]) -> Iterator[list[Token]]:
    """Split at the commas that stand in no parentheses."""
    part: list[Token] = []
    position = 0
    while position < len(tokens):
        end = _group_end(tokens, position) if tokens[position].text == "(" else position
        if tokens[position].kind == "other" and tokens[position].text == ",":
            yield part
            part = []
        else:
            part += tokens[position : end + 1]
        position = end + 1
    if part:
        yield part


def _open(tokens: Sequence[Token]) -> int:
    return next(i for i, t in enumerate(tokens) if t.kind == "other" and t.text == "(")


def parts_of(sql: str) -> tuple[list[list[Token]], list[Token]]:
    """Split a CREATE TABLE into its columns and constraints, and what follows them."""
    tokens = tokenize(sql)
    start = _open(tokens)
    end = _group_end(tokens, start)
    return list(_split(tokens[start + 1 : end])), tokens[end + 1 :]


def is_constraint(element: Sequence[Token]) -> bool:
    """Tell whether a part of a CREATE TABLE is a constraint of the table, and no column."""
    return element[0].is_word("constraint", "primary", "unique", "check", "foreign")


def parse_table(sql: str, columns: Collection[str] | None = None) -> TableText:
    """Read a CREATE TABLE.

    :param columns: the table's columns in lower case.
    """
    table = TableText()
    if not _SAYS_MORE.search(sql):
        return table
    elements, tail = parts_of(sql)
    options = [" ".join(t.text.upper() for t in part) for part in _split(tail)]
    for element in elements:
        options += _oddities(element)
        column = None if is_constraint(element) else element[0].name
        _read_element(sql, element, column, table, columns)
    table.options = tuple(sorted(options))
    return table


def _read_element(
    sql: str, tokens: list[Token], column: str | None, table: TableText, known: Collection[str] | None
) -> None:
    """Read a column's definition, or a table constraint where `column` is None."""
    name = ""
    columns: tuple[str, ...] = (column,) if column else ()
    position = 1 if column else 0
    while position < len(tokens):
        token = tokens[position]
        end = _argument_end(tokens, position)
        inner = tokens[position + 2 : end]
        if token.is_word("constraint"):
            end = position + 1
            name = tokens[end].name
        elif token.is_word("check"):
            words = frozenset(t.name for t in inner if t.kind in ("word", "quoted"))
            text = sql[tokens[position + 1].start : tokens[end].end]
            table.checks.append(Check(name, _join(inner, known), f"CHECK {text}", words, column))
            name = ""
        elif token.is_word("as") and column:
            table.generated[column] = _join(inner, known)
        elif token.is_word("collate") and column:
            table.collations[column] = tokens[position + 1].name
        elif token.is_word("key") and inner:
            columns = tuple(t.name for t in inner if t.text != ",")
        elif token.is_word("references"):
            table.references.append(Reference(columns, name, _deferrable(tokens[position:])))
            name = ""
        position = end + 1


def _oddities(element: Sequence[Token]) -> Iterator[str]:
    """Yield what no pragma tells of a column or constraint, and what changes how rows are written."""
    words = [t.text if t.kind == "word" else "" for t in element]
    # Only a column of this type is the rowid unless its key is DESC; another one's order is told with the key.
    can_be_rowid = not is_constraint(element) and len(element) > 1 and element[1].name == "integer"
    for position, word in enumerate(words):
        if word == "autoincrement":
            yield "AUTOINCREMENT"
        elif can_be_rowid and words[position : position + 3] == ["primary", "key", "desc"]:
            yield "PRIMARY KEY DESC"
        elif words[position : position + 2] == ["on", "conflict"]:
            constraint, action = _of_conflict(element, words[:position]), words[position + 2]
            if constraint and action != "abort":
                yield f"{constraint} ON CONFLICT {action.upper()}"


def _of_conflict(element: Sequence[Token], words: Sequence[str]) -> str:
    """Return the constraint that ON CONFLICT belongs to, in one spelling; "" where it does nothing, as for a CHECK.

    :param words: the words before it, with "" for every other token.
    """
    kinds = {"null": "NOT NULL", "key": "PRIMARY KEY", "unique": "UNIQUE", "check": ""}
    position = max((i for i, word in enumerate(words) if word in kinds and not _depth(element, i)), default=0)
    kind = kinds.get(words[position], "")
    if not kind or (words[position] == "null" and words[position - 1] != "not"):
        return ""
    if not is_constraint(element):
        return f"{kind} ({element[0].text})"
    end = _argument_end(element, position)
    return f"{kind} ({', '.join(part[0].text for part in _split(element[position + 2 : end]))})"


def _depth(tokens: Sequence[Token], position: int) -> int:
    """Return how many parentheses are open at a token."""
    before = [t.text for t in tokens[:position] if t.kind == "other"]
    return before.count("(") - before.count(")")


def _argument_end(tokens: Sequence[Token], position: int) -> int:
    """Return where the parentheses behind a word end, or the word's own position where there are none."""
    following = tokens[position + 1 : position + 2]
    has_argument = bool(following) and following[0].kind == "other" and following[0].text == "("
    return _group_end(tokens, position + 1) if has_argument else position


def _deferrable(tokens: Sequence[Token]) -> str:
    words = [t.text for t in tokens if t.kind == "word"]
    if "deferrable" not in words:
        return ""
    before = words[words.index("deferrable") - 1]
    mode = "DEFERRED" if "deferred" in words else "IMMEDIATE"
    # Only DEFERRABLE INITIALLY DEFERRED differs from the default (lang_createtable: foreign keys, 4.2).
    return "" if before == "not" or mode == "IMMEDIATE" else "DEFERRABLE INITIALLY DEFERRED"


def parse_index(
    sql: str, columns: Collection[str] | None = None, collations: Sequence[str] = ()
) -> tuple[list[str], str | None]:
    """Read a CREATE INDEX: each key's expression without its order and collation, and the predicate.

    :param columns: the table's columns in lower case.
    :param collations: those of the keys as the pragma tells them, in lower case.
    """
    tokens = tokenize(sql)
    start = _open(tokens)
    end = _group_end(tokens, start)
    keys = []
    for part, collation in zip_longest(_split(tokens[start + 1 : end]), collations):
        if part[-1].is_word("asc", "desc"):
            part = part[:-1]
        part = list(_stripped(part))
        if len(part) > 2 and part[-2].is_word("collate") and _is_of_key(part, collation):
            part = part[:-2]
        keys.append(_join(part, columns))
    predicate = _join(tokens[end + 2 :], columns) if len(tokens) > end + 2 else None
    return keys, predicate


def _is_of_key(part: Sequence[Token], collation: str | None) -> bool:
    """Tell whether the COLLATE at the end of a key is that of the key: in `a = b COLLATE nocase` it is that of b."""
    if collation is None or part[-1].name != "binary":
        return collation is None or part[-1].name == collation
    opening = 0 if part[0].text == "(" else 1
    return len(part) == 3 or (part[opening].text == "(" and _group_end(part, opening) == len(part) - 3)
