"""One database's rows into another: from SQLite to PostgreSQL and back, with proof that both hold the same."""

from __future__ import annotations

from .transferring import check, transfer

__all__ = ["check", "transfer"]
