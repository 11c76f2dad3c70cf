"""Backups of SQLite are of one moment, whole, and for their user's eyes alone, whatever else goes on at the file."""

from __future__ import annotations

import json
import stat
import statistics
import subprocess
import sys
import tracemalloc
from contextlib import closing
from pathlib import Path

import pytest
from peewee import sqlite3

from tests.backup.clerk import ACCOUNTS, OPENING
from tests.backup.clerk import LEDGER as LEDGER_TABLES
from tests.backup.files import (
    MODES,
    ask,
    bound_by_rights,
    clerk,
    client,
    damage,
    filled,
    left,
    made,
    refused,
    run,
    script,
    start,
    state,
    told,
)
from tests.conftest import Place, ends_of
from tests.servers import eventually
from whatspire_db import Settings, backup
from whatspire_db.backup.engines.sqlite import content as engine
from whatspire_db.backup.engines.sqlite.content import examine
from whatspire_db.errors import BackupInvalid

A_SECOND = 200  # transactions of the writer
WRITER_THAT_IS_KILLED = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 10")
connection.execute("BEGIN")
connection.execute("UPDATE entry SET text = 'half done', key = 'half.' || id")
print("written", flush=True)
sys.stdin.read()
"""


def leave_a_hot_journal(path: Path) -> None:
    """Kill a writer in the middle of a transaction that its memory does not hold."""
    command = [sys.executable, "-c", WRITER_THAT_IS_KILLED, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout
        assert writer.stdout.readline() == "written\n"
        writer.kill()
    assert b"half done" in path.read_bytes()
    assert path.with_name(path.name + "-journal").stat().st_size > 0


def modes_of(folder: Path) -> dict[str, int]:
    return {path.name.partition("-")[0]: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.iterdir()]}


def sums(path: Path) -> tuple[int, int, int]:
    """Return what no transaction of the clerk changes: the money, and twice what every account has too much or few."""
    ((money, moves),) = ask(path, "SELECT sum(balance), sum(moves) FROM account")
    ((lines,),) = ask(path, "SELECT count(*) FROM ledger")
    ((wrong,),) = ask(
        path,
        f"""SELECT count(*) FROM account WHERE balance <> {OPENING}
            - (SELECT coalesce(sum(amount), 0) FROM ledger WHERE payer = account.id)
            + (SELECT coalesce(sum(amount), 0) FROM ledger WHERE payee = account.id)""",
    )
    return money, moves - 2 * lines, wrong


def test_rows_that_are_in_the_wal_alone_are_in_the_backup(sqlite: Place) -> None:
    script(sqlite.dsn, "PRAGMA journal_mode = wal", "CREATE TABLE entry (key text)")
    insert = "INSERT INTO entry VALUES ('in the wal')"
    with client(sqlite.dsn, "PRAGMA wal_autocheckpoint = 0", insert):
        assert b"in the wal" not in Path(sqlite.dsn).read_bytes()
        copy = made(sqlite)
        assert Path(sqlite.dsn + "-wal").stat().st_size > 0
    assert copy.read_bytes()[18:20] == b"\1\1"  # it has no WAL, so it can be read where nothing may be written
    assert ask(copy, "SELECT key FROM entry") == [("in the wal",)]


@pytest.mark.parametrize("mode", MODES)
def test_what_an_open_transaction_wrote_is_not_in_the_backup(sqlite: Place, mode: str) -> None:
    filled(sqlite.dsn, mode)
    before = state(sqlite.dsn)
    with client(sqlite.dsn, "BEGIN IMMEDIATE", "DELETE FROM entry"):
        assert state(made(sqlite)) == before


def test_a_transaction_whose_writer_was_killed_is_not_in_the_backup(sqlite: Place) -> None:
    path = filled(sqlite.dsn, "delete", rows=2000)
    before = state(path)
    leave_a_hot_journal(path)
    copy = made(sqlite, "--test-restore")
    assert state(copy) == before
    assert state(path) == before


@pytest.mark.parametrize(
    ("dsn", "code"), [("missing.db", 1), ("no/such/folder/missing.db", 2), ("file:missing.db?mode=rwc", 1)]
)
def test_a_database_that_is_missing_is_not_made(sqlite: Place, dsn: str, code: int) -> None:
    fact = refused(run(sqlite, "create", "--dsn", dsn), code)
    assert "missing.db" in fact
    assert "does not exist" in fact
    assert [path.name for path in sqlite.folder.rglob("*")] == []


def test_a_database_without_tables_is_not_backed_up(sqlite: Place) -> None:
    Path(sqlite.dsn).touch()
    refused(run(sqlite, "create"), 1)
    assert not (sqlite.folder / "backups").exists()


def test_what_is_no_database_is_not_backed_up(sqlite: Place) -> None:
    Path(sqlite.dsn).write_text("a text, and a long one too" * 1000)
    assert "not a database" in refused(run(sqlite, "create"), 1)
    assert not (sqlite.folder / "backups").exists()


def test_a_damaged_database_is_not_backed_up(sqlite: Place) -> None:
    path = filled(sqlite.dsn, "delete", rows=2000)
    damage(path)
    assert "is damaged" in refused(run(sqlite, "create"), 1)
    assert not (sqlite.folder / "backups").exists()


DAMAGE_BEHIND_OLD_ROWS = """
CREATE TABLE old (x, y);
WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 300)
INSERT INTO old (y) SELECT n FROM numbers;
CREATE TABLE one (x);
CREATE INDEX index_of_one ON one (x);
CREATE TABLE two (x);
CREATE INDEX index_of_two ON two (x);
INSERT INTO one VALUES (1);
INSERT INTO two VALUES (2);
PRAGMA writable_schema = ON;
UPDATE sqlite_master SET sql = 'CREATE TABLE old (x NOT NULL, y)' WHERE name = 'old';
"""
SWAPPED = """
PRAGMA writable_schema = ON;
CREATE TABLE pages AS SELECT name, rootpage FROM sqlite_master WHERE type = 'index';
UPDATE sqlite_master SET rootpage = (SELECT rootpage FROM pages WHERE name <> sqlite_master.name) WHERE type = 'index';
"""


def test_rows_from_before_a_constraint_hide_no_damage(sqlite: Place) -> None:
    """SQLite's check ends by itself after a hundred lines."""
    script(sqlite.dsn, DAMAGE_BEHIND_OLD_ROWS)
    made(sqlite, "--test-restore")
    script(sqlite.dsn, SWAPPED)
    assert "is damaged" in refused(run(sqlite, "create"), 1)


