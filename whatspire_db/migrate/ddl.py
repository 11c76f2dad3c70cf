"""The DDL of models as final SQL text, rendered by peewee and playhouse.migrate."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import peewee
from peewee import SQL, Context, Entity, ForeignKeyField, Model

from .. import peewee_compat
from ..errors import ModelError
from ..light_stdlib import TYPE_CHECKING, Any, pattern
from .schema import Column, Index, IndexKey, folded_ascii

if TYPE_CHECKING:
    from playhouse.migrate import Operation, SchemaMigrator

ModelType = type[Model]

_INDEX_NAME = pattern(
    r"""\s*CREATE\s+(?:UNIQUE\s+)?INDEX\s+(?:CONCURRENTLY\s+)?(?:IF\s+NOT\s+EXISTS\s+)?
        (?:(?:"[^"]+"|\w+)\.)?(?:"((?:[^"]|"")+)"|`([^`]+)`|\[([^\]]+)\]|(\w+))""",
    re.IGNORECASE | re.VERBOSE,
)
_NAME = r'(?:"(?:[^"]|"")+"|[\w\x80-\U0010ffff]+)'
_INDEXED = pattern(rf"\sON\s+(?P<place>(?:ONLY\s+)?(?:(?P<schema>{_NAME})\s*\.\s*)?(?P<table>{_NAME}))", re.IGNORECASE)
_REFERENCES = pattern(rf"\bREFERENCES\s+(?:{_NAME}\s*\.\s*)?({_NAME})", re.IGNORECASE)
_UNIQUE_OR_QUOTED = pattern(
    r"""(?:CONSTRAINT\s+(?:"(?:[^"]|"")+"|\w+)\s+)?\bUNIQUE\b
      |(?P<quoted>'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|\[[^\]]*\])""",
    re.IGNORECASE | re.VERBOSE,
)
_PEEWEES = ("CREATE INDEX ", "CREATE UNIQUE INDEX ")  # how Peewee begins one
_UNIQUE = pattern(r"\s*CREATE\s+UNIQUE\b", re.IGNORECASE)
# What a table does without that is only referred to, and what can need other tables, sequences or functions.
_DISPENSABLE = pattern(r"\bREFERENCES\b|(?<!\bBY )\bDEFAULT\b|\bCHECK\b", re.IGNORECASE)
_PLAIN = pattern(r"(\bINDEX\s+)(?:CONCURRENTLY\s+)?(?:IF\s+NOT\s+EXISTS\s+)?", re.IGNORECASE)


class DdlContext(Context):
    """Renders tables under their names in a scratch place, without a schema, and a % in a name so that it stays one."""

    __slots__ = ("escapes", "names")

    def __init__(self, names: Mapping[ModelType, str], escapes: bool, **settings: Any) -> None:
        super().__init__(**settings)
        self.names = {(m._meta.schema, m._meta.table_name): name for m, name in names.items()}
        self.escapes = escapes

    def sql(self, obj: Any) -> Context:
        table = obj._meta.table if peewee.is_model(obj) else obj
        if isinstance(table, peewee.Table):
            name = self.names.get((peewee_compat.schema_of(table), table.__name__))
            if name is not None:
                obj = Entity(name)
        if self.escapes and isinstance(obj, Entity):
            obj = Entity(*(part.replace("%", "%%") for part in peewee_compat.path_of(obj)))
        return super().sql(obj)


def _takes_percent(db: peewee.Database) -> bool:
    """Tell whether a % in a statement of this driver stands for a value."""
    return bool(db.param == "%s")


def literal(db: peewee.Database, query: tuple[str, list[Any]]) -> str:
    """Return a rendered query as the text that the engine gets, ready for its own shell."""
    sql, params = query
    if not _takes_percent(db):
        return sql  # rendered with value_literals
    mogrify = getattr(db.cursor(), "mogrify", None)
    try:
        if mogrify is not None:
            text = mogrify(sql, peewee_compat.as_pinned(db, params))
            return text.decode() if isinstance(text, bytes) else str(text)
    except (IndexError, TypeError, ValueError):
        if not params:
            return sql  # a single % that peewee itself would not take
    if params:
        raise ModelError(f"cannot render {sql!r} with its parameters", "write the values into the SQL text")
    return sql.replace("%%", "%")  # psycopg 3, which has no mogrify


def execute(db: peewee.Database, sql: str, params: Sequence[Any] | None = None) -> Any:
    """Execute final SQL text through peewee, so that its hooks and error classes apply."""
    if params is None and _takes_percent(db):
        sql = sql.replace("%", "%%")
    return db.execute_sql(sql, peewee_compat.as_pinned(db, params or ()))


def _rendered(
    db: peewee.Database,
    model: ModelType,
    names: Mapping[ModelType, str] | None,
    render: Callable[[peewee.SchemaManager], list[Context]],
) -> list[str]:
    """Return what is rendered for a model as final texts."""
    queries = [context.query() for context in render(_manager(db, model, names))]
    if _takes_percent(db) and any("%" in sql for sql, _ in queries):  # perhaps in a name, where it stands for itself
        queries = [context.query() for context in render(_manager(db, model, names or {}, escapes=True))]
    return [literal(db, query) for query in queries]


def _manager(
    db: peewee.Database, model: ModelType, names: Mapping[ModelType, str] | None, *, escapes: bool = False
) -> peewee.SchemaManager:
    options: dict[str, Any] = {} if _takes_percent(db) else {"value_literals": True}
    if names is None:
        return peewee_compat.schema_manager(db, model, **options)

    def make_context(manager: peewee.SchemaManager) -> DdlContext:
        return DdlContext(names, escapes, **(db.get_context_options() | manager.context_options))

    return peewee_compat.schema_manager(db, model, make_context, **options)


def create_table(db: peewee.Database, model: ModelType, names: Mapping[ModelType, str] | None = None) -> list[str]:
    """Return the statements that create a model's sequences and its table.

    :param names: the names of tables in a scratch place; default their own.
    """
    tables = _rendered(db, model, names, lambda manager: [peewee_compat.table_context(manager)])
    return [*_create_sequences(db, model), *tables]


def _create_sequences(db: peewee.Database, model: ModelType) -> list[str]:
    return [
        "CREATE SEQUENCE IF NOT EXISTS " + ".".join(quote(part) for part in peewee_compat.sequence_parts(f) if part)
        for f in model._meta.sorted_fields
        if f.sequence and db.sequences
    ]


def create_target(db: peewee.Database, model: ModelType, names: Mapping[ModelType, str]) -> list[str]:
    """Return the statements that create a table for others to refer to: its columns and its keys, and no more."""
    return [*_create_sequences(db, model), *_rendered(db, model, names, lambda m: [_target(m, model)])]


def _target(manager: peewee.SchemaManager, model: ModelType) -> Context:
    context, meta = peewee_compat.empty_context(manager), model._meta
    columns = [_as_of_a_target(field.ddl(context)) for field in meta.sorted_fields]
    keys = [node for node in meta.constraints or () if not _DISPENSABLE.search(_written(node))]
    if meta.composite_key:
        parts = [Entity(meta.fields[name].column_name) for name in meta.primary_key.field_names]
        keys.append(peewee.NodeList((SQL("PRIMARY KEY"), peewee.EnclosedNodeList(parts))))
    return context.literal("CREATE TABLE ").sql(model).literal(" ").sql(peewee.EnclosedNodeList(columns + keys))


def _as_of_a_target(column: peewee.NodeList) -> peewee.NodeList:
    nodes = [node for node in column.nodes if not _DISPENSABLE.search(_written(node))]
    return peewee.NodeList(nodes, column.glue, column.parens)


def _written(node: Any) -> str:
    return str(getattr(node, "sql", "")) if isinstance(node, SQL) else ""


def written_constraints(model: ModelType) -> Iterator[str]:
    """Yield the constraints of a model and of its fields that are written as SQL."""
    for owner in (model._meta, *model._meta.sorted_fields):
        yield from filter(None, map(_written, owner.constraints or ()))


def create_indexes(
    db: peewee.Database, model: ModelType, names: Mapping[ModelType, str] | None = None
) -> Iterator[tuple[str, str]]:
    """Yield each index of a model as its name and its statement."""
    if peewee_compat.is_virtual(_manager(db, model, names)):
        return
    indexes = [own_index(db, model, index) for index in indexes_of(model) if _is_for(db, index)]
    for sql in _rendered(db, model, names, lambda m: [peewee_compat.index_context(m, index) for index in indexes]):
        head, name, rest = [*sql.split('"', 2), "", ""][:3]
        if head in _PEEWEES and name and rest.startswith(" ON "):  # no need to look for what others write
            yield name, sql
            continue
        match = _INDEX_NAME.match(sql)
        if match is None:
            raise ModelError(f"{model.__name__}: {sql!r} in Meta.indexes creates no index", "write CREATE INDEX ...")
        quoted, backticked, bracketed, bare = match.groups()
        sql = _PLAIN.sub(r"\1", sql, count=1)  # whether it is built concurrently is for the plan to say
        # Both engines take a name without quotes in lower case, or compare it so.
        yield quoted.replace('""', '"') if quoted else backticked or bracketed or bare.lower(), sql


def _is_for(db: peewee.Database, index: Any) -> bool:
    """Return whether an engine has an index: one of vectors says so itself."""
    return not hasattr(index, "is_for") or bool(index.is_for(db))


def indexes_of(model: ModelType) -> list[Any]:
    """Return a model's indexes, those of its fields first.

    :raises ModelError: when one names a field that the model does not have.
    """
    try:
        return list(model._meta.fields_to_index())
    except KeyError as error:
        raise ModelError(
            f"{model.__name__}: Meta.indexes of table {model._meta.table_name} names {error.args[0]!r}, which is no "
            "field of it",
            "correct the name, or leave that index out",
        ) from None


def own_index(db: peewee.Database, model: ModelType, index: Any) -> Any:
    """Return an index as one of the model's own table: Peewee hands those of a parent down as the parent's."""
    if isinstance(index, peewee.ModelIndex):
        return peewee_compat.index_of(model, index)
    text = _written(index)
    match = _INDEXED.search(text)
    if match is None:
        return index
    schema, table = (_unquoted(part) if part else None for part in match.group("schema", "table"))
    meta = model._meta
    parents = {m._meta.table_name: m._meta.schema for m in model.__mro__[1:] if hasattr(m, "_meta")}
    of_parent = table in parents and (schema is None or parents[table] in (None, schema))
    is_own = table == meta.table_name and (schema is None or schema == meta.schema)
    if not meta.schema or not (is_own or of_parent) or (is_own and schema):
        return index
    if db.get_context_options().get("index_schema_prefix"):
        return index  # CREATE INDEX names the schema with the index
    return SQL(index_on(text, qualified(meta.schema, meta.table_name)), index.params)


def index_on(index_sql: str, table: str) -> str:
    """Return CREATE INDEX for another table, which is given as it stands in SQL."""
    match = _INDEXED.search(index_sql)
    assert match is not None
    return index_sql[: match.start("place")] + table + index_sql[match.end("place") :]


def table_of_index(index_sql: str) -> str:
    """Return the table that CREATE INDEX names, as it stands in SQL."""
    match = _INDEXED.search(index_sql)
    assert match is not None
    return match["place"].removeprefix("ONLY ")


def referenced_tables(sql: str) -> Iterator[str]:
    """Yield the names of the tables that SQL refers to by REFERENCES, without their schemas."""
    return map(_unquoted, _REFERENCES.findall(sql) if "references" in sql.lower() else ())


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else folded_ascii(name)


def is_unique_index(index_sql: str) -> bool:
    """Tell whether CREATE INDEX creates a unique one."""
    return bool(_UNIQUE.match(index_sql))


def unqualified(index_sql: str) -> str:
    """Return CREATE INDEX on a table without its schema, as it runs in a scratch place."""
    return re.sub(r'(\sON\s+(?:ONLY\s+)?)(?:"(?:[^"]|"")+"|\w+)\.', r"\1", index_sql, count=1, flags=re.IGNORECASE)


def index_named(index_sql: str, name: str) -> str:
    """Return CREATE INDEX under another name."""
    match = _INDEX_NAME.match(index_sql)
    assert match is not None
    assert match.lastindex is not None
    start, end = match.span(match.lastindex)
    if index_sql[start - 1] in '"`[':
        start, end = start - 1, end + 1
    return index_sql[:start] + quote(name) + index_sql[end:]


def unnamed(index_sql: str) -> str:
    """Return CREATE INDEX without the index's name, so that it takes nobody's."""
    return re.sub(r'(\sINDEX)\s+(?:"(?:[^"]|"")+"|\w+)(\s+ON\s)', r"\1\2", index_sql, count=1, flags=re.IGNORECASE)


def deferred_foreign_keys(
    db: peewee.Database, model: ModelType, names: Mapping[ModelType, str] | None = None
) -> list[tuple[str, str]]:
    """Return column and statement of each reference that cannot stand in CREATE TABLE, for it closes a cycle."""
    fields = [f for f in model._meta.sorted_fields if isinstance(f, ForeignKeyField) and f.deferred]
    texts = _rendered(db, model, names, lambda m: [peewee_compat.foreign_key_context(m, f) for f in fields])
    return list(zip((f.column_name for f in fields), texts, strict=True))


def _migrator(db: peewee.Database, model: ModelType) -> SchemaMigrator:
    migrator = peewee_compat.schema_migrator(db)
    migrator.schema = model._meta.schema
    return migrator


def _text(db: peewee.Database, operation: Operation) -> str:
    context = operation.fn(operation.migrator, *operation.args, **operation.kwargs)
    sql, params = context.query()
    if params:
        raise ModelError(f"cannot render {sql!r} with parameters", "write the values into the SQL text")
    return str(sql)


class _CanonicalField(peewee.Field):
    """A column as the engine described it, for playhouse to render."""

    def __init__(self, column: Column) -> None:
        kind, _, expression = (column.generated or "").partition(" ")
        parts = [f"GENERATED ALWAYS AS {expression} {kind}" if column.generated else ""]
        when, _, counting = (column.identity or "").partition(" (")
        parts += [f"GENERATED {when} AS IDENTITY" + (f" ({counting}" if counting else "") if when else ""]
        if column.default is not None and not column.is_serial:
            parts.append(f"DEFAULT {column.default}")
        super().__init__(
            null=not column.not_null,
            column_name=column.name,
            constraints=[SQL(part) for part in parts if part],
            collation=column.collation,
        )
        serials = {"integer": "serial", "bigint": "bigserial", "smallint": "smallserial"}
        text = str(column.type)
        self.type_text = serials.get(text, text) if column.is_serial else text

    def ddl_datatype(self, ctx: Context | None) -> SQL:
        return SQL(self.type_text)


def add_canonical_column(db: peewee.Database, model: ModelType, column: Column, table: str | None = None) -> str:
    """Return ALTER TABLE ... ADD COLUMN for a column as the engine described it; its constraints come apart."""
    migrator = _migrator(db, model)
    if table is not None:
        migrator.schema = None
    name = table or model._meta.table_name
    return _text(db, migrator.alter_add_column(name, column.name, _CanonicalField(column), allow_not_null=True))


def add_declared_column(db: peewee.Database, model: ModelType, field: peewee.Field, constraints: Iterable[str]) -> str:
    """Return ALTER TABLE ... ADD COLUMN for a field as it is declared, UNIQUE left out, constraints added."""
    plain = _Declared(field)
    migrator = _migrator(db, model)
    sql = _text(db, migrator.alter_add_column(model._meta.table_name, field.column_name, plain, allow_not_null=True))
    return " ".join([sql, *constraints])


class _Declared(peewee.Field):
    """A field's own column definition, without what SQLite's ADD COLUMN does not take."""

    def __init__(self, field: peewee.Field) -> None:
        super().__init__(null=field.null, column_name=field.column_name)
        self.field = field

    def ddl(self, ctx: Context) -> Any:
        nodes = self.field.ddl(ctx)
        nodes.nodes = [_without_unique(n) if isinstance(n, SQL) else n for n in nodes.nodes]
        return peewee.ValueLiterals(nodes)


def _without_unique(node: SQL) -> SQL:
    # An index is made of it instead. What stands in quotes is no keyword.
    return SQL(_UNIQUE_OR_QUOTED.sub(lambda match: match["quoted"] or "", node.sql), node.params)


def add_constraint(db: peewee.Database, model: ModelType, name: str, definition: str) -> str:
    """Return ALTER TABLE ... ADD CONSTRAINT."""
    return _text(db, _migrator(db, model).add_constraint(model._meta.table_name, name, SQL(definition)))


def unique_definition(index: Index) -> str:
    """Return the UNIQUE constraint that an index is."""
    nulls = "NULLS NOT DISTINCT" if index.nulls_not_distinct else ""
    return " ".join(filter(None, ["UNIQUE", nulls, _keys(index), index.constraint.removeprefix("UNIQUE").strip()]))


def unique_index(table: str, index: Index) -> str:
    """Return CREATE UNIQUE INDEX on a quoted table, for a constraint to be made of it."""
    nulls = "NULLS NOT DISTINCT" if index.nulls_not_distinct else ""
    return " ".join(filter(None, [f"CREATE UNIQUE INDEX {quote(index.name)} ON {table}", _keys(index), nulls]))


def _keys(index: Index) -> str:
    periods = " WITHOUT OVERLAPS" if index.method == "gist" else ""  # the one kind of UNIQUE by such an index
    listed = f"({', '.join(map(quote, index.columns))}{periods})"
    return f"{listed} INCLUDE ({', '.join(index.include)})" if index.include else listed


def quote(name: str) -> str:
    """Quote an identifier as both engines take it."""
    return '"' + name.replace('"', '""') + '"'


def quote_text(text: str) -> str:
    """Quote a text as both engines take it; PostgreSQL with standard_conforming_strings."""
    return "'" + text.replace("'", "''") + "'"


def key_of_index(key: IndexKey) -> str:
    """Return a plain column of an index as SQL, with its collation and its order."""
    collation = f"COLLATE {key.collation}" if key.collation else ""
    return " ".join(filter(None, [quote(key.expression), collation, key.order]))


def qualified(schema: str | None, name: str) -> str:
    """Quote a name with the schema that it stands in."""
    return ".".join(quote(part) for part in (schema, name) if part)
