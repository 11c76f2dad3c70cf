"""Damage of every kind, to a backup's file and to its manifest: it is found, named, and nothing is restored from it."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backup import files
from tests.backup.ground import (
    add,
    entries,
    fails,
    fill,
    folder_of,
    look,
    made,
    refitted,
    rewritten,
    run,
    run_many,
    settings_of,
    told,
    tools,
)
from tests.conftest import Place
from whatspire_db import backup
from whatspire_db.backup.archive import MANIFEST_BYTES, free_stem, read_folder
from whatspire_db.backup.manifest import LAST_SERIAL, Content, Manifest, Table, _checksum
from whatspire_db.errors import BackupInvalid, ConfigError, WhatspireDBError

pytestmark = pytest.mark.sampled

FLIPS = 100
EDITS = 100

Damage = Callable[[Path], object]


@pytest.fixture
def one(place: Place) -> backup.Backup:
    """A backup, compressed on PostgreSQL as it is by default, of what the database does not hold any more."""
    fill(place)
    (found,) = made(place)
    add(place, 3)
    return found


@pytest.fixture
def others(request: pytest.FixtureRequest, place: Place) -> backup.Backup:
    """A backup of the other engine, in a folder of its own."""
    other = request.getfixturevalue("postgres" if place.is_sqlite else "sqlite")
    fill(other)
    with tools():
        return backup.create(settings_of(other), other.folder / "others")


def refused(place: Place, path: Path, *words: str) -> None:
    """Show that verify and restore refuse a backup, that they name it, and that nothing is changed or left behind."""
    before, rows = look(folder_of(place)), entries(place)
    stem = path.name.split(".")[0]
    for work in (
        lambda: backup.verify(backup.find(path, settings=settings_of(place)), settings_of(place)),
        lambda: backup.verify(backup.find(path, settings=settings_of(place)), settings_of(place), test_restore=True),
        lambda: backup.restore(backup.find(path, settings=settings_of(place)), settings_of(place), force=True),
    ):
        with tools(), pytest.raises(BackupInvalid) as caught:
            work()
        assert caught.value.exit_code == 3
        assert stem in caught.value.fact, caught.value
        assert caught.value.hint
        for word in words:
            assert word in caught.value.fact, caught.value
    assert look(folder_of(place)) == before
    assert entries(place) == rows


def refused_by_the_command_line(place: Place, path: Path) -> None:
    before, rows = look(folder_of(place)), entries(place)
    for done in run_many(place, ("verify", str(path)), ("restore", path.name, "--force")):
        fails(done, 3, path.name.split(".")[0])
        assert done.stdout == ""
    assert look(folder_of(place)) == before
    assert entries(place) == rows


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def write_text(path: Path) -> None:
    path.write_text("this is no backup\n")


def put_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def put_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def put_an_endless_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


OF_BOTH: list[Damage] = [truncate, halve, empty, write_text, put_a_directory, put_a_pipe, put_an_endless_link]


def flips(path: Path) -> Iterator[int]:
    """Flip a bit of a file at many places, one after the other, the first and the last byte among them."""
    whole = path.read_bytes()
    places = {0, len(whole) - 1, *random.sample(range(len(whole)), FLIPS - 2)}
    for place in sorted(places):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << random.randrange(8)]) + whole[place + 1 :])
        yield place
    path.write_bytes(whole)


@contextmanager
def mended(path: Path) -> Iterator[None]:
    """Bring back what a file held before the block."""
    whole = path.read_bytes()
    yield
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.write_bytes(whole)


def test_damaged_file_is_refused(place: Place, one: backup.Backup) -> None:
    damages: list[Damage] = [*OF_BOTH, lengthen, Path.unlink]
    for damage in damages:
        with mended(one.file):
            damage(one.file)
            refused(place, one.file)


def test_bytes_that_flipped_in_the_file_are_found(place: Place, one: backup.Backup) -> None:
    for _ in flips(one.file):
        with pytest.raises(BackupInvalid, match=one.file.name):
            backup.verify(one)
    with tools():
        backup.verify(one)


@pytest.mark.soak
def test_the_command_line_ends_with_3(place: Place, one: backup.Backup) -> None:
    whole = one.file.read_bytes()
    truncate(one.file)
    refused_by_the_command_line(place, one.file)
    one.file.write_bytes(whole)
    manifest = one.manifest_path.read_text()
    one.manifest_path.write_text(manifest.replace('"rows": 200', '"rows": 201'))
    refused_by_the_command_line(place, one.file)
    one.manifest_path.write_text(manifest)
    assert told(run(place, "verify", "--json"))["verified"]


def test_the_engine_finds_what_a_manifest_hides(place: Place, one: backup.Backup) -> None:
    """A checksum can be right and the file wrong: when it was damaged before, by the disk or by memory."""
    for damage in (halve, truncate, empty, write_text):
        with mended(one.file):
            damage(one.file)
            refitted(one)
            refused(place, one.file)


@pytest.mark.soak
def test_rows_that_the_file_does_not_hold_are_found_when_it_is_tried_out(place: Place, one: backup.Backup) -> None:
    tables = dict(one.manifest.content.tables)
    (name,) = tables
    for table in (replace(tables[name], rows=201), replace(tables[name], fingerprint="0")):
        rewritten(one, content=replace(one.manifest.content, tables={name: table}))
        with tools(), pytest.raises(WhatspireDBError, match="entry has") as caught:
            backup.verify(backup.find(one.file, settings=settings_of(place)), settings_of(place), test_restore=True)
        assert caught.value.exit_code == 3
        rows = entries(place)
        with tools(), pytest.raises(WhatspireDBError, match="entry has"):
            backup.restore(backup.find(one.file, settings=settings_of(place)), settings_of(place), force=True)
        assert entries(place) == rows


def test_file_of_the_other_engine_in_its_place_is_refused(
    place: Place, one: backup.Backup, others: backup.Backup
) -> None:
    shutil.copyfile(others.file, one.file)
    refused(place, one.file)
    refitted(one)
    refused(place, one.file)


def test_backup_of_the_other_engine_is_refused(place: Place, one: backup.Backup, others: backup.Backup) -> None:
    for path in (others.file, others.manifest_path):
        shutil.copyfile(path, one.folder / path.name)
    before, rows = look(folder_of(place)), entries(place)
    fails(run(place, "restore", others.file.name, "--force"), 3, others.file.name, "WHATSAPP_DATABASE_DRIVER")
    assert look(folder_of(place)) == before
    assert entries(place) == rows


def test_damaged_manifest_is_refused(place: Place, one: backup.Backup) -> None:
    one.manifest_path.write_text(one.manifest_path.read_text().rstrip())
    for damage in OF_BOTH:
        with mended(one.manifest_path):
            damage(one.manifest_path)
            refused(place, one.file)


def test_manifest_that_is_missing_is_told(place: Place, one: backup.Backup) -> None:
    one.manifest_path.unlink()
    refused(place, one.file, "no manifest", one.manifest_path.name)
    backups, (other,) = backup.list_backups(one.folder)
    assert backups == []
    assert other.path == one.file


def test_bytes_that_flipped_in_the_manifest_are_found(place: Place, one: backup.Backup) -> None:
    one.manifest_path.write_text(one.manifest_path.read_text().rstrip())
    for _ in flips(one.manifest_path):
        with pytest.raises(BackupInvalid, match=one.manifest_path.stem):
            backup.find(one.file, settings=settings_of(place))
        (other,) = read_folder(one.folder)[1]
        assert other.path == one.manifest_path
    assert backup.find(one.file, settings=settings_of(place)) == one


NO_MANIFESTS = [
    "[]",
    "null",
    '"text"',
    "{}",
    '{"checksum": 1}',
    '{"checksum": null, "format": 1}',
    '{"checksum": "", "format": 2}',
    "9" * 5000,
    "NaN",
    "\ufeff{}",
    "[" * 200_000,
    '{"a":' * 200_000,
]


def test_any_json_is_no_manifest(sqlite: Place) -> None:
    fill(sqlite)
    (one,) = made(sqlite)
    for text in NO_MANIFESTS:
        one.manifest_path.write_text(text, encoding="utf-8")
        refused(sqlite, one.file)
        assert len(backup.list_backups(one.folder)[1]) == 1, text[:24]
    made(sqlite)  # what lies about is in nobody's way


def test_manifest_that_would_fill_memory_is_not_read(sqlite: Place) -> None:
    fill(sqlite)
    (one,) = made(sqlite)
    os.truncate(one.manifest_path, MANIFEST_BYTES + 1)  # holes, that take no room
    with pytest.raises(BackupInvalid, match="is not the manifest"):
        backup.find(one.file, settings=settings_of(sqlite))


def test_manifest_without_sense_is_no_manifest(sqlite: Place) -> None:
    """Its checksum is right, so somebody made it up; it leads nowhere else, and ends no run with a traceback."""
    fill(sqlite)
    (one,) = made(sqlite)
    content = one.manifest.content
    for changes in (
        {"created_at": "yesterday"},
        {"created_at": "2026-01-01T00:00:00"},
        {"serial": "1"},
        {"size": None},
        {"file": "../" + one.file.name},
        {"file": str(one.file)},
        {"file": one.file.name + "\0"},
        {"file": ""},
        {"file": 7},
        {"content": replace(content, engine="oracle")},
        {"content": replace(content, engine=[])},
        {"content": replace(content, schema_version="x")},
    ):
        rewritten(one, **changes)
        with pytest.raises(BackupInvalid):
            backup.find(one.file, settings=settings_of(sqlite))
        assert len(read_folder(one.folder)[1]) == 1, changes
    rewritten(one)
    assert backup.find(one.file, settings=settings_of(sqlite)) == one


Edit = Callable[[dict[str, Any]], object]


def table_of(body: dict[str, Any]) -> dict[str, Any]:
    """Return what a manifest says of its one table, which each engine names in its own way."""
    (table,) = body["content"]["tables"].values()
    assert isinstance(table, dict)
    return table


# What went amid the work instead of being refused, when somebody made it up with its checksum.
EDITS_OF_ANY: list[Edit] = [
    lambda body: body.update(created_at="0001-01-01T00:00:00+14:00"),
    lambda body: body.update(created_at="9999-12-31T23:59:59-14:00"),
    lambda body: body.update(created_at=5),
    lambda body: body.update(serial=int("9" * 4300)),
    lambda body: body.update(serial=-1),
    lambda body: body.update(serial=True),
    lambda body: body.update(size=10**400),
    lambda body: body.update(source=[]),
    lambda body: body.update(name=5),
    lambda body: body.update(purpose=[]),
    lambda body: body.update(compression="x"),
    lambda body: body.update(sha256=None),
    lambda body: body.update(tested_at=5),
    lambda body: body.update(more=1),
    lambda body: body.pop("purpose"),
    lambda body: body["content"].update(engine="postgres" if body["content"]["engine"] == "sqlite" else "sqlite"),
    lambda body: body["content"].update(details=[]),
    lambda body: body["content"].update(details={}),
    lambda body: body["content"].update(extensions=5),
    lambda body: body["content"].update(tables=[]),
    lambda body: body["content"].update(more=1),
    lambda body: table_of(body).update(rows="x"),
    lambda body: table_of(body).update(rows=1.0),
    lambda body: table_of(body).update(rows=2**63),
    lambda body: table_of(body).update(fingerprint=1),
    lambda body: table_of(body).update(more=1),
    lambda body: body["content"]["tables"].update(entry=[]),
    lambda body: body["content"]["details"].update(sequences={"s": 1}),
    lambda body: body["content"]["details"].update(sequences={"s": [1]}),
    lambda body: body["content"]["details"].update(sequences=[1]),
    lambda body: body["content"]["details"].update(more=float("inf")),
    lambda body: body["content"]["details"].update(more=json.loads("[" * 400 + "]" * 400)),
]
EDITS_OF_SQLITE: list[Edit] = [lambda body: body["content"]["details"].update(page_size="x")]
EDITS_OF_POSTGRES: list[Edit] = [
    lambda body: body["content"]["details"].update(major="18"),
    lambda body: body["content"]["details"].pop("dumped_by"),
    lambda body: body["content"]["details"].update(roles=[1]),
    lambda body: body["content"]["details"].update(hnsw=None),
    lambda body: body["content"]["details"].update(database=None),
    lambda body: body["content"]["details"]["database"].update(provider="x"),
    lambda body: body["content"]["details"]["database"].update(connection_limit="1 IS_TEMPLATE true"),
    lambda body: body["content"]["details"]["database"].update(settings=[["", "a=b"]]),
    lambda body: body["content"]["details"]["database"].update(grants=[["", "ALL; DROP TABLE entry", False, "a"]]),
]


def edited(one: backup.Backup, edit: Edit) -> None:
    """Write a backup's manifest anew, changed, as somebody does who knows how to compute its checksum."""
    body = one.manifest.to_json()
    body = json.loads(json.dumps(body))
    edit(body)
    one.manifest_path.write_text(json.dumps({**body, "checksum": _checksum(body)}))


