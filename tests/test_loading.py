"""Which models a command is about, and in which database: never in another one than they are bound to."""

from __future__ import annotations

import sqlite3
import subprocess
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import peewee
import pytest

from tests.conftest import Place
from whatspire_db import ConfigError, MigrationRunner, ModelError, NotConnected, Session, Settings, backup, connect
from whatspire_db.connection.own_database import dsn_of, is_same, target_of
from whatspire_db.dsn.postgres import parse_postgres
from whatspire_db.health import check_health
from whatspire_db.models import base as models

pytestmark = pytest.mark.sampled

UNBOUND = "import peewee\nclass Book(peewee.Model):\n    title = peewee.CharField()\n"
COMMANDS = [("whatspire_db.migrate", "up"), ("whatspire_db.migrate", "plan"), ("whatspire_db.health", "-v")]


def bound(place: Place, database: str) -> None:
    """Write a module blog whose model User is bound to a database, as Python."""
    (place.folder / "blog.py").write_text(
        f"import peewee, whatspire_db\ndb = {database}\n"
        "class User(peewee.Model):\n    name = peewee.CharField()\n    class Meta:\n        database = db\n"
    )


def run(
    place: Place, *arguments: str, dsn: str = "", driver: str = "", **options: Any
) -> subprocess.CompletedProcess[str]:
    given = {"WHATSAPP_DATABASE_DSN": dsn, "WHATSAPP_DATABASE_DRIVER": driver}
    return place.run(*arguments, env=given | options.pop("env", {}), **options)


