"""What a row held when it was read or saved, whether a value has changed since, and whether that was rolled back."""

from __future__ import annotations

import copy
import datetime
import decimal
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from inspect import getattr_static

import peewee

from ..light_stdlib import Any
from ..peewee_compat import open_blocks

# Values of these types cannot be changed in place.
IMMUTABLE = frozenset(
    {
        *(str, int, float, bool, bytes, complex, type(None)),
        *(datetime.datetime, datetime.date, datetime.time, datetime.timedelta),
        *(decimal.Decimal, uuid.UUID),
    }
)
UNKNOWN: Any = object()


class RowState:
    """The values of one row: as the driver gave them, and over these what was saved since.

    Reading keeps a reference only: the driver's values are converted again when somebody asks what has changed.
    """

    __slots__ = ("columns", "row", "saved")

    def __init__(self, columns: Mapping[str, int], row: Sequence[Any], saved: dict[str, Any] | None = None) -> None:
        self.columns = columns  # a field's name -> where its value stands in the row
        self.row = row
        self.saved = saved

    def value(self, field: peewee.Field) -> Any:
        """Return what a column held as the field reads it, in an object of its own; UNKNOWN when it was not read."""
        if self.saved is not None and field.name in self.saved:
            return self.saved[field.name]
        place = self.columns.get(field.name)
        return UNKNOWN if place is None else field.python_value(frozen(self.row[place]))

    def saving(self, values: Mapping[str, Any]) -> RowState:
        """Return the state after some columns were written."""
        kept = {name: frozen(value) for name, value in values.items()}
        return RowState(self.columns, self.row, {**(self.saved or {}), **kept})

    def reverting(self, names: Iterable[str], before: RowState) -> RowState:
        """Return the state after the writing of some columns was rolled back."""
        saved = {name: value for name, value in (self.saved or {}).items() if name not in names}
        again = {name: value for name, value in (before.saved or {}).items() if name in names}
        return RowState(self.columns, self.row, {**saved, **again})

    def detached(self, fields: Mapping[str, peewee.Field]) -> RowState:
        """Return the same state without the driver's values, which cannot all be pickled."""
        values = {name: self.value(fields[name]) for name in {*self.columns, *(self.saved or ())} if name in fields}
        return RowState({}, (), {name: value for name, value in values.items() if value is not UNKNOWN})


def frozen(value: Any) -> Any:
    """Return a value that later changes in place do not reach; UNKNOWN for an expression or what cannot be copied."""
    if type(value) in IMMUTABLE:
        return value
    whole, copies = [value], dict[int, Any]()
    pending: list[Any] = [whole]
    while pending:  # no recursion: JSON that can be read may lie deeper than the stack has room for
        part = pending.pop()
        for key, item in part.items() if type(part) is dict else enumerate(part):
            if type(item) in IMMUTABLE:
                continue
            if id(item) not in copies:
                copies[id(item)] = made = _copied(item)
                if type(made) in (dict, list):
                    pending.append(made)
            part[key] = copies[id(item)]
    return whole[0]


def _copied(value: Any) -> Any:
    """Return a copy of a value, of a dict or a list without what it holds."""
    if type(value) in (dict, list):
        return value.copy()
    if type(value) is memoryview:
        return bytes(value)  # and the garbage collector has nothing to look at
    if isinstance(value, peewee.Node):
        return UNKNOWN
    try:
        return copy.deepcopy(value)
    except Exception:  # whatever a class of the user's raises
        return UNKNOWN


def is_changed(field: peewee.Field, then: Any, now: Any) -> bool:
    """Tell whether a column holds another value now than it did."""
    if then is UNKNOWN or isinstance(now, peewee.Node):
        return True
    if _is_same(then, now):
        return False
    if then is None and isinstance(now, bytearray):
        return bool(now)  # Peewee's BigBitField puts an empty one in the place of NULL when it is looked at
    if type(now) is type(then) and getattr_static(type(now), "__eq__") is getattr_static(object, "__eq__"):
        return not _is_same(field.db_value(then), field.db_value(now))
    return True


def _is_same(one: Any, other: Any) -> bool:
    """Compare as their texts would: 1, 1.0 and True differ, and so does the order of a dict's keys."""
    pending, seen = [(one, other)], set[tuple[int, int]]()
    while pending:
        one, other = pending.pop()
        if not isinstance(one, (dict, list, tuple)):
            if not _is_same_value(one, other):
                return False
            continue
        if type(one) is not type(other) or len(one) != len(other):
            return False
        if isinstance(one, dict) and list(one) != list(other):
            return False
        if (id(one), id(other)) not in seen:  # as in a list that holds itself
            seen.add((id(one), id(other)))
            pending.extend(zip(_items(one), _items(other), strict=True))
    return True


def _items(value: Any) -> Collection[Any]:
    return value.values() if isinstance(value, dict) else value


def _is_same_value(one: Any, other: Any) -> bool:
    if isinstance(one, (bytes, bytearray, memoryview)) and isinstance(other, (bytes, bytearray, memoryview)):
        return bytes(one) == bytes(other)
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return repr(one) == repr(other)  # NaN is the same as itself
    return bool(one == other)


class Outcome:
    """How a transaction or a savepoint ended; not undone while it is open."""

    __slots__ = ("undone",)

    def __init__(self) -> None:
        self.undone = False


def outcomes(db: Any) -> tuple[Outcome, ...] | None:
    """Return the outcomes that a statement of this thread depends on; None where its end cannot be observed.

    That is a transaction begun by a statement of the user's own or by db.begin(), and any of a database that connect()
    did not make: Peewee's own blocks do not report how they end, and do not know which savepoints are open.
    """
    blocks = open_blocks(db)
    if not blocks:
        return None if _is_in_transaction(db) else ()
    if not hasattr(db, "task_state") or not all(hasattr(block, "outcome") for block in blocks):
        return None
    savepoint = db.task_state.savepoint
    while savepoint is not None:
        blocks.append(savepoint)
        savepoint = savepoint.outer
    return tuple(block.outcome for block in blocks)


def _is_in_transaction(db: peewee.Database) -> bool:
    connection = db.connection()
    if isinstance(db, peewee.SqliteDatabase):
        return bool(connection.in_transaction)
    info = getattr(connection, "info", None)
    return info is not None and info.transaction_status != 0  # IDLE, in psycopg2 and psycopg alike
