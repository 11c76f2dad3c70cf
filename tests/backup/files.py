"""What the tests of backups of SQLite share: the command line, other processes at the file, and all that a file holds."""

from __future__ import annotations

import ctypes
import io
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from peewee import sqlite3

from tests.conftest import Place
from tests.servers import eventually, said
from whatspire_db.cli.backup import main

PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2
MODES = ("wal", "delete")
ROWS = """WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {rows})
INSERT INTO entry (key, text) SELECT '{word}.' || n, hex(randomblob({length})) FROM numbers"""
ENTRY = "CREATE TABLE entry (id integer PRIMARY KEY AUTOINCREMENT, key text NOT NULL UNIQUE, text text)"

Done = subprocess.CompletedProcess[str]


def run(place: Place, *arguments: str, **options: Any) -> Done:
    """Run the command line of backups: in this process, which saves starting one, or as another with its options."""
    if options:
        return place.run(*arguments, module="whatspire_db.backup", **options)
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err), _as_before():
        patch.chdir(place.folder)
        patch.setattr(os, "environ", place.variables())
        code = main(list(arguments))
    return Done(arguments, code, out.getvalue(), err.getvalue())


@contextmanager
def _as_before() -> Iterator[None]:
    """Undo what a command line sets for its whole process: the signal, and the package's logging."""
    handler = signal.getsignal(signal.SIGTERM)
    loggers = [logging.getLogger(name) for name in ("whatspire_db", "whatspire_db.backup")]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
        for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)


def start(place: Place, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    return place.start(*arguments, module="whatspire_db.backup", **options)


def told(done: Done) -> Any:
    """Return the JSON document of a run that did what it should."""
    assert (done.returncode, said(done.stderr)) == (0, []), done
    return json.loads(done.stdout)


def made(place: Place, *arguments: str, **options: Any) -> Path:
    """Make a backup by the command line and return its file."""
    return place.folder / told(run(place, "create", "--json", *arguments, **options))["path"]


def restored(place: Place, *arguments: str, **options: Any) -> dict[str, Any]:
    """Restore by the command line and return what it tells."""
    return dict(told(run(place, "restore", "--json", *arguments, **options)))


def refused(done: Done, code: int) -> str:
    """Return the fact of a run that ended with an exit code and two lines, and with --json the same as a document."""
    assert done.returncode == code, done
    fact, hint = said(done.stderr)
    assert fact.startswith("error: "), done
    assert hint.startswith("hint:  "), done
    if done.stdout:
        document = {"error": fact.removeprefix("error: "), "hint": hint.removeprefix("hint:  "), "exit": code}
        assert json.loads(done.stdout) == document, done
    return fact.removeprefix("error: ")


def script(path: str | Path, *scripts: str) -> Path:
    """Run SQL on a file, which is made where it is not there."""
    with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as connection:
        for text in scripts:
            connection.executescript(text)
    return Path(path)


def ask(path: str | Path, question: str) -> list[tuple[Any, ...]]:
    assert Path(path).exists(), path
    with closing(sqlite3.connect(path, timeout=30)) as connection:
        return connection.execute(question).fetchall()


def filled(path: str | Path, mode: str = "wal", *, word: str = "row", rows: int = 100, length: int = 100) -> Path:
    """Make a file with rows that are named by a word, and of the given length in bytes, twice that as text."""
    return script(path, f"PRAGMA journal_mode = {mode}", ENTRY, ROWS.format(rows=rows, word=word, length=length))


def damage(path: Path) -> None:
    """Overwrite pages in the middle of a file, of which SQLite notices nothing when it opens it."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2 // 4096 * 4096)
        file.write(os.urandom(3 * 4096))


def words(path: str | Path) -> list[str]:
    """Return what the rows of `filled` files are named by."""
    return [word for (word,) in ask(path, "SELECT DISTINCT substr(key, 1, instr(key, '.') - 1) FROM entry ORDER BY 1")]


def state(path: str | Path) -> object:
    """Return the whole schema and all rows with their exact bytes and types, of a file that must be without a fault."""
    assert Path(path).exists(), path
    with closing(sqlite3.connect(path, timeout=30)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        schema = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY 1, 2").fetchall()
        pragmas = [
            connection.execute(f"PRAGMA {name}").fetchone() for name in ("user_version", "application_id", "encoding")
        ]
        connection.text_factory = lambda text: ("text", text)
        rows = {}
        for kind, name, _, sql in schema:
            if kind in ("table", "view") and not str(sql).startswith("CREATE VIRTUAL"):
                quoted = name.replace('"', '""')
                rows[name] = sorted(map(repr, connection.execute(f'SELECT * FROM "{quoted}"')))
    return schema, pragmas, rows


def left(folder: Path) -> list[str]:
    """Return the names of what a folder holds that is neither a database, a backup nor its manifest."""
    stems = {path.stem for path in folder.glob("*.json")}
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.name.endswith(".partial")
        or ("Z.sqlite3" in path.name and path.name.split(".")[0] not in stems)
        or (path.suffix == ".json" and not list(folder.glob(f"{path.stem}.sqlite3*")))
    )


def backups(place: Place) -> list[Path]:
    """Return the manifests of the folder, in the order of their names."""
    return sorted((place.folder / "backups").glob("*.json"))


class Client:
    """A connection of another process."""

    def __init__(self, path: str | Path, busy: float = 30) -> None:
        command = [sys.executable, "-m", "tests.backup.client", str(path), str(busy)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def begin(self, statement: str) -> None:
        """Have it run a statement, and do not wait for its end."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps(statement) + "\n")

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout
        return dict(json.loads(self.process.stdout.readline()))

    def run(self, *statements: str) -> Any:
        """Have it run statements and return the rows of the last."""
        answer: dict[str, Any] = {}
        for statement in statements:
            self.begin(statement)
            answer = self.answer()
            assert "error" not in answer, (statement, answer)
        return answer["rows"]

    def end(self) -> None:
        self.process.communicate(timeout=60)


ROOT = Path(__file__).parents[2]


@contextmanager
def client(path: str | Path, *statements: str, busy: float = 30) -> Iterator[Client]:
    """Give a connection of another process that has run statements, and close it after the block."""
    other = Client(path, busy)
    try:
        other.run("SELECT count(*) FROM sqlite_master", *statements)
        yield other
    finally:
        other.end()


@contextmanager
def clerk(way: str, path: str | Path, notes: Path, more: str) -> Iterator[None]:
    """Have another process write, from its first note on until the block ends."""
    command = [sys.executable, "-m", "tests.backup.clerk", way, str(path), str(notes), more]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        eventually(lambda: process.poll() is not None or (notes.exists() and notes.stat().st_size), "it writes")
        yield
    finally:
        _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")


def bound_by_rights() -> None:
    """Let the program that this process becomes be stopped by the rights of files, also where it is root's."""
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
