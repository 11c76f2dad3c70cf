"""A toy of the extension Citus, which cannot be installed here: its catalog, and what says which node a server is."""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.conftest import POSTGRES_VERSION, Server
from tests.servers import program

CONTROL = """
comment = 'a toy of Citus for tests'
default_version = '14.0-1'
schema = pg_catalog
relocatable = false
"""
# Names and types are those of Citus 14. A partkey is the column's name here, which Citus writes as an expression.
SCRIPT = """
SET LOCAL allow_system_table_mods = on;
CREATE TYPE pg_catalog.noderole AS ENUM ('primary', 'secondary', 'unavailable');
CREATE TABLE pg_catalog.pg_dist_local_group (groupid integer PRIMARY KEY);
INSERT INTO pg_catalog.pg_dist_local_group VALUES (0);
CREATE TABLE pg_catalog.pg_dist_node (
    nodeid serial PRIMARY KEY, groupid integer NOT NULL, nodename text NOT NULL, nodeport integer DEFAULT 5432 NOT NULL,
    noderack text DEFAULT 'default' NOT NULL, hasmetadata boolean DEFAULT true NOT NULL,
    isactive boolean DEFAULT true NOT NULL, noderole pg_catalog.noderole DEFAULT 'primary' NOT NULL,
    nodecluster name DEFAULT 'default' NOT NULL, metadatasynced boolean DEFAULT true NOT NULL,
    shouldhaveshards boolean DEFAULT true NOT NULL);
CREATE TABLE pg_catalog.pg_dist_partition (
    logicalrelid regclass PRIMARY KEY, partmethod "char" NOT NULL, partkey text, colocationid integer DEFAULT 0 NOT NULL,
    repmodel "char" DEFAULT 's' NOT NULL, autoconverted boolean DEFAULT false NOT NULL);
GRANT SELECT ON pg_catalog.pg_dist_local_group, pg_catalog.pg_dist_node, pg_catalog.pg_dist_partition TO public;
CREATE FUNCTION pg_catalog.citus_is_coordinator() RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT (SELECT groupid = 0 FROM pg_catalog.pg_dist_local_group)
        AND EXISTS (SELECT FROM pg_catalog.pg_dist_node WHERE isactive AND noderole = 'primary') $$;
CREATE FUNCTION pg_catalog.column_to_column_name(table_name regclass, column_var_text text) RETURNS text
    LANGUAGE sql STABLE STRICT AS 'SELECT column_var_text';
CREATE FUNCTION pg_catalog.create_distributed_table(name regclass, by text, colocation integer = 1) RETURNS void
    LANGUAGE sql AS $$ INSERT INTO pg_catalog.pg_dist_partition (logicalrelid, partmethod, partkey, colocationid)
        VALUES (name, CASE WHEN by IS NULL THEN 'n' ELSE 'h' END, by, colocation) $$;
CREATE FUNCTION pg_catalog.create_reference_table(name regclass) RETURNS void
    LANGUAGE sql AS $$ INSERT INTO pg_catalog.pg_dist_partition (logicalrelid, partmethod, colocationid, repmodel)
        VALUES (name, 'n', 2, 't') $$;
CREATE FUNCTION pg_catalog.citus_truncate_trigger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE VIEW public.citus_tables AS SELECT logicalrelid AS table_name FROM pg_catalog.pg_dist_partition;
"""
FILES = {"citus.control": CONTROL, "citus--14.0-1.sql": SCRIPT}
NODES = """
INSERT INTO pg_dist_node (groupid, nodename, shouldhaveshards)
VALUES (0, 'coordinator', false), (1, 'worker-1', true), (2, 'worker-2', true)
"""
TO_WORKER = "UPDATE pg_dist_local_group SET groupid = 1"


@contextmanager
def installed(server: Server) -> Iterator[None]:
    """Let a server of the tests have the extension."""
    if POSTGRES_VERSION >= 18:
        with tempfile.TemporaryDirectory(prefix="wpc") as folder:
            os.chmod(folder, 0o755)
            (Path(folder) / "extension").mkdir()
            _write(Path(folder) / "extension")
            server.execute(f"ALTER SYSTEM SET extension_control_path = '{folder}:$system'", "SELECT pg_reload_conf()")
            yield
            server.execute("ALTER SYSTEM RESET extension_control_path", "SELECT pg_reload_conf()")
        return
    done = subprocess.run([program("pg_config"), "--sharedir"], capture_output=True, text=True, check=True)
    with _shared(Path(done.stdout.strip()) / "extension"):
        yield


@contextmanager
def _shared(folder: Path) -> Iterator[None]:
    """Keep the files among those of the server while any of the processes of the tests needs them."""
    with open(Path(tempfile.gettempdir()) / "whatspire-toy-citus.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        _write(folder)
        try:
            yield
        finally:
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for name in FILES:
                    (folder / name).unlink(missing_ok=True)


def _write(folder: Path) -> None:
    for name, text in FILES.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o644)
