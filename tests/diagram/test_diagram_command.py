"""whatspire-db diagram and verify --html, as users call them."""

from __future__ import annotations

import json
import os
import resource
import stat
import subprocess
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import peewee
import pytest
from peewee import sqlite3

from tests.conftest import PASSWORD, Place, Server
from tests.migrate.test_command_line import fails
from whatspire_db.diagram.drawing import SUFFIXES
from whatspire_db.diagram.text import escaped
from whatspire_db.diagram.writing import write_whole
from whatspire_db.dsn.postgres import parse_postgres
from whatspire_db.errors import ConfigError
from whatspire_db.transfer.fence import put_up

pytestmark = pytest.mark.sampled

SHOP = """
import peewee as pw

class Author(pw.Model):
    name = pw.TextField()

class Book(pw.Model):
    author = pw.ForeignKeyField(Author)
    title = pw.TextField(index=True)
"""


def draw(place: Place, *arguments: str) -> subprocess.CompletedProcess[str]:
    return place.run("diagram", *arguments, module="whatspire_db")


@pytest.fixture
def shop(place: Place) -> Place:
    """A place beside a module with two models."""
    (place.folder / "shop.py").write_text(SHOP)
    return place


def test_models_are_drawn_without_opening_the_database(tmp_path: Path) -> None:
    for driver, dsn in (("sqlite", "nowhere/a.db"), ("postgres", "host=/nowhere dbname=shop user=u")):
        place = Place(driver, dsn, tmp_path)
        done = draw(place, "--keys")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("erDiagram\n")
        assert "%% drawn from: the models alone, the database was not opened\n" in done.stdout
        assert "sessions ||..o{ events" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.soak
def test_database_that_cannot_be_reached_is_an_error_and_never_left_out(shop: Place, tmp_path: Path) -> None:
    nowhere = "host=/nowhere dbname=shop user=u" if shop.driver == "postgres" else str(tmp_path / "no.db")
    place = Place(shop.driver, nowhere, tmp_path)
    fails(draw(place, "--live"), 1, "no.db holds no database" if shop.is_sqlite else "/nowhere")
    if not shop.is_sqlite:
        fails(draw(place, "--compare"), 1, "/nowhere")
    assert not Path(tmp_path / "no.db").exists()


@pytest.mark.soak
def test_live_draws_the_database_and_with_models_both(shop: Place) -> None:
    assert shop.run("--models", "shop", "--only-models").returncode == 0
    live = draw(shop, "--live", "--json")
    document = json.loads(live.stdout)
    assert (document["driver"], document["database"]) == (shop.driver, shop.named)
    assert document["sources"] == "the database alone"
    assert {table["table"] for table in document["tables"]} == {"author", "book", "migration_versions"}
    assert "differences" not in document
    both = json.loads(draw(shop, "--live", "--models", "shop", "--only-models", "--json").stdout)
    assert both["sources"] == "the models and the database"
    assert both["differences"] == []
    compared = json.loads(draw(shop, "--compare", "--json").stdout)
    states = {difference["table"]: difference["state"] for difference in compared["differences"]}
    assert states["sessions"] == "pending"
    assert states["book"] == "extra"


@pytest.mark.soak
def test_both_sources_of_a_database_that_is_not_there_yet(sqlite: Place) -> None:
    done = draw(sqlite, "--compare")
    assert "%% differences: 9 pending\n" in done.stdout
    assert done.returncode == 0
    assert not Path(sqlite.dsn).exists()


@pytest.mark.soak
@pytest.mark.parametrize(("suffix", "format_"), SUFFIXES.items())
def test_suffix_of_the_file_chooses_the_format(sqlite: Place, suffix: str, format_: str) -> None:
    done = draw(sqlite, "--output", f"s{suffix}")
    assert done.returncode == 0, done.stderr
    assert f"database: sqlite {sqlite.dsn}\n" in done.stdout
    assert f"written: s{suffix} ({format_}, 9 tables, 7 references (7 implied by names))\n" in done.stdout
    begins = {"mermaid": "erDiagram\n", "html": "<!DOCTYPE html>\n", "svg": "<svg ", "dbml": "// database: "}
    text = (sqlite.folder / f"s{suffix}").read_text()
    assert text.startswith(begins[format_])
    assert draw(sqlite, "--format", format_, "-q").stdout == text


