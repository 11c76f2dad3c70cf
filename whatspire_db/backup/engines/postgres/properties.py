"""PostgreSQL: what belongs to a database itself: owner, locale, settings, grants."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from whatspire_db.errors import (
    BackupFailed,
)
from whatspire_db.sql import literal, quoted

from .server import Session

# Settings that hold a list of names, each quoted by itself.
LISTS = {
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
}


def database_properties(asked: Session, name: str) -> dict[str, Any] | None:
    """Return what belongs to a database and is not in its dump; None where there is no such database."""
    locale = {15: "d.daticulocale", 16: "d.daticulocale"}.get(
        asked.major, "d.datlocale" if asked.major > 16 else "NULL"
    )
    provider = "d.datlocprovider::text" if asked.major > 14 else "'c'"
    rules = "d.daticurules" if asked.major > 15 else "NULL"
    found = asked.rows(
        f"""
        SELECT r.rolname, pg_encoding_to_char(d.encoding), d.datcollate, d.datctype, {provider}, {locale}, {rules},
            d.datconnlimit, d.datistemplate, t.spcname, shobj_description(d.oid, 'pg_database'),
            d.datacl IS NOT NULL
        FROM pg_catalog.pg_database AS d JOIN pg_catalog.pg_roles AS r ON r.oid = d.datdba
        JOIN pg_catalog.pg_tablespace AS t ON t.oid = d.dattablespace WHERE d.datname = %s
        """,
        name,
    )
    if not found:
        return None
    keys = (
        "owner encoding collate ctype provider locale rules connection_limit is_template tablespace comment has_grants"
    )
    properties = dict(zip(keys.split(), found[0], strict=True))
    properties["settings"] = asked.rows(
        "SELECT coalesce(r.rolname, ''), s.setconfig FROM pg_catalog.pg_db_role_setting AS s "
        "LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = s.setrole "
        "JOIN pg_catalog.pg_database AS d ON d.oid = s.setdatabase WHERE d.datname = %s ORDER BY 1",
        name,
    )
    properties["grants"] = asked.rows(
        "SELECT coalesce(r.rolname, ''), a.privilege_type, a.is_grantable, g.rolname "
        "FROM pg_catalog.pg_database AS d, aclexplode(d.datacl) AS a "
        "LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = a.grantee "
        "JOIN pg_catalog.pg_roles AS g ON g.oid = a.grantor WHERE d.datname = %s ORDER BY 1, 2, 4",
        name,
    )
    return properties


def locale_options(admin: Session, properties: Mapping[str, Any]) -> str:
    """Return the options of CREATE DATABASE for the same encoding and locale."""
    options = {
        "ENCODING": literal(properties["encoding"]),
        "LC_COLLATE": literal(properties["collate"]),
        "LC_CTYPE": literal(properties["ctype"]),
    }
    provider = {"c": "libc", "i": "icu", "b": "builtin"}[properties["provider"]]
    # Naming the usual one takes a right to it that plain roles do not have.
    if properties["tablespace"] != "pg_default" and admin.rows(
        "SELECT 1 FROM pg_catalog.pg_tablespace WHERE spcname = %s", properties["tablespace"]
    ):
        options["TABLESPACE"] = quoted(properties["tablespace"])
    if admin.major > 14:
        options["LOCALE_PROVIDER"] = provider
        if properties["locale"]:
            options["ICU_LOCALE" if provider == "icu" else "BUILTIN_LOCALE"] = literal(properties["locale"])
        if properties["rules"]:
            options["ICU_RULES"] = literal(properties["rules"])
    return " ".join(f"{name} = {value}" for name, value in options.items())


def may_act_for(asked: Session, roles: Iterable[str]) -> dict[str, bool]:
    """Return which of some roles are there, and for which of them this role may act."""
    right = "SET" if asked.major > 15 else "MEMBER"  # since 16 a member may be one without the right to SET ROLE
    # Of others nothing may come: their names may be in any encoding.
    return dict(
        asked.rows(
            "SELECT rolname, pg_has_role(current_user, oid, %s) FROM pg_catalog.pg_roles WHERE rolname = ANY(%s)",
            right,
            list(roles),
        )
    )


def apply_properties(admin: Session, name: str, properties: Mapping[str, Any], *, on_trial: bool = False) -> None:
    """Give a database the owner, grants, settings, limit and comment of another one.

    What belongs to roles that are not there is left out, and it stays this role's where that may not give it away. All
    of it is done, or nothing.

    :param on_trial: undo it all: it is known then that it can be done.
    :raises BackupFailed: when this role may not make a setting.
    """
    database = quoted(name)
    named = {properties["owner"], *(role for role, _ in properties["settings"])}
    named.update(role for to, _, _, by in properties["grants"] for role in (to, by))
    able = may_act_for(admin, named)
    roles, current = able.keys(), admin.value("SELECT current_user")
    admin.rows("BEGIN")
    if able.get(properties["owner"]) and properties["owner"] != current:
        admin.rows(f"ALTER DATABASE {database} OWNER TO {quoted(properties['owner'])}")
    if properties["connection_limit"] != -1:
        admin.rows(f"ALTER DATABASE {database} CONNECTION LIMIT {properties['connection_limit']}")
    if properties["is_template"]:
        admin.rows(f"ALTER DATABASE {database} IS_TEMPLATE true")
    if properties["comment"]:
        admin.rows(f"COMMENT ON DATABASE {database} IS {literal(properties['comment'])}")
    if properties["has_grants"]:
        holders = {"PUBLIC"} | {quoted(name) for name in {properties["owner"]} & roles}
        admin.rows(f"REVOKE ALL ON DATABASE {database} FROM {', '.join(sorted(holders))}")
    for role, privilege, grantable, grantor in _in_order(properties["grants"], properties["owner"]):
        if role in roles | {""}:
            to = quoted(role) if role else "PUBLIC"
            if able.get(grantor) and grantor not in (properties["owner"], current):
                admin.rows(f"SET LOCAL ROLE {quoted(grantor)}")
            admin.rows(f"GRANT {privilege} ON DATABASE {database} TO {to}{' WITH GRANT OPTION' if grantable else ''}")
            admin.rows("RESET ROLE")
    for role, settings in properties["settings"]:
        if role in roles | {""}:
            whose = f"ROLE {quoted(role)} IN DATABASE {database}" if role else f"DATABASE {database}"
            for setting in settings:
                _set(admin, whose, *setting.split("=", 1))
    admin.rows("ROLLBACK" if on_trial else "COMMIT")


def _in_order(grants: Iterable[Sequence[Any]], owner: str) -> Iterator[Sequence[Any]]:
    """Put the grants of those who were given the right to them behind what gave it to them."""
    left = list(grants)
    holders = {(owner, privilege) for _, privilege, _, _ in left}
    while left:
        ready = [one for one in left if (one[3], one[1]) in holders] or left
        yield from ready
        holders |= {(role, privilege) for role, privilege, grantable, _ in ready if grantable}
        left = [one for one in left if one not in ready]


def _set(admin: Session, whose: str, name: str, value: str) -> None:
    import psycopg2

    parameter = ".".join(quoted(part) for part in name.split("."))
    is_list = name.lower() in LISTS  # in its stored form it is no literal
    try:
        if is_list:
            admin.rows("SELECT set_config(%s, %s, true)", name, value)
        admin.rows(f"ALTER {whose} SET {parameter} {'FROM CURRENT' if is_list else f'= {literal(value)}'}")
    except psycopg2.errors.InsufficientPrivilege:
        raise BackupFailed(
            f"this role may not set {name}, which a superuser set for the {'role' if whose[0] == 'R' else 'database'}",
            f"restore with a superuser, or let one reset {name} by ALTER {whose.split()[0]} ... RESET",
        ) from None
