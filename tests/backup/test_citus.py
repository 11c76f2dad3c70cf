"""Backups of a cluster with Citus, a toy of it: refused unless torn ones are accepted, and then marked everywhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.backup.postgres_ground import backup, done, files, name_of, refused, rows, spare
from tests.conftest import Place, Server
from tests.servers import opened, psql, up
from whatspire_db.backup.manifest import Content, Manifest, Table, differences

DISTRIBUTE = "SELECT create_distributed_table('sessions', 'id'); SELECT create_reference_table('api_keys');"
SESSION = "INSERT INTO sessions (id, name, status, created_at, updated_at) VALUES ('{}', 'n', 'pending', now(), now());"


@pytest.fixture
def cluster(citus: Place) -> Place:
    """A cluster's coordinator with a distributed and a reference table."""
    up(citus)
    psql(citus.dsn, DISTRIBUTE + SESSION.format("a"))
    return citus


def test_backup_of_distributed_tables_is_refused_with_the_way_around(cluster: Place) -> None:
    said = refused(cluster, 4, "create")
    assert "public.api_keys, public.sessions on several nodes" in said
    assert "pg_basebackup" in said
    assert "--accept-torn" in said
    assert not files(cluster.folder)


def test_cluster_whose_tables_are_all_on_one_node_is_backed_up(citus: Place) -> None:
    up(citus)
    psql(citus.dsn, "INSERT INTO pg_dist_partition (logicalrelid, partmethod) VALUES ('sessions', 'n')")
    assert "torn" not in done(citus, "create")


@pytest.mark.soak
def test_accepted_torn_backup_says_so_wherever_it_is_shown(cluster: Place) -> None:
    made = done(cluster, "create", "--accept-torn", "--test-restore", warns="this backup is torn: ")
    torn = ["public.api_keys", "public.sessions"]
    manifest = json.loads(Path(cluster.folder, made["manifest"]).read_text())
    assert manifest["content"]["details"]["distributed"] == {"public.api_keys": None, "public.sessions": "id"}
    assert made["torn"] == torn
    for verb in ("list", "verify"):
        assert "torn: 2 distributed tables, not of one moment" in backup(cluster, verb).stdout
    assert done(cluster, "list")["backups"][0]["torn"] == torn
    assert done(cluster, "verify")["torn"] == torn


def test_restore_warns_that_the_distribution_is_lost(cluster: Place, server: Server) -> None:
    done(cluster, "create", "--accept-torn", warns="torn")
    with spare(server) as other:
        ran = backup(cluster, "restore", "latest", "--to", other, "--quiet")
        assert ran.returncode == 0, ran
        assert "the distribution is lost" in ran.stderr
        assert "SELECT create_reference_table('public.api_keys');" in ran.stderr
        assert "SELECT create_distributed_table('public.sessions', 'id');" in ran.stderr


@pytest.mark.soak
def test_torn_backup_restores_although_its_rows_are_not_those_that_were_counted(cluster: Place) -> None:
    made = done(cluster, "create", "--accept-torn", warns="torn")
    path = Path(cluster.folder, made["manifest"])
    manifest = Manifest.from_text(path.read_text(), path)
    tables = {**manifest.content.tables, "public.sessions": Table(7, "7")}
    path.write_text(replace(manifest, content=replace(manifest.content, tables=tables)).to_text())
    psql(cluster.dsn, SESSION.format("b"))
    done(cluster, "restore", "latest", "--force", "--no-safety-backup", warns="the distribution is lost")
    assert rows(cluster, "SELECT id FROM sessions") == [("a",)]


def test_migration_with_a_backup_is_refused_before_anything_is_changed(cluster: Place) -> None:
    psql(cluster.dsn, "DROP INDEX idx_sessions_jid")
    ran = cluster.run("up", "--backup")
    assert ran.returncode == 4, ran
    assert "--accept-torn" in ran.stderr
    with opened(cluster) as db:
        assert "idx_sessions_jid" not in {index.name for index in db.get_indexes("sessions")}


@pytest.mark.soak
def test_safety_backup_of_a_cluster_is_refused_and_the_database_kept(cluster: Place, server: Server) -> None:
    done(cluster, "create", "--accept-torn", warns="torn")
    said = refused(cluster, 1, "restore", "latest", "--force")
    assert "--no-safety-backup" in said
    assert rows(cluster, "SELECT count(*) FROM pg_dist_partition") == [(2,)]
    assert name_of(cluster)


def test_other_tables_than_the_distributed_ones_are_compared() -> None:
    counted = {name: Table(1, "1") for name in ("spread", "plain")}
    expected = Content("postgres", "18", 0, counted, details={"distributed": {"spread": "id"}})
    found = replace(expected, tables={name: Table(2, "2") for name in counted}, details={})
    assert differences(expected, found) == ["table plain has 2 rows, not 1"]
    assert differences(expected, replace(found, tables={"plain": Table(1, "1")})) == ["table spread is missing"]