def tables(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


# Only models.


@pytest.mark.soak
@pytest.mark.parametrize("way", ["option", "variable"])
def test_only_models_leaves_the_services_tables_out(place: Place, way: str) -> None:
    (place.folder / "blog.py").write_text(UNBOUND)
    options = ["--models", "blog", "--only-models"] if way == "option" else []
    env = {} if options else {"WHATSAPP_DATABASE_MODELS": "blog", "WHATSAPP_DATABASE_ONLY_MODELS": "true"}
    done = place.run(*options, env=env)
    assert done.returncode == 0, done.stderr
    with place.connect() as db:
        assert sorted(db.get_tables()) == ["book", "migration_versions", "whatspire_db_runs"]
    assert place.run(*options, module="whatspire_db.health", env=env).returncode == 0
    assert place.run(module="whatspire_db.health").returncode == 1  # without it the service's tables are missing


@pytest.mark.parametrize(("module", "argument"), COMMANDS)
def test_only_models_without_models_is_a_wrong_setting(sqlite: Place, module: str, argument: str) -> None:
    code = 1 if module.endswith("health") else 2
    done = sqlite.run(argument, "--only-models", module=module)
    assert (done.returncode, done.stderr.count("--only-models is given without models")) == (code, 1)
    done = sqlite.run(argument, module=module, env={"WHATSAPP_DATABASE_ONLY_MODELS": "true"})
    assert (done.returncode, "WHATSAPP_DATABASE_ONLY_MODELS is given without" in done.stderr) == (code, True)
    assert list(sqlite.folder.iterdir()) == []


def test_a_backup_takes_the_whole_database_whatever_only_models_says(sqlite: Place) -> None:
    assert sqlite.run().returncode == 0
    env = {"WHATSAPP_DATABASE_ONLY_MODELS": "true"}
    done = sqlite.run("create", module="whatspire_db.backup", env=env)
    assert "in 10 tables" in done.stdout, done.stderr


def test_only_models_counts_for_calls_too(place: Place) -> None:
    db = connect(Settings(place.driver, place.dsn, only_models=True), bind=False)
    own = type("Own", (models.BaseModel,), {"name": peewee.TextField()})
    try:
        runner = MigrationRunner(db)
        assert own in runner.models
        assert Session not in runner.models
    finally:
        own._meta.abstract = True
        db.close_all()
    every = models.registered_models
    assert {Session} <= set(every())


# A database of the models' own.


@pytest.mark.parametrize(
    "database",
    [
        "peewee.SqliteDatabase('blog.db')",
        "peewee.SqliteDatabase('file:blog.db', uri=True)",
        "peewee.DatabaseProxy(); db.initialize(peewee.SqliteDatabase('blog.db'))",
        "whatspire_db.connect(dsn='blog.db', driver='sqlite')",
    ],
)
def test_models_with_a_file_of_their_own_are_migrated_there(sqlite: Place, database: str) -> None:
    bound(sqlite, database)
    done = run(sqlite, "--models", "blog", "--only-models")
    assert done.returncode == 0, done.stderr
    assert str(sqlite.folder / "blog.db") in done.stdout
    assert "user" in tables(sqlite.folder / "blog.db")
    assert not (sqlite.folder / "data").exists()
    done = run(sqlite, "--models", "blog", "--only-models", module="whatspire_db.health")
    assert done.returncode == 0, done.stderr
    assert str(sqlite.folder / "blog.db") in done.stdout


def test_models_with_a_postgres_database_of_their_own_are_migrated_there(postgres: Place) -> None:
    arguments = dict(parse_postgres(postgres.dsn).arguments)
    name = arguments.pop("dbname")
    bound(postgres, f"peewee.PostgresqlDatabase({name!r}, **{arguments!r})")
    done = run(postgres, "--models", "blog", "--only-models")
    assert done.returncode == 0, done.stderr
    with postgres.connect() as db:
        assert "user" in db.get_tables()
    assert not (postgres.folder / "data").exists()


@pytest.mark.parametrize(("module", "argument"), COMMANDS)
@pytest.mark.parametrize("only", [True, False])
def test_a_dsn_of_another_database_is_refused(sqlite: Place, module: str, argument: str, only: bool) -> None:
    bound(sqlite, "peewee.SqliteDatabase('blog.db')")
    options = ["--models", "blog", *(["--only-models"] if only else [])]
    done = run(sqlite, argument, *options, "--dsn", "other.db", module=module)
    assert done.returncode == (1 if module.endswith("health") else 2)
    assert "User is bound to a database of its own, " in done.stderr
    assert "blog.db, but --dsn names " in done.stderr
    assert not list(sqlite.folder.glob("*.db"))


@pytest.mark.parametrize("dsn", ["blog.db", "./blog.db", "file:blog.db", "{}/blog.db"])
def test_a_dsn_of_the_same_database_is_taken(sqlite: Place, dsn: str) -> None:
    bound(sqlite, "peewee.SqliteDatabase('blog.db')")
    done = run(sqlite, "--models", "blog", dsn=dsn.format(sqlite.folder))
    assert done.returncode == 0, done.stderr
    assert {"user", "sessions"} <= tables(sqlite.folder / "blog.db")


def test_models_with_a_database_of_their_own_beside_the_services_are_refused(sqlite: Place) -> None:
    bound(sqlite, "peewee.SqliteDatabase('blog.db')")
    done = run(sqlite, "--models", "blog")
    assert done.returncode == 2
    assert "add --only-models" in done.stderr
    assert not list(sqlite.folder.glob("**/*.db"))


@pytest.mark.parametrize(
    ("database", "words"),
    [
        ("peewee.SqliteDatabase(':memory:')", "no other process can see"),
        ("peewee.SqliteDatabase(None)", "not initialized yet"),
        ("peewee.PostgresqlDatabase(None)", "not initialized yet"),
        ("peewee.DatabaseProxy()", "not initialized yet"),
        ("peewee.SqliteDatabase('missing/x.db')", "the database of User names missing/x.db"),
        ("peewee.MySQLDatabase('blog')", "MySQLDatabase is not supported"),
    ],
)
def test_a_database_that_no_command_can_use_is_refused(sqlite: Place, database: str, words: str) -> None:
    bound(sqlite, database)
    done = run(sqlite, "--models", "blog", "--only-models")
    assert done.returncode == 2
    assert words in done.stderr
    assert not list(sqlite.folder.glob("**/*.db"))


@pytest.mark.parametrize("database", ["peewee.DatabaseProxy()", "peewee.SqliteDatabase(None)"])
def test_a_dsn_is_taken_for_models_whose_database_is_not_initialized(sqlite: Place, database: str) -> None:
    bound(sqlite, database)
    done = run(sqlite, "--models", "blog", "--only-models", dsn="blog.db")
    assert done.returncode == 0, done.stderr
    assert "user" in tables(sqlite.folder / "blog.db")


def test_models_of_two_databases_are_refused(sqlite: Place) -> None:
    bound(sqlite, "peewee.SqliteDatabase('blog.db')")
    more = (sqlite.folder / "blog.py").read_text().replace("blog.db", "shop.db").replace("User", "Item")
    (sqlite.folder / "shop.py").write_text(more)
    done = run(sqlite, "--models", "blog", "shop", "--only-models")
    assert done.returncode == 2
    assert "blog.db" in done.stderr
    assert "shop.db" in done.stderr
    assert not list(sqlite.folder.glob("*.db"))


def test_a_driver_that_the_models_do_not_have_is_refused(sqlite: Place) -> None:
    bound(sqlite, "peewee.PostgresqlDatabase('blog', password='hunter2', host='h')")
    done = run(sqlite, "--models", "blog", "--only-models", driver="sqlite")
    assert done.returncode == 2
    assert "WHATSAPP_DATABASE_DRIVER is sqlite" in done.stderr
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize(
    "db",
    [
        peewee.SqliteDatabase("a b?c#d%e~'.db"),
        peewee.SqliteDatabase("/srv/x.db"),
        peewee.SqliteDatabase("file:/srv/x.db?mode=ro", uri=True),
        peewee.PostgresqlDatabase("n", host="h", user="u", password="a 'b\\", port=5433),
        peewee.PostgresqlDatabase("postgres://u:p@h/n"),
        peewee.PostgresqlDatabase("host=h dbname=n"),
    ],
    ids=["odd path", "path", "uri", "arguments", "url", "pairs"],
)
def test_dsn_of_a_database_names_the_same_place(db: peewee.Database) -> None:
    target = target_of(db)
    settings = Settings(dsn=dsn_of(target))
    assert is_same(settings.target, target)
    assert getattr(settings.target, "arguments", None) == getattr(target, "arguments", None)
    assert getattr(settings.target, "path", None) == getattr(target, "path", None)


# Names of modules.


@pytest.mark.parametrize("name", ["blog.py", "src/blog", "postgres://me:Zq7SECRETx9@h/d", "a b"])
def test_what_is_no_modules_name_is_refused_before_anything_is_imported(sqlite: Place, name: str) -> None:
    done = sqlite.run("--models", name)
    assert done.returncode == 2
    assert "is not the name of a module" in done.stderr
    assert "Zq7SECRETx9" not in done.stderr


def test_a_dsn_in_the_error_of_a_module_is_not_repeated(sqlite: Place) -> None:
    (sqlite.folder / "blog.py").write_text("raise RuntimeError('postgres://me:Zq7SECRETx9@h/d')")
    done = sqlite.run("--models", "blog")
    assert done.returncode == 2
    assert "blog cannot be imported: RuntimeError" in done.stderr
    assert "Zq7SECRETx9" not in done.stderr


@pytest.mark.parametrize(
    ("code", "fact", "hint"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero", "correct {file}, line 1"),
        ("\ndef", "SyntaxError: invalid syntax", "correct {file}, line 2"),
        ("import nowhere.at_all", "No module named 'nowhere'", "install what {file}, line 1 imports"),
        (
            "from whatspire_db import VectorField\nVectorField(0)",
            "a vector cannot have 0 dimensions",
            "give a number from 1 to 16,000, in {file}, line 2",
        ),
    ],
    ids=["error", "syntax", "import", "model"],
)
def test_hint_for_a_module_that_fails_names_its_line(sqlite: Place, code: str, fact: str, hint: str) -> None:
    (sqlite.folder / "blog.py").write_text(code)
    done = sqlite.run("--models", "blog")
    assert done.returncode == 2
    error, told = done.stderr.splitlines()
    assert "the module blog cannot be imported" in error
    assert fact in error
    assert told.startswith("hint:  " + hint.format(file=sqlite.folder / "blog.py"))


# What a newcomer tries first.


def test_connect_takes_a_dsn(sqlite: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sqlite.folder)
    monkeypatch.delenv("WHATSAPP_DATABASE_DRIVER", raising=False)
    monkeypatch.setenv("WHATSAPP_DATABASE_MAX_OPEN_CONNS", "3")
    for db in (
        connect("app.db", bind=False),
        connect(Path("app.db"), bind=False),
        connect(dsn="app.db", bind=False),
        connect(dsn="app.db", driver="sqlite", bind=False),
    ):
        assert target_of(db) == target_of(peewee.SqliteDatabase("app.db"))
        assert db.pool_stats().max_open_connections == 3


@pytest.mark.parametrize("wrong", [{"host": "h"}, 5, b"app.db", [Settings]])
def test_connect_says_what_it_takes(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"connect\(\) takes Settings or one DSN, not a .*Settings\(dsn="):
        connect(wrong)
    with pytest.raises(ConfigError, match=r"connect\(\) got Settings, and a DSN"):
        connect(Settings(), dsn="app.db")


@pytest.mark.parametrize("given", [{"settings": ""}, {"dsn": " "}, {"driver": ""}, {"dsn": "a.db", "driver": "\n"}])
def test_connect_refuses_what_is_empty(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"connect\(\) is given an empty"):
        connect(bind=False, **given)


def test_a_model_before_connect_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.database, "obj", None)
    for use in (
        lambda: list(Session.select()),
        lambda: Session.create(name="x", status="pending"),
        lambda: Session.get_by_id("x"),
        lambda: Session.create_table(),
        lambda: models.database.connection_context().__enter__(),
        lambda: models.database.__enter__(),
    ):
        with pytest.raises(NotConnected, match=r"call connect\(\) first"):
            use()
    assert not hasattr(models.database, "execute")


