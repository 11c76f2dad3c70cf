"""Run Peewee's own create_tables."""

from models import MODELS, database
from peewee_connection import close as close
from peewee_connection import connect as connect


def make() -> None:
    """Nothing: there are no migration files."""


def run() -> None:
    """Create what tables and indexes are not there."""
    database.create_tables(MODELS, safe=True)


if __name__ == "__main__":
    run()
