"""Many threads on few connections of a real server, and connects that do not wait for one another."""

from __future__ import annotations

import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from statistics import median
from typing import Any

import peewee
import psycopg2
import pytest
from psycopg2.extensions import make_dsn

from tests.conftest import Place, Server
from tests.servers import Node, new_node, psql
from whatspire_db import Settings, connect

THREADS, CONNECTIONS = 64, 8
SECONDS = 60
SESSIONS = """
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'whatspire_db'
"""
ACCOUNTS = "CREATE TABLE account (id integer PRIMARY KEY, n integer NOT NULL)"


class Workers:
    """Threads that count in short transactions, until they are told to stop."""

    def __init__(self, db: peewee.Database) -> None:
        self.db = db
        self.stop = threading.Event()
        self.counts = [0] * THREADS
        self.failed: list[BaseException] = []
        self.threads = [threading.Thread(target=self.work, args=(number,)) for number in range(THREADS)]

    def work(self, number: int) -> None:
        try:
            while not self.stop.is_set():
                with self.db.connection_context(), self.db.atomic():
                    self.db.execute_sql("UPDATE account SET n = n + 1 WHERE id = %s", (number,))
                self.counts[number] += 1
        except BaseException as error:
            self.failed.append(error)

    def run(self, admin: Any, seconds: float) -> list[int]:
        """Let them work for some seconds, and until all are seen at once, but no longer than a minute.

        Returns how many sessions the server saw at each look.
        """
        seen = [0]
        for thread in self.threads:
            thread.start()
        begun = time.monotonic()
        while time.monotonic() - begun < (seconds if max(seen) >= CONNECTIONS else 60):
            admin.execute(SESSIONS)
            seen.append(admin.fetchone()[0])
            self.stop.wait(0.01)
        self.stop.set()
        for thread in self.threads:
            thread.join(60)
        return seen


@contextmanager
def limited(postgres: Place, role: str) -> Iterator[None]:
    """Make a role that may have as many sessions as the pool, and drop it afterwards."""
    psql(postgres.dsn, f"CREATE ROLE {role} LOGIN CONNECTION LIMIT {CONNECTIONS}")
    try:
        yield
    finally:
        psql(postgres.dsn, f"DROP OWNED BY {role}; DROP ROLE {role}")


def prove(postgres: Place, seconds: float, **settings: Any) -> tuple[Any, Workers]:
    """Show that nobody failed, nothing was lost, and the server never saw more sessions than there may be.

    The server itself refuses one too many of a role. The rows of pg_stat_activity are not of one moment: they can show
    a session that has ended meanwhile and the one that took its place.
    """
    role = f"pool_{uuid.uuid4().hex[:12]}"
    dsn = make_dsn(postgres.dsn, user=role)
    db = connect(Settings("postgres", dsn, max_open_conns=CONNECTIONS, **settings), bind=False)
    with limited(postgres, role), closing(psycopg2.connect(postgres.dsn, application_name="admin")) as connection:
        connection.autocommit = True
        admin = connection.cursor()
        admin.execute(ACCOUNTS)
        admin.execute("INSERT INTO account SELECT n, 0 FROM generate_series(0, %s) AS n", [THREADS - 1])
        admin.execute(f"GRANT ALL ON account TO {role}")
        workers = Workers(db)
        seen = workers.run(admin, seconds)
        assert not workers.failed, workers.failed
        assert max(seen) >= CONNECTIONS
        admin.execute("SELECT n FROM account ORDER BY id")
        assert [n for (n,) in admin.fetchall()] == workers.counts
        assert min(workers.counts) > 0
        stats = db.pool_stats()
        assert stats.in_use == 0
        assert stats.open_connections == stats.idle <= CONNECTIONS
        db.close_all()
    return db, workers


@pytest.mark.soak
def test_sessions_that_are_replaced_are_never_one_too_many(postgres: Place) -> None:
    """Connections are closed all the time: for their age, and since few may be idle."""
    db, _ = prove(postgres, 2, conn_max_lifetime=timedelta(milliseconds=50), max_idle_conns=2)
    assert db.pool_stats().max_lifetime_closed > 0


@pytest.mark.soak
@pytest.mark.alone
def test_a_minute_of_short_transactions(postgres: Place) -> None:
    db, workers = prove(postgres, SECONDS)
    stats = db.pool_stats()
    least, middle, most = min(workers.counts), median(workers.counts), max(workers.counts)
    sys.stdout.write(
        f"\n{sum(workers.counts) / SECONDS:.0f} transactions/s; a thread {least}, {middle:g}, {most}; {stats}"
    )


# Connects


@pytest.fixture(scope="module")
def node(server: Server) -> Iterator[Node]:
    with new_node(server, "-c fsync=off") as node:
        node.make()
        node.start()
        yield node


@contextmanager
def meeting(node: Node, number: int) -> Iterator[int]:
    """Listen on loopback and let connections through to a server once so many have come; give the port."""
    together = threading.Barrier(number)
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        with suppress(OSError):  # the listener is closed
            while True:
                client, _ = listener.accept()
                threading.Thread(target=serve, args=(client,), daemon=True).start()

    def serve(client: socket.socket) -> None:
        with closing(client), suppress(threading.BrokenBarrierError):
            together.wait(20)
            server = socket.socket(socket.AF_UNIX)
            server.connect(f"{node.folder}/.s.PGSQL.5432")
            back = threading.Thread(target=relay, args=(server, client), daemon=True)
            back.start()
            relay(client, server)
            back.join(60)

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


def relay(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def test_connects_do_not_wait_for_one_another(node: Node) -> None:
    """None gets through before all four have come."""
    answers: list[Any] = []
    with meeting(node, 4) as port:
        dsn = f"host=127.0.0.1 port={port} user=postgres dbname=postgres sslmode=disable"
        db = connect(Settings("postgres", dsn, max_open_conns=4), bind=False)

        def work() -> None:
            with db.connection_context():
                answers.append(db.execute_sql("SELECT 1").fetchone())

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert answers == [(1,)] * 4
        db.close_all()
