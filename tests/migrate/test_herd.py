"""A deploy of many workers over many tables leaves the server's lock table to the other databases of the server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from tests.conftest import Place, Server, ends_of
from tests.servers import Node, new_node
from whatspire_db import connect
from whatspire_db.migrate.engines.postgres.lock_table import _ROOM, room

pytestmark = pytest.mark.sampled

WORKERS, STATEMENTS = 30, 1_000
PATIENCE_SECONDS = 600  # so many interpreters share a few processors
LIMIT = 3_000  # entries of the lock table that looks may take
STOCK = "-c max_locks_per_transaction=64 -c max_connections=100"
SMALL = "-c max_locks_per_transaction=10 -c max_connections=20"
# Its three tables and their indexes are more than a session's fast path holds, so it needs room like everybody.
BYSTANDER = "SELECT count(*) FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid JOIN s1 ON true JOIN s2 ON true"
MODEL = """
class T{number}(peewee.Model):
    a = peewee.TextField()
    b = peewee.IntegerField(index=True)
    c = peewee.TextField(null=True, index=True)
    d = peewee.CharField(null=True, unique=True)
{more}
    class Meta:
        table_name = "t{number}"
"""
WORKER = """
import sys, many
from whatspire_db import MigrationRunner, connect
models = [model for name, model in vars(many).items() if name.startswith("T")]
db = connect()
with db.connection_context():
    db.execute_sql("SELECT 1")
    print("ready", flush=True)
    sys.stdin.readline()
    report = MigrationRunner(db, models, lock_timeout=float(sys.argv[1])).up()
    print(len(report.applied), flush=True)
