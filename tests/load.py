"""Worker processes that write while a server comes and goes, what they note, and whether the tables agree with it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from itertools import chain, takewhile
from pathlib import Path
from statistics import median
from typing import Any

import psycopg2

from tests.servers import eventually, psql
from tests.writer import MAX_OPEN_CONNS, TABLES, THREADS

ROOT = Path(__file__).parent.parent
Property = Callable[[str, object], None]
ALLOWED = {"", "OperationalError", "ConnectionFailed"}


@dataclass(frozen=True)
class Attempt:
    """One try of a thread to write a row, as the thread noted it."""

    key: str
    began: float
    ended: float
    error: str
    text: str

    @property
    def acknowledged(self) -> bool:
        return not self.error


@dataclass(frozen=True)
class Outage:
    """When the server was stopped, and when one accepted connections again."""

    down: float
    up: float


@dataclass
class Writer:
    """A thread of a worker process; `attempts` holds what was read of its notes so far."""

    notes: Path
    attempts: list[Attempt] = field(default_factory=list)
    position: int = 0

    def read(self) -> list[Attempt]:
        """Return all attempts, those noted since the last call included."""
        if self.notes.exists():
            with self.notes.open("rb") as file:
                file.seek(self.position)
                whole = file.read().rpartition(b"\n")[0]
            self.attempts += [Attempt(*json.loads(line)) for line in whole.splitlines()]
            self.position += len(whole) + bool(whole)
        return self.attempts

    def acknowledged(self, since: float) -> list[Attempt]:
        """Return the attempts that began after a moment and were committed, the latest first."""
        return [a for a in takewhile(lambda a: a.began >= since, reversed(self.read())) if a.acknowledged]


@dataclass
class Load:
    """The processes at work, and the pool figures of each when they have ended."""

    writers: list[Writer]
    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    ends: list[dict[str, Any]] = field(default_factory=list)

    def goes_on(self, since: float = 0, times: int = 1) -> None:
        """Wait until every thread has begun and committed so many rows since a moment."""
        eventually(
            lambda: all(len(writer.acknowledged(since)) >= times for writer in self.writers),
            "every thread has written",
        )

    def stop(self) -> None:
        """Let every thread end its row, and each process tell its pool's figures."""
        for process in self.processes:
            out, _ = process.communicate(timeout=90)
            assert process.returncode == 0
            self.ends.append(json.loads(out))

    @property
    def attempts(self) -> list[Attempt]:
        return [attempt for writer in self.writers for attempt in writer.read()]


@contextmanager
def at_work(dsns: Sequence[str], admin: str, folder: Path) -> Iterator[Load]:
    """Make the tables and let a process for each DSN write into them; none outlives the block."""
    names = [[f"{process}.{thread}" for thread in range(THREADS)] for process in range(len(dsns))]
    tallies = ", ".join(f"('{name}', 0)" for name in chain(*names))
    psql(admin, f"SET client_min_messages = warning; {TABLES} INSERT INTO tally VALUES {tallies}")
    load = Load([Writer(folder / name) for name in chain(*names)])
    with ExitStack() as stack:
        for dsn, own in zip(dsns, names, strict=True):
            process = stack.enter_context(start(dsn, folder, own))
            stack.callback(process.kill)
            load.processes.append(process)
        load.goes_on()
        yield load


def start(dsn: str, folder: Path, names: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.writer", dsn, str(folder), *names],
        env={k: v for k, v in os.environ.items() if not k.startswith("WHATSAPP_DATABASE_")},
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


# What must hold afterwards


def all_went_well(load: Load, outages: Sequence[Outage], admin: str) -> None:
    """Check what the workers noted against the tables, and that they went on with nobody's help."""
    nothing_lost_and_nothing_doubled(load, admin)
    first_errors_alone_were_seen(load)
    went_on_by_themselves(load, outages)
    pools_are_at_rest(load)


def nothing_lost_and_nothing_doubled(load: Load, admin: str) -> None:
    """Compare the tables with the notes."""
    with closing(psycopg2.connect(admin)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT key, writer FROM entry")
        rows = cursor.fetchall()
        cursor.execute("SELECT writer, written FROM tally")
        tallies = dict(cursor.fetchall())
    stored = Counter(key for key, _ in rows)
    lost = [a for a in load.attempts if a.acknowledged and a.key not in stored]
    doubled = [key for key, times in stored.items() if times > 1]
    unknown = stored.keys() - {attempt.key for attempt in load.attempts}
    counted = Counter(writer for _, writer in rows)
    assert (lost, doubled, unknown) == ([], [], set()), (lost, doubled, unknown)
    assert tallies == {writer: counted[writer] for writer in tallies}, (tallies, counted)


def first_errors_alone_were_seen(load: Load) -> None:
    """Show that no thread met anything but the failure itself, and a server that could not be reached."""
    others = [attempt for attempt in load.attempts if attempt.error not in ALLOWED]
    assert not others, others


def went_on_by_themselves(load: Load, outages: Sequence[Outage]) -> None:
    """Show that no row failed that was begun on a server that stood, and one a thread at most when it stood again."""
    for outage, writer, failed in failures(load, outages):
        late = [attempt for attempt in failed if attempt.ended >= outage.up]
        begun = [attempt for attempt in late if attempt.began >= outage.up]
        assert not begun, (outage, begun)
        assert len(late) <= 1, (outage, late)
        assert writer.acknowledged(outage.up), (outage, writer.notes.name)


def failures(load: Load, outages: Sequence[Outage]) -> Iterator[tuple[Outage, Writer, list[Attempt]]]:
    """Give for each outage and each thread what failed between it and the next one."""
    ends = [outage.down for outage in outages[1:]] + [math.inf]
    for outage, end in zip(outages, ends, strict=False):
        for writer in load.writers:
            yield outage, writer, [a for a in writer.attempts if outage.down <= a.ended < end and a.error]


def pools_are_at_rest(load: Load) -> None:
    for end in load.ends:
        pool = end["pool"]
        assert end["hanging"] == [], end
        assert pool["in_use"] == 0, pool
        assert pool["open_connections"] == pool["idle"] <= MAX_OPEN_CONNS, pool


# Figures


def told(figures: dict[str, object], record: Property) -> None:
    for name, figure in figures.items():
        record(name, figure)
        sys.stdout.write(f"\n{name}: {figure}")


def figures(load: Load, outages: Sequence[Outage]) -> dict[str, object]:
    errors = Counter(attempt.error or "acknowledged" for attempt in load.attempts)
    lost = Counter([a.error for a in failed].count("OperationalError") for _, _, failed in failures(load, outages))
    return {
        "attempts": dict(errors),
        "statements lost by a thread in an outage, and how often": dict(lost),
        "seconds to a thread's first good row": distribution(recoveries(load, outages)),
    }


def recoveries(load: Load, outages: Sequence[Outage]) -> list[float]:
    """Return for each outage how long after it each thread's first row was committed."""
    return [
        min(a.ended for a in writer.attempts if a.acknowledged and a.ended >= outage.up) - outage.up
        for outage in outages
        for writer in load.writers
    ]


def distribution(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    p95 = ordered[math.ceil(len(ordered) * 0.95) - 1]
    return f"{len(ordered)}: min {ordered[0]:.3f}, median {median(ordered):.3f}, p95 {p95:.3f}, max {ordered[-1]:.3f}"
