"""save() writes what changed since the row was read, beside another writer of the same row."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import peewee
import pytest
from playhouse import postgres_ext
from playhouse.shortcuts import model_to_dict, update_model_from_dict

from tests.conftest import Place
from whatspire_db import AuditLog, BaseModel, Event, MigrationRunner, Session, ValueRefused, WebhookConfig
from whatspire_db.fields import JSONTextField, utcnow
from whatspire_db.models.row_state import frozen, is_changed
from whatspire_db.models.service import SERVICE_MODELS

# Abstract, so that they are tables of these tests alone.


class Author(BaseModel):
    name = peewee.TextField()
    tags = JSONTextField(default=list)

    class Meta:
        abstract = True


class Book(BaseModel):
    author = peewee.ForeignKeyField(Author, backref="books", null=True)
    title = peewee.CharField()
    pages = peewee.IntegerField(default=0)

    class Meta:
        abstract = True


class Shelf(BaseModel):
    room = peewee.TextField()
    number = peewee.IntegerField()
    label = peewee.TextField(null=True)
    height = peewee.IntegerField(default=1)

    class Meta:
        abstract = True
        primary_key = peewee.CompositeKey("room", "number")


class Reading(BaseModel):
    value = peewee.IntegerField()
    note = peewee.TextField(null=True)

    class Meta:
        abstract = True
        primary_key = False


class Blob(BaseModel):
    data = peewee.BlobField()

    class Meta:
        abstract = True


class Flags(BaseModel):
    bits = peewee.BigBitField(null=True)
    name = peewee.TextField()

    class Meta:
        abstract = True


OWN = [Author, Book, Shelf, Reading, Flags]


@pytest.fixture
def rows(db: peewee.Database) -> peewee.Database:
    """The service's tables and those above."""
    MigrationRunner(db, [*SERVICE_MODELS, *OWN]).up()
    return db


def statements(db: peewee.Database, run: Any) -> list[str]:
    """Return the statements that a function sends."""
    sent: list[str] = []
    execute = db.execute_sql

    def noting(sql: str, params: Any = None) -> Any:
        sent.append(sql)
        return execute(sql, params)

    db.execute_sql = noting  # type: ignore[method-assign]
    try:
        run()
    finally:
        del db.execute_sql  # type: ignore[method-assign]
    return sent


def stored(db: peewee.Database, table: str, *columns: str) -> Any:
    """Return columns of a table's only row, as the engine has them."""
    (row,) = db.execute_sql(f"SELECT {', '.join(columns)} FROM {table}").fetchall()
    return tuple(bytes(value) if isinstance(value, memoryview) else value for value in row)


def session(**values: Any) -> Session:
    row: Session = Session.create(**{"id": "a", "name": "old", "status": "pending", **values})
    return row


# Beside another writer


def test_save_leaves_what_another_writer_changed(rows: peewee.Database) -> None:
    session()
    row = Session.get_by_id("a")
    rows.execute_sql("UPDATE sessions SET status = 'connected', jid = 'j'")
    row.name = "new"
    assert row.save() == 1
    assert stored(rows, "sessions", "name", "status", "jid") == ("new", "connected", "j")


def test_instance_that_was_created_here_is_saved_by_its_changes_too(rows: peewee.Database) -> None:
    row = session()
    rows.execute_sql("UPDATE sessions SET status = 'connected'")
    row.name = "new"
    assert row.save() == 1
    row.jid = "j"
    rows.execute_sql("UPDATE sessions SET name = 'theirs'")
    assert row.save() == 1
    assert stored(rows, "sessions", "name", "status", "jid") == ("theirs", "connected", "j")


def test_save_without_a_change_sends_nothing(rows: peewee.Database) -> None:
    created = session()
    read = Session.get_by_id("a")
    read.name = "old"  # what it was
    for row in (created, read, Session.select(Session.name).get()):
        assert not row.is_dirty()
        assert statements(rows, lambda row=row: row.save()) == []
        assert row.save() == 0
    read.name = "new"
    assert [read.save(), read.save()] == [1, 0]


