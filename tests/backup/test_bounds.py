"""What a backup may take: no more room than its manifest says, no more memory than there is, no place elsewhere."""

from __future__ import annotations

import gzip
import os
import resource
import shutil
import subprocess
import sys
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from tests.backup.disks import small_disk
from tests.backup.files import filled, script
from tests.backup.ground import (
    fails,
    fill,
    folder_of,
    look,
    made,
    names,
    refitted,
    rewritten,
    run,
    run_many,
    settings_of,
    told,
)
from tests.conftest import Place
from whatspire_db import backup
from whatspire_db.errors import BackupInvalid, ConfigError

pytestmark = pytest.mark.sampled

MEBI = 1 << 20
BOMB = 256 * MEBI


def gzip_bomb(path: Path, head: bytes) -> None:
    with gzip.open(path, "wb", 1) as file:
        file.write(head)
        for _ in range(BOMB // MEBI):
            file.write(bytes(MEBI))


def zstd_bomb(path: Path, head: bytes) -> None:
    with path.open("wb") as raw, zstandard.ZstdCompressor().stream_writer(raw) as file:
        file.write(head)
        for _ in range(BOMB // MEBI):
            file.write(bytes(MEBI))


@pytest.mark.soak
@pytest.mark.parametrize("verb", [("verify", "latest"), ("restore", "latest", "--to", "new.db")])
@pytest.mark.parametrize("bomb", [gzip_bomb, zstd_bomb])
def test_a_file_is_not_unpacked_beyond_what_its_manifest_says(
    sqlite: Place, bomb: Callable[[Path, bytes], None], verb: tuple[str, ...]
) -> None:
    """The disk has room for the database a few times, and is not filled."""
    fill(sqlite)
    (one,) = made(sqlite, compress=bomb.__name__.partition("_")[0])
    bomb(one.file, Path(sqlite.dsn).read_bytes())
    refitted(one)
    with small_disk(sqlite.folder / "disk", 8 * MEBI) as disk:
        for path in (one.file, one.manifest_path):
            shutil.copy(path, disk)
        fails(run(sqlite, *verb, "--dir", "disk"), 3, "unpacks to more than the")
        assert names(disk) == {one.file.name, one.manifest_path.name}
    assert not (sqlite.folder / "new.db").exists()


def test_a_file_that_wants_a_huge_window_is_not_unpacked(sqlite: Place) -> None:
    """The window is memory that the file asks for."""
    fill(sqlite)
    (one,) = made(sqlite, compress="zstd")
    parameters = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    with one.file.open("wb") as raw, zstandard.ZstdCompressor(compression_params=parameters).stream_writer(raw) as file:
        file.write(Path(sqlite.dsn).read_bytes())
    refitted(one)
    with pytest.raises(BackupInvalid, match="cannot be decompressed"):
        backup.verify(backup.find(one.file))


@pytest.mark.parametrize("count", [0, 1, -1, 2**62])
def test_any_number_of_pages_in_a_manifest_is_no_failure_of_the_program(sqlite: Place, count: int) -> None:
    fill(sqlite)
    (one,) = made(sqlite, compress="gzip")
    content = one.manifest.content
    rewritten(one, content=replace(content, details={**content.details, "page_count": count}))
    done = run(sqlite, "verify")
    assert done.returncode == (0 if count > 2 else 3), done
    assert "Traceback" not in done.stderr


# Memory


def least(place: Place, *arguments: str) -> int:
    """Return how much memory the program itself takes for a command, in MiB, to some steps."""
    steps = range(100, 1200, 20)
    enough = bisect_left(steps, True, key=lambda mebis: run_in(place, mebis, *arguments).returncode == 0)
    assert enough < len(steps), "no limit is enough"
    return steps[enough]


def run_in(place: Place, mebis: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    limits = (mebis * MEBI, mebis * MEBI)
    return run(place, *arguments, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limits))


@pytest.mark.soak
def test_memory_that_runs_out_is_told_in_two_lines(sqlite: Place) -> None:
    small = script(sqlite.folder / "small.db", "CREATE TABLE t (a)")
    script(sqlite.dsn, "CREATE TABLE t (a)", "INSERT INTO t VALUES (zeroblob(150000000))")
    told(run(sqlite, "create", "--json"))
    mebis = 60 + least(sqlite, "create", "--to", "small", "--dsn", str(small))
    before = look(folder_of(sqlite))
    for verb in (
        ("create",),
        ("verify", "latest"),
        ("restore", "latest", "--force"),
        ("restore", "latest", "--to", "new.db"),
    ):
        fails(run_in(sqlite, mebis, *verb), 1, "memory ran out", "more memory")
    assert look(folder_of(sqlite)) == before
    assert not (sqlite.folder / "new.db").exists()
    assert backup.list_backups(folder_of(sqlite))[0]


def test_memory_that_runs_out_anywhere_in_a_command_is_told_in_two_lines() -> None:
    code = (
        "import argparse, sys\nfrom whatspire_db.cli.call import Call, run_command\n"
        "run_command(Call([]), argparse.ArgumentParser().parse_args, lambda call: bytearray(1 << 60))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.startswith("error: this program ran out of memory")
    assert "Traceback" not in done.stderr


# Places elsewhere

ELSEWHERE = [
    "s3://key:SECRET@bucket/x?token=SECRET",
    "gs://bucket/x",
    "file:///tmp/x",
    "s3:bucket/x",
    "backup@bucket:x",
    "postgres://user:SECRET@bucket/x",
]


@pytest.mark.parametrize("place_", ELSEWHERE)
def test_a_place_elsewhere_is_no_folder(sqlite: Place, place_: str) -> None:
    fill(sqlite)
    before = names(sqlite.folder)
    done = run_many(
        sqlite,
        ("create", "--to", place_),
        ("list", "--dir", place_),
        ("verify", "--dir", place_),
        ("restore", "latest", "--dir", place_),
        ("prune", "--keep-last", "1", "--dir", place_),
    )
    if "://" in place_:
        done.append(run(sqlite, "create", env={"WHATSAPP_DATABASE_BACKUP_DIR": place_}))
    for one in done:
        fails(one, 2, "bucket" if "bucket" in place_ else "file:///tmp/x", "is not a folder of this machine")
        assert "SECRET" not in one.stdout + one.stderr
    assert names(sqlite.folder) == before


@pytest.mark.parametrize(
    "name",
    [
        "host=db password=SECRET dbname=x",
        '"backups"',
        "$HOME/x",
        "${BACKUPS}",
        "~nobody9/x",
        "user:SECRET@bucket:x",
        "C:\\bucket",
        "\\\\server\\share",
        "backups\\old",
        "%USERPROFILE%",
        "-",
        "",
        " ",
        "backups\n",
    ],
)
def test_what_is_not_meant_as_a_name_is_no_folder(sqlite: Place, name: str) -> None:
    fill(sqlite)
    before = names(sqlite.folder)
    verbs = (("create", "--to"), ("list", "--dir"), ("prune", "--keep-last", "1", "--dir"), ("verify", "--dir"))
    for done in run_many(sqlite, *((*verb, name) for verb in verbs)):
        fails(done, 2)
        assert "SECRET" not in done.stderr
    assert names(sqlite.folder) == before


@pytest.mark.parametrize("name", ["host=db password=SECRET", "me:SECRET@db/x", "db;password=SECRET", "db:/x", ""])
def test_what_is_not_meant_as_a_name_is_no_file_of_a_backup(sqlite: Place, name: str) -> None:
    (folder_of(sqlite)).mkdir()
    for done in run_many(sqlite, ("verify", name), ("restore", name)):
        fails(done, 2)
        assert "SECRET" not in done.stderr


def test_what_is_empty_is_refused_and_never_the_default(sqlite: Place) -> None:
    fill(sqlite)
    with pytest.raises(ConfigError, match="--compress is empty"):
        backup.create(settings_of(sqlite), compress="")
    for folder in ("", " "):
        with pytest.raises(ConfigError, match="the name of the folder is empty"):
            backup.create(settings_of(sqlite), folder)
    assert not folder_of(sqlite).exists()


def test_a_url_is_no_file_of_a_backup(sqlite: Place) -> None:
    (folder_of(sqlite)).mkdir()
    for verb in ("verify", "restore"):
        done = run(sqlite, verb, "s3://key:SECRET@bucket/x")
        fails(done, 2, "s3://bucket/x is not a file of this machine")
        assert "SECRET" not in done.stderr


@pytest.mark.soak
def test_a_folder_may_have_any_name_that_is_written_as_a_path(sqlite: Place) -> None:
    filled(sqlite.dsn)
    home = sqlite.folder / "home"
    home.mkdir()
    for name, path in (
        ("./s3:/x", "s3:/x"),
        (f"{sqlite.folder}/a:b", "a:b"),
        ("~/x", "home/x"),
        ("./~", "~"),
        ("./-", "-"),
        ("./a\\b", "a\\b"),
    ):
        told(run(sqlite, "create", "--json", "--to", name, env={"HOME": str(home)}))
        assert len(list((sqlite.folder / path).glob("*.json"))) == 1
        assert os.path.isdir(sqlite.folder / path)
    (sqlite.folder / "there:").mkdir()
    told(run(sqlite, "create", "--json", "--to", "there:"))
