"""A SQLite database in a folder that does not exist: a wrong setting, in every command, and nothing is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Place
from whatspire_db import ConfigError, Settings, backup, connect

pytestmark = pytest.mark.sampled

DSNS = [
    "missing/x.db",
    "data/missing/x.db",
    "./missing/x.db",
    "file:missing/x.db",
    "{}/missing/data/x.db",
    "{}/data/x.db",
]
COMMANDS = {
    "migrate": ["up", "plan", "verify", "status", "version"],
    "health": ["--no-schema", "--quick-check"],
    "backup": ["create"],
}


@pytest.mark.parametrize("dsn", DSNS)
def test_a_missing_folder_is_a_wrong_setting(sqlite: Place, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sqlite.folder)
    settings = Settings(dsn=dsn.format(sqlite.folder))
    for read_only in (False, True):
        with pytest.raises(ConfigError, match="names .*x.db, but the folder .* does not exist"):
            connect(settings, bind=False, read_only=read_only)
    for read_only in (False, True):
        with pytest.raises(ConfigError, match="^WHATSAPP_DATABASE_REPLICA_DSN names"):
            connect(Settings(dsn=":memory:", replica_dsn=settings.dsn), bind=False, read_only=read_only)
    with pytest.raises(ConfigError, match="does not exist"):
        backup.create(settings)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(("module", "argument"), [(m, a) for m, arguments in COMMANDS.items() for a in arguments])
def test_every_command_refuses_it(sqlite: Place, module: str, argument: str) -> None:
    done = sqlite.run(argument, "--dsn", "missing/x.db", module=f"whatspire_db.{module}")
    assert done.returncode == (1 if module == "health" else 2), done.stderr
    assert "--dsn names missing/x.db, but the folder missing does not exist" in done.stderr
    done = sqlite.run(argument, env={"WHATSAPP_DATABASE_DSN": "missing/x.db"}, module=f"whatspire_db.{module}")
    assert "WHATSAPP_DATABASE_DSN names missing/x.db" in done.stderr
    assert list(sqlite.folder.iterdir()) == []


def test_restore_makes_the_folder_of_to_but_not_that_of_the_dsn(sqlite: Place) -> None:
    assert sqlite.run().returncode == 0
    made = backup.create(Settings(dsn=sqlite.dsn), sqlite.folder / "backups")
    with pytest.raises(ConfigError, match="the folder .*/missing does not exist"):
        backup.restore(made, Settings(dsn=f"{sqlite.folder}/missing/x.db"))
    assert not (sqlite.folder / "missing").exists()
    backup.restore(made, Settings(dsn=sqlite.dsn), to=f"{sqlite.folder}/missing/x.db")
    assert (sqlite.folder / "missing" / "x.db").exists()


@pytest.mark.soak
def test_data_alone_is_made(sqlite: Place) -> None:
    for dsn in ("data/w.db", "./data/../data/v.db", "file:data/u.db"):
        done = sqlite.run("--dsn", dsn)
        assert done.returncode == (2 if ".." in dsn and not (sqlite.folder / "data").exists() else 0), done.stderr
    assert (sqlite.folder / "data" / "w.db").exists()


def test_looking_does_not_make_data_either(sqlite: Place) -> None:
    assert sqlite.run("version", "--dsn", "data/w.db").stdout == "0\n"
    assert list(sqlite.folder.iterdir()) == []


@pytest.mark.parametrize(("word", "number"), [("full", 1), ("2", 2), ("incremental", 2), ("none", 0)])
@pytest.mark.parametrize("journal", ["", "&_journal_mode=DELETE"])
def test_auto_vacuum_counts_for_a_new_file(sqlite: Place, word: str, number: int, journal: str) -> None:
    db = connect(Settings(dsn=f"{sqlite.dsn}?_auto_vacuum={word}{journal}"), bind=False)
    with db.connection_context():
        db.execute_sql("CREATE TABLE t (a)")
        assert db.execute_sql("PRAGMA auto_vacuum").fetchone() == (number,)
        assert db.execute_sql("PRAGMA journal_mode").fetchone() == ("delete" if journal else "wal",)


@pytest.mark.parametrize("verb", COMMANDS["migrate"])
def test_link_into_a_missing_folder_is_a_wrong_setting(sqlite: Place, verb: str) -> None:
    link = sqlite.folder / "link.db"
    link.symlink_to("missing/x.db")
    done = sqlite.run(verb, "--dsn", "link.db")
    assert done.returncode == 2, done.stderr
    assert f"--dsn names link.db, but the folder {sqlite.folder.resolve()}/missing does not exist" in done.stderr
    assert list(sqlite.folder.iterdir()) == [link]
