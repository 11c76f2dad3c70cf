"""VectorField: a vector of numbers, `vector(n)` or `halfvec(n)` on PostgreSQL and a BLOB of that name on SQLite."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, overload

import peewee
from peewee import SQL, Context, Entity, Node

from ..errors import ModelError, ValueRefused
from ..fields import UNREADABLE, Unreadable, V, column_of, on_postgres
from ..light_stdlib import Generic
from ..sql import quoted
from .codec import Codec, NotAVector
from .distances import Distance, NoVector, StoredVector, database_of
from .metrics import COSINE, INNER_PRODUCT, L2, METRICS, Metric

if TYPE_CHECKING:
    from ..fields.typed import TypedVector
else:
    TypedVector = Generic

TYPES = {"vector": 16_000, "halfvec": 16_000}  # and the most dimensions of each
LONGEST_NAME = 63  # in bytes
MOST_INDEXED = {"vector": 2_000, "halfvec": 4_000}


class _Accessor(peewee.FieldAccessor):
    """Keeps a list in an instance, whatever was given: so it can be compared with what was read."""

    def __set__(self, instance: Any, value: Any) -> None:
        if value is not None and not isinstance(value, (list, Node)):
            value = self.field.as_list(value)
        super().__set__(instance, value)


def _short(name: str) -> str:
    """Return a name of which PostgreSQL cuts nothing off: two that are cut could be the same."""
    if len(name.encode()) <= LONGEST_NAME:
        return name
    start = name.encode()[: LONGEST_NAME - 9].decode(errors="ignore")
    return f"{start}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


class HnswIndex(peewee.ModelIndex):
    """An HNSW index of a field; SQLite has none, and nothing is created there."""

    def __init__(self, model: Any, field: VectorField[Any]) -> None:
        name = _short(f"{model._meta.table_name}_{field.column_name}_hnsw")
        key = peewee.NodeList((Entity(field.column_name), SQL(f"{field.codec.type}_{field.metric.opclass}")))
        super().__init__(model, (key,), safe=False, using="hnsw", name=name)
        self.field = field

    @staticmethod
    def is_for(db: peewee.Database) -> bool:
        """Return whether a database has such indexes."""
        return on_postgres(db.get_sql_context())

    def __sql__(self, ctx: Context) -> Context:
        if not on_postgres(ctx):
            return ctx.literal("SELECT 1")  # for Peewee's create_tables(), which has to run something
        super().__sql__(ctx)
        options = ", ".join(f"{name} = {value}" for name, value in self.field.index_options.items())
        return ctx.literal(f" WITH ({options})") if options else ctx


class VectorField(TypedVector[V], peewee.Field):
    """A vector of numbers: lists, tuples and arrays in, lists of floats out.

    :param dimensions: how many numbers each vector has.
    :param metric: the distance that `nearest()` sorts by: cosine, l2 or inner_product.
    :param index: "hnsw" has the migrator build an HNSW index on PostgreSQL; None searches all rows.
    :param type: vector, of 32-bit numbers, or halfvec, of 16-bit ones in half the space.
    :param m: connections of each vector in the index; default: pgvector's, 16.
    :param ef_construction: candidates that the build of the index looks at; default: pgvector's, 64.
    :raises ModelError: for a metric, type or index that there is not, or for too many dimensions.
    """

    field_type = "vector"
    accessor_class = _Accessor

    @overload
    def __init__(
        self: VectorField[list[float]],
        dimensions: int,
        metric: str = ...,
        index: str | None = ...,
        *,
        null: Literal[False] = ...,
        **kwargs: Any,
    ) -> None: ...
    @overload
    def __init__(
        self: VectorField[list[float] | None],
        dimensions: int,
        metric: str = ...,
        index: str | None = ...,
        *,
        null: Literal[True],
        **kwargs: Any,
    ) -> None: ...
    def __init__(
        self,
        dimensions: int,
        metric: str = COSINE.name,
        index: str | None = None,
        *,
        type: str = "vector",
        m: int | None = None,
        ef_construction: int | None = None,
        **kwargs: Any,
    ) -> None:
        _require_known(dimensions, metric, index, type)
        if (m is not None or ef_construction is not None) and index is None:
            raise ModelError("m and ef_construction are for an index, and the field has none", 'give index="hnsw"')
        self.metric: Metric = METRICS[metric]
        self.codec = Codec(dimensions, type, refuses_zero=self.metric is COSINE)
        self.has_index = index == "hnsw"
        options = {"m": m, "ef_construction": ef_construction}
        self.index_options = {name: value for name, value in options.items() if value is not None}
        if kwargs.get("default") is not None:
            kwargs["default"] = partial(self._fresh, kwargs["default"])
        super().__init__(**kwargs)

    def _fresh(self, default: Any) -> Any:
        """Return a default as a list of a row's own, which may be changed in place."""
        value = default() if callable(default) else default
        return value if value is None or isinstance(value, Node) else self.as_list(value)

    def bind(self, model: Any, name: str, set_attribute: bool = True) -> None:
        super().bind(model, name, set_attribute)
        if self.has_index:
            indexes = model._meta.indexes  # of a subclass: with the parent's in them
            same = [one for one in indexes if isinstance(one, HnswIndex) and one.field.name == name]
            for one in same:
                indexes.remove(one)
            indexes.append(HnswIndex(model, self))

    def ddl_datatype(self, ctx: Context | None) -> SQL:
        if not on_postgres(ctx) and getattr(self.model._meta, "strict_tables", False):
            return SQL("BLOB")  # the only name that a STRICT table takes for one
        return SQL(self.codec.declared)

    def ddl(self, ctx: Context) -> Any:
        nodes = super().ddl(ctx)
        if not on_postgres(ctx):
            column = quoted(self.column_name)
            fits = f"typeof({column}) = 'blob' AND length({column}) = {self.codec.length}"
            nodes.nodes.append(SQL(f"CHECK ({column} IS NULL OR {fits})" if self.null else f"CHECK ({fits})"))
        return nodes

    def db_value(self, value: Any) -> Any:
        return value if value is None or isinstance(value, Node) else self._stored(value)

    # Of a list Peewee makes several values, each for itself.

    def __eq__(self, other: object) -> Any:
        return super().__eq__(self._whole(other))

    def __ne__(self, other: object) -> Any:
        return super().__ne__(self._whole(other))

    __hash__ = peewee.Field.__hash__

    def _whole(self, value: Any) -> Any:
        return self.to_value(value) if isinstance(value, (list, tuple)) else value

    def case_value(self, value: Any) -> Any:
        """Return a value for a CASE, which does not tell PostgreSQL its type."""
        if isinstance(value, Node):
            return value
        db = database_of(self)
        named = db if isinstance(db, peewee.PostgresqlDatabase) else None
        return NoVector(self.codec, named) if value is None else self._stored(value, named)

    def python_value(self, value: Any) -> Any:
        if value is None or isinstance(value, Node):
            return value
        try:
            return self.codec.unpacked(value).tolist()
        except UNREADABLE:
            kind = f"a value that is not a vector of {self.codec.dimensions:,} dimensions"
            raise Unreadable(column_of(self), kind) from None

    def as_list(self, value: Any) -> list[float]:
        """Return a vector of the user's as a list of the numbers that will be stored.

        :raises ValueRefused: for a value that cannot be stored.
        """
        return self._stored(value).numbers.tolist()

    def _stored(self, value: Any, db: peewee.Database | None = None) -> StoredVector:
        try:
            return StoredVector(self.codec, value, db)
        except NotAVector as error:
            raise ValueRefused(f"{column_of(self)} takes {error.what}", error.hint) from None

    def distance(self, metric: Metric, vector: Any, exact: bool = False) -> Distance:
        """Return the distance of the column from a vector, or from another column, by a metric.

        :raises ValueRefused: for a vector that has no such distance.
        """
        if isinstance(vector, Node):
            other = getattr(vector, "codec", None)
            if isinstance(other, Codec) and other.declared != self.codec.declared:
                mine = self.codec.declared
                raise ValueRefused(
                    f"the distance from {column_of(self)} takes a column of {mine}, not {other.declared}",
                    "compare columns of one type and dimension",
                )
            return Distance(self, metric, vector, exact)
        codec = replace(self.codec, refuses_zero=metric is COSINE)
        try:
            return Distance(self, metric, StoredVector(codec, vector), exact)
        except NotAVector as error:
            raise ValueRefused(f"the distance from {column_of(self)} takes {error.what}", error.hint) from None

    def cosine_distance(self, vector: Any) -> Distance:
        """Return 1 minus the cosine of the angle between the vectors: from 0 to 2."""
        return self.distance(COSINE, vector)

    def l2_distance(self, vector: Any) -> Distance:
        """Return the Euclidean distance."""
        return self.distance(L2, vector)

    def max_inner_product(self, vector: Any) -> Distance:
        """Return the negative inner product, so that lower is closer."""
        return self.distance(INNER_PRODUCT, vector)


def _require_known(dimensions: int, metric: str, index: str | None, type: str) -> None:
    if metric not in METRICS:
        raise ModelError(f"there is no metric {metric!r}", f"choose one of {', '.join(METRICS)}")
    if type not in TYPES:
        raise ModelError(f"there is no type {type!r} of vectors", f"choose one of {', '.join(TYPES)}")
    if index not in (None, "hnsw"):
        raise ModelError(f"there is no index {index!r} of vectors", 'give index="hnsw", or leave it out')
    if isinstance(dimensions, bool) or not isinstance(dimensions, int) or not 0 < dimensions <= TYPES[type]:
        raise ModelError(f"a {type} cannot have {dimensions!r} dimensions", f"give a number from 1 to {TYPES[type]:,}")
    most = MOST_INDEXED[type]
    if index is not None and dimensions > most:
        other = f'; or type="halfvec", which takes {MOST_INDEXED["halfvec"]:,}' if type == "vector" else ""
        fits = other if dimensions <= MOST_INDEXED["halfvec"] else ""
        raise ModelError(
            f"an HNSW index takes at most {most:,} dimensions of type {type}, not {dimensions:,}",
            f"leave out the index{fits}",
        )
