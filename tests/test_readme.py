"""README and docs: their examples run, their commands exist, and what they list is all there is."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from string import Template

import pytest

from scripts import command_line_reference
from tests.conftest import Place
from whatspire_db import MigrationRunner, errors
from whatspire_db.models.service import SERVICE_MODELS
from whatspire_db.settings import FIELDS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FIGURES = ROOT / "docs" / "benchmark.md"  # written by scripts/benchmark.py
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted(ROOT.glob("docs/**/*.md")))
    if path != FIGURES
}
PARSERS = [import_module(name).parser_of() for name in command_line_reference.COMMANDS]
SYMBOLS = re.compile("[🔄📊✅💾⚠️]+ ")  # on a terminal alone

TARGET = "TARGET_DSN"  # names the target of a transfer on pages
TARGETS = re.compile("(to: postgres|WHATSAPP_DATABASE_DSN=).*")


def blocks(text: str, *languages: str) -> list[str]:
    """Return the code blocks of a page in these languages."""
    return [
        block for language, block in re.findall(r"^```(\w+)\n(.*?)^```", text, re.M | re.S) if language in languages
    ]


def file_of(block: str) -> str | None:
    """Return the file that a block stands for, which its first line names: `# myapp/models.py`, `# .env`."""
    found = re.match(r"# ([\w./]*\.\w+)\n", block)
    return found.group(1) if found else None


def write(folder: Path, block: str) -> None:
    """Write a block to the file that its first line names."""
    path = folder / str(file_of(block))
    path.parent.mkdir(exist_ok=True)
    if path.parent != folder:
        (path.parent / "__init__.py").touch()
    path.write_text(block)


PYTHON = [(page, block) for page, text in PAGES.items() for block in blocks(text, "python")]
CONSOLE = [page for page, text in PAGES.items() if blocks(text, "console")]


@pytest.mark.parametrize(
    ("page", "number"), [(page, number) for number, (page, block) in enumerate(PYTHON) if file_of(block) != "app.py"]
)
def test_examples_in_python_run(place: Place, page: str, number: int, request: pytest.FixtureRequest) -> None:
    MigrationRunner(place.connect(), SERVICE_MODELS).up()
    done = subprocess.run(
        [sys.executable, "-c", PYTHON[number][1]],
        env=place.variables() | target(place, PYTHON[number][1], request),
        cwd=place.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def target(place: Place, text: str, request: pytest.FixtureRequest) -> dict[str, str]:
    """Return the variable that names a database of the other engine, where a text has it."""
    if TARGET not in text:
        return {}
    return {TARGET: request.getfixturevalue("postgres").dsn if place.is_sqlite else "copy.db"}


@pytest.mark.parametrize("page", CONSOLE)
def test_commands_on_a_page_print_what_it_shows(tmp_path: Path, page: str, request: pytest.FixtureRequest) -> None:
    """Run a page from top to bottom in an empty folder; digits are those of another time and machine."""
    variables = target(Place("sqlite", "", tmp_path), PAGES[page], request)
    for block in blocks(PAGES[page], "python", "ini", "console"):
        if file_of(block):
            write(tmp_path, block)
        elif block.startswith("$ "):
            for command, shown in sessions(block):
                assert comparable(run(command, tmp_path, variables), tmp_path) == comparable(shown, tmp_path), command


def sessions(block: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a block with the output that follows it."""
    for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
        command, _, shown = part.partition("\n")
        yield command, shown


def run(command: str, folder: Path, more: Mapping[str, str]) -> str:
    """Run a command line of a page, with this Python and more variables, and return what it printed."""
    program, *arguments = (Template(part).safe_substitute(more) for part in shlex.split(command))
    assert program == "python"
    variables = {k: v for k, v in os.environ.items() if not k.startswith("WHATSAPP_DATABASE_")}
    return subprocess.run(
        [sys.executable, *arguments],
        env=variables | {"PYTHONUNBUFFERED": "1"} | more,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    ).stdout


def comparable(text: str, folder: Path) -> str:
    text = TARGETS.sub(r"\1 the target", SYMBOLS.sub("", text.replace(str(folder), "/srv/app")))
    return re.sub(r"\d+", "0", text).strip()


