"""File systems that lack what others have: hard links, locks, rights, folders that can be synced; and what lasts."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from tests.backup.files import client, filled, restored, run, state
from tests.backup.files import made as made_by_command
from tests.backup.ground import Done, at_once, fails, fill, folder_of, look, made, names, settings_of
from tests.conftest import Place
from whatspire_db import backup, files
from whatspire_db.backup import durable
from whatspire_db.backup.durable import new_file, publish, sweep, workspace
from whatspire_db.backup.engines.sqlite import restoring

pytestmark = pytest.mark.sampled

FILES = ("app.data", "app.json")
WORK = ".whatspire-0123456789ab.partial"

# A command on a file system that lacks some calls, as the kernel answers for it.
LACKING = """
import ctypes, errno, fcntl, json, os, stat, sys

calls = json.loads(sys.argv.pop(1))

def lacking(owner, name, applies=lambda *given: True):
    number = getattr(errno, calls[name])
    before = getattr(owner, name)
    def call(*given, **named):
        if applies(*given):
            raise OSError(number, os.strerror(number))
        return before(*given, **named)
    setattr(owner, name, call)

is_folder = lambda descriptor, *more: stat.S_ISDIR(os.fstat(descriptor).st_mode)
for name in calls:
    if name == "renameat2":
        ctypes.CDLL = lambda *given, **named: object()
    else:
        lacking(fcntl if name == "flock" else os, name, *([is_folder] if name == "fsync" else []))
from whatspire_db.cli.backup import main
sys.exit(main(sys.argv[1:]))
"""

FILE_SYSTEMS = {
    "without links": {"link": "EPERM"},
    "of a network": {"link": "EOPNOTSUPP", "chmod": "EPERM", "fchmod": "EPERM", "fsync": "EINVAL"},
    "full of links": {"link": "EMLINK"},
    "without links on an old kernel": {"link": "EPERM", "renameat2": "ENOSYS"},
    "with links within a folder alone": {"link": "EXDEV"},
    "without locks": {"flock": "ENOLCK"},
    "without locks or links": {"flock": "EOPNOTSUPP", "link": "ENOSYS", "renameat2": "ENOSYS"},
    "without rights": {"chmod": "EOPNOTSUPP", "fchmod": "EPERM", "fchown": "EPERM"},
}


def run_lacking(place: Place, calls: dict[str, str], *arguments: str) -> Done:
    return subprocess.run(
        [sys.executable, "-c", LACKING, json.dumps(calls), *arguments],
        env=place.variables(),
        cwd=place.folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.soak
@pytest.mark.parametrize("calls", FILE_SYSTEMS.values(), ids=FILE_SYSTEMS)
def test_backups_work_on_a_file_system_that_lacks_calls(sqlite: Place, calls: dict[str, str]) -> None:
    filled(sqlite.dsn)
    before = state(sqlite.dsn)
    os.umask(os.umask(0o022))
    for verb in (
        ("create", "--compress", "gzip", "--test-restore"),
        ("create",),
        ("list",),
        ("verify", "--test-restore"),
        ("restore", "latest", "--to", "new.db"),
        ("restore", "latest", "--force"),
        ("prune", "--keep-last", "1"),
    ):
        done = run_lacking(sqlite, calls, *verb)
        assert done.returncode == 0, done
        warned = done.stderr.splitlines()
        assert all("has no locks (flock: " in line for line in warned), done
        assert bool(warned) == ("flock" in calls and verb != ("list",)), done
    assert state(sqlite.dsn) == state(sqlite.folder / "new.db") == before
    assert not [name for name in names(folder_of(sqlite)) | names(sqlite.folder) if name.endswith(".partial")]
    (kept, put_aside) = backup.list_backups(folder_of(sqlite))[0]
    backup.verify(kept)
    backup.verify(put_aside)


def test_warns_where_other_users_may_read_backups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a mount that gives everybody the same rights."""
    make = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", lambda self, mode=0o777, **more: make(self, 0o755, **more))
    with workspace(tmp_path):
        assert f"{tmp_path} does not keep the rights" in caplog.text


