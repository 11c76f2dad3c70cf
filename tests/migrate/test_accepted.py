"""Drift that the settings accept counts as none, and they accept exactly what they list."""

from __future__ import annotations

import json
from typing import Any

import peewee as pw
import pytest

from tests.conftest import Place
from tests.migrate.mended import run
from whatspire_db import ConfigError, MigrationRunner, MigrationVersion, Settings

MODELS = """
import peewee
from whatspire_db import BaseModel
class Thing(BaseModel):
    name = peewee.CharField(max_length=20)
    class Meta:
        table_name = "thing"
"""


class Thing(pw.Model):
    name = pw.CharField(max_length=20)

    class Meta:
        table_name = "thing"


def drifted(place: Place) -> pw.Database:
    """Make a table whose column is longer than declared."""
    db = place.connect()
    key = "INTEGER NOT NULL" if place.is_sqlite else "serial"
    with db.connection_context():
        db.execute_sql(f"CREATE TABLE thing (id {key} PRIMARY KEY, name varchar(50) NOT NULL)")
    return db


def listed(db: pw.Database) -> list[dict[str, Any]]:
    return [drift.to_json() for drift in MigrationRunner(db, [Thing]).verify_schema().drift]


def test_accepted_drift_is_in_sync_and_stamped(place: Place) -> None:
    db = drifted(place)
    accepted = listed(db)
    with db.bind_ctx([MigrationVersion]):
        MigrationVersion.create_table()
    runner = MigrationRunner(db, [Thing], accepted_drift=accepted)
    changes = runner.verify_schema()
    assert not changes
    assert [drift.to_json() for drift in changes.accepted] == accepted
    assert runner.up().drift == ()
    assert runner.check().in_sync
    standing = runner._stamping.standing()
    assert runner._stamping.drift(standing) == ()
    assert MigrationRunner(db, [Thing]).check().in_sync is False


class Mixed(pw.Model):
    code = pw.CharField(max_length=20)
    number = pw.IntegerField()

    class Meta:
        table_name = "mixed"


def mixed(place: Place, kinds: set[str]) -> tuple[pw.Database, MigrationRunner]:
    """Make a table whose columns drifted, and a runner that accepts all drift of `code` of some kinds."""
    db = place.connect()
    with db.connection_context():
        db.execute_sql(
            f"CREATE TABLE mixed (id {'INTEGER NOT NULL' if place.is_sqlite else 'serial'} PRIMARY KEY, "
            "code varchar(50) DEFAULT 'none', number bigint NOT NULL)"
        )
        db.execute_sql("INSERT INTO mixed (code, number) VALUES ('007', 1)")
        found = MigrationRunner(db, [Mixed]).verify_schema().drift
    accepted = [drift.to_json() for drift in found if drift.name == "code" and drift.kind in kinds]
    return db, MigrationRunner(db, [Mixed], accepted_drift=accepted)


@pytest.mark.parametrize("kinds", [{"column_default"}, {"column_type", "column_default", "column_null"}])
def test_what_mends_other_drift_leaves_what_is_accepted(place: Place, kinds: set[str]) -> None:
    db, runner = mixed(place, kinds)
    with db.connection_context():
        accepted, mending = runner.verify_schema().accepted, runner.mending()
    assert len(accepted) == len(kinds)
    assert run(place, str(mending)) == ""
    with db.connection_context():
        changes = runner.verify_schema()
        assert changes.accepted == accepted
        # SQLite makes a column as it is declared or as it is.
        left = [drift.place for drift in changes.drift]
        assert left == (["mixed.code", "mixed.code", "mixed.number"] if place.is_sqlite and len(kinds) == 1 else [])
        assert db.execute_sql("SELECT code, number FROM mixed").fetchall() == [("007", 1)]
    if left:
        (fix,) = mending.fixes
        assert "drift of code is accepted, and other drift of it is not" in fix.sql[0]


def test_a_constraint_whose_lack_is_accepted_is_not_made_along(sqlite: Place) -> None:
    class Checked(Mixed):
        class Meta:
            table_name = "mixed"
            constraints = [pw.Check("number < 1")]

    db, _ = mixed(sqlite, set())
    with db.connection_context():
        accepted = [d.to_json() for d in MigrationRunner(db, [Checked]).verify_schema().drift if d.kind == "check"]
        (fix,) = MigrationRunner(db, [Checked], accepted_drift=accepted).mending().fixes
    assert "it would end what is accepted" in fix.sql[0]


@pytest.mark.parametrize("name", ["kind", "table", "name", "declared", "live"])
def test_each_value_of_what_is_accepted_counts(place: Place, name: str) -> None:
    db = drifted(place)
    (entry,) = listed(db)
    runner = MigrationRunner(db, [Thing], accepted_drift=[entry | {name: "other"}])
    changes = runner.verify_schema()
    assert [drift.to_json() for drift in changes.drift] == [entry]
    assert len(changes.outdated) == 1


def test_accepted_drift_that_goes_further_is_told(place: Place) -> None:
    db = drifted(place)
    accepted = listed(db)
    MigrationRunner(db, [Thing], accepted_drift=accepted).up()
    with db.connection_context():
        if place.is_sqlite:
            db.execute_sql("DROP TABLE thing")
            db.execute_sql("CREATE TABLE thing (id INTEGER NOT NULL PRIMARY KEY, name varchar(60) NOT NULL)")
        else:
            db.execute_sql("ALTER TABLE thing ALTER name TYPE varchar(60)")
    (drift,) = MigrationRunner(db, [Thing], accepted_drift=accepted).up().drift
    assert "60" in str(drift.live)


@pytest.mark.soak
def test_the_commands_show_what_is_accepted_and_exit_0(place: Place) -> None:
    db = drifted(place)
    accepted = json.dumps(listed(db))
    (place.folder / "accepting.py").write_text(MODELS)
    environ = {
        "WHATSAPP_DATABASE_ACCEPTED_DRIFT": accepted,
        "WHATSAPP_DATABASE_MODELS": "accepting",
        "WHATSAPP_DATABASE_ONLY_MODELS": "true",
    }
    place.environment.update(environ)
    up, verify, plan = (place.run(verb) for verb in ("up", "verify", "plan"))
    assert (up.returncode, verify.returncode, plan.returncode) == (0, 0, 0), (up, verify, plan)
    assert "drift" not in up.stderr
    assert "accepted drift column_type thing.name" in verify.stdout
    (entry,) = json.loads(place.run("verify", "--json").stdout)["drift"]
    assert entry == json.loads(accepted)[0] | {"accepted": True}
    checked = place.run("--json", module="whatspire_db.health")
    assert (checked.returncode, json.loads(checked.stdout)["in_sync"]) == (0, True)


@pytest.mark.parametrize(
    "text",
    ["{}", "[1]", '[{"kind": "table"}]', "not json", '[{"kind":1,"table":"","name":"","declared":null,"live":null}]'],
)
def test_what_is_no_list_of_differences_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="accepted_drift"):
        Settings(accepted_drift=text)  # type: ignore[arg-type]


def test_settings_take_what_verify_shows(sqlite: Place) -> None:
    db = drifted(sqlite)
    shown = json.dumps([entry | {"accepted": True} for entry in listed(db)])
    settings = Settings(dsn=sqlite.dsn, accepted_drift=shown)  # type: ignore[arg-type]
    assert [entry[:3] for entry in settings.accepted_drift] == [("column_type", "thing", "name")]
