"""The one seam to Peewee: every private name of Peewee and playhouse that this package uses, and why.

`Model._meta`, and `__data__` and `__rel__` of instances, which Peewee documents by habit, are not listed. Other modules
use no private name, except that a subclass defines and calls the hooks of `HOOKS` on itself.
tests/test_peewee_compat.py checks this, and that the installed Peewee has each name in the shape given here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import peewee

from .light_stdlib import Any

# A private name is a tuple of four texts: where it is, "module:Class.attribute"; its shape there, which is the
# parameters of a function, "class", "property", "value" of the class or "attribute" of instances; what it is used for;
# and what breaks without it.
Private = tuple[str, str, str, str]

# Our subclasses define these, and Peewee calls them or reads them.
HOOKS: tuple[Private, ...] = (
    (
        "peewee:Database._state",
        "attribute",
        "Peewee keeps a thread's connection and its open blocks there; a property gives each task its own",
        "tasks and greenlets of one thread share a connection, and their transactions mix",
    ),
    (
        "peewee:Database._connect",
        "(self)",
        "opens a driver's connection; the databases of both engines say why it failed",
        "a failure to connect is the driver's own error, without a hint",
    ),
    (
        "peewee:Database._initialize_connection",
        "(self, conn)",
        "PostgreSQL: puts each new session into UTC",
        "times without a zone are read in the server's zone",
    ),
    (
        "peewee:Database._log_query",
        "(self, sql, params)",
        "keeps parameters out of Peewee's debug log",
        "rows' contents reach the log although LOG_PARAMETERS is off",
    ),
    (
        "peewee:SqliteDatabase._set_pragmas",
        "(self, conn)",
        "waits for the lock that a change of the journal mode takes",
        "two programs that open a new file at once fail with `database is locked`",
    ),
    (
        "peewee:BaseQuery._get_cursor_wrapper",
        "(self, cursor)",
        "makes the object that reads a query's rows; ours remembers what was read",
        "save() writes every column, and an unreadable value does not name its row",
    ),
    (
        "peewee:BaseQuery._execute",
        "(self, database)",
        "sends a query to its database; a search by an HNSW index sends its settings along",
        "such a search finds too few rows",
    ),
    (
        "peewee:ColumnBase._converter",
        "value",
        "reads the value of an expression; those within JSON columns are decoded by it",
        "values within JSON columns come back as JSON text",
    ),
)

_SCRATCH = "the scratch database lacks what the declared schema needs"
_DDL = "no DDL can be rendered"
_TABLE_OF_INDEX = "makes an index that a subclass inherits one of the subclass's own table"
_INHERITED = "the parent's table gets the index instead"
_PERCENT = "a %% in a name becomes a % on PostgreSQL"

# The functions and classes below use these.
USED: tuple[Private, ...] = (
    (
        "peewee:_ConnectionState",
        "class",
        "the base of our own state of a connection",
        "Peewee finds no `closed`, `conn`, `ctx`, `transactions` or `commit_callbacks` for a thread or task",
    ),
    ("peewee:_atomic", "class", "the base of the block that atomic() returns", "the pool cannot tell tasks apart"),
    (
        "peewee:_transaction",
        "class",
        "the base of the block that transaction() returns",
        "a block that another task leaves ends the wrong transaction; save() does not notice a rollback",
    ),
    (
        "peewee:_savepoint",
        "class",
        "the base of the block that savepoint() returns",
        "the same for savepoints; a lost session hides the error that ended the block",
    ),
    (
        "peewee:_manual",
        "class",
        "tells manual_commit() from a block that is a transaction by itself",
        "save() and the pool take manual_commit() for an open transaction",
    ),
    (
        "peewee:__exception_wrapper__",
        "value",
        "turns the errors of a driver that is used directly into Peewee's",
        "those errors keep the driver's class and are not translated",
    ),
    (
        "peewee:Database._set_server_version",
        "(self, conn)",
        "learns the server's version from the first connection",
        "Peewee renders SQL for the wrong version",
    ),
    (
        "peewee:Database._field_types",
        "attribute",
        "is part of what a model's DDL depends on",
        "the stamp of a database with other field types matches wrongly",
    ),
    (
        "peewee:SqliteDatabase._pragmas",
        "attribute",
        "the pragmas of the DSN and those given to pragma(permanent=True)",
        "connections have none of the pragmas",
    ),
    (
        "peewee:SqliteDatabase._extensions",
        "attribute",
        "says whether there are extensions to load",
        _SCRATCH,
    ),
    ("peewee:SqliteDatabase._load_aggregates", "(self, conn)", "gives the scratch one aggregates", _SCRATCH),
    ("peewee:SqliteDatabase._load_collations", "(self, conn)", "gives the scratch one collations", _SCRATCH),
    ("peewee:SqliteDatabase._load_functions", "(self, conn)", "gives the scratch one functions", _SCRATCH),
    ("peewee:SqliteDatabase._load_extensions", "(self, conn)", "gives the scratch one extensions", _SCRATCH),
    (
        "peewee:Model._dirty",
        "attribute",
        "the fields that were assigned since the row was read",
        "save() cannot tell which columns changed",
    ),
    (
        "peewee:Model._populate_unsaved_relations",
        "(self, field_dict)",
        "takes the key of a related instance that was saved after it was assigned",
        "save() writes NULL into the foreign key",
    ),
    (
        "peewee:Model._normalize_data",
        "(data, kwargs)",
        "reads the arguments of insert() and update() as Peewee does",
        "insert() and update() refuse names of fields or of columns",
    ),
    (
        "peewee:ModelCursorWrapper._constructor_list",
        "attribute",
        "the classes that a joined row is made of",
        "instances of joined rows do not remember what was read",
    ),
    ("peewee:Query._where", "attribute", "whether a search filters", "filtered searches find less exactly"),
    ("peewee:Query._order_by", "attribute", "whether a search has its own order", "older servers use no HNSW index"),
    ("peewee:Query._limit", "attribute", "how many rows a query asks for", "searches find fewer rows than there are"),
    ("peewee:Query._offset", "attribute", "how many rows a query leaves out", "the second page of a search lacks rows"),
    (
        "peewee:Model._schema",
        "attribute",
        "the schema manager of a model, whose class may be a user's own",
        _DDL,
    ),
    ("peewee:SchemaManager._create_context", "(self)", "renders DDL under the scratch tables' names", _DDL),
    ("peewee:SchemaManager._create_table", "(self, safe=True, **options)", "renders CREATE TABLE", _DDL),
    ("peewee:SchemaManager._create_index", "(self, index, safe=True)", "renders CREATE INDEX", _DDL),
    ("peewee:ModelIndex._model", "attribute", _TABLE_OF_INDEX, _INHERITED),
    ("peewee:ModelIndex._table", "attribute", _TABLE_OF_INDEX, _INHERITED),
    *(
        (f"peewee:Index.{name}", "attribute", "what a picture of the models shows of an index", "it shows none")
        for name in ("_name", "_expressions", "_unique", "_using", "_where")
    ),
    ("peewee:Entity._path", "attribute", "the parts of a name, in which a % stands for itself", _PERCENT),
    (
        "playhouse.migrate:SchemaMigrator._table",
        "(self, table, schema=None)",
        "renders a table's name; ours takes one with a dot",
        "columns cannot be added to a table like data.csv",
    ),
    ("peewee:SchemaManager._create_foreign_key", "(self, field)", "renders a deferred reference", _DDL),
    ("peewee:Field._sequence_parts", "(self)", "names the sequence of a field", _DDL),
    (
        "playhouse.sqlite_ext:VirtualTableSchemaManager._create_virtual_table",
        "(self, safe=True, **options)",
        "tells virtual tables from others, by being there",
        "CREATE INDEX is rendered for full-text tables, which can have none",
    ),
    (
        "peewee:Table._schema",
        "attribute",
        "the schema of a table that is rendered",
        "tables of one name in two schemas are taken for one another",
    ),
)

# Connections

ConnectionState: Any = peewee._ConnectionState
AtomicBlock: Any = peewee._atomic
TransactionBlock: Any = peewee._transaction
SavepointBlock: Any = peewee._savepoint
ManualCommitBlock: Any = peewee._manual
peewee_errors: Any = peewee.__exception_wrapper__  # a block in which a driver's errors become Peewee's


def open_blocks(db: peewee.Database) -> list[Any]:
    """Return the blocks of transactions that are open in this thread; that of manual_commit() is none by itself."""
    return [block for block in db._state.transactions if not isinstance(block, ManualCommitBlock)]


def driver_connection(db: peewee.Database) -> Any:
    """Open a connection of the driver that no pool and no thread knows of."""
    from playhouse.pool import PooledDatabase  # only the migrator asks

    return super(PooledDatabase, db)._connect() if isinstance(db, PooledDatabase) else db._connect()


def set_up(db: peewee.Database, connection: Any) -> None:
    """Do with a new connection what Peewee's connect() does."""
    if db.server_version is None:
        db._set_server_version(connection)
    db._initialize_connection(connection)


