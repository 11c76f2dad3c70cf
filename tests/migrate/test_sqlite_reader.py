"""What is read from the text of CREATE TABLE and CREATE INDEX, as tables of cases; SQLite itself is not asked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whatspire_db.migrate.engines.sqlite.table_reader import (
    canonical,
    canonical_default,
    parse_index,
    parse_table,
    tokenize,
)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("A  >  0", "a > 0"),
        ("((a > 0))", "a > 0"),
        ("(a) > (0)", "( a ) > ( 0 )"),
        ('"A" > 0', "a > 0"),
        ("[a b]=`c`", '"a b" = c'),
        ('"order" > 0', '"order" > 0'),
        ("a /* b */ > -- c\n 0", "a > 0"),
        ("a = 'It''s -- /* A'", "a = 'It''s -- /* A'"),
        ("a = X'AB'", "a = x'ab'"),
        ("a->>'$.B' || \"c\"", "a ->> '$.B' || c"),
        ("a <> 1E3", "a <> 1000.0"),
        ("a != 1", "a <> 1"),
        ("a == 0x10", "a = 16"),
        ("a ISNULL OR b NOTNULL", "a is null or b is not null"),
        ("a > 007 AND a < 1.50", "a > 7 and a < 1.5"),
        ("a < 9223372036854775808", "a < 9.223372036854776e+18"),
        ("\u00c4 > '\u00c4'", "\u00c4 > '\u00c4'"),
        ("a IN (1,2)", "a in ( 1 , 2 )"),
    ],
)
def test_expressions_that_sqlite_reads_alike_have_one_form(written: str, read: str) -> None:
    assert canonical(written) == read
    assert canonical(read) == read


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (None, None),
        ("1", "1"),
        ("TRUE", "1"),
        ("false", "0"),
        ("'x'", "'x'"),
        ('"x"', "'x'"),
        ('"it\'s ""so"""', "'it''s \"so\"'"),
        ("CURRENT_TIMESTAMP", "current_timestamp"),
        ("(1 + 1)", "1 + 1"),
        ("NULL", None),
        ("(null)", None),
        ("foo", "'foo'"),
        ("Foo", "'Foo'"),
        ("[Foo]", "'Foo'"),
        ("+1", "1"),
        ("+ 0x10", "16"),
        ("-1", "- 1"),
        ("'+1'", "'+1'"),
        ("1.50", "1.5"),
    ],
)
def test_defaults(written: str | None, read: str | None) -> None:
    assert canonical_default(written) == read


@pytest.mark.parametrize(
    ("element", "checks"),
    [
        ("a integer CHECK (a > 0)", [("", "a > 0", "a")]),
        ("a integer, CONSTRAINT c CHECK (a > 0)", [("c", "a > 0", None)]),
        ("a integer CONSTRAINT c CHECK (a > 0) CHECK (a < 9)", [("c", "a > 0", "a"), ("", "a < 9", "a")]),
        ("a text CHECK (a IN ('x)', '(y'))", [("", "a in ( 'x)' , '(y' )", "a")]),
        ("a text DEFAULT ('check (1)'), b text", []),
        ('a integer, "check" text', []),
        ("a integer /* CHECK (a > 0) */", []),
        ("a integer, check(a>0)", [("", "a > 0", None)]),
    ],
)
def test_checks_of_a_table(element: str, checks: list[tuple[str, str, str | None]]) -> None:
    table = parse_table(f"CREATE TABLE t ({element})")
    assert [(c.name, c.expression, c.inline) for c in table.checks] == checks


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ('a IN ("Active")', "a in ( 'Active' )"),
        ('"A" = "B"', "a = b"),
        ('"A" = "C"', "a = 'C'"),
        ('"a" = "it\'s"', "a = 'it''s'"),
        ("a = [C]", "a = c"),
        ("\"Lower\"(a) = 'x'", "lower ( a ) = 'x'"),
        ("a = 'x' COLLATE \"NoCase\"", "a = 'x' collate nocase"),
        ('"t"."a" > "rowid"', "t . a > rowid"),
    ],
)
def test_double_quotes_hold_a_string_where_no_column_has_that_name(written: str, read: str) -> None:
    assert canonical(written, ("a", "b")) == read


