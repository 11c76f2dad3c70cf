"""Restores of SQLite: into files that others have open, beside what others left, and equal to the last bit."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from peewee import sqlite3

from tests.backup.files import (
    ENTRY,
    MODES,
    ROWS,
    Done,
    ask,
    backups,
    clerk,
    client,
    damage,
    filled,
    left,
    made,
    refused,
    restored,
    run,
    script,
    start,
    state,
    words,
)
from tests.conftest import Place
from tests.servers import eventually
from whatspire_db import Settings, backup
from whatspire_db.backup import durable
from whatspire_db.backup.engines.sqlite import restoring as engine
from whatspire_db.backup.engines.sqlite.content import examine, opened
from whatspire_db.backup.engines.sqlite.restoring import _keep_old
from whatspire_db.backup.manifest import differences, silent
from whatspire_db.errors import LockTimeout, TargetRefused

COUNT = "SELECT count(*) FROM entry"
FEW_ROWS = {"rows": 3, "word": "old", "length": 10}
SHORT = ("--lock-timeout", "300ms")


def two_states(place: Place, mode: str, rows: int = 100) -> tuple[Path, object, object]:
    """Make a database, a backup of it, and other rows in it; return the backup, and both states."""
    filled(place.dsn, mode, word="old", rows=rows)
    file, old = made(place), state(place.dsn)
    script(place.dsn, "DELETE FROM entry", "INSERT INTO entry (key) VALUES ('new.1'), ('new.2')")
    return file, old, state(place.dsn)


def safety_backups(place: Place) -> list[Path]:
    found, _ = backup.list_backups(place.folder / "backups")
    return [one.file for one in reversed(found) if one.manifest.purpose]


@pytest.mark.parametrize("mode", MODES)
def test_who_has_the_file_open_goes_on_and_sees_the_new_rows(sqlite: Place, mode: str) -> None:
    _, old, _ = two_states(sqlite, mode)
    with client(sqlite.dsn) as idle, client(sqlite.dsn) as writing:
        assert writing.run(
            "INSERT INTO entry (key) VALUES ('other.1')", "DELETE FROM entry WHERE key = 'other.1'", COUNT
        )
        safety = restored(sqlite, "latest", "--force")["safety_backup"]
        assert idle.run(COUNT) == [[100]]
        assert state(sqlite.dsn) == old
        assert writing.run("INSERT INTO entry (key) VALUES ('after.1') RETURNING id") == [[101]]
        assert idle.run(COUNT) == [[101]]
        assert idle.run("PRAGMA journal_mode") == [[mode]]
        assert words(sqlite.folder / safety) == ["new"]
    assert ask(sqlite.dsn, "PRAGMA journal_mode") == [(mode,)]
    assert words(sqlite.dsn) == ["after", "old"]
    assert left(sqlite.folder) == left(sqlite.folder / "backups") == []


def test_who_reads_in_the_wal_keeps_what_it_sees_until_it_ends(sqlite: Place) -> None:
    _, old, _ = two_states(sqlite, "wal")
    with client(sqlite.dsn, "BEGIN", COUNT) as reading:
        restored(sqlite, "latest", "--force")
        assert state(sqlite.dsn) == old
        assert reading.run(COUNT) == [[2]]
        assert reading.run("COMMIT", COUNT) == [[100]]


@pytest.mark.parametrize(
    ("mode", "begin"),
    [("wal", "BEGIN IMMEDIATE"), ("delete", "BEGIN IMMEDIATE"), ("delete", "BEGIN EXCLUSIVE"), ("delete", "BEGIN")],
)
def test_a_transaction_that_does_not_end_is_left_alone(sqlite: Place, mode: str, begin: str) -> None:
    two_states(sqlite, mode)
    with client(sqlite.dsn, begin, COUNT) as other:
        fact = refused(run(sqlite, "restore", "latest", "--force", *SHORT), 1)
        assert str(sqlite.dsn) in fact
        if begin != "BEGIN":
            other.run("INSERT INTO entry (key) VALUES ('more.1')")
        assert other.run("COMMIT", "DELETE FROM entry WHERE key = 'more.1'", COUNT) == [[2]]
    after = ask(sqlite.dsn, "SELECT key FROM entry ORDER BY key")
    assert after == [("new.1",), ("new.2",)]
    assert safety_backups(sqlite) == []
    assert left(sqlite.folder) == []


@pytest.mark.parametrize("mode", MODES)
def test_a_transaction_that_ends_in_time_is_waited_for(sqlite: Place, mode: str) -> None:
    """And what it wrote is in the backup of what was there."""
    two_states(sqlite, mode)
    with client(sqlite.dsn, "BEGIN IMMEDIATE", "INSERT INTO entry (key) VALUES ('late.1')") as other:
        process = start(sqlite, "restore", "latest", "--force", "--json")
        eventually(lambda: list(sqlite.folder.glob(".*.partial")), "it is at work")
        other.run("COMMIT")
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
    assert words(sqlite.dsn) == ["old"]
    assert words(sqlite.folder / json.loads(out)["safety_backup"]) == ["late", "new"]


def acknowledged_rows_are_kept(place: Place, mode: str, rounds: int) -> tuple[int, int]:
    """Restore again and again under two writers; return how many of their rows came before and after."""
    filled(place.dsn, mode, word="old", rows=2000)
    made(place)
    notes = [place.folder / f"notes.{name}" for name in "ab"]
    with clerk("enter", place.dsn, notes[0], "a"), clerk("enter", place.dsn, notes[1], "b"):
        for _ in range(rounds):
            restored(place, "latest", "--force", "--lock-timeout", "60s")
            for note in notes:
                size = note.stat().st_size
                eventually(lambda note=note, size=size: note.stat().st_size > size, "it goes on")
    acknowledged = {key for note in notes for key in note.read_text().split()}
    kept = [{key for (key,) in ask(file, "SELECT key FROM entry")} for file in [*safety_backups(place), place.dsn]]
    assert len(kept) == rounds + 1
    assert acknowledged <= set().union(*kept)
    for one in kept:
        assert len([key for key in one if key.startswith("old.")]) == 2000
    return len(acknowledged & set().union(*kept[:-1])), len(acknowledged & kept[-1])


@pytest.mark.parametrize("mode", MODES)
def test_no_row_that_was_acknowledged_is_lost(sqlite: Place, mode: str) -> None:
    before, after = acknowledged_rows_are_kept(sqlite, mode, 2)
    assert before > 0
    assert after > 0


@pytest.mark.soak
@pytest.mark.parametrize("mode", MODES)
def test_no_row_that_was_acknowledged_is_lost_in_many_restores(
    sqlite: Place, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = acknowledged_rows_are_kept(sqlite, mode, 50)
    with capsys.disabled():
        sys.stdout.write(f"\n{mode}: 50 restores, {before} rows kept in their backups, {after} in the database\n")


def test_what_cannot_be_written_is_not_backed_up_either(sqlite: Place) -> None:
    """It is not locked then, so a backup of it could miss what is written next."""
    two_states(sqlite, "delete")
    path = Path(sqlite.dsn)
    with path.open("r+b") as file:
        file.seek(18)
        file.write(b"\x09")  # a version that this SQLite reads, and does not write
    content = path.read_bytes()
    assert "readonly" in refused(run(sqlite, "restore", "latest", "--force"), 1)
    assert path.read_bytes() == content
    assert safety_backups(sqlite) == []


# Interrupted at the last moment


def interrupted(place: Place) -> Done:
    """Restore by force and return how that ended: it was interrupted, and yet all that it had to do was done."""
    done = run(place, "restore", "latest", "--force", "--json")
    assert (done.returncode, "before the interrupt" in done.stderr) == (0, True), done
    return done


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("mode", MODES)
def test_an_interrupt_in_the_last_step_waits_for_it(
    sqlite: Place, mode: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, old, _ = two_states(sqlite, mode)

    @contextmanager
    def disturbed() -> Iterator[None]:
        with durable.undisturbed():
            signal.raise_signal(number)
            yield

    monkeypatch.setattr(engine, "undisturbed", disturbed)
    done = interrupted(sqlite)
    assert words(sqlite.folder / json.loads(done.stdout)["safety_backup"]) == ["new"]
    assert state(sqlite.dsn) == old
    assert left(sqlite.folder) == left(sqlite.folder / "backups") == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_after_the_last_step_is_too_late(
    sqlite: Place, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, old, _ = two_states(sqlite, "wal")
    monkeypatch.setattr(engine, "_require_whole", lambda *given: signal.raise_signal(number))
    interrupted(sqlite)
    assert state(sqlite.dsn) == old
    assert left(sqlite.folder) == left(sqlite.folder / "backups") == []


@pytest.mark.parametrize("mode", MODES)
def test_an_interrupt_in_a_last_step_that_fails_is_not_lost(
    sqlite: Place, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, new = two_states(sqlite, mode)

    @contextmanager
    def failing() -> Iterator[None]:
        with durable.undisturbed():
            signal.raise_signal(signal.SIGINT)
            raise OSError("failed")
        yield

    monkeypatch.setattr(engine, "undisturbed", failing)
    assert refused(run(sqlite, "restore", "latest", "--force"), 130) == "interrupted"
    assert state(sqlite.dsn) == new


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_as_a_new_file_gets_its_name_is_too_late(
    sqlite: Place, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, old, _ = two_states(sqlite, "wal")
    Path(sqlite.dsn).write_text("no database")
    monkeypatch.setattr(engine, "sync", lambda path: path.is_dir() and signal.raise_signal(number))
    done = interrupted(sqlite)
    assert Path(json.loads(done.stdout)["kept"][0]).read_text() == "no database"
    assert state(sqlite.dsn) == old


@pytest.mark.parametrize("mode", MODES)
def test_a_lock_right_after_the_last_step_is_no_failure(sqlite: Place, mode: str) -> None:
    path = filled(sqlite.dsn, mode)
    with client(path, "PRAGMA locking_mode = exclusive", "BEGIN EXCLUSIVE"), opened(path, busy=0.1) as live:
        engine._require_whole(live, path)


# What lies in the way


@pytest.mark.parametrize(("mode", "side"), [("wal", "-wal"), ("delete", "-journal")])
def test_what_a_missing_database_left_behind_is_moved_away(sqlite: Place, mode: str, side: str) -> None:
    """SQLite would take it for a part of the restored file."""
    path = filled(sqlite.dsn, mode)
    file, before = made(sqlite), state(path)
    stale = path.with_name(path.name + side)
    statements = ["PRAGMA cache_size = 1", "PRAGMA wal_autocheckpoint = 0", "BEGIN", "UPDATE entry SET text = 'stale'"]
    with client(path, *statements, *(["COMMIT"] if mode == "wal" else [])):
        content = stale.read_bytes()
        assert content
    path.unlink()
    stale.write_bytes(content)
    (moved,) = restored(sqlite, str(file))["kept"]
    assert Path(moved).name.startswith(f"whatspire.db{side}.moved-")
    assert Path(moved).read_bytes() == content
    assert not stale.exists()
    assert state(path) == before


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("of_backup", "of_target"), [(4096, 8192), (8192, 4096), (512, 65536), (65536, 512)])
def test_pages_of_another_size_are_no_hindrance(sqlite: Place, mode: str, of_backup: int, of_target: int) -> None:
    with closing(sqlite3.connect(sqlite.dsn)) as connection:
        connection.execute(f"PRAGMA page_size = {of_backup}")
        connection.execute(ENTRY)
    script(sqlite.dsn, ROWS.format(rows=3, word="old", length=3000))
    assert ask(sqlite.dsn, "PRAGMA page_size") == [(of_backup,)]
    file, before = made(sqlite), state(sqlite.dsn)
    Path(sqlite.dsn).unlink()
    with closing(sqlite3.connect(sqlite.dsn)) as connection:
        connection.execute(f"PRAGMA page_size = {of_target}")
        connection.execute("CREATE TABLE other (text text)")
    filled(sqlite.dsn, mode, word="new", rows=500)
    assert ask(sqlite.dsn, "PRAGMA page_size") == [(of_target,)]
    with client(sqlite.dsn) as other:
        safety = restored(sqlite, str(file), "--force")["safety_backup"]
        assert other.run(COUNT) == [[3]]
        assert other.run("INSERT INTO entry (key) VALUES ('next.1') RETURNING id") == [[4]]
        other.run("DELETE FROM entry WHERE id = 4", "UPDATE sqlite_sequence SET seq = 3")
    assert state(sqlite.dsn) == before
    assert words(sqlite.folder / safety) == ["new"]


ROWIDS = """
CREATE TABLE doc (body text);
CREATE TABLE hidden (rowid text, "OID" text, body text);
CREATE TABLE keyed (k text PRIMARY KEY, body text);
CREATE TABLE bare (k text PRIMARY KEY, body text) WITHOUT ROWID;
CREATE TABLE numbered (id integer PRIMARY KEY, rowid text, _rowid_ text, oid text);
CREATE TABLE made (body text, rowid AS (body || '!'));
INSERT INTO doc VALUES ('one'), ('two'), ('three');
INSERT INTO hidden (body) VALUES ('one'), ('two'), ('three');
INSERT INTO keyed VALUES ('c', 'one'), ('b', 'two'), ('a', 'three');
INSERT INTO bare VALUES ('c', 'one'), ('b', 'two'), ('a', 'three');
INSERT INTO numbered (id) VALUES (7), (9);
INSERT INTO made (body) VALUES ('one'), ('two'), ('three');
DELETE FROM doc WHERE body = 'one';
DELETE FROM hidden WHERE body = 'one';
DELETE FROM keyed WHERE body = 'one';
DELETE FROM made WHERE body = 'one';
CREATE VIRTUAL TABLE found USING fts5 (body, content = 'doc');
INSERT INTO found (found) VALUES ('rebuild');
"""
ROWIDS_OF = {"doc": "rowid", "hidden": "_rowid_", "keyed": "rowid", "made": "oid"}


def test_pages_of_another_size_leave_the_rowids(sqlite: Place) -> None:
    """Of what an index for full text refers to, too."""
    script(sqlite.dsn, ROWIDS)
    file = made(sqlite)
    Path(sqlite.dsn).unlink()
    script(sqlite.dsn, "PRAGMA page_size = 8192", "PRAGMA journal_mode = wal", "CREATE TABLE other (text text)")
    restored(sqlite, str(file), "--force")
    assert ask(sqlite.dsn, "PRAGMA page_size") == [(8192,)]
    assert ask(sqlite.dsn, "SELECT rowid, body FROM found WHERE found MATCH 'three'") == [(3, "three")]
    script(sqlite.dsn, "INSERT INTO found (found, rank) VALUES ('integrity-check', 1)")
    for table, rowid in ROWIDS_OF.items():
        assert ask(sqlite.dsn, f"SELECT {rowid} FROM {table} ORDER BY {rowid}") == [(2,), (3,)]


def test_pages_of_another_size_and_an_order_that_is_not_known_here_need_a_new_file(sqlite: Place) -> None:
    path = Path(sqlite.dsn)
    with closing(sqlite3.connect(path)) as connection:
        connection.create_collation("german", lambda one, other: (one < other) - (one > other))
        connection.execute("CREATE TABLE name (name text COLLATE german UNIQUE)")
        connection.execute("INSERT INTO name VALUES ('Ann'), ('Bob')")
        connection.commit()
    file = made(sqlite)
    path.unlink()
    script(path, "PRAGMA page_size = 8192", "PRAGMA journal_mode = wal", "CREATE TABLE other (text text)")
    before = state(path)
    done = run(sqlite, "restore", str(file), "--force")
    assert "german" in refused(done, 1)
    assert "by --to" in done.stderr
    assert state(path) == before
    restored(sqlite, str(file), "--to", "new.db")
    assert ask(sqlite.folder / "new.db", "SELECT name FROM name NOT INDEXED") == [("Ann",), ("Bob",)]


@pytest.mark.parametrize("table", ROWIDS_OF)
def test_other_rowids_are_another_fingerprint(tmp_path: Path, table: str) -> None:
    path = script(tmp_path / "rows.db", ROWIDS)
    before = examine(path)
    assert differences(before, examine(script(tmp_path / "same.db", ROWIDS))) == []
    script(path, f"UPDATE {table} SET {ROWIDS_OF[table]} = 77 WHERE body = 'three'")
    assert differences(before, examine(path)) == [f"table {table} has other rows"]


@pytest.mark.parametrize("mode", MODES)
def test_a_database_of_another_encoding_is_left_alone(sqlite: Place, mode: str) -> None:
    """Who has it open could not read it any more."""
    origin = script(sqlite.folder / "from.db", "PRAGMA encoding = 'UTF-16le'", ENTRY, ROWS.format(**FEW_ROWS))
    file = made(sqlite, "--dsn", str(origin))
    before = state(filled(sqlite.dsn, mode))
    with client(sqlite.dsn) as other:
        fact = refused(run(sqlite, "restore", str(file), "--force"), 4)
        assert "UTF-16le" in fact
        assert other.run(COUNT) == [[100]]
    assert state(sqlite.dsn) == before
    assert backups(sqlite) == [file.with_suffix(".json")]
    restored(sqlite, str(file), "--to", "new.db")
    assert state(sqlite.folder / "new.db") == state(origin)


@pytest.mark.parametrize("mode", MODES)
def test_a_database_without_tables_takes_any_encoding(sqlite: Place, mode: str) -> None:
    origin = script(sqlite.folder / "from.db", "PRAGMA encoding = 'UTF-16le'", ENTRY, ROWS.format(**FEW_ROWS))
    file = made(sqlite, "--dsn", str(origin))
    script(sqlite.dsn, f"PRAGMA journal_mode = {mode}", "PRAGMA user_version = 3")
    with client(sqlite.dsn) as other:
        restored(sqlite, str(file))
        assert other.run(COUNT) == [[3]]
    assert state(sqlite.dsn) == state(origin)


def no_database(path: Path) -> None:
    path.write_text("a letter, and no database\n" * 1000)


def no_header(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(os.urandom(100))


def no_page_size(path: Path) -> None:
    """Break the header behind its first words."""
    with path.open("r+b") as file:
        file.seek(16)
        file.write(os.urandom(1) + b"\x03" + os.urandom(80))


def no_schema(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(100)
        file.write(os.urandom(3996))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 4096 // 2 * 4096 + 100)


UNREADABLE = [no_database, no_header, no_page_size, no_schema, cut]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("spoil", UNREADABLE)
def test_what_cannot_be_read_is_moved_away_by_force_alone(
    sqlite: Place, spoil: Callable[[Path], None], mode: str
) -> None:
    path = filled(sqlite.dsn, mode)
    file, before = made(sqlite), state(path)
    spoil(path)
    spoiled = path.read_bytes()
    fact = refused(run(sqlite, "restore", str(file)), 4)
    assert str(path) in fact
    assert path.read_bytes() == spoiled
    done = restored(sqlite, str(file), "--force")
    (moved,) = done["kept"]
    assert (sqlite.folder / moved).read_bytes() == spoiled
    assert state(path) == before
    assert left(sqlite.folder) == left(sqlite.folder / "backups") == []


def test_what_replaces_an_unreadable_file_is_its_owners(sqlite: Place) -> None:
    path = filled(sqlite.dsn)
    file = made(sqlite)
    no_database(path)
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 1234, 4321)
    before = path.stat()
    restored(sqlite, str(file), "--force")
    after = path.stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
    assert after.st_ino != before.st_ino


@pytest.mark.parametrize("mode", MODES)
def test_a_copy_of_a_damaged_database_is_kept(sqlite: Place, mode: str) -> None:
    path = filled(sqlite.dsn, mode, rows=2000)
    file, before = made(sqlite), state(path)
    damage(path)
    damaged = path.read_bytes()
    assert refused(run(sqlite, "restore", str(file)), 4).startswith(f"{path} is damaged: ")
    assert refused(run(sqlite, "create"), 1).startswith(f"{path} is damaged: ")
    assert path.read_bytes() == damaged
    (kept,) = restored(sqlite, str(file), "--force")["kept"]
    assert (sqlite.folder / kept).read_bytes()[4096:] == damaged[4096:]
    assert state(path) == before


def test_an_empty_file_is_no_data(sqlite: Place) -> None:
    """A mere look with sqlite3 at a file that is not there leaves such a one."""
    file = made(sqlite, "--dsn", str(filled(sqlite.folder / "from.db")))
    before = state(sqlite.folder / "from.db")
    Path(sqlite.dsn).touch()
    done = restored(sqlite, str(file))
    assert (done["safety_backup"], done["kept"]) == (None, [])
    assert state(sqlite.dsn) == before


def test_a_database_without_rows_is_replaced_without_force_and_kept_all_the_same(sqlite: Place) -> None:
    file, old, _ = two_states(sqlite, "wal")
    Path(sqlite.dsn).unlink()
    script(sqlite.dsn, "PRAGMA journal_mode = wal", "CREATE VIEW work AS SELECT 1 AS one")
    bare = state(sqlite.dsn)
    safety = restored(sqlite, str(file))["safety_backup"]
    assert state(sqlite.dsn) == old
    restored(sqlite, str(sqlite.folder / safety), "--force")
    assert state(sqlite.dsn) == bare


def test_what_sqlite_notes_for_itself_is_no_data(sqlite: Place) -> None:
    """Statistics, and how far a counter is."""
    file, old, _ = two_states(sqlite, "wal")
    script(sqlite.dsn, "ANALYZE", "DELETE FROM entry")
    assert ask(sqlite.dsn, "SELECT count(*) FROM sqlite_stat1") != [(0,)]
    assert ask(sqlite.dsn, "SELECT count(*) FROM sqlite_sequence") == [(1,)]
    safety = restored(sqlite, str(file))["safety_backup"]
    assert ask(sqlite.folder / safety, COUNT) == [(0,)]
    assert state(sqlite.dsn) == old


@pytest.mark.parametrize("mode", MODES)
def test_data_is_replaced_by_force_alone(sqlite: Place, mode: str) -> None:
    file, old, new = two_states(sqlite, mode)
    assert "holds data" in refused(run(sqlite, "restore", str(file)), 4)
    assert state(sqlite.dsn) == new
    assert restored(sqlite, str(file), "--force", "--no-safety-backup")["safety_backup"] is None
    assert state(sqlite.dsn) == old


def test_a_database_that_is_made_meanwhile_is_left_alone(sqlite: Place) -> None:
    """With all that lies beside it."""
    file, _, _ = two_states(sqlite, "wal")
    path = Path(sqlite.dsn)
    path.unlink()
    settings = Settings(driver="sqlite", dsn=sqlite.dsn)
    others = []

    def make(what: str, done: int, total: int) -> None:
        if what == "restoring" and not path.exists():
            filled(path, word="theirs", rows=3)
            others.append(client(path, "PRAGMA wal_autocheckpoint = 0", "INSERT INTO entry (key) VALUES ('wal.1')"))
            others[0].__enter__()

    with pytest.raises(TargetRefused):
        backup.restore(backup.find(file), settings, sqlite.folder / "backups", progress=make)
    assert words(path) == ["theirs", "wal"]
    others[0].__exit__(None, None, None)
    assert words(path) == ["theirs", "wal"]
    assert left(sqlite.folder) == []


def test_a_file_that_is_switched_to_wal_meanwhile_is_not_copied_without_it(sqlite: Place, tmp_path: Path) -> None:
    """Its journal mode is asked for before it is locked."""
    kept: list[Path] = []
    (tmp_path / "work").mkdir()
    path = filled(sqlite.dsn, "wal")
    with client(path, "PRAGMA wal_autocheckpoint = 0", "DELETE FROM entry"), pytest.raises(TargetRefused):
        _keep_old(path, False, tmp_path / "work", kept.append, silent)
    assert kept == []


def test_nothing_of_the_current_folder_is_run(sqlite: Place) -> None:
    _, old, _ = two_states(sqlite, "delete")
    (sqlite.folder / "shutil.py").write_text("from pathlib import Path\nPath('run').touch()\nraise SystemExit(1)\n")
    restored(sqlite, "latest", "--force")
    assert state(sqlite.dsn) == old
    assert not (sqlite.folder / "run").exists()


def test_the_locks_of_this_process_outlast_a_restore(sqlite: Place) -> None:
    """An application that restores may have the file open itself; closing a file ends all locks of its process."""
    file, _, new = two_states(sqlite, "delete")
    settings = Settings(driver="sqlite", dsn=sqlite.dsn)
    with closing(sqlite3.connect(sqlite.dsn, isolation_level=None)) as own:
        own.execute("BEGIN IMMEDIATE")
        own.execute("INSERT INTO entry (key) VALUES ('own.1')")
        with pytest.raises(LockTimeout):
            backup.restore(backup.find(file), settings, sqlite.folder / "backups", force=True, lock_timeout=0.1)
        with client(sqlite.dsn, busy=0.1) as other:
            other.begin("BEGIN IMMEDIATE")
            assert other.answer() == {"error": "database is locked"}
        own.execute("ROLLBACK")
    assert state(sqlite.dsn) == new


def test_a_backup_is_not_restored_onto_itself(sqlite: Place) -> None:
    file, _, _ = two_states(sqlite, "wal")
    content = file.read_bytes()
    run(sqlite, "restore", str(file), "--to", str(file), "--force")
    assert file.read_bytes() == content
    backup.verify(backup.find(file), Settings(driver="sqlite", dsn=sqlite.dsn))


# What a file can hold

EVERYTHING = """
PRAGMA user_version = 77;
PRAGMA application_id = 305419896;
CREATE TABLE parent (id integer PRIMARY KEY AUTOINCREMENT, name text COLLATE NOCASE UNIQUE);
INSERT INTO parent VALUES (41, 'Ann'), (900, 'Bob');
DELETE FROM parent WHERE id = 900;
CREATE TABLE empty (id integer PRIMARY KEY AUTOINCREMENT, x);
CREATE TABLE "odd ""name'; --" ("a b" int, "select" text DEFAULT 'x''y');
INSERT INTO "odd ""name'; --" VALUES (1, NULL);
CREATE TABLE größe (号 text, "" text);
INSERT INTO größe VALUES ('🗄 Ω', '');
CREATE TABLE made (a int, b int AS (a * 2) STORED, c text AS ('v' || a) VIRTUAL);
INSERT INTO made (a) VALUES (1), (2), (NULL);
CREATE INDEX made_c ON made (c) WHERE a > 0;
CREATE INDEX made_expression ON made (a + 1 DESC, lower(c));
CREATE TABLE keyed (k text, n int, v blob, PRIMARY KEY (n DESC, k)) WITHOUT ROWID;
INSERT INTO keyed VALUES ('a', 1, x'00ff'), ('a', 2, zeroblob(5000));
CREATE TABLE strict (i int, r real, t text, b blob, a any) STRICT;
INSERT INTO strict VALUES (1, 2, '3', x'04', '05'), (NULL, NULL, NULL, NULL, 6.5);
CREATE TABLE child (id integer PRIMARY KEY, parent_id int REFERENCES parent (id) ON DELETE CASCADE DEFERRABLE);
INSERT INTO child VALUES (1, 41), (-9223372036854775808, NULL), (9223372036854775807, 41);
CREATE TABLE orphan (parent_id int REFERENCES parent (id));
INSERT INTO orphan VALUES (12345);
CREATE VIEW names AS SELECT name, length(name) AS n FROM parent;
CREATE TABLE log (text);
CREATE TRIGGER noted AFTER INSERT ON parent BEGIN INSERT INTO log VALUES ('new ' || new.id); END;
CREATE TRIGGER seen INSTEAD OF INSERT ON names BEGIN INSERT INTO parent (name) VALUES (new.name); END;
CREATE VIRTUAL TABLE found USING fts5 (body, tokenize = 'porter');
INSERT INTO found VALUES ('the quick brown foxes'), ('a lazy dog');
CREATE VIRTUAL TABLE boxes USING rtree (id, x1, x2);
INSERT INTO boxes VALUES (1, 0.5, 2.5);
CREATE TABLE checked (n int CHECK (n > 0), m int NOT NULL DEFAULT 5);
INSERT INTO checked VALUES (1, 2);
ANALYZE;
"""
VALUES = [
    None, 0, -1, 2**63 - 1, -(2**63), 0.0, -0.0, 1e308, 5e-324, 0.1, float("inf"), float("-inf"),
    "", "a\0b", "\0", "\ud7ff\ue000\U0010ffff", "e\u0301", "é", b"", b"\0\xff", bytes(range(256)) * 300, "x" * 100_000,
    "1", 1, 1.0, b"1", "\r\n\t'\"",
]  # fmt: skip


def everything(path: str, mode: str, encoding: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA encoding = '{encoding}'")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute(f"PRAGMA journal_mode = {mode}")
        connection.executescript(EVERYTHING)
        for kind in ("", "real", "text", "blob", "numeric"):
            name = f"v_{kind or 'any'}"
            connection.execute(f"CREATE TABLE {name} (n integer PRIMARY KEY, v {kind})")
            connection.executemany(f"INSERT INTO {name} (v) VALUES (?)", [(value,) for value in VALUES])
        connection.execute("CREATE TABLE raw (t text)")
        connection.execute("INSERT INTO raw VALUES (CAST(x'ff00fe41' AS text)), (CAST(x'c3' AS text)), ('good')")
        # Rows that were there before the constraint.
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute("INSERT INTO checked VALUES (-7, 3)")
        connection.execute("CREATE TABLE freed AS SELECT hex(randomblob(50000)) AS t")
        connection.execute("DROP TABLE freed")


def use(path: str) -> list[object]:
    """Do with a database what its users do, and return what they see."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("INSERT INTO names (name) VALUES ('Cid')")
        connection.execute("INSERT INTO empty (x) VALUES (1)")
        return [
            connection.execute("SELECT * FROM parent").fetchall(),
            connection.execute("SELECT * FROM log").fetchall(),
            connection.execute("SELECT id FROM empty").fetchall(),
            connection.execute("SELECT body FROM found WHERE found MATCH 'fox OR dogs'").fetchall(),
            connection.execute("SELECT id FROM boxes WHERE x1 < 1 AND x2 > 2").fetchall(),
            connection.execute("SELECT a, b FROM made WHERE c = 'v2' AND a > 0").fetchall(),
            connection.execute("SELECT repr FROM (SELECT quote(v) AS repr FROM v_real)").fetchall(),
        ]


