"""Measure what a start costs: CPU time and memory beside Peewee alone, from a wheel, on SQLite and PostgreSQL.

    python scripts/benchmark_start.py [--dsn POSTGRES_DSN] [--rounds N] [--wheel FILE]

Compares `python -m whatspire_db.migrate` that finds nothing to do with a script that connects by Peewee and runs one
query, and a worker that connects and reads one row through this package with one that does so through Peewee. All
programs take turns; CPU (user and system) in milliseconds and peak memory in MiB are medians. Without a DSN it starts
the PostgreSQL of the test extra. The database that a DSN names gets the service's tables.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from psycopg2.extensions import parse_dsn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from peers.bench import ROOT
from peers.surroundings import install, postgres, progress

QUERY = """
import peewee
db = {database}
db.connect()
db.execute_sql("SELECT 1").fetchone()
db.close()
"""
WORKER = """
import peewee
db = {database}
class Session(peewee.Model):
    id = peewee.TextField(primary_key=True)
    name = peewee.TextField()
    status = peewee.TextField()
    class Meta:
        database = db
        table_name = "sessions"
with db:
    Session.select().first()
"""
OURS = """
from whatspire_db import Session, connect
with connect():
    Session.select().first()
"""
# A process of its own, for a new one begins with the peak of the one that starts it, and this one's is too large.
LAUNCH = """
import os, sys
process = os.spawnv(os.P_NOWAIT, sys.argv[1], sys.argv[1:])
_, status, usage = os.wait4(process, 0)
print((usage.ru_utime + usage.ru_stime) * 1000, usage.ru_maxrss / 1024, file=sys.stderr)
sys.exit(os.waitstatus_to_exitcode(status))
"""


class Cost(NamedTuple):
    """What one process took: `cpu` in milliseconds, `memory` at its peak in MiB."""

    cpu: float
    memory: float


def cost(command: Sequence[str], environment: Mapping[str, str]) -> Cost:
    """Run a program and return its cost.

    :raises CalledProcessError: when it fails.
    """
    launch = [sys.executable, "-I", "-S", "-c", LAUNCH, *command]
    output = subprocess.run(launch, env=environment, check=True, capture_output=True, text=True).stderr
    return Cost(*map(float, output.splitlines()[-1].split()))


def database(driver: str, dsn: str) -> str:
    """Return the expression that makes Peewee's database."""
    if driver == "sqlite":
        return f"peewee.SqliteDatabase({dsn!r})"
    parts = parse_dsn(dsn)
    return f"peewee.PostgresqlDatabase({parts.pop('dbname', '')!r}, **{parts!r})"


def pairs(python: str, driver: str, dsn: str, folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield what is compared: its name, the program through Peewee, and ours."""
    for name, alone, ours in (
        ("start with nothing to do", QUERY, ["-m", "whatspire_db.migrate"]),
        ("worker that reads a row", WORKER, ["worker.py"]),
    ):
        # A file, for a program given by -c is compiled at each start.
        (folder / f"{driver}.{name[:5]}.py").write_text(alone.format(database=database(driver, dsn)))
        (folder / "worker.py").write_text(OURS)
        yield name, [python, f"{driver}.{name[:5]}.py"], [python, *ours]


def measure(python: str, driver: str, dsn: str, rounds: int, folder: Path) -> Iterator[str]:
    """Yield the lines of one engine."""
    steering = ("PYTHON", "PG", "WHATSAPP_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(steering)}
    environment |= {"WHATSAPP_DATABASE_DRIVER": driver, "WHATSAPP_DATABASE_DSN": dsn}
    subprocess.run([python, "-m", "whatspire_db.migrate", "-q"], env=environment, check=True)
    for name, alone, ours in pairs(python, driver, dsn, folder):
        progress(f"{driver}, {name}")
        for command in (alone, ours):  # compiled files and the page cache are there afterwards
            cost(command, environment)
        costs = [(cost(alone, environment), cost(ours, environment)) for _ in range(rounds)]
        theirs, own = (
            Cost(median(one[side].cpu for one in costs), median(one[side].memory for one in costs)) for side in (0, 1)
        )
        yield (
            f"| {driver} | {name} | {theirs.cpu:.0f} | {own.cpu:.0f} | {own.cpu / theirs.cpu:.2f} "
            f"| {theirs.memory:.0f} | {own.memory:.0f} | {own.memory / theirs.memory:.2f} |"
        )


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dsn", help="a PostgreSQL of a role that may make tables")
    parser.add_argument("--rounds", type=int, default=30, help="runs of which the median counts (default: 30)")
    parser.add_argument("--wheel", help="a wheel of this package (default: one is built)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as base, postgres(options.dsn) as (dsn, _):
        folder = Path(base)
        os.chdir(folder)  # away from the checkout, which would be imported instead of the wheel
        if not install(folder, "start", [options.wheel or str(ROOT)]):
            raise SystemExit(1)
        python = str(folder / "start" / "bin" / "python")
        print("| engine | what | Peewee, CPU ms | ours | ratio | Peewee, MiB | ours | ratio |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        for driver, place in (("sqlite", str(folder / "start.db")), ("postgres", dsn)):
            for line in measure(python, driver, place, options.rounds, folder):
                print(line, flush=True)


if __name__ == "__main__":
    main()