def test_a_folder_that_cannot_be_written_is_told(sqlite: Place) -> None:
    filled(sqlite.dsn)
    (sqlite.folder / "file").write_text("")
    refused(run(sqlite, "create", "--to", "file/below"), 1)
    refused(run(sqlite, "create", "--to", "file"), 1)


def test_a_folder_without_the_right_to_it_is_told(sqlite: Place) -> None:
    filled(sqlite.dsn)
    closed = sqlite.folder / "closed"
    closed.mkdir(mode=0o555)
    for folder, problem in (("closed", "closed cannot be written"), ("closed/below", "closed/below cannot be made")):
        assert problem in refused(run(sqlite, "create", "--to", folder, preexec_fn=bound_by_rights), 1)
    assert list(closed.iterdir()) == []


def test_who_can_read_alone_can_back_up(sqlite: Place) -> None:
    """Where the file has no WAL; else SQLite itself has to write beside it."""
    (sqlite.folder / "data").mkdir()
    path = filled(sqlite.folder / "data" / "whatspire.db", "delete")
    path.chmod(0o444)
    path.parent.chmod(0o555)
    copy = made(sqlite, "--dsn", str(path), preexec_fn=bound_by_rights)
    path.parent.chmod(0o755)
    assert state(copy) == state(path)


