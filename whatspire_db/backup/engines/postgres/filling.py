"""Filling an empty PostgreSQL database from a dump: all of it, but for what the role may not restore."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from whatspire_db import messages
from whatspire_db.backup.manifest import Content, Progress
from whatspire_db.dsn.targets import PostgresTarget
from whatspire_db.errors import BackupFailed

from . import tools as pg_tools
from .afterwards import afterwards, finish
from .content import EXTENSIONS
from .dump_file import Entry, entries_of, needing, owns_any, title
from .properties import may_act_for
from .server import Session, session
from .swapping import RESTORING
from .waiting import run

logger = logging.getLogger("whatspire_db.backup")

_EXTENSION = 3079  # catalogs by their oids, which are the same on every server
# Casts, transforms, conversions, access methods, operator classes and families, foreign data wrappers, servers, user
# mappings, languages, parsers and templates of text search: a plain role may make few of them.
_FOR_SUPERUSERS = {2605, 3576, 2607, 2601, 2616, 2753, 2328, 1417, 1418, 2612, 3601, 3764}
_HINT = "restore with a superuser, mend it in the database and make another backup, or give the server what it lacks"
_ROWS_HINT = (
    "a restore has an empty search_path: functions of checks, generated columns, indexes and triggers must name all "
    "they use with its schema, or ALTER FUNCTION ... SET search_path; else make room on the server, or see its log"
)


def fill(target: PostgresTarget, file: Path, content: Content, work: Path, progress: Progress) -> None:
    """Restore a dump into an empty database, in one transaction, and analyze it.

    What can wait is restored after that transaction, and what this role may not make is left out: see `afterwards`.

    :raises BackupFailed: when an entry cannot be restored that others, or rows, depend on.
    """
    with session(target) as filling:
        tool = _tool(content, filling)
        entries = _to_restore(entries_of(tool, file), filling, content.details["schemas"])
        waiting = afterwards(entries)
        first = [one for one in entries if one not in waiting]
        roles, owners = content.details["roles"], content.details["roles"].get("owners", ())
        options = _left_to_roles(filling, {**roles, "owners": [name for name in owners if owns_any(name, first)]})
        options += _left_to_tablespaces(filling, content.details["tablespaces"])
        filled = _Filling(filling, tool, file, work, [*options, "--single-transaction", "--exit-on-error"], owners)
        filled.restore(_target(target, filling, content), first, progress)
        if not all(may_act_for(filling, owners).get(name) for name in owners):
            options.append("--no-owner")
        finish(target, tool, file, waiting, options, owners, work, progress)
        progress("analyzing", 0, 0)
        filling.rows("ANALYZE")


def _tool(content: Content, filling: Session) -> pg_tools.Tool:
    """Return a pg_restore that reads the dump and writes what the server takes."""
    least = max(content.details["dumped_by"], filling.major)
    tool = pg_tools.find("pg_restore", least, "the dump or the server")
    later = least > filling.major
    hint = f"restore it on a server of version {least}" if later else pg_tools.how_to_get("pg_restore", least)
    pg_tools.require_taken(tool, filling.major, hint)
    return tool


def _target(target: PostgresTarget, filling: Session, content: Content) -> PostgresTarget:
    """Return where pg_restore connects to, with the settings that it needs."""
    options = []
    if content.details["hnsw"]:
        # In little memory a graph takes four times as long; in parallel it wants shared memory, of which containers
        # have little.
        options.append("-c maintenance_work_mem=1GB -c max_parallel_maintenance_workers=0")
    if filling.is_superuser:
        options.append("-c lc_messages=C")  # of a message in English more can be shown without showing values
    options += [target.arguments["options"]] if "options" in target.arguments else []
    # The last one counts. Without array_nulls, which a role may have turned off, NULLs in arrays would be texts.
    options.append("-c default_transaction_read_only=off -c array_nulls=on")
    return PostgresTarget({**target.arguments, "application_name": RESTORING, "options": " ".join(options)})


def _to_restore(entries: Sequence[Entry], filling: Session, owners: Mapping[str, str]) -> list[Entry]:
    """Return what of a dump is to be restored: all but the extensions that are there, and their schemas.

    :param owners: of the backup's schemas.
    """
    left_out = []
    for name, _, schema in filling.rows(EXTENSIONS):
        owner = re.escape(owners[schema]) if schema in owners else r"\S*"
        left_out += [f"(?:EXTENSION -|COMMENT - EXTENSION) {re.escape(name)} ", f"SCHEMA - {re.escape(schema)} {owner}"]
    left_out += _left_of_public(filling, owners.get("public"))
    matched = re.compile("|".join(left_out) or "(?!)")
    return [entry for entry in entries if not matched.fullmatch(entry.words)]


@dataclass(frozen=True)
class _Filling:
    """A dump that is restored into a database."""

    session: Session
    tool: pg_tools.Tool
    file: Path
    work: Path
    options: Sequence[str]
    owners: Collection[str]

    def restore(self, target: PostgresTarget, entries: Sequence[Entry], progress: Progress) -> None:
        """Restore entries in one transaction; again without one that this role may not make, as long as there is one.

        Such an entry stands before all rows, so another try costs little.
        """
        left_out: dict[int, str] = {}
        while failure := self._failure(target, [one for one in entries if one.number not in left_out], progress):
            entry = next((one for one in entries if one.number == failure.said.entry), None)
            if entry is None or entry.catalog not in _FOR_SUPERUSERS or self.session.is_superuser:
                raise self._refusal(failure, entry, entries, left_out.values())
            left_out |= self._with_dependents(entry, entries, failure)
        for reason in filter(None, left_out.values()):
            logger.warning("left out: %s", reason)

    def _failure(
        self, target: PostgresTarget, entries: Sequence[Entry], progress: Progress
    ) -> pg_tools.ToolFailed | None:
        listed = self.work / "entries"
        text = "".join(f"{entry.line}\n" for entry in entries)
        listed.write_text(text, encoding="utf-8", errors="surrogateescape")

        def tick() -> None:
            progress("restoring", self.session.value("SELECT pg_database_size(current_database())"), 0)

        try:
            arguments = [*self.options, "--verbose", f"--use-list={listed}", str(self.file)]
            run(self.tool, arguments, target, lambda failure: failure.said.entry is None, tick)
        except pg_tools.ToolFailed as failure:
            return failure
        return None

    def _with_dependents(self, entry: Entry, entries: Sequence[Entry], failure: pg_tools.ToolFailed) -> dict[int, str]:
        """Return the numbers of an entry and of all that needs it, and why it is left out.

        :raises BackupFailed: when tables, functions or the like need it.
        """
        numbers = needing(entries, [entry.number])
        name = self._title(entry)
        for one in entries:
            if one.number in numbers - {entry.number} and not _goes_with(one):
                raise BackupFailed(
                    f"{name} cannot be restored, and {self._title(one)} needs it: {failure.said.words}",
                    "restore as a superuser, which may create it; nothing was changed",
                )
        return dict.fromkeys(numbers, "") | {entry.number: f"{name}: {failure.said.words}"}

    def _refusal(
        self,
        failure: pg_tools.ToolFailed,
        entry: Entry | None,
        entries: Sequence[Entry],
        left_out: Iterable[str],
    ) -> BackupFailed:
        """Return the error for an entry that cannot be restored."""
        if entry is None:
            return failure
        name, said = self._title(entry), failure.said
        if entry.catalog == _EXTENSION and not self.session.is_superuser:
            return _extension_refused(name.removeprefix("extension "), said.words)
        with_rows = _is_behind_rows(entry, entries)
        words = said.without_values if with_rows else said.words
        fact = f"{name} cannot be restored: {words or 'the server refuses its rows'}"
        if said.function:
            fact += f", in {said.function}"
        without = f"; left out before: {'; '.join(filter(None, left_out))}" if any(left_out) else ""
        return BackupFailed(fact, f"{_ROWS_HINT if with_rows else _HINT}; nothing was changed{without}")

    def _title(self, entry: Entry) -> str:
        return messages.clean(title(entry, self.owners))


def _is_behind_rows(entry: Entry, entries: Sequence[Entry]) -> bool:
    """Tell whether an entry holds rows, or reads some: the server's words for it can hold their values."""
    first = next((one.number for one in entries if one.words.startswith("TABLE DATA ")), None)
    numbers = [one.number for one in entries]
    return first is not None and numbers.index(entry.number) >= numbers.index(first)


def _goes_with(entry: Entry) -> bool:
    """Tell whether an entry can be left out with another: it says something about it, or holds no rows of its own."""
    return entry.catalog in _FOR_SUPERUSERS or entry.words.startswith(("COMMENT ", "ACL ", "FOREIGN TABLE "))


def _extension_refused(name: str, words: str) -> BackupFailed:
    return BackupFailed(
        f"this role may not create the extension {name}: {words}",
        f"let a superuser run CREATE EXTENSION {name} in template1, or in an empty database to restore --to; "
        "or restore with a superuser",
    )


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
