"""The tools that are measured, and the files of their projects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peers import tables

PEERS = Path(__file__).resolve().parent
ADDED = ("api_keys", "revocation_reason")
OURS_MODELS = """\
import os
from whatspire_db import Settings, connect
from whatspire_db.models.service import SERVICE_MODELS as MODELS
database = connect(Settings(driver=os.environ["BENCH_DRIVER"], dsn=os.environ["BENCH_DSN"], log_level="silent"))
"""
OURS_BEFORE = 'next(m for m in MODELS if m._meta.table_name == "{}")._meta.remove_field("{}")\n'.format(*ADDED)
DJANGO_SETTINGS = """\
import os
SECRET_KEY = "benchmark"
INSTALLED_APPS = ["service"]
USE_TZ = True
if os.environ["BENCH_DRIVER"] == "sqlite":
    OPTIONS = {"init_command": "PRAGMA synchronous=NORMAL"}
    DATABASE = {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["BENCH_DSN"], "OPTIONS": OPTIONS}
else:
    from psycopg2.extensions import parse_dsn
    given = parse_dsn(os.environ["BENCH_DSN"])
    DATABASE = {name.upper(): given.pop(name) for name in ("user", "password", "host", "port") if name in given}
    DATABASE |= {"ENGINE": "django.db.backends.postgresql", "NAME": given.pop("dbname"), "OPTIONS": given}
DATABASES = {"default": DATABASE}
"""


@dataclass(frozen=True)
class Tool:
    """A way to start a migrator; those of one family share project and database."""

    label: str
    family: str
    environment: str
    command: tuple[str, ...]
    action: str = "run"
    history: tuple[str, int] | None = None  # where it records what it did, and how many rows are right

    @property
    def module(self) -> str:
        """Return the module that runs it in process."""
        return f"run_{self.family}"

    @property
    def migrates(self) -> bool:
        """Tell whether it brings an empty database to the models, or only a finished one through a start."""
        return self.action == "run"


def _script(family: str, *arguments: str) -> tuple[str, ...]:
    return (str(PEERS / f"run_{family}.py"), *arguments)


TOOLS = (
    Tool("whatspire_db", "ours", "ours", ("-m", "whatspire_db.migrate"), history=("migration_versions", 1)),
    Tool("peewee create_tables", "create_tables", "peewee", _script("create_tables")),
    Tool("playhouse.schema_diff", "schema_diff", "peewee", _script("schema_diff")),
    Tool("pwmigrate up", "pwmigrate", "peewee", _script("pwmigrate"), history=("schema_migration", 2)),
    Tool("pwmigrate diff", "pwmigrate", "peewee", _script("pwmigrate", "diff"), "diff"),
    Tool(
        "peewee-migrate run",
        "peewee_migrate",
        "peewee-migrate",
        _script("peewee_migrate"),
        history=("migratehistory", 2),
    ),
    Tool(
        "peewee-migrate create + run",
        "peewee_migrate",
        "peewee-migrate",
        _script("peewee_migrate", "create"),
        "create_and_run",
    ),
    Tool("alembic upgrade", "alembic", "alembic", ("-m", "alembic", "upgrade", "head"), history=("alembic_version", 1)),
    Tool("alembic check", "alembic", "alembic", ("-m", "alembic", "check"), "check"),
    Tool("django migrate", "django", "django", ("-m", "django", "migrate"), history=("django_migrations", 2)),
)
REQUIREMENTS = {
    "peewee": ["peewee", "psycopg2-binary"],
    "peewee-migrate": ["peewee-migrate", "psycopg2-binary"],
    "alembic": ["alembic", "sqlalchemy", "psycopg2-binary"],
    "django": ["django", "psycopg2-binary"],
    "matplotlib": ["matplotlib"],
}


def write_models(tool: Tool, driver: str, project: Path, wanted: Sequence[tables.Table], service: str = "") -> None:
    """Write a tool's models, and what else its project needs.

    :param service: that these are the service's tables, "now" or "before" the column: our models of them exist.
    """
    project.mkdir(parents=True, exist_ok=True)
    if tool.family == "django":
        (project / "service" / "migrations").mkdir(parents=True, exist_ok=True)
        (project / "service" / "__init__.py").touch()
        (project / "service" / "migrations" / "__init__.py").touch()
        (project / "settings.py").write_text(DJANGO_SETTINGS)
        (project / "service" / "models.py").write_text(tables.django_source(wanted))
    elif tool.family == "alembic":
        (project / "models.py").write_text(tables.sqlalchemy_source(wanted, driver))
    elif tool.family == "ours" and service:
        (project / "models.py").write_text(OURS_MODELS + (OURS_BEFORE if service == "before" else ""))
    else:
        (project / "migrations").mkdir(exist_ok=True)
        source = tables.peewee_source(wanted, driver, descending=tool.family not in ("peewee_migrate", "pwmigrate"))
        (project / "models.py").write_text(source)
