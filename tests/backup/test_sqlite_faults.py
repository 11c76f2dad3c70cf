"""Backups and restores of SQLite that are killed, interrupted, or find the disk full: all or nothing, and no rubbish."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.backup.disks import small_disk
from tests.backup.files import MODES, Client, backups, client, filled, left, made, refused, restored, run, start, state
from tests.conftest import KILLS, Place
from tests.servers import eventually
from whatspire_db import Settings, backup
from whatspire_db.backup import durable
from whatspire_db.backup.archive import Backup

pytestmark = pytest.mark.sampled

FEW, MANY = 6, KILLS
SMALL, LARGE = 6_000, 60_000  # rows of 500 bytes
METHODS = ("none", "gzip", "zstd")


@dataclass(frozen=True)
class Ended:
    """How a run ended that was given a signal."""

    code: int
    out: str
    err: str
    phase: str  # what lay in its workspace then, and beside the database


def signalled(place: Place, number: int, seconds: float, folder: Path, *arguments: str, at_work: bool) -> Ended:
    """Run the command line and send it a signal so many seconds after its start, or after its workspace is there."""
    process = start(place, *arguments, "--json")
    if at_work:
        eventually(lambda: has_ended(process) or list(folder.glob(".*.partial")), "it is at work")
    time.sleep(seconds)  # the moment is the subject
    os.kill(process.pid, signal.SIGSTOP)
    phase = seen(place, folder)
    os.kill(process.pid, number)  # one that has ended already is still there for that
    os.kill(process.pid, signal.SIGCONT)
    out, err = process.communicate(timeout=120)
    return Ended(process.returncode, out, err, phase if process.returncode else "ended before")


def has_ended(process: subprocess.Popen[str]) -> bool:
    """Tell whether a process has ended, and leave it to be signalled and waited for all the same."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def seen(place: Place, folder: Path) -> str:
    """Tell how far a run is by the files that are there."""
    spaces = [space for where in {folder, place.folder} for space in where.glob(".*.partial")]
    if not spaces:
        return "no workspace"
    work = {path.name.partition("-")[0] for space in spaces for path in space.iterdir()}
    journal = Path(place.dsn + "-journal")
    wal = Path(place.dsn + "-wal")
    beside = "journal" if journal.exists() and journal.stat().st_size else ""
    beside = "wal" if wal.exists() and wal.stat().st_size > 1_000_000 else beside
    return " + ".join([*sorted(work), *([beside] if beside else [])]) or "empty workspace"


def length_of(place: Place, folder: Path, *arguments: str) -> dict[bool, float]:
    """Return how long an undisturbed run takes, from its start and from its workspace on."""
    seconds = {}
    for at_work in (False, True):
        process = start(place, *arguments, "--json")
        began = time.monotonic()
        if at_work:
            eventually(lambda: list(folder.glob(".*.partial")), "it is at work")
            began = time.monotonic()
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, (out, err)
        seconds[at_work] = time.monotonic() - began
    return seconds


def found(place: Place) -> list[Backup]:
    """Return the backups of the folder, after none of its files turned out to be anything else."""
    listed, others = backup.list_backups(place.folder / "backups")
    assert others == []
    return listed


def proved(place: Place, one: Backup) -> None:
    backup.verify(one, Settings(driver="sqlite", dsn=place.dsn), test_restore=True)


def told(what: str, ends: list[Ended], capsys: pytest.CaptureFixture[str]) -> None:
    phases = Counter(end.phase for end in ends)
    with capsys.disabled():
        sys.stdout.write(f"\n{what}: {len(ends)} times; {dict(phases.most_common())}\n")


# Killed


