"""Tasks and greenlets of one thread never share a transaction: each has a connection of its own, or an error."""

from __future__ import annotations

import asyncio
import functools
import gc
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import greenlet
import peewee
import pytest

from tests.conftest import Place
from tests.servers import opened
from whatspire_db import PoolTimeout, Settings, TransactionError, connect


@pytest.fixture
def notes(place: Place) -> Iterator[peewee.Database]:
    with opened(place) as db:
        db.execute_sql("CREATE TABLE note (text text NOT NULL)")
    db = place.connect()
    yield db
    db.close_all()


def write(db: peewee.Database, text: str) -> None:
    db.execute_sql(f"INSERT INTO note VALUES ('{text}')")


def read(db: peewee.Database) -> list[str]:
    with db.connection_context():
        return [text for (text,) in db.execute_sql("SELECT text FROM note ORDER BY text")]


class Stop(Exception):
    pass


async def rolled_back_by(db: peewee.Database, is_open: asyncio.Event, may_end: asyncio.Event) -> None:
    """Write in a transaction, wait inside of it, and roll it back."""
    with suppress(Stop), db.connection_context(), db.atomic():
        db.execute_sql("CREATE TABLE IF NOT EXISTS note (text text NOT NULL)")
        write(db, "undone")
        is_open.set()
        await may_end.wait()
        raise Stop


def beside_an_open_transaction(db: peewee.Database, write_one: object) -> BaseException | None:
    """Run a function while another task of the same thread is in a transaction; return what it raised."""

    async def run() -> BaseException | None:
        is_open, may_end = asyncio.Event(), asyncio.Event()
        other = asyncio.create_task(rolled_back_by(db, is_open, may_end))
        await is_open.wait()
        try:
            await asyncio.create_task(write_one())  # type: ignore[operator]
        except Exception as error:
            return error
        finally:
            may_end.set()
            await other
        return None

    return asyncio.run(run())


def test_a_task_that_was_told_its_transaction_ended_well_has_its_row(notes: peewee.Database, place: Place) -> None:
    async def write_one() -> None:
        with notes.connection_context(), notes.atomic():
            write(notes, "kept")

    error = beside_an_open_transaction(notes, write_one)
    if place.is_sqlite:  # one writer at a time: the second task is refused before it writes
        assert isinstance(error, TransactionError), error
        assert "another task of this thread" in error.fact
        assert read(notes) == []
    else:
        assert error is None
        assert read(notes) == ["kept"]


def test_a_statement_outside_of_a_transaction_is_no_part_of_another_tasks(notes: peewee.Database, place: Place) -> None:
    async def write_one() -> None:
        with notes.connection_context():
            write(notes, "kept")

    error = beside_an_open_transaction(notes, write_one)
    assert isinstance(error, TransactionError) == place.is_sqlite, error
    assert read(notes) == ([] if place.is_sqlite else ["kept"])


def test_a_task_reads_what_is_committed_beside_an_open_transaction(notes: peewee.Database) -> None:
    seen: list[list[str]] = []

    async def look() -> None:
        seen.append(read(notes))

    assert beside_an_open_transaction(notes, look) is None
    assert seen == [[]]


def test_a_refused_task_waits_for_locks_as_before(sqlite: Place) -> None:
    notes = sqlite.connect()

    async def refused(may_end: asyncio.Event, other: asyncio.Task[None]) -> None:
        with notes.connection_context():
            with pytest.raises(TransactionError), notes.atomic():
                pass
            may_end.set()
            await other
            assert notes.execute_sql("PRAGMA busy_timeout").fetchone() == (5000,)

    async def run() -> None:
        is_open, may_end = asyncio.Event(), asyncio.Event()
        other = asyncio.create_task(rolled_back_by(notes, is_open, may_end))
        await is_open.wait()
        await asyncio.create_task(refused(may_end, other))

    asyncio.run(run())


def test_tasks_of_a_database_in_memory_share_it_and_not_its_transactions() -> None:
    db = connect(Settings(dsn=":memory:", log_level="silent"), bind=False)
    with db.connection_context():
        db.execute_sql("CREATE TABLE note (text text NOT NULL)")

        async def write_one() -> None:
            with db.atomic():
                write(db, "lost")

        error = beside_an_open_transaction(db, write_one)
        assert isinstance(error, TransactionError)
        assert "database in memory" in error.hint
        assert db.execute_sql("SELECT count(*) FROM note").fetchone() == (0,)
        with db.atomic():
            write(db, "kept")
        assert db.execute_sql("SELECT text FROM note").fetchall() == [("kept",)]


