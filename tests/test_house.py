"""The house: imports point down, modules open with a sentence, a worker imports no more than it needs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "whatspire_db"

# The rooms from the top to the bottom, and the modules in each: one may import, at import time, what stands above it.
# "" is the package's __init__.py.
ROOMS = {
    "light_stdlib": [],
    "errors": [],
    "peewee_compat": [],
    "files": [],
    "letters": [],
    "sql": [],
    "interruption": [],
    "signals": [],
    "dsn": ["", "redaction", "forms", "mistakes", "targets", "sqlite", "postgres", "naming"],
    "settings": ["kinds", "durations", "variable_names", "text_file", "dotenv_file", "config_file", ""],
    "messages": [],
    "fields": ["", "text_search", "json_columns", "json_fields"],
    "models": [
        "",
        "row_state",
        "saving",
        "unreadable",
        "rows",
        "queries",
        "base",
        "data_migrations",
        "service",
        *(
            f"service.{name}"
            for name in ("event_pages", "api_keys", "sessions", "messages", "access", "events", "history")
        ),
    ],
    "connection": [
        "",
        "call_site",
        "tasks",
        "deadline",
        "patience",
        "query_log",
        "pool_stats",
        "pool_state",
        "pool",
        "borrowing",
        "replica",
        "transactions",
        "database",
        "own_database",
        "engines",
        "engines.sqlite",
        "engines.sqlite.folder",
        "engines.sqlite.holders",
        "engines.sqlite.damage",
        "engines.sqlite.database",
        "engines.postgres",
        "engines.postgres.times",
        "engines.postgres.failures",
        "engines.postgres.session",
        "engines.postgres.database",
        "connecting",
    ],
    "copy_in": [],
    "bulk": [],
    "vectors": [
        *("", "codec", "metrics", "engines", "engines.sqlite", "engines.postgres", "distances", "field", "nearest"),
    ],
    "transfer.fence": [],  # which the others ask
    "migrate": [
        "schema",
        "diff",
        "plan",
        "undo_plan",
        "added",
        "progress",
        "ddl",
        "stamp",
        "renaming",
        "mending",
        "failures",
        "times",
        "placements",
        "engines",
        "engines.references",
        "engines.base",
        "engines.undoing",
        "engines.sqlite",
        "engines.sqlite.table_reader",
        "engines.sqlite.catalog",
        "engines.sqlite.rebuild",
        "engines.sqlite.remarks",
        "engines.sqlite.mending",
        "engines.sqlite.times",
        "engines.sqlite.stamps_file",
        "engines.sqlite.history",
        "engines.sqlite.engine",
        "engines.sqlite.undoing",
        "engines.postgres",
        "engines.postgres.limits",
        "engines.postgres.citus",
        "engines.postgres.trust",
        "engines.postgres.extensions",
        "engines.postgres.catalog",
        "engines.postgres.lock_table",
        "engines.postgres.holders",
        "engines.postgres.locks",
        "engines.postgres.session",
        "engines.postgres.online",
        "engines.postgres.history",
        "engines.postgres.times",
        "engines.postgres.sql_tokens",
        "engines.postgres.time_literals",
        "engines.postgres.stand_ins",
        "engines.postgres.fileless",
        "engines.postgres.scratch",
        "engines.postgres.settling",
        "engines.postgres.probing",
        "engines.postgres.partitions",
        "engines.postgres.scripts",
        "engines.postgres.mending_columns",
        "engines.postgres.mending_keys",
        "engines.postgres.mending",
        "engines.postgres.engine",
        "engines.postgres.undo_asked",
        "engines.postgres.undoing",
        "engines.postgres.schemas",
        "history",
        "records",
        "rows",
        "costs",
        "ownership",
        "planner.draft",
        "planner.obstacles",
        "planner.tables",
        "planner.columns",
        "planner.indexes",
        "planner.constraints",
        "planner",
        "reports",
        "stamping",
        "full_look",
        "applying",
        "upgrade",
        "undo_planner",
        "undoing",
        "runner",
        "",
    ],
    "backup": [
        "json_shapes",
        "retention",
        "manifest",
        "neighbours",
        "archive",
        "durable",
        "compression",
        "engines",
        "engines.base",
        "engines.sqlite",
        "engines.sqlite.content",
        "engines.sqlite.dumping",
        "engines.sqlite.verifying",
        "engines.sqlite.restoring",
        "engines.sqlite.engine",
        "engines.postgres",
        "engines.postgres.tool_errors",
        "engines.postgres.tools",
        "engines.postgres.dump_file",
        "engines.postgres.server",
        "engines.postgres.properties",
        "engines.postgres.swapping",
        "engines.postgres.scratch",
        "engines.postgres.waiting",
        "engines.postgres.slots",
        "engines.postgres.citus",
        "engines.postgres.copying",
        "engines.postgres.bare_names",
        "engines.postgres.content",
        "engines.postgres.emptiness",
        "engines.postgres.omissions",
        "engines.postgres.trust",
        "engines.postgres.afterwards",
        "engines.postgres.filling",
        "engines.postgres.verifying",
        "engines.postgres.dumping",
        "engines.postgres.restoring",
        "engines.postgres.engine",
        "create",
        "verify",
        "before_migration",
        "prune",
        "restore",
        "",
    ],
    "health": ["values", "engines", "engines.sqlite", "engines.citus", "engines.postgres", "check", ""],
    "data": [
        *("pace", "engines.base", "engines.sqlite", "engines.postgres", "engines", "keys", "records"),
        *("calling", "rules", "retention", "migrations", "after_schema", ""),
    ],
    "transfer": [
        "",
        "change_log",
        "faults",
        "chunks",
        "json_values",
        "kinds",
        "time_kinds",
        "vector_kinds",
        "columns",
        "tables",
        "checking",
        "copying",
        "proof",
        "opening",
        "side_file",
        "progress",
        "records",
        "reports",
        "steps",
        "postgres_load",
        "to_postgres",
        "to_sqlite",
        "live_source",
        "live",
        "transferring",
    ],
    "diagram": [
        *("", "values", "text", "models", "building", "differences", "placing", "layout", "sizes", "svg", "page"),
        *("mermaid", "dbml", "drawing", "writing"),
    ],
    "cli": [
        "",
        "starting",
        "terminal",
        "tables",
        "options",
        "call",
        "loading",
        "migrate",
        "undo",
        "looks",
        "jobs",
        "targets",
        "sayings",
        "each_schema",
        "shared_backups",
        "many",
        "backup",
        "health",
        "settings",
        "data",
        "retain",
        "transfer",
        "diagram",
        "verbs",
    ],
}
ENTRANCES = ["", "__main__", "migrate.__main__", "backup.__main__", "health.__main__"]
ORDER = [f"{room}.{module}".strip(".") for room, modules in ROOMS.items() for module in modules or [""]] + ENTRANCES


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").rstrip(".")


MODULES = {name_of(path): path for path in ROOT.rglob("*.py")}


def imported(name: str, path: Path) -> set[str]:
    """Return the modules of this package that a module imports when it is imported."""
    package = name.split(".") if path.name == "__init__.py" and name else name.split(".")[:-1]
    found = set()
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, ast.ImportFrom):
            continue
        target = (node.module or "").removeprefix("whatspire_db").lstrip(".")
        if node.level:
            target = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
        elif (node.module or "").split(".")[0] != "whatspire_db":
            continue
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


def test_no_module_has_more_than_400_lines() -> None:
    assert not {name for name, path in MODULES.items() if len(path.read_text().splitlines()) > 400}


def test_no_function_has_more_than_40_lines() -> None:
    scripts = {path.stem: path for path in (ROOT.parent / "scripts").rglob("*.py")}
    functions = (
        (f"{name}.{node.name}", node)
        for name, path in (MODULES | scripts).items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    assert not {name for name, node in functions if (node.end_lineno or 0) - node.lineno >= 40}


def words_of(tree: ast.AST) -> Iterator[str]:
    """Yield the names and the texts of a module, without its docstrings."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    docstrings = {
        id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, kinds) and ast.get_docstring(node)
    }
    for node in ast.walk(tree):
        for _, value in ast.iter_fields(node):
            if isinstance(value, str) and id(node) not in docstrings:
                yield value


# The kinds of figures that a check returns are public under these names, and a manifest holds those of the engines.
@pytest.mark.parametrize(
    ("room", "public"),
    [
        ("health", {"PostgresServer", "SqliteFile"}),
        ("migrate", set()),
        ("backup", {"sqlite", "SQLite", "postgres", "PostgreSQL"}),
    ],
)
def test_no_dialect_is_named_outside_of_engines(room: str, public: set[str]) -> None:
    for name, path in MODULES.items():
        if name.split(".")[0] == room and "engines" not in name:
            words = set(words_of(ast.parse(path.read_text()))) - public
            named = {word for word in words if re.search("sqlite|postgres|pragma|pg_", word, re.IGNORECASE)}
            assert not named, name


def test_a_worker_does_not_pay_for_the_migrator() -> None:
    code = "import sys, whatspire_db; print(*[m for m in sys.modules if m.startswith(('whatspire_db', 'dotenv', 'argparse'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "whatspire_db.models.base" in loaded
    assert not {m for m in loaded if m.startswith("whatspire_db.models.service")}
    assert not {m for m in loaded if m.startswith("whatspire_db.migrate")}
    assert not {"dotenv", "argparse"} & loaded
