"""Measure how long writers wait beside long work on the rows: `retain` deletes half, a data migration changes all.

    python scripts/benchmark_rows.py [--work retain|data] [--rows N] [--seconds N] [--rounds N] [--dsn POSTGRES_DSN]

Four processes write events of 250 bytes of JSON, one a transaction, first alone and then beside the run. Prints, for
each engine, the p99.9 and the longest of their waits in milliseconds and the rows that the run did a second; medians
of the rounds. Without a DSN it starts the PostgreSQL of the test extra. The database is filled anew for each round.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import peewee
from peers.surroundings import postgres, progress

from whatspire_db import Event, MigrationRunner, Settings, connect
from whatspire_db.data import DataMigrations, Rule, retain
from whatspire_db.fields import utcnow
from whatspire_db.models.data_migrations import DataMigration

WRITERS, PAUSE_SECONDS, DAYS = 4, 0.005, 30
DATA = {"text": "x" * 230}


class Waits(NamedTuple):
    """Of all writes: the p99.9 and the longest, in milliseconds."""

    high: float
    longest: float


def main() -> None:
    """Measure both engines and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=list(WORK), default="retain")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long the writers are measured alone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dsn", help="of a PostgreSQL database that may be emptied")
    options = parser.parse_args()
    print(f"| engine | alone: p99.9, longest | beside {options.work}: p99.9, longest | rows a second |")
    print("| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder, postgres(options.dsn) as (server, _):
        for engine, dsn in (("SQLite", f"{folder}/events.db"), ("PostgreSQL", server)):
            progress(engine)
            rounds = [measured(WORK[options.work], dsn, options.rows, options.seconds) for _ in range(options.rounds)]
            alone, beside, speed = (list(each) for each in zip(*rounds, strict=True))
            print(f"| {engine} | {_shown(alone)} | {_shown(beside)} | {median(speed):,.0f} |", flush=True)


def _shown(waits: list[Waits]) -> str:
    return f"{median(each.high for each in waits):.1f}, {median(each.longest for each in waits):.1f}"


def deleted(db: peewee.Database, rows: int) -> int:
    """Delete the older half, and return how many rows that were."""
    (done,) = retain(db, [Rule(Event, Event.timestamp, timedelta(days=DAYS), "benchmark")])
    if done.rows != rows // 2:
        raise SystemExit(f"{done.rows} rows were deleted, and {rows // 2} are older than the rule says")
    return done.rows


def changed(db: peewee.Database, rows: int) -> int:
    """Change all rows that were there before, and return how many that were."""

    def change(batch: Any) -> None:
        Event.update(created_at=moment).where(batch).execute()

    moment = utcnow()
    (done,) = DataMigrations(db, [DataMigration(str(moment), Event, change)]).run().done
    with db.connection_context():
        left = Event.select().where(Event.created_at < moment).count(db)
    if left > done.rows // 100:  # what the writers have written meanwhile before the place that the run had reached
        raise SystemExit(f"{left} rows were not changed")
    return done.rows


WORK = {"retain": deleted, "data": changed}


def measured(
    work: Callable[[peewee.Database, int], int], dsn: str, rows: int, seconds: float
) -> tuple[Waits, Waits, float]:
    """Fill the table, measure the writers alone and beside a run; return their waits and the rows a second."""
    fill(dsn, rows)
    with writers(dsn) as alone:
        time.sleep(seconds)
    with writers(dsn) as beside:
        started = time.monotonic()
        done = work(connect(Settings(dsn=dsn, log_level="silent")), rows)
        took = time.monotonic() - started
    return waits_of(alone), waits_of(beside), done / took


def fill(dsn: str, rows: int) -> None:
    """Make the service's tables anew, with events of which each second one is older than the rule says."""
    db = connect(Settings(dsn=dsn, log_level="silent"))
    with db.connection_context():
        db.drop_tables([Event], safe=True)
        MigrationRunner(db).up()
        now = utcnow()
        for start in range(0, rows, 10_000):
            with db.atomic():
                ages = [timedelta(days=60 if n % 2 else 1, microseconds=n) for n in range(start, start + 10_000)]
                batch = [event(now - age) for age in ages]
                for part in range(0, len(batch), 1000):
                    Event.insert_many(batch[part : part + 1000]).execute()
        db.execute_sql("ANALYZE")


def event(moment: Any) -> dict[str, Any]:
    """Return the values of a row."""
    return {
        "id": str(uuid.uuid4()),
        "type": "message",
        "session_id": f"s{moment.second}",
        "data": DATA,
        "timestamp": moment,
        "created_at": moment,
    }


class writers:
    """Four processes that write during the block; afterwards `waits` holds how long each write took, in seconds."""

    def __init__(self, dsn: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.stop, self.queue = context.Event(), context.Queue()
        self.processes = [context.Process(target=write, args=(dsn, self.stop, self.queue)) for _ in range(WRITERS)]
        self.waits: list[float] = []

    def __enter__(self) -> writers:
        for process in self.processes:
            process.start()
        for _ in self.processes:
            self.queue.get()  # it has begun
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for _ in self.processes:
            self.waits += self.queue.get()
        for process in self.processes:
            process.join()


def write(dsn: str, stop: Any, queue: Any) -> None:
    """Write rows until it is to stop, and hand over how long each took."""
    db, waits = connect(Settings(dsn=dsn, log_level="silent")), []
    with db.connection_context():
        Event.insert(event(utcnow())).execute()
        queue.put("begun")
        while not stop.is_set():
            row = event(utcnow())
            started = time.perf_counter()
            Event.insert(row).execute()
            waits.append(time.perf_counter() - started)
            time.sleep(PAUSE_SECONDS)
    queue.put(waits)


def waits_of(block: writers) -> Waits:
    """Return the p99.9 and the longest of a block's waits."""
    waits = sorted(block.waits)
    return Waits(waits[int(len(waits) * 0.999)] * 1000, waits[-1] * 1000)


if __name__ == "__main__":
    main()
