"""The rows of BaseModel's queries: instances that remember what was read, and the error for an unreadable value."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache
from inspect import getattr_static

import peewee

from ..errors import ValueRefused
from ..fields import UNREADABLE, UNREADABLE_TYPES, UnreadableText
from ..light_stdlib import Any, lazy_module
from ..peewee_compat import INSTANCE_ATTRIBUTES, new_instance, wrap_constructors
from .row_state import frozen
from .saving import SavesChanges

unreadable = lazy_module("whatspire_db.models.unreadable")

# Fields whose columns no driver gives as lists, dicts or other values that change in place.
_OF_PLAIN_VALUES = (
    *(peewee.IntegerField, peewee.FloatField, peewee.DecimalField, peewee.BooleanField, peewee.UUIDField),
    *(peewee.CharField, peewee.TextField, peewee.DateTimeField, peewee.DateField, peewee.TimeField),
)


class _Rows:
    """What Peewee's cursor wrappers get on top: the error for a value that cannot be read."""

    columns: Any
    converters: Any
    cursor: Any
    fields: Any
    model: Any
    initialize: Any
    process_row: Any
    row_cache: list[Any]
    count: int
    initialized: bool
    populated: bool
    from_postgres = False
    refusal: tuple[str, str] | None = None  # fact and hint of a row that could not be read: the cached ones are not all

    def iterate(self, cache: bool = True) -> Any:
        """Return the next row, as Peewee does; the error for a value that cannot be read names its row."""
        if self.refusal is not None:
            raise ValueRefused(*self.refusal)
        suspect = self.from_postgres
        try:
            row = self.cursor.fetchone()
        except peewee.sqlite3.OperationalError as error:
            row, suspect = _fetched_again(self.cursor, error), True
        if row is None:
            self.populated = True
            self.cursor.close()
            raise StopIteration
        if not self.initialized:
            self.initialize()
            self.initialized = True
        try:
            if suspect and not UNREADABLE_TYPES.isdisjoint(map(type, row)):
                raise ValueError
            made = self.process_row(row)
        except UNREADABLE:
            self._refuse(row)
            raise  # an error of a constructor of the user's
        self.count += 1
        if cache:
            self.row_cache.append(made)
        return made

    def _refuse(self, row: Any) -> None:
        place = unreadable.failing(self.converters, row)
        if place is not None:
            error = unreadable.refused(self, row, place)
            self.refusal = error.fact, error.hint
            raise error from None


def _fetched_again(cursor: Any, error: Exception) -> Any:
    """Return a row of SQLite's with a text that is not UTF-8; raise the error when it is another one.

    The driver's own errors have no code of SQLite's. Before Python 3.11 it does not give the row again.
    """
    connection = cursor.connection
    usual = connection.text_factory
    connection.text_factory = _decoded
    try:
        row = None if getattr(error, "sqlite_errorcode", None) is not None else cursor.fetchone()
    finally:
        connection.text_factory = usual
    if row is None:
        raise error
    return row


def _decoded(text: bytes) -> str | UnreadableText:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return UnreadableText(text)


class _Instances(_Rows):
    """Rows as instances of one model, which remember what was read."""

    constructor: Any
    is_model: bool
    unique_columns: Any

    def initialize(self) -> None:
        super().initialize()
        if isinstance(self.constructor, peewee.ModelAlias):  # Peewee would take these for new instances
            self.constructor, self.is_model = self.constructor.model, True
        self.remembers = self.is_model and issubclass(self.constructor, SavesChanges)
        self.plain = self.remembers and _is_made_plainly(self.constructor, self.unique_columns)
        self.places = _places(self, self.constructor) if self.remembers else {}
        self.mutable = _mutable(self)
        self.pairs = tuple(zip(self.unique_columns, self.converters, strict=True))

    def process_row(self, row: Any) -> Any:
        if self.plain:
            data = {
                name: value if read is None else read(value)
                for (name, read), value in zip(self.pairs, row, strict=False)
            }
            instance = new_instance(self.constructor, data)
        else:
            instance = super().process_row(row)
        if self.remembers:
            instance.__places__, instance.__row__ = self.places, _kept(row, self.mutable) if self.mutable else row
        return instance


