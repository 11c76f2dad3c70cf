"""Filling an empty PostgreSQL database from a dump: all of it, but for what the role may not restore."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..dsn import PostgresTarget
from ..errors import BackupFailed
from . import pg_tools
from .archive import Content, Progress
from .pg_content import EXTENSIONS
from .pg_server import RESTORING, Session, may_act_for, session

logger = logging.getLogger("whatspire_db.backup")


def fill(target: PostgresTarget, file: Path, content: Content, work: Path, progress: Progress) -> None:
    """Restore a dump into an empty database, in one transaction, and analyze it."""
    with session(target) as filling:
        least = max(content.details["dumped_by"], filling.major)
        tool = pg_tools.find("pg_restore", least, "the dump or the server")
        later = least > filling.major
        hint = f"restore it on a server of version {least}" if later else pg_tools.how_to_get("pg_restore", least)
        pg_tools.require_taken(tool, filling.major, hint)
        entries = work / "entries"
        listing = _entries(tool, file, filling, content.details["schemas"])
        entries.write_text(listing, encoding="utf-8", errors="surrogateescape")
        arguments = ["--single-transaction", "--exit-on-error", f"--use-list={entries}"]
        arguments += _left_to_roles(filling, content.details["roles"])
        arguments += _left_to_tablespaces(filling, content.details["tablespaces"])
        target = PostgresTarget({**target.arguments, "application_name": RESTORING})
        options = []
        if content.details["hnsw"]:
            # In little memory a graph takes four times as long; in parallel it wants shared memory, of which
            # containers have little.
            options.append("-c maintenance_work_mem=1GB -c max_parallel_maintenance_workers=0")
        options += [target.arguments["options"]] if "options" in target.arguments else []
        options.append("-c default_transaction_read_only=off")  # the last one counts
        target = PostgresTarget({**target.arguments, "options": " ".join(options)})

        def tick() -> None:
            progress("restoring", filling.value("SELECT pg_database_size(current_database())"), 0)

        try:
            pg_tools.run(tool, [*arguments, str(file)], target, tick)
        except BackupFailed as error:
            raise _restore_failed(error) from None
        progress("analyzing", 0, 0)
        filling.rows("ANALYZE")


def _entries(tool: pg_tools.Tool, file: Path, filling: Session, owners: Mapping[str, str]) -> str:
    """Return what of a dump is to be restored: all but the extensions that are there, and their schemas.

    :param owners: of the backup's schemas.
    """
    left_out = []
    for name, _, schema in filling.rows(EXTENSIONS):
        owner = re.escape(owners[schema]) if schema in owners else r"\S*"
        left_out += [f"(?:EXTENSION -|COMMENT - EXTENSION) {re.escape(name)} ", f"SCHEMA - {re.escape(schema)} {owner}"]
    left_out += _left_of_public(filling, owners.get("public"))
    matched = re.compile(rf"\d+; \d+ \d+ (?:{'|'.join(left_out) or '(?!)'})")
    listing = pg_tools.run(tool, ["--list", str(file)], None)
    return "".join(f"{line}\n" for line in listing.splitlines() if not matched.fullmatch(line))


def _left_of_public(asked: Session, owner: str | None) -> list[str]:
    """Return the entries for owner and grants of the schema public that this role cannot restore.

    It is there in any database; where a server before 15 made it, it is the first superuser's.
    """
    if owner in (None, "pg_database_owner") or may_act_for(asked, [owner]).get(owner):
        return []
    logger.warning("the schema public is left as it is made: this role may not act for %s, who owned it", owner)
    return [f"(?:SCHEMA -|ACL - SCHEMA) public {re.escape(owner)}"]


def _left_to_roles(asked: Session, needed: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the options that leave out what this role cannot restore, or names roles that are not there.

    :param needed: by what for.
    """
    roles = may_act_for(asked, {name for names in needed.values() for name in names})
    usable = {name for name, may in roles.items() if may}
    if not usable.issuperset(needed.get("owners", ())):
        logger.warning("all that is restored belongs to this role, without grants: it may not act for all who owned it")
        return ["--no-owner", "--no-privileges"]
    missing = {name for names in needed.values() for name in names if name not in roles}
    if missing:
        logger.warning("grants are left out: there is no role %s", ", ".join(sorted(missing)))
        return ["--no-privileges"]
    # What another one than the owner granted is granted again in its name, which superusers alone can take.
    others = {name for name in needed.get("defaults", ()) if name not in usable}
    if not asked.is_superuser:
        others |= set(needed.get("grantors", ())) - {asked.value("SELECT current_user")}
    if others:
        logger.warning("grants are left out: this role may not grant in the name of %s", ", ".join(sorted(others)))
        return ["--no-privileges"]
    return []


def _left_to_tablespaces(asked: Session, needed: Sequence[str]) -> list[str]:
    """Return the option that leaves tablespaces out, where some are not there, or this role may not use them."""
    usable = asked.rows(
        "SELECT spcname FROM pg_catalog.pg_tablespace "
        "WHERE spcname = ANY(%s) AND has_tablespace_privilege(oid, 'CREATE')",
        list(needed),
    )
    missing = sorted(set(needed) - {name for (name,) in usable})
    if not missing:
        return []
    logger.warning("all is restored in the database's own tablespace: there is none, or no right to %s", missing[0])
    return ["--no-tablespaces"]


def _restore_failed(error: BackupFailed) -> BackupFailed:
    extension = re.search(r'permission denied to create extension "?([^" ]+)', error.fact)
    if not extension:
        return error
    return BackupFailed(
        f"this role may not create the extension {extension[1]}",
        f"let a superuser run CREATE EXTENSION {extension[1]} in template1, or in an empty database to restore --to; "
        "or restore with a superuser",
    )