def commands() -> Iterator[tuple[str, str]]:
    """Yield every command of this package on every page, as it is written in a block or between backticks."""
    for page, text in PAGES.items():
        lines = [
            line
            for block in blocks(text, "bash", "console", "cron", "ini", "dockerfile")
            for line in block.splitlines()
        ]
        for written in [*lines, *re.findall(r"`([^`\n]+)`", text)]:
            for command in re.findall(r"python[\d.]* -m (whatspire_db\.\w+[^#>&|\"]*)", written):
                if not re.search(r"VERB|\[|\.\.\.|\.__main__", command):
                    yield page, command.strip()


@pytest.mark.parametrize(("page", "command"), sorted(set(commands())))
def test_commands_exist_as_written(page: str, command: str) -> None:
    module, *arguments = shlex.split(command)
    parser = next(parser for parser in PARSERS if parser.prog.endswith(module))
    if arguments or not parser._subparsers:
        parser.parse_args(arguments)


def test_adding_a_table_as_described(place: Place) -> None:
    page = PAGES["docs/your-own-models.md"]
    example = next(block for block in blocks(page, "python") if file_of(block) == "myapp/models.py")
    write(place.folder, example)
    (command,) = [text for text in blocks(page, "bash") if text.endswith("migrate --models myapp.models\n")]
    done = place.run(*command.split()[3:])
    assert "create table contact" in done.stdout, done.stderr


def test_first_command_migrates_the_embedded_default(tmp_path: Path) -> None:
    (first,) = [block for block in blocks(README, "bash") if block.rstrip().endswith("-m whatspire_db.migrate")]
    command = first.strip().split(" && ")
    assert command[0] == "python3 -m venv .venv"
    assert command[1] == ".venv/bin/pip install -q ."
    variables = {k: v for k, v in os.environ.items() if not k.startswith("WHATSAPP_DATABASE_")}
    last = [sys.executable, *command[2].split()[1:]]
    done = subprocess.run(last, env=variables, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data" / "whatspire.db").exists()


def test_ci_runs_the_test_command_of_the_readme() -> None:
    (tests,) = [block for block in blocks(README, "bash") if "pytest" in block]
    command = tests.strip().split(" && ")[2].removeprefix(".venv/bin/").split()
    listed = ", ".join(f'"{word}"' for word in command)
    assert f"PYTEST = ({listed})" in (ROOT / "noxfile.py").read_text()
    assert re.search("^nox .* tests ", (ROOT / ".ci" / "run").read_text(), re.M)


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 200


def test_lines_are_short() -> None:
    """Lines of text fit 120 columns; rows of tables, generated pages and output of commands are as long as they are."""
    for page, text in PAGES.items():
        if page == "docs/reference/command-line.md":
            continue
        prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
        assert not [line for line in prose.splitlines() if len(line) > 120 and not line.startswith("|")], page


def test_every_setting_is_in_the_configuration_and_in_the_example() -> None:
    example = (ROOT / ".env.example").read_text()
    for name in FIELDS:
        assert f"| `{name}` |" in PAGES["docs/configuration.md"]
        assert f"{name}=" in example


def test_command_line_reference_is_what_the_parsers_say() -> None:
    assert command_line_reference.PAGE.read_text() == command_line_reference.page(), (
        "run python scripts/command_line_reference.py"
    )


def test_every_verb_is_in_the_readme() -> None:
    for name in command_line_reference.COMMANDS:
        for verb in getattr(import_module(name), "VERBS", ()):
            assert f"`{verb}`" in README


def test_every_error_is_documented() -> None:
    page = PAGES["docs/exit-codes-and-errors.md"]
    for name in __import__("whatspire_db").__all__:
        kind = getattr(errors, name, None)
        if kind is not None and kind is not errors.WhatspireDBError:
            (row,) = re.findall(rf"^\| `{name}` \|.*\| (\d) \|$", page, re.M)
            assert int(row) == kind.exit_code


def test_all_that_health_prints_is_on_its_page(place: Place) -> None:
    (table,) = re.findall(r"\| line \|.*?\n\n", PAGES["docs/operations.md"], re.DOTALL)
    assert place.run().returncode == 0
    for options in ([], ["--json"]):
        done = place.run("--quick-check", *options, module="whatspire_db.health")
        assert done.returncode == 0, done.stderr
        names = json.loads(done.stdout) if options else [line[:16].strip() for line in done.stdout.splitlines()]
        missing = {name for name in names if name and f"`{name}`" not in table}
        assert not missing