def test_a_thread_of_to_thread_never_gets_the_tasks_connection(notes: peewee.Database) -> None:
    async def run() -> tuple[object, object, object]:
        with notes.connection_context():
            mine = notes.connection()

            def elsewhere() -> tuple[bool, object]:
                was_closed = notes.is_closed()
                with notes.connection_context():
                    return was_closed, notes.connection()

            was_closed, other = await asyncio.to_thread(elsewhere)
            return was_closed, mine is other, notes.connection() is mine

    assert asyncio.run(run()) == (True, False, True)


def test_a_new_task_does_not_inherit_the_connection_of_its_maker(notes: peewee.Database) -> None:
    async def look() -> bool:
        return notes.is_closed()

    async def run() -> bool:
        with notes.connection_context():
            return await asyncio.create_task(look())

    assert asyncio.run(run())


def test_a_task_that_ends_without_closing_gives_its_connection_back(postgres: Place) -> None:
    with opened(postgres) as db:
        before = db.pool_stats().in_use

        async def forget() -> None:
            db.execute_sql("SELECT 1")

        asyncio.run(forget())
        gc.collect()
        assert db.pool_stats().in_use == before


def test_greenlets_of_one_thread_have_connections_of_their_own(notes: peewee.Database, place: Place) -> None:
    errors: list[BaseException] = []

    def undone() -> None:
        with suppress(Stop), notes.connection_context(), notes.atomic():
            write(notes, "undone")
            main.switch()
            raise Stop

    def kept() -> None:
        try:
            with notes.connection_context(), notes.atomic():
                write(notes, "kept")
        except TransactionError as error:
            errors.append(error)

    main = greenlet.getcurrent()
    first = greenlet.greenlet(undone)
    first.switch()
    greenlet.greenlet(kept).switch()
    first.switch()
    assert len(errors) == place.is_sqlite
    assert read(notes) == ([] if place.is_sqlite else ["kept"])


GREEN = """
import sys
PATCH
from whatspire_db import Settings, connect
db = connect(Settings(driver=sys.argv[1], dsn=sys.argv[2], log_level="silent"))
class Stop(Exception): pass
def undone():
    try:
        with db.connection_context(), db.atomic():
            db.execute_sql("INSERT INTO note VALUES ('undone')")
            sleep(0)
            sleep(0)
            raise Stop
    except Stop:
        pass
def kept():
    try:
        with db.connection_context(), db.atomic():
            db.execute_sql("INSERT INTO note VALUES ('kept')")
    except Exception as error:
        print(type(error).__name__)
run(undone, kept)
with db.connection_context():
    print([text for (text,) in db.execute_sql("SELECT text FROM note")], db.pool_stats().in_use)
"""
GEVENT = """
from gevent import monkey; monkey.patch_all()
import gevent
from gevent import sleep
run = lambda *all: gevent.joinall([gevent.spawn(one) for one in all], raise_error=True)
"""
EVENTLET = """
import warnings; warnings.simplefilter("ignore")
import eventlet; eventlet.monkey_patch()
from eventlet import sleep
run = lambda *all: [one.wait() for one in [eventlet.spawn(one) for one in all]]
"""


@pytest.mark.sampled
@pytest.mark.parametrize("patch", [GEVENT, EVENTLET], ids=["gevent", "eventlet"])
def test_a_patched_worker_keeps_the_transactions_of_its_greenlets_apart(
    notes: peewee.Database, place: Place, patch: str, tmp_path: Path
) -> None:
    program = tmp_path / "worker.py"
    program.write_text(GREEN.replace("PATCH", patch))
    done = subprocess.run(
        [sys.executable, str(program), place.driver, place.dsn], capture_output=True, text=True, timeout=60
    )
    expected = "TransactionError\n[] 1\n" if place.is_sqlite else "['kept'] 1\n"
    assert (done.stdout, done.returncode) == (expected, 0), done.stderr


