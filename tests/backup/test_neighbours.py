"""Folders that other users can write to: what they leave there is neither taken for a backup, nor opened, nor printed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from tests.backup.files import ask, bound_by_rights, filled, run
from tests.backup.ground import (
    add,
    copies,
    entries,
    fails,
    fill,
    folder_of,
    look,
    made,
    names,
    rewritten,
    run_many,
    settings_of,
    told,
)
from tests.conftest import Place
from whatspire_db import backup
from whatspire_db.backup import durable, manifest, neighbours
from whatspire_db.backup.archive import stem
from whatspire_db.backup.durable import sweep, workspace
from whatspire_db.backup.retention import Policy
from whatspire_db.errors import BackupInvalid, WhatspireDBError
from whatspire_db.files import others_can_replace

pytestmark = pytest.mark.sampled

OTHER = 65534
LATER = datetime(2099, 1, 1, tzinfo=timezone.utc)


def need_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("root alone can act as two users")


def planted(one: backup.Backup) -> backup.Backup:
    """Leave a later backup of another user, with all that a manifest can say, in the place of a copy."""
    (copy,) = copies(one, LATER)
    for path in (copy.file, copy.manifest_path):
        os.chown(path, OTHER, OTHER)
    return copy


SHARED = {"sticky": (0, 0o1777), "group": (0, 0o770), "all": (0, 0o777), "theirs": (OTHER, 0o755)}


@pytest.mark.parametrize(("owner", "mode"), SHARED.values(), ids=SHARED)
def test_what_another_user_leaves_is_no_backup(sqlite: Place, owner: int, mode: int) -> None:
    need_root()
    fill(sqlite)
    (own,) = made(sqlite)
    theirs = planted(own)
    os.chown(own.folder, owner, owner)
    own.folder.chmod(mode)
    latest, listed, verified, restored, pruned = run_many(
        sqlite,
        ("verify", "--json"),
        ("list", "--json"),
        ("verify", str(theirs.file)),
        ("restore", str(theirs.manifest_path), "--to", "new.db"),
        ("prune", "--keep-last", "1", "--json"),
    )
    assert json.loads(latest.stdout)["path"] == f"backups/{own.file.name}"
    assert theirs.manifest_path.name in latest.stderr
    found = told(listed)
    assert [one["path"] for one in found["backups"]] == [f"backups/{own.file.name}"]
    assert "belongs to user" in found["others"][0]["reason"]
    for refused in (verified, restored):
        fails(refused, 3, "belongs to user", "other users can write to", "copy it")
    assert [one["path"] for one in told(pruned)["backups"]] == [f"backups/{own.file.name}"]
    assert theirs.file.exists()
    assert not (sqlite.folder / "new.db").exists()


def test_what_another_user_left_does_not_count_the_serials(sqlite: Place) -> None:
    need_root()
    fill(sqlite)
    (one,) = made(sqlite)
    theirs = planted(one)
    rewritten(theirs, serial=manifest.LAST_SERIAL)
    os.chown(theirs.manifest_path, OTHER, OTHER)
    one.folder.chmod(0o1777)
    (two,) = made(sqlite)
    assert two.manifest.serial == one.manifest.serial + 1


def test_file_of_another_user_beside_a_manifest_of_our_own_is_not_taken(sqlite: Place) -> None:
    need_root()
    fill(sqlite)
    (one,) = made(sqlite)
    os.chown(one.file, OTHER, OTHER)
    one.folder.chmod(0o777)
    with pytest.raises(BackupInvalid, match="belongs to user"):
        backup.find(one.file, settings=settings_of(sqlite))


def test_files_of_root_and_files_in_a_folder_of_our_own_are_taken(
    sqlite: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_root()
    fill(sqlite)
    (one,) = made(sqlite)
    theirs = planted(one)
    assert backup.find("latest", settings=settings_of(sqlite)).file == theirs.file  # root alone can put it there
    one.folder.chmod(0o1777)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert backup.find("latest", settings=settings_of(sqlite)).file == one.file


def test_copy_into_a_folder_of_our_own_is_taken(sqlite: Place) -> None:
    """As the hint says."""
    need_root()
    fill(sqlite)
    theirs = planted(made(sqlite)[0])
    own = sqlite.folder / "own"
    own.mkdir()
    for path in (theirs.file, theirs.manifest_path):
        shutil.copy(path, own)
    backup.verify(backup.find("latest", own, settings_of(sqlite)))


@pytest.mark.parametrize("mode", [0o602, 0o666])
@pytest.mark.parametrize("of_manifest", [False, True])
def test_file_of_ours_that_others_can_write_is_not_taken(sqlite: Place, of_manifest: bool, mode: int) -> None:
    fill(sqlite)
    (one,) = made(sqlite)
    path = one.manifest_path if of_manifest else one.file
    path.chmod(mode)
    backup.verify(backup.find("latest", settings=settings_of(sqlite)))  # nobody else can write to the folder
    folder_of(sqlite).chmod(0o1777)
    latest, named = run_many(sqlite, ("verify",), ("restore", str(one.file), "--force"))
    fails(latest, 3, "holds no backup")
    fails(named, 3, f"other users can write {path}, and to its folder")
    path.chmod(0o644)
    backup.verify(backup.find("latest", settings=settings_of(sqlite)))


def test_where_all_files_have_one_owner_they_are_taken(sqlite: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFS and exFAT show the owner that the mount names, for our own files too."""
    need_root()
    fill(sqlite)
    theirs = planted(made(sqlite)[0])
    theirs.folder.chmod(0o777)
    monkeypatch.setattr(neighbours, "_owner_of_new_files", lambda folder: OTHER)
    assert backup.find("latest", settings=settings_of(sqlite)).file == theirs.file


