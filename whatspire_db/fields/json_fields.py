"""Fields that hold any JSON value, as text or as bytes."""

from __future__ import annotations

import json

import peewee
from peewee import Node

from ..errors import ValueRefused
from ..light_stdlib import TYPE_CHECKING, Any, Generic
from . import TextField, Unreadable, column_of
from .text_search import StoredText, TextSearch

if TYPE_CHECKING:
    from .json_columns import JSONValue
    from .typed import TypedJSON
else:
    TypedJSON = Generic


class _JSONField(TextSearch):
    """What both fields for JSON are asked: LIKE and its kin search the stored text, value() looks inside."""

    holds_bytes = False

    def _text(self) -> StoredText:
        return StoredText(self)

    def value(self, *path: str | int) -> JSONValue:
        """Return a value within the JSON, by its keys and its places in lists, for where(), select() and order_by().

        :raises ValueRefused: for a path of other types, and when the value is compared with one of another type.
        """
        from .json_columns import JSONValue  # only where a query looks inside

        return JSONValue(self, path)


class JSONTextField(_JSONField, TextField[Any]):
    """Any JSON value, stored as text as Go's json.Marshal writes it; an empty text reads as None."""

    def db_value(self, value: Any) -> Any:
        return value if value is None or isinstance(value, Node) else _dump(self, value)

    def python_value(self, value: Any) -> Any:
        return _load(self, value)


class JSONBytesField(TypedJSON[Any], _JSONField, peewee.Field):
    """Any JSON value, stored as UTF-8 bytes: `bytea` on both engines; no bytes at all read as None."""

    field_type = "bytea"
    holds_bytes = True

    def db_value(self, value: Any) -> Any:
        return value if value is None or isinstance(value, Node) else _dump(self, value).encode()

    def python_value(self, value: Any) -> Any:
        return _load(self, bytes(value) if isinstance(value, memoryview) else value)


def _dump(field: peewee.Field, value: Any) -> str:
    try:
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        text.encode()  # a lone surrogate has no UTF-8
        return text
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueRefused(
            f"{column_of(field)} takes a JSON value, and json.dumps() raised {type(error).__name__}",
            "use dicts, lists, texts, finite numbers, booleans and None, none of which contains itself",
        ) from None


def _load(field: peewee.Field, value: Any) -> Any:
    if value is None or value in ("", b""):
        return None
    try:
        return json.loads(value)
    except (ValueError, TypeError, RecursionError):
        # The value itself stays out of the message: it is a row's content.
        raise Unreadable(column_of(field), "a value that is not JSON") from None