LATE = """
import sys
from whatspire_db import Settings, connect
db = connect(Settings(driver=sys.argv[1], dsn=sys.argv[2], log_level="silent"))
with db.atomic():
    db.execute_sql("INSERT INTO note VALUES ('before')")
db.close()
assert "asyncio" not in sys.modules and "greenlet" not in sys.modules
import asyncio
async def undone():
    try:
        with db.atomic():
            db.execute_sql("INSERT INTO note VALUES ('undone')")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            raise ValueError
    except ValueError:
        pass
async def kept():
    try:
        with db.atomic():
            db.execute_sql("INSERT INTO note VALUES ('kept')")
    except Exception as error:
        print(type(error).__name__)
async def main():
    await asyncio.gather(undone(), kept())
asyncio.run(main())
print([text for (text,) in db.execute_sql("SELECT text FROM note")])
"""


LATE_BLOCKS = """
import sys
from whatspire_db import Settings, connect
db = connect(Settings(driver=sys.argv[1], dsn=sys.argv[2], log_level="silent"))
@db.connection_context()
def first():
    db.execute_sql("INSERT INTO note VALUES ('first')")
@db.connection_context()
@db.atomic()
def second():
    db.execute_sql("INSERT INTO note VALUES ('second')")
db.connect()
assert "asyncio" not in sys.modules and "greenlet" not in sys.modules
import asyncio
async def main():
    first()
    second()
    print(db.is_closed(), db.pool_stats().in_use)
asyncio.run(main())
print([text for (text,) in db.execute_sql("SELECT text FROM note")])
db.close()
"""


@pytest.mark.parametrize("program", [LATE, LATE_BLOCKS], ids=["tasks", "blocks"])
def test_tasks_are_told_apart_in_a_program_that_imports_their_library_late(
    notes: peewee.Database, place: Place, tmp_path: Path, program: str
) -> None:
    file = tmp_path / "worker.py"
    file.write_text(program)
    done = subprocess.run(
        [sys.executable, str(file), place.driver, place.dsn], capture_output=True, text=True, timeout=60
    )
    expected = "TransactionError\n['before']\n" if place.is_sqlite else "['before', 'kept']\n"
    if program is LATE_BLOCKS:
        expected = "True 1\n['first', 'second']\n"
    assert (done.stdout, done.returncode) == (expected, 0), done.stderr


def test_tasks_of_trio_have_connections_of_their_own(notes: peewee.Database, place: Place) -> None:
    trio = pytest.importorskip("trio")
    errors: list[BaseException] = []

    async def undone(is_open: Any, may_end: Any) -> None:
        with suppress(Stop), notes.connection_context(), notes.atomic():
            write(notes, "undone")
            is_open.set()
            await may_end.wait()
            raise Stop

    async def run() -> None:
        is_open, may_end = trio.Event(), trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(undone, is_open, may_end)
            await is_open.wait()
            try:
                with notes.connection_context(), notes.atomic():
                    write(notes, "kept")
            except TransactionError as error:
                errors.append(error)
            may_end.set()

    trio.run(run)
    assert len(errors) == place.is_sqlite
    assert read(notes) == ([] if place.is_sqlite else ["kept"])


def test_tasks_of_trio_do_not_stop_their_loop_for_a_connection(place: Place) -> None:
    trio = pytest.importorskip("trio")
    db = connect(Settings(driver=place.driver, dsn=place.dsn, log_level="silent", max_open_conns=1))

    async def hold(may_end: Any, *, task_status: Any) -> None:
        with db.connection_context():
            task_status.started()
            await may_end.wait()

    async def run() -> None:
        may_end = trio.Event()
        async with trio.open_nursery() as nursery:
            await nursery.start(hold, may_end)
            with pytest.raises(PoolTimeout, match="tasks of this thread hold all 1 connections"):
                db.connect()
            may_end.set()

    trio.run(run)
    db.close_all()


def test_threads_still_have_connections_of_their_own(notes: peewee.Database) -> None:
    found: list[object] = []

    def look() -> None:
        with notes.connection_context():
            found.append(notes.connection())

    with notes.connection_context():
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert found[0] is not notes.connection()