def test_rows_of_the_go_service_keep_the_columns_that_nobody_touched(place: Place, rows: peewee.Database) -> None:
    data = b'{ "b":1.50, "a":"\\u003c",  "b2":1e3 }'
    time = "2026-11-22 09:05:03.123456789+00:00"
    sign = "?" if place.is_sqlite else "%s"
    rows.execute_sql(
        "INSERT INTO events (id, type, session_id, data, timestamp, created_at) "
        f"VALUES ('e', 't', 's', {sign}, '{time}', '{time}')",
        (data if place.is_sqlite else memoryview(data),),
    )
    before = stored(rows, "events", "data", "timestamp", "created_at")
    event = Event.get_by_id("e")
    event.type = "other"
    assert event.data["a"] == "<"
    assert event.save() == 1
    assert stored(rows, "events", "data", "timestamp", "created_at") == before
    event.timestamp += timedelta(seconds=1)
    event.save()
    after = stored(rows, "events", "data", "timestamp", "created_at")
    assert after[::2] == before[::2]
    assert after[1] != before[1]


def test_empty_text_in_a_json_column_stays(rows: peewee.Database) -> None:
    rows.execute_sql(
        "INSERT INTO audit_logs (id, event_type, details, created_at) VALUES ('a', 't', '', '2026-11-22 09:05:03+00:00')"
    )
    row = AuditLog.get_by_id("a")
    assert row.details is None
    row.action = "x"
    row.save()
    assert stored(rows, "audit_logs", "details", "action") == ("", "x")
    row.details = {"n": 1}
    row.save()
    assert stored(rows, "audit_logs", "details") == ('{"n":1}',)


# Values that are changed in place


@pytest.mark.parametrize(
    ("before", "change", "text"),
    [
        ({"a": [1]}, lambda data: data["a"].append(2), '{"a":[1,2]}'),
        ({"a": 1}, lambda data: data.update(a=True), '{"a":true}'),
        ({"a": 1}, lambda data: data.update(a=1.0), '{"a":1.0}'),
        ({"a": 1, "b": 2}, lambda data: data.update(a=data.pop("a")), '{"b":2,"a":1}'),
        ([{"x": {}}], lambda data: data[0]["x"].update(y=None), '[{"x":{"y":null}}]'),
    ],
)
def test_json_that_is_changed_in_place_is_saved(rows: peewee.Database, before: Any, change: Any, text: str) -> None:
    row = Event.create(id="e", type="t", session_id="s", data=before, timestamp=utcnow())
    for event in (row, Event.get_by_id("e")):
        event.data = copy.deepcopy(before)
        event.save()
        assert event.save() == 0
        change(event.data)
        assert event.dirty_fields == [Event.data]
        assert event.save() == 1
        assert bytes(stored(rows, "events", "data")[0]).decode() == text
        assert event.save() == 0


def test_json_that_is_read_and_not_changed_is_not_written(rows: peewee.Database) -> None:
    AuditLog.create(id="a", event_type="t", details={"n": [1, 2.50, None, float("1e22")]})
    row = AuditLog.get_by_id("a")
    row.details["n"].append(3)
    row.details["n"].pop()
    row.details = copy.deepcopy(row.details)
    assert row.save() == 0


def test_deep_json_is_saved_like_any_other(rows: peewee.Database) -> None:
    deep: list[Any] = [0]
    for _ in range(600):
        deep = [deep]
    row = Event.create(id="e", type="t", session_id="s", data=deep, timestamp=utcnow())
    for event in (row, Event.get_by_id("e")):
        assert event.save() == 0
        innermost = event.data
        while innermost[0]:
            innermost = innermost[0]
        innermost.append(0)
        assert event.dirty_fields == [Event.data]
        assert event.save() == 1
    assert stored(rows, "events", "data")[0].decode() == "[" * 601 + "0,0" + "]" * 601


def test_list_that_holds_itself_is_compared(rows: peewee.Database) -> None:
    ring: list[Any] = [1, {}]
    ring[1]["ring"] = ring
    same = frozen(ring)
    assert same[1]["ring"] is same
    assert not is_changed(Event.data, same, ring)
    ring[0] = 2
    assert is_changed(Event.data, same, ring)


