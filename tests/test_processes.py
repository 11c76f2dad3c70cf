"""Workers that fork, spawn and thread: no session is shared, and no call by the user is needed for that."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import peewee
import psycopg2
import pytest

from tests.conftest import Place
from tests.servers import eventually
from whatspire_db import ConnectionFailed, Settings, TransactionError, connect

CHILDREN = 8
ROUNDS = 30
MARK = "CREATE TABLE mark (worker integer, n integer, UNIQUE (worker, n))"

forking, spawning = multiprocessing.get_context("fork"), multiprocessing.get_context("spawn")


def database(place: Place, **settings: Any) -> Any:
    return connect(Settings(driver=place.driver, dsn=place.dsn, **settings), bind=False)


def backend(db: Any) -> int:
    """Return what tells a session from others: the server's process; of SQLite, which has no sessions, this one."""
    if isinstance(db, peewee.SqliteDatabase):
        return os.getpid()
    return int(db.execute_sql("SELECT pg_backend_pid()").fetchone()[0])


@contextmanager
def child(run: Callable[[], Any]) -> Iterator[Any]:
    """Fork, as a prefork server does it, and give what the child returns: a function that awaits it."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, repr(run()).encode())
        except BaseException as error:
            os.write(writing, f"failed: {error!r}".encode())
        finally:
            os._exit(0)
    os.close(writing)

    def result() -> str:
        with os.fdopen(os.dup(reading)) as pipe:
            return pipe.read()

    try:
        yield result
    finally:
        os.close(reading)
        os.waitpid(pid, 0)


def work(db: Any, worker: int, rounds: int = ROUNDS) -> set[int]:
    """Write rows in short transactions and return the sessions that were used."""
    used = set()
    mark = "?" if isinstance(db, peewee.SqliteDatabase) else "%s"
    for number in range(rounds):
        with db.connection_context(), db.atomic():
            used.add(backend(db))
            db.execute_sql(f"INSERT INTO mark VALUES ({mark}, {mark})", (worker, number))
    return used


def report(db: Any, worker: int, results: Any) -> None:
    try:
        results.put(work(db, worker))
    except BaseException as error:
        results.put(repr(error))


def report_from(place: Place, worker: int, results: Any) -> None:
    report(database(place), worker, results)


def prepared(place: Place, **settings: Any) -> Any:
    db = database(place, **settings)
    with db.connection_context():
        db.execute_sql(MARK)
    return db


def count(db: Any) -> int:
    with db.connection_context():
        return int(db.execute_sql("SELECT count(*) FROM mark").fetchone()[0])


@pytest.mark.soak
@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_children_and_parent_work_at_once_and_share_no_session(place: Place, way: str) -> None:
    db = prepared(place)
    with db.connection_context():
        before = backend(db)  # it is open while the children are made
        results: Any = forking.SimpleQueue() if way == "fork" else spawning.SimpleQueue()
        processes = [
            forking.Process(target=report, args=(db, n, results))
            if way == "fork"
            else spawning.Process(target=report_from, args=(place, n, results))
            for n in range(CHILDREN)
        ]
        for process in processes:
            process.start()
        own = work(db, CHILDREN)
        used = [results.get() for _ in processes]
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
        assert backend(db) == before
    assert own == {before}
    assert not [result for result in used if isinstance(result, str)]
    if not place.is_sqlite:
        assert len(own.union(*used)) == sum(len(pids) for pids in [own, *used])
    assert count(db) == (CHILDREN + 1) * ROUNDS
    db.close_all()


def test_a_child_of_a_busy_parent_begins_anew(postgres: Place) -> None:
    """The parent's other threads hold connections, and the pool's lock, in the moment of the fork.

    Of SQLite this cannot be had: its library has locks of its own, which a child inherits as they are.
    """
    db = prepared(postgres, max_open_conns=4)
    stop = threading.Event()

    def keep_busy() -> None:
        while not stop.is_set():
            with db.connection_context():
                db.execute_sql("SELECT 1")

    threads = [threading.Thread(target=keep_busy) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        for number in range(10):
            with child(lambda n=number: (len(work(db, n, 3)) > 0, db.pool_stats().in_use, db.close_all())) as result:
                assert result() == "(True, 0, None)"
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert count(db) == 30
    db.close_all()


def test_what_a_child_closes_stays_open_for_the_parent(place: Place) -> None:
    db = prepared(place)
    with db.connection_context():
        before = backend(db)
        raw = db.connection()

        def close_everything() -> str:
            db.close_all()
            if not isinstance(db, peewee.SqliteDatabase):
                raw.close()
            return "closed"

        with child(close_everything) as result:
            assert result() == "'closed'"
        assert backend(db) == before
    db.close_all()


def test_a_child_within_the_parents_block_goes_on_with_a_session_of_its_own(place: Place) -> None:
    db = prepared(place)

    def within() -> bool:
        with db.connection_context():
            return backend(db) != before

    with db.connection_context():
        before = backend(db)
        with child(within) as result:
            assert result() == "True"
        assert backend(db) == before
    db.close_all()


def test_a_child_cannot_go_on_with_the_parents_transaction(place: Place) -> None:
    db = prepared(place)

    def write() -> str:
        try:
            db.execute_sql("INSERT INTO mark VALUES (1, 1)")
        except TransactionError as error:
            return error.fact
        return "written"

    with db.atomic():
        db.execute_sql("INSERT INTO mark VALUES (0, 0)")
        with child(write) as result:
            assert "the session of this transaction is gone" in result()
    assert count(db) == 1
    db.close_all()


def test_the_sessions_of_a_parent_that_was_killed_end_though_a_child_lives(postgres: Place) -> None:
    pids = forking.SimpleQueue()
    reading, writing = os.pipe()  # whose end tells both to end; an event of multiprocessing is not for the killed
    parent = forking.Process(target=hold_and_fork, args=(postgres, pids, reading, writing))
    parent.start()
    session, grandchild = pids.get()
    admin = psycopg2.connect(postgres.dsn)
    admin.autocommit = True
    cursor = admin.cursor()
    cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", [session])
    assert cursor.fetchone() == (1,)
    os.kill(parent.pid or 0, signal.SIGKILL)

    def is_gone() -> bool:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", [session])
        return bool(cursor.fetchone() == (0,))

    try:
        eventually(is_gone, "the server ends the session of the parent")
        os.kill(grandchild, 0)  # it lives
    finally:
        os.close(writing)
        os.close(reading)
        parent.join(30)
        admin.close()


def hold_and_fork(place: Place, pids: Any, reading: int, writing: int) -> None:
    os.close(writing)
    db = database(place)
    db.connect()
    session = backend(db)
    pid = os.fork()
    if pid == 0:
        os.read(reading, 1)
        os._exit(0)
    pids.put((session, pid))
    os.read(reading, 1)


def test_threads_that_die_without_closing_do_not_stop_the_others(place: Place) -> None:
    db = prepared(place, max_open_conns=4)
    failed: list[BaseException] = []

    def forget(worker: int) -> None:
        try:
            db.connect()
            with db.atomic():
                mark = "?" if place.is_sqlite else "%s"
                db.execute_sql(f"INSERT INTO mark VALUES ({mark}, 0)", (worker,))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=forget, args=(n,)) for n in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed
    assert count(db) == 40
    assert db.pool_stats().in_use == 0
    assert db.pool_stats().open_connections <= 1
    db.close_all()


# SQLite keeps books of the process's locks, which a child inherits


def test_what_a_child_commits_outlives_the_parents_last_connection(sqlite: Place) -> None:
    db = prepared(sqlite)
    db.connect()
    assert count_here(db) == 0
    (heard, tell), (listen, say) = os.pipe(), os.pipe()

    def write() -> str:
        with db.connection_context():
            db.execute_sql("INSERT INTO mark VALUES (1, 1)")
            os.write(tell, b"x")
            os.read(listen, 1)  # the parent closes its connection meanwhile
            db.execute_sql("INSERT INTO mark VALUES (1, 2)")
            os.write(tell, b"x")
            os.read(listen, 1)  # the parent looks
        return "written"

    with child(write) as result:
        os.read(heard, 1)
        db.close()
        os.write(say, b"x")
        os.read(heard, 1)
        try:
            assert count(db) == 2
        finally:
            os.write(say, b"x")
        assert result() == "'written'"
    assert count(db) == 2


def count_here(db: Any) -> int:
    return int(db.execute_sql("SELECT count(*) FROM mark").fetchone()[0])


def test_a_child_does_not_open_what_a_transaction_of_its_parent_had_open(sqlite: Place) -> None:
    db = prepared(sqlite)

    def write() -> str:
        try:
            with connect(Settings(dsn=sqlite.dsn), bind=False) as other:
                other.execute_sql("INSERT INTO mark VALUES (1, 1)")
        except ConnectionFailed as error:
            return error.fact
        return "written"

    with db.atomic():
        with child(write) as result:
            assert "when this process was forked" in result()
        db.execute_sql("INSERT INTO mark VALUES (0, 0)")
    assert count(db) == 1


ENDS_IN_A_CHILD = """
import os, sys
from whatspire_db import connect
db = connect()
with db.connection_context():
    db.execute_sql("PRAGMA cache_size = 5")
    with db.atomic():
        db.execute_sql("UPDATE mark SET n = n + 1000000")
        if os.fork() == 0:
            sys.exit(0)
        os.wait()
"""


def test_a_child_that_ends_rolls_nothing_of_its_parent_back(sqlite: Place) -> None:
    place = replace(sqlite, dsn=f"file:{sqlite.dsn}?_journal_mode=DELETE")
    db = prepared(place)
    with db.connection_context():
        db.execute_sql("INSERT INTO mark WITH RECURSIVE r (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 9999) "
                       "SELECT 0, n FROM r")  # fmt: skip
    subprocess.run(
        [sys.executable, "-c", ENDS_IN_A_CHILD], env=place.variables(), cwd=place.folder, check=True, timeout=60
    )
    with db.connection_context():
        assert db.execute_sql("SELECT min(n) FROM mark").fetchone() == (1000001,)
