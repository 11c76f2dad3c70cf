"""Where the tables of one group stand: in columns, each right of what it refers to, close to what it is linked with."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..migrate.schema import Key

GAP = 30.0  # between two tables of a column
PASSAGE = 14.0  # the height of the way on which lines pass a column
ASPECT = 1.5  # the width of a picture to its height
SWEEPS = 24


@dataclass(frozen=True)
class Size:
    """How large a table is drawn."""

    width: float
    height: float


@dataclass(frozen=True)
class Link:
    """A line from a table to the one that it refers to; each end is so far below the top of its table."""

    source: Key
    source_port: float
    target: Key
    target_port: float


@dataclass(eq=False)
class Item:
    """What stands in a column: a table, or a passage for the lines of one net."""

    height: float
    key: Key | None = None
    y: float = 0.0
    margin: float = 0.0  # above and below

    @property
    def whole(self) -> float:
        return self.height + 2 * self.margin


Port = tuple[Item, float]


@dataclass(eq=False)
class Net:
    """Lines that end at one port of a table, and share their way to it; `side` is 1 to the right of the table.

    `left` and `right` are the ports on both sides of each gutter that the net is in; a gutter has the number of the
    column to its left.
    """

    target: Port
    column: int
    side: int
    links: list[tuple[int, Port, int]] = field(default_factory=list)  # number of the link, source, its column
    passages: dict[int, Item] = field(default_factory=dict)
    left: dict[int, list[Port]] = field(default_factory=lambda: defaultdict(list))
    right: dict[int, list[Port]] = field(default_factory=lambda: defaultdict(list))

    def end_at(self, column: int) -> Port:
        """Return where the net is in a column on its way to the target."""
        return self.target if column == self.column else (self.passages[column], PASSAGE / 2)


@dataclass
class Columns:
    """The items of each column from the top, and the nets between them."""

    columns: list[list[Item]]
    nets: list[Net]


def arranged(sizes: Mapping[Key, Size], links: Sequence[Link]) -> Columns:
    """Place linked tables in columns.

    :param links: between these tables alone.
    """
    placed = [[Item(sizes[key].height, key, margin=GAP / 2) for key in keys] for keys in _columns(sizes, links)]
    nets = list(_nets(placed, links))
    for net in nets:
        for column, passage in net.passages.items():
            placed[column].append(passage)
    found = Columns([_with_passages_between(column) for column in placed], nets)
    _settle(found)
    return found


def _with_passages_between(column: Sequence[Item]) -> list[Item]:
    """Return a column with its passages in the middle of its tables: below them, each column would stand lower."""
    tables = [item for item in column if item.key]
    middle = len(tables) // 2
    return [*tables[:middle], *(item for item in column if not item.key), *tables[middle:]]


# Columns


def _columns(sizes: Mapping[Key, Size], links: Sequence[Link]) -> list[list[Key]]:
    """Return the tables by columns: what is referred to comes first, and no column is much higher than wide enough."""
    ranks = _ranks(list(sizes), links)
    area = sum((size.height + GAP) * (size.width + 90) for size in sizes.values())
    limit = max(math.sqrt(area / ASPECT), max(size.height for size in sizes.values()) + GAP)
    columns: list[list[Key]] = []
    place: dict[Key, float] = {}
    for rank in range(max(ranks.values()) + 1):
        keys = [key for key in sizes if ranks[key] == rank]
        keys.sort(key=lambda key: (_mean(place[t] for t in _targets(key, links) if t in place), key))
        parts = list(_split(keys, sizes, limit))
        columns += parts
        place |= {key: number / len(part) for part in parts for number, key in enumerate(part)}
    return columns


def _targets(key: Key, links: Sequence[Link]) -> list[Key]:
    return [link.target for link in links if link.source == key]


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0


def _split(keys: Sequence[Key], sizes: Mapping[Key, Size], limit: float) -> Iterator[list[Key]]:
    """Split tables into columns of about equal height, none above a limit."""
    total = sum(sizes[key].height + GAP for key in keys)
    share = total / math.ceil(total / limit)
    part: list[Key] = []
    height = 0.0
    for key in keys:
        own = sizes[key].height + GAP
        if part and height + own / 2 > share:
            yield part
            part, height = [], 0.0
        part.append(key)
        height += own
    if part:
        yield part


def _ranks(keys: Sequence[Key], links: Sequence[Link]) -> dict[Key, int]:
    """Return for each table how far it is from tables that refer to none; a cycle is cut where most refer to."""
    targets: dict[Key, set[Key]] = {key: set() for key in keys}
    sources: dict[Key, set[Key]] = {key: set() for key in keys}
    for link in links:
        if link.source != link.target:
            targets[link.source].add(link.target)
            sources[link.target].add(link.source)
    ranks: dict[Key, int] = {}
    left = {key: len(targets[key]) for key in keys}
    ready = [key for key in keys if not left[key]]
    while left:
        if not ready:
            ready = [min(left, key=lambda key: (left[key] - len(sources[key]), key))]
        key = ready.pop(0)
        del left[key]
        ranks[key] = max((ranks[t] + 1 for t in targets[key] if t in ranks), default=0)
        for source in sorted(sources[key] & left.keys()):
            left[source] -= 1
            if not left[source]:
                ready.append(source)
        ready = [each for each in ready if each in left]
    for key in sorted(keys, key=lambda key: -ranks[key]):  # close to those that refer to it
        if sources[key] and not targets[key]:
            ranks[key] = max(ranks[key], min(ranks[s] for s in sources[key]) - 1)
    return ranks


# Nets


def _nets(columns: Sequence[Sequence[Item]], links: Sequence[Link]) -> Iterator[Net]:
    at = {item.key: (number, item) for number, column in enumerate(columns) for item in column}
    nets: dict[tuple[Key, float, int], Net] = {}
    for number, link in enumerate(links):
        here, source = at[link.source]
        there, target = at[link.target]
        side = -1 if here < there else 1
        port = (target, link.target_port)
        net = nets.setdefault((link.target, link.target_port, side), Net(port, there, side))
        net.links.append((number, (source, link.source_port), here))
    for net in nets.values():
        _lead(net)
        yield net


def _lead(net: Net) -> None:
    """Lead a net from its target to the column of its farthest source, past the columns in between."""
    reached = [column for _, _, column in net.links]
    farthest = max(reached) if net.side > 0 else min(reached)
    net.passages = {
        column: Item(PASSAGE) for column in range(net.column + net.side, farthest, net.side) if column != net.column
    }
    near, far = (net.left, net.right) if net.side > 0 else (net.right, net.left)
    for column in {
        *range(net.column, farthest, net.side),
        net.column,
    }:  # towards each column: the end nearer to the target
        gutter = column if net.side > 0 else column - 1
        near[gutter].append(net.end_at(column))
        if column + net.side in net.passages:
            far[gutter].append(net.end_at(column + net.side))
    for _, source, column in net.links:
        if column == net.column:
            net.left[column].append(source)
        else:
            far[column - 1 if net.side > 0 else column].append(source)


# Heights


def settled(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Return the places nearest to the wanted ones, in their order and without overlap (isotonic regression)."""
    blocks: list[tuple[float, int]] = []
    offsets = [0.0]
    for place, height in zip(wanted, heights, strict=True):
        mean, count = place - offsets[-1], 1
        while blocks and blocks[-1][0] > mean:
            before, number = blocks.pop()
            mean, count = (mean * count + before * number) / (count + number), count + number
        blocks.append((mean, count))
        offsets.append(offsets[-1] + height)
    means = [mean for mean, count in blocks for _ in range(count)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=False)]


