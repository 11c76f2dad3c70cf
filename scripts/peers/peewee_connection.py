"""The connection of the tools that work on Peewee's own database."""

from models import database


def connect() -> None:
    """Open the connection."""
    database.connect(reuse_if_open=True)
    database.execute_sql("SELECT 1")


def close() -> None:
    """Close the connection."""
    database.close()