@pytest.mark.soak
def test_document_has_the_text_or_names_the_file(sqlite: Place) -> None:
    document = json.loads(draw(sqlite, "--json", "--format", "dbml", "--tables", "events").stdout)
    assert document["text"].startswith("// database: sqlite")
    assert [table["table"] for table in document["tables"]] == ["events"]
    document = json.loads(draw(sqlite, "--json", "--output", "a.svg").stdout)
    assert (document["output"], document["format"]) == ("a.svg", "svg")
    assert "text" not in document


@pytest.mark.soak
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--output", "a.png"], "does not end in the suffix of a format"),
        (["--neighbours", "2"], "--neighbours is given without --tables"),
        (["--tables", "events", "--neighbours", "-1"], "--neighbours"),
        (["--tables", "nonsense"], "no table matches nonsense"),
        (["--format", "png"], "invalid choice"),
        (["--output", "no/folder/a.svg"], "no/folder/a.svg cannot be written"),
        (["--output", "a.svg/", "--format", "svg"], "a.svg/ names a folder"),
        (["--live", "--only-models"], "--only-models is given without models"),
    ],
)
def test_wrong_usage_is_refused(sqlite: Place, arguments: list[str], words: str) -> None:
    assert sqlite.run("-q").returncode == 0
    fails(draw(sqlite, *arguments), 2, words)


