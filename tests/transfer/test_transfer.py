"""Rows of SQLite into PostgreSQL and what both hold then, compared by the proof and by the tests themselves."""

from __future__ import annotations

import pytest

from tests import gorm
from tests.conftest import Place
from tests.transfer.rows import contents
from whatspire_db import MigrationRunner, Session, TransferRefused
from whatspire_db.models.service import SERVICE_MODELS
from whatspire_db.transfer import transfer


def go_database(place: Place) -> None:
    db = place.connect()
    with db.connection_context():
        gorm.create(place, db)
        MigrationRunner(db).up()


@pytest.fixture
def service(sqlite: Place) -> Place:
    """The service's database, with rows of Go's and of this package's."""
    go_database(sqlite)
    db = sqlite.connect()
    with db.connection_context():
        for number in range(20):
            Session.create(name=f"tab\t {number} \\ line\n é 🦉", status="pending")
    return sqlite


ROWS = [model for model in SERVICE_MODELS if model._meta.table_name != "migration_versions"]


def test_the_services_rows_are_the_same_afterwards(service: Place, postgres: Place) -> None:
    before = contents(service, ROWS)
    report = transfer(service.dsn, postgres.dsn)
    assert contents(postgres, ROWS) == before == contents(service, ROWS)
    assert report.rows == sum(map(len, before.values())) > 0
    assert report.shortened > 0
    with pytest.raises(TransferRefused, match="the target has rows"):
        transfer(service.dsn, postgres.dsn)
    with postgres.connect().connection_context():
        assert not MigrationRunner(postgres.connect()).plan()
