"""Where tables stand and lines run: nothing overlaps, and no line runs through a table."""

from __future__ import annotations

from itertools import pairwise

import peewee as pw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.diagram.schemas import drawn, model, pictures
from whatspire_db.diagram.layout import Layout, Rect, laid_out
from whatspire_db.diagram.placing import Link, Size, settled
from whatspire_db.diagram.svg import picture_of
from whatspire_db.migrate.schema import Key

PICTURES = pictures()
sizes = st.builds(Size, st.floats(160, 500).map(round), st.floats(40, 900).map(round))


@st.composite
def schemas(draw: st.DrawFn) -> tuple[dict[Key, Size], list[Link]]:
    tables = {("", f"t{number}"): size for number, size in enumerate(draw(st.lists(sizes, min_size=1, max_size=14)))}
    keys = st.sampled_from(list(tables))
    pairs = draw(st.lists(st.tuples(keys, keys), max_size=30))
    links = [Link(a, draw(st.integers(5, 35)), b, draw(st.integers(5, 35))) for a, b in pairs]
    return tables, links


def require_clear(layout: Layout) -> None:
    rects = list(layout.places.values())
    for number, one in enumerate(rects):
        assert not [other for other in rects[:number] if overlap(one, other)]
        assert one.x >= 0
        assert one.y >= 0
        assert one.x + one.width <= layout.width + 0.1
        assert one.y + one.height <= layout.height + 0.1
    for points in layout.lines.values():
        for (x1, y1), (x2, y2) in pairwise(points):
            assert min(abs(x1 - x2), abs(y1 - y2)) < 0.02, "a line is neither level nor upright"
            way = Rect(min(x1, x2), min(y1, y2), abs(x1 - x2), abs(y1 - y2))
            assert not [rect for rect in rects if overlap(way, rect)], points


def overlap(one: Rect, other: Rect) -> bool:
    """Tell whether two rectangles share more than an edge."""
    return (
        one.x + one.width > other.x + 0.1
        and other.x + other.width > one.x + 0.1
        and one.y + one.height > other.y + 0.1
        and other.y + other.height > one.y + 0.1
    )


@given(schemas())
def test_no_tables_overlap_and_no_line_runs_through_a_table(schema: tuple[dict[Key, Size], list[Link]]) -> None:
    tables, links = schema
    layout = laid_out(tables, links)
    assert layout.places.keys() == tables.keys()
    assert layout.lines.keys() == set(range(len(links)))
    require_clear(layout)


@given(schemas())
def test_lines_end_at_both_of_their_tables(schema: tuple[dict[Key, Size], list[Link]]) -> None:
    tables, links = schema
    layout = laid_out(tables, links)
    for number, link in enumerate(links):
        for key, port, (x, y) in (
            (link.source, link.source_port, layout.lines[number][0]),
            (link.target, link.target_port, layout.lines[number][-1]),
        ):
            place = layout.places[key]
            assert y == pytest.approx(place.y + port)
            assert x in (pytest.approx(place.x), pytest.approx(place.x + place.width))


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_clear(name: str) -> None:
    picture = picture_of(PICTURES[name])
    assert picture.layout.places.keys() == PICTURES[name].tables.keys()
    require_clear(picture.layout)


def test_the_same_schema_gives_the_same_picture() -> None:
    assert picture_of(PICTURES["many"]).layout == picture_of(PICTURES["many"]).layout


def test_many_tables_that_refer_to_one_stand_side_by_side_and_not_as_a_staircase() -> None:
    others = [model(f"t{n}", {"hub_id": pw.IntegerField(), "name": pw.TextField()}) for n in range(80)]
    layout = picture_of(drawn([model("hubs", {}), *others])).layout
    assert layout.height < layout.width
    require_clear(layout)


def test_tables_stand_right_of_what_they_refer_to() -> None:
    picture = picture_of(PICTURES["service"])
    for reference in picture.diagram.references:
        assert picture.layout.places[reference.source].x > picture.layout.places[reference.target].x


@given(st.lists(st.tuples(st.floats(-1e4, 1e4), st.floats(1, 500)), max_size=20))
def test_settled_places_keep_their_order_and_do_not_overlap(items: list[tuple[float, float]]) -> None:
    places = settled([wanted for wanted, _ in items], [height for _, height in items])
    assert len(places) == len(items)
    for place, (_, height), after in zip(places, items, places[1:], strict=False):
        assert place + height <= after + 1e-6


def test_settled_places_stay_where_there_is_room() -> None:
    assert settled([0, 50, 200], [40, 40, 40]) == [0, 50, 200]
    assert settled([0, 0], [40, 40]) == [-20, 20]
