"""A transfer that is killed leaves no row at the target, or all of them and proved; the next one ends proved."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from random import Random

import peewee
import pytest

from tests.conftest import KILLS, Place
from tests.transfer.rows import ROWS, contents, go_database, transfers
from whatspire_db import DatabaseMoved, Event, TransferRefused
from whatspire_db.fields import utcnow
from whatspire_db.transfer import fence, transfer

ROOT = Path(__file__).parent.parent.parent
EVENTS = 5000


def run(source: Place, target: Place, point: int, *live: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.transfer.killed", source.dsn, target.dsn, str(point), *live]
    return subprocess.run(command, cwd=ROOT, env=source.variables(), capture_output=True, text=True, timeout=120)


def empty(place: Place) -> None:
    db = place.connect()
    with db.connection_context():
        db.execute_sql("DROP SCHEMA public CASCADE")
        db.execute_sql("CREATE SCHEMA public")


def rows_of(place: Place) -> dict[str, list[str]]:
    """Return every row that the target has; none where a table is not there yet."""
    try:
        return contents(place, ROWS)
    except peewee.ProgrammingError:
        return {model.__name__: [] for model in ROWS}


def filled(sqlite: Place) -> dict[str, list[str]]:
    """Make the service's database with events, and return its rows."""
    go_database(sqlite)
    db = sqlite.connect()
    with db.connection_context(), db.bind_ctx([Event]):
        now = utcnow()
        rows = [
            {"type": "message", "session_id": f"s{n % 9}", "data": {"n": n}, "timestamp": now} for n in range(EVENTS)
        ]
        for start in range(0, EVENTS, 500):
            Event.insert_many(rows[start : start + 500]).execute()
    return contents(sqlite, ROWS)


@pytest.mark.soak
def test_killed_at_any_point(sqlite: Place, postgres: Place) -> None:
    before = filled(sqlite)
    done = run(sqlite, postgres, 0)
    assert done.returncode == 0, done
    count, random = int(done.stdout), Random(5)
    points = sorted(random.sample(range(1, count + 1), min(count, max(30, KILLS))))
    complete = 0
    for number, point in enumerate(points):
        if number % 3 == 0:  # else the schema is there already, as of the attempt before
            empty(postgres)
        killed = run(sqlite, postgres, point)
        assert killed.returncode in (-9, 0), killed
        found = rows_of(postgres)
        if found == before:
            complete += 1
            with pytest.raises(TransferRefused, match="has rows already"):
                transfer(sqlite.dsn, postgres.dsn)
            assert transfers(postgres)[-1][0] == "proved"
            empty(postgres)
        else:
            assert not any(found.values())
            if number % 5 == 0:
                transfer(sqlite.dsn, postgres.dsn)
                assert contents(postgres, ROWS) == before
                empty(postgres)
    assert complete < len(points)
    empty(postgres)
    transfer(sqlite.dsn, postgres.dsn)
    assert contents(postgres, ROWS) == before == contents(sqlite, ROWS)


@pytest.mark.soak
def test_a_live_transfer_killed_at_any_point(sqlite: Place, postgres: Place) -> None:
    before = filled(sqlite)
    done = run(sqlite, postgres, 0, "live")
    assert done.returncode == 0, done
    count, random = int(done.stdout), Random(7)
    db = sqlite.connect()
    # The last points are those around the lock and the proof.
    points = [*random.sample(range(1, count - 30), max(15, KILLS // 4)), *range(count - 30, count + 1, 2)]
    for point in points:
        with db.connection_context():
            fence.remove(db)
        empty(postgres)
        killed = run(sqlite, postgres, point, "live")
        assert killed.returncode in (-9, 0), killed
        with db.connection_context():
            is_fenced = fence.find(db) is not None
        found = rows_of(postgres)
        if not is_fenced and any(found.values()):  # between the two commits: what is there is all, and is named
            assert found == before
            with pytest.raises(TransferRefused, match="has rows already"):
                transfer(sqlite.dsn, postgres.dsn, live=True)
            empty(postgres)
        state = transfers(postgres)[-1][0] if is_fenced else "started"
        if state == "proved":
            with pytest.raises(DatabaseMoved):
                transfer(sqlite.dsn, postgres.dsn, live=True)
        else:
            assert transfer(sqlite.dsn, postgres.dsn, live=True).rows == sum(map(len, before.values()))
            assert not [name for name in os.listdir(sqlite.folder) if name.startswith(".whatspire")]
            assert transfers(postgres)[-1][0] == "proved"
        assert contents(postgres, ROWS) == before == contents(sqlite, ROWS)
