"""Backups that prove themselves: made while others write, tried out, and brought back with nothing lost in between."""

from .archive import Backup, NotABackup
from .create import create
from .manifest import Content, Manifest, Table
from .prune import Pruned, prune
from .restore import Restored, restore
from .retention import Policy
from .verify import LATEST, find, list_backups, verify

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
