"""The pool on both engines: its limits, its line, its figures, and what it says when somebody forgets to close."""

from __future__ import annotations

import gc
import logging
import math
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import peewee
import pytest

from tests.conftest import Place
from tests.servers import eventually
from whatspire_db import ConnectionFailed, PoolTimeout, Settings, connect
from whatspire_db.connection import pool as pool_module
from whatspire_db.connection.pool import Pool
from whatspire_db.connection.pool_state import Limits

SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


def database(place: Place, **settings: Any) -> Any:
    return connect(Settings(driver=place.driver, dsn=place.dsn, **settings), bind=False)


@contextmanager
def held(db: Any, number: int) -> Iterator[None]:
    """Hold a number of connections, each in a thread of its own."""
    taken, done = threading.Barrier(number + 1), threading.Event()

    def hold() -> None:
        with db.connection_context():
            db.execute_sql("SELECT 1")
            taken.wait(30)
            done.wait(30)

    threads = [threading.Thread(target=hold, name=f"holder {n}") for n in range(number)]
    for thread in threads:
        thread.start()
    try:
        taken.wait(30)
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join(30)


def in_thread(run: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=run)
    thread.start()
    return thread


def figures(db: Any) -> tuple[int, int, int]:
    stats = db.pool_stats()
    return stats.open_connections, stats.in_use, stats.idle


# Limits


def test_no_more_than_the_limit_are_open_and_who_waits_gets_the_next(place: Place) -> None:
    db = database(place, max_open_conns=2)
    got, started = threading.Event(), time.monotonic()

    def work() -> None:
        with db.connection_context():
            db.execute_sql("SELECT 1")
            got.set()

    with held(db, 2):
        assert figures(db) == (2, 2, 0)
        thread = in_thread(work)
        eventually(lambda: db.pool_stats().wait_count == 1, "the third waits")
        assert not got.is_set()
    assert got.wait(30)
    thread.join(30)
    stats = db.pool_stats()
    assert stats.max_open_connections == 2
    assert stats.wait_count == 1
    assert 0 < stats.wait_duration < time.monotonic() - started
    assert stats.in_use == 0
    db.close_all()
    assert figures(db) == (0, 0, 0)


def test_waiting_too_long_names_the_line_that_holds_the_connections(place: Place) -> None:
    db = database(place, max_open_conns=2, pool_timeout=timedelta(milliseconds=100))
    with held(db, 2), pytest.raises(PoolTimeout) as error:
        db.connect()
    assert re.search(
        r"within 0\.1 s: 2 of 2 are open, held longest by \S*test_pool\.py:\d+ in hold \(2 ", error.value.fact
    )
    assert "WHATSAPP_DATABASE_POOL_TIMEOUT" in error.value.hint
    with db.connection_context():  # who gave up is not in the line any more
        assert db.execute_sql("SELECT 1").fetchone() == (1,)
    assert db.pool_stats().in_use == 0
    db.close_all()


def test_a_long_wait_is_warned_of_while_it_lasts(sqlite: Place, caplog: pytest.LogCaptureFixture) -> None:
    db = database(sqlite, max_open_conns=1)
    with caplog.at_level(logging.WARNING, "whatspire_db"):
        with held(db, 1):
            thread = in_thread(lambda: db.execute_sql("SELECT 1") and db.close())
            eventually(lambda: caplog.records, "the warning")
        thread.join(30)
    assert re.search(r"waiting for a connection .* all 1 are in use, held .*test_pool\.py:\d+", caplog.messages[0])


def test_no_limit(place: Place) -> None:
    db = database(place, max_open_conns=0, max_idle_conns=3)
    with held(db, 20):
        assert figures(db) == (20, 20, 0)
    assert db.pool_stats().idle == (0 if place.is_sqlite else 3)
    db.close_all()


