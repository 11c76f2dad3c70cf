"""What reads within `with db.replica():` reads the replica, and writes nowhere; before and after it is the primary."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import peewee
import pytest

from tests.conftest import Place, Server
from tests.servers import GONE, Node, new_node, psql, terminate
from whatspire_db import ConnectionFailed, Settings, WhatspireDBError, connect

SETTINGS = "-c fsync=off"
NOTES = "CREATE TABLE note (id serial PRIMARY KEY, text text NOT NULL); INSERT INTO note (text) VALUES ('first');"
READ_ONLY = "read-?only"


class Note(peewee.Model):
    text = peewee.TextField()


@dataclass(frozen=True)
class Nodes:
    """A primary and its standby, with a table that has one row."""

    primary: Node
    standby: Node

    def connect(self, replica_dsn: str | None = None) -> peewee.Database:
        dsn = self.primary.dsn()
        settings = Settings("postgres", dsn, replica_dsn=replica_dsn or self.standby.dsn(), log_level="silent")
        return connect(settings, bind=False)


@pytest.fixture(scope="module")
def nodes(server: Server) -> Iterator[Nodes]:
    with new_node(server, SETTINGS) as primary, new_node(server, SETTINGS) as standby:
        primary.make()
        primary.start()
        psql(primary.dsn(), NOTES)
        standby.copy(primary)
        standby.start()
        yield Nodes(primary, standby)


@pytest.fixture
def db(nodes: Nodes) -> Iterator[peewee.Database]:
    database = nodes.connect()
    with database.bind_ctx([Note]):
        yield database
    assert is_at_rest(database)
    database.close_all()


def is_at_rest(db: peewee.Database) -> bool:
    return db.is_closed() and not db.in_transaction() and db.pool_stats().in_use == 0


def on_replica(db: peewee.Database) -> bool:
    (answer,) = db.execute_sql("SELECT pg_is_in_recovery()").fetchone()
    return answer


def fail(_: object = None) -> None:
    raise KeyError("an error of the caller's own")


def session(db: peewee.Database) -> tuple[Any, ...]:
    return db.execute_sql("SELECT pg_backend_pid(), current_setting('transaction_read_only')").fetchone()


# Where it reads


def test_block_reads_the_replica_and_gives_the_primary_back(db: peewee.Database) -> None:
    with db.connection_context():
        before = session(db)
        with db.replica():
            assert on_replica(db)
            assert [note.text for note in Note.select()] == ["first"]
        assert not on_replica(db)
        assert session(db) == before


def test_block_needs_no_connection_around_it(db: peewee.Database) -> None:
    with db.replica():
        assert on_replica(db)
    assert db.is_closed()
    with db.connection_context():
        assert not on_replica(db)


def test_block_that_fails_gives_the_primary_back(db: peewee.Database) -> None:
    with db.connection_context():
        before = session(db)
        with pytest.raises(KeyError, match="own"), db.replica():
            fail()
        assert session(db) == before
        with pytest.raises(peewee.ProgrammingError), db.replica(), db.atomic():
            db.execute_sql("SELECT * FROM nothing")
        assert session(db) == before


def test_nested_blocks_all_read_the_replica(db: peewee.Database) -> None:
    with db.connection_context():
        before = session(db)
        with db.replica():
            outer = session(db)
            with db.replica(), db.connection_context(), db.replica():
                assert on_replica(db)
            assert session(db) == outer
            with pytest.raises(KeyError, match="own"), db.replica():
                fail()
            assert session(db) == outer
        assert session(db) == before


def test_reads_of_a_transaction_within_the_block_are_of_one_session(db: peewee.Database) -> None:
    with db.replica(), db.atomic():
        assert on_replica(db)
        assert session(db) == session(db)


def test_other_threads_stay_where_they_are(db: peewee.Database) -> None:
    def elsewhere() -> bool:
        with db.connection_context():
            return on_replica(db)

    with ThreadPoolExecutor(1) as pool, db.replica():
        assert not pool.submit(elsewhere).result(30)
        assert on_replica(db)


# What it refuses


@pytest.mark.parametrize("statement", ["INSERT INTO note (text) VALUES ('lost')", "CREATE TABLE other (id integer)"])
def test_database_refuses_writes_within_the_block(db: peewee.Database, statement: str) -> None:
    with db.connection_context(), pytest.raises(peewee.InternalError, match=READ_ONLY), db.replica():
        db.execute_sql(statement)
    with pytest.raises(peewee.InternalError, match=READ_ONLY), db.replica(), db.atomic():
        db.execute_sql(statement)
    with db.connection_context():
        assert [note.text for note in Note.select()] == ["first"]


def test_replica_that_could_be_written_refuses_writes_all_the_same(nodes: Nodes) -> None:
    db = nodes.connect(nodes.primary.dsn())
    with db.bind_ctx([Note]), pytest.raises(peewee.InternalError, match=READ_ONLY), db.replica():
        Note.create(text="lost")
    db.close_all()


def test_block_within_a_transaction_of_the_primary_is_refused(db: peewee.Database) -> None:
    with db.connection_context(), db.atomic() as transaction:
        before = session(db)
        Note.create(text="within")
        with pytest.raises(WhatspireDBError, match="transaction"), db.replica():
            pass
        assert session(db) == before
        assert Note.select().count() == 2
        transaction.rollback()


# A replica that is not there


def test_replica_that_cannot_be_reached_fails_its_block_alone(nodes: Nodes, tmp_path: Path) -> None:
    db = nodes.connect(f"host={tmp_path} user=postgres dbname=postgres")
    with pytest.raises(ConnectionFailed, match="cannot connect"), db.replica():
        on_replica(db)
    with db.connection_context():
        before = session(db)
        with pytest.raises(ConnectionFailed, match="cannot connect"), db.replica():
            on_replica(db)
        assert session(db) == before
    assert is_at_rest(db)
    db.close_all()


def test_replica_that_goes_away_fails_one_statement(db: peewee.Database, nodes: Nodes) -> None:
    with db.connection_context():
        before = session(db)
        with db.replica():
            assert on_replica(db)
            nodes.standby.stop("fast")
            with pytest.raises(peewee.OperationalError, match=GONE):
                on_replica(db)
        assert session(db) == before
        with pytest.raises(ConnectionFailed), db.replica():
            on_replica(db)
        assert session(db) == before
        nodes.standby.start()
        with db.replica():
            assert on_replica(db)
        assert session(db) == before


# Without one, and on SQLite


@pytest.fixture
def alone(place: Place) -> Iterator[peewee.Database]:
    """A database of either engine that has no replica, with the table and its row."""
    database = place.connect()
    with database.bind_ctx([Note]):
        with database.connection_context():
            Note._schema.create_table(safe=False)
            Note.create(text="first")
        yield database
    assert is_at_rest(database)
    database.close_all()


def test_without_a_replica_the_block_reads_the_primary(alone: peewee.Database) -> None:
    with alone.replica():
        assert [note.text for note in Note.select()] == ["first"]


def test_without_a_replica_the_block_refuses_writes_all_the_same(alone: peewee.Database) -> None:
    with pytest.raises(peewee.DatabaseError, match=READ_ONLY), alone.replica():
        Note.create(text="lost")
    with pytest.raises(peewee.DatabaseError, match=READ_ONLY), alone.replica(), alone.replica(), alone.atomic():
        Note.create(text="lost")
    with alone.connection_context():
        with pytest.raises(peewee.DatabaseError, match=READ_ONLY), alone.replica():
            Note.create(text="lost")
        with alone.replica(), alone.replica():
            pass
        Note.create(text="second")
        assert Note.select().count() == 2


def test_without_a_replica_a_block_within_a_transaction_is_refused_all_the_same(alone: peewee.Database) -> None:
    with alone.connection_context(), alone.atomic():
        with pytest.raises(WhatspireDBError, match="transaction"), alone.replica():
            pass
        Note.create(text="second")
    with alone.replica():
        assert Note.select().count() == 2


def test_without_a_replica_the_block_waits_for_no_second_connection(place: Place) -> None:
    settings = Settings(place.driver, place.dsn, max_open_conns=1, pool_timeout=timedelta(seconds=5))
    db = connect(settings, bind=False)
    with db.connection_context(), db.replica():
        assert db.execute_sql("SELECT 1").fetchone() == (1,)
    assert is_at_rest(db)
    db.close_all()


def test_without_a_replica_every_connection_of_the_block_refuses_writes(alone: peewee.Database) -> None:
    with alone.replica():
        with alone.connection_context():
            assert Note.select().count() == 1
        with pytest.raises(peewee.DatabaseError, match=READ_ONLY), alone.connection_context():
            Note.create(text="lost")
        alone.close()
        with pytest.raises(peewee.DatabaseError, match=READ_ONLY), alone.atomic():
            Note.create(text="lost")
    with alone.connection_context():
        assert Note.select().count() == 1
        Note.create(text="second")


def test_without_a_replica_a_connection_after_a_loss_refuses_writes(postgres: Place, server: Server) -> None:
    db = postgres.connect()
    with db.connection_context(), db.bind_ctx([Note]):
        Note._schema.create_table(safe=False)
        with db.replica():
            assert terminate(server, session(db)[0])
            with pytest.raises(peewee.OperationalError, match=GONE):
                session(db)
            with pytest.raises(peewee.InternalError, match=READ_ONLY):
                Note.create(text="lost")
        Note.create(text="kept")
        with pytest.raises(KeyError, match="own"), db.replica():
            fail(terminate(server, session(db)[0]))
        Note.create(text="kept")
    assert is_at_rest(db)
    db.close_all()


def test_without_a_replica_the_end_of_a_block_leaves_a_connection_alone_that_another_has(postgres: Place) -> None:
    settings = Settings(postgres.driver, postgres.dsn, max_open_conns=1, pool_timeout=timedelta(seconds=5))
    db = connect(settings, bind=False)
    with ThreadPoolExecutor(1) as pool:
        within = db.replica()
        with db.replica():
            with db.connection_context():
                session(db)
            pool.submit(within.__enter__).result(30)
        assert pool.submit(session, db).result(30)[1] == "on"
        pool.submit(within.__exit__, None, None, None).result(30)
    assert is_at_rest(db)
    db.close_all()


@pytest.mark.parametrize("has_replica", [True, False])
def test_child_that_is_made_within_the_block_leaves_the_parents_connections_alone(
    place: Place, has_replica: bool
) -> None:
    settings = Settings(place.driver, place.dsn, replica_dsn=place.dsn if has_replica else None, log_level="silent")
    db = connect(settings, bind=False)
    parent, went_well = os.getpid(), False
    refused = (ConnectionFailed,) if place.is_sqlite and has_replica else ()  # whose file was open outside of the block
    try:
        with db.connection_context():
            own = db.connection()
            with db.replica():
                db.execute_sql("SELECT 1")
                pid = os.fork()
            went_well = db.execute_sql("SELECT 1").fetchone() == (1,) and (pid > 0 or db.connection() is not own)
    except refused:
        went_well = pid == 0
    finally:
        if os.getpid() != parent:
            os._exit(not went_well)
    assert went_well
    assert os.waitpid(pid, 0)[1] == 0
    db.close_all()


def test_block_of_a_generator_that_another_thread_drops_leaves_that_thread_alone(nodes: Nodes) -> None:
    db = nodes.connect()

    def read() -> Iterator[tuple[Any, ...]]:
        with db.replica():
            yield session(db)

    def drop() -> bool:
        with db.connection_context():
            before = session(db)
            generators.clear()
            return session(db) == before

    with ThreadPoolExecutor(1) as pool:
        generators = pool.submit(lambda: [generator := read(), next(generator)]).result(30)
        assert drop()
    db.close_all()


def test_block_reads_a_database_in_memory() -> None:
    db = connect(Settings(dsn=":memory:"), bind=False)
    with db.bind_ctx([Note]), db.connection_context():
        Note._schema.create_table(safe=False)
        Note.create(text="first")
        with db.replica():
            assert [note.text for note in Note.select()] == ["first"]
        with pytest.raises(peewee.OperationalError, match=READ_ONLY), db.replica():
            Note.create(text="lost")
        Note.create(text="second")


def test_replica_on_sqlite_is_another_file(sqlite: Place, tmp_path: Path) -> None:
    copy = str(tmp_path / "copy.db")
    for dsn in (sqlite.dsn, copy):
        with connect(Settings(dsn=dsn), bind=False) as db, db.bind_ctx([Note]):
            db.create_tables([Note])
            Note.create(text=Path(dsn).name)
    db = connect(Settings(dsn=sqlite.dsn, replica_dsn=copy), bind=False)
    with db.bind_ctx([Note]), db.connection_context():
        with db.replica():
            assert [note.text for note in Note.select()] == ["copy.db"]
        with pytest.raises(peewee.OperationalError, match=READ_ONLY), db.replica():
            Note.create(text="lost")
        assert [note.text for note in Note.select()] == ["whatspire.db"]
    assert is_at_rest(db)


def test_replica_is_read_from_the_environment(sqlite: Place) -> None:
    environ = {"WHATSAPP_DATABASE_DSN": sqlite.dsn, "WHATSAPP_DATABASE_REPLICA_DSN": f"{sqlite.dsn}.copy"}
    settings = Settings.from_environment(environ, dotenv=None)
    assert settings.replica_dsn == f"{sqlite.dsn}.copy"
    assert "copy" not in repr(settings)
