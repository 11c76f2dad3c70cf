"""Run playhouse.schema_diff and apply what it says is to be added."""

from models import MODELS, database
from peewee_connection import close as close
from peewee_connection import connect as connect
from playhouse.migrate import SchemaMigrator, migrate
from playhouse.schema_diff import SchemaDiff, diff_models


def make() -> None:
    """Nothing: there are no migration files."""


def run() -> None:
    """Compare and add, in one transaction; playhouse leaves the applying to its user."""
    diff = diff_models(database, MODELS)
    if diff:
        with database.atomic():
            _apply(diff)


def _apply(diff: SchemaDiff) -> None:
    database.create_tables(diff.create_tables)
    migrator = SchemaMigrator.from_database(database)
    for field in diff.add_columns:
        migrate(migrator.add_column(field.model._meta.table_name, field.column_name, field))
    for index in diff.add_indexes:
        if index.columns is not None:
            migrate(migrator.add_index(index.table, index.columns, index.unique))
            continue
        model = next(m for m in MODELS if m._meta.table_name == index.table)
        database.execute(next(i for i in model._meta.fields_to_index() if i._name == index.name))


if __name__ == "__main__":
    run()