def pragmas(db: peewee.SqliteDatabase) -> list[tuple[str, Any]]:
    """Return the pragmas that every connection gets."""
    return list(db._pragmas)


def load_extras(db: peewee.SqliteDatabase, connection: Any) -> None:
    """Give another connection the functions, collations and extensions of a database."""
    db._load_aggregates(connection)
    db._load_collations(connection)
    db._load_functions(connection)
    if db._extensions:
        db._load_extensions(connection)


def field_types(db: peewee.Database) -> dict[str, str]:
    """Return the column types of a database by Peewee's names."""
    return db._field_types


# Instances and queries

INSTANCE_ATTRIBUTES = {"__data__", "__rel__", "_dirty"}  # what Peewee's constructor sets


def new_instance(model: Any, data: dict[str, Any]) -> Any:
    """Return an instance with what Peewee's constructor sets for a row, in half the time."""
    instance = object.__new__(model)
    instance.__data__, instance.__rel__, instance._dirty = data, {}, set()
    return instance


def dirty(instance: Any) -> set[str]:
    """Return the names of the fields that were assigned; the set itself, which may be changed."""
    return instance._dirty


def copied_attributes(instance: Any) -> dict[str, Any]:
    """Return the attributes of an instance; related instances and assigned fields may be changed apart from it."""
    return {**vars(instance), "__rel__": dict(instance.__rel__), "_dirty": set(instance._dirty)}


