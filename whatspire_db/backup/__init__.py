"""Backups that prove themselves: made while others write, tried out, and brought back with nothing lost in between."""

from .archive import Backup, Content, Manifest, NotABackup, Table
from .making import create
from .proving import LATEST, find, list_backups, verify
from .pruning import Pruned, prune
from .restoring import Restored, restore
from .retention import Policy

__all__ = [
    "LATEST",
    "Backup",
    "Content",
    "Manifest",
    "NotABackup",
    "Policy",
    "Pruned",
    "Restored",
    "Table",
    "create",
    "find",
    "list_backups",
    "prune",
    "restore",
    "verify",
]
