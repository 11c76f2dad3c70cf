"""The house: imports point down, modules open with a sentence, a worker imports no more than it needs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "whatspire_db"

# Each module may import those above it, at import time.
ORDER = [
    "errors",
    "dsn",
    "settings",
    "fields",
    "models",
    "call_site",
    "pool_state",
    "pool",
    "query_log",
    "pooling",
    "postgres_session",
    "postgres",
    "sqlite",
    "database",
    "command_line",
    "backup.shapes",
    "backup.archive",
    "backup.durable",
    "backup.compression",
    "backup.retention",
    "backup.pg_tools",
    "backup.pg_server",
    "backup.sqlite",
    "backup.pg_content",
    "backup.pg_filling",
    "backup.postgres",
    "backup.engines",
    "backup.making",
    "backup.proving",
    "backup.restoring",
    "backup.pruning",
    "backup",
    "backup.__main__",
    "migrate.schema",
    "migrate.ddl",
    "migrate.diff",
    "migrate.plan",
    "migrate.stamp",
    "migrate.progress",
    "migrate.engines.sqlite_sql",
    "migrate.engines",
    "migrate.engines.sqlite",
    "migrate.engines.postgres_catalog",
    "migrate.engines.postgres_locks",
    "migrate.engines.postgres",
    "migrate.rows",
    "migrate.planner",
    "migrate.history",
    "migrate.failures",
    "migrate.runner",
    "migrate",
    "",
    "health",
    "migrate.__main__",
]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").rstrip(".")


MODULES = {name_of(path): path for path in ROOT.rglob("*.py")}


def imported(name: str, path: Path) -> set[str]:
    """Return the modules of this package that a module imports when it is imported."""
    package = name.split(".") if path.name == "__init__.py" and name else name.split(".")[:-1]
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + (node.module or "").split(".")
            target = ".".join(part for part in base if part)
            found |= {f"{target}.{a.name}".strip(".") for a in node.names} & MODULES.keys() or {target}
    return found


def test_every_module_has_its_place() -> None:
    assert sorted(ORDER) == sorted(MODULES)


@pytest.mark.parametrize("name", ORDER)
def test_imports_point_down(name: str) -> None:
    below = ORDER[: ORDER.index(name)]
    upward = imported(name, MODULES[name]) - set(below)
    assert not upward, f"{name} imports {upward}"


@pytest.mark.parametrize("name", ORDER)
def test_modules_open_with_a_sentence(name: str) -> None:
    docstring = ast.get_docstring(ast.parse(MODULES[name].read_text()))
    assert docstring
    assert docstring.splitlines()[0].endswith((".", ";", ":"))


def test_public_functions_and_classes_say_what_they_do() -> None:
    for name, path in MODULES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{name}.{node.name}"


def test_a_worker_does_not_pay_for_the_migrator() -> None:
    code = "import sys, whatspire_db; print(*[m for m in sys.modules if m.startswith(('whatspire_db', 'dotenv', 'argparse'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "whatspire_db.models" in loaded
    assert not {m for m in loaded if m.startswith("whatspire_db.migrate")}
    assert not {"dotenv", "argparse"} & loaded
