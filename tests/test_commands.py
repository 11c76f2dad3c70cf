"""What all commands share: options that a verb uses, one JSON document, the database's name, and what the user typed."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import Place, Server
from tests.migrate.test_command_line import fails
from tests.servers import opened, up
from whatspire_db.dsn.naming import LIBPQ, describe
from whatspire_db.dsn.postgres import parse_postgres

pytestmark = pytest.mark.sampled

MIGRATE, BACKUP, HEALTH = "whatspire_db.migrate", "whatspire_db.backup", "whatspire_db.health"
VERBS = [
    *((MIGRATE, verb) for verb in ("up", "plan", "verify", "status", "version")),
    *((BACKUP, verb) for verb in ("create", "list", "verify", "restore latest", "prune --keep-last 1")),
    (HEALTH, ""),
]
BROKEN = {
    "option": (["--nonsense"], {}),
    "driver": (["--driver", "oracle"], {}),
    "setting": ([], {"WHATSAPP_DATABASE_MAX_OPEN_CONNS": "many"}),
}


def said(done: subprocess.CompletedProcess[str], code: int) -> dict[str, object]:
    """Return the document of a failure, which says on stdout what the two lines say on stderr."""
    assert done.returncode == code, done
    document = json.loads(done.stdout)
    fails(done, code)
    assert done.stderr == f"error: {document['error']}\nhint:  {document['hint']}\n"
    assert document["exit"] == code
    return dict(document)


def test_front_door_hands_on_to_every_command(place: Place) -> None:
    def door(*arguments: str) -> subprocess.CompletedProcess[str]:
        return place.run(*arguments, module="whatspire_db")

    assert door("up").returncode == 0
    for verb in ("plan", "verify", "status", "version", "migrate", "health"):
        assert door(verb, "--json").returncode == 0, verb
    shown = json.loads(door("migrate", "version", "--json").stdout)
    assert json.loads(door("version", "--json").stdout) == shown
    assert door("backup", "create", "--to", "b").returncode == 0
    assert json.loads(door("backup", "list", "--dir", "b", "--json").stdout)["backups"]
    assert door("--version").stdout.startswith("whatspire-db 0.")


@pytest.mark.soak
def test_front_door_says_what_to_type(sqlite: Place) -> None:
    for arguments, words in {
        (): "no verb is given",
        ("upp",): "did you mean up?",
        ("--dsn", "secret", "up"): "an option stands before the verb",
        ("postgres://u:secret@h/d",): "is no verb",
        ("up", "--sql"): "up takes no --sql",
        ("completion", "fish"): "invalid choice",
    }.items():
        done = sqlite.run(*arguments, module="whatspire_db")
        fails(done, 2, words)
        assert "secret" not in done.stderr
    document = json.loads(sqlite.run("upp", "--json", module="whatspire_db").stdout)
    assert document["exit"] == 2
    for arguments in (["--help"], ["help"], ["help", "up"], ["up", "--help"], ["help", "backup"], ["backup", "-h"]):
        done = sqlite.run(*arguments, module="whatspire_db")
        assert (done.returncode, done.stderr) == (0, ""), arguments
        assert done.stdout.startswith("usage: whatspire-db"), arguments


@pytest.mark.parametrize("arguments", [("help", "up"), ("--help",), ("--version",), ("data", "--help")])
def test_help_that_cannot_be_written_is_an_error(sqlite: Place, arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "whatspire_db", *arguments]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=sqlite.folder, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, "error: stdout: No space left on device")
    assert len(done.stderr.splitlines()) == 2


def test_completion_knows_every_verb_and_option(sqlite: Place) -> None:
    done = sqlite.run("completion", "bash", module="whatspire_db")
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("up", "plan", "backup", "create", "restore", "health", "--lock-timeout", "--test-restore", "--models"):
        assert word in done.stdout
    subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True)


SOME = [(MIGRATE, "up"), (BACKUP, "create"), (HEALTH, "")]


@pytest.mark.parametrize(
    ("module", "verb", "broken"),
    [*((*verb, BROKEN["option"]) for verb in VERBS), *((*verb, BROKEN[kind]) for verb in SOME for kind in BROKEN)],
)
def test_wrong_usage_is_one_document_too(
    sqlite: Place, module: str, verb: str, broken: tuple[list[str], dict[str, str]]
) -> None:
    arguments, variables = broken
    done = sqlite.run(*verb.split(), *arguments, "--json", module=module, env=variables)
    document = said(done, 1 if module == HEALTH else 2)
    assert module == HEALTH or document.keys() == {"error", "hint", "exit"}


@pytest.mark.parametrize(
    ("module", "verb"), [(module, verb) for module, verb in VERBS if verb not in ("list", "verify", "restore latest")]
)
def test_database_that_cannot_be_reached_is_one_document_that_names_it(
    place: Place, server: Server, module: str, verb: str
) -> None:
    gone = str(place.folder / "gone") if place.is_sqlite else server.of_database("gone")
    if place.is_sqlite:
        os.mkdir(gone)
    else:
        (place.folder / "backups").mkdir()
    done = place.run(*verb.split(), "--json", "--dsn", gone, module=module)
    document = said(done, 2 if done.returncode == 2 and verb.startswith("prune") else 1)
    assert "gone" in str(document["error"])


@pytest.mark.soak
def test_refused_migration_is_one_document_with_its_plan(place: Place) -> None:
    with opened(place) as db:
        db.execute_sql("CREATE TABLE sessions (id text PRIMARY KEY, status text)")
        db.execute_sql("INSERT INTO sessions VALUES ('1', 'x')")
    document = said(place.run("up", "--json"), 4)
    assert document["database"] == place.named
    assert document["refused"]


def test_models_that_print_do_not_spoil_the_document(sqlite: Place) -> None:
    (sqlite.folder / "noisy.py").write_text(
        "import peewee\nfrom whatspire_db import BaseModel\nprint('hello')\n"
        "class Note(BaseModel):\n    text = peewee.TextField()\n"
    )
    done = sqlite.run("plan", "--json", "--models", "noisy")
    assert json.loads(done.stdout)["pending"]
    assert done.stderr == "hello\n"


UNUSED = [("up", "--sql"), ("--sql", "-q"), ("status", "--sql"), ("plan", "--backup"), ("version", "--backup")]


@pytest.mark.parametrize("arguments", UNUSED, ids=" ".join)
def test_option_that_a_verb_does_not_use_is_refused(place: Place, arguments: tuple[str, ...]) -> None:
    fails(place.run(*arguments), 2, f"takes no {next(a for a in arguments if a.startswith('--'))}")
    assert not place.is_sqlite or not Path(place.dsn).exists()
    assert place.run("version").stdout == "0\n"


def test_options_are_not_abbreviated(sqlite: Place) -> None:
    fails(sqlite.run("up", "--back"), 2, "--back")
    fails(sqlite.run("create", "--test", module=BACKUP), 2, "--test")


TYPED = [
    (MIGRATE, ["--driver", "mysql"], "--driver", "WHATSAPP_DATABASE_DRIVER"),
    (MIGRATE, ["--dsn", "missing/x.db"], "--dsn", "WHATSAPP_DATABASE_DSN"),
    (MIGRATE, ["--dsn", "/dev/null"], "--dsn", "WHATSAPP_DATABASE_DSN"),
    (MIGRATE, ["--models", "nowhere"], "--models", "WHATSAPP_DATABASE_MODELS"),
    (BACKUP, ["create", "--name", "a/b"], "--name", "WHATSAPP_DATABASE_BACKUP_NAME"),
    (HEALTH, ["--dsn", "/dev/null"], "--dsn", "WHATSAPP_DATABASE_DSN"),
]


@pytest.mark.parametrize(("module", "arguments", "flag", "variable"), TYPED)
def test_error_names_the_option_that_was_typed(
    sqlite: Place, module: str, arguments: list[str], flag: str, variable: str
) -> None:
    done = sqlite.run(*arguments, module=module)
    assert done.returncode in (1, 2)
    assert flag in done.stderr
    assert variable not in done.stderr


@pytest.mark.soak
def test_every_verb_names_the_database(place: Place) -> None:
    secret = place.dsn if place.is_sqlite else f"{place.dsn} password=hunter2"
    for module, verb in [(MIGRATE, "up"), *VERBS]:
        for options in ([], ["--json"]):
            done = place.run(*verb.split(), *options, "--dsn", secret, module=module)
            assert done.returncode in (0, 4), (verb, done.stderr)
            if verb != "version" or options:
                assert all(part in done.stdout + done.stderr for part in place.named.split()), (verb, done)
            if options and done.returncode == 0:
                assert json.loads(done.stdout)["database"] == place.named
            assert "hunter2" not in done.stdout + done.stderr


@pytest.mark.soak
def test_file_is_named_in_full_and_said_to_be_new(sqlite: Place) -> None:
    (sqlite.folder / "data").mkdir()
    path = sqlite.folder / "data" / "x.db"
    done = sqlite.run("--dsn", "data/x.db")
    assert f"   database: sqlite {path}, created by this run" in done.stdout.splitlines()
    again = sqlite.run("--dsn", "data/x.db")
    assert f"   database: sqlite {path}" in again.stdout.splitlines()
    path.unlink()
    assert json.loads(sqlite.run("--dsn", "data/x.db", "--json").stdout)["created"] is True
    assert "created" not in json.loads(sqlite.run("--dsn", "data/x.db", "--json").stdout)


def test_database_that_libpq_finds_by_its_variables_is_named(postgres: Place) -> None:
    arguments = parse_postgres(postgres.dsn).arguments
    variables = {"PGDATABASE": arguments["dbname"], "PGHOST": arguments["host"]}
    done = postgres.run("status", "--dsn", "user=postgres", env=variables)
    assert f"dbname={arguments['dbname']}" in done.stdout.splitlines()[0]


EMPTY = [
    *((MIGRATE, ["up", option]) for option in ("--dsn", "--driver", "--models", "--lock-timeout", "--wait")),
    *((BACKUP, ["create", option]) for option in ("--dsn", "--driver", "--to", "--name", "--compress")),
    *((BACKUP, ["restore", "latest", option]) for option in ("--to", "--dir", "--lock-timeout")),
    (BACKUP, ["restore"]),
    (HEALTH, ["--dsn"]),
]


@pytest.mark.parametrize(("module", "arguments"), EMPTY, ids=lambda each: each if isinstance(each, str) else each[-1])
@pytest.mark.parametrize("empty", ["", " \n"])
def test_option_with_an_empty_value_is_refused(sqlite: Place, module: str, arguments: list[str], empty: str) -> None:
    without = {"WHATSAPP_DATABASE_DSN": "", "WHATSAPP_DATABASE_DRIVER": ""}
    done = sqlite.run(*arguments, empty, module=module, env=without)
    name = arguments[-1] if arguments[-1].startswith("--") else "FILE"
    fails(done, 1 if module == HEALTH else 2, name)
    assert "is given an empty value" in done.stderr
    assert os.listdir(sqlite.folder) == []


@pytest.mark.parametrize("arguments", [["--dsn", "up"], ["--lock-timeout", "5"], ["--wait", "5"]], ids=" ".join)
def test_option_that_took_a_verb_or_no_duration_makes_nothing(sqlite: Place, arguments: list[str]) -> None:
    fails(sqlite.run(*arguments, env={"WHATSAPP_DATABASE_DSN": ""}), 2, arguments[0])
    assert os.listdir(sqlite.folder) == []


def mode_of(place: Place) -> str:
    with closing(sqlite3.connect(place.dsn)) as connection:
        return str(connection.execute("PRAGMA journal_mode").fetchone()[0])


def test_run_with_nothing_to_do_keeps_the_journal_mode(sqlite: Place) -> None:
    up(sqlite)
    with closing(sqlite3.connect(sqlite.dsn)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    for stamped in (True, False):
        if not stamped:
            os.unlink(f"{sqlite.dsn}-stamps")
        for verb in ("plan", "verify", "status", "version", "up"):
            assert sqlite.run(verb).returncode == 0
            assert mode_of(sqlite) == "delete", verb
        assert sqlite.run(module=HEALTH).returncode == 0
    with opened(sqlite) as db:
        db.execute_sql("PRAGMA journal_mode = DELETE")
        db.execute_sql("DROP INDEX idx_sessions_jid")
    assert mode_of(sqlite) == "delete"
    assert sqlite.run().returncode == 0
    assert mode_of(sqlite) == "wal"


def test_new_file_gets_wal(sqlite: Place) -> None:
    assert sqlite.run().returncode == 0
    assert mode_of(sqlite) == "wal"


def test_database_that_the_dsn_leaves_to_libpq_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LIBPQ.values():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("PGUSER", raising=False)
    assert describe(parse_postgres("host=h user=app")) == "dbname=app host=h"
    assert describe(parse_postgres("service=s user=app")) == "service=s"
    monkeypatch.setenv("PGUSER", "other")
    assert describe(parse_postgres("host=h")) == "dbname=other host=h"
    assert describe(parse_postgres("host=h dbname=d")) == "host=h dbname=d"
    monkeypatch.setenv("PGDATABASE", "e")
    assert describe(parse_postgres("host=h user=app")) == "dbname=e host=h"