def test_default_list_of_a_new_instance_can_be_filled(rows: peewee.Database) -> None:
    author = Author(name="a")
    author.tags.append("x")
    author.save()
    author.tags.append("y")
    assert author.save() == 1
    assert Author.get().tags == ["x", "y"]


class Document(BaseModel):
    numbers = postgres_ext.ArrayField(peewee.IntegerField, index=False)
    body = postgres_ext.BinaryJSONField(index=False)
    plain = postgres_ext.JSONField(null=True)

    class Meta:
        abstract = True


@pytest.mark.parametrize(
    ("name", "change", "after"),
    [
        ("numbers", lambda row: row.numbers.append(2), [1, 2]),
        ("body", lambda row: row.body["n"].append(2), {"n": [1, 2]}),
        ("plain", lambda row: row.plain.clear(), {}),
    ],
)
def test_values_that_the_driver_gives_as_lists_and_dicts(postgres: Place, name: str, change: Any, after: Any) -> None:
    db = postgres.connect()
    with db.connection_context(), db.bind_ctx([Document]):
        db.create_tables([Document])
        created = Document.create(numbers=[1], body={"n": [1]}, plain={"x": 1})
        read = Document.get()
        for row in (read, created):
            assert row.save() == 0
            change(row)
            assert [field.name for field in row.dirty_fields] == [name]
        assert [read.save(), read.save()] == [1, 0]
        assert getattr(Document.get(), name) == after
    db.close_all()


# Instances that are not, or no longer, those of a row


def test_new_instance_with_a_key_of_its_own_is_inserted_by_one_statement(rows: peewee.Database) -> None:
    row = Session(name="n", status="pending")
    assert [sql[:6] for sql in statements(rows, row.save)] == ["INSERT"]
    assert row.save() == 0


def test_new_instance_with_the_key_of_a_row_writes_what_was_given(rows: peewee.Database) -> None:
    created = session(jid="j")
    assert Session(id="a", name="new").save() == 1
    assert Session(id="b", name="b", status="pending").save() == 1
    row = Session.get_by_id("a")
    assert (row.name, row.status, row.jid, row.created_at) == ("new", "pending", "j", created.created_at)
    assert Session(id="a").save() == 1
    assert Session.get_by_id("a").created_at == created.created_at
    assert Session.select().count() == 2


def test_row_that_is_gone_is_not_inserted_again(rows: peewee.Database) -> None:
    session()
    row = Session.get_by_id("a")
    Session.delete().execute()
    row.name = "new"
    assert row.save() == 0
    assert Session.select().count() == 0


def test_instance_that_was_deleted_can_be_saved_again(rows: peewee.Database) -> None:
    row = session()
    assert row.delete_instance() == 1
    assert row.save() == 1
    assert Session.get_by_id("a").name == "old"


def test_instance_with_another_key_is_another_row(rows: peewee.Database) -> None:
    session(jid="j")
    row = Session.get_by_id("a")
    row.id = "b"
    assert row.save() == 1
    assert row.save() == 0
    assert sorted(Session.select(Session.id, Session.name, Session.jid).tuples()) == [
        ("a", "old", "j"),
        ("b", "old", "j"),
    ]
    author = Author.create(name="x")
    author.id = None
    assert author.save() == 1
    assert Author.select().count() == 2


def test_force_insert_and_only_write_what_they_are_told(rows: peewee.Database) -> None:
    row = session()
    rows.execute_sql("UPDATE sessions SET status = 'connected', jid = 'theirs'")
    row.name = "new"
    row.jid = "ours"
    assert row.save(only=[Session.status, "name"]) == 1
    assert stored(rows, "sessions", "name", "status", "jid") == ("new", "pending", "theirs")
    assert row.dirty_fields == [Session.jid]
    assert row.save(only=row.dirty_fields) == 1
    assert row.save(only=row.dirty_fields) == 0
    row.id = "b"
    assert row.save(force_insert=True) == 1
    with pytest.raises(peewee.IntegrityError):
        row.save(force_insert=True)


def test_only_on_a_new_instance_keeps_its_key(rows: peewee.Database) -> None:
    row = Session(name="n", status="pending", jid="j")
    assert row.save(only=[Session.name, Session.status]) == 1
    assert Session.get_by_id(row.id).jid is None
    assert row.dirty_fields == [Session.jid]


