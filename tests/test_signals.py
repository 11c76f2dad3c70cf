"""SIGINT and SIGTERM end every command, whatever it waits for, in two lines and with their own exit code."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from tests.conftest import Place, Server
from tests.servers import eventually, up
from whatspire_db import MigrationRunner
from whatspire_db.cli.migrate import main

pytestmark = pytest.mark.sampled

NUMBERS = [signal.SIGINT, signal.SIGTERM]
DID = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
WAITED = " while it waited"  # where Python was within a call into C for longer than a command waits for it
LONG = ("--lock-timeout", "90s")
SLOW_INDEX = """
import peewee
from whatspire_db import BaseModel
class Big(BaseModel):
    text = peewee.TextField()
Big.add_index(Big.index(peewee.fn.slowly(Big.text), name="big_slowly"))
"""
STARTING = """
import os, signal, sys
class Signalled:
    def find_spec(self, name, path=None, target=None):
        if name == "peewee":
            os.kill(os.getpid(), int(os.environ["NUMBER"]))
sys.meta_path.insert(0, Signalled())
"""
STUBBORN = """
import pathlib, time
try:
    pathlib.Path("begun").touch()
    time.sleep(60)
finally:
    pathlib.Path("clears up").touch()
    time.sleep(60)
"""


def ended(process: subprocess.Popen[str], number: int) -> tuple[str, str, str]:
    """Send a signal to a command and return its output, its fact and its hint, once it ended with the signal's code."""
    process.send_signal(number)
    try:
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 128 + number, err
    fact, hint = err.splitlines()[-2:]
    assert fact.startswith("error: "), err
    assert hint.startswith("hint:  "), err
    assert "Traceback" not in err
    return out, fact.removeprefix("error: "), hint


def has_open(process: subprocess.Popen[str], path: str) -> bool:
    """Tell whether a process has a file open."""
    folder = Path(f"/proc/{process.pid}/fd")
    try:
        return any(os.path.realpath(link) == path for link in folder.iterdir())
    except OSError:
        return False


def is_waiting_for_the_lock(place: Place, process: subprocess.Popen[str]) -> Callable[[], bool]:
    if place.is_sqlite:
        return lambda: has_open(process, place.dsn)
    # Not by an earlier one of these questions, whose session may take a moment to end.
    asked = (
        "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%pg_try_advisory_lock%' "
        "AND query NOT LIKE '%pg_stat_activity%' AND pid <> ALL (%s)"
    )
    known = [pid for (pid,) in ask(place, "SELECT pid FROM pg_stat_activity")]
    return lambda: bool(ask(place, asked.replace("%s", f"ARRAY{known}::int[]")))


def ask(place: Place, question: str) -> list[tuple[Any, ...]]:
    with closing(psycopg2.connect(place.dsn)) as connection, connection.cursor() as cursor:
        cursor.execute(question)
        return cursor.fetchall()


@pytest.mark.soak
@pytest.mark.parametrize("number", NUMBERS)
def test_wait_for_the_migration_lock_is_ended(place: Place, number: int) -> None:
    with place.connect() as db, MigrationRunner(db).engine.lock(1):
        process = place.start("up", "--json", *LONG)
        eventually(is_waiting_for_the_lock(place, process), "it waits")
        out, fact, _ = ended(process, number)
    assert fact.removesuffix(WAITED) == DID[number]
    document = json.loads(out)
    assert document.keys() == {"error", "hint", "exit"}
    assert (document["error"], document["exit"]) == (fact, 128 + number)
    assert place.run("up", "-q").returncode == 0


@pytest.mark.parametrize("verb", ["plan", "verify", "status"])
def test_wait_that_no_handler_of_python_can_end_is_ended(sqlite: Place, verb: str) -> None:
    """SQLite waits for another process's exclusive lock in C, and hears of nothing meanwhile."""
    up(sqlite)
    os.unlink(f"{sqlite.dsn}-stamps")
    with closing(sqlite3.connect(sqlite.dsn, isolation_level=None)) as holder:
        holder.execute("PRAGMA journal_mode = DELETE")
        holder.execute("BEGIN EXCLUSIVE")
        process = sqlite.start(verb, "--json", *LONG)
        eventually(lambda: has_open(process, sqlite.dsn), "it waits")
        out, fact, _ = ended(process, signal.SIGTERM)
        holder.execute("ROLLBACK")
    assert fact.startswith("terminated")
    assert json.loads(out)["exit"] == 143


