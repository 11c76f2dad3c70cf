"""Migrations of PostgreSQL."""

NAME_BYTES = 63  # of a name: NAMEDATALEN - 1
