"""Fields that mean the same on both engines and store what the Go service stores."""

from __future__ import annotations

import json
import re
import uuid
from datetime import datetime, timezone
from typing import Any

import peewee
from peewee import SQL, Context, Node

from .errors import ValueRefused

UTC = timezone.utc

# What the Go drivers write into SQLite: a fraction of any length, and an offset or Z.
_GO_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)?", re.ASCII)


def on_postgres(ctx: Context | None) -> bool:
    """Tell for which engine peewee renders: its own type map says so, whatever class of Database it is."""
    types = ctx.state.field_types if ctx is not None else None
    return types is not None and types.get("BLOB") == "BYTEA"


def utcnow() -> datetime:
    """Return the time now as an aware datetime in UTC."""
    return datetime.now(UTC)


def new_id() -> str:
    """Return a fresh random UUID as the Go service writes it."""
    return str(uuid.uuid4())


def format_instant(value: datetime) -> str:
    """Write an aware datetime as Go does into SQLite: UTC, and no trailing zeros in the fraction.

    Texts of this form sort as the instants do: `+` comes before `.` and before every digit.
    """
    utc = value.astimezone(UTC)
    fraction = f".{utc.microsecond:06d}".rstrip("0").rstrip(".")
    return f"{utc:%Y-%m-%d %H:%M:%S}".rjust(19, "0") + fraction + "+00:00"


def parse_instant(text: str, column: str) -> datetime:
    """Read what Go or SQLite's own functions wrote; a text without an offset is UTC.

    The part of a fraction below a microsecond is dropped.

    :raises ValueRefused: when the text is no time of that form.
    """
    match = _GO_TIME.fullmatch(text)
    if match is None:
        raise ValueRefused(f"{column} holds {text!r}, which is not a time", "write it as 2026-11-22 09:05:03.123+00:00")
    day, clock, fraction, offset = match.groups()
    micros = (fraction or "")[:6].ljust(6, "0")
    zone = "+00:00" if offset in (None, "Z") else offset
    return datetime.fromisoformat(f"{day}T{clock}.{micros}{zone}").astimezone(UTC)


class _Instant(Node):
    """A point in time that renders as the engine stores it."""

    def __init__(self, value: datetime, naive: bool) -> None:
        self.value = value.astimezone(UTC)
        self.naive = naive  # PostgreSQL's timestamp without time zone

    def __sql__(self, ctx: Context) -> Context:
        if not on_postgres(ctx):
            return ctx.value(format_instant(self.value), converter=False)
        return ctx.value(self.value.replace(tzinfo=None) if self.naive else self.value, converter=False)


class InstantField(peewee.Field):
    """A point in time: aware datetimes in, aware datetimes in UTC out.

    SQLite `datetime` (as text, in Go's form), PostgreSQL `timestamp with time zone`.
    A naive datetime raises ValueRefused.
    """

    _naive_on_postgres = False

    def ddl_datatype(self, ctx: Context | None) -> SQL:
        return SQL("timestamp with time zone" if on_postgres(ctx) else "datetime")

    def db_value(self, value: Any) -> Any:
        if value is None or isinstance(value, Node):
            return value
        if not isinstance(value, datetime):
            raise ValueRefused(
                f"{_column(self)} takes a datetime, not {type(value).__name__}", "give an aware datetime"
            )
        if value.utcoffset() is None:
            raise ValueRefused(
                f"{_column(self)} takes an aware datetime, and this one has no time zone",
                "use datetime.now(timezone.utc), or add the zone with .replace(tzinfo=...)",
            )
        try:
            return _Instant(value, self._naive_on_postgres)
        except OverflowError:
            raise ValueRefused(f"{_column(self)} takes a time that UTC has, not {value}", "use a later year") from None

    def python_value(self, value: Any) -> Any:
        if isinstance(value, str):
            return parse_instant(value, _column(self))
        if isinstance(value, datetime):
            return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        if value is None or isinstance(value, Node):
            return value
        raise ValueRefused(f"{_column(self)} holds {value!r}, which is not a time", "correct the row")


class NaiveInstantField(InstantField):
    """A point in time in a column without a zone, where UTC is meant: `timestamp` on both engines."""

    _naive_on_postgres = True

    def ddl_datatype(self, ctx: Context | None) -> SQL:
        return SQL("timestamp without time zone" if on_postgres(ctx) else "timestamp")


class FlagField(peewee.BooleanField):
    """True or False: SQLite `numeric` (1 and 0), PostgreSQL `boolean`."""

    def ddl_datatype(self, ctx: Context | None) -> SQL:
        return SQL("boolean" if on_postgres(ctx) else "numeric")


class Int64Field(peewee.BigIntegerField):
    """SQLite `integer`, PostgreSQL `bigint`."""

    def ddl_datatype(self, ctx: Context | None) -> SQL:
        return SQL("bigint" if on_postgres(ctx) else "integer")


class TextField(peewee.TextField):
    """`text` on both engines, in the Go service's spelling."""

    field_type = "text"


class JSONTextField(TextField):
    """Any JSON value, stored as text as Go's json.Marshal writes it; an empty text reads as None."""

    def db_value(self, value: Any) -> Any:
        return value if value is None or isinstance(value, Node) else _dump(self, value)

    def python_value(self, value: Any) -> Any:
        return _load(self, value)


class JSONBytesField(peewee.Field):
    """Any JSON value, stored as UTF-8 bytes: `bytea` on both engines; no bytes at all read as None."""

    field_type = "bytea"

    def db_value(self, value: Any) -> Any:
        return value if value is None or isinstance(value, Node) else _dump(self, value).encode()

    def python_value(self, value: Any) -> Any:
        return _load(self, bytes(value) if isinstance(value, memoryview) else value)


def _dump(field: peewee.Field, value: Any) -> str:
    try:
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        text.encode()  # a lone surrogate has no UTF-8
        return text
    except (TypeError, ValueError) as error:
        raise ValueRefused(
            f"{_column(field)} takes a JSON value: {error}",
            "use dicts, lists, texts, numbers, booleans and None",
        ) from None


def _load(field: peewee.Field, value: Any) -> Any:
    if value is None or value in ("", b""):
        return None
    try:
        return json.loads(value)
    except ValueError:
        # The value itself stays out of the message: it is a row's content.
        raise ValueRefused(f"{_column(field)} holds a value that is not JSON", "correct the row") from None


def _column(field: peewee.Field) -> str:
    model = getattr(field, "model", None)
    return f"{model._meta.table_name}.{field.column_name}" if model is not None else "the column"


class TableKeyMixin:
    """A key whose PRIMARY KEY stands at the table's end, as GORM writes it: give it in Meta.constraints."""

    def ddl(self, ctx: Context) -> Any:
        nodes = super().ddl(ctx)  # type: ignore[misc]
        nodes.nodes = [n for n in nodes.nodes if not (isinstance(n, SQL) and n.sql == "PRIMARY KEY")]
        return nodes


class TextKeyField(TableKeyMixin, TextField):
    """`id text NOT NULL`, a fresh UUID by default."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**({"primary_key": True, "default": new_id} | kwargs))


class IntKeyField(TableKeyMixin, Int64Field):
    """An integer key that is given, never counted up."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**({"primary_key": True, "null": True} | kwargs))