def test_health_that_is_ended_while_it_waits_in_c_is_not_healthy(sqlite: Place) -> None:
    """The exit code of a container's check is 0 or 1, whatever happened."""
    up(sqlite)
    with closing(sqlite3.connect(sqlite.dsn, isolation_level=None)) as holder:
        holder.execute("PRAGMA journal_mode = DELETE")
        holder.execute("BEGIN EXCLUSIVE")
        process = sqlite.start("--json", module="whatspire_db.health", env={"WHATSAPP_DATABASE_HEALTH_TIMEOUT": "60s"})
        eventually(lambda: has_open(process, sqlite.dsn), "it waits")
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
        holder.execute("ROLLBACK")
    assert (process.returncode, err.splitlines()[0].removesuffix(WAITED)) == (1, "error: terminated")
    assert (json.loads(out)["exit"], json.loads(out)["healthy"]) == (1, False)


COMMANDS = [
    ("whatspire_db.migrate", "up"),
    ("whatspire_db.migrate", "version"),
    ("whatspire_db.backup", "create"),
    ("whatspire_db.health",),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command))
@pytest.mark.parametrize("number", NUMBERS)
def test_connecting_to_a_server_that_never_answers_is_ended(
    postgres: Place, command: tuple[str, ...], number: int
) -> None:
    module, *verb = command
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dsn = f"host=127.0.0.1 port={listener.getsockname()[1]} user=u dbname=d connect_timeout=60 sslmode=disable"
        process = postgres.start(*verb, "--dsn", dsn, module=module)
        taken, _ = listener.accept()
        with taken:
            assert taken.recv(8)
            if module.endswith("health"):  # whose exit code is 1 whatever happened
                process.send_signal(number)
                _, err = process.communicate(timeout=20)
                assert (process.returncode, err.splitlines()[0].removesuffix(WAITED)) == (1, f"error: {DID[number]}")
            else:
                assert ended(process, number)[1].removesuffix(WAITED) == DID[number]
    assert not list((postgres.folder).rglob(".*.partial"))


@pytest.mark.soak
@pytest.mark.parametrize("number", NUMBERS)
def test_index_build_is_ended_and_the_next_run_finishes_it(postgres: Place, number: int) -> None:
    (postgres.folder / "big.py").write_text(SLOW_INDEX)
    with closing(psycopg2.connect(postgres.dsn)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "CREATE FUNCTION slowly(t text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS "
            "$$ BEGIN PERFORM pg_sleep(current_setting('app.pause', true)::float); RETURN t; END $$"
        )
        cursor.execute("CREATE TABLE big (id serial PRIMARY KEY, text text NOT NULL)")
        cursor.execute("INSERT INTO big (text) SELECT i::text FROM generate_series(1, 200) AS i")
        connection.commit()
    only = {"WHATSAPP_DATABASE_MIGRATION_ONLINE_ROWS": "10"}
    slow = f"{postgres.dsn} app.pause=0.3"
    process = postgres.start("up", "--models", "big", "--dsn", slow, env=only)
    building = "FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
    eventually(lambda: ask(postgres, f"SELECT 1 {building}"), "it builds")
    _, fact, hint = ended(process, number)
    eventually(lambda: not ask(postgres, f"SELECT 1 {building}"), "the server has ended the build")
    assert "create index big.big_slowly" in fact
    invalid = ask(postgres, "SELECT 1 FROM pg_index WHERE indexrelid = to_regclass('big_slowly') AND NOT indisvalid")
    assert ('"big_slowly" is left INVALID' in fact) == bool(invalid)
    assert "run it again" in hint
    fast = f"{postgres.dsn} app.pause=0"
    assert postgres.run("up", "--models", "big", "--dsn", fast, env=only).returncode == 0
    assert postgres.run("verify", "--models", "big", "--dsn", fast).returncode == 0


def test_second_signal_ends_what_clears_up_at_once(sqlite: Place) -> None:
    (sqlite.folder / "stubborn.py").write_text(STUBBORN)
    process = sqlite.start("plan", "--models", "stubborn")
    eventually((sqlite.folder / "begun").exists, "it imports the models")
    process.send_signal(signal.SIGTERM)
    eventually((sqlite.folder / "clears up").exists, "it clears up")
    eventually(lambda: not alive_after(process, signal.SIGINT), "it ends", 10)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 143, err
    assert err.splitlines()[0].startswith("error: terminated")
    assert len(err.splitlines()) == 2