def _settle(found: Columns) -> None:
    """Move items up and down until linked ones are close; keep the best that a number of sweeps finds."""
    near = _neighbours(found.nets)
    first = [list(column) for column in found.columns]
    best, places = math.inf, {}
    # By their centres, tables whose reference is one of their last columns come above each line that passes them: many
    # that refer to one would stand as a staircase.
    for by_ends in (False, True):
        for column, items in zip(found.columns, first, strict=True):
            column[:] = items
            _place(column, [0.0] * len(column))
        for sweep in range(SWEEPS):
            order = range(len(found.columns)) if sweep % 2 == 0 else range(len(found.columns) - 1, -1, -1)
            for number in order:
                side = None if sweep >= SWEEPS // 2 else -1 if sweep % 2 == 0 else 1
                _sweep(found.columns[number], near, side, by_ends=by_ends)
            if (length := _length(found.nets)) < best:
                best, places = length, {id(i): (i.y, n) for c in found.columns for n, i in enumerate(c)}
    for column in found.columns:
        column.sort(key=lambda item: places[id(item)][1])
        for item in column:
            item.y = places[id(item)][0]


Near = dict[int, list[tuple[int, float, Port]]]  # by item: to the left or right, own port, the other port


def _neighbours(nets: Sequence[Net]) -> Near:
    near: Near = defaultdict(list)
    for net in nets:
        for gutter, ports in net.left.items():
            for item, dy in ports:
                near[id(item)] += [(1, dy, other) for other in net.right.get(gutter, ())]
            for item, dy in net.right.get(gutter, ()):
                near[id(item)] += [(-1, dy, other) for other in ports]
    return near


def _sweep(column: list[Item], near: Near, side: int | None, *, by_ends: bool) -> None:
    """Move the items of a column to what they are linked with, at one side or at both.

    :param by_ends: order them by where their lines end, not by where their own centres would be.
    """
    wanted, centres = {}, {}
    for item in column:
        found = [(other[0].y + other[1], dy) for to, dy, other in near[id(item)] if side in (None, to)]
        wanted[id(item)] = _mean(y - dy for y, dy in found) if found else item.y
        centres[id(item)] = wanted[id(item)] + item.height / 2
        if by_ends and found:
            centres[id(item)] = _mean(y for y, _ in found)
    column.sort(key=lambda item: centres[id(item)])
    _place(column, [wanted[id(item)] for item in column])


def _place(column: Sequence[Item], wanted: Sequence[float]) -> None:
    tops = [place - item.margin for place, item in zip(wanted, column, strict=True)]
    for item, top in zip(column, settled(tops, [item.whole for item in column]), strict=True):
        item.y = top + item.margin


def _length(nets: Sequence[Net]) -> float:
    """Return how far lines go up and down in all."""
    spans = (
        [item.y + dy for item, dy in (*net.left[gutter], *net.right[gutter])]
        for net in nets
        for gutter in {*net.left, *net.right}
    )
    return sum(max(ys) - min(ys) for ys in spans if ys)