@pytest.mark.parametrize("timeout", [timedelta(0), timedelta(hours=1)])
def test_tasks_that_hold_all_connections_do_not_stop_their_loop_for_another(place: Place, timeout: timedelta) -> None:
    limits = {"max_open_conns": 2, "pool_timeout": timeout}
    db = connect(Settings(driver=place.driver, dsn=place.dsn, log_level="silent", **limits))

    async def use(may_end: asyncio.Event) -> None:
        with db.connection_context():
            db.execute_sql("SELECT 1")
            await may_end.wait()

    async def run() -> None:
        may_end = asyncio.Event()
        users = [asyncio.create_task(use(may_end)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(PoolTimeout, match="tasks of this thread hold all 2 connections"):
            await use(may_end)
        may_end.set()
        await asyncio.gather(*users)
        await use(may_end)

    asyncio.run(run())
    db.close_all()


def test_greenlets_of_an_unpatched_program_do_not_stop_their_thread_for_another(place: Place) -> None:
    db = connect(
        Settings(driver=place.driver, dsn=place.dsn, log_level="silent", max_open_conns=1, pool_timeout=timedelta(0))
    )

    def hold() -> None:
        with db.connection_context():
            main.switch()

    def ask() -> None:
        with pytest.raises(PoolTimeout, match="tasks of this thread hold all 1 connections"):
            db.connect()

    main = greenlet.getcurrent()
    holder = greenlet.greenlet(hold)
    holder.switch()
    greenlet.greenlet(ask).switch()
    holder.switch()
    db.close_all()


async def asynchronous() -> None:
    pass


async def yields_asynchronously() -> AsyncIterator[None]:
    yield


def yields() -> Iterator[None]:
    yield


@pytest.mark.parametrize("function", [asynchronous, yields_asynchronously, yields, functools.partial(asynchronous)])
def test_decorator_whose_block_would_end_before_the_function_begins_is_refused(sqlite: Place, function: Any) -> None:
    db = sqlite.connect()
    for block in (db.atomic(), db.transaction(), db.savepoint(), db.connection_context(), db):
        with pytest.raises(TransactionError, match="block would end before it begins"):
            block(function)


def test_decorated_functions_are_blocks(notes: peewee.Database) -> None:
    @notes.connection_context()
    @notes.atomic()
    def undone(text: str) -> None:
        write(notes, text)
        assert notes.in_transaction()
        raise Stop

    for _ in range(2):
        with pytest.raises(Stop):
            undone("undone")
    assert read(notes) == []


async def written_within(db: peewee.Database, end: type[BaseException] | None) -> AsyncIterator[None]:
    """Write in a transaction and in a savepoint, which whoever finishes the generator ends."""
    with db.atomic(), db.atomic():
        write(db, "theirs")
        yield
        if end is not None:
            raise end


@pytest.mark.parametrize("end", [None, Stop])
def test_block_that_another_task_leaves_ends_where_it_began(
    notes: peewee.Database, end: type[BaseException] | None
) -> None:
    async def run() -> None:
        block = written_within(notes, end)
        await block.__anext__()

        async def leave() -> None:
            with suppress(StopAsyncIteration, Stop):
                await block.__anext__()
            assert not notes.in_transaction()

        await asyncio.create_task(leave())
        assert not notes.in_transaction()
        write(notes, "ours")
        notes.close()

    asyncio.run(run())
    assert read(notes) == (["ours"] if end else ["ours", "theirs"])


def test_rows_written_after_a_generator_was_dropped_are_kept(notes: peewee.Database) -> None:
    async def run() -> None:
        async for _ in written_within(notes, None):
            break
        gc.collect()
        while notes.in_transaction():  # the loop finishes the generator in a task of its own
            await asyncio.sleep(0)
        write(notes, "ours")
        notes.close()

    asyncio.run(asyncio.wait_for(run(), 30))
    assert read(notes) == ["ours"]


def test_block_that_another_thread_leaves_is_an_error(notes: peewee.Database) -> None:
    block = notes.atomic()
    errors: list[BaseException] = []

    def leave() -> None:
        try:
            block.__exit__(None, None, None)
        except TransactionError as error:
            errors.append(error)

    block.__enter__()
    write(notes, "kept")
    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    assert "another thread" in str(errors[0])
    block.__exit__(None, None, None)
    notes.close()
    assert read(notes) == ["kept"]
