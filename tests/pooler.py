"""PgBouncer in front of the tests' server, with a pool of few sessions that each transaction changes."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg2

from tests.conftest import Place, Server, quiet
from tests.servers import eventually, give, without_root
from whatspire_db.dsn.postgres import parse_postgres

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
PORT = 6432  # it only names the socket's file
POOL = 10


def configuration(server: Server, folder: Path, mode: str, ignored: str) -> str:
    behind = parse_postgres(server.dsn).arguments
    named = {k: behind[k] for k in ("host", "port", "user", "password") if k in behind}
    return "\n".join(
        [
            "[databases]",
            "* = " + " ".join(f"{k}='{v}'" for k, v in named.items()),
            "[pgbouncer]",
            "listen_addr =",
            f"listen_port = {PORT}",
            f"unix_socket_dir = {folder}",
            f"pool_mode = {mode}",
            f"default_pool_size = {POOL}",
            "server_round_robin = 1",  # of all that can be had, each transaction gets another one of them
            "auth_type = any",
            f"ignore_startup_parameters = extra_float_digits{ignored and ','}{ignored}",
            "log_connections = 0",
            "log_disconnections = 0",
            "",
        ]
    )


@contextmanager
def bouncer(server: Server, mode: str, ignored: str = "") -> Iterator[Path]:
    """Run PgBouncer in front of the server and give the folder of its socket."""
    with tempfile.TemporaryDirectory(prefix="wpb") as base:
        folder, options = Path(base), without_root(server)
        give(folder, options)
        file = folder / "pgbouncer.ini"
        file.write_text(configuration(server, folder, mode, ignored))
        with open(folder / "log", "wb") as log:
            process = subprocess.Popen([str(PGBOUNCER), str(file)], stdout=log, stderr=log, **options)
        try:
            eventually(lambda: process.poll() is not None or answers(folder), "pgbouncer answers")
            assert process.poll() is None, (folder / "log").read_text()
            yield folder
        finally:
            process.terminate()
            process.wait(30)


def answers(folder: Path) -> bool:
    try:
        psycopg2.connect(host=str(folder), port=PORT, user="postgres", dbname="pgbouncer").close()
    except psycopg2.OperationalError:
        return False
    return True


def through(place: Place, folder: Path) -> Place:
    name = parse_postgres(place.dsn).arguments["dbname"]
    return replace(quiet(place), dsn=f"host={folder} port={PORT} user=postgres dbname={name}")
