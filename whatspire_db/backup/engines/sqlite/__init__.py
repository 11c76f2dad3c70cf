"""Backups of SQLite."""
