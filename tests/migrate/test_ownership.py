"""Tables of another program under names of ours are left alone; ours are extended, whatever they lost or kept."""

from __future__ import annotations

import peewee
import pytest

from tests.conftest import Place
from whatspire_db import BaseModel, MigrationRefused, MigrationRunner, Session
from whatspire_db.models.service import SERVICE_MODELS

pytestmark = pytest.mark.sampled

SESSION = "name text, jid text, status text, created_at timestamptz, updated_at timestamptz"
FOREIGN = {
    "another key type": f"CREATE TABLE sessions (id integer PRIMARY KEY, {SESSION})",
    "a key of uuids": f"CREATE TABLE sessions (id numeric PRIMARY KEY, {SESSION})",
    "another key column": f"CREATE TABLE sessions (sid text PRIMARY KEY, id text, {SESSION})",
    "a longer key": f"CREATE TABLE sessions (id text, {SESSION}, PRIMARY KEY (id, name))",
    "another type of the column that is to be the key": f"CREATE TABLE sessions (id numeric NOT NULL UNIQUE, {SESSION})",
    "few of our columns": "CREATE TABLE sessions (id varchar(40) PRIMARY KEY, payload text)",
    "few of our columns, no key": "CREATE TABLE sessions (id text, name text, payload text, expires bigint)",
}
OURS = {
    "a lost key": f"CREATE TABLE sessions (id text NOT NULL, {SESSION})",
    "a shorter type of key": f"CREATE TABLE sessions (id varchar(40) PRIMARY KEY, {SESSION})",
    "leftover columns": f"CREATE TABLE sessions (id text PRIMARY KEY, {SESSION}, a text, b text, c text, d text, e text, f text, g text)",
    "half of the columns and a leftover": "CREATE TABLE sessions (id text PRIMARY KEY, name text, status text, pushname text)",
    "few columns and no others": "CREATE TABLE sessions (id text PRIMARY KEY, name text)",
}


def columns(db: peewee.Database) -> set[str]:
    return {column.name for column in db.get_columns("sessions")}


@pytest.mark.parametrize("title", FOREIGN)
def test_another_programs_table_is_refused_and_nothing_is_applied(db: peewee.Database, title: str) -> None:
    db.execute_sql(FOREIGN[title])
    before = columns(db)
    with pytest.raises(MigrationRefused, match="table sessions seems to belong to another program: it") as refused:
        MigrationRunner(db).up()
    assert [(r.kind, r.table) for r in refused.value.plan.refused] == [("table", "sessions")]
    assert db.get_tables() == ["sessions"]
    assert columns(db) == before
    assert not db.get_indexes("sessions") or len(db.get_indexes("sessions")) == 1


HISTORIES = {
    "no version": ["CREATE TABLE migration_versions (id integer PRIMARY KEY, migration text, batch integer)"],
    "a text for a version": [
        "CREATE TABLE migration_versions (version varchar(40) PRIMARY KEY, dirty boolean)",
        "INSERT INTO migration_versions (version) VALUES ('Zq7SECRETx9')",
    ],
}


@pytest.mark.soak
@pytest.mark.parametrize("title", HISTORIES)
def test_another_programs_history_is_refused_in_every_command(place: Place, title: str) -> None:
    with place.connect() as db:
        for statement in HISTORIES[title]:
            db.execute_sql(statement)
    program = "table migration_versions seems to belong to another program"
    for verb, code in {"up": 4, "plan": 4, "status": 1, "version": 1, "verify": 4}.items():
        for options in ([], ["--json"]):
            done = place.run(verb, *options)
            said = done.stdout + done.stderr
            assert done.returncode == code, said
            assert program in said or verb == "verify"
            assert "Zq7SECRETx9" not in said
    done = place.run(module="whatspire_db.health")
    assert "missing table sessions" in done.stderr
    with place.connect() as db:
        assert db.get_tables() == ["migration_versions"]


@pytest.mark.parametrize("title", OURS)
def test_own_tables_are_extended(db: peewee.Database, title: str) -> None:
    db.execute_sql(OURS[title])
    report = MigrationRunner(db).up()
    assert set(Session._meta.columns) <= columns(db)
    assert report.version


def test_with_nothing_to_add_another_key_is_drift(db: peewee.Database) -> None:
    MigrationRunner(db).up()
    db.execute_sql("DROP TABLE sessions")
    db.execute_sql(f"CREATE TABLE sessions (id integer PRIMARY KEY, {SESSION})")
    for column in ("status", "jid"):
        db.execute_sql(f"CREATE INDEX idx_sessions_{column} ON sessions ({column})")
    if isinstance(db, peewee.PostgresqlDatabase):
        check = next(str(c.sql) for c in Session._meta.constraints if "CHECK" in str(c.sql))
        db.execute_sql(f"ALTER TABLE sessions ADD {check}")
    report = MigrationRunner(db).up()
    assert report.applied == ()
    assert "column_type" in {drift.kind for drift in report.drift}


def test_only_what_stands_in_the_way_is_named_and_the_others_rows_stay(place: Place, db: peewee.Database) -> None:
    db.execute_sql("CREATE TABLE events (id integer PRIMARY KEY, title text)")
    db.execute_sql("INSERT INTO events VALUES (1, 'x')")
    done = place.run()
    assert done.returncode == 4
    assert "table events seems to belong to another program: its key id is integer, and text is declared" in done.stderr
    assert "WHATSAPP_DATABASE_ONLY_MODELS" in done.stderr
    db.execute_sql("INSERT INTO events VALUES (2, 'y')")
    assert db.execute_sql("SELECT count(*) FROM events").fetchone() == (2,)


def test_tables_of_a_users_own_models_are_guarded_alike(db: peewee.Database) -> None:
    class User(peewee.Model):
        id = peewee.BigAutoField()
        name = peewee.TextField(null=True)
        mail = peewee.TextField(null=True)

    db.execute_sql('CREATE TABLE "user" (id integer PRIMARY KEY, name text)')
    MigrationRunner(db, [User]).up()  # a smaller integer is the same kind of key
    assert {c.name for c in db.get_columns("user")} == {"id", "name", "mail"}
    db.execute_sql('DROP TABLE "user"')
    db.execute_sql('CREATE TABLE "user" (id text PRIMARY KEY, name text)')
    with pytest.raises(MigrationRefused, match="its key id is text"):
        MigrationRunner(db, [User]).up()


def test_a_foreign_table_of_the_history_is_refused(db: peewee.Database) -> None:
    db.execute_sql("CREATE TABLE migration_versions (version varchar(191) PRIMARY KEY, executed_at timestamp)")
    with pytest.raises(MigrationRefused, match="table migration_versions seems to belong"):
        MigrationRunner(db, SERVICE_MODELS).up()
    assert db.get_tables() == ["migration_versions"]
    assert issubclass(Session, BaseModel)