@contextmanager
def without(*calls: str) -> Iterator[None]:
    def refuse(*given: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    with pytest.MonkeyPatch.context() as patch:
        if "link" in calls:
            patch.setattr(os, "link", refuse)
        if "renameat2" in calls:
            patch.setattr(files, "_rename_noreplace", refuse)
        yield


WAYS = [(), ("link",), ("link", "renameat2")]


@pytest.mark.parametrize("way", WAYS)
def test_a_name_is_never_taken_from_another_file(tmp_path: Path, way: tuple[str, ...]) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("ours")
    for theirs in (lambda: target.write_text("theirs"), target.mkdir, lambda: target.symlink_to("nowhere")):
        theirs()
        before = look(tmp_path)
        with without(*way):
            for name in (files.give_name, files.rename_new):
                with pytest.raises(FileExistsError):
                    name(source, target)
        assert look(tmp_path) == before
        target.rmdir() if target.is_dir() else target.unlink()
    with without(*way):
        files.give_name(source, target)
    assert target.read_text() == "ours"


@pytest.mark.parametrize("way", WAYS)
def test_of_many_that_take_a_name_one_gets_it(tmp_path: Path, way: tuple[str, ...]) -> None:
    def take(number: int) -> bool:
        source = tmp_path / f"{number}"
        source.write_text(f"of {number}")
        try:
            files.give_name(source, tmp_path / "name")
        except FileExistsError:
            return False
        return (tmp_path / "name").read_text() == f"of {number}"

    with without(*way):
        assert at_once(*(lambda number=number: take(number) for number in range(12))).count(True) == 1


@pytest.mark.parametrize("way", WAYS[1:])
def test_a_publication_that_fails_takes_back_what_it_renamed(tmp_path: Path, way: tuple[str, ...]) -> None:
    (tmp_path / FILES[1]).write_text("another")
    with without(*way), workspace(tmp_path) as work:
        drafts = [new_file(work / name) for name in FILES]
        with pytest.raises(FileExistsError):
            publish(drafts, tmp_path)
    assert look(tmp_path) == {FILES[1]: b"another"}


@pytest.mark.parametrize("reserved", [True, False])
@pytest.mark.parametrize("given", [0, 1, 2])
def test_what_a_killed_process_renamed_is_finished(tmp_path: Path, given: int, reserved: bool) -> None:
    """It had given some names; for the next it may have reserved the name by an empty file."""
    work = tmp_path / WORK
    work.mkdir()
    for name in FILES:
        (work / name).write_text(f"content of {name}")
    (work / "ready").write_text("\n".join(FILES))
    for name in FILES[:given]:
        (work / name).rename(tmp_path / name)
    for name in FILES[given:][:reserved]:
        (tmp_path / name).touch()
    with without("link", "renameat2"):
        sweep(tmp_path)
    assert look(tmp_path) == {name: f"content of {name}".encode() for name in FILES}


def test_two_backups_of_a_second_get_two_names_without_locks(sqlite: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    fill(sqlite)
    now = datetime(2026, 1, 1, tzinfo=timezone.utc)
    found = at_once(*[lambda: backup.create(settings_of(sqlite), now=now)] * 4)
    assert len({one.file for one in found}) == 4
    for one in found:
        backup.verify(one)


# Files that are moved aside


def stamps_around_now() -> list[str]:
    now = datetime.now(timezone.utc)
    return [(now + timedelta(seconds=n)).strftime("%Y%m%dT%H%M%SZ") for n in range(-1, 60)]


def test_a_file_moved_aside_never_replaces_another(sqlite: Place) -> None:
    file = made_by_command(sqlite, "--dsn", str(filled(sqlite.folder / "from.db")), "--name", "whatspire")
    database = Path(sqlite.dsn)
    for stamp in stamps_around_now():
        Path(f"{database}.moved-{stamp}").write_text(f"an earlier one of {stamp}")
    before = look(sqlite.folder)
    database.write_text("no database" * 1000)
    (kept,) = restored(sqlite, str(file), "--force")["kept"]
    assert kept.endswith("Z-2")
    assert Path(kept).read_text().startswith("no database")
    assert before.items() <= look(sqlite.folder).items()


def test_files_of_one_database_are_moved_aside_by_the_same_name(sqlite: Place) -> None:
    file = made_by_command(sqlite, "--dsn", str(filled(sqlite.folder / "from.db")), "--name", "whatspire")
    sides = [Path(f"{sqlite.dsn}{end}") for end in ("-wal", "-journal")]
    for stamp in stamps_around_now():
        Path(f"{sides[0]}.moved-{stamp}").write_text(f"an earlier one of {stamp}")
        Path(f"{sides[1]}.moved-{stamp}-2").write_text(f"an earlier one of {stamp}")
    for side in sides:
        side.write_text("left behind")
    before = {name: data for name, data in look(sqlite.folder).items() if "moved" in name}
    kept = restored(sqlite, str(file))["kept"]
    assert [name.rpartition("Z")[2] for name in kept] == ["-3", "-3"]
    assert {Path(path).read_text() for path in kept} == {"left behind"}
    assert before.items() <= look(sqlite.folder).items()


def test_what_cannot_be_moved_aside_is_moved_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / name for name in ("db", "db-wal")]
    for path in paths:
        path.write_text(path.name)
    before, rename = look(tmp_path), files.rename_new

    def full(source: Path, target: Path) -> None:
        if source == paths[1]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(source, target)

    monkeypatch.setattr(restoring, "rename_new", full)
    with pytest.raises(OSError, match="No space"):
        restoring._moved_aside(paths, "moved")
    assert look(tmp_path) == before


# What is on the disk


@contextmanager
def synced() -> Iterator[list[tuple[str, set[str]]]]:
    """Note the folders that are synced, each with the names that it held then."""
    found: list[tuple[str, set[str]]] = []
    sync = os.fsync

    def noted(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if os.path.isdir(path):
            found.append((path, set(os.listdir(path))))
        sync(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", noted)
        yield found


def test_folders_that_are_made_are_on_the_disk(sqlite: Place) -> None:
    fill(sqlite)
    with synced() as found:
        run(sqlite, "create", "--to", "new/deep/folder").check_returncode()
        run(sqlite, "restore", "latest", "--dir", "new/deep/folder", "--to", "rest/a/b.db").check_returncode()
    for path in ("new", "new/deep", "new/deep/folder", "rest", "rest/a"):
        made_one = sqlite.folder / path
        assert any(folder == str(made_one.parent) and made_one.name in held for folder, held in found), path


@pytest.mark.parametrize("mode", ["delete", "truncate", "persist", "wal"])
def test_a_journal_that_was_deleted_does_not_come_back(
    sqlite: Place, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EXTRA syncs the folder after the journal is deleted; after FULL a loss of power could undo the restore."""
    filled(sqlite.dsn, mode)
    file = made_by_command(sqlite)
    levels = []
    overwrite = restoring._overwrite

    def noted(live: Any, *more: Any) -> None:
        levels.append(live.execute("PRAGMA synchronous").fetchone()[0])
        overwrite(live, *more)

    monkeypatch.setattr(restoring, "_overwrite", noted)
    restored(sqlite, str(file), "--force")
    assert levels == [3]


def test_folders_that_a_failed_run_made_are_gone(sqlite: Place) -> None:
    fails(run(sqlite, "create", "--to", "new/deep", "--dsn", "missing.db"), 1, "missing.db does not exist")
    filled(sqlite.dsn)
    file = made_by_command(sqlite)
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    fails(run(sqlite, "restore", str(file), "--to", "rest/a/b.db"), 3)
    assert names(sqlite.folder) - {"whatspire.db-shm", "whatspire.db-wal"} == {"backups", "whatspire.db"}


def test_a_folder_that_holds_more_is_left(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="stop"), durable.made_folder(tmp_path / "there" / "new"):
        raise ValueError("stop")
    assert names(tmp_path / "there") == set()
    with pytest.raises(NotADirectoryError), durable.made_folder(tmp_path / "there" / "new"):
        os.listdir(new_file(tmp_path / "there" / "new" / "kept"))
    assert names(tmp_path / "there" / "new") == {"kept"}


def test_renames_ask_the_kernel_not_to_replace(tmp_path: Path) -> None:
    """Where the kernel has no such call the placeholder is used, so this tells whether it has."""
    if getattr(ctypes.CDLL(None), "renameat2", None) is None:
        pytest.skip("the C library has no renameat2")
    (tmp_path / "source").write_text("ours")
    files._rename_noreplace(tmp_path / "source", tmp_path / "target")
    assert look(tmp_path) == {"target": b"ours"}


def test_a_writer_goes_on_while_a_backup_is_published_without_links(sqlite: Place) -> None:
    filled(sqlite.dsn)
    with client(sqlite.dsn) as other, without("link", "renameat2"):
        (one,) = made(sqlite)
        other.run("DELETE FROM entry")
    backup.verify(one)