@pytest.mark.sampled
@pytest.mark.parametrize("method", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("umask", [0o022, 0])
def test_nobody_else_can_read_a_backup(sqlite: Place, umask: int, method: str) -> None:
    filled(sqlite.dsn)
    made(sqlite, "--compress", method, "--to", "deep/backups", umask=umask)
    assert modes_of(sqlite.folder / "deep" / "backups") == {"backups": 0o700, "whatspire": 0o600}


def test_nobody_else_can_read_what_a_restore_puts_aside(sqlite: Place) -> None:
    """Neither a copy of what was damaged nor a backup of what was good."""
    path = filled(sqlite.dsn, "delete", rows=2000)
    made(sqlite)
    damage(path)
    arguments = ("restore", "latest", "--json", "--force")
    (kept,) = told(run(sqlite, *arguments, umask=0))["kept"]
    script(sqlite.dsn, "DELETE FROM entry WHERE id = 1")
    safety = told(run(sqlite, *arguments, umask=0))["safety_backup"]
    for file in (kept, safety):
        assert stat.S_IMODE((sqlite.folder / file).stat().st_mode) == 0o600


@pytest.mark.parametrize("method", ["none", "gzip", "zstd"])
def test_a_backup_of_every_kind_holds_the_same(sqlite: Place, method: str) -> None:
    filled(sqlite.dsn)
    before = state(sqlite.dsn)
    suffix = {"none": ".sqlite3", "gzip": ".sqlite3.gz", "zstd": ".sqlite3.zst"}[method]
    file = made(sqlite, "--compress", method, "--test-restore")
    assert file.name.endswith("Z" + suffix)
    Path(sqlite.dsn).unlink()
    told(run(sqlite, "restore", str(file), "--json"))
    assert state(sqlite.dsn) == before


NAMES = ["it's.db", 'a "quoted" name.db', "with space.db", "größe-数据-🗄.db", "100% sure?.db", "a#b&c=d.db", "-dash.db"]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_can_be_backed_up_and_restored(sqlite: Place, name: str) -> None:
    folder = sqlite.folder / "a ?#% folder"
    folder.mkdir()
    path = filled(folder / name)
    before = state(path)
    # In a path a question mark begins the parameters, as in the Go driver: it can be said in a URI alone.
    escaped = str(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    place = Place("sqlite", f"file:{escaped}?_journal_mode=WAL&_busy_timeout=1000&cache=private", sqlite.folder)
    file = made(place)
    script(path, "DELETE FROM entry")
    assert told(run(place, "restore", "latest", "--json", "--force"))["target"] == str(path)
    assert state(path) == before
    assert file.parent == sqlite.folder / "backups"
    assert sorted(other.name for other in folder.iterdir()) == [name]


def test_a_link_is_followed(sqlite: Place) -> None:
    (sqlite.folder / "data").mkdir()
    real = filled(sqlite.folder / "data" / "real.db")
    before = state(real)
    Path(sqlite.dsn).symlink_to("data/real.db")
    with client(sqlite.dsn, "PRAGMA wal_autocheckpoint = 0") as other:
        made(sqlite, "--test-restore")
        other.run("DELETE FROM entry")
        told(run(sqlite, "restore", "latest", "--json", "--force"))
        assert other.run("SELECT count(*) FROM entry") == [[100]]
    assert Path(sqlite.dsn).is_symlink()
    assert state(real) == before
    real.unlink()
    told(run(sqlite, "restore", "latest", "--json"))
    assert Path(sqlite.dsn).is_symlink()
    assert state(real) == before


def test_backups_that_are_made_at_once_do_not_meet(sqlite: Place) -> None:
    filled(sqlite.dsn)
    running = [start(sqlite, "create", "--json") for _ in range(4)]
    ends = ends_of(running)
    assert [code for code, *_ in ends] == [0] * 4, ends
    files = {json.loads(out)["path"] for _, out, _ in ends}
    assert len(files) == 4
    found, others = backup.list_backups(sqlite.folder / "backups")
    assert (sorted(b.manifest.serial for b in found), others) == ([1, 2, 3, 4], [])
    assert left(sqlite.folder / "backups") == []


def test_a_copy_does_not_begin_again_whenever_somebody_writes(sqlite: Place) -> None:
    with closing(sqlite3.connect(sqlite.dsn)) as connection:
        connection.execute("PRAGMA page_size = 512")  # so that it takes some steps
        connection.execute("CREATE TABLE written (number integer)")
    filled(sqlite.dsn, rows=8000, length=250)
    steps: list[int] = []
    with client(sqlite.dsn) as other:

        def write(what: str, done: int, total: int) -> None:
            if what == "copying":
                steps.append(done)
                other.run(f"INSERT INTO written VALUES ({len(steps)})")
                assert len(steps) < 100, steps

        settings = Settings(driver="sqlite", dsn=sqlite.dsn)
        copy = backup.create(settings, sqlite.folder / "backups", progress=write)
    assert len(steps) > 2
    assert steps == sorted(steps)
    assert ask(copy.file, "SELECT count(*) FROM written") == [(0,)]
    assert ask(sqlite.dsn, "SELECT count(*) FROM written") == [(len(steps),)]


def check_backups_under_writes(place: Place, rounds: int) -> None:
    script(place.dsn, "PRAGMA journal_mode = wal", LEDGER_TABLES)
    lines = []
    with clerk("transfer", place.dsn, place.folder / "notes", str(A_SECOND)):
        for number in range(rounds):
            copy = made(place, "--test-restore", "--compress", ["none", "gzip"][number % 2])
            told(run(place, "verify", str(copy), "--test-restore", "--json"))
            plain = copy
            if number % 2:
                plain = copy.with_name("plain")
                told(run(place, "restore", str(copy), "--to", str(plain), "--json", "--no-safety-backup", "--force"))
            assert sums(plain) == (ACCOUNTS * OPENING, 0, 0)
            lines += ask(plain, "SELECT count(*) FROM ledger")
    assert sums(Path(place.dsn)) == (ACCOUNTS * OPENING, 0, 0)
    # Every copy was of a later moment, and none of them had a writer that stood still.
    assert lines == sorted(set(lines))


def test_every_copy_under_a_writer_is_of_one_moment(sqlite: Place) -> None:
    check_backups_under_writes(sqlite, 3)


@pytest.mark.soak
def test_many_copies_under_a_writer_are_each_of_one_moment(sqlite: Place) -> None:
    check_backups_under_writes(sqlite, 40)


def p99(notes: Path) -> float:
    """Return the writer's p99 in milliseconds."""
    return statistics.quantiles(map(float, notes.read_text().split()), n=100)[98]


@pytest.mark.soak
@pytest.mark.alone
def test_a_writer_is_hardly_slower_while_backups_are_made(sqlite: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """The median of the rounds' p99, each with backups and without, in one run: under three times as much."""
    filled(sqlite.dsn, rows=50_000, length=250)  # 30 MB
    script(sqlite.dsn, LEDGER_TABLES)
    found: dict[bool, list[float]] = {False: [], True: []}
    copies = 0
    for number in range(14):
        busy = bool(number % 2)
        notes = sqlite.folder / f"notes.{number}"
        with clerk("transfer", sqlite.dsn, notes, str(A_SECOND)):

            def enough(notes: Path = notes) -> bool:
                return len(notes.read_text().splitlines()) >= 4 * A_SECOND

            while busy and not enough():
                made(sqlite).unlink()
                copies += 1
            eventually(enough, "it wrote enough")
        found[busy].append(p99(notes))
    alone, together = (statistics.median(found[busy]) for busy in (False, True))
    with capsys.disabled():
        sys.stdout.write(f"\np99 of the writer: {alone:.2f} ms alone, {together:.2f} ms during {copies} backups\n")
    assert together < 3 * alone, found


def test_what_another_program_registers_is_not_needed(sqlite: Place) -> None:
    """A database may have collations and functions of its own program's, which are not known here."""
    with closing(sqlite3.connect(sqlite.dsn)) as own:
        own.create_collation("own", lambda one, other: (one < other) - (one > other))
        own.create_function("own_half", 1, lambda value: value // 2, deterministic=True)
        own.executescript(
            "CREATE TABLE word (id INTEGER PRIMARY KEY, text TEXT COLLATE own, half AS (own_half(id)));"
            "CREATE INDEX word_text ON word (text); CREATE INDEX word_half ON word (own_half(id));"
            "INSERT INTO word (text) VALUES ('a'), ('c'), ('b');"
        )
        own.commit()
    assert sqlite.run("create", "--test-restore", module="whatspire_db.backup").returncode == 0
    done = sqlite.run("restore", "latest", "--force", module="whatspire_db.backup")
    assert done.returncode == 0, done.stderr


def test_large_rows_are_not_held_together(tmp_path: Path) -> None:
    large = "INSERT INTO entry (key, text) SELECT key || '.large', zeroblob(1048576) FROM entry"
    path = filled(tmp_path / "large.db", rows=48)
    script(path, large)
    tracemalloc.start()
    try:
        assert examine(path).tables["entry"].rows == 96
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()


def test_the_fingerprint_does_not_depend_on_how_many_rows_are_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = filled(tmp_path / "rows.db", rows=100)
    before = examine(path)
    for rows in (1, 7, 1000):
        monkeypatch.setattr(engine, "ROWS_A_STEP", rows)
        assert examine(path) == before


@pytest.mark.parametrize("word", ["locked", "full", "is locked by"])
def test_a_name_in_a_message_is_not_taken_for_the_message(sqlite: Place, word: str) -> None:
    script(
        sqlite.dsn,
        f'CREATE TABLE "{word}" (x int)',
        "PRAGMA writable_schema = on",
        f"UPDATE sqlite_master SET sql = 'CREATE TABLE \"{word}\" (x int,,)'",
    )
    done = run(sqlite, "create")
    assert "malformed database schema" in refused(done, 1)
    assert "restore a backup" in done.stderr


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 registers only names of letters and digits")
def test_what_a_program_registers_may_have_any_name(sqlite: Place) -> None:
    path = Path(sqlite.dsn)
    with closing(sqlite3.connect(path)) as connection:
        connection.create_collation("de-DE (phone book)", lambda one, other: (one > other) - (one < other))
        connection.execute('CREATE TABLE name (name text COLLATE "de-DE (phone book)" UNIQUE)')
        connection.execute("INSERT INTO name VALUES ('Ann'), ('Bob')")
        connection.commit()
    assert examine(made(sqlite)).tables["name"].rows == 2


@pytest.mark.parametrize("version", ["9e999", "-9e999", "'?'", "x'ff'"])
def test_a_version_that_is_no_number_is_none(sqlite: Place, version: str) -> None:
    script(
        sqlite.dsn, "CREATE TABLE migration_versions (version)", f"INSERT INTO migration_versions VALUES ({version})"
    )
    assert examine(made(sqlite)).schema_version == 0


def test_a_schema_that_is_no_utf_8_is_told_as_damaged(sqlite: Place) -> None:
    good = made(sqlite, "--dsn", str(filled(sqlite.folder / "from.db")))
    with closing(sqlite3.connect(sqlite.dsn)) as connection:
        connection.execute("CREATE TABLE entry (x int)")
        connection.execute("PRAGMA writable_schema = on")
        connection.execute("UPDATE sqlite_master SET sql = CAST(x'4352454154452054414242ff' AS text)")
        connection.commit()
    assert "malformed database schema" in refused(run(sqlite, "create"), 1)
    assert "malformed database schema" in refused(run(sqlite, "restore", str(good)), 4)
    with pytest.raises(BackupInvalid, match="malformed database schema"):
        examine(Path(sqlite.dsn))
    told(run(sqlite, "restore", str(good), "--force", "--json"))
    assert state(sqlite.dsn) == state(sqlite.folder / "from.db")