def test_columns_that_were_not_selected_are_left_alone(rows: peewee.Database) -> None:
    session(jid="j")
    row = Session.select(Session.id, Session.name).get()
    row.status = "connected"
    assert row.save() == 1
    assert stored(rows, "sessions", "name", "status", "jid") == ("old", "connected", "j")


def test_row_that_was_read_without_its_key_is_refused(rows: peewee.Database) -> None:
    Book.create(title="a")
    Shelf.create(room="r", number=1)
    read: list[tuple[Any, str, Any]] = [
        (Book.select(Book.pages).get(), "pages", 5),
        (Shelf.select(Shelf.room, Shelf.height).get(), "height", 5),
    ]
    for one, column, value in read:
        assert one.save() == 0
        setattr(one, column, value)
        for write in (one.save, one.delete_instance):
            with pytest.raises(ValueRefused, match="was read without its key"):
                write()
    assert (Book.get().pages, Shelf.get().height) == (0, 1)


def test_bytes_can_be_pickled_and_copied(postgres: Place) -> None:
    with postgres.connect() as db, db.bind_ctx([Blob], bind_refs=False, bind_backrefs=False):
        db.create_tables([Blob])
        Blob.create(data=b"\0x")
        for copied in (copy.copy, copy.deepcopy, _pickled):
            assert bytes(copied(Blob.get()).data) == b"\0x"


def test_expression_is_written_once(rows: peewee.Database) -> None:
    book = Book.create(title="t")
    book.pages = Book.pages + 1
    assert [book.save(), book.save()] == [1, 0]
    book.title = "u"
    book.save()
    assert stored(rows, "book", "title", "pages") == ("u", 1)


# Keys and references


def test_references_by_object_and_by_key(rows: peewee.Database) -> None:
    one, two = Author.create(name="1"), Author.create(name="2")
    book = Book.create(title="t", author=one)
    assert book.save() == 0
    book.author = one.id
    assert book.save() == 0
    book.author = two
    assert [book.save(), book.save()] == [1, 0]
    book.author_id = one.id
    assert book.save() == 1
    assert Book.get().author == one
    unsaved = Author(name="3")
    book.author = unsaved
    unsaved.save()
    assert book.save() == 1
    assert Book.get().author_id == unsaved.id


def test_composite_keys(rows: peewee.Database) -> None:
    Shelf.create(room="r", number=1, label="l")
    shelf = Shelf.get()
    assert shelf.save() == 0
    rows.execute_sql("UPDATE shelf SET label = 'theirs'")
    shelf.height = 2
    assert shelf.save() == 1
    assert stored(rows, "shelf", "label", "height") == ("theirs", 2)
    shelf.number = 2
    assert shelf.save() == 1
    assert Shelf.select().count() == 2


def test_row_without_a_key_is_refused_where_it_would_be_doubled(rows: peewee.Database) -> None:
    Reading.create(value=1)
    row = Reading.get()
    assert row.save() == 0
    row.value = 2
    with pytest.raises(ValueRefused, match="reading .* no primary key"):
        row.save()
    assert row.save(force_insert=True) == 1
    assert Reading.select().count() == 2


def test_bits_that_are_looked_at_are_not_written(rows: peewee.Database) -> None:
    flags = Flags.create(name="n")
    for row in (flags, Flags.get()):
        assert not row.bits.is_set(3)
        assert row.save() == 0
    flags.bits.set_bit(3)
    assert flags.save() == 1
    assert Flags.get().bits.is_set(3)


def test_blocks_of_the_models_own_database_say_how_they_end(rows: peewee.Database) -> None:
    author, is_new = Author.get_or_create(name="a")
    assert is_new
    assert Author.get_or_create(name="a") == (author, False)
    own = Author._meta.database
    assert own is not rows  # but what stands for it
    for block in (own.atomic(), own.transaction()):
        with block as entered:
            author.name = "b"
            assert author.save() == 1
            entered.rollback()
        assert author.save() == 1
        assert Author.get().name == "b"
        Author.update(name="a").execute()
        author = Author.get()
    with own.atomic(), own.savepoint() as inner:
        author.name = "c"
        author.save()
        inner.rollback()
    assert author.save() == 1


