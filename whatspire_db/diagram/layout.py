"""Sizes of tables and links between them -> places and lines that run through no table; pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..migrate.schema import Key
from .placing import ASPECT, GAP, Columns, Link, Net, Size, arranged

MARGIN = 26.0  # between a table and the first line beside it
PITCH = 9.0  # between two lines
NO_LINES = 40.0  # between two columns without a line
APART = 56.0  # between two groups of tables

Point = tuple[float, float]


@dataclass(frozen=True)
class Rect:
    """Where a table stands."""

    x: float
    y: float
    width: float
    height: float


@dataclass
class Layout:
    """Where all tables stand, the corners of each link's line, and the headings of groups."""

    width: float = 0.0
    height: float = 0.0
    places: dict[Key, Rect] = field(default_factory=dict)
    lines: dict[int, list[Point]] = field(default_factory=dict)
    headings: list[tuple[float, float, str]] = field(default_factory=list)

    def add(self, other: Layout, x: float, y: float, numbers: Mapping[int, int]) -> None:
        """Add a group at a place; `numbers` are those of its links here."""
        for key, rect in other.places.items():
            self.places[key] = Rect(rect.x + x, rect.y + y, rect.width, rect.height)
        for number, points in other.lines.items():
            self.lines[numbers[number]] = [(px + x, py + y) for px, py in points]
        self.width, self.height = max(self.width, x + other.width), max(self.height, y + other.height)


def laid_out(sizes: Mapping[Key, Size], links: Sequence[Link]) -> Layout:
    """Place all tables: groups that are linked, the largest first, then the tables without a link in a grid."""
    groups = [group for group in _groups(sizes, links) if len(group) > 1 or _has_link(group[0], links)]
    linked = {key for group in groups for key in group}
    drawn = []
    for group in groups:
        numbers = [number for number, link in enumerate(links) if link.source in group]
        own = _group({key: sizes[key] for key in group}, [links[number] for number in numbers])
        drawn.append((own, dict(enumerate(numbers))))
    alone = {key: size for key, size in sizes.items() if key not in linked}
    return _packed(drawn, alone)


def _has_link(key: Key, links: Sequence[Link]) -> bool:
    return any(key in (link.source, link.target) for link in links)


def _groups(sizes: Mapping[Key, Size], links: Sequence[Link]) -> list[list[Key]]:
    """Return the tables by connected groups."""
    parent = {key: key for key in sizes}

    def root(key: Key) -> Key:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for link in links:
        parent[root(link.source)] = root(link.target)
    groups: dict[Key, list[Key]] = {}
    for key in sizes:
        groups.setdefault(root(key), []).append(key)
    return list(groups.values())


def _packed(drawn: Sequence[tuple[Layout, Mapping[int, int]]], alone: Mapping[Key, Size]) -> Layout:
    """Put groups on shelves, and the tables without a link below them."""
    area = sum((g.width + APART) * (g.height + APART) for g, _ in drawn)
    area += sum((size.width + GAP) * (size.height + GAP) for size in alone.values())
    width = max([math.sqrt(area * ASPECT), *(group.width for group, _ in drawn)])
    whole = Layout()
    x = y = shelf = 0.0
    for group, numbers in sorted(drawn, key=lambda one: -one[0].height):
        if x and x + group.width > width:
            x, y = 0.0, y + shelf + APART
            shelf = 0.0
        whole.add(group, x, y, numbers)
        x, shelf = x + group.width + APART, max(shelf, group.height)
    if alone:
        top = y + shelf + APART if drawn else 0.0
        if drawn:
            whole.headings.append((0.0, top, "tables without a reference"))
        whole.add(_grid(alone, max(whole.width, width)), 0.0, top + (20.0 if drawn else 0.0), {})
    return whole


