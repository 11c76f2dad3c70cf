"""One SQLite library in a process: Peewee takes pysqlite3 where it is installed, and so does everything of ours.

With two, closing a file with one drops the locks of the other: a writer gets in between, and committed rows are lost.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import Place
from tests.migrate.test_command_line import fails

pytestmark = pytest.mark.sampled

# Takes the write lock, says so, and holds it until its standard input ends.
HOLDER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute(sys.argv[2])
print("held", flush=True)
sys.stdin.read()
"""
# Tries to write in the middle of a run, and says whether it could.
INTRUDER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
try:
    db.execute("INSERT INTO note (id, title) VALUES (99, 'between')")
    print("wrote")
except sqlite3.OperationalError:
    print("was locked out")
"""
RUN = """
import subprocess, sys
import peewee
from whatspire_db import MigrationRunner, Settings, connect
from whatspire_db.backup import create
path, journal, intruder = sys.argv[1:]
settings = Settings(dsn=f"file:{path}?_journal_mode={journal}")
db = connect(settings)
class Note(peewee.Model):
    title = peewee.TextField()
    more = peewee.TextField(null=True)
    class Meta:
        database = db
def backup():
    made = str(create(settings).file)
    print(subprocess.run([sys.executable, "-c", intruder, path], capture_output=True, text=True).stdout.strip())
    return made
report = MigrationRunner(db, [Note], before_changes=backup).up()
with db.connection_context():
    print(Note.select().count(), len(report.applied) > 0, peewee.sqlite3.__name__)
"""


@pytest.fixture(scope="session")
def pysqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that has pysqlite3 alone; installed beside the tests it would be Peewee's choice for all."""
    if named := os.environ.get("WHATSPIRE_TEST_PYSQLITE"):
        return Path(named)
    folder = tmp_path_factory.mktemp("pysqlite")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), "pysqlite3-binary"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=300)
    return folder


@pytest.fixture(params=["sqlite3", "pysqlite3.dbapi2"])
def library(request: pytest.FixtureRequest) -> str:
    """The library that Peewee has to use."""
    return str(request.param)


@pytest.fixture
def place(sqlite: Place, library: str, request: pytest.FixtureRequest) -> Place:
    if library != "sqlite3":
        sqlite.environment["PYTHONPATH"] = str(request.getfixturevalue("pysqlite"))
    return sqlite


def python(place: Place, code: str, *arguments: str) -> list[str]:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(
        command, env=place.variables(), cwd=place.folder, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@contextmanager
def held(place: Place, statement: str) -> Iterator[None]:
    command = [sys.executable, "-c", HOLDER, place.dsn, statement]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            yield
        finally:
            holder.communicate("")


def with_notes(place: Place, journal: str) -> None:
    python(
        place,
        "import sqlite3, sys; db = sqlite3.connect(sys.argv[1])\n"
        f"db.executescript('PRAGMA journal_mode = {journal}; CREATE TABLE note (id INTEGER NOT NULL PRIMARY KEY, "
        "title TEXT NOT NULL)')\n"
        "db.executemany('INSERT INTO note (title) VALUES (?)', [('row',)] * 10); db.commit()",
        place.dsn,
    )


@pytest.mark.soak
@pytest.mark.parametrize("journal", ["WAL", "DELETE"])
def test_backup_within_a_run_keeps_its_lock(place: Place, library: str, journal: str) -> None:
    with_notes(place, journal)
    assert python(place, RUN, place.dsn, journal, INTRUDER) == ["was locked out", f"10 True {library}"]


@pytest.mark.soak
def test_lock_is_waited_for_and_named(place: Place) -> None:
    with_notes(place, "WAL")
    with held(place, "BEGIN IMMEDIATE"):
        fails(place.run("--lock-timeout", "100ms"), 1, "locked")
    restore = ("restore", "latest", "--force", "--lock-timeout", "100ms")
    assert place.run("create", module="whatspire_db.backup").returncode == 0
    with held(place, "BEGIN IMMEDIATE"):
        fails(place.run(*restore, module="whatspire_db.backup"), 1, "lock-timeout")
    assert place.run("--lock-timeout", "10s").returncode == 0


@pytest.mark.soak
def test_errors_are_told_by_their_codes(place: Place) -> None:
    Path(place.dsn).write_bytes(b"nothing of the kind" * 1000)
    for module, verb in (("migrate", "plan"), ("backup", "create"), ("health", "--no-schema")):
        fails(place.run(verb, module=f"whatspire_db.{module}"), 1, "is not a SQLite database")


@pytest.mark.soak
def test_backup_and_health_work_with_either_library(place: Place) -> None:
    assert place.run("-q").returncode == 0
    for module, *arguments in (
        ("backup", "create", "--test-restore"),
        ("backup", "verify", "latest"),
        ("backup", "restore", "latest", "--force"),
        ("health", "--quick-check"),
        ("migrate", "verify"),
    ):
        done = place.run(*arguments, module=f"whatspire_db.{module}")
        assert done.returncode == 0, done.stderr
