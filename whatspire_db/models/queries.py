"""Queries of BaseModel: their rows remember what was read, and a value that cannot be read names its row."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import peewee

from ..errors import ValueRefused
from ..light_stdlib import TYPE_CHECKING, Any
from ..peewee_compat import by_field
from .rows import rows_of

if TYPE_CHECKING:
    from typing_extensions import Self

_Model: Any = peewee.Model if TYPE_CHECKING else object

logger = logging.getLogger("whatspire_db")


class _Query:
    def _get_cursor_wrapper(self, cursor: Any) -> Any:
        rows = super()._get_cursor_wrapper(cursor)  # type: ignore[misc]
        return rows_of(rows, cursor) if isinstance(rows, peewee.BaseModelCursorWrapper) else rows


class _Reading(_Query):
    model: Any

    def union_all(self, rhs: Any) -> Any:
        return Compound(self.model, self, "UNION ALL", rhs)

    def union(self, rhs: Any) -> Any:
        return Compound(self.model, self, "UNION", rhs)

    def intersect(self, rhs: Any) -> Any:
        return Compound(self.model, self, "INTERSECT", rhs)

    def except_(self, rhs: Any) -> Any:
        return Compound(self.model, self, "EXCEPT", rhs)

    __add__, __or__, __and__, __sub__ = union_all, union, intersect, except_


class Select(_Reading, peewee.ModelSelect):
    """SELECT of a model."""


class Compound(_Reading, peewee.ModelCompoundSelectQuery):
    """UNION and its like."""


class Raw(_Query, peewee.ModelRaw):
    """SQL written by hand."""


class Insert(_Query, peewee.ModelInsert):
    """INSERT, which may return rows."""


class Update(_Query, peewee.ModelUpdate):
    """UPDATE, which may return rows."""


class Delete(_Query, peewee.ModelDelete):
    """DELETE, which may return rows."""


class Alias(peewee.ModelAlias):
    """A model under another name."""

    def select(self, *selection: Any) -> Select:
        return Select(self, selection or self.get_field_aliases())


class Queries(_Model):
    """Gives BaseModel the queries above."""

    @classmethod
    def alias(cls, alias: str | None = None) -> Alias:
        """Return the model under another name."""
        return Alias(cls, alias)

    @classmethod
    def select(cls, *fields: Any) -> peewee.ModelSelect[Self]:
        """Return a SELECT of the fields, by default of all."""
        return Select(cls, fields or cls._meta.sorted_fields, is_default=not fields)

    @classmethod
    def raw(cls, sql: str, *params: Any) -> Raw:
        """Return a query whose SQL is written by hand."""
        return Raw(cls, sql, params)

    @classmethod
    def insert(cls, data: Any = None, /, **values: Any) -> Insert:
        """Return an INSERT of one row."""
        return Insert(cls, by_field(cls, data, values))

    @classmethod
    def insert_many(cls, rows: Any, fields: Any = None) -> Insert:
        """Return an INSERT of many rows."""
        return Insert(cls, insert=rows, columns=fields)

    @classmethod
    def insert_from(cls, query: Any, fields: Any) -> Insert:
        """Return an INSERT of what a query finds."""
        columns = [getattr(cls, field) if isinstance(field, str) else field for field in fields]
        return Insert(cls, insert=query, columns=columns)

    @classmethod
    def update(cls, data: Any = None, /, **values: Any) -> Update:
        """Return an UPDATE of the rows that where() names."""
        return Update(cls, by_field(cls, data, values))

    @classmethod
    def nearest(
        cls, field: Any, vector: Any, k: int = 10, *, where: Any = None, exact: bool = False
    ) -> peewee.ModelSelect[Self]:
        """Return a SELECT of the k rows nearest to a vector; they carry `.distance`. See whatspire_db.nearest()."""
        from ..vectors.nearest import nearest  # only where vectors are searched

        return nearest(cls, field, vector, k, where=where, exact=exact)

    @peewee.classmethod_only  # type: ignore[untyped-decorator]
    def delete(cls) -> Delete:
        """Return a DELETE of the rows that where() names."""
        return Delete(cls)


def readable(query: Any, unreadable: Callable[[ValueRefused], object] | None = None) -> Iterator[Any]:
    """Return the rows of a query of BaseModel one after the other, and go on after one that cannot be read.

    :param unreadable: called with the error for each row that cannot be read, which names table, column and key;
        default: log it as a warning.
    """
    if not isinstance(query, peewee.BaseQuery):
        raise ValueRefused(
            f"readable() takes a query, not a value of type {type(query).__name__}",
            "give the query itself, without .execute() or .iterator(): readable(Event.select())",
        )
    rows = query.clone().execute()
    while True:
        try:
            row = rows.iterate(cache=False)
        except StopIteration:
            return
        except ValueRefused as error:
            rows.refusal = None  # so that it goes on
            (unreadable or _warn)(error)
        else:
            yield row


def _warn(error: ValueRefused) -> None:
    logger.warning("row left out: %s", error.fact)