def _grid(sizes: Mapping[Key, Size], width: float) -> Layout:
    """Place tables without a link in as many columns as fit, by their names, the lowest column next."""
    widest = max(size.width for size in sizes.values())
    count = max(1, min(len(sizes), int((width + GAP) // (widest + GAP))))
    heights = [0.0] * count
    found = Layout()
    for key in sorted(sizes):
        column = heights.index(min(heights))
        found.places[key] = Rect(column * (widest + GAP), heights[column], widest, sizes[key].height)
        heights[column] += sizes[key].height + GAP
    found.width, found.height = count * (widest + GAP) - GAP, max(heights) - GAP
    return found


# One group


def _group(sizes: Mapping[Key, Size], links: Sequence[Link]) -> Layout:
    columns = arranged(sizes, links)
    top = min(item.y for column in columns.columns for item in column)
    widths = [max((sizes[i.key].width for i in column if i.key), default=0.0) for column in columns.columns]
    tracks = [_tracks(columns.nets, gutter) for gutter in range(len(widths))]
    lefts = list(_lefts(widths, tracks))
    found = Layout()
    for column, left, width in zip(columns.columns, lefts, widths, strict=True):
        for item in column:
            item.y -= top
            if item.key:
                found.places[item.key] = Rect(left, item.y, width, item.height)
    rights = [left + width for left, width in zip(lefts, widths, strict=True)]
    _draw_lines(found, columns, lefts, rights, tracks)
    last = 2 * MARGIN + PITCH * len(tracks[-1]) if tracks[-1] else 0.0
    found.width = rights[-1] + last
    found.height = max(item.y + item.height for column in columns.columns for item in column)
    return found


def _lefts(widths: Sequence[float], tracks: Sequence[Sequence[Net]]) -> Iterator[float]:
    x = 0.0
    for width, lines in zip(widths, tracks, strict=True):
        yield x
        x += width + (2 * MARGIN + PITCH * max(len(lines) - 1, 0) if lines else NO_LINES)


def _tracks(nets: Sequence[Net], gutter: int) -> list[Net]:
    """Return the nets of a gutter from left to right, in an order in which few lines cross."""
    placed: list[Net] = []
    for net in (net for net in nets if gutter in net.left or gutter in net.right):
        # Each net is asked once: the cost of a place is that of the one before it, with one net on the other side.
        costs = [sum(_crossings(net, other, gutter) for other in placed)]
        for other in placed:
            costs.append(costs[-1] + _crossings(other, net, gutter) - _crossings(net, other, gutter))
        placed.insert(costs.index(min(costs)), net)
    return placed


def _heights(net: Net, gutter: int) -> tuple[list[float], list[float]]:
    left, right = ([item.y + dy for item, dy in side.get(gutter, ())] for side in (net.left, net.right))
    return left, right


def _crossings(left: Net, right: Net, gutter: int) -> int:
    """Return how often the lines of two nets cross if one is left of the other."""
    (left_in, left_out), (right_in, right_out) = _heights(left, gutter), _heights(right, gutter)
    crossed = [y for y in left_out if min(right_in + right_out) <= y <= max(right_in + right_out)]
    return len(crossed) + len([y for y in right_in if min(left_in + left_out) <= y <= max(left_in + left_out)])


def _draw_lines(
    found: Layout,
    columns: Columns,
    lefts: Sequence[float],
    rights: Sequence[float],
    tracks: Sequence[Sequence[Net]],
) -> None:
    x_of = {
        (id(net), gutter): rights[gutter] + MARGIN + PITCH * number
        for gutter, nets in enumerate(tracks)
        for number, net in enumerate(nets)
    }
    for net in columns.nets:
        target, dy = net.target
        for number, (source, source_dy), column in net.links:
            y = source.y + source_dy
            edges = (lefts, rights) if net.side > 0 else (rights, lefts)
            points = [((rights if column == net.column else edges[0])[column], y)]
            steps = range(column - net.side, net.column - net.side, -net.side) if column != net.column else [column]
            for step in steps:
                x = x_of[id(net), step if net.side > 0 else step - 1]
                item, port = net.end_at(step)
                points += [(x, y), (x, y := item.y + port)]
            points.append((edges[1][net.column], target.y + dy))
            found.lines[number] = _straight(points)


def _straight(points: Sequence[Point]) -> list[Point]:
    """Leave out corners at which a line does not turn."""
    kept: list[Point] = []
    for point in points:
        if kept and math.dist(kept[-1], point) < 0.01:
            continue
        if len(kept) > 1 and _are_in_line(kept[-2], kept[-1], point):
            kept.pop()
        kept.append(point)
    return kept


def _are_in_line(a: Point, b: Point, c: Point) -> bool:
    return (abs(a[0] - b[0]) < 0.01 and abs(b[0] - c[0]) < 0.01) or (
        abs(a[1] - b[1]) < 0.01 and abs(b[1] - c[1]) < 0.01
    )