# All the ways of reading


def test_instances_of_every_query_know_what_they_read(rows: peewee.Database) -> None:
    author = Author.create(name="a", tags=["x"])
    Book.create(title="t", author=author)
    other = Author.alias()
    found = [
        Author.get(),
        Author.get_or_create(name="a")[0],
        Author.raw("SELECT * FROM author").get(),
        other.select().get(),
        (Author.select() | Author.select()).get(),
        Book.select(Book, Author).join(Author).get().author,
        Book.select(Book, other).join(other, on=(Book.author == other.id)).get().author,
        Author.select(Author, Book).join(Book).get(),
        Author.select().prefetch(Book)[0],
        Book.select().prefetch(Author)[0].author,
        Book.get().author,
        Author.update(name="a").returning(Author).execute()[0],
        Author.select().objects().get(),
    ]
    for number, row in enumerate(found):
        assert row.dirty_fields == [], number
        assert row.save() == 0
        row.tags.append("y")
        assert [field.name for field in row.dirty_fields] == ["tags"]
        rows.execute_sql("UPDATE author SET name = 'theirs'")
        assert row.save() == 1
        assert stored(rows, "author", "name", "tags") == ("theirs", '["x","y"]')
        rows.execute_sql("""UPDATE author SET name = 'a', tags = '["x"]'""")
    assert Book.select(Book, Author).join(Author).get().save() == 0


def test_instances_of_bulk_statements_know_what_they_wrote(rows: peewee.Database) -> None:
    made = [Session(name=str(n), status="pending") for n in range(3)]
    Session.bulk_create(made, batch_size=2)
    assert [row.save() for row in made] == [0, 0, 0]
    for row in made:
        row.jid, row.name = "j", "new"
    assert Session.bulk_update(made, [Session.jid]) == 3
    rows.execute_sql("UPDATE sessions SET jid = 'theirs'")
    assert [field.name for field in made[0].dirty_fields] == ["name"]
    made[0].save()
    assert Session.get_by_id(made[0].id).jid == "theirs"


def test_model_made_of_a_dict_writes_what_differs(rows: peewee.Database) -> None:
    session()
    row = Session.get_by_id("a")
    rows.execute_sql("UPDATE sessions SET status = 'connected'")
    update_model_from_dict(row, {**model_to_dict(row), "name": "new"})
    assert row.save() == 1
    assert stored(rows, "sessions", "name", "status") == ("new", "connected")


def _pickled(row: Any) -> Any:
    return pickle.loads(pickle.dumps(row))  # noqa: S301  # its own


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, _pickled, Event.clone])
def test_copies_are_saved_apart(rows: peewee.Database, copied: Any) -> None:
    Event.create(id="e", type="t", session_id="s", data={"n": 1}, timestamp=utcnow())
    row = Event.get_by_id("e")
    other = copied(row)
    assert other == row
    assert other.save() == 0
    other.data = {"n": 2}
    other.type = "u"
    assert (row.data, row.type) == ({"n": 1}, "t")
    rows.execute_sql("UPDATE events SET session_id = 'theirs'")
    assert [other.save(), row.save()] == [1, 0]
    assert stored(rows, "events", "type", "session_id") == ("u", "theirs")


def test_subclass_that_sets_a_column_on_each_save(rows: peewee.Database) -> None:
    class Stamped(WebhookConfig):
        def save(self, *args: Any, **kwargs: Any) -> int:
            self.updated_at = utcnow()
            return super().save(*args, **kwargs)

        class Meta:
            abstract = True
            table_name = "webhook_configs"

    row = Stamped.create(id="w", session_id="s")
    rows.execute_sql("UPDATE webhook_configs SET url = 'theirs'")
    assert row.save() == 1
    assert stored(rows, "webhook_configs", "url") == ("theirs",)


# Transactions


class _Stop(Exception):
    pass


@contextmanager
def rolled_back(db: peewee.Database) -> Iterator[None]:
    """Run the body in a transaction, or a savepoint of one, that an exception ends."""
    with suppress(_Stop), db.atomic():
        yield
        raise _Stop