def alive_after(process: subprocess.Popen[str], number: int) -> bool:
    if process.poll() is None:
        process.send_signal(number)
    return process.poll() is None


ENDING = """
import atexit, os, signal, sys
from whatspire_db import signals
number = int(sys.argv[1])
atexit.register(os.kill, os.getpid(), number)
class Late:
    def __del__(self, kill=os.kill, process=os.getpid(), number=number):
        kill(process, number)
late = Late()
with signals.heard(print):
    pass
signals.end(5)
"""


@pytest.mark.parametrize("number", NUMBERS)
def test_signal_during_the_shutdown_of_python_does_not_change_the_exit_code(number: int) -> None:
    done = subprocess.run([sys.executable, "-c", ENDING, str(int(number))], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (5, "", "")


WHILE_A_TEXT_RUNS = """
import os, sys
from whatspire_db import signals
with signals.heard(print):
    try:
        exec("os.kill(os.getpid(), int(sys.argv[1]))")
    except KeyboardInterrupt:
        pass
signals.end(5)
"""


@pytest.mark.parametrize("number", NUMBERS)
def test_signal_while_python_runs_a_text_does_not_change_the_exit_code(tmp_path: Path, number: int) -> None:
    (tmp_path / "ending.py").write_text(WHILE_A_TEXT_RUNS)
    command = [sys.executable, "-m", "ending", str(int(number))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (5, "", "")


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("module", ["whatspire_db.migrate", "whatspire_db.backup", "whatspire_db.health"])
def test_command_that_still_imports_its_modules_is_ended(sqlite: Place, module: str, number: int) -> None:
    (sqlite.folder / "sitecustomize.py").write_text(STARTING)
    variables = {"NUMBER": str(int(number)), "PYTHONPATH": str(sqlite.folder)}
    process = sqlite.start("--json", module=module, env=variables)
    out, err = process.communicate(timeout=20)
    assert process.returncode == (1 if module.endswith("health") else 128 + number)
    assert err == f"error: {DID[number]}\nhint:  nothing is half done; run it again\n"
    assert (json.loads(out)["error"], json.loads(out)["exit"]) == (DID[number], process.returncode)


def test_signal_that_the_caller_ignores_stays_ignored(sqlite: Place) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    with sqlite.connect() as db, MigrationRunner(db).engine.lock(1):
        process = sqlite.start("up", *LONG, preexec_fn=ignore)
        eventually(is_waiting_for_the_lock(sqlite, process), "it waits")
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")


AS_FIRST = ("unshare", "--pid", "--fork", "--kill-child")


def test_first_process_of_a_container_is_ended(sqlite: Place) -> None:
    """PID 1 ignores a signal without a handler."""
    if subprocess.run([*AS_FIRST, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a namespace of processes takes root")
    with sqlite.connect() as db, MigrationRunner(db).engine.lock(1):
        command = [*AS_FIRST, sys.executable, "-m", "whatspire_db.migrate", *LONG]
        process = subprocess.Popen(
            command,
            env=sqlite.variables(),
            cwd=sqlite.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        eventually(lambda: children.read_text().split(), "it runs")
        inside = int(children.read_text().split()[0])
        eventually(
            lambda: any(os.path.realpath(p) == sqlite.dsn for p in Path(f"/proc/{inside}/fd").iterdir()), "waits"
        )
        os.kill(inside, signal.SIGTERM)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 143
    assert err.startswith("error: terminated\nhint: ")


def test_command_leaves_the_handlers_of_its_process_as_they_were(
    sqlite: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(sqlite.folder)
    for name, value in sqlite.variables().items():
        monkeypatch.setenv(name, value)
    before = [signal.getsignal(number) for number in NUMBERS]
    assert main(["version"]) == 0
    assert [signal.getsignal(number) for number in NUMBERS] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_library_installs_no_handler(place: Place, server: Server) -> None:
    code = (
        "import signal; before = [signal.getsignal(n) for n in (2, 15)]\n"
        "from whatspire_db import MigrationRunner, connect\n"
        "MigrationRunner(connect()).up()\n"
        "assert [signal.getsignal(n) for n in (2, 15)] == before"
    )
    subprocess.run([sys.executable, "-c", code], env=place.variables(), cwd=place.folder, check=True)
