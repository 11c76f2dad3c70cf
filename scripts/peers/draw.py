"""Draw the figures, which come as JSON on stdin, to the SVG file that the command line names. Needs matplotlib."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot
from matplotlib.axes import Axes

ENGINES = {"sqlite": "SQLite", "postgres": "PostgreSQL"}
OURS = "#c2410c"
OTHERS = ("#1d4ed8", "#0e7490", "#15803d", "#65a30d", "#7e22ce", "#be185d", "#475569", "#a16207", "#0f172a", "#db2777")


def bars(axes: Axes, rows: Sequence[dict[str, Any]], colours: dict[str, str]) -> None:
    """Draw a pair of bars for each tool: in process, and the whole process paler."""
    for position, row in enumerate(rows):
        for offset, (part, alpha) in enumerate((("inside", 1.0), ("whole", 0.45))):
            y = position + (offset - 0.5) * 0.38
            if "failed" in row[part]:
                axes.text(0.02, y, " failed", va="center", fontsize=8, transform=axes.get_yaxis_transform())
                continue
            value = row[part]["ms"]
            axes.barh(y, value, height=0.36, color=colours[row["tool"]], alpha=alpha)
            axes.text(value, y, f" {value:.3g}", va="center", fontsize=8)
    axes.set_xscale("log")
    values = [row[part]["ms"] for row in rows for part in ("inside", "whole") if "ms" in row[part]] or [1]
    axes.set_xlim(min(values) / 2, max(values) * 3)
    axes.set_yticks(range(len(rows)), [row["tool"] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("ms, logarithmic: in process; paler: whole process")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def lines(axes: Axes, rows: Sequence[dict[str, Any]], colours: dict[str, str]) -> None:
    """Draw a line for each tool over the number of tables."""
    for tool, colour in colours.items():
        points = [(row["size"], row["ms"]) for row in rows if row["tool"] == tool and "ms" in row]
        if points:
            width = 2.6 if colour == OURS else 1.4
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=colour, linewidth=width, label=tool)
    sizes = sorted({row["size"] for row in rows})
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("tables, logarithmic")
    axes.set_ylabel("ms in process, logarithmic")
    axes.grid(alpha=0.3)


def main() -> None:
    """Draw two panels an engine: the no-op start, and its growth."""
    results = json.load(sys.stdin)
    tools = results["tools"]
    colours = dict(zip(tools, (OURS, *OTHERS), strict=False))
    pyplot.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "benchmark", "font.family": "sans-serif"})
    figure, grid = pyplot.subplots(2, 2, figsize=(13, 9.5), layout="constrained", facecolor="white")
    for column, (engine, name) in enumerate(ENGINES.items()):
        starts = [row for row in results["starts"] if row["engine"] == engine and row["scenario"] == "no-op"]
        bars(grid[0][column], starts, colours)
        grid[0][column].set_title(f"A start with nothing to do, {name}")
        lines(grid[1][column], [row for row in results["growth"] if row["engine"] == engine], colours)
        grid[1][column].set_title(f"The same over more tables, {name}")
    figure.legend(*grid[1][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    figure.savefig(sys.argv[1], metadata={"Date": None})


if __name__ == "__main__":
    main()
