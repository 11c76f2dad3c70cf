"""Run Peewee's own create_tables."""

from models import MODELS, database


def connect() -> None:
    """Open the connection."""
    database.connect(reuse_if_open=True)
    database.execute_sql("SELECT 1")


def close() -> None:
    """Close the connection."""
    database.close()


def make() -> None:
    """Nothing: there are no migration files."""


def run() -> None:
    """Create what tables and indexes are not there."""
    database.create_tables(MODELS, safe=True)


if __name__ == "__main__":
    run()