def test_changes_whose_transaction_was_rolled_back_are_written_by_the_next_save(rows: peewee.Database) -> None:
    session()
    row = Session.get_by_id("a")
    row.name = "new"
    with rolled_back(rows):
        assert [row.save(), row.save()] == [1, 0]
    assert row.dirty_fields == [Session.name]
    row.status = "connected"
    assert row.save() == 1
    assert stored(rows, "sessions", "name", "status") == ("new", "connected")


def test_value_of_before_a_rollback_is_what_is_compared_with(rows: peewee.Database) -> None:
    row = session()
    with rows.atomic() as transaction:
        row.name = "new"
        row.save()
        transaction.rollback()
    row.name = "old"
    assert row.save() == 0
    row.name = "new"
    assert row.save() == 1


def test_insert_that_was_rolled_back_is_done_again(rows: peewee.Database) -> None:
    with rolled_back(rows):
        row, author = session(), Author.create(name="x")
    assert [row.save(), author.save()] == [1, 1]
    assert (Session.get_by_id("a").name, Author.get_by_id(author.id).name) == ("old", "x")


def test_savepoint_that_was_rolled_back_takes_only_its_own_saves_back(rows: peewee.Database) -> None:
    row = session()
    with rows.atomic():
        row.name = "new"
        row.save()
        with rolled_back(rows):
            row.jid = "j"
            row.save()
        assert row.dirty_fields == [Session.jid]
    rows.execute_sql("UPDATE sessions SET name = 'theirs'")
    assert row.save() == 1
    assert stored(rows, "sessions", "name", "jid") == ("theirs", "j")


def test_committed_changes_are_not_written_again(rows: peewee.Database) -> None:
    row = session()
    with rows.atomic():
        row.name = "new"
        row.save()
    rows.execute_sql("UPDATE sessions SET name = 'theirs'")
    with pytest.raises(_Stop), rows.atomic():
        raise _Stop
    row.jid = "j"
    assert row.save() == 1
    assert stored(rows, "sessions", "name", "jid") == ("theirs", "j")


def test_delete_that_was_rolled_back_leaves_an_instance_of_a_row(rows: peewee.Database) -> None:
    row = session()
    with rolled_back(rows):
        row.delete_instance()
    rows.execute_sql("UPDATE sessions SET status = 'connected'")
    row.name = "new"
    assert row.save() == 1
    assert stored(rows, "sessions", "name", "status") == ("new", "connected")


def test_transaction_that_is_ended_by_hand_loses_no_change(rows: peewee.Database) -> None:
    session()
    row = Session.get_by_id("a")
    with rows.manual_commit():
        rows.begin()
        row.name = "new"
        other = Session(id="b", name="b", status="pending")
        assert [row.save(), other.save()] == [1, 1]
        rows.rollback()
    assert [row.save(), other.save()] == [1, 1]
    assert sorted(Session.select(Session.id, Session.name).tuples()) == [("a", "new"), ("b", "b")]


def test_plain_peewee_database_is_observed_too(sqlite: Place) -> None:
    db = peewee.SqliteDatabase(sqlite.dsn)
    with db.bind_ctx([Author]), db.connection_context():
        db.create_tables([Author])
        author = Author.create(name="a")
        author.name = "b"
        with rolled_back(db):
            author.save()
        assert [author.save(), author.save()] == [1, 0]
        assert Author.get().name == "b"
        with db.atomic(), rolled_back(db):
            author.name = "c"
            author.save()
        assert author.save() == 1
        assert Author.get().name == "c"


def test_a_model_without_a_key_has_an_id_of_its_own(place: Place) -> None:
    class Shop(Author):
        class Meta:
            abstract = True

    db = place.connect()
    with db.connection_context(), db.bind_ctx([Author, Shop]):
        db.create_tables([Author, Shop])
        assert [Author.create(name="a").id, Author.create(name="b").id, Shop.create(name="c").id] == [1, 2, 1]
        for model in (Author, Shop):
            key = model._meta.primary_key
            assert (type(key), key.model, key.name, key.column_name) == (peewee.AutoField, model, "id", "id")
            assert model._meta.sorted_field_names == ["id", "name", "tags"]
