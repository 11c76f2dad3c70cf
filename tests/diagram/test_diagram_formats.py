"""The four formats: each holds every table and reference, and takes every name; other parsers read them."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import peewee as pw
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydbml import PyDBML

from tests.diagram.schemas import NAMES_FROM_HELL, drawn, model, pictures
from whatspire_db import ConfigError
from whatspire_db.diagram.building import diagram_of, keys_alone
from whatspire_db.diagram.dbml import dbml
from whatspire_db.diagram.drawing import FORMATS
from whatspire_db.diagram.mermaid import encoded, mermaid
from whatspire_db.diagram.page import page
from whatspire_db.diagram.svg import svg
from whatspire_db.diagram.text import cut, plain
from whatspire_db.diagram.values import Diagram
from whatspire_db.letters import cells
from whatspire_db.migrate.schema import Column, Constraint, Schema, Table

PICTURES = pictures()
SVG = "{http://www.w3.org/2000/svg}"
# Of pydbml, which calls older names of its parser's.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
names = pytest.mark.parametrize("name", PICTURES)


def mermaid_of(diagram: Diagram) -> str:
    """Return the Mermaid text, of keys alone where all of it is too large."""
    try:
        return mermaid(diagram)
    except ConfigError:
        return mermaid(keys_alone(diagram))


class Elements(HTMLParser):
    """The elements of a page, its texts, and what is not closed in order."""

    VOID = ("meta", "input", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@names
def test_svg_is_xml_with_every_table_column_and_reference(name: str) -> None:
    diagram = PICTURES[name]
    root = ElementTree.fromstring(svg(diagram))  # noqa: S314  # of our own
    tables = [group for group in root.iter(f"{SVG}g") if "table" in group.get("class", "").split()]
    assert [table.get("data-table") for table in tables] == [plain(t.label) for t in diagram.tables.values()]
    for group, table in zip(tables, diagram.tables.values(), strict=True):
        texts = {text.text for text in group.iter(f"{SVG}text")}
        assert {cut(plain(column.name), 64) for column in table.columns} <= texts
    lines = [group for group in root.iter(f"{SVG}g") if "reference" in group.get("class", "").split()]
    assert [line.findtext(f"{SVG}title") for line in lines] == [plain(r.title) for r in diagram.references]
    dashed = ["implied" in line.get("class", "").split() for line in lines]
    assert dashed == [reference.is_implied for reference in diagram.references]


@names
def test_page_is_one_file_that_loads_nothing(name: str) -> None:
    elements = Elements(page(PICTURES[name]))
    assert not {"link", "img", "iframe", "object", "embed", "use", "image", "base"} & {tag for tag, _ in elements.found}
    for tag, attributes in elements.found:
        assert not {"src", "srcset", "style", "data"} & attributes.keys(), tag
        assert not [attribute for attribute in attributes if attribute.startswith("on")]
        assert (attributes.get("href") or "#").startswith("#")
    (policy,) = [attributes["content"] for _, attributes in elements.found if "http-equiv" in attributes]
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert sum(tag == "script" for tag, _ in elements.found) == 1


@names
def test_page_has_every_table_once_and_every_reference(name: str) -> None:
    diagram = PICTURES[name]
    elements = Elements(page(diagram))
    classes = [(attributes.get("class") or "").split() for _, attributes in elements.found]
    assert sum("table" in each for each in classes) == len(diagram.tables)
    assert sum("reference" in each for each in classes) == len(diagram.references)
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_names_from_hell_are_text_and_no_markup() -> None:
    for text in (page(PICTURES["hell"]), svg(PICTURES["hell"])):
        assert "<script>alert" not in text
        assert "</style></svg>&" not in text
        assert "line\nbreak" not in text
        assert r"line\x0abreak" in text
        assert "\u202e" not in text


@pytest.mark.soak
@names
def test_dbml_is_read_back_with_every_table_and_reference(name: str) -> None:
    diagram = PICTURES[name]
    read = PyDBML(dbml(diagram))
    assert len(read.tables) == len(diagram.tables)
    assert len(read.refs) == len(diagram.references)
    for found, table in zip(read.tables, diagram.tables.values(), strict=True):
        assert len(found.columns) == len(table.columns)
        indexes = [part for part in table.parts if part.kind in ("index", "unique")]
        assert len(found.indexes) == len(indexes)
        assert [column.pk for column in found.columns] == ["PK" in column.keys for column in table.columns]
        assert [column.not_null for column in found.columns] == [c.column.not_null for c in table.columns]


def test_dbml_has_no_two_tables_or_columns_of_one_name() -> None:
    alike = ['a"b', "a''b", "a/b", "a\\b", " a ", "a", "_", " "]
    fields = {f"f{n}": pw.TextField(column_name=name) for n, name in enumerate(alike)}
    read = PyDBML(dbml(drawn([model(name, fields) for name in alike])))
    assert len({table.name for table in read.tables}) == len(alike)
    assert "a" in {table.name for table in read.tables}
    for table in read.tables:
        assert len({column.name for column in table.columns}) == len(alike) + 1


def test_dbml_has_tables_of_which_no_column_is_shown() -> None:
    """As a live view, or a table without a key of which keys alone are drawn; DBML takes no table without a column."""
    meta = type("Meta", (), {"table_name": "logs", "primary_key": False})
    keyless = type("Drawn", (pw.Model,), {"a": pw.IntegerField(), "b": pw.IntegerField(), "Meta": meta})
    view = Table(("", "seen"), "view")
    for diagram, shown in (
        (keys_alone(drawn([keyless])), "2 more columns"),
        (diagram_of(Schema({view.key: view}), "", ""), "no columns"),
    ):
        (table,) = PyDBML(dbml(diagram)).tables
        assert [column.name for column in table.columns] == [shown]


def test_dbml_has_one_reference_between_two_columns() -> None:
    """A second one, and one from a column to itself, is what its readers refuse; it stays as a comment."""
    columns = {name: Column(name, "integer", False) for name in ("id", "other_id")}
    constraints = tuple(
        Constraint("", "foreign_key", rule, (column,), references=("", "own"), referenced_columns=("id",))
        for column, rule in (("other_id", "a"), ("other_id", "b"), ("id", "c"))
    )
    own = Table(("", "own"), columns=columns, constraints=constraints)
    diagram = diagram_of(Schema({own.key: own}), "", "")
    text = dbml(diagram)
    assert len(diagram.references) == 3
    assert len(PyDBML(text).refs) == 1
    assert text.count("// Ref: ") == 2


def test_dbml_keeps_names_where_it_can() -> None:
    read = PyDBML(dbml(PICTURES["service"]))
    (audit,) = [table for table in read.tables if table.name == "audit_logs"]
    assert [column.name for column in audit.columns][:4] == ["id", "event_type", "api_key_id", "session_id"]
    assert {tuple(part.name for part in index.subjects) for index in audit.indexes} == {
        ("created_at",),
        ("api_key_id",),
        ("event_type",),
    }


@names
def test_mermaid_has_every_table_and_every_reference(name: str) -> None:
    diagram, text = PICTURES[name], mermaid_of(PICTURES[name])
    assert text.startswith("erDiagram\n    %% database: ")
    tables = re.findall(r'^    (\w+)(?:\["[^"]*"\])? \{$', text, re.MULTILINE)
    assert len(set(tables)) == len(diagram.tables)
    ends = re.findall(r'^    (\w+) [|o]{2}(--|\.\.)o[{|] (\w+) : "[^"]*"$', text, re.MULTILINE)
    assert len(ends) == len(diagram.references)
    assert {end for first, _, second in ends for end in (first, second)} <= set(tables)
    assert [dots == ".." for _, dots, _ in ends] == [reference.is_implied for reference in diagram.references]


def test_mermaid_above_the_size_that_it_draws_is_refused() -> None:
    words = r"36 tables has [\d,]+ characters, and Mermaid draws at most 50,000"
    with pytest.raises(ConfigError, match=words) as failed:
        mermaid(PICTURES["hell"])
    assert "--tables" in failed.value.hint
    assert "--format html" in failed.value.hint


@given(st.text(max_size=30))
def test_encoded_texts_cannot_end_a_quoted_text_or_begin_a_directive(text: str) -> None:
    shown = encoded(text)
    assert not set('"\\%{}\n\r') & set(shown)
    assert not re.search(r"direction\s", shown, re.IGNORECASE)


@pytest.mark.parametrize("format_", FORMATS)
def test_every_format_names_the_database_and_what_was_drawn(format_: str) -> None:
    text = FORMATS[format_](PICTURES["service"])
    assert "sqlite /srv/app/app.db" in text
    assert "drawn from: the models alone" in text


@given(st.text(max_size=40), st.integers(1, 30))
def test_cut_texts_fit_and_end_in_an_ellipsis(text: str, width: int) -> None:
    shown = cut(text, width)
    assert cells(shown) <= width
    assert shown == text or (shown.endswith("…") and text.startswith(shown[:-1]))


def test_wide_letters_take_two_cells() -> None:
    assert [cells(text) for text in ("abc", "表", "😀", "é", "e\u0301", "\u200d")] == [3, 2, 2, 1, 1, 0]


def test_hell_has_all_names() -> None:
    assert {key[1] for key in PICTURES["hell"].tables} == {*NAMES_FROM_HELL, "orders"}
