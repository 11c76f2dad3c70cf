"""Pruning: a good backup is never deleted for a bad one, and nothing that is not this database's is touched."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backup.ground import (
    add,
    at_once,
    copies,
    fails,
    files_of,
    fill,
    folder_of,
    look,
    made,
    names,
    run,
    run_many,
    settings_of,
    told,
    tools,
)
from tests.conftest import Place, Server, ends_of, quiet
from tests.servers import eventually
from whatspire_db import Settings, backup
from whatspire_db.backup import Policy
from whatspire_db.backup.durable import locked
from whatspire_db.backup.engines.sqlite import content as engine
from whatspire_db.backup.manifest import SAFETY
from whatspire_db.errors import BackupFailed

pytestmark = pytest.mark.sampled

NOON = datetime(2026, 11, 20, 12, tzinfo=timezone.utc)
# The last is the latest: two on a day, two in a week, and one that is alone in its month.
TIMES = [NOON - timedelta(days=days, hours=hours) for days, hours in ((40, 0), (9, 0), (8, 0), (1, 1), (1, 0), (0, 0))]
ROUNDS, MANY_ROUNDS = 4, 60


def prune(place: Place, *policy: int, **more: bool) -> list[backup.Pruned]:
    with tools():
        return backup.prune(settings_of(place), policy=Policy(*policy), **more)


def fates(pruned: list[backup.Pruned]) -> list[str]:
    return [one.fate for one in pruned]


def damage(one: backup.Backup) -> None:
    whole = bytearray(one.file.read_bytes())
    whole[random.randrange(len(whole))] ^= 1
    one.file.write_bytes(whole)


@pytest.fixture
def history(place: Place) -> list[backup.Backup]:
    """The backups of TIMES, the latest first."""
    fill(place)
    return history_of(place)


def history_of(place: Place) -> list[backup.Backup]:
    (first,) = made(place, TIMES[0])
    return [first, *copies(first, *TIMES[1:])][::-1]


@pytest.mark.soak
def test_what_is_kept_and_why(place: Place, history: list[backup.Backup]) -> None:
    rules = ("--keep-last", "1", "--keep-daily", "2", "--keep-weekly", "2", "--keep-monthly", "2")
    before = look(folder_of(place))
    tried = run(place, "prune", *rules, "--dry-run")
    assert (tried.returncode, tried.stderr) == (0, "")
    assert look(folder_of(place)) == before
    latest, yesterday, hour_before, week_before, day_before, month_before = [b.file.name for b in history]
    expected = [
        f"kept: {latest} (the latest; last 1 of 1; daily 2026-11-20; weekly 2026-W47; monthly 2026-11)",
        f"kept: {yesterday} (daily 2026-11-19)",
        f"would be deleted: {hour_before} (no rule keeps it)",
        f"kept: {week_before} (weekly 2026-W46)",
        f"would be deleted: {day_before} (no rule keeps it)",
        f"kept: {month_before} (monthly 2026-10)",
    ]
    assert [line.strip() for line in tried.stdout.splitlines() if not line.startswith("database: ")] == expected
    as_json = told(run(place, "prune", *rules, "--dry-run", "--json"))
    assert as_json["dry_run"] is True
    assert [Path(one["path"]).name for one in as_json["backups"]] == [b.file.name for b in history]
    assert look(folder_of(place)) == before

    done = told(run(place, "prune", *rules, "--json"))
    assert done == as_json | {"dry_run": False}
    stay = [history[n] for n in (0, 1, 3, 5)]
    assert {name: before[name] for name in files_of(stay)} == look(folder_of(place))
    assert fates(prune(place, 1, 2, 2, 2)) == ["kept"] * 4


def test_pruning_takes_a_rule(sqlite: Place) -> None:
    fill(sqlite)
    history_of(sqlite)
    before = look(folder_of(sqlite))
    without, zero, *wrong = run_many(
        sqlite,
        ("prune",),
        ("prune", "--keep-last", "0"),
        ("prune", "--keep-daily", "-1"),
        ("create", "--keep-daily", "-1"),
        ("create", "--keep-daily", "few"),
        ("prune", "--keep-daily=1_0"),
    )
    fails(without, 2, "--keep-last")
    fails(zero, 2, "no rule")
    for done in wrong:
        fails(done, 2, "argument --keep-daily: ", "is no whole number, 0 or more")
    assert look(folder_of(sqlite)) == before


def test_new_backup_prunes_the_others(place: Place, history: list[backup.Backup]) -> None:
    document = told(run(place, "create", "--keep-last", "2", "--json"))
    assert [one["fate"] for one in document["pruned"]] == ["kept", "kept", *["deleted"] * 5]
    assert document["pruned"][0]["path"] == document["path"]
    assert names(folder_of(place)) == files_of([history[0]]) | {
        Path(document[key]).name for key in ("path", "manifest")
    }


def test_damaged_backups_never_take_the_place_of_good_ones(place: Place, history: list[backup.Backup]) -> None:
    damage(history[0])
    history[1].file.unlink()
    os.truncate(history[2].file, 0)
    history[3].manifest_path.write_text("{}")
    done = run(place, "prune", "--keep-last", "1")
    found = [line.split(":")[0].strip() for line in done.stdout.splitlines()]
    assert [fate for fate in found if fate != "database"] == ["damaged"] * 3 + ["kept", "deleted"]
    assert "checksum differs" in done.stdout
    assert "missing" in done.stdout
    left = files_of(history[:5]) - {history[1].file.name}
    assert names(folder_of(place)) == left
    with tools():
        backup.verify(history[4])


def test_when_all_are_damaged_none_is_deleted(sqlite: Place) -> None:
    fill(sqlite)
    history = history_of(sqlite)
    for one in history:
        damage(one)
    before = look(folder_of(sqlite))
    assert set(fates(prune(sqlite, 1))) == {"damaged", "kept"}  # with one left there is nothing to find out
    assert set(fates(prune(sqlite, 2))) == {"damaged", "kept"}
    assert look(folder_of(sqlite)) == before


def test_backup_that_failed_counts_for_nothing(place: Place, history: list[backup.Backup]) -> None:
    """What a failed or killed run leaves is no backup, so that three of them do not evict three good ones."""
    before = look(folder_of(place))
    lost = replace_dsn(place)
    fails(run(lost, "create", "--keep-last", "1"), 2 if place.is_sqlite else 1)
    assert look(folder_of(place)) == before
    for number in range(3):
        (folder_of(place) / f"{history[0].manifest.name}-2027010{number}T000000Z{history[0].file.suffix}").write_text(
            ""
        )
    assert fates(prune(place, 3)) == ["kept"] * 3 + ["deleted"] * 3


def replace_dsn(place: Place) -> Place:
    """Return a place of this name where there is no database."""
    if place.is_sqlite:
        return replace(place, dsn=str(place.folder / "no" / Path(place.dsn).name))
    return replace(place, dsn=place.dsn.replace("dbname='t_", "dbname='no_t_"))


@settings(max_examples=10)
@given(
    data=st.lists(st.tuples(st.integers(0, 60), st.booleans()), min_size=1, max_size=8, unique_by=lambda one: one[0]),
    rules=st.lists(st.integers(0, 3), min_size=4, max_size=4).filter(any),
)
def test_good_ones_are_kept_as_if_no_other_were_there(
    tmp_path_factory: pytest.TempPathFactory, data: list[tuple[int, bool]], rules: list[int]
) -> None:
    """Whatever the clock said and whichever are damaged, what is kept of the good ones follows from them alone."""
    folder = tmp_path_factory.mktemp("any")
    place = Place("sqlite", str(folder / "app.db"), folder)
    fill(place, 1)
    (first, *times) = (NOON + timedelta(days=days) for days, _ in data)
    (oldest,) = made(place, first)
    backups = [oldest, *copies(oldest, *times)][::-1]
    bad = {one.file for one, (_, is_bad) in zip(backups, data[::-1], strict=True) if is_bad}
    for one in backups:
        if one.file in bad:
            damage(one)
    good = [one for one in backups if one.file not in bad]
    wanted = [v.item for v in backup.retention.decide(good, lambda b: b.manifest.time, Policy(*rules)) if v.kept]
    pruned = prune(place, *rules)
    assert [one.backup for one in pruned] == backups
    assert [one.backup for one in pruned if one.fate == "kept" and one.backup.file not in bad] == wanted
    assert files_of(wanted) <= names(folder_of(place))
    assert not (files_of(good) - files_of(wanted)) & names(folder_of(place))
    if good:
        backup.verify(good[0])


def test_the_latest_is_the_one_made_last_whatever_the_clock_said(place: Place) -> None:
    fill(place)
    times = [NOON, NOON - timedelta(days=400), NOON - timedelta(days=800), NOON - timedelta(days=800)]
    found = made(place, *times)[::-1]
    assert [one.manifest.serial for one in found] == [4, 3, 2, 1]
    assert [b.file.name for b in backup.list_backups(folder_of(place))[0]] == [b.file.name for b in found]
    assert backup.find("latest", settings=settings_of(place)) == found[0]
    assert fates(prune(place, 1)) == ["kept", *["deleted"] * 3]
    assert names(folder_of(place)) == files_of(found[:1])


def test_names_that_begin_alike_are_two(sqlite: Place) -> None:
    fill(sqlite)
    settings = settings_of(sqlite)
    twins = ("app", "app-test", "app-20261120T120000Z", "ap", "App", "app.json")
    found = {name: made(sqlite, *TIMES[:2], name=name) for name in twins}
    before = look(folder_of(sqlite))
    for name in twins:
        assert backup.find("latest", settings=settings, name=name) == found[name][1]
    pruned = backup.prune(settings, policy=Policy(last=1), name="app")
    assert [one.backup for one in pruned] == found["app"][::-1]
    gone = files_of(found["app"][:1])
    assert look(folder_of(sqlite)) == {name: data for name, data in before.items() if name not in gone}


@pytest.mark.soak
def test_other_database_of_the_name_is_not_touched(place: Place, request: pytest.FixtureRequest) -> None:
    fill(place)
    folder = folder_of(place)
    if place.is_sqlite:
        (place.folder / "other").mkdir()
        other = Place("sqlite", str(place.folder / "other" / Path(place.dsn).name), place.folder)
    else:
        server: Server = request.getfixturevalue("server")
        server.execute("CREATE DATABASE other_of_the_name")
        other = Place("postgres", server.of_database("other_of_the_name"), place.folder)
    fill(other, 7)
    own = made(place, *TIMES[:2], name="app")
    others = made(other, *TIMES[2:5], name="app")
    with tools():
        pruned = backup.prune(settings_of(place), folder, Policy(last=1), name="app")
        assert [one.backup for one in pruned] == own[::-1]
        assert names(folder) == files_of([own[1], *others])
        assert backup.find("latest", settings=settings_of(place), name="app") == own[1]
        assert backup.find("latest", settings=settings_of(other), name="app") == others[-1]
        backup.prune(settings_of(other), folder, Policy(last=1), name="app")
    assert names(folder) == files_of([own[1], others[-1]])
    if not place.is_sqlite:
        server.execute("DROP DATABASE other_of_the_name WITH (FORCE)")


def test_foreign_files_links_and_directories_are_not_touched(sqlite: Place) -> None:
    fill(sqlite)
    history = history_of(sqlite)
    folder, stem = folder_of(sqlite), history[0].file.name.split(".")[0]
    outside = sqlite.folder / "outside"
    outside.mkdir()
    (outside / "precious").write_text("mine")
    for name in (
        "notes.txt",
        f"{stem}.txt",
        f"{stem}.json.bak",
        f"{stem}-copy",
        "app.json",
        ".hidden",
        "x-20200101T000000Z",
    ):
        (folder / name).write_text("foreign")
    (folder / "folder-20200101T000000Z.json").mkdir()
    (folder / "link-20200101T000000Z.json").symlink_to(outside / "precious")
    (folder / "elsewhere").symlink_to(outside)
    os.mkfifo(folder / "pipe-20200101T000000Z")
    foreign = names(folder) - files_of(history)
    # Two backups that would be deleted: the file of one lies elsewhere, and in the place of the other's is a directory.
    history[3].file.rename(outside / "moved")
    history[3].file.symlink_to(outside / "moved")
    history[4].file.unlink()
    history[4].file.mkdir()
    (history[4].file / "inside").write_text("mine")
    before = {name: data for name, data in look(sqlite.folder).items() if "-wal" not in name and "-shm" not in name}
    pruned = prune(sqlite, 1)
    assert fates(pruned) == ["kept", "deleted", "deleted", "deleted"]
    reasons = {other.path: other.reason for other in backup.list_backups(folder)[1]}
    assert "it is a link" in reasons[history[3].manifest_path]
    assert "it is a directory" in reasons[history[4].manifest_path]
    assert names(folder) == foreign | files_of([history[0], history[3], history[4]])
    for name, data in look(sqlite.folder).items():
        assert name not in before or before[name] == data, name
    assert (history[4].file / "inside").read_text() == "mine"


@pytest.mark.soak
@pytest.mark.parametrize("policy", [(1,), (0, 9)], ids=["last", "daily alone"])
def test_what_restores_put_aside_is_counted_by_itself(place: Place, policy: tuple[int, ...]) -> None:
    fill(place)
    made(place, *TIMES[:1])
    put_aside = []
    for _ in range(3):
        add(place, 1)
        with tools():
            done = backup.restore(backup.find("latest", settings=settings_of(place)), settings_of(place), force=True)
        assert done.safety is not None
        put_aside.append(done.safety)
    by_fate = {fate: [one.backup for one in prune(place, *policy) if one.fate == fate] for fate in ("kept", "deleted")}
    kept = backup.list_backups(folder_of(place))[0]
    assert [one.manifest.purpose == SAFETY for one in kept] == [True, False]
    assert kept[0] == put_aside[-1]
    assert {one.file for one in by_fate["kept"]} == {one.file for one in kept}
    assert backup.find("latest", settings=settings_of(place)) == kept[1]


@pytest.mark.soak
def test_what_restores_put_aside_has_the_name_of_the_restore(place: Place) -> None:
    """So the rules for that name are heard, and two machines that share a folder do not mix theirs."""
    fill(place)
    (one,) = made(place, name="web")
    restores = [("restore", one.file.name, "--force", "--name", "web", "--json")] * 3
    found = [Path(told(done)["safety_backup"]).name for done in run_many(place, *restores)]
    assert all(name.startswith("web-") for name in found), found
    pruned = told(run(place, "prune", "--name", "web", "--keep-last", "1", "--json"))["backups"]
    fates = {Path(p["path"]).name: p["fate"] for p in pruned}
    assert fates == {one.file.name: "kept", found[0]: "deleted", found[1]: "deleted", found[2]: "kept"}
    fails(run(place, "restore", one.file.name, "--force", "--name", "a/b"), 2, "'a/b'", "--name")


@pytest.mark.soak
def test_name_of_the_settings_is_that_of_all_backups(place: Place) -> None:
    fill(place)
    named = replace(place, environment={"WHATSAPP_DATABASE_BACKUP_NAME": "web 1"})
    one = told(run(named, "create", "--json"))
    assert one["name"] == "web 1"
    done = named.run("up", "--backup", "--json")
    assert Path(told(done)["backup"]).name.startswith("web 1-")
    restored = told(run(named, "restore", Path(one["path"]).name, "--force", "--json"))
    assert Path(restored["safety_backup"]).name.startswith("web 1-")
    assert told(run(named, "verify", "latest", "--json"))["name"] == "web 1"
    assert len(told(run(named, "prune", "--keep-last", "1", "--json"))["backups"]) == 3
    assert told(run(place, "prune", "--keep-last", "1", "--json"))["backups"] == []


def test_a_missing_folder_is_told(place: Place) -> None:
    fill(place)
    fails(run(place, "prune", "--keep-last", "1"), 1, "backups does not exist", "--dir")
    assert not folder_of(place).exists()


def test_what_a_killed_prune_left_is_deleted_by_the_next(sqlite: Place) -> None:
    """Of the two files the manifest goes last."""
    fill(sqlite)
    history = history_of(sqlite)
    history[2].file.unlink()
    assert fates(prune(sqlite, 2)) == ["kept"] * 2 + ["deleted"] * 4
    assert names(folder_of(sqlite)) == files_of(history[:2])


@pytest.mark.soak
def test_two_prunes_at_once_never_leave_nothing(place: Place) -> None:
    """Of different policies, each in a process of its own; the latest good one stays."""
    place = quiet(place)
    fill(place)
    for _ in range(1 if place.is_sqlite else 2):
        history = history_of(place)
        damage(history[0])
        prunes = [("--keep-last", "1"), ("--keep-monthly", "1"), ("--keep-daily", "2")]
        running = [place.start("prune", *rules, module="whatspire_db.backup") for rules in prunes]
        assert [(code, err) for code, _, err in ends_of(running)] == [(0, "")] * len(prunes)
        with tools():
            backup.verify(history[1])
        assert files_of(history[:2]) <= names(folder_of(place))
        assert len(backup.list_backups(folder_of(place))[0]) <= 4
        for one in history:
            for path in (one.file, one.manifest_path):
                path.unlink(missing_ok=True)


def test_a_backup_that_is_deleted_while_sqlite_opens_it_is_no_failure_to_read(
    sqlite: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(sqlite)
    (one,) = made(sqlite)

    def opened_late(path: Path, *more: Any, **named: Any) -> Any:
        for gone in (one.file, one.manifest_path):
            gone.unlink(missing_ok=True)
        return opened(path, *more, **named)

    opened = engine.opened
    monkeypatch.setattr(engine, "opened", opened_late)
    with pytest.raises(BackupFailed, match="was deleted meanwhile"):
        backup.verify(one)


def storm(place: Place, rounds: int) -> None:
    """Create, prune, list, verify and find at once; what is there in the end is whole, in order, and enough."""
    made(place)
    stop = threading.Event()

    def creates() -> list[backup.Backup]:
        return [backup.create(settings_of(place)) for _ in range(rounds)]

    def prunes(*policy: int) -> int:
        pruned = 0
        while not (stop.is_set() and pruned):
            backups = [one for one in backup.prune(settings_of(place), policy=Policy(*policy)) if one.fate == "kept"]
            assert backups
            pruned += 1
        return pruned

    def looks() -> int:
        looked = 0
        while not (stop.is_set() and looked):
            backups, others = backup.list_backups(folder_of(place))
            assert all("no manifest" in other.reason for other in others)  # as it is for a moment
            assert len({one.manifest.serial for one in backups}) == len(backups)
            try:
                backup.verify(backup.find("latest", settings=settings_of(place)))
            except BackupFailed as error:
                assert "was deleted meanwhile" in error.fact  # noqa: PT017  # which one it is matters
            looked += 1
        return looked

    def all_created() -> list[backup.Backup]:
        try:
            return [one for each in at_once(*[creates] * 3) for one in each]
        finally:
            stop.set()

    with tools():
        created, *_ = at_once(all_created, lambda: prunes(2), lambda: prunes(0, 1), looks)
        assert sorted(one.manifest.serial for one in created) == list(range(2, len(created) + 2))
        latest = max(created, key=lambda one: one.manifest.serial)
        backups, others = backup.list_backups(folder_of(place))
        assert others == []
        assert backups[0] == latest
        assert names(folder_of(place)) == files_of(backups)
        for one in backups:
            backup.verify(one)


@pytest.mark.soak
def test_create_and_prune_at_once(place: Place) -> None:
    fill(place)
    storm(place, ROUNDS)


@pytest.mark.soak
def test_create_and_prune_at_once_for_long(place: Place) -> None:
    fill(place)
    storm(place, MANY_ROUNDS)


@pytest.mark.parametrize("verb", [("prune", "--keep-last", "1"), ("create",)])
def test_nobody_publishes_or_deletes_beside_another(sqlite: Place, verb: tuple[str, ...]) -> None:
    """Who holds the folder's lock is alone; the others wait, and then go on."""
    fill(sqlite)
    history = history_of(sqlite)
    with locked(folder_of(sqlite)):
        waiting = sqlite.start(*verb, module="whatspire_db.backup")
        eventually(lambda: has_open(waiting.pid, folder_of(sqlite)), "it waits")
        assert {name for name in names(folder_of(sqlite)) if not name.startswith(".")} == files_of(history)
    assert waiting.communicate(timeout=60)[1] == ""
    assert waiting.returncode == 0
    assert len(backup.list_backups(folder_of(sqlite))[0]) == (1 if verb[0] == "prune" else 7)


