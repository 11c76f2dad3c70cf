"""What tests need that start servers of their own: PostgreSQL's programs, their user, nodes, and waits that end."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peewee
import psycopg2

from tests.conftest import Place, Server, place_for_databases, postgres_programs
from whatspire_db import MigrationRunner

# What PostgreSQL and its client library say of a session that was ended.
GONE = "terminating connection due to administrator command|server closed the connection unexpectedly"
INITDB = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-sync", "--wal-segsize=1"]
# A server that is killed leaves nothing elsewhere.
IN_ITS_FOLDER = "-c dynamic_shared_memory_type=mmap"


def program(name: str) -> str:
    """Return the path of one of PostgreSQL's programs, of the version that the tests run on."""
    return str(Path(postgres_programs(), name))


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


def said(stderr: str) -> list[str]:
    """Return what a command said, without how far a slow step is."""
    return [line for line in stderr.splitlines() if not line.startswith("INFO: ")]


def eventually(holds: Callable[[], Any], what: str, seconds: float = 30) -> None:
    """Ask again and again until something holds; fail when it does not in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.01)


@dataclass(frozen=True)
class Node:
    """A server of a test's own that can be stopped, killed, copied and promoted; all of it is in its folder."""

    folder: Path
    user: dict[str, Any]  # as options for subprocess
    settings: str

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def dsn(self, database: str = "postgres") -> str:
        return f"host={self.folder} user=postgres dbname={database}"

    def make(self) -> None:
        """Make an empty server."""
        self._run("initdb", *INITDB, "-D", str(self.data))

    def copy(self, primary: Node) -> None:
        """Make a standby of another server, which replicates under the name `standby`."""
        source = f"{primary.dsn()} application_name=standby"
        self._run("pg_basebackup", "-R", "-c", "fast", "--no-sync", "-d", source, "-D", str(self.data))

    def start(self) -> None:
        """Start it and return as soon as it accepts connections."""
        self._control("start", "-W", "-o", f"{self.settings} {IN_ITS_FOLDER} -c listen_addresses='' -k {self.folder}")
        eventually(self.answers, f"{self.folder} answers")

    def stop(self, mode: str) -> None:
        self._control("stop", "-m", mode)

    def promote(self) -> None:
        """Make a primary of a standby, and return when it is one."""
        self._control("promote")

    def kill(self) -> None:
        """End it as a power cut would, and return when none of its processes is left."""
        postmaster = int(self._lock.read_text().split()[0])
        pids = [postmaster, *children(postmaster)]
        for pid in pids:
            with suppress(ProcessLookupError):  # a worker that ended by itself meanwhile
                os.kill(pid, signal.SIGKILL)
        eventually(lambda: not any(map(parent, pids)), f"{self.folder} is gone")
        for lock in (self._lock, *self.folder.glob(".s.PGSQL.*.lock")):  # nobody may reap those that it names
            lock.unlink()

    def runs(self) -> bool:
        return self._lock.exists()

    def answers(self) -> bool:
        try:
            psycopg2.connect(self.dsn()).close()
        except psycopg2.OperationalError:
            return False
        return True

    def ask(self, question: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        with closing(psycopg2.connect(self.dsn(database))) as connection, connection.cursor() as cursor:
            cursor.execute(question)
            return cursor.fetchall()

    @property
    def _lock(self) -> Path:
        return self.data / "postmaster.pid"

    def _control(self, verb: str, *more: str) -> None:
        self._run("pg_ctl", verb, "-D", str(self.data), "-l", str(self.folder / "log"), *more)

    def _run(self, name: str, *arguments: str) -> None:
        command = [program(name), *arguments]
        subprocess.run(command, check=True, cwd=self.folder, stdout=subprocess.DEVNULL, timeout=120, **self.user)


@contextmanager
def new_node(server: Server, settings: str) -> Iterator[Node]:
    """Give the place for a server of a test's own, and leave none running there."""
    with tempfile.TemporaryDirectory(prefix="wps", dir=place_for_databases()) as folder:
        node = Node(Path(folder), without_root(server), settings)
        give(node.folder, node.user)
        try:
            yield node
        finally:
            if node.runs():
                node.stop("immediate")


def parent(pid: int) -> int | None:
    """Return a process's parent; None for a process that has ended, whether or not that was noticed yet."""
    try:
        state, ppid = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state == "Z" else int(ppid)


def children(pid: int) -> list[int]:
    running = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
    return [other for other in running if parent(other) == pid]


def terminate(server: Server, pid: int) -> bool:
    """End a backend, wait until it has ended, and tell whether there was one."""
    with closing(server.admin()) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 30000)", [pid])
        return cursor.fetchone() == (True,)


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
    done = subprocess.run(command, input=statements, text=True, capture_output=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def schema_text(place: Place, *options: str) -> str:
    """Return a PostgreSQL schema as pg_dump writes it, without the lines that differ from dump to dump."""
    command = [program("pg_dump"), "--schema-only", *options, "-d", place.dsn]
    dump = subprocess.run(command, text=True, capture_output=True, check=True).stdout
    return "".join(
        line for line in dump.splitlines(keepends=True) if not line.startswith(("\\restrict", "\\unrestrict"))
    )
