"""What the tests of both engines' backups share: a filled database, its backups, and looks that miss no change."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Place, postgres_programs
from tests.servers import opened, said
from whatspire_db import Settings, backup
from whatspire_db.backup.archive import digest, stem

Done = subprocess.CompletedProcess[str]

# Several command lines in one process, for its start is what takes the time.
MANY = """
import contextlib, io, json, sys
from whatspire_db.cli.backup import main

ends = []
for arguments in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        ends.append([main(arguments), out.getvalue(), err.getvalue()])
json.dump(ends, sys.stdout)
"""


def run(place: Place, *arguments: str, **options: Any) -> Done:
    """Run the command line of backups."""
    return place.run(*arguments, module="whatspire_db.backup", **options)


def run_many(place: Place, *many: tuple[str, ...]) -> list[Done]:
    """Run command lines of backups one after the other."""
    done = subprocess.run(
        [sys.executable, "-c", MANY],
        input=json.dumps(many),
        env=place.variables(),
        cwd=place.folder,
        text=True,
        capture_output=True,
        check=True,
    )
    ends = json.loads(done.stdout)
    return [Done(arguments, *end) for arguments, end in zip(many, ends, strict=True)]


def told(done: Done) -> Any:
    """Return the one JSON document of a run that did what it should and said nothing else."""
    assert (done.returncode, said(done.stderr)) == (0, []), done
    return json.loads(done.stdout)


def fails(done: Done, code: int, *words: str) -> None:
    """Show that a run ended with a code, and with two lines, a fact and a hint, that hold the words."""
    assert done.returncode == code, done
    fact, hint = said(done.stderr)
    assert fact.startswith("error: "), done
    assert hint.startswith("hint:  "), done
    assert len(hint) > 12
    for word in words:
        assert word in done.stderr, done


def settings_of(place: Place, **more: Any) -> Settings:
    return Settings(place.driver, place.dsn, backup_dir=str(folder_of(place)), log_level="silent", **more)


def folder_of(place: Place) -> Path:
    return place.folder / "backups"


@contextmanager
def tools() -> Iterator[None]:
    """Let the library of this process find the server's own programs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHATSPIRE_PG_BIN", postgres_programs())
        yield


def fill(place: Place, rows: int = 200) -> None:
    """Make a table, with rows, where the migrator has not been yet."""
    with opened(place) as db:
        db.execute_sql("CREATE TABLE entry (id integer PRIMARY KEY, text text NOT NULL)")
        add(place, rows)


def add(place: Place, rows: int) -> None:
    with opened(place) as db:
        (last,) = db.execute_sql("SELECT coalesce(max(id), 0) FROM entry").fetchone()
        values = ", ".join(f"({last + n}, 'text of {last + n}')" for n in range(1, rows + 1))
        db.execute_sql(f"INSERT INTO entry VALUES {values}")


def entries(place: Place) -> list[tuple[Any, ...]]:
    with opened(place) as db:
        found: list[tuple[Any, ...]] = db.execute_sql("SELECT id, text FROM entry ORDER BY id").fetchall()
        return found


def made(place: Place, *times: datetime, **more: Any) -> list[backup.Backup]:
    """Make backups of these moments, or one of now."""
    with tools():
        return [backup.create(settings_of(place), now=time, **more) for time in times or (None,)]


def copies(one: backup.Backup, *times: datetime) -> list[backup.Backup]:
    """Put copies of a backup behind it, as if they had been made at these moments, one after the other."""
    found = []
    for serial, time in enumerate(times, one.manifest.serial + 1):
        name = f"{stem(one.manifest.name, time)}{one.file.name[len(one.manifest_path.stem) :]}"
        copy = backup.Backup(one.folder, replace(one.manifest, file=name, created_at=time.isoformat(), serial=serial))
        shutil.copyfile(one.file, copy.file)
        rewritten(copy)
        found.append(copy)
    return found


def look(folder: Path) -> dict[str, Any]:
    """Return all that a folder holds: the bytes of files, and of what kind the rest is."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = ("link", path.readlink())
        elif path.is_file():
            found[name] = path.read_bytes()
        else:
            found[name] = oct(path.stat().st_mode)
    return found


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def files_of(backups: Iterable[backup.Backup]) -> set[str]:
    """Return the names of all files that belong to backups."""
    return {name for made in backups for name in (made.file.name, made.manifest_path.name)}


def rewritten(one: backup.Backup, **changes: Any) -> None:
    """Write the manifest that another version, or somebody who knows how, could have written."""
    one.manifest_path.write_text(replace(one.manifest, **changes).to_text())


def refitted(one: backup.Backup, **changes: Any) -> None:
    """Let the manifest say of the file, as it is now, that it is right."""
    rewritten(one, size=one.file.stat().st_size, sha256=digest(one.file), **changes)


def at_once(*works: Callable[[], Any]) -> list[Any]:
    """Run works in threads that start together and return their results."""
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    together = Barrier(len(works))

    def begun(work: Callable[[], Any]) -> Any:
        together.wait()
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result() for future in [pool.submit(begun, work) for work in works]]
