"""Measure a start of the migrator beside its peers, in one run, on SQLite and PostgreSQL; ratios are what counts.

    python scripts/benchmark.py [--dsn POSTGRES_DSN] [--rounds N] [--quick] [--output FOLDER] [--environments FOLDER]

Peers are peewee's create_tables(safe=True), playhouse.schema_diff, pwmigrate, peewee-migrate, Alembic and Django,
each from PyPI in a virtual environment of its own. Writes benchmark.md and benchmark.svg, and prints the former.
Without a DSN it starts the PostgreSQL of the test extra; a DSN needs a role that may make databases, and statements
are not counted."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from peers import report, tables
from peers.bench import ROOT, Bench, Result, guarded, reason, set_up
from peers.surroundings import install_all, postgres, progress, versions
from peers.tools import PEERS, TOOLS, Tool, write_models

from whatspire_db.models.service import SERVICE_MODELS

ENGINES = ("sqlite", "postgres")
SCENARIOS = ("no-op", "fresh", "column")


def starts(bench: Bench, driver: str) -> Iterator[Result]:
    """Measure every scenario on one engine."""
    for scenario in SCENARIOS:
        tools = [tool for tool in TOOLS if tool.migrates or scenario == "no-op"]
        inside = {tool.label: _inside(bench, tool, driver, scenario) for tool in tools}
        whole = _whole(bench, tools, driver, scenario)
        for tool in tools:
            yield {
                "engine": driver,
                "scenario": scenario,
                "tool": tool.label,
                "inside": inside[tool.label],
                "whole": whole[tool.label],
            }


def _inside(bench: Bench, tool: Tool, driver: str, scenario: str) -> Result:
    progress(f"{driver}, {scenario}, in process: {tool.label}")
    return guarded(_inside_once, bench, tool, driver, scenario)


def _inside_once(bench: Bench, tool: Tool, driver: str, scenario: str) -> Result:
    bench.demand(tool, driver)
    return _checked(bench, tool, driver, bench.work(tool, driver, scenario, rounds=bench.rounds))


def _checked(
    bench: Bench, tool: Tool, driver: str, result: Result, wanted: Sequence[tables.Table] | None = None
) -> Result:
    """Return a result, or a failure when the tool exited well and left the schema wrong."""
    wrong = bench.wrong(bench.place(tool, driver), wanted)
    if not wrong:
        return result
    names = wrong[0] if len(wrong) == 1 else f"{wrong[0]} and {len(wrong) - 1} more"
    return {"failed": f"exit 0, but not all columns and indexes are there in {names}"}


def _whole(bench: Bench, tools: Sequence[Tool], driver: str, scenario: str) -> dict[str, Result]:
    """Measure whole processes, the tools in turns, so that all see the same machine; the first run counts and warms."""
    progress(f"{driver}, {scenario}, whole processes")
    results = {tool.label: guarded(_counted, bench, tool, driver, scenario) for tool in tools}
    runs: dict[str, list[Result]] = {tool.label: [] for tool in tools}
    for _ in range(bench.whole_rounds):
        for tool in tools:
            if "failed" not in results[tool.label]:
                run = guarded(_whole_once, bench, tool, driver, scenario)
                runs[tool.label].append(run)
                if "failed" in run:
                    results[tool.label] = run
    for label, result in results.items():
        if "failed" not in result:
            result |= {name: median(run[name] for run in runs[label]) for name in ("ms", "mib")}
    return results


def _whole_once(bench: Bench, tool: Tool, driver: str, scenario: str) -> Result:
    _before(bench, tool, driver, scenario)
    return _checked(bench, tool, driver, bench.start(tool, driver))


def _counted(bench: Bench, tool: Tool, driver: str, scenario: str) -> Result:
    bench.demand(tool, driver)
    _before(bench, tool, driver, scenario)
    return _checked(bench, tool, driver, {"statements": bench.count_whole(tool, driver)})


def _before(bench: Bench, tool: Tool, driver: str, scenario: str) -> None:
    place = bench.place(tool, driver)
    if scenario == "fresh":
        place.clear()
    elif scenario == "column":
        place.restore()


def growth(bench: Bench, driver: str) -> Iterator[Result]:
    """Measure a start in sync over more and more tables."""
    for size in bench.sizes:
        wanted = tables.many(size)
        for tool in TOOLS:
            progress(f"{driver}, {size} tables: {tool.label}")
            result = guarded(_grown, bench, tool, driver, wanted)
            yield {"engine": driver, "size": size, "tool": tool.label, **result}


def _grown(bench: Bench, tool: Tool, driver: str, wanted: Sequence[tables.Table]) -> Result:
    size = len(wanted)
    if tool.migrates:
        bench.place(tool, driver).clear()
        write_models(tool, driver, bench.project(tool, driver, size), wanted)
        bench.work(tool, driver, "make", size)
    return _checked(bench, tool, driver, bench.work(tool, driver, "no-op", size, bench.rounds), wanted)


def storms(bench: Bench, driver: str) -> Iterator[Result]:
    """Start many processes at once on an empty database and see what comes of it."""
    for number in bench.storms:
        for tool in TOOLS:
            if tool.migrates:
                progress(f"{driver}, {number} processes at once: {tool.label}")
                result = guarded(_storm, bench, tool, driver, number)
                yield {"engine": driver, "number": number, "tool": tool.label, **result}


def _storm(bench: Bench, tool: Tool, driver: str, number: int) -> Result:
    bench.demand(tool, driver)
    place = bench.place(tool, driver)
    place.clear()
    result = bench.launch(tool, driver, number)
    reasons = [reason(error) for error in result["errors"]]
    records = None
    if tool.history:
        name, wanted = tool.history
        there = name in place.tables()
        records = [place.query(f"SELECT count(*) FROM {name}")[0][0] if there else 0, wanted]
    return {
        "exited": result["codes"].count(0),
        "seconds": result["ms"] / 1000,
        "right": [len(bench.service) - len(bench.wrong(place)), len(bench.service)],
        "records": records,
        "reasons": {text: reasons.count(text) for text in dict.fromkeys(reasons)},
    }


def measure(bench: Bench) -> Result:
    """Measure everything and return all figures."""
    results: Result = {
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d}",
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "versions": versions(bench),
        "rounds": [bench.rounds, bench.whole_rounds],
        "tools": [tool.label for tool in TOOLS],
        "starts": [],
        "growth": [],
        "storms": [],
    }
    for driver in ENGINES:
        for tool in TOOLS:
            if tool.migrates:
                progress(f"{driver}, set up: {tool.label}")
                outcome = guarded(set_up, bench, tool, driver)
                if outcome:
                    bench.broken[driver, tool.family] = f"its setup: {outcome['failed']}"
        results["starts"] += starts(bench, driver)
        results["growth"] += growth(bench, driver)
        results["storms"] += storms(bench, driver)
        for tool in TOOLS:
            bench.place(tool, driver).drop()
    return results


def write(bench: Bench, results: Result, folder: Path) -> None:
    """Print the document, and write it and the picture to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = report.document(results)
    print(text)
    (folder / "benchmark.md").write_text(text, encoding="utf-8")
    if "matplotlib" in bench.missing:
        progress("no picture: matplotlib could not be installed")
        return
    draw = [bench.python("matplotlib"), str(PEERS / "draw.py"), str(folder / "benchmark.svg")]
    subprocess.run(draw, input=json.dumps(results), text=True, check=True)


def main() -> None:
    """Measure, print a document in Markdown, and write it and a picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dsn", help="a PostgreSQL of a role that may make databases; bench_* are made and dropped")
    parser.add_argument("--rounds", type=int, help="measurements of which the median counts (default: 20, quick: 5)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, tables and processes")
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="folder for the results (default: docs/)")
    parser.add_argument("--environments", type=Path, help="folder that keeps the virtual environments")
    options = parser.parse_args()
    rounds = options.rounds or (5 if options.quick else 20)
    with tempfile.TemporaryDirectory() as folder, postgres(options.dsn) as (dsn, log):
        environments = (options.environments or Path(folder) / "environments").resolve()
        bench = Bench(Path(folder), environments, tables.describe(SERVICE_MODELS), dsn, log)
        bench.rounds, bench.whole_rounds = rounds, max(2, rounds // 4)
        if options.quick:
            bench.sizes, bench.storms, bench.seconds = (10, 100), (16,), 1.0
        install_all(bench)
        results = measure(bench)
        write(bench, results, options.output)


if __name__ == "__main__":
    main()
