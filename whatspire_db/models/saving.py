"""save() writes the columns that changed since the row was read, and no others."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Sequence

import peewee

from ..errors import ValueRefused
from ..light_stdlib import TYPE_CHECKING, Any, dataclass
from ..peewee_compat import copied_attributes, dirty, take_related_keys
from .row_state import IMMUTABLE, UNKNOWN, Outcome, RowState, is_changed, outcomes

_Model: Any = peewee.Model if TYPE_CHECKING else object


@dataclass(frozen=True)
class _Unsure:
    """What an instance goes back to when a transaction that it was saved in is rolled back."""

    depends_on: tuple[Outcome, ...]
    names: frozenset[str]  # the columns that were written
    is_new: bool
    stored: RowState | None

    @property
    def is_undone(self) -> bool:
        return any(outcome.undone for outcome in self.depends_on)


class SavesChanges(_Model):
    """What BaseModel adds to Peewee's Model: an instance knows what its row held when it was read or saved.

    A value that is changed in place (a list in a JSON column) counts as changed; one that is assigned again and equals
    what was read does not.
    """

    __is_new__ = False
    __row__: Any = None  # as the driver gave it, and in __places__ where each field stands in it
    __places__: Any = None
    __known__: RowState | None = None
    __unsure__: tuple[_Unsure, ...] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "__no_default__" in kwargs:  # Peewee makes it of a row
            super().__init__(*args, **kwargs)
            return
        super().__init__(*args, __no_default__=True, **kwargs)  # so that dirty() holds what was given, and no defaults
        self.__is_new__ = True
        for name, value in self._meta.get_default_dict().items():
            self.__data__.setdefault(name, value)

    @property
    def __stored__(self) -> RowState | None:
        """What is known of the row; None for a new instance, and for one that a query of another model made.

        It is made when it is first asked for: an object more for each row that is read costs a fifth of the time.
        """
        if self.__known__ is None and self.__row__ is not None:
            self.__known__ = RowState(self.__places__, self.__row__)
        return self.__known__

    @__stored__.setter
    def __stored__(self, state: RowState | None) -> None:
        self.__known__, self.__row__ = state, None

    # What has changed

    @property
    def dirty_fields(self) -> list[peewee.Field]:
        """Return the fields that save() would write."""
        self._settle()
        held = [field for field in self._meta.sorted_fields if field.name in self.__data__]
        return held if self._is_another_row() else [field for field in held if self._has_changed(field)]

    def is_dirty(self) -> bool:
        """Tell whether save() would write anything."""
        return bool(self.dirty_fields)

    def _is_another_row(self) -> bool:
        """Tell whether the instance was made here and not saved yet, or got another key since."""
        keys = self._meta.get_primary_keys()
        return self.__is_new__ or any(self._has_changed(field) for field in keys if field.name in self.__data__)

    def _has_changed(self, field: peewee.Field) -> bool:
        now, assigned = self.__data__[field.name], field.name in dirty(self)
        if not assigned and (type(now) in IMMUTABLE or isinstance(now, peewee.Node)):
            return False  # an expression that was saved is not evaluated again
        then = self.__stored__.value(field) if self.__stored__ else UNKNOWN
        return is_changed(field, then, now)

    def _is_given(self, field: peewee.Field) -> bool:
        """Tell whether a value is more than the default of its field."""
        if not self.__is_new__ or field.name in dirty(self):
            return True
        now = self.__data__[field.name]
        return type(now) not in IMMUTABLE and callable(field.default) and is_changed(field, field.default(), now)

    # Saving

    def save(self, force_insert: bool = False, only: Iterable[Any] | None = None) -> int:
        """Write the columns that changed, or insert a row that is not stored yet; return the number of rows written.

        0 when nothing has changed, and when the row that was read is gone. For an instance whose key was given by
        Python the row of that key is updated with what else was given, or inserted when there is none.

        :param force_insert: insert all columns.
        :param only: write these columns, whether they changed or not, and no others.
        :raises ValueRefused: when a row that was read has no key to find it by.
        """
        self._settle()
        take_related_keys(self)
        chosen = None if only is None else [self._meta.combined[f] if isinstance(f, str) else f for f in only]
        if force_insert:
            return self._insert(chosen)
        if self._is_another_row():
            return self._update_or_insert(chosen)
        return self._update(self.dirty_fields if chosen is None else chosen)

    def _update_or_insert(self, chosen: Sequence[peewee.Field] | None) -> int:
        keys = self._meta.get_primary_keys()
        counted = self._meta.auto_increment
        if not keys or self._lacks_key() or not (counted or any(map(self._is_given, keys))):
            return self._insert(chosen)
        fields = self._meta.sorted_fields if chosen is None else chosen
        given = {field for field in fields if field.name in self.__data__ and self._is_given(field)} - set(keys)
        rows = self._update(given) if given else self._update(keys, with_keys=True)  # whether there is such a row
        return rows if rows or counted else self._insert(chosen)

    def _lacks_key(self) -> bool:
        return any(self.__data__.get(field.name) is None for field in self._meta.get_primary_keys())

    def _update(self, fields: Iterable[peewee.Field], with_keys: bool = False) -> int:
        keys = set() if with_keys else {field.name for field in self._meta.get_primary_keys()}
        data = self.__data__
        values = {field.name: data[field.name] for field in fields if field.name in data and field.name not in keys}
        if not values:
            return 0
        if self._meta.primary_key is False:
            raise ValueRefused(
                f"a row of {self._meta.table_name} cannot be saved: the table has no primary key to find it by",
                "use update() with where(), or save(force_insert=True) to insert another row",
            )
        self._require_key()
        try:
            rows: int = self.update(**values).where(self._meta.primary_key == self.get_id()).execute()
        except ValueRefused as error:
            raise self._named(error) from None
        if rows:
            self._note_saved(values)
        return rows

    def _require_key(self) -> None:
        """Refuse an instance whose key was not read: its row would not be found, and the change would be lost."""
        for field in self._meta.get_primary_keys():
            if field.name not in self.__data__:
                raise ValueRefused(
                    f"a row of {self._meta.table_name} was read without its key {field.column_name}",
                    f"select {self.__class__.__name__}.{field.name} too, or use update() with where()",
                )

    def _insert(self, chosen: Iterable[peewee.Field] | None) -> int:
        key = self._meta.primary_key
        counted = self._meta.auto_increment and self.get_id() is None
        names = set(self.__data__) if chosen is None else {field.name for field in chosen}
        names |= {field.name for field in self._meta.get_primary_keys()}  # Peewee would make another default
        values = {n: v for n, v in self.__data__.items() if n in names and not (counted and n == key.name)}
        try:
            made = self.insert(**values).execute()
        except ValueRefused as error:
            raise self._named(error) from None
        self._note_saved(values)
        if key is not False and made is not None and self.get_id() is None:
            self._take_key(made)
        return 1

    def _named(self, error: ValueRefused) -> ValueRefused:
        """Return the error for a value with the key of the row that it is for, where there is one."""
        from .unreadable import in_the_row

        row = in_the_row((key.column_name, self.__data__.get(key.name)) for key in self._meta.get_primary_keys())
        return ValueRefused(f"{error.fact}, {row}" if row else error.fact, error.hint)

    def _take_key(self, value: Any) -> None:
        """Set the key that the database made."""
        key = self._meta.primary_key
        setattr(self, key.name, value)
        dirty(self).discard(key.name)
        if self.__stored__ is not None:
            self.__stored__ = self.__stored__.saving({key.name: self.__data__[key.name]})

    def delete_instance(self, recursive: bool = False, delete_nullable: bool = False) -> int:
        """Delete the row and return the number of rows deleted; saved again, the instance is inserted."""
        self._settle()
        if not self.__is_new__:
            self._require_key()
        rows: int = super().delete_instance(recursive, delete_nullable)
        self._note(outcomes(self._meta.get_database_instance()) or (), ())
        self.__is_new__, self.__stored__ = True, None
        dirty(self).update(self.__data__)
        return rows

    @classmethod
    def bulk_create(cls, model_list: Iterable[Any], batch_size: int | None = None) -> None:
        """Insert many instances, as Peewee does."""
        models = list(model_list)
        super().bulk_create(models, batch_size)
        for model in models:
            if not model._lacks_key():
                model._note_saved(model.__data__)

    @classmethod
    def bulk_update(cls, model_list: Iterable[Any], fields: Sequence[Any], batch_size: int | None = None) -> int:
        """Update columns of many instances, as Peewee does, and return the number of rows."""
        models = list(model_list)
        rows: int = super().bulk_update(models, fields, batch_size)
        names = [cls._meta.combined[field].name if isinstance(field, str) else field.name for field in fields]
        for model in models:
            model._note_saved({name: model.__data__[name] for name in names if name in model.__data__})
        return rows

    # What is known of the row

    def _note_saved(self, values: Collection[str]) -> None:
        """Take columns for written; a rollback takes that back."""
        depends_on = outcomes(self._meta.get_database_instance())
        if depends_on is None:  # nobody will hear of its rollback: the next save() writes them again
            dirty(self).update(self.__data__ if self.__is_new__ else values)
            return
        self._note(depends_on, values)
        keys = [field.name for field in self._meta.get_primary_keys() if field.name in self.__data__]
        known = self.__stored__ if self.__stored__ and not self.__is_new__ else RowState({}, ())
        self.__stored__ = known.saving({name: self.__data__[name] for name in {*values, *keys}})
        dirty(self).difference_update(values, keys)
        self.__is_new__ = False

    def _note(self, depends_on: tuple[Outcome, ...], names: Collection[str]) -> None:
        before = _Unsure(depends_on, frozenset(names), self.__is_new__, self.__stored__)
        same = [one for one in self.__unsure__ if one.depends_on[0] is depends_on[0]] if depends_on else []
        self.__unsure__ = (*same, before) if depends_on else ()

    def _settle(self) -> None:
        """Go back to what was known before those saves that were rolled back since."""
        if not any(one.is_undone for one in self.__unsure__):
            return
        for one in reversed(self.__unsure__):
            if one.is_undone:
                self._take_back(one)
        self.__unsure__ = tuple(one for one in self.__unsure__ if not one.is_undone)

    def _take_back(self, one: _Unsure) -> None:
        key = self._meta.primary_key
        if one.is_new and self._meta.auto_increment and key.name not in one.names:
            self.__data__[key.name] = None  # the database had made it
        both = one.stored is not None and self.__stored__ is not None
        self.__stored__ = self.__stored__.reverting(one.names, one.stored) if both else one.stored  # type: ignore
        self.__is_new__ = one.is_new
        dirty(self).update(one.names)

    # Copies

    def clone(self) -> Any:
        """Return a copy whose columns can be changed and saved apart from this instance's."""
        return copy.copy(self)

    def __getstate__(self) -> dict[str, Any]:
        state = copied_attributes(self)
        # PostgreSQL's driver gives bytes as memoryviews, which cannot be pickled.
        state["__data__"] = {k: bytes(v) if type(v) is memoryview else v for k, v in self.__data__.items()}
        for name in ("__unsure__", "__row__", "__places__"):
            state.pop(name, None)
        if self.__stored__ is not None:
            state["__known__"] = self.__stored__.detached(self._meta.fields)
        return state
