"""PostgreSQL's own programs: found, of a version that fits, and run without a secret in their arguments."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from whatspire_db.dsn.redaction import redact
from whatspire_db.dsn.targets import PostgresTarget
from whatspire_db.errors import BackupFailed, ConfigError, VersionMismatch

from .tool_errors import Said, understood

FOLDER_VARIABLE = "WHATSPIRE_PG_BIN"
DEBIAN = Path("/usr/lib/postgresql")
POLL_SECONDS = 0.1
SETS_TRANSACTION_TIMEOUT = 17  # what programs from this version on write; an older server refuses it


@dataclass(frozen=True)
class Tool:
    """A program and the major version of PostgreSQL that it is from."""

    path: str
    major: int


class ToolFailed(BackupFailed):
    """A program of PostgreSQL's failed; `said` is why."""

    def __init__(self, name: str, code: int, said: Said) -> None:
        ended = f"signal {-code}" if code < 0 else f"exit code {code}"
        super().__init__(f"{name} failed: {said.words or ended}", "see the server's log; nothing was changed")
        self.said = said


def find(name: str, at_least: int, what: str) -> Tool:
    """Return the program of the lowest version that is not below a major version.

    It is looked for in the folder that WHATSPIRE_PG_BIN names; where that is not set, on PATH and among Debian's.

    :param what: what is of that version, for the message.
    :raises BackupFailed: when there is none.
    :raises VersionMismatch: when those that are there are older.
    """
    found = [tool for path in _places(name) if (tool := _tool(path)) is not None]
    fitting = [tool for tool in found if tool.major >= at_least]
    if fitting:
        return min(fitting, key=lambda tool: tool.major)
    hint = how_to_get(name, at_least)
    if not found:
        where = f"in {os.environ[FOLDER_VARIABLE]}" if os.environ.get(FOLDER_VARIABLE) else "on PATH"
        raise BackupFailed(f"there is no {name} {where}, and version {at_least} or later is needed", hint)
    newest = max(found, key=lambda tool: tool.major)
    raise VersionMismatch(f"{newest.path} is of version {newest.major}, older than {what} of version {at_least}", hint)


def how_to_get(name: str, major: int) -> str:
    """Return what to do for a program of a version."""
    hint = (
        f"apt-get install postgresql-client-{major} (from apt.postgresql.org), or name the bin folder of version "
        f"{major} by {FOLDER_VARIABLE}"
    )
    if name == "pg_dump":
        hint += (
            "; or dump with the server's own pg_dump, without a manifest: "
            "docker compose exec -T postgres pg_dump -U USER -Fc DATABASE > database.dump"
        )
    return hint


def require_taken(tool: Tool, server: int, hint: str) -> None:
    """Refuse a program that writes what a server does not take.

    :raises VersionMismatch: when it does.
    """
    if server < SETS_TRANSACTION_TIMEOUT <= tool.major:
        raise VersionMismatch(
            f"{tool.path} is of version {tool.major}, and what it writes cannot be restored on a server of version "
            f"{server}",
            hint,
        )


def _places(name: str) -> Iterator[str]:
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        path = os.path.join(named, name)
        if not os.path.isfile(path):
            raise ConfigError(
                f"{FOLDER_VARIABLE} is {named!r}, where there is no {name}", "name PostgreSQL's bin folder"
            )
        yield path
        return
    on_path = shutil.which(name)
    if on_path:
        yield on_path
    yield from map(str, DEBIAN.glob(f"*/bin/{name}"))


@lru_cache
def _tool(path: str) -> Tool | None:
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    version = re.search(r"\) (\d+)", done.stdout)
    return Tool(path, int(version[1])) if version else None


def run(
    tool: Tool, arguments: Sequence[str], target: PostgresTarget | None, tick: Callable[[], None] = lambda: None
) -> str:
    """Run a program to its end, call `tick` meanwhile, and return its output.

    Bytes of the output that are not UTF-8, such as a name in LATIN1, are surrogates.

    :param target: what it connects to, where it does.
    :raises ToolFailed: with what it said, when it failed.
    """
    with (
        _passfile(target) as (environment, passed),
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="surrogateescape", newline="\n") as out,
    ):
        command = [tool.path, *arguments]
        if target is not None:
            command += ["--no-password", "--dbname", conninfo(target)]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, env=_in_english(environment), pass_fds=passed
        )
        try:
            while process.poll() is None:
                tick()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_SECONDS)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        errors.seek(0)
        out.seek(0)
        said, output = errors.read(), out.read()
    if process.returncode:
        name = os.path.basename(tool.path)
        text = redact(said, target.secrets if target else ())
        raise ToolFailed(name, process.returncode, understood(name, text))
    return output


def _in_english(environment: dict[str, str]) -> dict[str, str]:
    """Return an environment in which programs word their messages in English; names keep their encoding."""
    kept = {name: value for name, value in environment.items() if name not in ("LANGUAGE", "LC_ALL", "LC_MESSAGES")}
    ctype = environment.get("LC_ALL") or environment.get("LC_CTYPE") or environment.get("LANG")
    return {**kept, **({"LC_CTYPE": ctype} if ctype else {}), "LC_MESSAGES": "C"}


def conninfo(target: PostgresTarget) -> str:
    """Return a connection string of all that is not secret; every user of the machine can read it while it runs."""
    return " ".join(f"{key}={_quoted(value)}" for key, value in target.public.items())


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


@contextmanager
def _passfile(target: PostgresTarget | None) -> Iterator[tuple[dict[str, str], tuple[int, ...]]]:
    """Give an environment that leads libpq to the password, in a file that this user alone can read, for so long.

    https://www.postgresql.org/docs/current/libpq-pgpass.html
    """
    password = target.arguments.get("password") if target else None
    others = set(target.secrets) - {password} if target else set()
    if others:
        raise ConfigError(
            "the DSN holds a secret besides the password, which PostgreSQL's programs take in their arguments alone",
            "take it out of the DSN: a key without a passphrase, or a service file",
        )
    environment = {name: value for name, value in os.environ.items() if name != "PGPASSWORD" or not password}
    if not password:
        yield environment, ()
        return
    if "\n" in password:
        raise ConfigError("the password holds a line break, which no passfile can hold", "give the role another one")
    line = "*:*:*:*:" + password.replace("\\", "\\\\").replace(":", "\\:") + "\n"
    if hasattr(os, "memfd_create"):  # nothing to find for anybody, should this process be killed
        descriptor = os.memfd_create("passfile")
        try:
            os.fchmod(descriptor, 0o600)
            os.write(descriptor, line.encode())
            yield {**environment, "PGPASSFILE": f"/proc/self/fd/{descriptor}"}, (descriptor,)
        finally:
            os.close(descriptor)
        return
    with tempfile.TemporaryDirectory(prefix="whatspire-") as folder:
        path = os.path.join(folder, "passfile")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(line)
        yield {**environment, "PGPASSFILE": path}, ()