def test_edit_without_sense_is_refused_and_in_nobodys_way(place: Place, one: backup.Backup) -> None:
    (other,) = made(place)
    assert not [*backup.list_backups(folder_of(place))[1]]
    for edit in [*EDITS_OF_ANY, *(EDITS_OF_SQLITE if place.is_sqlite else EDITS_OF_POSTGRES)]:
        edited(one, edit)
        with pytest.raises(BackupInvalid, match="is not the manifest of a backup"):
            backup.find(one.file, settings=settings_of(place))
    backups, (found,) = backup.list_backups(folder_of(place))
    assert (backups, found.path) == ([other], one.manifest_path)
    refused_by_the_command_line(place, one.file)
    (third,) = made(place)
    assert [p.fate for p in backup.prune(settings_of(place), policy=backup.Policy(last=1))] == ["kept", "deleted"]
    assert backup.list_backups(folder_of(place))[0] == [third]


ODD_NUMBERS = st.sampled_from([10**4299, 10**400, 2**63, 2**53, LAST_SERIAL, LAST_SERIAL + 1, -1])
ODD_TEXTS = st.sampled_from(
    [
        "",
        "x" * 300,
        "gzip",
        "zstd",
        "none",
        "sqlite",
        "postgres",
        "..",
        "a/b",
        "\0",
        "\ud800",
        "9999-12-31T23:59:59-14:00",
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | ODD_NUMBERS | ODD_TEXTS,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below, max_size=3),
    max_leaves=5,
)


