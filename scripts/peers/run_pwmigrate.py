"""Run pwmigrate, which Peewee installs: the migrations of a folder, which `make` generates from a comparison."""

import logging
import sys

from models import MODELS, database
from peewee_connection import close as close
from peewee_connection import connect as connect
from playhouse.migrations import Runner, template
from playhouse.schema_diff import diff_models

logging.getLogger("playhouse.migrations").setLevel(logging.ERROR)


def make() -> None:
    """Run the migrations that there are, and write the one from there to the models."""
    runner = Runner(database, "migrations")
    runner.up()
    runner.create("auto", body=template(diff_models(database, MODELS)))


def run() -> None:
    """Run the migrations that were not run yet."""
    Runner(database, "migrations").up()


def diff() -> None:
    """Compare the models with the database."""
    if diff_models(database, MODELS):
        raise SystemExit("the schema differs from the models")


if __name__ == "__main__":
    with database.connection_context():
        diff() if "diff" in sys.argv else run()
