"""The public API as users call it; `nox -s types` checks it with Peewee's own stubs. It is not run."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from typing_extensions import assert_type

from whatspire_db import (
    ApiKey,
    BaseModel,
    Event,
    MigrationRunner,
    PoolStats,
    Session,
    Settings,
    VectorField,
    bulk_insert,
    connect,
    readable,
)
from whatspire_db.fields import FlagField, InstantField, Int64Field, JSONTextField, TextField


class Customer(BaseModel):
    name = TextField()
    note = TextField(null=True)
    vip = FlagField(default=False)
    visits = Int64Field(default=0)
    seen_at = InstantField(null=True)
    tags = JSONTextField(null=True)
    face = VectorField(128, index="hnsw")
    voice = VectorField(64, "l2", null=True)


def reading() -> None:
    session = Session.get_by_id("a")
    assert_type(session, Session)
    assert_type(session.id, str)
    assert_type(session.created_at, datetime)
    assert_type(session.jid, str | None)
    assert_type(Session.created_at, InstantField[datetime])
    assert_type(Session.get_or_none(Session.status == "connected"), Session | None)
    for each in Session.select().where(Session.created_at > datetime.now()).order_by(Session.created_at.desc()):
        assert_type(each, Session)
        assert_type(each.name, str)
    assert_type(ApiKey.get().is_active, bool)
    assert_type(Event.get().data, Any)


def own_models(customer: Customer) -> None:
    assert_type(customer.note, str | None)
    assert_type(customer.vip, bool)
    assert_type(customer.visits, int)
    assert_type(customer.seen_at, datetime | None)
    customer.note = None
    customer.name = None  # type: ignore[assignment]
    customer.save()


def vectors(customer: Customer) -> None:
    assert_type(customer.face, list[float])
    assert_type(customer.voice, list[float] | None)
    for row in Customer.nearest(Customer.face, customer.face, k=3, where=Customer.vip == True, exact=True):  # noqa: E712
        assert_type(row, Customer)
    assert_type(bulk_insert(Customer, [{"face": [1.0] * 128}], progress=True), int)


def connecting() -> None:
    db = connect(Settings(driver="sqlite", dsn="data/whatspire.db"))
    with db, db.atomic():
        Session.create(id="a", name="b", status="connected")
    assert_type(db.pool_stats(), PoolStats)
    for row in readable(Session.select()):
        assert_type(row, Any)
    report = MigrationRunner(db).up()
    assert_type(report.version, int)
    plan = MigrationRunner(db).undo_plan()
    assert_type(plan.runs, tuple[int, ...])
    undone = MigrationRunner(db, before_changes=lambda: "a file").undo(plan.version, with_data=True)
    assert_type(undone.version, int)
    assert_type(undone.backup, str | None)
