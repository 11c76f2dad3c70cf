"""Fields that mean the same on both engines and store what the Go service stores."""

from __future__ import annotations

import re
import uuid
from datetime import datetime, timezone
from importlib import import_module

import peewee
from peewee import SQL, Context, Node

from ..errors import ValueRefused
from ..light_stdlib import TYPE_CHECKING, Any, Generic, TypeVar, pattern

V = TypeVar("V")

if TYPE_CHECKING:
    from .json_fields import JSONBytesField as JSONBytesField
    from .json_fields import JSONTextField as JSONTextField
    from .typed import TypedFlag, TypedInstant, TypedInt64, TypedText
else:  # what a column holds is for type checkers alone
    TypedFlag = TypedInstant = TypedInt64 = TypedText = Generic

    def __getattr__(name: str) -> Any:
        if name not in ("JSONBytesField", "JSONTextField"):  # which few programs load
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(".json_fields", __name__), name)


UTC = timezone.utc


class UnreadableTime(str):
    """A time of PostgreSQL's that Python has no value for, as the server wrote it."""

    __slots__ = ()


class UnreadableText(bytes):
    """A text of SQLite's that is not UTF-8."""

    __slots__ = ()


UNREADABLE_TYPES = frozenset({UnreadableTime, UnreadableText})
# What a conversion raises for a value that is not of its field's kind.
UNREADABLE = (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError)


class Unreadable(ValueRefused):
    """A column holds a value that its field cannot read; `kind` says what it is, without repeating it."""

    def __init__(self, column: str, kind: str) -> None:
        super().__init__(f"{column} holds {kind}", "correct the row")
        self.kind = kind


# What the Go drivers write into SQLite: a fraction of any length, and an offset or Z.
_GO_TIME = pattern(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)?", re.ASCII)


NO_TIME = "a text that is not a time of the form 2026-11-22 09:05:03.123+00:00"


def on_postgres(ctx: Context | None) -> bool:
    """Return whether peewee renders for PostgreSQL: its own type map says so, whatever class of Database it is."""
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
        raise Unreadable(column, NO_TIME)
    day, clock, fraction, offset = match.groups()
    micros = (fraction or "")[:6].ljust(6, "0")
    zone = "+00:00" if offset in (None, "Z") else offset
    try:
        return datetime.fromisoformat(f"{day}T{clock}.{micros}{zone}").astimezone(UTC)
    except (ValueError, OverflowError):  # the 30th of February, or a year that UTC does not have
        raise Unreadable(column, NO_TIME) from None


class _Instant(Node):
    """A point in time that renders as the engine stores it."""

    def __init__(self, value: datetime, naive: bool) -> None:
        self.value = value.astimezone(UTC)
        self.naive = naive  # PostgreSQL's timestamp without time zone

    def __sql__(self, ctx: Context) -> Context:
        if not on_postgres(ctx):
            return ctx.value(format_instant(self.value), converter=False)
        return ctx.value(self.value.replace(tzinfo=None) if self.naive else self.value, converter=False)


class InstantField(TypedInstant[V], peewee.Field):
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
                f"{column_of(self)} takes a datetime, not {type(value).__name__}", "give an aware datetime"
            )
        if value.utcoffset() is None:
            raise ValueRefused(
                f"{column_of(self)} takes an aware datetime, and this one has no time zone",
                "use datetime.now(timezone.utc), or add the zone with .replace(tzinfo=...)",
            )
        try:
            return _Instant(value, self._naive_on_postgres)
        except OverflowError:
            raise ValueRefused(
                f"{column_of(self)} takes a time of the years 1 to 9999 in UTC, and this one lies outside",
                "use a time within these years",
            ) from None

    def python_value(self, value: Any) -> Any:
        if isinstance(value, str):
            return parse_instant(value, column_of(self))
        if isinstance(value, datetime):
            try:
                return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
            except OverflowError:
                raise Unreadable(column_of(self), "a time outside the years 1 to 9999 in UTC") from None
        if value is None or isinstance(value, Node):
            return value
        raise Unreadable(column_of(self), f"a value of type {type(value).__name__}, which is not a time")


class NaiveInstantField(InstantField[V]):
    """A point in time in a column without a zone, where UTC is meant: `timestamp` on both engines."""

    _naive_on_postgres = True

    def ddl_datatype(self, ctx: Context | None) -> SQL:
        return SQL("timestamp without time zone" if on_postgres(ctx) else "timestamp")


class FlagField(TypedFlag[V], peewee.BooleanField):
    """True or False: SQLite `numeric` (1 and 0), PostgreSQL `boolean`."""

    def ddl_datatype(self, ctx: Context | None) -> SQL:
        return SQL("boolean" if on_postgres(ctx) else "numeric")


class Int64Field(TypedInt64[V], peewee.BigIntegerField):
    """SQLite `integer`, PostgreSQL `bigint`."""

    def ddl_datatype(self, ctx: Context | None) -> SQL:
        return SQL("bigint" if on_postgres(ctx) else "integer")


class TextField(TypedText[V], peewee.TextField):
    """`text` on both engines, in the Go service's spelling."""

    field_type = "text"


def column_of(field: peewee.Field) -> str:
    """Return how a message names the column of a field."""
    model = getattr(field, "model", None)
    return f"{model._meta.table_name}.{field.column_name}" if model is not None else "the column"


class TableKeyMixin:
    """A key whose PRIMARY KEY stands at the table's end, as GORM writes it: give it in Meta.constraints."""

    def ddl(self, ctx: Context) -> Any:
        nodes = super().ddl(ctx)  # type: ignore[misc]
        nodes.nodes = [n for n in nodes.nodes if not (isinstance(n, SQL) and n.sql == "PRIMARY KEY")]
        return nodes


class TextKeyField(TableKeyMixin, TextField[str]):
    """`id text NOT NULL`, a fresh UUID by default."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**({"primary_key": True, "default": new_id} | kwargs))


class IntKeyField(TableKeyMixin, Int64Field[int]):
    """An integer key that is given, never counted up."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**({"primary_key": True, "null": True} | kwargs))