def has_open(pid: int, folder: Path) -> bool:
    """Tell whether a process has a folder open, as one has who asks for its lock again and again."""
    with suppress(OSError):  # what it closes meanwhile, and the process itself, are gone
        return any(os.path.realpath(path) == str(folder) for path in Path(f"/proc/{pid}/fd").iterdir())
    return False


@pytest.mark.parametrize("verb", [("prune", "--keep-last", "1"), ("create",)])
def test_a_folder_that_stays_locked_is_told(sqlite: Place, verb: tuple[str, ...]) -> None:
    """As by cron's flock, when it is given the folder for its file."""
    fill(sqlite)
    made(sqlite)
    before = look(folder_of(sqlite))
    (folder_of(sqlite) / ".whatspire-0123456789ab.partial").mkdir()
    command = ("flock", str(folder_of(sqlite)), sys.executable, "-m", "whatspire_db.backup", *verb)
    done = subprocess.run(
        (*command, "--lock-timeout", "50ms"),
        env=sqlite.variables(),
        cwd=sqlite.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    fails(done, 1, "backups was locked by another process for 0.05 s", "--lock-timeout", "flock")
    (folder_of(sqlite) / ".whatspire-0123456789ab.partial").rmdir()
    assert look(folder_of(sqlite)) == before


def test_restore_waits_for_the_folder_as_long_as_it_is_told(sqlite: Place) -> None:
    """It makes a backup of what it overwrites, under the folder's lock."""
    fill(sqlite, 3)
    (one,) = made(sqlite)
    before = Path(sqlite.dsn).read_bytes()
    with locked(folder_of(sqlite)):
        done = run(sqlite, "restore", str(one.file), "--force", "--lock-timeout", "50ms")
    fails(done, 1, "backups was locked by another process for 0.05 s", "--lock-timeout")
    assert Path(sqlite.dsn).read_bytes() == before


def test_backups_are_read_while_others_may_use_the_folder(sqlite: Place) -> None:
    """To read what is kept takes long, and a run that waits for the folder gives up some time."""
    fill(sqlite)
    made(sqlite)
    made(sqlite)
    locks = []

    def progress(what: str, done: int, total: int) -> None:
        with locked(folder_of(sqlite), 0):
            locks.append(what)

    pruned = backup.prune(settings_of(sqlite), policy=Policy(last=1), progress=progress)
    assert [one.fate for one in pruned] == ["kept", "deleted"]
    assert locks


def test_settings_name_the_folder(sqlite: Place) -> None:
    fill(sqlite)
    settings = Settings("sqlite", sqlite.dsn, backup_dir=str(sqlite.folder / "named"), log_level="silent")
    for _ in range(3):
        backup.create(settings)
    assert len(backup.prune(settings, policy=Policy(last=1))) == 3
    assert len(backup.list_backups(settings=settings)[0]) == 1
    assert not folder_of(sqlite).exists()
