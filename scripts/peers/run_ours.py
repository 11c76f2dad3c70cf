"""Run whatspire_db's migrator."""

from models import MODELS, database

from whatspire_db import MigrationRunner


def connect() -> None:
    """Open the connection."""
    database.connect(reuse_if_open=True)
    database.execute_sql("SELECT 1")


def close() -> None:
    """Close the connection, and what a pool holds."""
    database.close()
    if hasattr(database, "close_all"):
        database.close_all()


def make() -> None:
    """Nothing: there are no migration files."""


def run() -> None:
    """Migrate, by a new runner as at every start."""
    MigrationRunner(database, MODELS).up()