def kill_creates(place: Place, method: str, kills: int, rows: int) -> list[Ended]:
    filled(place.dsn, rows=rows, length=250)
    first = made(place)
    content = first.read_bytes()
    folder = place.folder / "backups"
    command = ("create", "--compress", method, "--test-restore")
    seconds = length_of(place, folder, *command)
    ends = []
    for number in range(kills):
        known = backups(place)
        at_work = number % 4 > 0
        moment = (number + random.random()) / kills * seconds[at_work] * 1.1
        ends.append(signalled(place, signal.SIGKILL, moment, folder, *command, at_work=at_work))
        # A file without a manifest is no backup, and one with a manifest is a good one.
        listed, others = backup.list_backups(folder)
        new = [one for one in listed if one.manifest_path not in known]
        assert len(new) <= 1
        assert [other for other in others if other.path.suffix == ".json"] == []
        for one in new:
            proved(place, one)
        assert set(known) <= {one.manifest_path for one in listed}
        assert first.read_bytes() == content
        made(place)
        assert left(folder) == []
        for one in found(place):
            if one.file != first:
                one.file.unlink()
                one.manifest_path.unlink()
    return ends


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_backup_is_whole_or_none(sqlite: Place, method: str) -> None:
    assert len(kill_creates(sqlite, method, FEW // 3, SMALL)) == FEW // 3


@pytest.mark.soak
@pytest.mark.parametrize("method", METHODS)
def test_each_of_many_killed_backups_is_whole_or_none(
    sqlite: Place, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = kill_creates(sqlite, method, MANY if method == "none" else MANY // 2, LARGE)
    told(f"kill -9 of create --compress {method}", ends, capsys)
    assert {end.phase for end in ends} - {"no workspace", "ended before"}


@dataclass(frozen=True)
class Ground:
    """Where every restore starts from: a database with other rows than its backup, as a file to copy."""

    place: Place
    origin: Path
    file: Path
    old: object  # what the restore replaces
    new: object

    @contextmanager
    def live(self) -> Iterator[Client]:
        """Give the database as it was at first, open in another process."""
        path = Path(self.place.dsn)
        for end in ("-wal", "-shm", "-journal"):
            path.with_name(path.name + end).unlink(missing_ok=True)
        shutil.copyfile(self.origin, path)
        for one in found(self.place):
            if one.file != self.file:
                one.file.unlink()
                one.manifest_path.unlink()
        with client(path, "PRAGMA mmap_size = 0") as other:
            yield other

    @property
    def command(self) -> tuple[str, ...]:
        return ("restore", str(self.file), "--force")


def ground(place: Place, mode: str, rows: int, folder: Path | None = None) -> Ground:
    filled(place.dsn, mode, word="new", rows=rows, length=250)
    file, new = made(place), state(place.dsn)
    origin = (folder or place.folder) / "origin"
    filled(origin, mode, word="old", rows=rows * 4 // 5, length=300)
    return Ground(place, origin, file, state(origin), new)


def check_old_or_new(where: Ground, other: Client) -> str:
    """Look at a database after a restore that did not end, and return which one it is."""
    ((count,),) = other.run("SELECT count(*) FROM entry")
    after = state(where.place.dsn)
    assert after in (where.old, where.new)
    which = "old" if after == where.old else "new"
    assert count == len((after[2] if isinstance(after, tuple) else {})["entry"])
    for one in backup.list_backups(where.place.folder / "backups")[0]:
        proved(where.place, one)
    safety = [o for o in backup.list_backups(where.place.folder / "backups")[0] if o.manifest.purpose]
    assert which == "old" or [state(one.file) for one in safety] == [where.old]
    # Whoever had it open can write.
    ((row,),) = other.run("INSERT INTO entry (key) VALUES ('next') RETURNING id")
    other.run(f"DELETE FROM entry WHERE id = {row}")
    return which


def kill_restores(place: Place, mode: str, kills: int, rows: int) -> list[Ended]:
    where = ground(place, mode, rows)
    with where.live():
        seconds = length_of(place, place.folder / "backups", *where.command)
    ends: list[Ended] = []
    number = 0
    # On a busy machine a run takes longer than the first: the kills go on, later and later, until one meets its end.
    while number < kills or (number < 2 * kills and all(end.phase.endswith("old") for end in ends)):
        with where.live() as other:
            at_work = number % 4 > 0
            # Spread over the whole, so that few kills meet its end too.
            moment = (number + random.random()) / kills * seconds[at_work] * 1.1
            number += 1
            end = signalled(place, signal.SIGKILL, moment, place.folder / "backups", *where.command, at_work=at_work)
            which = check_old_or_new(where, other)
            assert end.code != 0 or which == "new"
            ends.append(Ended(end.code, end.out, end.err, f"{end.phase}: {which}"))
    with where.live():
        restored(place, *where.command[1:])
        assert state(place.dsn) == where.new
        assert left(place.folder) == left(place.folder / "backups") == []
    return ends


@pytest.mark.soak
@pytest.mark.parametrize("mode", MODES)
def test_a_killed_restore_leaves_the_old_or_the_new(sqlite: Place, mode: str) -> None:
    assert len(kill_restores(sqlite, mode, FEW // 2, SMALL)) >= FEW // 2


@pytest.mark.soak
@pytest.mark.parametrize("mode", MODES)
def test_each_of_many_killed_restores_leaves_the_old_or_the_new(
    sqlite: Place, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = kill_restores(sqlite, mode, MANY, LARGE)
    told(f"kill -9 of restore, {mode}", ends, capsys)
    assert {end.phase.rpartition(": ")[2] for end in ends} == {"old", "new"}


# Interrupted


def interrupt(place: Place, mode: str, times: int, rows: int) -> list[Ended]:
    """Interrupt backups and restores in turn, each by Ctrl-C and by what a service manager sends."""
    where = ground(place, mode, rows)
    folder = place.folder / "backups"
    commands = [("create", "--compress", "gzip", "--test-restore"), where.command]
    with where.live():
        seconds = [length_of(place, folder, *command)[True] for command in commands]
    ends = []
    for number in range(times):
        with where.live() as other:
            kind = number % 2
            end = signalled(
                place,
                [signal.SIGINT, signal.SIGTERM][number // 2 % 2],
                random.uniform(0, seconds[kind] * 1.05) if number > 1 else 0,
                folder,
                *commands[kind],
                at_work=True,
            )
            which = check_old_or_new(where, other)
            assert left(place.folder) == left(folder) == [], end
            assert found(place)
            if end.out and "error" not in json.loads(end.out):  # it had said already what it did, and was about to end
                assert which == "new" or not kind
            else:
                number = {130: signal.SIGINT, 143: signal.SIGTERM}[end.code]
                said = refused(subprocess.CompletedProcess([], end.code, end.out, end.err), 128 + number)
                assert said == ("interrupted" if number == signal.SIGINT else "terminated")
            ends.append(Ended(end.code, end.out, end.err, f"{commands[kind][0]}: {end.phase}: {which}"))
    return ends


@pytest.mark.soak
@pytest.mark.parametrize("mode", MODES)
def test_who_interrupts_finds_nothing_half_done(sqlite: Place, mode: str) -> None:
    ends = interrupt(sqlite, mode, FEW * 2 // 3, SMALL)
    assert {130, 143} & {end.code for end in ends}


@pytest.mark.soak
@pytest.mark.parametrize("mode", MODES)
def test_who_interrupts_often_finds_nothing_half_done(
    sqlite: Place, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told(f"interrupted, {mode}", interrupt(sqlite, mode, MANY // 2, LARGE // 2), capsys)


def interrupt_twice(place: Place, times: int, rows: int) -> None:
    """Interrupt a run again while it clears up after the first time."""
    filled(place.dsn, rows=rows, length=250)
    folder = place.folder / "backups"
    seconds = length_of(place, folder, "create")[True]
    for number in range(times):
        process = start(place, "create")
        eventually(lambda: list(folder.glob(".*.partial")), "it is at work")
        time.sleep(random.uniform(0, seconds))  # the moments are the subject
        os.kill(process.pid, [signal.SIGINT, signal.SIGTERM][number % 2])
        time.sleep(random.uniform(0, 0.01))
        os.kill(process.pid, [signal.SIGINT, signal.SIGTERM][number // 2 % 2])
        process.communicate(timeout=60)
        assert left(folder) == [], process.returncode
    for one in found(place):
        proved(place, one)


@pytest.mark.soak
def test_who_interrupts_twice_finds_nothing_left(sqlite: Place) -> None:
    interrupt_twice(sqlite, FEW // 2, SMALL)


@pytest.mark.soak
def test_who_often_interrupts_twice_finds_nothing_left(sqlite: Place) -> None:
    interrupt_twice(sqlite, MANY // 2, LARGE // 2)


def test_names_are_given_to_all_files_or_to_none(tmp_path: Path) -> None:
    """The second name is taken by somebody who does not heed the folder's lock."""
    with durable.workspace(tmp_path) as work:
        files = [durable.new_file(work / name) for name in ("data", "manifest")]
        (tmp_path / "manifest").write_text("theirs")
        with pytest.raises(FileExistsError):
            durable.publish(files, tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("manifest", "theirs")]


# Full disks


def room(folder: Path) -> int:
    return shutil.disk_usage(folder).free


@pytest.mark.parametrize("method", METHODS)
def test_a_backup_into_a_full_folder_leaves_nothing(sqlite: Place, method: str) -> None:
    """Full in the copy, in the compressed file, in what it is unpacked into, in the manifest."""
    size = filled(sqlite.dsn, rows=SMALL // 3, length=250).stat().st_size
    before = state(sqlite.dsn)
    shares = [0.3, 1.02] if method == "none" else [0.5, 1.2, 2.0]
    for share in shares:
        with small_disk(sqlite.folder / "disk", int(size * share)) as disk:
            free = room(disk)
            command = ("create", "--to", str(disk / "backups"), "--compress", method, "--test-restore")
            refused(run(sqlite, *command), 1)
            assert [path.name for path in disk.rglob("*")] == []
            assert free - room(disk) <= 4096
    with small_disk(sqlite.folder / "disk", size * 4) as disk:
        run(sqlite, "create", "--to", str(disk / "backups"), "--compress", method).check_returncode()
    assert state(sqlite.dsn) == before


def fill_disks(tmp_path: Path, mode: str, shares: list[float], rows: int, *, open_elsewhere: bool) -> list[str]:
    """Restore onto disks that are ever larger, until it fits; return what was said of those that were too small."""
    said = []
    place = Place("sqlite", str(tmp_path / "whatspire.db"), tmp_path)
    where = ground(place, mode, rows)
    size = where.origin.stat().st_size
    for share in shares:
        with small_disk(tmp_path / "disk", int(size * (1 + share))) as disk:
            target = disk / "whatspire.db"
            shutil.copyfile(where.origin, target)
            other = Client(target) if open_elsewhere else None
            if other:
                other.run("SELECT count(*) FROM entry")
            free = room(disk)
            done = run(place, *where.command, "--dsn", str(target), "--dir", str(tmp_path / "backups"))
            if done.returncode:
                said.append(refused(done, 1))
                assert {path.name for path in disk.iterdir()} <= {
                    target.name,
                    f"{target.name}-wal",
                    f"{target.name}-shm",
                }
                assert free - room(disk) <= 100_000, share
            after = state(target)
            assert after == (where.old if done.returncode else where.new), share
            if other:
                other.run("SELECT count(*) FROM entry")
                other.end()
    return said


@pytest.mark.parametrize("mode", MODES)
def test_a_restore_onto_a_full_disk_leaves_the_old(tmp_path: Path, mode: str) -> None:
    said = fill_disks(tmp_path, mode, [0.5, 1.3, 1.9, 4], SMALL // 3, open_elsewhere=True)
    assert len(said) == 3


@pytest.mark.soak
@pytest.mark.parametrize("open_elsewhere", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_restore_onto_disks_of_every_size_leaves_the_old_or_the_new(
    tmp_path: Path, mode: str, open_elsewhere: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    said = fill_disks(tmp_path, mode, [n / 6 for n in range(1, 20)], SMALL, open_elsewhere=open_elsewhere)
    facts = Counter(re.sub(r"'?/[^ ]+", "PATH", fact) for fact in said)
    with capsys.disabled():
        sys.stdout.write(f"\n{mode}: {dict(facts)}\n")
    assert 5 < len(said) < 19


def test_a_restore_onto_a_full_disk_where_nothing_was_leaves_nothing(sqlite: Place) -> None:
    where = ground(sqlite, "wal", SMALL // 3)
    with small_disk(sqlite.folder / "disk", where.file.stat().st_size // 2) as disk:
        refused(run(sqlite, "restore", str(where.file), "--to", str(disk / "new.db")), 1)
        assert list(disk.iterdir()) == []
        (disk / "text.db").write_text("no database")
        refused(run(sqlite, "restore", str(where.file), "--to", str(disk / "text.db"), "--force"), 1)
        assert [path.read_text() for path in disk.iterdir()] == ["no database"]


@pytest.mark.parametrize("mode", MODES)
def test_no_room_for_what_is_put_aside_leaves_the_old(sqlite: Place, mode: str) -> None:
    where = ground(sqlite, mode, SMALL // 3)
    with where.live() as other, small_disk(sqlite.folder / "disk", where.file.stat().st_size // 2) as disk:
        refused(run(sqlite, *where.command, "--dir", str(disk)), 1)
        assert list(disk.iterdir()) == []
        assert left(sqlite.folder) == left(sqlite.folder / "backups") == []
        assert check_old_or_new(where, other) == "old"


@pytest.mark.parametrize("mode", MODES)
def test_files_that_may_not_grow_further_leave_the_old(sqlite: Place, mode: str) -> None:
    """A limit of the user, or a quota, is told by other errors than a full disk."""
    where = ground(sqlite, mode, SMALL // 3)
    size = where.origin.stat().st_size
    for share in (0.4, 0.97):

        def limited(share: float = share) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(size * share), resource.RLIM_INFINITY))

        with where.live() as other:
            for command in (where.command, ("create",)):
                done = run(sqlite, *command, preexec_fn=limited)
                refused(done, 1)
                assert "make room" in done.stderr
            assert left(sqlite.folder) == left(sqlite.folder / "backups") == []
            assert check_old_or_new(where, other) == "old"
            assert len(found(sqlite)) == 1