def test_hint_for_a_picture_without_room_is_to_make_room(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # bytes of any file
    try:
        with pytest.raises(ConfigError, match="a.svg cannot be written") as failed:
            write_whole(str(tmp_path / "a.svg"), "x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert failed.value.hint.startswith("make room")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.soak
def test_stdout_gets_utf_8_whatever_the_locale_is(sqlite: Place) -> None:
    """As a page and an XML file say that they are; a dash for the file is stdout."""
    (sqlite.folder / "shop.py").write_text(SHOP.replace("title", "prix_é"), encoding="utf-8")
    usual = ["diagram", "--models", "shop", "--only-models"]
    for format_, options in (("html", {}), ("svg", {"PYTHONIOENCODING": "latin1"})):
        locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        place = replace(sqlite, environment=locale | options)
        arguments = [*usual, "--format", format_, "--output", "-"]
        done = place.run(*arguments, module="whatspire_db", encoding="utf-8")
        assert "prix_é" in done.stdout, done.stderr
    assert not (sqlite.folder / "-").exists()


@pytest.mark.soak
def test_mermaid_that_would_not_be_drawn_is_refused(sqlite: Place) -> None:
    (sqlite.folder / "large.py").write_text(
        "import peewee as pw\nfor n in range(200):\n"
        "    globals()[f'T{n}'] = type(f'T{n}', (pw.Model,), {f'a_long_name_{i}': pw.TextField() for i in range(12)})\n"
        "    globals()[f'T{n}'].__module__ = 'large'\n"
    )
    done = draw(sqlite, "--models", "large", "--only-models")
    fails(done, 2, "200 tables has", "Mermaid draws at most 50,000", "--format html")
    assert draw(sqlite, "--models", "large", "--only-models", "--keys").returncode == 0


@pytest.mark.soak
def test_file_is_replaced_whole_and_never_through_a_link(sqlite: Place) -> None:
    target, link = sqlite.folder / "a.svg", sqlite.folder / "link.svg"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    fails(draw(sqlite, "--output", "link.svg"), 2, "it is a link, not a regular file")
    assert target.read_text() == "old"
    assert draw(sqlite, "--output", "a.svg").returncode == 0
    assert target.read_text().endswith("</svg>\n")
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    os.mkfifo(sqlite.folder / "pipe.svg")
    fails(draw(sqlite, "--output", "pipe.svg"), 2, "it is a pipe")
    assert not list(sqlite.folder.glob(".*partial"))


@pytest.mark.soak
def test_a_database_is_never_replaced_by_a_picture(sqlite: Place) -> None:
    assert sqlite.run("-q").returncode == 0
    before = Path(sqlite.dsn).read_bytes()
    fails(sqlite.run("verify", "--html", sqlite.dsn), 2, f"{sqlite.dsn} is a SQLite database")
    fails(draw(sqlite, "--live", "--format", "svg", "--output", sqlite.dsn), 2, f"{sqlite.dsn} is a SQLite database")
    assert Path(sqlite.dsn).read_bytes() == before


@pytest.mark.soak
@pytest.mark.parametrize("end", ["-wal", "-shm", "-journal"])
def test_a_file_beside_a_database_is_never_replaced_by_a_picture(sqlite: Place, end: str) -> None:
    """The newest rows may stand there alone; and what is not there yet would be taken for SQLite's own."""
    assert sqlite.run("-q").returncode == 0
    mode = "PRAGMA journal_mode = DELETE" if end == "-journal" else "PRAGMA journal_mode = WAL"
    with closing(sqlite3.connect(sqlite.dsn, isolation_level=None)) as connection:
        connection.execute(mode)
        connection.execute("CREATE TABLE newest (id integer PRIMARY KEY)")
        connection.execute("INSERT INTO newest VALUES (1)")
        fails(sqlite.run("verify", "--html", sqlite.dsn + end), 2, "part of the SQLite database whatspire.db")
        with closing(sqlite3.connect(sqlite.dsn)) as other:
            assert other.execute("SELECT id FROM newest").fetchall() == [(1,)]
    assert draw(sqlite, "--output", f"other.db{end}", "--format", "svg").returncode == 0


@pytest.mark.soak
def test_pictures_of_a_database_whose_rows_were_moved_say_so(sqlite: Place) -> None:
    assert sqlite.run("-q").returncode == 0
    db = sqlite.connect()
    assert isinstance(db, peewee.SqliteDatabase)
    with db.atomic():
        fence = put_up(db, ["sessions"], parse_postgres("host=db.example dbname=new"), datetime.now(timezone.utc))
    db.close()
    assert f"note: {fence.fact}" in draw(sqlite, "--live").stdout
    assert f"note: {fence.fact}" in draw(sqlite, "--compare", "--output", "a.svg").stdout
    assert fence.fact in (sqlite.folder / "a.svg").read_text()
    assert json.loads(draw(sqlite, "--live", "--json").stdout)["notes"] == [fence.fact]
    assert sqlite.run("verify", "--html", "v.html").returncode == 0
    assert fence.fact in (sqlite.folder / "v.html").read_text()


@pytest.mark.soak
def test_verify_html_writes_the_differences_and_keeps_its_exit_codes(sqlite: Place) -> None:
    (sqlite.folder / "shop.py").write_text(SHOP)
    usual = ["--models", "shop", "--only-models", "--html", "v.html"]
    done = sqlite.run("verify", *usual)
    assert done.returncode == 3
    assert done.stdout.splitlines()[-1] == "written: v.html"
    text = (sqlite.folder / "v.html").read_text()
    assert f"sqlite {sqlite.named}" in text
    assert "+ pending" in text
    assert sqlite.run("up", *usual[:3]).returncode == 0
    done = sqlite.run("verify", *usual, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["html"] == "v.html"
    assert "Differences: in sync" in (sqlite.folder / "v.html").read_text()
    db = sqlite.connect()
    with db.connection_context():
        db.execute_sql("DROP TABLE book")
        db.execute_sql(
            "CREATE TABLE book (id INTEGER NOT NULL PRIMARY KEY, author_id TEXT NOT NULL, title TEXT NOT NULL)"
        )
    sql = sqlite.run("verify", *usual, "--sql")
    assert sql.returncode == 4
    text = (sqlite.folder / "v.html").read_text()
    assert "≠ drift" in text
    assert "declared integer, live text" in text
    for line in sql.stdout.splitlines()[1:]:  # all but the database's name, which the page has elsewhere
        assert escaped(line) in text, line


@pytest.mark.soak
def test_verify_html_is_for_one_database(sqlite: Place) -> None:
    fails(sqlite.run("verify", "--html", "a.html", "--each-file", "*.db"), 2, "--html is for one database")
    fails(sqlite.run("plan", "--html", "a.html"), 2, "plan takes no --html")
    fails(sqlite.run("verify", "--html", "-"), 2, "- means stdout")
    assert not (sqlite.folder / "-").exists()


@pytest.mark.soak
def test_no_password_reaches_a_picture(locked: Server, postgres: Place) -> None:
    quoted = PASSWORD.replace("\\", "\\\\").replace("'", "\\'")
    place = Place("postgres", f"{postgres.dsn} user=locked password='{quoted}'", postgres.folder)
    assert place.run("verify", "--html", "v.html").returncode == 3
    assert draw(place, "--compare", "--output", "c.svg").returncode == 0
    for name in ("v.html", "c.svg"):
        text = (place.folder / name).read_text()
        assert "password" not in text
        assert "p@s" not in text
