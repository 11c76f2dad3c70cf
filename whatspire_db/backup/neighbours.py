"""Whose files are taken for backups in a folder that others can write to."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..errors import BackupInvalid
from ..files import (
    CREATED_MODE,
    others_can_add,
    others_can_write,
    owner_name,
    trusted_owners,
)


@dataclass(frozen=True)
class Neighbours:
    """Whose files are taken for backups in a folder."""

    folder: Path

    @cached_property
    def are_shut_out(self) -> bool:
        """Whether this user and root alone can put files there."""
        return not others_can_add(self.folder)

    @cached_property
    def owners(self) -> frozenset[int | None]:
        """The users whose files are taken: this one, root, and the owner that the file system gives to new files.

        CIFS and exFAT show one owner for all files, whoever wrote them.
        """
        return trusted_owners() | {_owner_of_new_files(self.folder)}

    @cached_property
    def rights_count(self) -> bool:
        """Whether the file system keeps the rights of files; CIFS and exFAT show the same ones for all."""
        status = _status_of_new_file(self.folder)
        return status is not None and not others_can_write(status)

    def require_trusted(self, path: Path, status: os.stat_result) -> None:
        """Refuse a file that another user can have planted.

        :raises BackupInvalid: when that is so.
        """
        owner = status.st_uid
        if self.are_shut_out:
            return
        if owner not in trusted_owners() and owner not in self.owners:
            fact = f"{path} belongs to {owner_name(owner)}, and other users can write to {self.folder}"
        elif others_can_write(status) and self.rights_count:
            fact = f"other users can write {path}, and to its folder {self.folder}"
        else:
            return
        raise BackupInvalid(
            fact, "it is not taken for a backup; if you trust it, copy it with its manifest into a folder of your own"
        )


def _owner_of_new_files(folder: Path) -> int | None:
    """Return the owner that the file system gives to new files of this process; None if it can make none."""
    status = _status_of_new_file(folder)
    return None if status is None else status.st_uid


def _status_of_new_file(folder: Path) -> os.stat_result | None:
    try:
        descriptor = _without_name(folder)
    except OSError:
        return None
    try:
        return os.fstat(descriptor)  # of the very file: its name could be another's by now
    finally:
        os.close(descriptor)


def _without_name(folder: Path) -> int:
    """Return a descriptor of a new file that has no name, or none any more."""
    with suppress(OSError):
        return os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, CREATED_MODE)
    probe = folder / f".whatspire-{uuid.uuid4().hex[:12]}.probe"
    descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, CREATED_MODE)
    with suppress(OSError):
        probe.unlink()
    return descriptor