def test_looking_for_the_owner_of_new_files_leaves_nothing(sqlite: Place) -> None:
    folder = folder_of(sqlite)
    folder.mkdir()
    assert neighbours._owner_of_new_files(folder) == os.geteuid()
    assert names(folder) == set()
    assert neighbours._owner_of_new_files(folder / "missing") is None


@pytest.mark.parametrize("lacks_files_without_names", [False, True])
def test_owner_of_new_files_is_not_that_of_a_file_that_another_user_put_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacks_files_without_names: bool
) -> None:
    need_root()

    def opened(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE and lacks_files_without_names:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        descriptor = open_(path, flags, *more, **named)
        exchange_all()
        return descriptor

    def made_folder(path: Any, *more: Any, **named: Any) -> None:
        mkdir(path, *more, **named)
        exchange_all()

    def exchange_all() -> None:
        for path in tmp_path.iterdir():
            path.rename(path.with_name("away"))
            os.mknod(path)
            os.chown(path, OTHER, OTHER)

    open_, mkdir = os.open, os.mkdir
    tmp_path.chmod(0o777)
    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "mkdir", made_folder)
    assert neighbours._owner_of_new_files(tmp_path) == os.geteuid()


def test_a_folder_of_ours_that_another_user_renamed_is_not_swept_away(sqlite: Place) -> None:
    fill(sqlite)
    folder = folder_of(sqlite)
    folder.mkdir()
    folder.chmod(0o777)
    for number, content in enumerate(("data", "ready")):
        renamed = folder / f".whatspire-{number:012x}.partial"
        renamed.mkdir(mode=0o700)
        (renamed / content).write_text("precious")
    before = look(folder)
    (one,) = made(sqlite)
    after = look(folder)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {one.file.name, one.manifest_path.name}


