"""What the tests of backups of PostgreSQL share: the command line, its two lines, and databases that come and go."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg2.extensions

from tests.conftest import Place, Server
from tests.servers import program, said
from whatspire_db.dsn.postgres import parse_postgres

MODULE = "whatspire_db.backup"
SCRATCH = "SELECT datname FROM pg_database WHERE datname LIKE 'whatspire\\_scratch\\_%'"


def backup(place: Place, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return place.run(*arguments, module=MODULE, **options)


def done(place: Place, *arguments: str, warns: str = "", **options: Any) -> dict[str, Any]:
    """Run a verb that must succeed, with a warning or without one, and return what it tells."""
    ran = backup(place, *arguments, "--json", **options)
    assert ran.returncode == 0, ran
    # What takes longer than ten seconds, as it may on a busy machine, is told from time to time.
    assert warns in ran.stderr if warns else not said(ran.stderr), ran
    told = json.loads(ran.stdout)
    return {**told, "path": str(place.folder / told["path"])} if "path" in told else told


def refused(place: Place, code: int, *arguments: str, **options: Any) -> str:
    """Run a verb that must fail in two lines, and return them."""
    return two_lines(backup(place, *arguments, **options), code)


def two_lines(ran: subprocess.CompletedProcess[str], code: int, *, tried_again: bool = False) -> str:
    """Return what a run said that failed in two lines; before them it may have tried a lost server again."""
    lines = [line for line in said(ran.stderr) if not (tried_again and line.endswith("; trying again"))]
    assert (ran.returncode, len(lines), ran.stdout) == (code, 2, ""), ran
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("hint:  ")
    return ran.stderr


def name_of(place: Place) -> str:
    return parse_postgres(place.dsn).arguments["dbname"]


def at(place: Place, database: str, **more: str) -> Place:
    """Return another database of a place's server."""
    arguments = {**parse_postgres(place.dsn).arguments, "dbname": database, **more}
    return replace(place, dsn=psycopg2.extensions.make_dsn(**arguments))


def rows(place: Place, *statements: str) -> list[tuple[Any, ...]]:
    """Run statements, each in a transaction of its own, and return the rows of the last one."""
    with closing(psycopg2.connect(place.dsn)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []


def identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@contextmanager
def spare(server: Server, made: str | None = None) -> Iterator[str]:
    """Give the name of a database that is not there, or is `made` of this, and leave none of that name."""
    name = f"spare_{uuid.uuid4().hex[:12]}"
    if made is not None:
        server.execute(f"CREATE DATABASE {name} {made}")
    try:
        yield name
    finally:
        server.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def kept_of(server: Server, name: str) -> list[str]:
    """Return the databases that were put aside for one."""
    with closing(server.admin()) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT datname FROM pg_database WHERE starts_with(datname, %s) ORDER BY 1", [f"{name}_old_"])
        return [found for (found,) in cursor.fetchall()]


def scratches(server: Server) -> list[str]:
    with closing(server.admin()) as connection, connection.cursor() as cursor:
        cursor.execute(SCRATCH)
        return [name for (name,) in cursor.fetchall()]


def files(folder: Path) -> list[str]:
    """Return the names of all that is in a folder, hidden or not."""
    return sorted(os.listdir(folder)) if folder.exists() else []


def dump_text(place: Place) -> list[str]:
    """Return schema and rows as pg_dump writes them, without the lines that differ from dump to dump."""
    dsn = psycopg2.extensions.make_dsn(**parse_postgres(place.dsn).arguments)
    ran = subprocess.run(
        [program("pg_dump"), f"--dbname={dsn}"],
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        check=True,
    )
    return [line for line in ran.stdout.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]