def test_a_check_knows_what_it_names_and_how_it_was_written() -> None:
    (check,) = parse_table("CREATE TABLE t (a int, b int, CHECK  ( A  > \"B\" AND 'c' <> '') )").checks
    assert check.sql == "CHECK ( A  > \"B\" AND 'c' <> '')"
    assert {"a", "b"} <= check.words
    assert "c" not in check.words


def test_collations_and_generated_columns() -> None:
    table = parse_table(
        "CREATE TABLE t (a text COLLATE NoCase, b text COLLATE \"Own One\", c int GENERATED ALWAYS AS (a || 'x') STORED,"
        " d int AS (1), e text DEFAULT 'COLLATE x')"
    )
    assert table.collations == {"a": "nocase", "b": "own one"}
    assert table.generated == {"c": "a || 'x'", "d": "1"}


@pytest.mark.parametrize(
    ("clause", "name", "deferrable"),
    [
        ("a int REFERENCES p (id)", "", ""),
        ("a int CONSTRAINT f REFERENCES p (id)", "f", ""),
        ("a int REFERENCES p (id) DEFERRABLE", "", ""),
        ("a int REFERENCES p (id) DEFERRABLE INITIALLY IMMEDIATE", "", ""),
        ("a int REFERENCES p (id) NOT DEFERRABLE INITIALLY DEFERRED", "", ""),
        ("a int REFERENCES p (id) DEFERRABLE INITIALLY DEFERRED", "", "DEFERRABLE INITIALLY DEFERRED"),
        ("a int, CONSTRAINT f FOREIGN KEY (A) REFERENCES p (id)", "f", ""),
    ],
)
def test_references(clause: str, name: str, deferrable: str) -> None:
    (reference,) = parse_table(f"CREATE TABLE t ({clause})").references
    assert (reference.columns, reference.name, reference.deferrable) == (("a",), name, deferrable)


def test_reference_of_several_columns() -> None:
    (reference,) = parse_table("CREATE TABLE t (a int, b int, FOREIGN KEY (a, [B]) REFERENCES p (x, y))").references
    assert reference.columns == ("a", "b")


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("(a int)", ()),
        ("(a int) STRICT", ("STRICT",)),
        ("(a int PRIMARY KEY) WITHOUT ROWID, strict", ("STRICT", "WITHOUT ROWID")),
        ("(a integer PRIMARY KEY AUTOINCREMENT)", ("AUTOINCREMENT",)),
        ("(a integer PRIMARY KEY DESC)", ("PRIMARY KEY DESC",)),
        ("(a int UNIQUE ON CONFLICT ABORT)", ()),
        ("(a int UNIQUE ON CONFLICT REPLACE)", ("UNIQUE (a) ON CONFLICT REPLACE",)),
        ("(a int DEFAULT 'AUTOINCREMENT')", ()),
    ],
)
def test_what_changes_how_rows_are_written(text: str, options: tuple[str, ...]) -> None:
    assert parse_table(f"CREATE TABLE t {text}").options == options


@pytest.mark.parametrize(
    ("text", "keys", "predicate"),
    [
        ("(a)", ["a"], None),
        ("(a, b DESC)", ["a", "b"], None),
        ("(a COLLATE nocase ASC, lower( B ))", ["a", "lower ( b )"], None),
        ("(a) WHERE b > 0", ["a"], "b > 0"),
        ("((a + b)) WHERE (a IS NOT NULL)", ["a + b"], "a is not null"),
        ("(json_extract(a, '$.x,y'))", ["json_extract ( a , '$.x,y' )"], None),
    ],
)
def test_indexes(text: str, keys: list[str], predicate: str | None) -> None:
    assert parse_index(f'CREATE UNIQUE INDEX "i(" ON t {text}') == (keys, predicate)


@given(
    st.lists(
        st.sampled_from(["a", '"b c"', "'d'", "(", ")", ",", "+", "--e\n", "/*f*/", " ", "1.5", "||"]), max_size=12
    )
)
def test_tokens_cover_a_text_in_order(parts: list[str]) -> None:
    text = " ".join(parts)
    tokens = tokenize(text)
    assert [t.start for t in tokens] == sorted({t.start for t in tokens})
    assert all(text[t.start : t.end].strip() for t in tokens)
    assert canonical(canonical(text)) == canonical(text)
