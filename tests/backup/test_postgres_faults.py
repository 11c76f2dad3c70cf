"""Whatever ends a backup or a restore of PostgreSQL: the database is the old or the new one, and nothing is half done."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from tests.backup.disks import small_disk
from tests.backup.postgres_ground import (
    MODULE,
    SCRATCH,
    at,
    done,
    dump_text,
    files,
    kept_of,
    name_of,
    refused,
    rows,
    scratches,
    two_lines,
)
from tests.conftest import KILLS, Place, Server, postgres_programs
from tests.pooler import PGBOUNCER, PORT, bouncer
from tests.servers import Node, children, eventually, give, new_node
from whatspire_db.backup import list_backups, verify

pytestmark = pytest.mark.soak

FEW, MANY = 6, KILLS
TABLES = """
CREATE TABLE part (id serial PRIMARY KEY, text text NOT NULL);
CREATE TABLE note (part integer NOT NULL REFERENCES part, text text);
CREATE VIEW noted AS SELECT part.text, note.text AS note FROM part JOIN note ON part = part.id;
"""
FILL = "INSERT INTO part (text) SELECT md5(n::text) FROM generate_series(1, {0}) AS n"
NOTE = "INSERT INTO note SELECT id, text FROM part"


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHATSPIRE_PG_BIN", postgres_programs())


def furnish(place: Place, size: int) -> None:
    rows(place, TABLES, FILL.format(size), NOTE, "CREATE INDEX ON note (text)")


def state(place: Place) -> Any:
    """Return what a database holds, asked over a connection that is to be had at once."""
    with closing(psycopg2.connect(place.dsn, connect_timeout=2)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT relname, relkind FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1")
        schema = cursor.fetchall()
        cursor.execute("SELECT count(*), sum(hashtextextended(part::text, 0)) FROM part")
        held = cursor.fetchall()
        cursor.execute("SELECT count(*), sum(hashtextextended(noted::text, 0)) FROM noted")
        return schema, held, cursor.fetchall()


# kill -9 of a backup


def kill_creates(place: Place, server: Server, kills: int) -> Counter[str]:
    folder = place.folder / "backups"
    done(place, "create")
    began = time.monotonic()
    done(place, "create", "--test-restore")
    lasts = time.monotonic() - began
    phases: Counter[str] = Counter()
    for number in range(kills):
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        process = place.start("create", "--test-restore", module=MODULE)
        if number % 3:
            eventually(lambda before=before: len(files(folder)) > len(before), "the work begins")
            time.sleep(random.uniform(0, lasts * 0.7))  # the moment is the subject
        else:
            time.sleep(random.uniform(0, lasts))
        process.kill()
        process.communicate()
        phases[phase_of_create(folder, before, server)] += 1
        backups, others = list_backups(folder)
        for made in backups:
            verify(made)
        assert [other.reason for other in others if "has no manifest" not in other.reason] == []
        assert {name: (folder / name).read_bytes() for name in before} == before
        done(place, "create", "--test-restore")
        after = files(folder)
        assert list_backups(folder)[1] == []
        assert len(after) == 2 * len(list_backups(folder)[0])
        assert scratches(server) == []
        for path in folder.iterdir():  # all but the earliest
            if path.name not in sorted(before)[:2]:
                path.unlink()
    return phases


def phase_of_create(folder: Path, before: dict[str, bytes], server: Server) -> str:
    new = [name for name in files(folder) if name not in before]
    if scratches(server):
        return "test restore"
    if not new:
        return "before the work"
    if any(name.endswith(".partial") for name in new):
        return "publishing" if len(new) > 1 else "dumping or comparing"
    return "after"


def test_killed_backups_leave_a_good_one_or_none(postgres: Place, server: Server) -> None:
    furnish(postgres, 2000)
    assert kill_creates(postgres, server, FEW).total() == FEW


@pytest.mark.soak
def test_each_of_many_killed_backups_leaves_a_good_one_or_none(
    postgres: Place, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    furnish(postgres, 60_000)
    phases = kill_creates(postgres, server, MANY)
    with capsys.disabled():
        sys.stdout.write(f"\n{MANY} killed backups: {dict(phases.most_common())}\n")
    assert phases["test restore"]
    assert phases["dumping or comparing"]


# kill -9 of a restore

RENAMING = """
SELECT pid FROM pg_stat_activity WHERE datname = 'postgres' AND application_name = 'the restore' AND query LIKE %s
"""
FIRST, SECOND = "ALTER DATABASE % RENAME TO %\\_old\\_%", 'ALTER DATABASE "whatspire\\_scratch\\_% RENAME TO %'


def renaming(server: Server, process: subprocess.Popen[str], statement: str) -> int | None:
    """Wait until the session of a restore that renames is at a statement, and return the session that is; None if the restore ended."""
    with closing(server.admin()) as connection, connection.cursor() as cursor:
        while process.poll() is None:
            cursor.execute(RENAMING, [statement])
            for (pid,) in cursor.fetchall():
                return pid
    return None


@contextmanager
def second_rename_held_up(server: Server, process: subprocess.Popen[str]) -> Iterator[None]:
    """Let a restore come no further than to its second rename, by a session in the new database."""
    assert renaming(server, process, "ROLLBACK")  # of the trial of what belongs to it; it is filled next
    (new,) = scratches(server)
    with closing(psycopg2.connect(server.of_database(new))):
        yield


def disturb(place: Place, server: Server, process: subprocess.Popen[str], number: int, lasts: float) -> str:
    """Kill a restore, or end its session, in one of many ways; return where it was."""
    way, end = number % 6, process.kill

    def end_session() -> None:
        server.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = {pid}")

    if way == 0:
        time.sleep(random.uniform(0, lasts))  # the moment is the subject
        where = "any time"
    elif way == 1:
        eventually(lambda: scratches(server) or process.poll() is not None, "the work begins")
        time.sleep(random.uniform(0, lasts * 0.7))
        where = "at the work"
    elif way in (2, 3):
        pid = renaming(server, process, FIRST)
        time.sleep(random.uniform(0, 0.2))
        where = "from the first rename on"
        end = end_session if way == 3 else end
    else:
        with second_rename_held_up(server, process):
            pid = renaming(server, process, SECOND)
            assert pid
            end = end_session if way == 5 else end
            end()
        where = "at the second rename"
    end()
    return f"{'session ended' if end == end_session else 'killed'} {where}"


def kill_restores(place: Place, server: Server, kills: int) -> Counter[str]:
    named = replace(place, dsn=f"{place.dsn} application_name='the restore'")
    made = done(place, "create")["path"]
    new = state(place)
    began = time.monotonic()
    done(place, "restore", made, "--force")
    lasts = time.monotonic() - began
    phases: Counter[str] = Counter()
    for number in range(kills):
        rows(
            place, FILL.format(5), "INSERT INTO note SELECT id, 'late' FROM part LIMIT 3", f"CREATE TABLE t{number} ()"
        )
        old = state(place)
        assert old != new
        idle = psycopg2.connect(place.dsn)
        process = named.start("restore", made, "--force", module=MODULE)
        what = disturb(place, server, process, number, lasts)
        found = state(place)
        process.communicate(timeout=60)
        assert found in (old, new), what
        if process.returncode >= 0:
            assert (process.returncode == 0) == (found == new), what
        assert state(place) == found
        phases[f"{what}: {'old' if found == old else 'new'}"] += 1
        idle.close()
        kept = kept_of(server, name_of(place))
        done(place, "restore", made, "--force", warns="holds what a restore replaced" if kept else "")
        assert state(place) == new
        assert scratches(server) == []
        for kept in kept_of(server, name_of(place)):
            server.execute(f'DROP DATABASE "{kept}" WITH (FORCE)')
        assert [name for name in files(place.folder / "backups") if name.endswith(".partial")] == []
    return phases


def test_killed_restores_leave_the_old_or_the_new(postgres: Place, server: Server) -> None:
    furnish(postgres, 1000)
    assert kill_restores(postgres, server, FEW).total() == FEW


@pytest.mark.soak
def test_each_of_many_killed_restores_leaves_the_old_or_the_new(
    postgres: Place, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    furnish(postgres, 30_000)
    phases = kill_restores(postgres, server, MANY)
    with capsys.disabled():
        sys.stdout.write(f"\n{MANY} ended restores: {dict(phases.most_common())}\n")
    for what in ("from the first rename on: old", "from the first rename on: new", "second rename", "session ended"):
        assert sum(count for phase, count in phases.items() if what in phase) > 0, what


@pytest.mark.parametrize("how", ["kill", "end the session"])
def test_restore_that_ends_between_its_two_renames_leaves_the_old(postgres: Place, server: Server, how: str) -> None:
    furnish(postgres, 20_000)
    made = done(postgres, "create")["path"]
    rows(postgres, "INSERT INTO note (part, text) VALUES (1, 'late')")
    held = state(postgres)
    named = replace(postgres, dsn=f"{postgres.dsn} application_name='the restore'")
    process = named.start("restore", made, "--force", module=MODULE)
    with second_rename_held_up(server, process):
        pid = renaming(server, process, SECOND)
        assert pid
        if how == "kill":
            process.kill()
        else:
            server.execute(f"SELECT pg_terminate_backend({pid})")
        assert state(postgres) == held
        process.communicate(timeout=30)
        assert process.returncode == (-signal.SIGKILL if how == "kill" else 1)
    assert state(postgres) == held
    done(postgres, "restore", made, "--force")
    assert state(postgres) != held
    assert scratches(server) == kept_of(server, name_of(postgres)) == []


def test_restore_whose_connection_is_lost_as_it_commits_tells_what_is_so(server: Server, tmp_path: Path) -> None:
    """The commit waits for a standby that is not there: it is done, and whoever waits for it does not hear so."""
    with new_node(server, "-c synchronous_standby_names=nobody -c fsync=off") as node:
        node.make()
        (node.data / "postgresql.auto.conf").write_text("synchronous_commit = local\n")
        node.start()
        own = replace(server, dsn=node.dsn(), folder=node.folder)
        own.execute("CREATE DATABASE app")
        place = Place("postgres", node.dsn("app"), tmp_path)
        furnish(place, 20_000)
        made = done(place, "create")["path"]
        wanted = state(place)
        rows(place, "INSERT INTO note (part, text) VALUES (1, 'late')")
        named = replace(place, dsn=f"{place.dsn} application_name='the restore'")
        process = named.start("restore", made, "--force", "--json", module=MODULE)
        with second_rename_held_up(own, process):
            pid = renaming(own, process, SECOND)
            own.execute("ALTER SYSTEM SET synchronous_commit = on", "SELECT pg_reload_conf()")
            eventually(lambda: node.ask("SHOW synchronous_commit") == [("on",)], "the setting holds")
        waits = f"SELECT FROM pg_stat_activity WHERE pid = {pid} AND wait_event = 'SyncRep'"
        eventually(lambda: node.ask(waits), "the commit waits")
        own.execute(f"SELECT pg_terminate_backend({pid})")
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        (old,) = kept_of(own, "app")
        assert err.startswith(f"WARNING: database {old} is kept, because it could not be compared or dropped (")
        assert err.count("\n") == 1
        assert json.loads(out)["kept"] == [old]
        assert state(place) == wanted


def test_next_restore_succeeds_where_one_into_an_empty_database_was_killed(postgres: Place, server: Server) -> None:
    furnish(postgres, 60_000)
    made = done(postgres, "create")["path"]
    wanted = state(postgres)
    rows(postgres, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    process = postgres.start("restore", made, module=MODULE)
    eventually(lambda: at_work(postgres, "COPY"), "it fills")
    (orphan,) = children(process.pid)
    os.kill(orphan, signal.SIGSTOP)  # a program outlives who started it, and may take its time
    process.kill()
    process.wait()
    try:
        done(postgres, "restore", made)
        assert state(postgres) == wanted
        assert at_work(postgres, "") == []
    finally:
        os.kill(orphan, signal.SIGKILL)
        process.communicate()


def at_work(place: Place, statement: str) -> list[tuple[Any, ...]]:
    """Return the sessions that restore into a database, or a scratch one, and are at a statement."""
    return rows(
        at(place, "postgres"),
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'whatspire_db restore' AND query LIKE "
        f"'{statement}%' AND (datname = '{name_of(place)}' OR datname LIKE 'whatspire\\_scratch\\_%')",
    )


def dumping(place: Place) -> list[tuple[Any, ...]]:
    asked = f"SELECT pid FROM pg_stat_activity WHERE datname = '{name_of(place)}' AND query LIKE 'COPY %TO stdout%'"
    return rows(at(place, "postgres"), asked)


# Interrupted


MOMENTS: dict[str, tuple[list[str], Callable[[Place], Any]]] = {
    "dumping": (["create"], dumping),
    "test restore": (["create", "--test-restore"], lambda place: at_work(place, "COPY")),
    "restoring": (["restore", "latest", "--force"], lambda place: at_work(place, "COPY")),
    "safety": (["restore", "latest", "--force"], dumping),
}


def some(all_of: dict[tuple[str, Any], Any]) -> list[Any]:
    """Return cases of which the ordinary run takes those that are marked."""
    return [pytest.param(*case, marks=[] if usual else pytest.mark.soak) for case, usual in all_of.items()]


INTERRUPTED = {
    ("dumping", signal.SIGINT): True,
    ("dumping", signal.SIGTERM): False,
    ("test restore", signal.SIGINT): False,
    ("test restore", signal.SIGTERM): True,
    ("restoring", signal.SIGINT): True,
    ("restoring", signal.SIGTERM): False,
    ("safety", signal.SIGINT): False,
    ("safety", signal.SIGTERM): True,
}


@pytest.mark.parametrize(("moment", "number"), some(INTERRUPTED))
def test_interrupted_run_leaves_nothing(postgres: Place, server: Server, moment: str, number: signal.Signals) -> None:
    arguments, is_there = MOMENTS[moment]
    furnish(postgres, 30_000)
    done(postgres, "create")
    rows(postgres, "INSERT INTO note (part, text) VALUES (1, 'late')")
    before, held = files(postgres.folder / "backups"), state(postgres)
    process = postgres.start(*arguments, module=MODULE)
    eventually(lambda: is_there(postgres), moment)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (128 + number, "")
    did = "interrupted" if number == signal.SIGINT else "terminated"
    assert err == f"error: {did}\nhint:  nothing is half done; run it again\n"
    assert files(postgres.folder / "backups") == before
    assert scratches(server) == kept_of(server, name_of(postgres)) == []
    assert state(postgres) == held


def interrupted(process: subprocess.Popen[str], number: signal.Signals = signal.SIGINT) -> tuple[int, str, str]:
    """Interrupt a run that waits for a lock, and return how it ended; it must not wait for the lock to be free."""
    process.send_signal(number)
    try:
        out, err = process.communicate(timeout=10)
    finally:
        process.kill()
    return process.returncode, out, err


def waits(place: Place, statement: str) -> list[tuple[Any, ...]]:
    """Return the sessions whose statement waits for a lock."""
    return rows(
        at(place, "postgres"),
        f"SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '{statement}%'",
    )


@contextmanager
def table_locked(place: Place, table: str, mode: str) -> Iterator[None]:
    """Lock a table, as soon as it is there."""
    with closing(psycopg2.connect(place.dsn)) as holder, holder.cursor() as cursor:

        def is_locked() -> bool:
            try:
                cursor.execute(f"LOCK TABLE {table} IN {mode} MODE")
            except psycopg2.errors.UndefinedTable:
                holder.rollback()
                return False
            return True

        eventually(is_locked, f"{table} is there")
        yield


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("when", ["swapping", "looking"])
def test_restore_that_is_interrupted_when_it_is_done_tells_so(
    postgres: Place, server: Server, when: str, number: signal.Signals
) -> None:
    furnish(postgres, 20_000)
    made = done(postgres, "create")["path"]
    wanted = state(postgres)
    rows(postgres, "INSERT INTO note (part, text) VALUES (1, 'late')")
    held = state(postgres)
    named = replace(postgres, dsn=f"{postgres.dsn} application_name='the restore'")
    process = named.start("restore", made, "--force", "--json", module=MODULE)
    if when == "swapping":
        with second_rename_held_up(server, process):
            assert renaming(server, process, SECOND)
            process.send_signal(number)
        out, err = process.communicate(timeout=30)
        code = process.returncode
    else:
        eventually(lambda: kept_of(server, name_of(postgres)), "it is swapped")
        (old,) = kept_of(server, name_of(postgres))
        with table_locked(at(postgres, old), "note", "ACCESS EXCLUSIVE"):
            code, out, err = interrupted(process, number)
    assert code == 0, err
    assert err == "WARNING: the restore was done when the interrupt came: what it put aside, if anything, is kept\n"
    assert json.loads(out)["kept"] == kept_of(server, name_of(postgres)) != []
    assert state(postgres) == wanted
    assert state(at(postgres, kept_of(server, name_of(postgres))[0])) == held
    for kept in kept_of(server, name_of(postgres)):
        server.execute(f'DROP DATABASE "{kept}" WITH (FORCE)')


def test_restore_into_an_empty_database_that_is_interrupted_when_that_is_filled_tells_so(postgres: Place) -> None:
    furnish(postgres, 60_000)
    made = done(postgres, "create")["path"]
    wanted = state(postgres)
    rows(postgres, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    process = postgres.start("restore", made, module=MODULE)
    with table_locked(postgres, "note", "SHARE UPDATE EXCLUSIVE"):
        eventually(lambda: waits(postgres, "ANALYZE"), "all is restored")
        code, _, err = interrupted(process)
    assert code == 130
    assert "had been filled" in err
    assert "nothing is half done" not in err
    assert state(postgres) == wanted


WAITING = {"create": "LOCK TABLE", "restore": "SELECT EXISTS (SELECT FROM ONLY"}


@pytest.mark.parametrize("verb", WAITING)
def test_wait_for_a_lock_ends_in_time_and_by_an_interrupt(postgres: Place, server: Server, verb: str) -> None:
    furnish(postgres, 5)
    arguments = {"create": ["create"], "restore": ["restore", done(postgres, "create")["path"], "--force"]}[verb]
    before = files(postgres.folder / "backups")
    with table_locked(postgres, "note", "ACCESS EXCLUSIVE"):
        for limit in ("100ms", "0s"):
            told = refused(postgres, 1, *arguments, "--lock-timeout", limit)
            assert "public.note is locked by pid" in told
        process = postgres.start(*arguments, "--lock-timeout", "60s", module=MODULE)
        eventually(lambda: waits(postgres, WAITING[verb]), "it waits")
        assert interrupted(process) == (130, "", "error: interrupted\nhint:  nothing is half done; run it again\n")
        assert waits(postgres, "") == []
    assert files(postgres.folder / "backups") == before
    assert scratches(server) == []


LOCKED = {
    "view": "ALTER VIEW noted RENAME TO other",
    "materialized view": "DROP MATERIALIZED VIEW kept",
    "partitioned table": "LOCK TABLE ONLY parted IN ACCESS EXCLUSIVE MODE",
}


@pytest.mark.parametrize("what", LOCKED)
def test_dump_waits_no_longer_for_what_holds_no_rows(postgres: Place, what: str) -> None:
    """pg_dump reads the definition of a view without any limit of its own."""
    furnish(postgres, 5)
    rows(postgres, "CREATE MATERIALIZED VIEW kept AS SELECT 1", "CREATE TABLE parted (id int) PARTITION BY RANGE (id)")
    with closing(psycopg2.connect(postgres.dsn)) as holder, holder.cursor() as cursor:
        cursor.execute(LOCKED[what])
        told = refused(postgres, 1, "create", "--lock-timeout", "300ms")
        assert f"pg_dump waited 0.3 s for a lock, held by pid {holder.info.backend_pid}" in told
        assert waits(postgres, "") == []
    assert files(postgres.folder / "backups") == []
    done(postgres, "create")


def test_killed_backup_leaves_no_session_that_waits(postgres: Place) -> None:
    furnish(postgres, 5)
    with table_locked(postgres, "note", "ACCESS EXCLUSIVE"):
        process = postgres.start("create", "--lock-timeout", "1h", module=MODULE)
        eventually(lambda: waits(postgres, "LOCK TABLE"), "it waits")
        process.kill()
        process.communicate()
        eventually(lambda: not waits(postgres, ""), "its session ends")


def test_fingerprint_that_the_server_ends_is_told_in_two_lines(postgres: Place) -> None:
    rows(postgres, "CREATE TABLE long AS SELECT repeat('x', 10000000) FROM generate_series(1, 30)")
    process = postgres.start("create", module=MODULE)
    ended = (  # when pg_dump has taken its snapshot, and so does not fail for it
        "SELECT pg_cancel_backend(a.pid) FROM pg_stat_activity AS a JOIN pg_stat_activity AS b USING (datname) WHERE "
        f"datname = '{name_of(postgres)}' AND a.query LIKE '%hashtextextended%ONLY public.long%' AND a.state = 'active' "
        "AND b.query LIKE 'COPY%'"
    )
    eventually(lambda: rows(at(postgres, "postgres"), ended), "it looks at the rows")
    out, err = process.communicate(timeout=30)
    text = two_lines(subprocess.CompletedProcess(process.args, process.returncode, out, err), 1)
    assert "canceling statement due to user request" in text
    assert files(postgres.folder / "backups") == []


# A server that stops


@pytest.fixture(scope="module")
def node(server: Server) -> Iterator[Node]:
    with new_node(server, "-c fsync=off -c autovacuum=off") as node:
        node.make()
        node.start()
        yield node


@pytest.fixture
def there(node: Node, tmp_path: Path) -> Iterator[Place]:
    admin = Place("postgres", node.dsn(), tmp_path)
    rows(admin, "CREATE DATABASE there")
    yield Place("postgres", node.dsn("there"), tmp_path)
    rows(admin, "DROP DATABASE there WITH (FORCE)")


STOPPED = {
    ("dumping", "immediate"): True,
    ("dumping", "kill"): False,
    ("test restore", "immediate"): False,
    ("test restore", "kill"): False,
    ("restoring", "immediate"): False,
    ("restoring", "kill"): True,
}


@pytest.mark.parametrize(("moment", "how"), some(STOPPED))
def test_server_that_stops_changes_nothing(there: Place, node: Node, moment: str, how: str) -> None:
    arguments, is_there = MOMENTS[moment]
    furnish(there, 60_000)
    done(there, "create")
    rows(there, "INSERT INTO note (part, text) VALUES (1, 'late')")
    before, held = files(there.folder / "backups"), state(there)
    process = there.start(*arguments, module=MODULE)
    eventually(lambda: is_there(there), moment)
    if how == "kill":
        node.kill()
    else:
        node.stop(how)
    out, err = process.communicate(timeout=30)
    node.start()
    ran = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    two_lines(ran, 1, tried_again=True)
    assert files(there.folder / "backups") == before
    assert state(there) == held
    assert kept_of_node(there) == []
    done(there, *arguments)
    assert rows(there, SCRATCH) == []
    assert (state(there) == held) == (arguments[0] == "create")


def kept_of_node(place: Place) -> list[tuple[Any, ...]]:
    return rows(place, f"SELECT datname FROM pg_database WHERE datname LIKE '{name_of(place)}\\_old\\_%'")


# A disk that is full


def test_backup_that_a_disk_does_not_take_leaves_nothing(postgres: Place, server: Server, tmp_path: Path) -> None:
    furnish(postgres, 20_000)
    for kilobytes in (4, 200, 800):
        with small_disk(tmp_path / f"disk{kilobytes}", kilobytes * 1000) as folder:
            text = refused(postgres, 1, "create", "--to", str(folder))
            assert "No space left on device" in text
            assert "make room" in text
            assert files(folder) == []
    # Nor is anything overwritten of which there is no backup.
    done(postgres, "create")
    held = state(postgres)
    with small_disk(tmp_path / "disk", 200_000) as folder:
        text = refused(
            postgres,
            1,
            "restore",
            str(next((tmp_path / "backups").glob("*.dump"))),
            "--force",
            env={"WHATSAPP_DATABASE_BACKUP_DIR": str(folder)},
        )
        assert "No space left on device" in text
        assert files(folder) == []
    assert state(postgres) == held
    assert scratches(server) == []


def test_restore_that_the_servers_disk_does_not_take_changes_nothing(
    postgres: Place, server: Server, tmp_path: Path
) -> None:
    rows(
        postgres,
        TABLES,
        FILL.format(100),
        NOTE,
        "CREATE TABLE large AS SELECT repeat('x', 1000) AS text FROM generate_series(1, 60000)",
    )
    made = done(postgres, "create")["path"]
    with (
        new_node(server, "-c fsync=off -c wal_level=minimal -c max_wal_senders=0 -c max_wal_size=4MB") as node,
        small_disk(node.data, 90_000_000),
    ):
        give(node.data, node.user)
        node.data.chmod(0o700)
        node.make()
        node.start()
        there = Place("postgres", node.dsn("there"), tmp_path / "there")
        there.folder.mkdir()
        rows(at(there, "postgres"), "CREATE DATABASE there")
        furnish(there, 100)
        held = dump_text(there)
        text = refused(there, 1, "restore", made, "--force")
        assert "No space left on device" in text
        assert "make room" in text
        assert dump_text(there) == held
        assert rows(there, SCRATCH) == []
        assert kept_of_node(there) == []
        assert rows(there, FILL.format(1) + " RETURNING id") == [(101,)]
        rows(at(there, "postgres"), "CREATE DATABASE empty")
        refused(there, 1, "restore", made, "--to", "empty")
        assert (
            rows(at(there, "empty"), "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace") == []
        )
        node.stop("immediate")


# A pooler


@pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed")
@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_restore_through_a_pooler_is_refused_before_any_work(postgres: Place, server: Server, mode: str) -> None:
    furnish(postgres, 5)
    made = done(postgres, "create")["path"]
    before, held = files(postgres.folder / "backups"), state(postgres)
    with bouncer(server, mode) as folder:
        pooled = at(postgres, name_of(postgres), host=str(folder), port=str(PORT))
        assert "goes through a pooler" in refused(pooled, 2, "restore", made, "--force")
        assert "goes through a pooler" in refused(pooled, 2, "create", "--test-restore")
        optional = at(pooled, name_of(postgres), options="-c work_mem=8MB")
        assert "without a pooler" in refused(optional, 1, "restore", made, "--force")
    assert files(postgres.folder / "backups") == before
    assert state(postgres) == held
    assert scratches(server) == kept_of(server, name_of(postgres)) == []