def test_many_threads_share_few_connections(place: Place) -> None:
    db = database(place, max_open_conns=3, max_idle_conns=2)
    done: list[int] = []

    def work(number: int) -> None:
        for _ in range(20):
            with db.connection_context():
                done.append(db.execute_sql("SELECT 1").fetchone()[0])
                assert db.pool_stats().open_connections <= 3

    threads = [threading.Thread(target=work, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(done) == 240
    assert db.pool_stats().in_use == 0
    assert db.pool_stats().idle <= 2
    db.close_all()


def test_surplus_connections_are_closed_when_they_are_given_back(postgres: Place) -> None:
    db, other = database(postgres, max_idle_conns=1), database(postgres)
    with held(db, 4):
        assert other.execute_sql(SESSIONS).fetchone() == (4,)
    assert db.pool_stats().idle == 1
    assert db.pool_stats().max_idle_closed == 3
    assert other.execute_sql(SESSIONS).fetchone() == (1,)
    db.close_all()
    assert other.execute_sql(SESSIONS).fetchone() == (0,)
    other.close_all()


def test_nothing_is_kept_idle_where_none_is_wanted(postgres: Place) -> None:
    db = database(postgres, max_idle_conns=0, max_open_conns=1)
    with held(db, 1):
        thread = in_thread(lambda: db.execute_sql("SELECT 1") and db.close())
        eventually(lambda: db.pool_stats().wait_count, "somebody waits")
    thread.join(30)
    assert figures(db) == (0, 0, 0)


def test_no_more_are_idle_than_may_be_open(postgres: Place) -> None:
    assert database(postgres, max_idle_conns=10, max_open_conns=2).pool.limits.max_idle == 2
    assert database(postgres, max_idle_conns=10, max_open_conns=0).pool.limits.max_idle == 10


# Age


def backend(db: Any) -> int:
    with db.connection_context():
        return int(db.execute_sql("SELECT pg_backend_pid()").fetchone()[0])


def test_a_connection_is_used_again_until_it_is_too_old(postgres: Place) -> None:
    db = database(postgres, conn_max_lifetime=timedelta(hours=1))
    assert backend(db) == backend(db)
    db.close_all()
    db = database(postgres, conn_max_lifetime=timedelta(microseconds=1))
    assert backend(db) != backend(db)
    assert db.pool_stats().max_lifetime_closed == 2
    assert db.pool_stats().idle == 0
    db.close_all()


def test_an_idle_connection_that_grew_old_is_not_lent(postgres: Place) -> None:
    db = database(postgres, conn_max_lifetime=timedelta(hours=1))
    first = backend(db)
    db.pool._shared.idle[0].expires_at = 0
    assert backend(db) != first
    assert db.pool_stats().max_lifetime_closed == 1
    db.close_all()


def test_lifetimes_differ_and_none_is_over_the_limit() -> None:
    pool = Pool(Limits(lifetime=100), close=lambda connection: None)
    leases = [pool.acquire(object, usable) for _ in range(200)]
    ages = [lease.member.expires_at for lease in leases]
    assert max(ages) - min(ages) > 5
    assert max(ages) - min(ages) <= 10.5


def usable(connection: object) -> bool:
    return True


def test_idle_connections_that_grew_old_are_closed_when_somebody_takes_one() -> None:
    closed: list[object] = []
    pool = Pool(Limits(lifetime=100), close=closed.append)
    for lease in [pool.acquire(object, usable) for _ in range(4)]:
        pool.release(lease)
    *old, young = pool._shared.idle
    for member in old:
        member.expires_at = 0
    pool._shared.swept_at = 0
    lease = pool.acquire(object, usable)
    assert lease.connection is young.connection
    assert {id(connection) for connection in closed} == {id(member.connection) for member in old}
    assert pool.stats().max_lifetime_closed == 3
    pool.release(lease)


def test_who_has_waited_for_long_is_next_whoever_comes_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whatspire_db.connection.pool.STARVING_SECONDS", 0)
    pool = Pool(Limits(max_open=1), close=lambda connection: None)
    first, order = pool.acquire(object, usable), []

    def wait() -> None:
        lease = pool.acquire(object, usable)
        order.append("waited")
        pool.release(lease)

    thread = in_thread(wait)
    eventually(lambda: pool.stats().wait_count, "somebody waits")
    pool.release(first)
    assert pool.stats().idle == 0 or order == ["waited"]
    pool.release(pool.acquire(object, usable))
    thread.join(30)
    assert order == ["waited"]


# Threads that die, and connections that are forgotten


def test_a_thread_that_dies_gives_its_connection_back(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    db = database(place, max_open_conns=1)
    with caplog.at_level(logging.WARNING, "whatspire_db"):
        for _ in range(5):
            in_thread(lambda: db.execute_sql("SELECT 1")).join(30)  # this line forgets to close
    assert figures(db) == (0, 0, 0)
    source = Path(__file__).read_text().splitlines()
    line = next(number for number, text in enumerate(source, 1) if "# this line forgets" in text)
    (told,) = caplog.messages
    assert f"test_pool.py:{line}" in told
    assert "db.connection_context()" in told
    with db.connection_context():
        assert db.execute_sql("SELECT 1").fetchone() == (1,)
    db.close_all()


def test_a_thread_that_dies_in_a_transaction_has_it_rolled_back(place: Place) -> None:
    db = database(place, max_open_conns=1)
    with db.connection_context():
        db.execute_sql("CREATE TABLE kept (n integer)")

    def die() -> None:
        db.begin()
        db.execute_sql("INSERT INTO kept VALUES (1)")

    in_thread(die).join(30)
    with db.connection_context():
        assert db.execute_sql("SELECT count(*) FROM kept").fetchone() == (0,)
    db.close_all()


def test_who_waits_gets_the_place_of_a_thread_that_died(place: Place) -> None:
    db = database(place, max_open_conns=1)
    taken, die = threading.Event(), threading.Event()

    def forget() -> None:
        db.execute_sql("SELECT 1")
        taken.set()
        die.wait(30)

    forgetful = in_thread(forget)
    assert taken.wait(30)
    waiting = in_thread(lambda: db.execute_sql("SELECT 1") and db.close())
    eventually(lambda: db.pool_stats().wait_count, "somebody waits")
    die.set()
    forgetful.join(30)
    waiting.join(30)
    assert db.pool_stats().in_use == 0
    db.close_all()


FORGETS = """
from whatspire_db import connect
db = connect()
db.execute_sql("SELECT 1")
"""


def test_a_program_that_ends_without_closing_is_told_the_line(place: Place) -> None:
    for text, told in ((FORGETS, True), (FORGETS + "db.close()\n", False)):
        script = place.folder / "worker.py"
        script.write_text(text)
        done = subprocess.run(
            [sys.executable, str(script)], env=place.variables(), cwd=place.folder, capture_output=True, text=True,
            check=True, timeout=60,
        )  # fmt: skip
        assert (f"{script}:4" in done.stderr) == told, done.stderr


# Failures


def test_a_connect_that_fails_leaves_its_place_to_others(place: Place) -> None:
    bad = str(place.folder) if place.is_sqlite else re.sub(r"dbname='\w+'", "dbname='not_there'", place.dsn)
    db = database(replace(place, dsn=bad), max_open_conns=1)
    for _ in range(3):
        with pytest.raises(ConnectionFailed, match="is a directory" if place.is_sqlite else "not_there"):
            db.connect()
    assert figures(db) == (0, 0, 0)


def test_peewees_own_ways_are_kept(place: Place) -> None:
    db = database(place)
    assert db.connect()
    assert not db.connect(reuse_if_open=True)
    with pytest.raises(peewee.OperationalError, match="already opened"):
        db.connect()
    with db.atomic(), pytest.raises(peewee.OperationalError, match="transaction is open"):
        db.close()
    assert db.manual_close()
    assert figures(db) == (0, 0, 0)
    assert not db.close()
    with db:
        assert db.in_transaction()
    assert db.is_closed()
    db.close_all()


def test_closing_all_of_sqlite_leaves_alone_what_other_threads_use(sqlite: Place) -> None:
    db = database(sqlite)
    opened, closed, told = threading.Event(), threading.Event(), []

    def work() -> None:
        with db.connection_context():
            rows = db.execute_sql("WITH RECURSIVE r (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT n FROM r")
            told.append(next(rows))
            opened.set()
            closed.wait(30)
            told.append(next(rows))

    thread = in_thread(work)
    assert opened.wait(30)
    db.close_all()
    closed.set()
    thread.join(30)
    assert told == [(1,), (2,)]
    assert figures(db) == (0, 0, 0)


def test_closing_all_of_postgres_ends_what_other_threads_hold(postgres: Place) -> None:
    db, other = database(postgres), database(postgres)
    with held(db, 3):
        db.close_all()
        assert other.execute_sql(SESSIONS).fetchone() == (0,)
        assert figures(db) == (0, 0, 0)
    assert figures(db) == (0, 0, 0)
    other.close_all()


# The line, in the moments that seldom come


def bare_pool(close: Callable[[Any], None] = lambda connection: None, **limits: float) -> Pool:
    return Pool(Limits(**({"timeout": 5} | limits)), close)  # type: ignore[arg-type]


def waiting(pool: Pool, number: int) -> list[threading.Thread]:
    """Let so many threads wait in line; each gives back what it got."""
    threads = []
    for length in range(1, number + 1):
        threads.append(in_thread(lambda: pool.release(pool.acquire(object, usable))))
        eventually(lambda length=length: len(pool._shared.waiters) == length, "a thread is in line")
    return threads


@contextmanager
def no_other_thread_runs() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(10)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@pytest.mark.parametrize("reusable", [True, False])
def test_who_is_woken_and_then_handed_another_leaves_the_first_to_the_next(
    monkeypatch: pytest.MonkeyPatch, reusable: bool
) -> None:
    pool, served = bare_pool(max_open=2, max_idle=2), []
    leases = [pool.acquire(object, usable) for _ in range(2)]
    stay = threading.Event()

    def work() -> None:
        lease = pool.acquire(object, usable)
        served.append(lease)
        stay.wait(30)
        pool.release(lease)

    threads = []
    for length in (1, 2):
        threads.append(in_thread(work))
        eventually(lambda length=length: len(pool._shared.waiters) == length, "a thread is in line")
    with no_other_thread_runs():
        monkeypatch.setattr(pool_module, "STARVING_SECONDS", math.inf)  # the first in line is told to look
        pool.release(leases[0])
        monkeypatch.setattr(pool_module, "STARVING_SECONDS", -1)  # before it can look, it is handed one
        leases[1].reusable = reusable
        pool.release(leases[1])
    try:
        eventually(lambda: len(served) == 2, "both are served", seconds=0.8)
    finally:
        stay.set()
        for thread in threads:
            thread.join(30)


def test_what_two_give_back_while_one_waits_is_not_kept_beyond_the_limit() -> None:
    pool = bare_pool(max_open=2, max_idle=0)
    leases = [pool.acquire(object, usable) for _ in range(2)]
    (thread,) = waiting(pool, 1)
    with no_other_thread_runs():
        for lease in leases:
            pool.release(lease)
    thread.join(30)
    assert pool.stats().open_connections == 0


@pytest.mark.parametrize("starving", [0, math.inf], ids=["handed", "left to find"])
def test_waiter_that_gives_up_passes_on_what_came_free(monkeypatch: pytest.MonkeyPatch, starving: float) -> None:
    monkeypatch.setattr(pool_module, "STARVING_SECONDS", starving)
    monkeypatch.setattr(pool_module, "LONG_WAIT_SECONDS", math.inf)  # a waiter sleeps until it is woken or gives up
    pool, served, timed_out = bare_pool(max_open=1, timeout=20), [], Pool._timeout
    lease = pool.acquire(object, usable)
    monkeypatch.setattr(Pool, "_timeout", lambda self: comes_free() or timed_out(self))

    def comes_free() -> None:
        """Return the connection just after the first waiter gave up, with a second one behind it."""
        threads.append(in_thread(lambda: served.append(pool.acquire(object, usable))))
        eventually(lambda: len(pool._shared.waiters) == 2, "the second is in line")
        pool.release(lease)

    threads: list[threading.Thread] = []
    with pytest.raises(PoolTimeout):
        pool.acquire(object, usable, since=time.monotonic() - 20)
    threads[0].join(10)
    assert served


def test_an_interrupt_while_a_connection_is_closed_costs_no_place() -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    pool = bare_pool(interrupted, max_open=2, max_idle=2)
    leases = [pool.acquire(object, usable) for _ in range(2)]
    leases[0].reusable = False
    with pytest.raises(KeyboardInterrupt):
        pool.release(leases[0])
    with pytest.raises(KeyboardInterrupt):
        pool.close_all()
    assert pool.stats().open_connections == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupt_while_connecting_costs_no_place(error: type[BaseException]) -> None:
    def interrupted() -> None:
        raise error

    pool = bare_pool(max_open=1)
    with pytest.raises(error):
        pool.acquire(interrupted, usable)
    assert pool.stats().open_connections == 0


def dropped_by_the_collector(pool: Pool) -> Callable[[], None]:
    """Acquire a connection and return what has the collector end its lease."""
    cycle: list[Any] = [pool.acquire(object, usable)]
    cycle.append(cycle)
    box = [cycle]
    del cycle

    def collect() -> None:
        if box:
            box.clear()
            gc.collect()

    return collect


def test_the_collector_ends_a_lease_while_somebody_steps_into_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = bare_pool(max_open=1)
    collect, waiter = dropped_by_the_collector(pool), pool_module.Waiter
    monkeypatch.setattr(pool_module, "Waiter", lambda since: collect() or waiter(since))
    pool.release(pool.acquire(object, usable))
    assert pool.stats().wait_duration < 1


@pytest.mark.soak
def test_the_collector_ends_a_lease_while_somebody_gives_his_back(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = bare_pool(max_open=2, max_idle=1)
    lease, collect = pool.acquire(object, usable), dropped_by_the_collector(pool)
    (thread,) = waiting(pool, 1)
    offer = Pool._offer
    monkeypatch.setattr(Pool, "_offer", lambda *arguments: collect() or offer(*arguments))
    pool.release(lease)
    thread.join(30)
    assert pool.stats().in_use == 0


def test_what_handles_the_warning_of_a_long_wait_may_use_the_pool(sqlite: Place) -> None:
    db, told = database(sqlite, max_open_conns=1, pool_timeout=timedelta(seconds=5)), []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with db.connection_context():
                told.append(db.execute_sql("SELECT 1").fetchone())

    def work() -> None:
        with db.connection_context():
            told.append(db.execute_sql("SELECT 2").fetchone())

    handler = Handler()
    pool_module.logger.addHandler(handler)
    try:
        with held(db, 1):
            thread = in_thread(work)
            eventually(lambda: db.pool_stats().wait_count == 2, "the handler waits too")
        thread.join(30)
    finally:
        pool_module.logger.removeHandler(handler)
    assert told == [(1,), (2,)]
    assert db.pool_stats().in_use == 0


def test_a_connection_may_be_closed_within_its_context(place: Place) -> None:
    db = database(place)
    with db.connection_context():
        with db.connection_context():
            db.close()
        assert db.is_closed()
        db.execute_sql("SELECT 1")
    assert db.is_closed()
    assert db.pool_stats().in_use == 0
    db.close_all()
