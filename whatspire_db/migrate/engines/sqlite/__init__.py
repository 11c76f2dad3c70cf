"""Migrations of SQLite."""