"""


@contextmanager
def started(server: Server, settings: str) -> Iterator[Node]:
    with new_node(server, settings) as node:
        node.make()
        node.start()
        yield node


@pytest.fixture(scope="module")
def stock(server: Server) -> Iterator[Node]:
    """A server with the settings that PostgreSQL comes with."""
    with started(server, STOCK) as node:
        yield node


@pytest.fixture(scope="module")
def small(server: Server) -> Iterator[Node]:
    """A server with room for few locks."""
    with started(server, SMALL) as node:
        yield node


@contextmanager
def database(node: Node, folder: Path) -> Iterator[Place]:
    command(node, "CREATE DATABASE app")
    yield Place("postgres", node.dsn("app"), folder)
    command(node, "DROP DATABASE app WITH (FORCE)")


@pytest.fixture
def ground(stock: Node, tmp_path: Path) -> Iterator[Place]:
    """A database, beside one in which a service works."""
    command(stock, "CREATE DATABASE beside")
    for name in ("s1", "s2"):
        command(stock, f"CREATE TABLE {name} (id int PRIMARY KEY, a int UNIQUE, b int UNIQUE)", "beside")
    with database(stock, tmp_path) as place:
        yield place
    command(stock, "DROP DATABASE beside WITH (FORCE)")


@pytest.fixture
def cramped(small: Node, tmp_path: Path) -> Iterator[Place]:
    """A database of a server with room for few locks."""
    with database(small, tmp_path) as place:
        yield place


def command(node: Node, sql: str, database: str = "postgres") -> None:
    with closing(psycopg2.connect(node.dsn(database))) as session:
        session.autocommit = True
        session.cursor().execute(sql)


def write(ground: Place, tables: int, more: str = "") -> None:
    """Write a module of so many models; the first has one more field."""
    texts = [MODEL.format(number=n, more=more if n == 0 else "") for n in range(tables)]
    (ground.folder / "many.py").write_text("import peewee\n" + "".join(texts))


@contextmanager
def asking(dsn: str, question: str, answers: list[Any], at_least: int = 0) -> Iterator[None]:
    """Ask a question again and again in a session beside the block, and so many times at least; keep what comes."""
    done = threading.Event()

    def ask() -> None:
        with closing(psycopg2.connect(dsn)) as session, session.cursor() as cursor:
            session.autocommit = True
            while not done.wait(0.02) or len(answers) < at_least:
                try:
                    cursor.execute(question)
                    answers.append(cursor.fetchone()[0])
                except psycopg2.Error as error:
                    answers.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def deploy(ground: Place, stock: Node, workers: int) -> tuple[list[str], list[Any], int]:
    """Start workers at one moment; return what each applied, what the bystander met, and the most locks of all."""
    bystander: list[Any] = []
    locks: list[Any] = []
    with ExitStack() as stack:
        command_line = [sys.executable, "-c", WORKER, str(PATIENCE_SECONDS)]
        started = [
            stack.enter_context(
                subprocess.Popen(
                    command_line, env=ground.variables(), cwd=ground.folder, text=True,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                )
            )
            for _ in range(workers)
        ]  # fmt: skip
        for worker in started:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n", worker.communicate()
        stack.enter_context(asking(stock.dsn("beside"), BYSTANDER, bystander, STATEMENTS))
        stack.enter_context(asking(stock.dsn(), "SELECT count(*) FROM pg_locks", locks))
        for worker in started:
            assert worker.stdin is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
        ends = ends_of(started, timeout=2 * PATIENCE_SECONDS)
    assert [code for code, *_ in ends] == [0] * workers, [err for *_, err in ends if err]
    return [out.strip() for _, out, _ in ends], [a for a in bystander if isinstance(a, Exception)], max(locks)


@pytest.mark.soak
def test_deploy_over_many_tables_holds_few_locks(ground: Place, stock: Node) -> None:
    write(ground, 100)
    assert ground.run("--models", "many", "--only-models").returncode == 0
    write(ground, 100, "    new = peewee.TextField(null=True)")
    applied, errors, locks = deploy(ground, stock, WORKERS)
    assert sorted(applied) == ["0"] * (WORKERS - 1) + ["1"]
    assert errors == []
    assert locks < LIMIT


@pytest.mark.soak
@pytest.mark.parametrize("verb", ["plan", "verify"])
def test_look_over_many_tables_holds_few_locks(ground: Place, stock: Node, verb: str) -> None:
    write(ground, 400)
    locks: list[Any] = []
    with asking(stock.dsn(), "SELECT count(*) FROM pg_locks", locks):
        assert ground.run(verb, "--models", "many", "--only-models").returncode == 3
    assert max(locks) < LIMIT


@pytest.mark.soak
def test_deploy_of_many_new_tables_fits_a_stock_server(ground: Place, stock: Node) -> None:
    write(ground, 1_500)
    applied, errors, locks = deploy(ground, stock, WORKERS)
    sys.stdout.write(f"\n{WORKERS} workers, 1,500 new tables: {locks} lock entries at most\n")
    # Each table, its three indexes, and the history.
    assert sorted(applied) == ["0"] * (WORKERS - 1) + [str(4 * 1_500 + 1)]
    assert errors == []


@pytest.mark.soak
@pytest.mark.parametrize("verb", ["plan", "up"])
def test_more_tables_than_a_server_has_locks_for_are_refused(cramped: Place, verb: str) -> None:
    write(cramped, 130)
    done = cramped.run(verb, "--json", "--models", "many", "--only-models")
    assert done.returncode == 4, done.stderr
    (refused,) = json.loads(done.stdout)["refused"]
    assert "max_locks_per_transaction = 10" in refused["reason"]
    advised = re.match(r"set max_locks_per_transaction to (\d+) on the server", refused["hint"])
    assert advised is not None, refused["hint"]
    with closing(psycopg2.connect(cramped.dsn)) as session, session.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace")
        assert cursor.fetchone() == (0,)
    write(cramped, 40)
    assert cramped.run("--models", "many", "--only-models").returncode == 0


@pytest.mark.soak
@pytest.mark.parametrize("settings", [STOCK, SMALL, f"{SMALL} -c max_pred_locks_per_transaction=10"])
def test_room_that_is_expected_is_there(server: Server, settings: str) -> None:
    with started(server, settings) as node, closing(connect(node.dsn())) as db:
        setting, processes, _ = db.execute_sql(_ROOM).fetchone()
        expected = room(setting, processes)
        assert expected >= setting * processes
        taken = db.execute_sql(
            "SELECT count(pg_advisory_xact_lock(n)) FROM generate_series(1, %s) AS n", [expected]
        ).fetchone()
        assert taken == (expected,)


def test_full_lock_table_is_reported_at_once(cramped: Place, small: Node) -> None:
    write(cramped, 60)
    with closing(psycopg2.connect(small.dsn())) as session, session.cursor() as cursor:
        session.autocommit = True
        with suppress(psycopg2.errors.OutOfMemory):
            for n in count():
                cursor.execute("SELECT pg_advisory_lock(%s)", [n])
        cursor.execute("SELECT count(pg_advisory_unlock(n)) FROM generate_series(0, 99) AS n")
        done = cramped.run("verify", "--models", "many", "--only-models")
    assert done.returncode == 1
    assert "the server's lock table is full" in done.stderr
    assert "max_locks_per_transaction" in done.stderr
