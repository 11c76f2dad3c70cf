"""Lines on a terminal: they fit its width without losing a word, and colours can be turned off."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Place
from whatspire_db.cli.tables import aligned, wrapped
from whatspire_db.cli.terminal import coloured, fitted
from whatspire_db.letters import cells


@given(st.lists(st.text("abc(),'", min_size=1, max_size=30), min_size=1, max_size=40), st.sampled_from(["", "    "]))
def test_fitted_lines_hold_all_words_in_order(words: list[str], indent: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "60")
        lines = fitted(indent + " ".join(words))
    assert " ".join(lines).split() == words
    assert all(len(line) <= 60 and line.startswith(indent) for line in lines)


@pytest.mark.parametrize(
    ("variables", "is_coloured"),
    [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({}, False)],
)
def test_colours(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], is_coloured: bool) -> None:
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    expected = "\033[33mpending\033[0m: 3 steps" if is_coloured else "pending: 3 steps"
    assert coloured("pending: 3 steps") == expected
    assert coloured("  create table pending") == "  create table pending"
    assert coloured("in sync         no") == "in sync         no"


def on_terminal(place: Place, *arguments: str, module: str = "whatspire_db.migrate", **variables: str) -> str:
    """Return what a command writes to a terminal, which has 80 columns if COLUMNS says nothing else."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(
        command, env=place.variables() | {"COLUMNS": "80"} | variables, cwd=place.folder, stdout=theirs, stderr=theirs
    ):
        os.close(theirs)
        output = b""
        try:
            while data := os.read(ours, 65536):
                output += data
        except OSError:  # the other end is closed
            pass
        os.close(ours)
    return output.decode().replace("\r\n", "\n")


def test_plan_fits_a_terminal_and_marks_what_is_pending(sqlite: Place) -> None:
    shown = on_terminal(sqlite, "plan", TERM="xterm")
    assert "\033[33mpending\033[0m: 30 steps\n" in shown
    plain = on_terminal(sqlite, "plan", TERM="xterm", NO_COLOR="1")
    assert "\033" not in plain
    assert max(map(len, plain.splitlines())) <= 80
    heads, first, *_ = plain.partition("pending: 30 steps\n")[2].splitlines()
    assert columns_of(heads) == ["step", "what", "lock", "cost"]
    assert re.fullmatch(r"  1 +create table api_keys +the database's write lock +instant", first)
    statements = "".join(plain.partition("statements\n")[2].split())
    for step in json.loads(sqlite.run("plan", "--json").stdout)["pending"]:
        assert all("".join(sql.split()) in statements for sql in step["sql"])


def columns_of(line: str) -> list[str]:
    return re.split(r"  +", line.strip())


@pytest.mark.soak
def test_verify_status_health_and_backups_are_tables_on_a_terminal(sqlite: Place) -> None:
    assert sqlite.run("-q").returncode == 0
    db = sqlite.connect()
    db.execute_sql("DROP INDEX idx_sessions_jid")
    db.execute_sql("ALTER TABLE sessions ADD COLUMN nickname text")
    db.close()
    named, heads, missing, extra = on_terminal(sqlite, "verify", COLUMNS="200", NO_COLOR="1").splitlines()
    assert named == f"database: sqlite {sqlite.dsn}"
    assert columns_of(heads) == ["state", "what", "where"]
    assert columns_of(missing) == ["missing", "index", "sessions.idx_sessions_jid"]
    assert columns_of(extra) == ["extra", "column", "sessions.nickname"]
    assert missing.index("index") == extra.index("column") == heads.index("what")
    status = on_terminal(sqlite, "status", COLUMNS="200").splitlines()
    assert columns_of(status[1]) == ["version", "applied at", "run", "added"]
    assert columns_of(status[2])[2:] == ["auto_migration", "8 tables"]
    health = on_terminal(sqlite, module="whatspire_db.health", COLUMNS="200").splitlines()
    assert columns_of(health[0]) == ["check", "result", "detail"]
    assert ["in sync", "no", "1 missing, 0 drift"] in map(columns_of, health)
    backup = "whatspire_db.backup"
    assert sqlite.run("create", "--to", "b", "--test-restore", module=backup).returncode == 0
    listed = on_terminal(sqlite, "list", "--dir", "b", module=backup, COLUMNS="200").splitlines()
    assert columns_of(listed[1]) == ["name", "time", "size", "engine", "rows", "version", "proved"]
    assert columns_of(listed[2])[3:5] == ["sqlite", "2"]
    assert listed[2].endswith("yes")


@pytest.mark.soak
@pytest.mark.parametrize("verb", ["plan", "verify"])
def test_what_a_killed_undo_left_is_told_beside_a_table(postgres: Place, verb: str) -> None:
    assert postgres.run("-q").returncode == 0
    with postgres.connect() as db:
        db.execute_sql("DROP INDEX idx_sessions_jid")
        db.execute_sql("ALTER TABLE sessions ADD CONSTRAINT whatspire_db_undo_jid CHECK (jid IS NULL)")
    shown = on_terminal(postgres, verb, COLUMNS="200", NO_COLOR="1").splitlines()
    assert any(line.startswith("note: ") and "it refuses values until undo is run" in line for line in shown)


def test_output_to_a_file_has_no_tables(sqlite: Place) -> None:
    assert sqlite.run("verify").stdout.splitlines()[1] == "missing table sessions"
    assert sqlite.run("plan").stdout.splitlines()[2].startswith("  create table api_keys  (lock: ")


words = st.text(st.sampled_from("ab 表\u0301😀"), max_size=40).map(str.strip)


@given(st.lists(st.tuples(words, words, words), min_size=1, max_size=6), st.integers(20, 90))
def test_tables_fit_and_lose_no_letter(rows: list[tuple[str, str, str]], room: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(room))
        lines = aligned(("one", "two", "three"), rows)
    is_table = not any(line.startswith(("one: ", "two: ", "three: ")) for line in lines)
    assert not is_table or all(cells(line) <= room for line in lines)
    shown = Counter("".join(lines))
    assert not Counter("".join(text for row in rows for text in row).replace(" ", "")) - shown


@given(st.text(st.sampled_from("ab 表\u0301😀"), max_size=60).map(str.strip), st.integers(2, 20))
def test_wrapped_lines_fit_and_hold_the_whole_text(text: str, room: int) -> None:
    lines = list(wrapped(text, room))
    assert all(cells(line) <= room for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_columns_begin_below_each_other_whatever_letters_are_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = aligned(("name", "size"), [("表表", "1"), ("a", "2"), ("e\u0301", "3")])
    assert [cells(line[: line.rindex(line[-1])]) for line in lines[1:]] == [6, 6, 6]


def test_control_characters_do_not_reach_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert "\x1b" not in "".join(aligned(("name",), [("\x1b[2J",)]))
    assert r"\x1b[2J" in aligned(("name",), [("\x1b[2J",)])[1]
