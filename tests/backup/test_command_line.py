"""The command line of backups: one JSON document a verb, an exit code a reason, two lines for all that is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.backup.ground import (
    Done,
    add,
    entries,
    fails,
    fill,
    folder_of,
    look,
    made,
    names,
    rewritten,
    run,
    run_many,
    settings_of,
    told,
    tools,
)
from tests.conftest import Place, ends_of
from tests.servers import eventually, opened, up
from whatspire_db import MigrationRunner, Settings, backup, connect
from whatspire_db.errors import BackupFailed, ConfigError

pytestmark = pytest.mark.sampled

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"
PENDING = "idx_sessions_jid"
BEFORE_MIGRATE = {"WHATSAPP_DATABASE_BACKUP_BEFORE_MIGRATE": "true"}
STARTERS = 6


@pytest.fixture
def elsewhere(place: Place, request: pytest.FixtureRequest) -> Iterator[Place]:
    """Where there is no database yet, on the same server."""
    if place.is_sqlite:
        yield replace(place, dsn=str(place.folder / "elsewhere.db"))
        return
    server = request.getfixturevalue("server")
    yield replace(place, dsn=server.of_database("elsewhere"))
    server.execute("DROP DATABASE IF EXISTS elsewhere WITH (FORCE)")


def name_of(place: Place) -> str:
    return place.dsn if place.is_sqlite else "elsewhere"


def test_the_life_of_a_backup(place: Place, elsewhere: Place) -> None:
    """Every verb gives one document on standard output, and says nothing else."""
    fill(place)
    created = told(run(place, "create", "--json"))
    assert Path(created["path"]).parent == Path("backups")
    assert created.keys() >= {"path", "manifest", "format", "name", "created_at", "size", "sha256", "content"}
    assert created["tested_at"] is None
    assert names(folder_of(place)) == {Path(created[key]).name for key in ("path", "manifest")}
    on_disk = json.loads((place.folder / created["manifest"]).read_text())
    assert on_disk.items() <= (created | {"checksum": on_disk["checksum"]}).items()

    tested = told(run(place, "create", "--test-restore", "--compress", "gzip", "--json"))
    assert tested["tested_at"] is not None
    assert tested["compression"] == "gzip"
    named = {"driver": place.driver, "database": place.named}
    assert created.items() >= named.items()
    listed = told(run(place, "list", "--json"))
    assert listed.items() >= named.items()
    assert [{**one, "problem": None, **named} for one in (tested, created)] == [
        {**one, **named} for one in listed["backups"]
    ]
    assert listed["others"] == []
    assert told(run(place, "verify", "--json")) == {**tested, "verified": True, "test_restored": False}
    arguments = ("verify", created["path"], "--test-restore", "--json")
    assert told(run(place, *arguments)) == {**created, "verified": True, "test_restored": True}

    restored = told(run(place, "restore", "latest", "--to", name_of(elsewhere), "--json"))
    keys = {"driver", "database", "target", "backup", "schema_version", "rows", "safety_backup", "kept", "duration_ms"}
    assert restored.keys() == keys
    assert restored["database"] == elsewhere.named
    assert (restored["backup"], restored["rows"], restored["safety_backup"]) == (tested["path"], 200, None)
    assert entries(elsewhere) == entries(place)

    before = entries(place)
    add(place, 5)
    back = told(run(place, "restore", created["path"], "--force", "--json"))
    assert entries(place) == before
    safety = told(run(place, "list", "--json"))["backups"][0]
    assert (safety["path"], safety["content"]["tables"].popitem()[1]["rows"]) == (back["safety_backup"], 205)
    pruned = told(run(place, "prune", "--keep-last", "1", "--dry-run", "--json"))
    assert [one["fate"] for one in pruned["backups"]] == ["kept", "kept", "deleted"]


@pytest.mark.soak
def test_the_same_in_words(sqlite: Place) -> None:
    fill(sqlite)
    created = run(sqlite, "create")
    line, named = created.stdout.splitlines()
    assert named == f"   database: sqlite {sqlite.named}"
    path = next(f"backups/{name}" for name in names(folder_of(sqlite)) if not name.endswith(".json"))
    assert line.startswith(f"Backup made: {path} (")
    assert "200 rows in 1 tables" in line
    assert run(sqlite, "list").stdout.splitlines() == [line.removeprefix("Backup made: "), named.strip()]
    assert run(sqlite, "verify").stdout.startswith(f"Backup verified: {path}")
    add(sqlite, 1)
    fact, _, safety = run(sqlite, "restore", "latest", "--force").stdout.splitlines()
    assert path in fact
    assert (sqlite.folder / safety.rpartition(": ")[2]).exists()
    (folder_of(sqlite) / "app-20200101T000000Z.sqlite3").write_text("")
    assert "not a backup: backups/app-20200101T000000Z.sqlite3 has no manifest" in run(sqlite, "list").stdout
    os.truncate(sqlite.folder / path, 7)
    assert "PROBLEM: its file has 7 bytes" in run(sqlite, "list").stdout


@pytest.mark.soak
def test_quiet_says_nothing_that_is_no_error(sqlite: Place) -> None:
    fill(sqlite)
    quiet = [
        ("create", "-q", "--keep-last", "3"),
        ("list", "-q"),
        ("verify", "-q"),
        ("restore", "latest", "-q", "--force"),
    ]
    for done in run_many(sqlite, *quiet, ("prune", "-q", "--keep-last", "1")):
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done
    fails(run(sqlite, "restore", "latest", "-q"), 4, "holds data")


def test_a_list_of_nothing(place: Place) -> None:
    """It needs no database, and makes no folder."""
    (place.folder / "file").write_text("")
    missing, elsewhere, no_folder = run_many(place, ("list",), ("list", "--dir", "no/where"), ("list", "--dir", "file"))
    fails(missing, 1, "the folder backups does not exist", "--dir")
    fails(elsewhere, 1, "the folder no/where does not exist", "give another one by --dir\n")
    fails(no_folder, 1, "file cannot be read", "--dir")
    assert not folder_of(place).exists()
    folder_of(place).mkdir()
    empty, as_json = run_many(place, ("list",), ("list", "--json"))
    assert empty.stdout == f"no backups in backups\ndatabase: {place.driver} {place.named}\n"
    assert told(as_json) == {"driver": place.driver, "database": place.named, "backups": [], "others": []}


def test_exit_1_when_it_failed(place: Place) -> None:
    gone = place.folder / "no.db"
    other = str(gone) if place.is_sqlite else place.dsn.replace("t_", "no_t_")
    (place.folder / "file").write_text("")
    for done in run_many(place, ("create", "--dsn", other), ("create",)):  # there is none, and there is nothing in it
        fails(done, 1)
    assert not folder_of(place).exists()
    assert not gone.exists()
    fill(place)
    for done in run_many(place, ("create", "--to", "file"), ("create", "--to", "file/below")):
        fails(done, 1, "cannot be made", "--to")


WRONG = [
    (),
    ("destroy",),
    ("restore",),
    ("restore", "latest", "more"),
    ("create", "--compress", "lzma"),
    ("create", "--keep-last", "few"),
    ("create", "--keep-last"),
    ("create", "--lock-timeout", "soon"),
    ("create", "--lock-timeout", "-1s"),
    ("create", "--name", ""),
    ("create", "--name", "a/b"),
    ("create", "--name", "../a"),
    ("create", "--name", ".a"),
    ("create", "--name=-a"),
    ("create", "--name", "a\nb"),
    ("create", "--name", "a\x1b[31m"),
    ("create", "--name", "a\udcff"),
    ("create", "--name", "é" * 101),
    ("create", "--force"),
    ("list", "--keep-last", "1"),
    ("prune",),
    ("prune", "--keep-daily", "-1"),
    ("restore", "latest", "--to", ""),
    ("list", "--driver", "oracle"),
    ("list", "--dsn", "~/x.db"),
]


def test_exit_2_for_wrong_usage(sqlite: Place) -> None:
    fill(sqlite, 1)
    made(sqlite)
    before = look(folder_of(sqlite))
    for done in run_many(sqlite, *WRONG):
        fails(done, 2)
        assert done.stdout == ""
    fails(run(sqlite, "create", "--name", "a\udcff"), 2)
    assert look(folder_of(sqlite)) == before


def test_exit_2_for_no_place_of_a_database(sqlite: Place) -> None:
    fill(sqlite)
    made(sqlite)
    before = look(sqlite.folder)
    directory, create, restore = run_many(
        sqlite,
        ("restore", "latest", "--to", "backups"),
        ("create", "--dsn", ":memory:"),
        ("restore", "latest", "--dsn", ":memory:"),
    )
    fails(directory, 2, "is a directory")
    fails(create, 2, "in memory")
    fails(restore, 2, "in memory")
    assert {n: d for n, d in look(sqlite.folder).items() if n in before} == before


NO_FILES = [
    "postgres://me:secret@localhost/x",
    " PostgreSQL://me:secret@localhost/x",
    "dbname=foo host=x password=secret",
    "sqlite:///x/secret.db",
    "secret\0.db",
]


def test_exit_2_for_another_place_that_is_no_file(sqlite: Place) -> None:
    """The DSN of a server would become a folder, with the password in its name."""
    fill(sqlite)
    (one,) = made(sqlite)
    before = look(sqlite.folder)
    (sqlite.folder / "loop").symlink_to("loop")
    *servers, zero, loop = run_many(sqlite, *(("restore", "latest", "--to", place) for place in (*NO_FILES, "loop")))
    for done in servers:
        fails(done, 2, "is the DSN of a server", "WHATSAPP_DATABASE_DRIVER")
        assert "secret" not in done.stdout + done.stderr
    fails(zero, 2)
    fails(loop, 2, "loop is a link that leads back to itself")
    fails(run(sqlite, "create", "--dsn", "loop"), 2, "leads back to itself")
    (sqlite.folder / "loop").unlink()
    assert look(sqlite.folder) == before
    for place in (" ", "x\0y", NO_FILES[0]):
        with pytest.raises(ConfigError):
            backup.restore(one, settings_of(sqlite), to=place)
    assert look(sqlite.folder) == before


def test_exit_2_for_another_place_that_is_no_database(postgres: Place) -> None:
    fill(postgres)
    made(postgres)
    for done in run_many(postgres, *(("restore", "latest", "--to", place) for place in NO_FILES)):
        fails(done, 2)
        assert "://" not in done.stderr


@pytest.mark.soak
def test_another_place_is_named_as_a_dsn_names_it(sqlite: Place) -> None:
    fill(sqlite)
    made(sqlite)
    for place, file in (
        ("q.db?_journal_mode=WAL", "q.db"),
        ("file:r%20s.db?_fk=1", "r s.db"),
        ("50% off.db", "50% off.db"),
    ):
        told(run(sqlite, "restore", "latest", "--to", place, "--json"))
        assert entries(replace(sqlite, dsn=str(sqlite.folder / file))) == entries(sqlite)
    fails(run(sqlite, "restore", "latest", "--to", "q.db?_journal_mode=fast"), 2, "_journal_mode")


def test_zero_bytes_in_names_are_wrong_settings(sqlite: Place) -> None:
    fill(sqlite)
    (one,) = made(sqlite)
    settings = settings_of(sqlite)
    odd = "a\0b"
    works: list[Callable[[], object]] = [
        lambda: backup.create(settings, odd),
        lambda: backup.create(replace(settings, dsn=odd)),
        lambda: backup.list_backups(odd, settings),
        lambda: backup.find("latest", odd, settings),
        lambda: backup.restore(one, settings, odd, force=True),
        lambda: backup.prune(settings, odd, backup.Policy(last=1)),
    ]
    for work in works:
        with pytest.raises(ConfigError, match="zero byte"):
            work()


def test_exit_3_when_it_is_no_backup(place: Place) -> None:
    fill(place)
    for missing in run_many(place, ("verify",), ("restore", "latest")):
        fails(missing, 1, "the folder backups does not exist", "--dir")
    folder_of(place).mkdir()
    verify, restore, nothing = run_many(place, ("verify",), ("restore", "latest"), ("verify", "nothing"))
    fails(verify, 3, "backups holds no backup", "--dir")
    fails(restore, 3, "backups holds no backup")
    fails(nothing, 3, "nothing does not exist")


def test_exit_4_when_the_target_holds_data(place: Place) -> None:
    fill(place)
    (one,) = made(place)
    add(place, 1)
    before, rows = look(folder_of(place)), entries(place)
    for done in run_many(place, ("restore", "latest"), ("restore", "latest", "--json")):
        fails(done, 4, "holds data", "--force")
    assert look(folder_of(place)) == before
    assert entries(place) == rows
    assert one.file.exists()


def test_exit_4_when_the_target_is_a_backup(sqlite: Place) -> None:
    """Who names a backup for a database would lose it, and its manifest would fit no more."""
    fill(sqlite)
    (one,) = made(sqlite)
    (other,) = made(sqlite, compress="gzip")
    before = look(folder_of(sqlite))
    targets = [str(one.file), str(other.file)]
    for done in run_many(sqlite, *(("restore", "latest", "--to", target, "--force") for target in targets)):
        fails(done, 4, "is a backup itself")
    assert look(folder_of(sqlite)) == before


def test_exit_5_when_the_server_is_older(postgres: Place) -> None:
    """A backup of a later PostgreSQL than there is; on SQLite there are no such versions."""
    fill(postgres)
    (one,) = made(postgres)
    content = one.manifest.content
    rewritten(one, content=replace(content, details={**content.details, "major": 99}))
    before, rows = look(folder_of(postgres)), entries(postgres)
    restore = ("restore", one.file.name, "--force")
    for done in run_many(postgres, restore, ("verify", one.file.name, "--test-restore")):
        fails(done, 5, "PostgreSQL 99")
    assert look(folder_of(postgres)) == before
    assert entries(postgres) == rows


@pytest.mark.soak
def test_names_that_the_terminal_cannot_show(sqlite: Place) -> None:
    odd = replace(sqlite, dsn=str(sqlite.folder / "größe 1.db"))
    fill(odd)
    for encoding in ("ascii", "latin-1"):
        done = run(odd, "create", "--json", env={"PYTHONIOENCODING": encoding})
        assert told(done)["name"] == "größe_1"
    assert r"gr\xf6\xdfe_1" in run(odd, "list", env={"PYTHONIOENCODING": "ascii"}).stdout


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (1, 2), (0, 1, 2)])
def test_streams_that_are_closed_are_nobodys_trouble(sqlite: Place, closed: tuple[int, ...]) -> None:
    """As a shell closes them by >&-; a caller who wants no output gets his backup all the same."""
    fill(sqlite)

    def closing() -> None:
        for number in closed:
            os.close(number)

    done = run(sqlite, "create", preexec_fn=closing)
    assert (done.returncode, done.stderr) == (0, "")
    done = run(sqlite, "restore", "latest", "--json", "--force", preexec_fn=closing)
    assert (done.returncode, done.stderr) == (0, "")
    assert [one.manifest.purpose for one in backup.list_backups(folder_of(sqlite))[0]] == ["before a restore", ""]
    done = run(sqlite, "destroy", "--json", preexec_fn=closing)
    assert done.returncode == 2
    assert 1 in closed or json.loads(done.stdout)["exit"] == 2


def test_output_that_cannot_be_written_is_told_and_the_work_is_done(sqlite: Place) -> None:
    fill(sqlite)
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "whatspire_db.backup", "create"]
        done = subprocess.run(
            command,
            env=sqlite.variables(),
            cwd=sqlite.folder,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert "stdout: No space left on device" in done.stderr
    assert len(backup.list_backups(folder_of(sqlite))[0]) == 1


def test_a_current_folder_that_is_deleted_is_told(sqlite: Place) -> None:
    gone = sqlite.folder / "gone"

    def leave() -> None:
        gone.mkdir()
        os.chdir(gone)
        gone.rmdir()

    fails(run(sqlite, "create", "--dsn", "a.db", preexec_fn=leave), 2, "the current folder is deleted")
    fails(sqlite.run("up", "--dsn", "a.db", preexec_fn=leave), 1, "the current folder is deleted")


def test_times_are_utc_whatever_the_zone(sqlite: Place) -> None:
    fill(sqlite)
    document = told(run(sqlite, "create", "--json", env={"TZ": "FAR-14"}))
    assert document["created_at"].endswith("+00:00")
    stamp = document["created_at"].removesuffix("+00:00").replace("-", "").replace(":", "") + "Z"
    assert document["file"] == f"whatspire-{stamp}.sqlite3"


@pytest.mark.soak
def test_a_lock_is_waited_for_and_then_named(place: Place) -> None:
    fill(place)
    with opened(place) as db:
        if place.is_sqlite:
            db.execute_sql("PRAGMA journal_mode = DELETE")
        db.execute_sql("BEGIN EXCLUSIVE" if place.is_sqlite else "BEGIN")
        db.execute_sql("UPDATE entry SET text = ''" if place.is_sqlite else "LOCK TABLE entry")
        done = run(place, "create", "--lock-timeout", "100ms")
        fails(done, 1, "lock", "--lock-timeout")
        patient = place.start("create", "--lock-timeout", "1000000h", module="whatspire_db.backup")
        eventually(lambda: list(folder_of(place).glob(".*/data")) or patient.poll() is not None, "it begins")
        with pytest.raises(subprocess.TimeoutExpired):
            patient.wait(0.2)
        db.execute_sql("ROLLBACK")
    assert patient.communicate(timeout=60)[1] == ""
    assert patient.returncode == 0


# The scripts


@pytest.mark.soak
def test_scripts(sqlite: Place) -> None:
    """They take what the verbs take; without PYTHON the first python3 of PATH runs them."""
    variables = {name: value for name, value in sqlite.variables().items() if name != "PYTHON"}
    on_path = variables | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    named = variables | {"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}

    def script(variables: dict[str, str], name: str, *arguments: str) -> Done:
        command = [str(SCRIPTS / name), *arguments]
        return subprocess.run(command, cwd=sqlite.folder, env=variables, text=True, capture_output=True, check=False)

    fill(sqlite)
    assert told(script(named, "backup", "--json", "--name", "by script"))["name"] == "by script"
    add(sqlite, 1)
    fails(script(on_path, "restore", "latest", "--name", "by script"), 4, "holds data")
    done = script(named, "restore", "latest", "--name", "by script", "--force")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(entries(sqlite)) == 200
    fails(script(on_path, "backup", "--to", str(sqlite.dsn)), 1, "cannot be made")


# Before a migration


def pend(place: Place) -> None:
    """Let a migrated database with a row lack an index."""
    up(place)
    with opened(place) as db:
        db.execute_sql(f"DROP INDEX {PENDING}")
        db.execute_sql("CREATE TABLE entry (id integer PRIMARY KEY, text text NOT NULL)")
    add(place, 3)


def pending(place: Place) -> list[str]:
    with opened(place) as db:
        return [step.name for step in MigrationRunner(db).plan().pending]


def with_option(place: Place, *arguments: str) -> Done:
    return place.run("up", "--backup", *arguments)


def with_variable(place: Place, *arguments: str) -> Done:
    return place.run("up", *arguments, env=BEFORE_MIGRATE)


def test_backup_is_made_before_anything_changes(place: Place, elsewhere: Place) -> None:
    pend(place)
    done = with_variable(place)
    assert (done.returncode, done.stderr) == (0, "")
    ((one,), others) = backup.list_backups(folder_of(place))
    assert others == []
    assert f"Backup made: backups/{one.file.name}" in done.stdout.splitlines()
    assert one.manifest.purpose == "before a migration"
    assert pending(place) == []
    told(run(place, "restore", one.file.name, "--to", name_of(elsewhere), "--json"))
    assert pending(elsewhere) == [PENDING]
    assert len(entries(elsewhere)) == 3


@pytest.mark.soak
def test_json_names_the_backup(place: Place) -> None:
    pend(place)
    report = told(with_option(place, "--json"))
    ((one,), _) = backup.list_backups(folder_of(place))
    assert report["backup"] == f"backups/{one.file.name}"
    assert [step["name"] for step in report["applied"]] == [PENDING]
    again = told(with_option(place, "--json"))
    assert "backup" not in again
    assert len(backup.list_backups(folder_of(place))[0]) == 1


@pytest.mark.soak
def test_no_backup_when_there_is_nothing_to_do_or_to_lose(place: Place) -> None:
    """Nothing pending, or nothing in the database yet."""
    first = with_variable(place)
    assert first.returncode == 0
    assert "Backup" not in first.stdout
    assert not folder_of(place).exists()
    second = with_variable(place)
    assert (second.returncode, "Backup" in second.stdout) == (0, False)
    assert not folder_of(place).exists()


def test_only_up_makes_one(place: Place) -> None:
    pend(place)
    for verb in ("plan", "status"):
        place.run(verb, "--backup", env=BEFORE_MIGRATE)
    assert not folder_of(place).exists()


@pytest.mark.soak
def test_backup_that_fails_stops_the_migration(place: Place) -> None:
    pend(place)
    (place.folder / "backups").write_text("in the way")
    rows = entries(place)
    done = with_variable(place)
    assert done.returncode == 1
    assert "the folder backups cannot be made" in done.stderr
    assert "WHATSAPP_DATABASE_BACKUP_DIR" in done.stderr  # for migrate has no --dir
    assert pending(place) == [PENDING]
    assert entries(place) == rows
    (place.folder / "backups").unlink()
    assert with_variable(place).returncode == 0
    assert pending(place) == []


@pytest.mark.soak
@pytest.mark.parametrize("way", [with_option, with_variable])
def test_backup_that_would_wait_for_its_own_run_is_refused_at_once(sqlite: Place, way: Callable[..., Done]) -> None:
    pend(sqlite)
    exclusive = replace(sqlite, dsn=f"{sqlite.dsn}?_locking_mode=EXCLUSIVE")
    done = way(exclusive)
    assert done.returncode == 2
    assert "_locking_mode=exclusive" in done.stderr
    assert "python -m whatspire_db.backup create" in done.stderr
    assert pending(sqlite) == [PENDING]
    assert not folder_of(sqlite).exists()
    assert exclusive.run("up").returncode == 0
    assert way(exclusive).returncode == 0  # nothing is pending, so none is made


@pytest.mark.soak
def test_several_starters_make_one_backup(place: Place) -> None:
    pend(place)
    processes = [place.start("up", "--json", env=BEFORE_MIGRATE) for _ in range(STARTERS)]
    ends = ends_of(processes)
    assert [code for code, *_ in ends] == [0] * STARTERS, ends
    reports: list[dict[str, Any]] = [json.loads(out) for _, out, _ in ends]
    ((one,), others) = backup.list_backups(folder_of(place))
    assert others == []
    (worker,) = [report for report in reports if report["applied"]]
    assert [report["backup"] for report in reports if "backup" in report] == [worker["backup"]]
    assert worker["backup"] == f"backups/{one.file.name}"


def test_a_worker_makes_one_beside_its_own_connections(place: Place) -> None:
    """In the process of a service, which holds locks on the file meanwhile that it must not lose."""
    pend(place)
    settings = settings_of(place, backup_before_migrate=True)
    db = connect(settings)
    with tools(), db.connection_context():
        report = MigrationRunner(db).up()
        assert report.backup == str(backup.find("latest", settings=settings).file)
        assert report.to_json()["backup"] == report.backup
        if place.is_sqlite:
            db.execute_sql("BEGIN IMMEDIATE")
            backup.create(settings)
            backup.verify(backup.find("latest", settings=settings), test_restore=True)
            other = place.start("up", "--lock-timeout", "10ms", "--backup")
            busy = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('BEGIN IMMEDIATE')"
            done = subprocess.run([sys.executable, "-c", busy, place.dsn], capture_output=True, text=True, check=False)
            assert "database is locked" in done.stderr
            other.communicate()
            db.execute_sql("ROLLBACK")
    db.close_all() if hasattr(db, "close_all") else None


def test_a_hook_of_ones_own(place: Place) -> None:
    """What it returns is reported; what it raises stops the migration."""
    pend(place)

    def fail() -> str:
        raise BackupFailed("no backup today", "come back tomorrow")

    with opened(place) as db:
        with pytest.raises(BackupFailed):
            MigrationRunner(db, before_changes=fail).up()
        assert pending(place) == [PENDING]
        assert MigrationRunner(db, before_changes=lambda: "by hand").up().backup == "by hand"
        assert MigrationRunner(db, before_changes=fail).up().backup is None


def test_settings_of_the_environment() -> None:
    assert Settings.from_environment({}, None).backup_before_migrate is False
    read = Settings.from_environment(BEFORE_MIGRATE | {"WHATSAPP_DATABASE_BACKUP_DIR": " /srv/b "}, None)
    assert (read.backup_before_migrate, read.backup_dir) == (True, "/srv/b")
