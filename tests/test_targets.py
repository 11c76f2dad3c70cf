"""Which databases a run over many is about, and the threads that do it: the parts that need no command."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whatspire_db import ConfigError, ConnectionFailed, WhatspireDBError, interruption
from whatspire_db.cli.jobs import Jobs
from whatspire_db.cli.targets import dsn_targets, file_targets, is_meant_by, matching_files
from whatspire_db.dsn.postgres import parse_postgres
from whatspire_db.migrate.engines.postgres.schemas import SchemaPath
from whatspire_db.signals import Command


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Names


CASES = [
    ("tenant_*", "tenant_1", True),
    ("tenant_*", "Tenant_1", False),
    ("tenant_?", "tenant_12", False),
    ("tenant_[12]", "tenant_2", True),
    ("tenant_[!1]", "tenant_1", False),
    ("a.c", "abc", False),
    ("%", "a", False),
    ("*'; DROP", "a'; DROP", True),
]


@pytest.mark.parametrize(("pattern", "name", "is_meant"), CASES)
def test_patterns_are_globs(pattern: str, name: str, is_meant: bool) -> None:
    assert is_meant_by(pattern, name) is is_meant


@given(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1),
    st.sampled_from(["", '"$user", public']),
)
def test_a_search_path_survives_the_options_of_libpq(schema: str, others: str) -> None:
    path = SchemaPath(schema, others, "-c a=b")
    dsn = " ".join(["host=h", "options='" + path.in_options.replace("\\", "\\\\").replace("'", "\\'") + "'"])
    options = parse_postgres(dsn).arguments["options"]
    assert split_as_the_server_does(options) == ["-c", "a=b", "-c", f"search_path={path.setting}"]


def split_as_the_server_does(options: str) -> list[str]:
    """Split like pg_split_opts: at white space, unless a backslash stands before it."""
    words, word, is_escaped, is_open = [], "", False, False
    for letter in options:
        if not is_escaped and letter in " \t\n\r\v\f":
            if is_open:
                words.append(word)
            word, is_open = "", False
        elif not is_escaped and letter == "\\":
            is_escaped = is_open = True
            continue
        else:
            word, is_open = word + letter, True
        is_escaped = False
    return [*words, word] if is_open else words


def test_files_are_matched_once_and_named_as_they_were_typed(here: Path) -> None:
    for name in ("a.db", "b[1].db", "b1.db", "a.db-wal", "c.db-wal", ".hidden.db"):
        (here / name).touch()
    assert matching_files(["*.db", "a.db", "./a.db"]) == ["a.db", "b1.db", "b[1].db"]
    assert matching_files(["b[1].db"]) == ["b[1].db"]
    assert matching_files(["*"]) == ["a.db", "b1.db", "b[1].db", "c.db-wal"]
    with pytest.raises(ConfigError, match="not shown here") as refused:
        matching_files(["postgres://u:hunter2@h/d"])
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("name", ["a b.db", "a?b.db", "a#b.db", "a%20b.db", "~a.db", "ü.db", "a&mode=memory.db"])
def test_a_file_of_any_name_is_opened_and_never_made(here: Path, name: str) -> None:
    (here / name).touch()
    (target,) = file_targets([name])
    assert target.required().target.path == str(here / name)
    assert target.required().dsn.endswith("?mode=rw")
    (here / name).unlink()
    with pytest.raises(ConnectionFailed, match="is gone"):
        target.required()
    (here / name).symlink_to("elsewhere")
    with pytest.raises(ConnectionFailed, match="it is a link"):
        target.required()


# DSNs

UNREADABLE = [
    (b"# nothing yet\n\n", "holds no DSN"),
    (b"\xff\xfe\x00", "no text in UTF-8"),
    (b"postgres://u:hunter2%@h/d\n", "line 1 of dsns: "),
    (b"x=" + b"y" * (1 << 24), "more than 16 MB"),
]


@pytest.mark.parametrize(("content", "words"), UNREADABLE, ids=[words for _, words in UNREADABLE])
def test_a_file_without_a_dsn_is_refused(here: Path, content: bytes, words: str) -> None:
    (here / "dsns").write_bytes(content)
    (here / "dsns").chmod(0o600)
    with pytest.raises(ConfigError, match=words) as refused:
        dsn_targets("dsns")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("path", [".", "missing", "a\0b"])
def test_what_is_no_file_of_dsns_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="--dsn-file"):
        dsn_targets(path)


def test_lines_of_a_file_of_dsns(here: Path) -> None:
    (here / "dsns").write_text("\ufeffa.db\r\n\n  # b.db\n\t file:c.db?mode=ro \nhost=h dbname=d password=hunter2")
    (here / "dsns").chmod(0o600)
    found = dsn_targets("dsns")
    assert [(t.line, t.driver, t.name) for t in found] == [
        (1, "sqlite", str(here / "a.db")),
        (4, "sqlite", str(here / "c.db")),
        (5, "postgres", "host=h dbname=d"),
    ]
    assert "hunter2" not in repr(found)


# Threads


def test_jobs_do_every_task_at_most_so_many_at_a_time() -> None:
    together = threading.Barrier(3)

    def work(number: int) -> str:
        together.wait(30)  # passes three by three alone
        return threading.current_thread().name

    jobs = Jobs(range(9), work, 3)
    found = dict(jobs.run())
    assert found == jobs.done
    assert found.keys() == set(range(9))
    assert len(set(found.values())) == 3


def test_no_task_is_begun_after_the_last() -> None:
    def work(number: int) -> int:
        if number == 1:
            jobs.begin_no_more()
        return number

    jobs = Jobs(range(9), work, 1)
    assert list(jobs.run()) == [(0, 0), (1, 1)]


def test_the_main_thread_makes_calls_for_others() -> None:
    def work(number: int) -> object:
        try:
            return jobs.in_main_thread(threading.current_thread if number else lambda: 1 / 0)
        except ZeroDivisionError as error:
            return type(error)

    jobs = Jobs(range(2), work, 2)
    assert dict(jobs.run()) == {0: ZeroDivisionError, 1: threading.current_thread()}


def test_stop_interrupts_what_is_under_way_and_begins_no_more() -> None:
    begun = threading.Event()

    def work(number: int) -> str:
        try:
            while number:
                begun.set()
                time.sleep(0.01)
        except KeyboardInterrupt:
            return "interrupted"
        return "done"

    jobs = Jobs(range(9), work, 1)
    results = jobs.run()
    assert next(results) == (0, "done")
    assert begun.wait(30)
    jobs.stop()
    assert jobs.done == {0: "done", 1: "interrupted"}
    assert list(results) == [(1, "interrupted")]


def test_a_thread_that_cannot_be_started_is_done_without() -> None:
    jobs = Jobs(range(3), lambda number: number, 3)
    with mock.patch.object(jobs._threads[1], "start", side_effect=RuntimeError):
        assert dict(jobs.run()) == {0: 0, 1: 1, 2: 2}
    jobs = Jobs(range(3), lambda number: number, 3)
    with (
        mock.patch("threading.Thread.start", side_effect=RuntimeError),
        pytest.raises(WhatspireDBError, match="thread"),
    ):
        list(jobs.run())


def test_closed_connections_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlite3

    command = Command(lambda number: 0)
    monkeypatch.setattr(interruption, "command", command)
    first, second = (interruption.cancellable(sqlite3.connect(":memory:")) for _ in range(2))
    first.close()
    interruption.forget_closed()
    assert command.connections == [second]
    second.close()
