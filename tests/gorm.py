"""The database as the Go service leaves it: its DDL in GORM's own spelling, and rows as its drivers write them."""

from __future__ import annotations

import uuid
from datetime import datetime, timezone

import peewee

from tests.conftest import Place

TYPES = {
    "text": ("text", "text"),
    "time": ("datetime", "timestamp with time zone"),
    "stamp": ("timestamp", "timestamp without time zone"),
    "bool": ("numeric", "boolean"),
    "bytes": ("bytea", "bytea"),
    "int": ("integer", "bigint"),
}

TABLES = {
    "sessions": "id text!, name text!, jid text, status text!, created_at time!, updated_at time!",
    "reactions": "id text!, message_id text!, session_id text!, from_jid text!, to_jid text!, emoji text!,"
    " created_at time!",
    "receipts": "id text!, message_id text!, session_id text!, from_jid text!, to_jid text!, type text!,"
    " created_at time!",
    "presence": "id text!, session_id text!, user_jid text!, chat_jid text!, state text!, created_at time!",
    "api_keys": "id text!, key_hash text!, role text!, description text, created_at time!, last_used_at stamp,"
    " is_active bool! true, revoked_at stamp, revoked_by text, revocation_reason text",
    "audit_logs": "id text!, event_type text!, api_key_id text, session_id text, endpoint text, action text,"
    " details text, ip_address text, created_at time!",
    "events": "id text!, type text!, session_id text!, data bytes, timestamp time!, created_at time!",
    "webhook_configs": "id text!, session_id text!, enabled bool! false, url text, secret text, events text,"
    " ignore_groups bool! false, ignore_broadcasts bool! false, ignore_channels bool! false,"
    " created_at time!, updated_at time!",
    "migration_versions": "version int, name text!, applied_at time!",
}

INDEXES = {
    "sessions": ["status", "jid"],
    "reactions": ["session_id", "message_id"],
    "receipts": ["session_id", "message_id"],
    "presence": ["user_jid", "session_id"],
    "api_keys": ["is_active", "created_at", "key_hash!"],
    "audit_logs": ["created_at", "api_key_id", "event_type"],
    "events": ["timestamp", "session_id", "type"],
    "webhook_configs": ["session_id!"],
}

CHECKS = {
    ("sessions", "status"): "disconnected connecting connected qr_pending authenticating authenticated failed pending"
    " logged_out",
    ("receipts", "type"): "delivered read",
    ("presence", "state"): "typing paused online offline",
    ("api_keys", "role"): "read write admin",
}


def columns(table: str, sqlite: bool) -> dict[str, str]:
    """Return each column's definition, as GORM writes it."""
    found = {}
    for part in TABLES[table].split(","):
        name, kind, *default = part.split()
        text = TYPES[kind.rstrip("!")][0 if sqlite else 1] + (" NOT NULL" if kind.endswith("!") else "")
        found[name] = text + (f" DEFAULT {default[0]}" if default else "")
    return found


def ddl(place: Place, quote: str | None = None, leave_out: tuple[str, ...] = ()) -> list[str]:
    """Return the statements of GORM's AutoMigrate; `leave_out` names tables, table.column and indexes."""
    q = quote or ("`" if place.is_sqlite else '"')
    statements = []
    for table in TABLES:
        if table in leave_out:
            continue
        own = {n: d for n, d in columns(table, place.is_sqlite).items() if f"{table}.{n}" not in leave_out}
        key = next(iter(columns(table, place.is_sqlite)))
        parts = [f"{q}{name}{q} {definition}" for name, definition in own.items()] + [f"PRIMARY KEY ({q}{key}{q})"]
        for (checked, column), values in CHECKS.items():
            if checked == table and column in own:
                listed = ",".join(f"'{value}'" for value in values.split())
                parts.append(f"CONSTRAINT {q}chk_{table}_{column}{q} CHECK ({column} IN ({listed}))")
        statements.append(f"CREATE TABLE {q}{table}{q} ({','.join(parts)})")
        for column in INDEXES.get(table, ()):
            name = f"idx_{table}_{column.rstrip('!')}"
            if column.rstrip("!") in own and name not in leave_out:
                unique = "UNIQUE " if column.endswith("!") else ""
                space = "" if place.is_sqlite else " "
                statements.append(
                    f"CREATE {unique}INDEX IF NOT EXISTS {q}{name}{q} ON {q}{table}{q}{space}({q}{column.rstrip('!')}{q})"
                )
    return statements


# Nanoseconds as Go has them: the text that its SQLite driver writes, and the microseconds that are read back.
TIMES = [
    ("2026-11-22 09:05:03.123456789+00:00", 123456),
    ("2026-11-22 09:05:03.5+00:00", 500000),
    ("2026-11-22 09:05:03+00:00", 0),
    ("2026-11-22 09:05:03.000001+00:00", 1),
    ("2026-11-22 09:05:03.12+00:00", 120000),
]


def instant(micros: int) -> datetime:
    return datetime(2026, 11, 22, 9, 5, 3, micros, timezone.utc)


def rows(place: Place) -> dict[str, list[dict[str, object]]]:
    """Return rows of every table as the Go drivers write them: one a time of TIMES."""
    found: dict[str, list[dict[str, object]]] = {}
    for table in TABLES:
        for number, (text, micros) in enumerate(TIMES):
            found.setdefault(table, []).append(_row(place, table, number, text, micros))
    return found


def _row(place: Place, table: str, number: int, text: str, micros: int) -> dict[str, object]:
    row: dict[str, object] = {}
    for part in TABLES[table].split(","):
        name, kind, *_ = part.split()
        values = CHECKS.get((table, name), f"{name}-{number}").split()
        value: object = values[number % len(values)]
        if kind.rstrip("!") == "time":
            value = text if place.is_sqlite else instant(micros)
        elif kind == "stamp":
            value = None if number == 0 else text if place.is_sqlite else instant(micros).replace(tzinfo=None)
        elif kind == "bool!":
            value = number % 2 if place.is_sqlite else bool(number % 2)
        elif kind == "bytes":
            value = b'{"kind":"message","n":%d,"text":"<\\u003e"}' % number
        elif (table, name) in (("audit_logs", "details"), ("webhook_configs", "events")):
            value = '["message","status"]' if number else None
        elif name == "id":
            value = str(uuid.UUID(int=number))
        elif kind == "int":
            value = 1707123456 + number
        row[name] = value
    return row


def create(place: Place, db: peewee.Database, leave_out: tuple[str, ...] = (), with_rows: bool = True) -> None:
    """Make the Go service's database."""
    for statement in ddl(place, leave_out=leave_out):
        db.execute_sql(statement)
    mark = "?" if place.is_sqlite else "%s"
    for table, content in rows(place).items() if with_rows else ():
        for row in content:
            row = {k: v for k, v in row.items() if f"{table}.{k}" not in leave_out}
            if table not in leave_out:
                names = ", ".join(f'"{name}"' for name in row)
                db.execute_sql(
                    f'INSERT INTO "{table}" ({names}) VALUES ({", ".join([mark] * len(row))})', tuple(row.values())
                )


def content(db: peewee.Database, tables: list[str] | None = None) -> dict[str, list[tuple[object, ...]]]:
    """Return every row as the driver gives it, to compare before and after."""
    return {
        t: sorted((tuple(map(_plain, row)) for row in db.execute_sql(f'SELECT * FROM "{t}"')), key=repr)
        for t in (TABLES if tables is None else tables)
    }


def _plain(value: object) -> object:
    return bytes(value) if isinstance(value, memoryview) else value
