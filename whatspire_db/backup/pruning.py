"""Deleting the backups that no rule keeps."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BackupFailed, BackupInvalid, ConfigError
from ..settings import Settings
from .archive import (
    Backup,
    Progress,
    read_folder,
    silent,
)
from .durable import locked
from .engines import engine_of
from .making import SAFETY, told
from .proving import folder_of, verify_file
from .retention import Policy, Verdict, decide


@dataclass(frozen=True)
class Pruned:
    """What became of a backup and why: kept, deleted, or damaged and left alone."""

    backup: Backup
    fate: str
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"path": str(self.backup.file), "fate": self.fate, "reasons": list(self.reasons)}


def prune(
    settings: Settings | None = None,
    folder: str | Path | None = None,
    policy: Policy | None = None,
    *,
    name: str | None = None,
    dry_run: bool = False,
    proved: Backup | None = None,
    progress: Progress = silent,
) -> list[Pruned]:
    """Delete the backups of a database that no rule keeps, and return what became of each, the latest first.

    Those that are kept instead of others are read to their end before anything is deleted: what is damaged counts
    for nothing, and is left alone. The backups of other databases, and all other files, are not touched.

    :param proved: one that was made just now, and need not be read.
    :raises ConfigError: when there is no rule.
    """
    if not policy:
        raise ConfigError(
            "no rule says what to keep", "give --keep-last, --keep-daily, --keep-weekly or --keep-monthly"
        )
    settings = settings or Settings.from_environment()
    engine = engine_of(settings)
    place = folder_of(folder, settings)
    with told():
        if not place.is_dir():
            raise BackupFailed(f"the folder {place} does not exist", "give another one by --dir")
        source, wanted = engine.source, name or engine.name
        with locked(place):
            found = [b for b in read_folder(place)[0] if (b.manifest.name, b.manifest.source) == (wanted, source)]
            verdicts, damaged = _decided(found, policy, proved, progress)
            if not dry_run:
                for verdict in verdicts:
                    if not verdict.kept:
                        _delete(verdict.item)
    fates = {
        v.item.file: Pruned(v.item, "kept" if v.kept else "deleted", v.reasons or ("no rule keeps it",))
        for v in verdicts
    }
    fates |= {b.file: Pruned(b, "damaged", (reason,)) for b, reason in damaged}
    return [fates[b.file] for b in found]


def _decided(
    found: list[Backup], policy: Policy, proved: Backup | None, progress: Progress
) -> tuple[list[Verdict[Backup]], list[tuple[Backup, str]]]:
    """Decide again without each backup that turns out to be damaged, until all that are kept are good."""
    good = {proved.file} if proved else set()
    damaged = [(b, f"{b.file}: it or its manifest is not a plain file") for b in found if b.is_foreign]
    while True:
        left = [b for b in found if b not in [bad for bad, _ in damaged]]
        verdicts = _verdicts(left, policy)
        if all(v.kept for v in verdicts):
            return verdicts, damaged
        unknown = next((v.item for v in verdicts if v.kept and v.item.file not in good), None)
        if unknown is None:
            return verdicts, damaged
        try:
            verify_file(unknown, progress)
            good.add(unknown.file)
        except BackupInvalid as error:
            damaged.append((unknown, error.fact))


def _verdicts(backups: list[Backup], policy: Policy) -> list[Verdict[Backup]]:
    """Decide by the policy; what restores put aside stands for itself, and evicts nothing else."""
    aside = [backup for backup in backups if backup.manifest.purpose == SAFETY]
    others = [backup for backup in backups if backup.manifest.purpose != SAFETY]
    return [
        *decide(others, lambda b: b.manifest.time, policy),
        *decide(aside, lambda b: b.manifest.time, Policy(last=max(1, policy.last))),
    ]


def _delete(backup: Backup) -> None:
    """Delete the file first: a manifest without it takes no room, and the next run finds it."""
    for path in (backup.file, backup.manifest_path):
        with suppress(FileNotFoundError):
            path.unlink()