def _is_made_plainly(model: Any, names: Collection[str]) -> bool:
    """Tell whether to make an instance of a row is to set what Peewee's constructor sets, which takes half the time."""
    plain = (peewee.FieldAccessor, peewee.ForeignKeyAccessor)
    return (
        model.__init__ is SavesChanges.__init__
        and model.__setattr__ is object.__setattr__
        and model.__new__ is object.__new__
        and vars(model(__no_default__=True)).keys() == INSTANCE_ATTRIBUTES
        and all(type(getattr_static(model, name, None)) in plain for name in names)
    )


class _JoinedInstances(_Rows):
    """Rows as instances of several models."""

    column_keys: Any

    def initialize(self) -> None:
        super().initialize()
        self.mutable = _mutable(self)
        self.made: dict[Any, Any] = {}  # the instances of the row that is being read
        self.places: dict[Any, dict[str, int]] = {}
        wrap_constructors(self, self._wrap)

    def _wrap(self, key: Any, construct: Any, is_model: bool) -> Any:
        """Return what makes the instances of one source, and notes them where they remember what was read."""
        if not (is_model and hasattr(construct, "__stored__")):
            return construct
        self.places[key] = _places(self, construct, self.column_keys, key)
        return _remembering(self.made, key, construct)

    def process_row(self, row: Any) -> Any:
        instance = super().process_row(row)
        kept = _kept(row, self.mutable) if self.mutable else row
        for key, made in self.made.items():
            made.__places__, made.__row__ = self.places[key], kept
        return instance


def _remembering(made: dict[Any, Any], key: Any, construct: Any) -> Callable[..., Any]:
    def constructing(**kwargs: Any) -> Any:
        made[key] = instance = construct(**kwargs)
        return instance

    return constructing


def _places(rows: Any, model: Any, sources: Any = None, source: Any = None) -> dict[str, int]:
    """Return where the fields of a model stand in a row, of those that were read as their field reads them."""
    places = {}
    for place, field in enumerate(rows.fields):
        if field is None or rows.converters[place] is None or (sources is not None and sources[place] is not source):
            continue
        if rows.columns[place] == field.name and field.name in model._meta.fields:
            places[field.name] = place
    return places


def _mutable(rows: Any) -> tuple[int, ...]:
    """Return the columns that a driver may give as lists, dicts and the like; SQLite's gives none."""
    if not rows.from_postgres:
        return ()
    return tuple(n for n, field in enumerate(rows.fields) if not isinstance(field, _OF_PLAIN_VALUES))


def _kept(row: Any, mutable: tuple[int, ...]) -> Any:
    """Return a row that changes of its values in place do not reach."""
    kept = list(row)
    for place in mutable:
        value = kept[place]
        kept[place] = bytes(value) if type(value) is memoryview else frozen(value)
    return tuple(kept)


def rows_of(theirs: Any, cursor: Any) -> Any:
    """Return Peewee's reader of a query's rows with what ours has on top.

    Peewee alone knows which of its classes a query needs, and with which arguments.
    """
    theirs_kind: Any = type(theirs)
    kind: Any = _reader(theirs_kind)
    rows = kind.__new__(kind)
    vars(rows).update(vars(theirs))
    rows.from_postgres = cursor.description[0][1] is not None  # SQLite names no types
    return rows


@cache
def _reader(kind: Any) -> type:
    ours: dict[type, type] = {
        peewee.ModelObjectCursorWrapper: _Instances,
        peewee.ModelCursorWrapper: _JoinedInstances,
    }
    return type(kind.__name__, (ours.get(kind, _Rows), kind), {})
