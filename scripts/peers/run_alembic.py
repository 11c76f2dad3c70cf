"""Run Alembic, in a project that `make` sets up; the revisions are generated."""

from contextlib import ExitStack
from pathlib import Path

from alembic import command
from alembic.config import Config
from models import open_engine
from sqlalchemy import text

ENVIRONMENT = """\
from alembic import context
from models import Base, open_engine


def migrate(connection):
    context.configure(connection=connection, target_metadata=Base.metadata)
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    migrate(given)
else:
    with open_engine().connect() as own:
        migrate(own)
"""

_open = ExitStack()
_connections: list = []


def connect() -> None:
    """Open the connection."""
    connection = _open.enter_context(open_engine().connect())
    connection.execute(text("SELECT 1"))
    connection.rollback()
    _connections.append(connection)


def close() -> None:
    """Close the connection and its engine's pool."""
    engine = _connections.pop().engine
    _open.close()
    engine.dispose()


def make() -> None:
    """Set the project up where there is none yet, and write the revision that leads to the models."""
    if not Path("alembic.ini").exists():
        command.init(Config("alembic.ini"), "migrations")
        Path("migrations/env.py").write_text(ENVIRONMENT)
    command.revision(Config("alembic.ini"), "auto", autogenerate=True)


def _config() -> Config:
    config = Config("alembic.ini")
    config.attributes["connection"] = _connections[-1]
    return config


def run() -> None:
    """Upgrade to the newest revision."""
    command.upgrade(_config(), "head")


def check() -> None:
    """Compare the database with the models; fails where they differ."""
    command.check(_config())