def holders(value: Any) -> list[Any]:
    """Return every object and list of a document, itself included."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    below = [holder for item in items for holder in holders(item)]
    return [value, *below] if isinstance(value, dict | list) else below


@st.composite
def any_edit(draw: st.DrawFn) -> Edit:
    which, what, value = draw(st.integers(0, 99)), draw(st.integers(0, 99)), draw(JSON)
    way = draw(st.sampled_from(["change", "change", "change", "remove", "add"]))

    def edit(body: dict[str, Any]) -> None:
        found = [holder for holder in holders(body) if holder]
        holder = found[which % len(found)]
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if way == "remove":
            del holder[keys[what % len(keys)]]
        elif way == "change":
            holder[keys[what % len(keys)]] = value
        else:
            holder.update(more=value) if isinstance(holder, dict) else holder.append(value)

    return edit


def harmless(place: Place, one: backup.Backup, other: backup.Backup, edit: Edit) -> None:
    """Show that an edited manifest ends nothing in another way than by an error of the package, and stops no other."""
    edited(one, edit)
    settings = settings_of(place)
    backups, others = backup.list_backups(folder_of(place))
    assert other in backups
    assert {path.manifest_path for path in backups} | {path.path for path in others} >= {one.manifest_path}
    for arguments in (["list"], ["list", "--json"]):
        assert files.run(place, *arguments).returncode == 0
    with tools():
        pruned = backup.prune(settings, policy=backup.Policy(1, 1, 1, 1), dry_run=True)
        assert other.file in [p.backup.file for p in pruned]
        with suppress(WhatspireDBError):
            found = backup.find(one.file, settings=settings)
            backup.verify(found, settings)
            if place.is_sqlite:
                backup.restore(found, settings, to=str(place.folder / "elsewhere.db"), force=True, safety_backup=False)


@pytest.mark.soak
@pytest.mark.parametrize("driver", ["sqlite", "postgres"])
def test_any_edit_is_refused_or_harmless(driver: str, request: pytest.FixtureRequest) -> None:
    place = request.getfixturevalue(driver)
    fill(place, 3)
    one, other = made(place)[0], made(place)[0]

    @given(any_edit())
    @settings(max_examples=EDITS, deadline=None)
    def law(edit: Edit) -> None:
        harmless(place, one, other, edit)

    law()
    (third,) = made(place)  # behind whatever was the last
    assert backup.find(third.file, settings=settings_of(place)) == third


def test_serial_that_was_made_up_leaves_the_next_a_backup(sqlite: Place) -> None:
    fill(sqlite)
    (one,) = made(sqlite)
    rewritten(one, serial=LAST_SERIAL)
    (other,) = made(sqlite)
    assert backup.list_backups(folder_of(sqlite))[0][0] == other


def swap(first: Path, second: Path) -> None:
    aside = first.with_name("aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


def test_names_that_were_swapped_are_found(place: Place, one: backup.Backup) -> None:
    (other,) = made(place)
    for swapped in (
        [(one.file, other.file)],
        [(one.manifest_path, other.manifest_path)],
        [(one.file, other.file), (one.manifest_path, other.manifest_path)],
    ):
        for first, second in swapped:
            swap(first, second)
        refused(place, one.file)
        refused(place, other.file)
        for first, second in swapped:
            swap(first, second)
    with tools():
        backup.verify(one)
        backup.verify(other)


def test_names_that_were_changed_are_told(place: Place, one: backup.Backup) -> None:
    renamed = one.file.with_name("mine-" + one.file.name)
    one.file.rename(renamed)
    one.manifest_path.rename(renamed.with_suffix(".json"))
    refused(place, renamed, f"is the manifest of {one.file.name}")
    backups, (other,) = backup.list_backups(one.folder)
    assert backups == []
    assert one.file.name in other.reason


def test_no_backup_has_any_name(sqlite: Place) -> None:
    fill(sqlite)
    made(sqlite)
    for reference in (".", "..", "/", "backups", "nowhere", "no/where", "backups/x-20200101T000000Z.sqlite3"):
        with pytest.raises(BackupInvalid, match="is a directory|does not exist"):
            backup.find(reference, settings=settings_of(sqlite))
    with pytest.raises(ConfigError, match="the name of the file is empty"):
        backup.find("", settings=settings_of(sqlite))
    fails(run(sqlite, "verify", ""), 2)
    fails(run(sqlite, "verify", "x" * 5000), 1, "name too long")


def test_a_folder_in_which_others_left_things_serves_on(place: Place, one: backup.Backup) -> None:
    """Nothing that lies in the folder stops a backup, its listing, or its pruning."""
    stems = [f"{one.manifest.name}-2020010{n}T000000Z" for n in range(1, 7)]
    (one.folder / f"{stems[0]}.json").mkdir()
    os.mkfifo(one.folder / f"{stems[1]}.json")
    (one.folder / f"{stems[2]}.json").symlink_to("/dev/zero")
    (one.folder / f"{stems[3]}.json").symlink_to(f"{stems[3]}.json")
    (one.folder / f"{stems[4]}.json").write_bytes(b"\xff\xfe")
    os.mkfifo(one.folder / f"{stems[5]}{one.file.suffix}")
    (other,) = made(place)
    listed = told(run(place, "list", "--json"))
    assert [found["path"] for found in listed["backups"]] == [f"backups/{b.file.name}" for b in (other, one)]
    assert {Path(found["path"]).name.split(".")[0] for found in listed["others"]} == set(stems)
    assert all(found["reason"] for found in listed["others"])
    assert [p["fate"] for p in told(run(place, "prune", "--keep-last", "1", "--json"))["backups"]] == [
        "kept",
        "deleted",
    ]


def test_latest_says_that_a_later_one_is_damaged(place: Place, one: backup.Backup) -> None:
    (later,) = made(place)
    later.manifest_path.write_text("{}")
    done = run(place, "verify")
    assert done.returncode == 0
    assert one.file.name in done.stdout
    assert done.stderr.startswith("WARNING: the latest backup may be another one: ")
    assert later.manifest_path.name in done.stderr


def test_manifest_keeps_every_name(sqlite: Place) -> None:
    """What a manifest holds comes back as it was, also what is no Unicode or no end of a line."""
    odd = 'é\n\u2028\udcff"\\ \0'
    details = {"page_size": 4096, "page_count": 1, "encoding": "UTF-8", "details": [odd, 1.5, None]}
    content = Content("sqlite", "3", 1, {odd: Table(1, odd)}, {odd: odd}, details)
    manifest = Manifest(odd, "x", "2026-01-01T00:00:00+00:00", 1, odd, "none", 2, "", content, "0", odd)
    text = manifest.to_text()
    assert text.isascii()
    assert Manifest.from_text(text, Path("x")) == manifest
    body = json.loads(text)
    for key in body:
        with pytest.raises(BackupInvalid):
            Manifest.from_text(json.dumps(body | {key: "another"}), Path("x"))
        with pytest.raises(BackupInvalid):
            Manifest.from_text(json.dumps({k: v for k, v in body.items() if k != key}), Path("x"))


@pytest.mark.parametrize("stray", ["db-20260102T030405Z.db", "db-20260102T030405Z.json", "db-20260102T030405Z.notes"])
def test_a_new_backup_takes_no_name_that_a_stray_file_has_begun(tmp_path: Path, stray: str) -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    assert free_stem(tmp_path, "db", at) == "db-20260102T030405Z"
    (tmp_path / stray).touch()
    assert free_stem(tmp_path, "db", at) == "db-20260102T030406Z"
    assert free_stem(tmp_path, "d", at) == "d-20260102T030405Z"