@pytest.mark.parametrize("wrong", [models, "myapp.models", Session, 5])
def test_a_runner_says_that_it_takes_a_list_of_models(wrong: Any) -> None:
    db = peewee.SqliteDatabase(":memory:")
    for take in (MigrationRunner, check_health):
        with pytest.raises(ModelError, match="a list of models is needed"):
            take(db, wrong)
    with pytest.raises(ModelError, match="is not a peewee model"):
        MigrationRunner(db, [Settings])  # type: ignore[list-item]


def test_backups_take_what_connect_takes_and_what_it_returns(sqlite: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sqlite.folder)
    monkeypatch.delenv("WHATSAPP_DATABASE_DRIVER", raising=False)
    db = connect("app.db", bind=False)
    MigrationRunner(db, [Session]).up()
    for number, given in enumerate((db, "app.db", Path("app.db"), Settings(dsn="app.db"))):
        name = f"n{number}"
        made = backup.create(given, "b", name=name, lock_timeout="5s")
        assert backup.find("latest", "b", given, name=name) == made
        assert backup.verify(made.file, given) == made
        restored = backup.restore(str(made.file), given, "b", force=True, lock_timeout=timedelta(seconds=5))
        assert restored.backup == made
        assert backup.prune(given, "b", backup.Policy(last=1), name=name, lock_timeout=5)


@pytest.mark.parametrize("wrong", [{"dsn": "app.db"}, 5, b"app.db", peewee.SqliteDatabase("app.db")])
def test_backups_say_what_they_take(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"backup.create\(\) takes Settings or one DSN, not a .*Settings\(dsn="):
        backup.create(wrong)
    with pytest.raises(ConfigError, match=r"backup.prune\(\) takes Settings or one DSN"):
        backup.prune(wrong, policy=backup.Policy(last=1))
    with pytest.raises(ConfigError, match=r"backup.restore\(\) takes Settings or one DSN"):
        backup.restore("latest", wrong)


def test_a_runner_says_that_it_takes_what_connect_returns() -> None:
    for wrong in ("app.db", Settings()):
        with pytest.raises(ModelError, match=r"give what connect\(\) returns"):
            MigrationRunner(wrong)  # type: ignore[arg-type]
