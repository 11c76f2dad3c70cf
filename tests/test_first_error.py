"""What the caller sees is the error that came first, and nothing runs on behind a transaction that is gone."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress

import peewee
import pytest

from tests.conftest import Place, Server
from tests.servers import GONE, psql, terminate
from whatspire_db import WhatspireDBError

ERRORS = (peewee.PeeweeException, WhatspireDBError)
SUICIDE = "SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(30)"

Block = Callable[[peewee.Database], list[AbstractContextManager[object]]]
Kill = Callable[[peewee.Database, Server], None]

TRANSACTIONS: dict[str, Block] = {
    "atomic": lambda db: [db.connection_context(), db.atomic()],
    "nested_atomic": lambda db: [db.connection_context(), db.atomic(), db.atomic()],
    "savepoint": lambda db: [db.connection_context(), db.transaction(), db.savepoint()],
    "with_db": lambda db: [db],
    "with_db_atomic": lambda db: [db, db.atomic(), db.atomic()],
}
BLOCKS: dict[str, Block] = TRANSACTIONS | {"no_transaction": lambda db: [db.connection_context()]}


def at_work(db: peewee.Database, server: Server) -> None:
    """Lose the backend during a statement."""
    db.execute_sql(SUICIDE)


def between_statements(db: peewee.Database, server: Server) -> None:
    lose(db, server)
    db.execute_sql("SELECT 1")


def lose(db: peewee.Database, server: Server) -> None:
    """Lose the backend without a word to the client."""
    (pid,) = db.execute_sql("SELECT pg_backend_pid()").fetchone()
    assert terminate(server, pid)


def manual_close(db: peewee.Database) -> None:
    db.manual_close()


KILLS: list[Kill] = [at_work, between_statements]


@pytest.fixture(scope="module")
def ground(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One database for all, with a table."""
    name = f"t_{uuid.uuid4().hex[:12]}"
    server.execute(f"CREATE DATABASE {name}")
    place = Place("postgres", server.of_database(name), tmp_path_factory.getbasetemp())
    psql(place.dsn, "CREATE TABLE note (text text NOT NULL, number int GENERATED ALWAYS AS IDENTITY)")
    yield place
    server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def db(ground: Place) -> Iterator[peewee.Database]:
    """A pool of its own and no rows; afterwards it must be at rest, and the next checkout good."""
    database = ground.connect()
    with database.connection_context():
        database.execute_sql("DELETE FROM note")
    yield database
    assert database.is_closed()
    assert not database.in_transaction()
    assert database.pool_stats().in_use == 0
    with database.connection_context(), database.atomic():
        write(database, "afterwards")
    assert "afterwards" in notes(database)
    database.close_all()


def write(db: peewee.Database, text: str) -> None:
    db.execute_sql("INSERT INTO note VALUES (%s)", (text,))


def notes(db: peewee.Database) -> list[str]:
    with db.connection_context():
        return [text for (text,) in db.execute_sql("SELECT text FROM note ORDER BY number").fetchall()]


def within(db: peewee.Database, block: Block, *acts: Callable[[], object]) -> None:
    with ExitStack() as stack:
        for part in block(db):
            stack.enter_context(part)
        for act in acts:
            act()


def swallowed(kill: Kill, db: peewee.Database, server: Server) -> None:
    with pytest.raises(peewee.OperationalError, match=GONE):
        kill(db, server)


def refused(db: peewee.Database) -> None:
    with pytest.raises(ERRORS):
        write(db, "behind")


@pytest.mark.parametrize("kill", KILLS)
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS.keys())
def test_caller_sees_that_the_backend_was_killed(db: peewee.Database, server: Server, block: Block, kill: Kill) -> None:
    with pytest.raises(peewee.OperationalError, match=GONE):
        within(db, block, lambda: kill(db, server))


