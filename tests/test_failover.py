"""With a DSN that names both nodes, workers go on by themselves on the one that takes over, and no row is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import peewee
import pytest

from tests.conftest import Server
from tests.load import Outage, Property, all_went_well, at_work, figures, told
from tests.servers import Node, eventually, new_node, psql
from whatspire_db import ConnectionFailed, Settings, connect

SETTINGS = "-c fsync=on -c synchronous_commit=on"
IN_STEP = "SELECT 1 FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')"
WAITING = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


@dataclass(frozen=True)
class Pair:
    """A primary whose commits wait for its standby, and this standby."""

    primary: Node
    standby: Node

    def dsn(self, first: Node, second: Node) -> str:
        return f"host={first.folder},{second.folder} user=postgres dbname=postgres target_session_attrs=read-write"

    def dsns(self) -> list[str]:
        """Return both orders in which the nodes can be named."""
        return [self.dsn(self.primary, self.standby), self.dsn(self.standby, self.primary)]

    def take_over(self) -> None:
        """Do what an operator does with the standby of a primary that is gone."""
        self.standby.promote()
        psql(self.standby.dsn(), "ALTER SYSTEM SET synchronous_standby_names = ''; SELECT pg_reload_conf();")


@pytest.fixture
def pair(server: Server) -> Iterator[Pair]:
    with new_node(server, SETTINGS) as primary, new_node(server, SETTINGS) as standby:
        primary.make()
        primary.start()
        psql(primary.dsn(), "ALTER SYSTEM SET synchronous_standby_names = '*'")
        standby.copy(primary)
        standby.start()
        psql(primary.dsn(), "SELECT pg_reload_conf()")
        eventually(lambda: primary.ask(IN_STEP), "the standby is a synchronous one")
        yield Pair(primary, standby)


# Under load


def killed(primary: Node) -> None:
    primary.kill()


def switched_off(primary: Node) -> None:
    primary.stop("fast")


@pytest.mark.soak
@pytest.mark.parametrize("ended", [killed, switched_off])
def test_workers_go_on_by_themselves_on_the_node_that_takes_over(
    pair: Pair, tmp_path: Path, record_property: Property, ended: Callable[[Node], None]
) -> None:
    with at_work(pair.dsns(), pair.primary.dsn(), tmp_path) as load:
        load.goes_on(time.monotonic(), times=20)
        down = time.monotonic()
        ended(pair.primary)
        pair.take_over()
        outage = Outage(down, time.monotonic())
        load.goes_on(outage.up, times=20)
        load.stop()
    all_went_well(load, [outage], pair.standby.dsn())
    told(figures(load, [outage]), record_property)


# One commit


def write(db: peewee.Database, text: str) -> None:
    with db.connection_context(), db.atomic():
        db.execute_sql("INSERT INTO note VALUES (%s)", (text,))


def test_commit_that_waits_for_the_standby_is_not_acknowledged_when_the_primary_is_killed(pair: Pair) -> None:
    psql(pair.primary.dsn(), "CREATE TABLE note (text text NOT NULL)")
    db = connect(Settings(driver="postgres", dsn=pair.dsns()[1]), bind=False)
    write(db, "before")
    pair.standby.stop("immediate")
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write, db, "waiting")
        eventually(lambda: pair.primary.ask(WAITING), "the commit waits")
        pair.primary.kill()
        with pytest.raises(peewee.OperationalError, match="closed the connection"):
            writing.result(30)
    pair.standby.start()
    with pytest.raises(ConnectionFailed, match="read-only|hot standby"):
        write(db, "too early")
    pair.take_over()
    write(db, "afterwards")
    assert pair.standby.ask("SELECT text FROM note") == [("before",), ("afterwards",)]
    db.close_all()
