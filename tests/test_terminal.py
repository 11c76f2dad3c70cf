"""Lines on a terminal: they fit its width without losing a word, and colours can be turned off."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Place
from whatspire_db.cli.terminal import coloured, fitted


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


def on_terminal(place: Place, *arguments: str, **variables: str) -> str:
    """Return what a command writes to a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "whatspire_db.migrate", *arguments]
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
    assert "".join(plain.split()) == "".join(sqlite.run("plan").stdout.split())
    assert max(map(len, plain.splitlines())) <= 80
