"""Who waits in vain for the lock of a SQLite file is told who holds it, and nobody who merely has it open."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.conftest import Place
from tests.migrate.test_command_line import fails
from tests.servers import up
from whatspire_db.connection.engines.sqlite.holders import LOCKS, held_by

pytestmark = pytest.mark.skipif(not os.path.exists(LOCKS), reason="the system has no list of locks")

MIGRATE, BACKUP, HEALTH = "whatspire_db.migrate", "whatspire_db.backup", "whatspire_db.health"
HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2:]:
    connection.execute(statement).fetchall()
print("held", flush=True)
sys.stdin.read()
"""
READ = ("BEGIN", "SELECT count(*) FROM sessions")
BOUND = ("--lock-timeout", "300ms")


@contextmanager
def holding(place: Place, *statements: str) -> Iterator[int]:
    """Let another process execute statements and keep its locks; yield its id."""
    command = [sys.executable, "-c", HOLDER, place.dsn, *statements]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        yield holder.pid
        holder.stdin.close()


@pytest.mark.soak
@pytest.mark.sampled
@pytest.mark.parametrize("mode", ["wal", "delete"])
@pytest.mark.parametrize(
    ("module", "arguments"),
    [(MIGRATE, ["up", *BOUND]), (BACKUP, ["restore", "latest", "--force", *BOUND]), (HEALTH, [])],
)
def test_writer_is_named(sqlite: Place, mode: str, module: str, arguments: list[str]) -> None:
    up(sqlite)
    assert sqlite.run("create", module=BACKUP).returncode == 0
    with holding(sqlite, f"PRAGMA journal_mode = {mode}", "DROP INDEX idx_events_type"):
        pass
    exclusive = "PRAGMA locking_mode = exclusive" if module == HEALTH else "SELECT 1"  # readers go on beside a writer
    begin = "BEGIN EXCLUSIVE" if mode == "delete" else "BEGIN IMMEDIATE"
    with holding(sqlite, exclusive, begin) as pid:
        done = sqlite.run(*arguments, module=module, env={"WHATSAPP_DATABASE_HEALTH_TIMEOUT": "300ms"})
    fails(done, 1, f"(pid {pid}, python")


@pytest.mark.soak
def test_reader_that_stops_a_restore_is_named(sqlite: Place) -> None:
    up(sqlite)
    assert sqlite.run("create", module=BACKUP).returncode == 0
    with holding(sqlite, "PRAGMA journal_mode = delete"):
        pass
    with holding(sqlite, *READ) as pid:
        done = sqlite.run("restore", "latest", "--force", *BOUND, module=BACKUP)
    fails(done, 1, f"(pid {pid}, python")


def test_nobody_is_named_who_has_the_file_open_alone(sqlite: Place) -> None:
    up(sqlite)
    with holding(sqlite, "SELECT 1"):
        assert held_by(sqlite.dsn) == ""
    with holding(sqlite, "BEGIN IMMEDIATE") as writer, holding(sqlite, *READ):
        assert held_by(sqlite.dsn).startswith(f" (pid {writer}, python")
        assert ";" not in held_by(sqlite.dsn)
    assert held_by(f"{sqlite.dsn}.none") == ""


def test_many_holders_are_counted(sqlite: Place) -> None:
    up(sqlite)
    with holding(sqlite, "PRAGMA journal_mode = delete"):
        pass
    with holding(sqlite, *READ), holding(sqlite, *READ), holding(sqlite, *READ), holding(sqlite, *READ):
        assert held_by(sqlite.dsn).endswith("; 1 more)")