def test_what_a_killed_run_left_is_swept_away_where_others_can_rename(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with suppress(OSError), workspace(tmp_path) as work:
        (work / "data").write_text("half")
        copied = shutil.copytree(work, tmp_path / ".whatspire-0123456789ab.partial")
    sweep(tmp_path)
    assert not copied.exists()


def test_what_was_verified_is_what_is_restored(sqlite: Place) -> None:
    """Another user replaces the file of a backup between its verification and its use."""
    fill(sqlite)
    (one,) = made(sqlite)
    rows = entries(sqlite)
    add(sqlite, 1)
    (other,) = made(sqlite)
    other.folder.chmod(0o777)
    swapped = []

    def swap(what: str, done: int, total: int) -> None:
        if what in ("copying", "checksum") and done == total and not swapped:
            swapped.append(what)
            shutil.copyfile(other.file, other.file.with_name("theirs"))
            other.file.with_name("theirs").replace(one.file)

    target = sqlite.folder / "new.db"
    backup.restore(one, settings_of(sqlite), to=str(target), progress=swap)
    assert swapped
    assert ask(target, "SELECT id, text FROM entry ORDER BY id") == rows


@pytest.mark.parametrize("group", [True, False])
def test_sticky_or_private_folders_need_no_copy(tmp_path: Path, group: bool) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    folder.chmod(0o1777 if group else 0o700)
    assert neighbours.others_can_add(folder) == group
    assert not durable_parents_are_open(tmp_path)
    assert not others_can_replace(folder)
    (tmp_path / "link").symlink_to(folder)
    assert not others_can_replace(tmp_path / "link")
    tmp_path.chmod(0o777)
    assert others_can_replace(folder)
    assert others_can_replace(tmp_path / "link")


def test_folder_behind_a_link_of_another_user_is_open_to_others(tmp_path: Path) -> None:
    """A link of ours leads to one of theirs, which leads to a folder of ours, for now."""
    need_root()
    (tmp_path / "own").mkdir()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "second").symlink_to("../own")
    (tmp_path / "first").symlink_to("theirs/second")
    assert not others_can_replace(tmp_path / "first")
    os.chown(tmp_path / "theirs", OTHER, OTHER)
    assert others_can_replace(tmp_path / "first")
    assert not others_can_replace(tmp_path / "own")


def durable_parents_are_open(folder: Path) -> bool:
    return any(path.stat().st_mode & 0o1002 == 0o002 for path in folder.parents)


def exchange(file: Path, precious: Path) -> None:
    """Put a directory of the neighbour's in the place of a workspace, in which a file's name leads to root's own."""
    file.parent.rename(file.parent.with_name(f"taken-{uuid.uuid4().hex}"))
    file.parent.mkdir()
    os.chown(file.parent, OTHER, OTHER)
    file.symlink_to(precious)


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of a neighbour's, who exchanges the workspace right after root has made a file in it: each race is won."""
    need_root()
    theirs, precious = tmp_path / "theirs", tmp_path / "precious"
    theirs.mkdir()
    os.chown(theirs, OTHER, OTHER)
    precious.touch()
    created = durable._created
    sprung = []

    def won(path: Path) -> int:
        descriptor = created(path)
        if theirs in path.parents:
            exchange(path, precious)
            sprung.append(path)
        return descriptor

    monkeypatch.setattr(durable, "_created", won)
    yield theirs
    assert sprung
    assert precious.read_bytes() == b""
    assert (precious.stat().st_uid, precious.stat().st_mode & 0o777) == (0, 0o644)


@pytest.mark.parametrize("method", ["none", "gzip"])
def test_a_backup_is_not_written_by_way_of_a_folder_that_was_exchanged(sqlite: Place, trap: Path, method: str) -> None:
    fill(sqlite)
    with suppress(WhatspireDBError):  # which the neighbour can bring about
        backup.create(settings_of(sqlite), trap, compress=method, test_restore=True)


def test_a_restore_is_not_written_by_way_of_a_folder_that_was_exchanged(sqlite: Place, trap: Path) -> None:
    fill(sqlite)
    (one,) = made(sqlite, compress="gzip")
    with suppress(WhatspireDBError):
        backup.restore(one, settings_of(sqlite), to=str(trap / "new.db"))
    live = filled(trap / "live.db", word="old")
    with suppress(WhatspireDBError):
        backup.restore(one, settings_of(sqlite), trap / "backups", to=str(live), force=True)


