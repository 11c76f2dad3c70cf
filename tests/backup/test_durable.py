"""Files that are there as a whole or not at all: what killed processes leave, in every state that a kill can leave it."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.backup.ground import at_once, files_of, fill, folder_of, look, made, names
from tests.conftest import Place
from whatspire_db import Settings, backup
from whatspire_db.backup import durable
from whatspire_db.backup.durable import locked, made_folder, new_file, publish, sweep, workspace
from whatspire_db.errors import BackupFailed

WORK = ".whatspire-0123456789ab.partial"
FILES = ("app.data", "app.json")


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """A workspace as a process leaves it that was killed when all was ready, before the first name was given."""
    folder = tmp_path / "backups"
    work = folder / WORK
    work.mkdir(parents=True)
    for name in FILES:
        new_file(work / name).write_text(f"content of {name}")
    (work / "ready").write_text("\n".join(FILES))
    return work


def links(work: Path, *given: str) -> None:
    for name in given:
        os.link(work / name, work.parent / name)


def published(folder: Path) -> dict[str, bytes]:
    return {name: f"content of {name}".encode() for name in FILES}


@pytest.mark.parametrize("given", [(), FILES[:1], FILES])
def test_what_was_ready_is_finished(left: Path, given: tuple[str, ...]) -> None:
    links(left, *given)
    sweep(left.parent)
    assert look(left.parent) == published(left.parent)
    sweep(left.parent)
    assert look(left.parent) == published(left.parent)


def test_what_was_not_ready_is_removed(left: Path) -> None:
    (left / "ready").rename(left / "ready.new")
    sweep(left.parent)
    assert look(left.parent) == {}


@pytest.mark.parametrize("gone", ["ready", *FILES])
def test_a_workspace_that_was_half_removed_goes(left: Path, gone: str) -> None:
    """Who was killed while it removed its workspace had given all names before."""
    links(left, *FILES)
    (left / gone).unlink()
    sweep(left.parent)
    assert look(left.parent) == published(left.parent)


def test_a_name_that_another_got_stays_its(left: Path) -> None:
    for name in FILES:
        (left.parent / name).write_text("another")
    sweep(left.parent)
    assert look(left.parent) == dict.fromkeys(FILES, b"another")


def test_a_name_that_another_got_leaves_no_half(left: Path) -> None:
    (left.parent / FILES[1]).write_text("another")
    sweep(left.parent)
    assert look(left.parent) == {FILES[1]: b"another"}


def test_a_workspace_in_use_is_left_alone(left: Path) -> None:
    before = look(left.parent)
    descriptor = os.open(left, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    sweep(left.parent)
    assert look(left.parent) == before
    os.close(descriptor)
    sweep(left.parent)
    assert look(left.parent) == published(left.parent)


def test_a_workspace_of_another_user_is_left_alone(left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that all can write, anybody could have root give names."""
    before = look(left.parent)
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    sweep(left.parent)
    assert look(left.parent) == before


def test_what_only_looks_like_a_workspace_is_left_alone(left: Path) -> None:
    folder, outside = left.parent, left.parent.parent / "outside"
    shutil.move(left, outside)
    (folder / WORK).symlink_to(outside)
    (folder / ".whatspire-0123456789ac.partial").write_text("a file")
    (folder / ".whatspire-0123456789ad.partial.bak").mkdir()
    (folder / ".whatspire-notes").mkdir()
    before = look(folder.parent)
    with workspace(folder) as work:
        assert work.stat().st_mode & 0o777 == 0o700
    assert look(folder.parent) == before


def test_a_publication_that_fails_half_way_takes_back_the_first_name(tmp_path: Path) -> None:
    (tmp_path / FILES[1]).write_text("another")
    with workspace(tmp_path) as work:
        files = [new_file(work / name) for name in FILES]
        with pytest.raises(FileExistsError):
            publish(files, tmp_path)
    assert look(tmp_path) == {FILES[1]: b"another"}


@pytest.mark.parametrize("count", range(3))
def test_an_interruption_leaves_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Ctrl-C comes before, between or behind the names."""
    given = []
    give = os.link

    def interrupted(source: Path, target: Path) -> None:
        if len(given) == count:
            raise KeyboardInterrupt
        given.append(target)
        give(source, target)

    monkeypatch.setattr(os, "link", interrupted)
    with workspace(tmp_path) as work:
        files = [new_file(work / name) for name in FILES]
        if count < len(FILES):
            with pytest.raises(KeyboardInterrupt):
                publish(files, tmp_path)
        else:
            publish(files, tmp_path)
    assert names(tmp_path) == (set(FILES) if count == len(FILES) else set())


def test_many_at_once_take_nothing_from_each_other(tmp_path: Path) -> None:
    """Each sweeps what the others work in."""

    def work_in(number: int) -> Callable[[], None]:
        def work() -> None:
            for round_ in range(20):
                with workspace(tmp_path) as place:
                    file = new_file(place / f"{number}.{round_}")
                    file.write_text("whole")
                    with locked(tmp_path):
                        publish([file], tmp_path)

        return work

    at_once(*map(work_in, range(6)))
    assert look(tmp_path) == {f"{number}.{round_}": b"whole" for number in range(6) for round_ in range(20)}


def test_a_backup_that_was_ready_is_in_the_list_of_the_next_run(sqlite: Place) -> None:
    """Its process was killed, but nothing of it was missing."""
    fill(sqlite)
    (one,) = made(sqlite)
    work = one.folder / WORK
    work.mkdir()
    for path in (one.file, one.manifest_path):
        path.rename(work / path.name)
    (work / "ready").write_text(f"{one.file.name}\n{one.manifest_path.name}")
    (two,) = made(sqlite)
    assert names(folder_of(sqlite)) == files_of([one, two])
    backup.verify(one)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_files_are_their_users_alone_whatever_the_umask(sqlite: Place, umask: int) -> None:
    fill(sqlite)
    usual = os.umask(umask)
    try:
        (one,) = made(sqlite)
        (packed,) = made(sqlite, compress="gzip")
    finally:
        os.umask(usual)
    assert folder_of(sqlite).stat().st_mode & 0o077 == 0
    for path in (one.file, one.manifest_path, packed.file, packed.manifest_path):
        assert path.stat().st_mode & 0o777 == 0o600, path


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        with pytest.raises(BackupFailed, match="cannot be made") as caught:
            made_folder(path).__enter__()
        assert "--dir" in caught.value.hint


def test_interrupts_while_a_restore_clears_up_are_too_late(
    sqlite: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill(sqlite)
    settings = Settings(driver="sqlite", dsn=sqlite.dsn)
    one = backup.create(settings, tmp_path / "backups", compress="gzip")
    remove = durable._remove

    def interrupted(path: Path) -> None:
        signal.raise_signal(signal.SIGINT)
        remove(path)

    monkeypatch.setattr(durable, "_remove", interrupted)
    target = tmp_path / "other.db"
    assert backup.restore(one, settings, to=str(target)).target == str(target)
    assert "the restore was done when the interrupt came" in caplog.text
    monkeypatch.undo()
    again = backup.create(replace(settings, dsn=str(target)), tmp_path / "others")
    assert again.manifest.content.tables == one.manifest.content.tables
