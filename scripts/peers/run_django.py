"""Run Django's migrate, in a project of one app; the migrations are generated."""

import os

import django
from django.core.management import call_command
from django.db import connection

os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
django.setup()


def connect() -> None:
    """Open the connection."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def close() -> None:
    """Close the connection."""
    connection.close()


def make() -> None:
    """Write the migration that leads to the models."""
    call_command("makemigrations", "service", verbosity=0)


def run() -> None:
    """Run the migrations that were not run yet."""
    call_command("migrate", verbosity=0)