def take_related_keys(instance: Any) -> None:
    """Set foreign keys whose related instances got their keys since they were assigned."""
    instance._populate_unsaved_relations(dict(instance.__data__))


def by_field(model: Any, data: Any, values: dict[str, Any]) -> Any:
    """Return the arguments of insert() or update() by field."""
    return model._normalize_data(data, values)


def wrap_constructors(rows: Any, wrap: Callable[[Any, Any, bool], Any]) -> None:
    """Replace what makes the instances of joined rows.

    :param wrap: takes the source that an instance is of, its constructor and whether that is a model.
    """
    rows._constructor_list = [(key, wrap(key, made, model), model) for key, made, model in rows._constructor_list]


def condition_of(query: Any) -> Any:
    """Return the condition of a query, the same object in its copies."""
    return query._where


def order_of(query: Any) -> Any:
    """Return the ORDER BY of a query, the same object in its copies."""
    return query._order_by


def limit_of(query: Any) -> tuple[int | None, int | None]:
    """Return the LIMIT and the OFFSET of a query."""
    return query._limit, query._offset


# DDL


def schema_manager(
    db: peewee.Database, model: Any, make_context: Callable[[Any], Any] | None = None, **options: Any
) -> Any:
    """Return a model's schema manager for a database.

    :param make_context: makes the contexts that it renders with; default: Peewee's.
    """
    kind = type(model._schema)
    if make_context is not None:
        kind = type(kind.__name__, (kind,), {"_create_context": make_context})
    return kind(model, db, **options)


def is_virtual(manager: Any) -> bool:
    """Return whether a schema manager is that of a virtual table."""
    return hasattr(manager, "_create_virtual_table")


def table_context(manager: Any) -> Any:
    """Return CREATE TABLE, or CREATE VIRTUAL TABLE."""
    return manager._create_table(safe=False)


def index_context(manager: Any, index: Any) -> Any:
    """Return CREATE INDEX."""
    return manager._create_index(index, safe=False)


def index_of(model: Any, index: Any) -> Any:
    """Return an index as one of a model's table; a subclass gets those of its parent, still on the parent's table."""
    if index._model is model:
        return index
    copy = index.clone()
    copy._model, copy._table = model, model._meta.table
    return copy


def parts_of(index: Any) -> tuple[str, list[Any], bool, str, Any]:
    """Return an index's name, its expressions, whether it is unique, its method and its condition."""
    return index._name, list(index._expressions), bool(index._unique), str(index._using or ""), index._where


def path_of(entity: peewee.Entity) -> tuple[str, ...]:
    """Return the parts of a quoted name."""
    return tuple(entity._path)


def schema_migrator(db: Any) -> Any:
    """Return playhouse's migrator for a database, which takes a table's name as it is: it refuses one with a dot."""
    from playhouse.migrate import SchemaMigrator  # loads much that only a step needs

    kind = type(SchemaMigrator.from_database(db))

    def table(migrator: Any, name: str, schema: str | None = None) -> peewee.Entity:
        return peewee.Entity(schema or migrator.schema, name)

    return type(kind.__name__, (kind,), {"_table": table})(db)


def foreign_key_context(manager: Any, field: peewee.ForeignKeyField) -> Any:
    """Return ALTER TABLE ... ADD CONSTRAINT of a reference."""
    return manager._create_foreign_key(field)


def empty_context(manager: Any) -> Any:
    """Return a context that renders as the manager's own do."""
    return manager._create_context()


def sequence_parts(field: peewee.Field) -> tuple[str, ...]:
    """Return the schema and the name of a field's sequence."""
    return field._sequence_parts()


def schema_of(table: peewee.Table) -> str | None:
    """Return the schema that a table is rendered with."""
    return table._schema


def as_pinned(db: peewee.Database, given: Sequence[Any]) -> tuple[Any, ...]:
    """Return parameters that mean the same whatever standard_conforming_strings is, and has been, in this session.

    For a text with a backslash psycopg2 looks at two values of it: that of the session's start, and that of now.
    """
    if "\\" not in repr(given) or not hasattr(db.connection(), "get_parameter_status"):
        return tuple(given)
    from .sql import written

    return tuple(map(written, given))
