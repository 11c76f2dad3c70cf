"""Run peewee-migrate: the migrations of a folder, which `make` writes."""

import logging
import sys

from models import MODELS, database
from peewee_connection import close as close
from peewee_connection import connect as connect
from peewee_migrate import Router

logging.getLogger("peewee_migrate").setLevel(logging.ERROR)


def make() -> None:
    """Write the migration that leads to the models."""
    Router(database, migrate_dir="migrations").create("auto", auto=list(MODELS))


def run() -> None:
    """Run the migrations that were not run yet."""
    Router(database, migrate_dir="migrations").run()


def create_and_run() -> None:
    """Look for a difference between migrations and models first."""
    router = Router(database, migrate_dir="migrations")
    router.create("auto", auto=list(MODELS))
    router.run()


if __name__ == "__main__":
    with database.connection_context():
        create_and_run() if "create" in sys.argv else run()
