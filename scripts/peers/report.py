"""The figures as a document in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Result = dict[str, Any]
ENGINES = {"sqlite": "SQLite", "postgres": "PostgreSQL"}
SCENARIOS = {
    "no-op": "No-op: the schema is in sync",
    "fresh": "Fresh: the database is empty",
    "column": "One column added: the models have a nullable column that the database lacks",
}
TEXTS = ("tool", "engine", "what failed")  # columns of words
NOTES = """\
## How to read it

- × is the figure divided by whatspire_db's of the same column and engine, so whatspire_db is 1 and more is slower or
  bigger. Ratios within one run are what counts; milliseconds depend on the machine. Where its load average was not far
  below the number of CPUs before the run, other work distorts even ratios: the figures in process most, which are taken
  one tool after the other.
- *In process* is the run alone, on an open connection, with everything imported, by a new runner each time. *Whole
  process* is a new interpreter: import, connect, run, exit; measured in turns. *Peak MiB* is its largest resident set.
- *Statements* are in process / in the whole process. BEGIN, COMMIT, ROLLBACK, savepoints, SET, and SQLite's
  `PRAGMA name = value` are left out for all alike; everything else counts, on SQLite also what runs in `:memory:`.
  PostgreSQL's are counted in the log of the server, SQLite's by its trace, each in a run of its own.
- Everybody has the same tables, in the nearest types that each library has, the same driver (psycopg2), and in SQLite
  a file in WAL mode with `synchronous=NORMAL`. peewee-migrate cannot express descending indexes, CHECK constraints
  and defaults of the database: it has ascending indexes and leaves the others out. So has pwmigrate, whose generator
  leaves the order out, and Alembic on SQLite, whose `--autogenerate` passes over descending indexes there. Django
  adds an index to each text key on PostgreSQL.
- Migration files of pwmigrate, peewee-migrate, Alembic and Django (two each: the tables, the column) are generated
  beforehand and not measured. Not all do the same work: `run`, `up`, `upgrade` and `migrate` look at what was
  recorded, `create + run` also compares the models with the files, so a table that somebody changed passes unseen.
  create_tables asks for tables and indexes by name, schema_diff and `pwmigrate diff` for columns too; `alembic check`
  and whatspire_db compare types as well.
- A result counts when every table is there with all columns and as many indexes as it should have; otherwise it
  failed, whatever the exit code was.
- The storms are one sample each, on as many CPUs as named above: how many fail differs from run to run, and a tool that
  takes long to import spreads its processes and meets itself less. Patience with locks and the like is each tool's
  default. Records are the rows in which a tool notes what it did.
"""


def document(results: Result) -> str:
    """Return all tables."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    inside, whole = results["rounds"]
    sections = [
        "# Benchmark",
        f"{results['date']}, {results['cpus']} CPUs, load average before {results['load']:.1f}. {versions}. "
        f"Medians of up to {inside} runs in process and {whole} whole processes.",
        "![No-op starts and their growth](benchmark.svg)",
    ]
    for scenario, title in SCENARIOS.items():
        for engine, name in ENGINES.items():
            rows = [r for r in results["starts"] if r["scenario"] == scenario and r["engine"] == engine]
            sections += [f"## {title}, {name}", _starts(rows)]
    sections += ["## Growth: a no-op over more tables, in process", _growth(results)]
    sections += ["## Storm: processes started at once on an empty database", _storms(results["storms"])]
    return "\n\n".join([*sections, NOTES])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---" if name in TEXTS else "---:" for name in head], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _starts(rows: Sequence[Result]) -> str:
    head = ["tool", "statements", "in process ms", "×", "whole process ms", "×", "peak MiB", "×"]
    ours = rows[0]
    lines = []
    failures = []
    for row in rows:
        inside, whole = row["inside"], row["whole"]
        counts = f"{_count(inside)} / {_count(whole)}"
        cells = [row["tool"], counts]
        for part, name in (("inside", "ms"), ("whole", "ms"), ("whole", "mib")):
            cells += _pair(row[part], ours[part], name)
        lines.append(cells)
        reasons = dict.fromkeys(part["failed"] for part in (inside, whole) if "failed" in part)
        failures += [f"- {row['tool']} failed: {reason}" for reason in reasons]
    return _table(head, lines) + _listed(failures)


def _listed(failures: Sequence[str]) -> str:
    return "\n\n" + "\n".join(failures) if failures else ""


def _count(figures: Result) -> str:
    count = figures.get("statements")
    return "–" if count is None else str(count)


def _pair(figures: Result, ours: Result, name: str) -> list[str]:
    """Return a figure and its ratio to ours."""
    if "failed" in figures:
        return ["**failed**" if name == "ms" else "–", "–"]
    return [_number(figures[name]), _ratio(figures[name], ours.get(name))]


def _number(value: float) -> str:
    return f"{value:.2g}" if value < 1 else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _ratio(value: float, ours: float | None) -> str:
    return "–" if not ours else "1" if value == ours else _number(value / ours)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _growth(results: Result) -> str:
    rows = results["growth"]
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    head = ["tool", "engine"]
    for size in sizes:
        head += [f"{size} tables ms", "×"]
    head.append(f"statements at {', '.join(map(str, sizes))}")
    lines = []
    for engine, name in ENGINES.items():
        found = {(row["tool"], row["size"]): row for row in rows if row["engine"] == engine}
        for tool in results["tools"]:
            cells = [tool, name]
            for size in sizes:
                cells += _pair(found[tool, size], found[results["tools"][0], size], "ms")
            cells.append(", ".join(_count(found[tool, size]) for size in sizes))
            lines.append(cells)
    failed = [row for row in rows if "failed" in row]
    failures = [f"- {r['tool']} failed at {r['size']} on {ENGINES[r['engine']]}: {r['failed']}" for r in failed]
    return _table(head, lines) + _listed(failures)


def _storms(rows: Sequence[Result]) -> str:
    head = ["tool", "engine", "processes", "exit 0", "seconds", "×", "tables right", "records", "what failed"]
    lines = []
    ours: Result = {}
    for row in rows:
        ours = row if row["tool"] == rows[0]["tool"] else ours
        cells = [row["tool"], ENGINES[row["engine"]], str(row["number"])]
        if "failed" in row:
            lines.append([*cells, "–", "–", "–", "–", "–", f"**failed**: {_escaped(row['failed'])}"])
            continue
        exited = str(row["exited"]) if row["exited"] == row["number"] else f"**{row['exited']}**"
        right = _of(row["right"])
        records = _of(row["records"]) if row["records"] else "none kept"
        reasons = "; ".join(f"{n}× {_escaped(text)}" for text, n in row["reasons"].items())
        seconds = [f"{row['seconds']:.1f}", _ratio(row["seconds"], ours.get("seconds"))]
        lines.append([*cells, exited, *seconds, right, records, reasons])
    return _table(head, lines)


def _of(pair: Sequence[int]) -> str:
    text = f"{pair[0]} of {pair[1]}"
    return text if pair[0] == pair[1] else f"**{text}**"
