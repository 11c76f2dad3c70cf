"""The tasks of the project, which .ci/run calls: `nox --list` names them, `nox -s lint types tests` runs some."""

from __future__ import annotations

import re
import sys
import tempfile
from configparser import ConfigParser

import nox

# Tasks run in the environment that CONTRIBUTING sets up, but for those that try other versions.
nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "docs", "tests"]

PYTEST = ("python", "-m", "pytest", "-q")
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
OTHERS = [python for python in PYTHONS if python != "{}.{}".format(*sys.version_info)]


@nox.session
def lint(session: nox.Session) -> None:
    """Check with ruff."""
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check with mypy: the package, and the public API as users call it, with Peewee's own stubs."""
    session.run("mypy")
    session.run("mypy", "--config-file=", "--strict", "--follow-imports=silent", "tests/public_api.py")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site; a broken link or anchor is an error."""
    with tempfile.TemporaryDirectory() as site:
        session.run("properdocs", "build", "-q", "--strict", "-f", "mkdocs.yml", "-d", site)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests of the README's command, or those that are named: `nox -s tests -- tests/test_pool.py`."""
    session.run(*PYTEST, *session.posargs, env={"WHATSPIRE_TEST_EXAMPLES": "25"})


@nox.session
def postgres16(session: nox.Session) -> None:
    """Run the tests that need a server on the older PostgreSQL; SQLite's are those of `tests`."""
    version = {"WHATSPIRE_TEST_POSTGRES_VERSION": "16", "WHATSPIRE_TEST_EXAMPLES": "10"}
    session.run(*PYTEST, "-m", "not soak and not fast", "-k", "not sqlite", env=version)


@nox.session
def german(session: nox.Session) -> None:
    """Run the tests about errors on a server of Debian's that speaks German."""
    files = (
        "tests/test_messages.py",
        *(f"tests/migrate/test_{name}.py" for name in ("rights", "refusals", "encodings")),
    )
    session.run(*PYTEST, "-k", "not sqlite", *files, env={"WHATSPIRE_TEST_POSTGRES_LANGUAGE": "de"})


@nox.session
def pysqlite(session: nox.Session) -> None:
    """Run SQLite's tests with the newer SQLite of pysqlite3."""
    names = (
        "test_sqlite_damage",
        "test_sqlite_transactions",
        "backup/test_sqlite_backup",
        "backup/test_sqlite_restore",
    )
    files = (f"tests/{name}.py" for name in names)
    with tempfile.TemporaryDirectory() as folder:
        session.run("python", "-m", "pip", "install", "-q", "--no-deps", "--target", folder, "pysqlite3-binary")
        session.run(*PYTEST, *files, env={"PYTHONPATH": folder})


@nox.session(python=OTHERS, venv_backend="venv")
def fast(session: nox.Session) -> None:
    """Run the tests that need no server with another Python than `tests` has, where it is installed."""
    session.install("-q", ".[test]")
    session.run(*PYTEST, "-m", "fast and not soak")


@nox.session(venv_backend="venv")
def oldest(session: nox.Session) -> None:
    """Run the tests that need no server with the oldest dependencies that setup.cfg allows."""
    setup = ConfigParser()
    setup.read("setup.cfg")
    floors = re.sub(r">=\s*([\d.]+).*", r"==\1", setup["options"]["install_requires"]).split("\n")
    session.install("-q", ".[test]", *filter(None, floors))
    session.run(*PYTEST, "-m", "fast and not soak")


@nox.session
def soak(session: nox.Session) -> None:
    """Run the long tests: real load and real faults, then those that measure and so run alone."""
    session.run(*PYTEST, "-m", "soak and not alone")
    session.run(*PYTEST, "-n", "0", "-m", "soak and alone")