# Files that are not regular


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_link(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket is short
    try:
        with closing(socket.socket(socket.AF_UNIX)) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def a_directory(path: Path) -> None:
    path.mkdir()


def a_device(path: Path) -> None:
    need_root()
    os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero


KINDS = [a_pipe, a_link, a_socket, a_directory, a_device]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("of_manifest", [True, False])
def test_what_is_no_regular_file_is_not_opened(sqlite: Place, kind: Callable[[Path], None], of_manifest: bool) -> None:
    fill(sqlite)
    (own,) = made(sqlite)
    (false,) = copies(own, LATER)
    spoiled = false.manifest_path if of_manifest else false.file
    spoiled.unlink()
    kind(spoiled)
    rows = entries(sqlite)
    verified, restored, listed, pruned, created = run_many(
        sqlite,
        ("verify", str(false.file)),
        ("restore", str(false.file), "--force"),
        ("list", "--json"),
        ("prune", "--keep-last", "1", "--json"),
        ("create", "--json"),
    )
    for refused in (verified, restored):
        fails(refused, 3, str(spoiled.name), kind.__name__.replace("_", " "))
    assert [one["path"] for one in told(listed)["backups"]] == [f"backups/{own.file.name}"]
    assert [one["fate"] for one in told(pruned)["backups"]] == ["kept"]
    assert told(created)["manifest"]
    assert os.path.lexists(spoiled)
    assert entries(sqlite) == rows


@pytest.mark.parametrize("kind", [a_pipe, a_socket, a_device])
def test_what_is_no_regular_file_is_no_place_for_a_database(sqlite: Place, kind: Callable[[Path], None]) -> None:
    fill(sqlite)
    (one,) = made(sqlite)
    kind(sqlite.folder / "odd")
    before = look(folder_of(sqlite))
    for options in (("--to", "odd"), ("--dsn", "odd")):
        fails(run(sqlite, "restore", f"backups/{one.file.name}", "--force", *options), 2, "odd is", "--to")
    fails(run(sqlite, "create", "--dsn", "odd"), 1, "odd")
    assert look(folder_of(sqlite)) == before


def test_a_link_beside_a_missing_database_is_moved_away(sqlite: Place) -> None:
    """SQLite would write what is behind it."""
    fill(sqlite)
    made(sqlite)
    for path in sqlite.folder.glob("whatspire.db*"):
        path.unlink()
    precious = sqlite.folder / "precious"
    Path(f"{sqlite.dsn}-wal").symlink_to(precious)
    done = told(run(sqlite, "restore", "latest", "--json"))
    (moved,) = done["kept"]
    assert Path(moved).is_symlink()
    assert not precious.exists()


def test_ready_names_that_lead_elsewhere_are_not_given(tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    work = folder / ".whatspire-0123456789ab.partial"
    work.mkdir(parents=True)
    (work / "x").write_text("planted")
    for names_ in ("x\n../outside", "/outside", "..", ""):
        work.mkdir(exist_ok=True)
        (work / "ready").write_text(names_)
        durable.sweep(folder)
        assert names(tmp_path) == {"backups"}
        assert names(folder) == set()


# What comes to the terminal

EVIL = "\x1b[2J\x1b]0;mine\x07\x9b31m"


def is_harmless(text: str) -> bool:
    return all(letter == "\n" or letter.isprintable() for letter in text)


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("field", ["purpose", "package_version", "source", "name"])
def test_control_characters_of_a_manifest_do_not_reach_the_terminal(sqlite: Place, field: str, as_json: bool) -> None:
    fill(sqlite)
    (one,) = made(sqlite)
    rewritten(one, **{field: f"app{EVIL}"})
    shutil.copyfile(one.file, one.folder / f"app{EVIL}-20990101T000000Z.sqlite3")
    renamed = replace(one.manifest, file=f"{stem(f'app{EVIL}', LATER)}.sqlite3")
    one.folder.joinpath(f"{stem(f'app{EVIL}', LATER)}.json").write_text(renamed.to_text())
    more = ("--json",) if as_json else ()
    for done in run_many(
        sqlite,
        ("list", *more),
        ("verify", *more),
        ("verify", f"{stem(f'app{EVIL}', LATER)}.json", *more),
        ("prune", "--keep-last", "1", "--dry-run", *more),
        ("restore", "latest", "--to", "new.db", *more),
    ):
        assert is_harmless(done.stdout + done.stderr), done


def test_user_without_rights_to_the_folder_reads_none_of_it(sqlite: Place) -> None:
    """A folder that this user can read and not write shows what root and this user put there."""
    need_root()
    fill(sqlite)
    (one,) = made(sqlite)
    theirs = planted(one)
    one.folder.chmod(0o555)
    os.chown(one.folder, OTHER, OTHER)
    listed = told(run(sqlite, "list", "--json", preexec_fn=bound_by_rights))
    assert [Path(found["path"]).name for found in listed["backups"]] == [one.file.name]
    assert Path(listed["others"][0]["path"]).name == theirs.manifest_path.name
    assert backup.prune(settings_of(sqlite), policy=Policy(last=1))
