"""A server that restarts, or that loses a backend, costs a worker the work in progress and nothing after it."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import peewee
import pytest

from tests.conftest import Place, Server
from tests.load import (
    Load,
    Outage,
    Property,
    all_went_well,
    at_work,
    figures,
    told,
)
from tests.servers import GONE, Node, new_node, terminate
from whatspire_db import Settings, connect
from whatspire_db.dsn.postgres import parse_postgres

SETTINGS = "-c fsync=on"
KILLS = 12
KILL = """
WITH victim AS (
    SELECT pid, state FROM pg_stat_activity WHERE datname = %s ORDER BY (state = 'idle') <> %s, random() LIMIT 1
)
SELECT state, pg_terminate_backend(pid, 30000) FROM victim
"""

# The server


@pytest.fixture(scope="module")
def node(server: Server) -> Iterator[Node]:
    with new_node(server, SETTINGS) as node:
        node.make()
        node.start()
        yield node


def restart(node: Node, mode: str) -> Outage:
    down = time.monotonic()
    node.stop(mode)
    node.start()
    return Outage(down, time.monotonic())


def restarts(node: Node, load: Load, modes: Sequence[str]) -> list[Outage]:
    """Restart again and again, each time when every thread has gone on for some rows."""
    outages = []
    for mode in modes:
        outages.append(restart(node, mode))
        load.goes_on(outages[-1].up, times=random.randint(1, 10))
    return outages


def survived(node: Node, folder: Path, processes: int, modes: Sequence[str]) -> dict[str, object]:
    """Let processes write through so many restarts, check what they noted, and return the figures."""
    with at_work([node.dsn()] * processes, node.dsn(), folder) as load:
        outages = restarts(node, load, modes)
        load.stop()
    all_went_well(load, outages, node.dsn())
    return figures(load, outages)


def test_workers_go_on_by_themselves_after_a_restart(node: Node, tmp_path: Path, record_property: Property) -> None:
    told(survived(node, tmp_path, 2, ["fast", "immediate"]), record_property)


@pytest.mark.soak
@pytest.mark.alone
def test_workers_go_on_by_themselves_after_each_of_many_restarts(
    node: Node, tmp_path: Path, record_property: Property
) -> None:
    told(survived(node, tmp_path, 3, random.sample(["fast", "immediate"] * 10, 20)), record_property)


def test_transaction_that_is_open_at_a_restart_fails_with_what_happened(node: Node) -> None:
    db = connect(Settings("postgres", node.dsn(), log_level="silent"), bind=False)
    for mode in ("fast", "immediate"):
        with pytest.raises(peewee.OperationalError, match=GONE), db.connection_context(), db.atomic():
            open_at_a_restart(db, node, mode)
        with db.connection_context(), db.atomic():
            assert db.execute_sql("SELECT 1").fetchone() == (1,)
    assert db.pool_stats().in_use == 0
    db.close_all()


def open_at_a_restart(db: peewee.Database, node: Node, mode: str) -> None:
    db.execute_sql("SELECT 1")
    restart(node, mode)
    db.execute_sql("SELECT 1")


# One backend


def hold_all(db: peewee.Database, number: int) -> set[int]:
    """Check out so many connections at the same time and return their backends."""
    together = threading.Barrier(number, timeout=30)

    def hold(_: int) -> int:
        with db.connection_context():
            (pid,) = db.execute_sql("SELECT pg_backend_pid()").fetchone()
            together.wait()
            return pid

    with ThreadPoolExecutor(number) as pool:
        return set(pool.map(hold, range(number)))


@pytest.mark.soak
def test_killed_connections_of_the_pool_cost_no_statement(postgres: Place, server: Server) -> None:
    db = postgres.connect()
    for _ in range(3):
        pids = hold_all(db, 4)
        assert len(pids) == 4
        for pid in pids:
            terminate(server, pid)
        assert not pids & hold_all(db, 4)
    assert (db.pool_stats().in_use, db.pool_stats().idle) == (0, 4)
    db.close_all()


@pytest.mark.parametrize("within", [peewee.Database.connection_context, peewee.Database.atomic])
def test_connection_that_is_just_being_killed_costs_no_statement(
    postgres: Place, server: Server, within: Callable[[peewee.Database], AbstractContextManager[object]]
) -> None:
    db = postgres.connect()
    with closing(server.admin()) as admin, admin.cursor() as cursor:
        for _ in range(KILLS):
            (pid,) = hold_all(db, 1)
            cursor.execute("SELECT pg_terminate_backend(%s)", [pid])
            with db.connection_context(), within(db):
                assert db.execute_sql("SELECT 1").fetchone() == (1,)
    db.close_all()


def test_killed_backend_costs_no_more_than_its_own_row(
    postgres: Place, server: Server, tmp_path: Path, record_property: Property
) -> None:
    killed: list[str] = []
    with at_work([postgres.dsn] * 2, postgres.dsn, tmp_path) as load, closing(server.admin()) as admin:
        for number in range(KILLS):
            killed += kill_one(admin, postgres, idle=number % 4 == 0)
            load.goes_on(time.monotonic())
        load.stop()
    all_went_well(load, [], postgres.dsn)
    failed = [attempt for attempt in load.attempts if not attempt.acknowledged]
    assert len(failed) <= len(killed)
    told({"killed": dict(Counter(killed)), "rows that failed": len(failed)}, record_property)


def kill_one(admin: Any, place: Place, idle: bool) -> list[str]:
    """End one backend of a database, where there is one an idle one or one at work, and return what it was at."""
    with admin.cursor() as cursor:
        cursor.execute(KILL, [parse_postgres(place.dsn).arguments["dbname"], idle])
        return [state for state, ended in cursor if ended]
