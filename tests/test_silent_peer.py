"""A peer that acknowledges what it gets and answers nothing: the pool's own questions to it have a deadline."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import timedelta
from typing import Any

import peewee
import psycopg2
import pytest

from tests.conftest import Place
from whatspire_db import PoolTimeout, Settings, WhatspireDBError, connect
from whatspire_db.dsn.postgres import parse_postgres

pytestmark = pytest.mark.sampled


class Proxy:
    """Relays connections to a server; those that were open when `freeze` was called receive no answer any more."""

    def __init__(self, folder: str) -> None:
        self._path = f"{folder}/.s.PGSQL.5432"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._frozen: set[socket.socket] = set()
        self._clients: list[socket.socket] = []
        self.freezes_all = False
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self, new_ones_too: bool = False) -> None:
        self._frozen.update(self._clients)
        self.freezes_all = new_ones_too

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._clients.append(client)
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._path)
                threading.Thread(target=self._relay, args=(client, server, client), daemon=True).start()
                threading.Thread(target=self._relay, args=(server, client, client), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket, client: socket.socket) -> None:
        with suppress(OSError), closing(sink):
            while data := source.recv(65536):
                if not (self.freezes_all or client in self._frozen):
                    sink.sendall(data)


@pytest.fixture
def proxy(postgres: Place) -> Iterator[Proxy]:
    host = parse_postgres(postgres.dsn).arguments["host"]
    proxy = Proxy(host)
    yield proxy
    proxy.close()


def pool(postgres: Place, proxy: Proxy, **settings: Any) -> Any:
    arguments = {**parse_postgres(postgres.dsn).arguments, "host": "127.0.0.1", "port": proxy.port}
    dsn = " ".join(f"{k}={v}" for k, v in arguments.items()) + " sslmode=disable connect_timeout=2"
    db = connect(Settings(driver="postgres", dsn=dsn, log_level="silent", **settings), bind=False)
    db.answer_seconds = 0.3
    return db


def backend(db: Any) -> int:
    return int(db.execute_sql("SELECT pg_backend_pid()").fetchone()[0])


@pytest.mark.soak
def test_a_statement_goes_on_over_a_new_connection(postgres: Place, proxy: Proxy) -> None:
    db = pool(postgres, proxy)
    with db.connection_context():
        before = backend(db)
    proxy.freeze()
    with db.connection_context():
        assert backend(db) != before
    assert db.pool_stats().open_connections == 1
    db.close_all()


@pytest.mark.soak
def test_a_transaction_begins_over_a_new_connection(postgres: Place, proxy: Proxy) -> None:
    db = pool(postgres, proxy)
    with db.connection_context():
        before = backend(db)
    proxy.freeze()
    with db.connection_context(), db.atomic():
        assert backend(db) != before
    db.close_all()


@pytest.mark.soak
def test_the_wait_for_answers_counts_towards_the_pools_timeout(postgres: Place, proxy: Proxy) -> None:
    db = pool(postgres, proxy, pool_timeout=timedelta(seconds=0.5))
    all_open = threading.Barrier(4)

    def use() -> None:
        with db.connection_context():
            db.execute_sql("SELECT 1")
            all_open.wait(30)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert db.pool_stats().idle == 4
    proxy.freeze()
    with pytest.raises(PoolTimeout, match=r"no connection of the pool answered within 0\.5 s"), db.connection_context():
        db.execute_sql("SELECT 1")  # 0.3 s for the first, 0.2 for the second, and none for the other two
    assert db.pool_stats().in_use == 0
    db.close_all()


@pytest.mark.soak
@pytest.mark.parametrize("in_block", [False, True], ids=["statement", "transaction"])
def test_a_peer_that_answers_nobody_is_an_error_and_later_forgotten(
    postgres: Place, proxy: Proxy, in_block: bool
) -> None:
    db = pool(postgres, proxy)
    with db.connection_context():
        db.execute_sql("SELECT 1")
    proxy.freeze(new_ones_too=True)

    def use() -> None:
        with db.connection_context():
            if in_block:
                with db.atomic():
                    db.execute_sql("SELECT 1")
            else:
                db.execute_sql("SELECT 1")

    with pytest.raises((WhatspireDBError, peewee.OperationalError)):
        use()
    proxy.freezes_all = False
    use()
    assert db.pool_stats().in_use == 0
    db.close_all()


@pytest.mark.soak
def test_cleaning_a_session_of_a_silent_peer_ends_in_closing_it(
    postgres: Place, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whatspire_db.connection.engines.postgres.session.ANSWER_SECONDS", 0.3)
    db = pool(postgres, proxy)
    with db.connection_context():
        db.execute_sql("SET work_mem = '1MB'")  # undone when it is given back
        proxy.freeze()
    assert db.pool_stats().open_connections == 0
    with db.connection_context():
        assert db.execute_sql("SHOW work_mem").fetchone() != ("1MB",)
    db.close_all()


@pytest.mark.soak
def test_an_answer_in_time_leaves_the_connection_alone(postgres: Place, proxy: Proxy) -> None:
    db = pool(postgres, proxy)
    with db.connection_context():
        before = backend(db)
    for _ in range(3):
        with db.connection_context():
            db.execute_sql("SELECT pg_sleep(0.5)")  # the user's own statement has no deadline
            assert backend(db) == before
    db.close_all()


def test_the_deadlines_of_a_forked_child_are_its_own(postgres: Place, proxy: Proxy) -> None:
    db = pool(postgres, proxy)
    for _ in range(2):
        with db.connection_context():
            db.execute_sql("SELECT 1")
    child = os.fork()
    if child == 0:
        try:
            for _ in range(2):
                with db.connection_context():
                    db.execute_sql("SELECT 1")
            os._exit(0 if db.pool_stats().idle == 1 else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with db.connection_context():
        db.execute_sql("SELECT 1")
    db.close_all()


def test_the_pools_questions_work_without_poll(postgres: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("select.poll")  # as eventlet does
    db = connect(Settings(driver="postgres", dsn=postgres.dsn, log_level="silent"), bind=False)
    pids = set()
    for _ in range(3):
        with db.connection_context():
            pids.add(backend(db))
    assert len(pids) == 1
    with db.connection_context():
        lost = psycopg2.connect(postgres.dsn)
        lost.cursor().execute("SELECT pg_terminate_backend(%s, 5000)", [backend(db)])
        lost.close()
    with db.connection_context():
        assert backend(db) not in pids
    db.close_all()
