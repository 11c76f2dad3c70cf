"""Deleting the backups that no rule keeps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from ..errors import BackupFailed, BackupInvalid, ConfigError
from ..settings.durations import seconds_of
from .archive import OTHER_FOLDER, Backup, read_folder
from .create import require_name, told
from .durable import LOCK_SECONDS, locked
from .engines.base import Given, engine_of, settings_for
from .manifest import Progress, silent
from .retention import Policy, Verdict, decide
from .verify import folder_of, verify_file


@dataclass(frozen=True)
class Pruned:
    """What became of a backup and why: kept, deleted, or damaged and left alone."""

    backup: Backup
    fate: str
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"path": str(self.backup.file), "fate": self.fate, "reasons": list(self.reasons)}


def prune(
    settings: Given = None,
    folder: str | Path | None = None,
    policy: Policy | None = None,
    *,
    name: str | None = None,
    dry_run: bool = False,
    proved: Backup | None = None,
    lock_timeout: float | timedelta | str = LOCK_SECONDS,
    progress: Progress = silent,
) -> list[Pruned]:
    """Delete the backups of a database that no rule keeps, and return what became of each, the latest first.

    Those that are kept instead of others are read to their end before anything is deleted: what is damaged counts
    for nothing, and is left alone. The backups of other databases, and all other files, are not touched.

    :param proved: one that was made just now, and need not be read.
    :param lock_timeout: how long to wait for others who prune, or give a backup its name: seconds, a timedelta or a
        text like 5s.
    :raises ConfigError: when there is no rule.
    """
    if not policy:
        raise ConfigError(
            "no rule says what to keep", "give --keep-last, --keep-daily, --keep-weekly or --keep-monthly"
        )
    settings = settings_for(settings, "prune")
    wait = seconds_of("lock_timeout", lock_timeout)
    engine = engine_of(settings)
    place = folder_of(folder, settings)
    with told(place):
        if not place.is_dir():
            is_there = os.path.lexists(place)
            raise BackupFailed(f"the folder {place} {'is none' if is_there else 'does not exist'}", OTHER_FOLDER)
        owner = (engine.name if name is None else require_name(name), engine.source)
        return _prune(place, owner, policy, wait, _Proof(proved, progress), dry_run)


def _prune(
    place: Path, owner: tuple[str, str], policy: Policy, wait: float, proof: _Proof, dry_run: bool
) -> list[Pruned]:
    """Decide and delete under the folder's lock; give it back while a backup is read, which takes long."""
    while True:
        with locked(place, wait):
            found = [b for b in read_folder(place)[0] if (b.manifest.name, b.manifest.source) == owner]
            verdicts = _verdicts([b for b in found if not proof.damage(b)], policy)
            unknown = proof.unknown(verdicts)
            if unknown is None:
                for verdict in verdicts:
                    if not verdict.kept and not dry_run:
                        _delete(verdict.item)
                return [_fate(backup, verdicts, proof) for backup in found]
        proof.look_at(unknown)


def _fate(backup: Backup, verdicts: Sequence[Verdict[Backup]], proof: _Proof) -> Pruned:
    if reason := proof.damage(backup):
        return Pruned(backup, "damaged", (reason,))
    (verdict,) = [verdict for verdict in verdicts if verdict.item is backup]
    return Pruned(backup, "kept" if verdict.kept else "deleted", verdict.reasons or ("no rule keeps it",))


class _Proof:
    """What is known of backups that were read to their end: that they are good, or what their damage is."""

    def __init__(self, proved: Backup | None, progress: Progress) -> None:
        self.found: dict[tuple[Path, str], str | None] = {self._key(proved): None} if proved else {}
        self.progress = progress

    def _key(self, backup: Backup) -> tuple[Path, str]:
        return backup.file, backup.manifest.sha256

    def damage(self, backup: Backup) -> str | None:
        """Tell what is wrong with a backup; None where nothing is, or nobody has looked."""
        return self.found.get(self._key(backup))

    def unknown(self, verdicts: list[Verdict[Backup]]) -> Backup | None:
        """Return one at which somebody has to look before others are deleted; None when all that are kept are good."""
        if all(verdict.kept for verdict in verdicts):
            return None
        return next((v.item for v in verdicts if v.kept and self._key(v.item) not in self.found), None)

    def look_at(self, backup: Backup) -> None:
        """Read a backup to its end; the next decision is made with what that finds."""
        try:
            verify_file(backup, self.progress)
            self.found[self._key(backup)] = None
        except (BackupInvalid, FileNotFoundError) as error:  # one that was deleted meanwhile is not asked for again
            self.found[self._key(backup)] = str(getattr(error, "fact", error))


def _verdicts(backups: list[Backup], policy: Policy) -> list[Verdict[Backup]]:
    """Decide by the policy; what restores put aside stands for itself, and evicts nothing else."""
    aside = [backup for backup in backups if backup.manifest.is_safety]
    others = [backup for backup in backups if not backup.manifest.is_safety]
    return [
        *decide(others, lambda b: b.manifest.time, policy),
        *decide(aside, lambda b: b.manifest.time, Policy(last=max(1, policy.last))),
    ]


def _delete(backup: Backup) -> None:
    """Delete the file first: a manifest without it takes no room, and the next run finds it."""
    for path in (backup.file, backup.manifest_path):
        with suppress(FileNotFoundError):
            path.unlink()
