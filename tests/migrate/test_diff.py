"""The comparison of two schemas as values: no database is needed to say what is missing, drifted or extra."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whatspire_db.migrate.diff import Changes, diff
from whatspire_db.migrate.schema import Column, Constraint, Index, IndexKey, Key, Schema, Table

T: Key = ("", "t")


def columns(*names: str) -> dict[str, Column]:
    return {name: Column(name, "integer", False) for name in names}


def index(*names: str, name: str = "i", **more: Any) -> Index:
    return Index(name, tuple(IndexKey(n, column=n) for n in names), **more)


def check(text: str, *names: str, name: str = "c", **more: Any) -> Constraint:
    return Constraint(name, "check", f"CHECK ({text})", names or ("a",), **more)


def reference(name: str = "f", target: str = "p", *names: str, **more: Any) -> Constraint:
    definition = f"FOREIGN KEY (a) REFERENCES {target}(id)"
    return Constraint(name, "foreign_key", definition, names or ("a",), references=("", target), **more)


def primary_key(*names: str, name: str = "t_pkey") -> Constraint:
    return Constraint(name, "primary_key", f"PRIMARY KEY ({', '.join(names)})", names)


def table(*, a: Column | None = None, **parts: Any) -> Table:
    """A table with the columns a and b; `a` takes the place of the first."""
    found = columns("a", "b") | ({"a": a} if a else {})
    return Table(T, **{"columns": found, **parts})


def said(changes: Changes) -> list[str]:
    return [str(item) for group in (changes.missing, changes.drift, changes.extra) for item in group]


def compared(declared: Table | None, live: Table | None, *, adds_constraints: bool = True) -> list[str]:
    sides = (Schema({t.key: t for t in (side,) if t}) for side in (declared, live))
    return said(diff(*sides, adds_constraints))


A = columns("a")["a"]
UNIQUE = {"unique": True, "constraint": "UNIQUE"}

# What is declared, what is live, and all that is said of the difference.
CASES: dict[str, tuple[Table | None, Table | None, list[str]]] = {
    "nothing": (table(), table(), []),
    "no table": (table(), None, ["missing table t"]),
    "names like the table's": (
        table(columns=columns("t", "b")),
        table(columns=columns("b"), indexes=(index("b", name="t"),)),
        ["missing column t.t", "extra index t.t"],
    ),
    "no model": (None, table(), []),
    "a view in its place": (table(), table(kind="view"), ["drift table t: declared table, live view"]),
    "options of a table": (
        table(options=("STRICT",)),
        table(options=("WITHOUT ROWID",)),
        ["drift table t: declared STRICT, live WITHOUT ROWID"],
    ),
    "options where none are declared": (
        table(),
        table(options=("STRICT",)),
        ["drift table t: declared plain, live STRICT"],
    ),
    # Columns
    "a new column": (table(columns=columns("a", "b", "c")), table(), ["missing column t.c"]),
    "a column of somebody else": (table(), table(columns=columns("a", "b", "c")), ["extra column t.c"]),
    "type": (table(), table(a=replace(A, type="text")), ["drift column_type t.a: declared integer, live text"]),
    "NOT NULL is live": (
        table(),
        table(a=replace(A, not_null=True)),
        ["drift column_null t.a: declared NULL, live NOT NULL"],
    ),
    "NOT NULL is declared": (
        table(a=replace(A, not_null=True)),
        table(),
        ["drift column_null t.a: declared NOT NULL, live NULL"],
    ),
    "NOT NULL NOT VALID": (
        table(a=replace(A, not_null=True)),
        table(a=replace(A, not_null=True, not_null_valid=False)),
        ["drift column_null t.a: declared NOT NULL, live NOT NULL NOT VALID"],
    ),
    "default": (
        table(a=replace(A, default="1")),
        table(a=replace(A, default="2")),
        ["drift column_default t.a: declared 1, live 2"],
    ),
    "a default that nobody declared": (
        table(),
        table(a=replace(A, default="2")),
        ["drift column_default t.a: declared none, live 2"],
    ),
    "collation": (
        table(a=replace(A, collation="nocase")),
        table(),
        ["drift column_collation t.a: declared nocase, live none"],
    ),
    "generated": (
        table(a=replace(A, generated="STORED (b + 1)")),
        table(a=replace(A, generated="VIRTUAL (b + 1)")),
        ["drift column_generated t.a: declared STORED (b + 1), live VIRTUAL (b + 1)"],
    ),
    "identity": (
        table(a=replace(A, identity="ALWAYS START 1 INCREMENT 1")),
        table(a=replace(A, identity="ALWAYS START 1 INCREMENT 2")),
        [
            "drift column_identity t.a: declared ALWAYS START 1 INCREMENT 1, live ALWAYS START 1 INCREMENT 2",
        ],
    ),
    "several at once": (
        table(a=replace(A, type="text", default="'x'")),
        table(),
        [
            "drift column_type t.a: declared text, live integer",
            "drift column_default t.a: declared 'x', live none",
        ],
    ),
    # Indexes
    "a new index": (table(indexes=(index("a"),)), table(), ["missing index t.i"]),
    "an index of somebody else": (table(), table(indexes=(index("a"),)), ["extra index t.i"]),
    "an index of another name": (table(indexes=(index("a"),)), table(indexes=(index("a", name="other"),)), []),
    "one of two alike": (
        table(indexes=(index("a"),)),
        table(indexes=(index("a", name="other"), index("a"))),
        ["extra index t.other"],
    ),
    "other columns under the name": (
        table(indexes=(index("a"),)),
        table(indexes=(index("b"),)),
        ["drift index t.i: declared (a), live (b)"],
    ),
    "the order of columns": (
        table(indexes=(index("a", "b"),)),
        table(indexes=(index("b", "a"),)),
        ["drift index t.i: declared (a, b), live (b, a)"],
    ),
    "unique is declared": (
        table(indexes=(index("a", unique=True),)),
        table(indexes=(index("a"),)),
        ["drift index t.i: declared UNIQUE (a), live (a)"],
    ),
    "unique under another name": (
        table(indexes=(index("a", unique=True),)),
        table(indexes=(index("a", name="other"),)),
        ["missing index t.i", "extra index t.other"],
    ),
    "method": (
        table(indexes=(index("a", method="gin"),)),
        table(indexes=(index("a", method="btree"),)),
        ["drift index t.i: declared gin (a), live btree (a)"],
    ),
    "predicate": (
        table(indexes=(index("a", predicate="b > 0"),)),
        table(indexes=(index("a", predicate="b > 1"),)),
        ["drift index t.i: declared (a) WHERE b > 0, live (a) WHERE b > 1"],
    ),
    "included columns": (
        table(indexes=(index("a", include=("b",)),)),
        table(indexes=(index("a"),)),
        ["drift index t.i: declared (a) INCLUDE (b), live (a)"],
    ),
    "NULLS NOT DISTINCT": (
        table(indexes=(index("a", unique=True, nulls_not_distinct=True),)),
        table(indexes=(index("a", unique=True),)),
        ["drift index t.i: declared UNIQUE (a) NULLS NOT DISTINCT, live UNIQUE (a)"],
    ),
    "changed options": (
        table(indexes=(index("a", options=("fillfactor=70",)),)),
        table(indexes=(index("a", options=("fillfactor=90",)),)),
        ["drift index t.i: declared (a) WITH (fillfactor=70), live (a) WITH (fillfactor=90)"],
    ),
    "options that are declared alone": (
        table(indexes=(index("a", options=("fillfactor=70",)),)),
        table(indexes=(index("a"),)),
        ["drift index t.i: declared (a) WITH (fillfactor=70), live (a)"],
    ),
    "options that an operator set": (
        table(indexes=(index("a"),)),
        table(indexes=(index("a", options=("fillfactor=90",)),)),
        [],
    ),
    "INVALID": (
        table(indexes=(index("a"),)),
        table(indexes=(index("a", valid=False),)),
        ["drift index t.i: declared (a), live (a) INVALID"],
    ),
    "INVALID beside a good one": (
        table(indexes=(index("a"),)),
        table(indexes=(index("a", valid=False), index("a", name="good"))),
        ["extra index t.i"],
    ),
    # UNIQUE constraints
    "a constraint does what a unique index does": (
        table(indexes=(index("a", unique=True),)),
        table(indexes=(index("a", **UNIQUE),)),
        [],
    ),
    "a constraint of another name too": (
        table(indexes=(index("a", unique=True),)),
        table(indexes=(index("a", name="other", **UNIQUE),)),
        [],
    ),
    "a deferrable one does not": (
        table(indexes=(index("a", unique=True),)),
        table(indexes=(index("a", unique=True, constraint="UNIQUE DEFERRABLE"),)),
        ["drift index t.i: declared UNIQUE (a), live UNIQUE (a) as constraint UNIQUE DEFERRABLE"],
    ),
    "a constraint over a unique index": (
        table(indexes=(index("a", **UNIQUE),)),
        table(indexes=(index("a", unique=True),)),
        ["drift index t.i: declared UNIQUE (a) as constraint UNIQUE, live UNIQUE (a)"],
    ),
    "a constraint over a unique index of another name": (
        table(indexes=(index("a", **UNIQUE),)),
        table(indexes=(index("a", unique=True, name="other"),)),
        ["drift index t.i: declared UNIQUE (a) as constraint UNIQUE, live UNIQUE (a)"],
    ),
    # Constraints
    "a new CHECK": (table(constraints=(check("a > 0"),)), table(), ["missing constraint t.c"]),
    "a CHECK of somebody else": (table(), table(constraints=(check("a > 0"),)), ["extra constraint t.c"]),
    "a CHECK of another name": (
        table(constraints=(check("a > 0"),)),
        table(constraints=(check("a > 0", name="other"),)),
        [],
    ),
    "a CHECK with another text": (
        table(constraints=(check("a > 0"),)),
        table(constraints=(check("a > 1"),)),
        ["drift check t.c: declared CHECK (a > 0), live CHECK (a > 1)"],
    ),
    "another CHECK on the same column": (
        table(constraints=(check("a > 0"),)),
        table(constraints=(check("a > 1", name="other"),)),
        ["missing constraint t.c", "extra constraint t.other"],
    ),
    "a CHECK that is NOT VALID": (
        table(constraints=(check("a > 0"),)),
        table(constraints=(check("a > 0", valid=False),)),
        ["drift check t.c: declared CHECK (a > 0), live CHECK (a > 0) NOT VALID"],
    ),
    "NOT ENFORCED is declared": (
        table(constraints=(replace(check("a > 0"), definition="CHECK (a > 0) NOT ENFORCED"),)),
        table(constraints=(check("a > 0"),)),
        ["drift check t.c: declared CHECK (a > 0) NOT ENFORCED, live CHECK (a > 0)"],
    ),
    "a reference to another table": (
        table(constraints=(reference(),)),
        table(constraints=(reference("other", "q"),)),
        [
            "drift foreign_key t.f: declared FOREIGN KEY (a) REFERENCES p(id), live FOREIGN KEY (a) REFERENCES q(id)",
        ],
    ),
    "a reference of another column": (
        table(constraints=(reference(),)),
        table(constraints=(reference("g", "q", "b"),)),
        ["missing constraint t.f", "extra constraint t.g"],
    ),
    "a reference that closes a cycle is optional": (
        table(constraints=(reference(optional=True),)),
        table(),
        [],
    ),
    "another primary key": (
        table(constraints=(primary_key("a"),)),
        table(constraints=(primary_key("b", name="other"),)),
        ["drift primary_key t.t_pkey: declared PRIMARY KEY (a), live PRIMARY KEY (b)"],
    ),
    "no primary key": (table(constraints=(primary_key("a"),)), table(), ["missing constraint t.t_pkey"]),
    # Names alone
    "names alone": (
        table(by_name=True, columns=columns("a", "b", "c"), indexes=(index(), index(name="j"))),
        table(a=replace(A, type="text", default="1", not_null=True), indexes=(index("b"),)),
        ["missing column t.c", "missing index t.j", "drift column_null t.a: declared NULL, live NOT NULL"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_said_of_two_tables(case: str) -> None:
    declared, live, expected = CASES[case]
    assert compared(declared, live) == expected


@pytest.mark.parametrize("case", CASES)
def test_a_table_does_not_differ_from_itself(case: str) -> None:
    declared = CASES[case][0]
    assert compared(declared, declared) == []


@pytest.mark.parametrize(
    ("declared", "live", "expected"),
    [
        (table(constraints=(check("a > 0"),)), table(), ["drift check t.c: declared CHECK (a > 0), live none"]),
        (
            table(columns=columns("a", "b", "c"), constraints=(check("c > 0", "c"),)),
            table(),
            ["missing column t.c", "missing constraint t.c"],
        ),
        (
            table(constraints=(check("a > 0", name=""),)),
            table(constraints=(check("a > 1", name=""),)),
            ["drift check t.a: declared CHECK (a > 0), live CHECK (a > 1)"],
        ),
    ],
    ids=["of old columns", "of a new column", "without a name"],
)
def test_constraints_where_the_engine_adds_none(declared: Table, live: Table, expected: list[str]) -> None:
    assert compared(declared, live, adds_constraints=False) == expected


@pytest.mark.parametrize(
    ("declared", "live", "can_be_finished"),
    [
        (index("a"), index("a", valid=False), True),
        (index("a"), index("b", valid=False), False),
        (index("a", options=("fillfactor=70",)), index("a", valid=False), False),
        (index("a", **UNIQUE), index("a", unique=True), True),
        (index("a", **UNIQUE), index("a", unique=True, name="other"), False),
        (index("a", **UNIQUE), index("a", unique=True, valid=False), True),
        (index("a", unique=True), index("a", unique=True, constraint="UNIQUE DEFERRABLE"), False),
    ],
)
def test_which_indexes_a_run_finishes(declared: Index, live: Index, can_be_finished: bool) -> None:
    (drift,) = diff(Schema({T: table(indexes=(declared,))}), Schema({T: table(indexes=(live,))}), True).drift
    assert (drift.unfinished, drift.left) == ((declared, live) if can_be_finished else (None, None))


@pytest.mark.parametrize(
    ("declared", "live", "can_be_finished"),
    [
        (check("a > 0"), check("a > 0", valid=False), True),
        (check("a > 0"), check("a > 1", valid=False), False),
        (check("a > 0", valid=False), check("a > 0"), False),
        (reference(), reference(valid=False), True),
        (primary_key("a"), replace(primary_key("a"), valid=False), False),
    ],
)
def test_which_constraints_a_run_finishes(declared: Constraint, live: Constraint, can_be_finished: bool) -> None:
    (drift,) = diff(Schema({T: table(constraints=(declared,))}), Schema({T: table(constraints=(live,))}), True).drift
    assert (drift.unfinished, drift.left) == ((declared, live) if can_be_finished else (None, None))


def test_schemas_extensions_and_tables_of_others() -> None:
    declared = Schema({("s", "t"): Table(("s", "t"))}, schemas=frozenset({"", "s"}), extensions=frozenset({"vector"}))
    live = Schema({}, others=(("", "spatial"), ("s", "t")))
    assert said(diff(declared, live, True)) == [
        "missing schema s",
        "missing extension vector",
        "missing table s.t",
        "extra table spatial",
    ]


SHAPES = st.lists(
    st.tuples(st.sampled_from(["i", "j", "k", ""]), st.sampled_from("ab"), st.booleans(), st.booleans()), max_size=5
)


@given(SHAPES, SHAPES)
def test_each_index_is_spoken_of_once(declared: list[Any], live: list[Any]) -> None:
    def indexes(shapes: list[Any]) -> tuple[Index, ...]:
        return tuple(index(column, name=n, unique=u, valid=v) for n, column, u, v in dict.fromkeys(shapes))

    wanted, got = indexes(declared), indexes(live)
    changes = diff(Schema({T: table(indexes=wanted)}), Schema({T: table(indexes=got)}), True)
    assert len(changes.extra) == len(got) - (len(wanted) - len(changes.missing))
