"""PostgreSQL: whether a dump holds what its manifest says, and can be restored on a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from whatspire_db.backup.manifest import Content, Progress, differences, silent
from whatspire_db.dsn.targets import PostgresTarget
from whatspire_db.errors import (
    BackupFailed,
    BackupInvalid,
    TargetRefused,
    VersionMismatch,
)
from whatspire_db.sql import quoted, version_of

from . import tools as pg_tools
from .content import COPIED, EXTENSIONS, content_of, hashing_for, sequences_of, sequences_to_compare, sources_of
from .emptiness import is_empty
from .filling import fill
from .properties import may_act_for
from .scratch import scratch
from .server import Session, maintenance, session
from .swapping import require_direct
from .trust import require_trusted

MAGIC = b"PGDMP"


def without_triggers(asked: Session, target: PostgresTarget) -> PostgresTarget:
    """Return a target whose sessions fire no triggers by beginning, which may write; where this role may have it so."""
    if asked.major < 17 or not asked.is_superuser:
        return target
    options = f"{target.arguments.get('options', '')} -c event_triggers=off".strip()
    return PostgresTarget({**target.arguments, "options": options})


def check(file: Path, dumped_by: int, progress: Progress = silent) -> None:
    """Read a dump to its end.

    :param dumped_by: the major version of the program that made it.
    :raises BackupInvalid: when it is none, or damaged.
    """
    with file.open("rb") as raw:
        if raw.read(len(MAGIC)) != MAGIC:
            raise BackupInvalid(f"{file.name} is not a dump in PostgreSQL's custom format", "take another backup")
    progress("reading the dump", 0, 0)
    tool = pg_tools.find("pg_restore", dumped_by, "the dump")
    try:
        pg_tools.run(tool, ["--file=/dev/null", str(file)], None)
    except BackupFailed as error:
        raise BackupInvalid(f"{file.name} is damaged: {error.fact}", "take another backup") from None


def test_restore(
    target: PostgresTarget, file: Path, content: Content, work: Path, progress: Progress, *, trust_source: bool
) -> list[str]:
    """Restore a dump into a scratch database of the server and return in what that differs.

    :raises SourceNotTrusted: when this role is a superuser and an owner in the dump is not, unless `trust_source`.
    """
    with maintenance(target) as admin:
        require_direct(admin)
        target = admin.pinned(target)
        require_fitting(admin, content)
        require_trusted(admin, file, content.details["dumped_by"], trust_source)
        with scratch(admin, content.details["database"], template_of(admin, target, content)) as name:
            fill(target.to(name), file, content, work, progress)
            return compared(without_triggers(admin, target.to(name)), content)


def template_of(admin: Session, target: PostgresTarget, content: Content) -> str:
    """Return what a scratch database is copied from: where this role may not make extensions, what holds them."""
    if not content.extensions or admin.is_superuser:
        return "template0"
    with session(target.to("template1")) as template:
        there = {name for name, _, _ in template.rows(EXTENSIONS)}
        fits = there >= content.extensions.keys() and is_empty(template)
    return "template1" if fits else "template0"


def require_fitting(admin: Session, content: Content) -> None:
    """Refuse a backup of a later server than this one, or one that cannot be restored here.

    :raises VersionMismatch: when it is, or when it holds an extension that is not to be had here in its version.
    :raises TargetRefused: when a role is missing that it names otherwise than as an owner or grantee.
    """
    major = content.details["major"]
    if major > admin.major:
        raise VersionMismatch(
            f"the backup is of PostgreSQL {major}, and this server is of version {admin.major}",
            f"restore it on a server of version {major} or later",
        )
    available = dict(admin.rows("SELECT name, default_version FROM pg_catalog.pg_available_extensions"))
    for name, version in content.extensions.items():
        if name not in available:
            raise VersionMismatch(
                f"the backup holds the extension {name} {version}, which this server does not have",
                f"install it on the server: {name} {version} or later",
            )
        if version_of(available[name]) < version_of(version):
            raise VersionMismatch(
                f"the backup holds the extension {name} {version}, and this server has {available[name]}",
                f"install {name} {version} or later on the server",
            )

    _require_named_roles(admin, content.details["roles"])


def _require_named_roles(admin: Session, roles: Mapping[str, Sequence[str]]) -> None:
    named = roles.get("named", ())
    if missing := sorted(set(named) - may_act_for(admin, named).keys()):
        raise TargetRefused(
            f"policies or user mappings of the backup name roles that are not there: {', '.join(missing)}",
            "; ".join(f"CREATE ROLE {quoted(name)}" for name in missing)
            + "; or drop what names them, and make another backup",
        )


def compared(target: PostgresTarget, content: Content) -> list[str]:
    """Return in what a database differs from a backup's content."""
    with session(target) as reading:
        # A later version of an extension may have more of them.
        sources = [one for one in sources_of(reading) if not one.is_extensions or one.name in content.tables]
        sources = [one if one.whole in content.tables else one._replace(whole="") for one in sources]
        copied = [name for name, table in content.tables.items() if table.fingerprint.startswith(COPIED)]
        with hashing_for(reading, sources) as hashing:
            found = content_of(reading, hashing, sources, {"sequences": sequences_of(reading)}, copied)
        noted = sequences_to_compare(reading, content.details["sequences"])
    kept = {"sequences": noted, "distributed": content.distributed}
    return differences(replace(content, details=kept), found)