@pytest.mark.parametrize("block", TRANSACTIONS.values(), ids=TRANSACTIONS.keys())
def test_caller_sees_why_a_block_could_not_be_committed(db: peewee.Database, server: Server, block: Block) -> None:
    with pytest.raises(peewee.OperationalError, match=GONE):
        within(db, block, lambda: write(db, "lost"), lambda: lose(db, server))
    assert notes(db) == []


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS.keys())
def test_caller_sees_an_error_of_its_own(db: peewee.Database, server: Server, block: Block) -> None:
    with pytest.raises(ZeroDivisionError):
        within(db, block, lambda: lose(db, server), lambda: 1 // 0)


@pytest.mark.parametrize("kill", KILLS)
@pytest.mark.parametrize("block", TRANSACTIONS.values(), ids=TRANSACTIONS.keys())
def test_nothing_runs_behind_a_swallowed_error(db: peewee.Database, server: Server, block: Block, kill: Kill) -> None:
    with pytest.raises(ERRORS):
        within(db, block, lambda: write(db, "before"), lambda: swallowed(kill, db, server), lambda: refused(db))
    assert notes(db) == []


@pytest.mark.parametrize("kill", KILLS)
def test_nothing_runs_behind_an_error_swallowed_outside_of_its_savepoint(
    db: peewee.Database, server: Server, kill: Kill
) -> None:
    def savepoint() -> None:
        with pytest.raises(peewee.OperationalError, match=GONE), db.atomic():
            kill(db, server)

    with pytest.raises(ERRORS):
        within(db, TRANSACTIONS["atomic"], lambda: write(db, "before"), savepoint, lambda: refused(db))
    assert notes(db) == []


@pytest.mark.parametrize("kill", KILLS)
@pytest.mark.parametrize("block", TRANSACTIONS.values(), ids=TRANSACTIONS.keys())
def test_what_waits_for_a_commit_that_never_came_is_not_called_later(
    db: peewee.Database, server: Server, block: Block, kill: Kill
) -> None:
    called: list[str] = []
    with suppress(*ERRORS):
        within(db, block, lambda: db.after_commit(lambda: called.append("lost")), lambda: kill(db, server))
    within(db, block, lambda: db.after_commit(lambda: called.append("committed")))
    assert called == ["committed"]


@pytest.mark.parametrize("kill", KILLS)
def test_connection_that_is_held_costs_one_statement(db: peewee.Database, server: Server, kill: Kill) -> None:
    with db.connection_context():
        for number in range(3):
            with pytest.raises(peewee.OperationalError, match=GONE), db.atomic():
                kill(db, server)
            with db.atomic():
                write(db, f"{number}")
    assert notes(db) == ["0", "1", "2"]


@pytest.mark.parametrize("close", [peewee.Database.close, manual_close])
@pytest.mark.parametrize("block", TRANSACTIONS.values(), ids=TRANSACTIONS.keys())
def test_connection_is_not_closed_under_a_transaction(
    db: peewee.Database, block: Block, close: Callable[[peewee.Database], object]
) -> None:
    def refused_to_close() -> None:
        with pytest.raises(ERRORS, match="transaction"):
            close(db)

    within(db, block, lambda: write(db, "before"), refused_to_close, lambda: write(db, "behind"))
    assert notes(db) == ["before", "behind"]


# Transactions that no block holds


Act = Callable[[peewee.Database], object]

BY_HAND: dict[str, tuple[Act, Act, Act]] = {  # how a transaction begins, and the two ways it ends
    "begin": (lambda db: db.begin(), lambda db: db.commit(), lambda db: db.rollback()),
    "statement": (
        lambda db: db.execute_sql("BEGIN"),
        lambda db: db.execute_sql("COMMIT"),
        lambda db: db.execute_sql("ROLLBACK"),
    ),
    "other_words": (
        lambda db: db.execute_sql("start transaction"),
        lambda db: db.execute_sql("end"),
        lambda db: db.execute_sql("abort"),
    ),
}


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize("kill", KILLS)
@pytest.mark.parametrize("act", BY_HAND.values(), ids=BY_HAND.keys())
def test_nothing_runs_behind_a_transaction_by_hand(
    db: peewee.Database, server: Server, act: tuple[Act, Act, Act], kill: Kill, manual: bool
) -> None:
    begin, commit, rollback = act
    with db.connection_context(), db.manual_commit() if manual else nullcontext():
        begin(db)
        write(db, "before")
        swallowed(kill, db, server)
        refused(db)
        with pytest.raises(ERRORS):
            commit(db)
        write(db, "after it was ended")
        begin(db)
        swallowed(kill, db, server)
        rollback(db)
        begin(db)
        write(db, "in the next")
        commit(db)
        begin(db)
        write(db, "lost")
        swallowed(kill, db, server)
        begin(db)  # which says that the one before is over
        write(db, "in the last")
        commit(db)
    assert notes(db) == ["after it was ended", "in the next", "in the last"]


def test_a_savepoint_is_not_the_end_of_a_transaction_by_hand(db: peewee.Database, server: Server) -> None:
    with db.connection_context():
        db.execute_sql("BEGIN")
        db.execute_sql("SAVEPOINT one")
        swallowed(at_work, db, server)
        with pytest.raises(ERRORS):
            db.execute_sql("ROLLBACK TO SAVEPOINT one")
        refused(db)
        db.execute_sql("ROLLBACK")


def test_manual_commit_needs_no_connection_around_it_and_goes_on_after_a_loss(
    db: peewee.Database, server: Server
) -> None:
    with db.manual_commit():
        for number in range(3):
            db.begin()
            write(db, f"{number}")
            db.commit()
            lose(db, server)
            with pytest.raises(peewee.OperationalError, match=GONE):
                db.begin()
    db.close()
    assert notes(db) == ["0", "1", "2"]