@pytest.mark.sampled
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("encoding", "method"), [("UTF-8", "none"), ("UTF-16le", "zstd")])
def test_all_that_a_file_can_hold_comes_back(sqlite: Place, mode: str, encoding: str, method: str) -> None:
    everything(sqlite.dsn, mode, encoding)
    before = raw_state(sqlite.dsn)
    file = made(sqlite, "--test-restore", "--compress", method)
    used = use(sqlite.dsn)
    assert used[0] == [(41, "Ann"), (901, "Cid")]
    with client(sqlite.dsn) as other:
        restored(sqlite, str(file), "--force")
        assert raw_state(sqlite.dsn) == before
        assert other.run("SELECT max(id) FROM parent") == [[41]]
    Path(sqlite.dsn).unlink()
    restored(sqlite, str(file))
    assert raw_state(sqlite.dsn) == before
    assert use(sqlite.dsn) == used


def raw_state(path: str) -> object:
    """Return all rows with their types and bytes; `state` has SQLite check them too, which dislikes one of the rows."""
    with closing(sqlite3.connect(path)) as connection:
        problems = {text for (text,) in connection.execute("PRAGMA integrity_check")}
        assert problems <= {"ok", "CHECK constraint failed in checked"}
        schema = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY 1, 2").fetchall()
        found = [
            connection.execute(f"PRAGMA {name}").fetchone()
            for name in ("user_version", "application_id", "encoding", "auto_vacuum")
        ]
        rows = {}
        for _, name, _, _ in [row for row in schema if row[0] in ("table", "view")]:
            quoted = '"' + name.replace('"', '""') + '"'
            columns = [row[1] for row in connection.execute(f"PRAGMA table_xinfo({quoted})")]
            shown = ", ".join(
                f"typeof({c}), hex({c}), quote({c})" for c in ('"' + c.replace('"', '""') + '"' for c in columns)
            )
            connection.text_factory = bytes
            rows[name] = connection.execute(f"SELECT {shown} FROM {quoted}").fetchall()
            connection.text_factory = str
    return schema, found, rows


def test_a_restore_elsewhere_leaves_the_database_alone(sqlite: Place) -> None:
    file, old, new = two_states(sqlite, "wal")
    restored(sqlite, str(file), "--to", "other folder/copy.db")
    assert state(sqlite.folder / "other folder" / "copy.db") == old
    assert state(sqlite.dsn) == new


def test_a_safety_backup_can_be_restored_itself(sqlite: Place) -> None:
    file, _, new = two_states(sqlite, "wal")
    safety = restored(sqlite, "latest", "--force")["safety_backup"]
    assert restored(sqlite, "latest", "--force")["backup"] == str(file.relative_to(sqlite.folder))
    restored(sqlite, safety, "--force")
    assert state(sqlite.dsn) == new
    assert len(backups(sqlite)) == 4
