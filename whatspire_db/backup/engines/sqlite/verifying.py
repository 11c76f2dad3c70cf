"""SQLite: whether a backup holds what its manifest says, and can be restored."""

from __future__ import annotations

from pathlib import Path

from whatspire_db.backup import compression
from whatspire_db.backup.durable import new_file
from whatspire_db.backup.manifest import Content, Manifest, Progress, differences
from whatspire_db.errors import BackupInvalid

from .content import examine, opened, own, told, warn_of_fence
from .dumping import PAGES_A_STEP, back_up


def plain_file(file: Path, manifest: Manifest, work: Path, progress: Progress) -> Path:
    """Return the plain file of a backup: itself, or decompressed in a workspace."""
    if manifest.compression == "none":
        return file
    plain = new_file(work / "unpacked")
    details = manifest.content.details
    compression.decompress(file, plain, manifest.compression, progress, details["page_size"] * details["page_count"])
    return plain


def check(file: Path, manifest: Manifest, work: Path, progress: Progress) -> None:
    """Read a backup's file to its end.

    :raises BackupInvalid: when it is damaged, or holds something else than its manifest tells.
    """
    plain = plain_file(file, manifest, work, progress)
    require_same(file, manifest, plain, progress)
    if plain != file:
        plain.unlink()


def require_same(file: Path, manifest: Manifest, plain: Path, progress: Progress) -> None:
    """Compare the plain file of a backup with its manifest.

    :raises BackupInvalid: when it is damaged, or holds something else.
    """
    if lines := differences(manifest.content, examine(plain, progress, file)):
        raise BackupInvalid(f"{file} is not what its manifest tells: {lines[0]}", "take another backup")
    warn_of_fence(file, plain)


def test_restore(file: Path, manifest: Manifest, work: Path, progress: Progress) -> list[str]:
    """Restore a backup into a new file in a workspace and return in what that differs."""
    plain = plain_file(file, manifest, work, progress)
    return copied(plain, manifest.content, new_file(work / "restored"), progress)


def copied(plain: Path, content: Content, scratch: Path, progress: Progress) -> list[str]:
    """Copy a backup's plain file into another that is there, and return in what that differs from its content."""
    with told(scratch), opened(plain, "ro", immutable="1") as source, own(scratch) as target:
        back_up(source, target, PAGES_A_STEP, lambda done, total: progress("restoring", done, total))
    return differences(content, examine(scratch, progress, "what was restored"))
