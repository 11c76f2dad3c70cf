"""The examples of the README run, and what it lists is all there is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Place
from whatspire_db import health
from whatspire_db.backup import __main__ as backup
from whatspire_db.migrate import __main__ as migrate
from whatspire_db.migrate.__main__ import VERBS
from whatspire_db.settings import NAMES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_examples_in_python_run(place: Place, number: int) -> None:
    assert place.run().returncode == 0
    done = subprocess.run(
        [sys.executable, "-c", PYTHON[number]],
        env=place.variables(),
        cwd=place.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_adding_a_table_as_described(place: Place) -> None:
    example = next(text for text in PYTHON if text.startswith("# myapp/models.py"))
    (place.folder / "myapp").mkdir()
    (place.folder / "myapp" / "__init__.py").touch()
    (place.folder / "myapp" / "models.py").write_text(example)
    (command,) = [text for text in SHELL if "--models myapp.models" in text]
    done = place.run(*command.split()[3:])
    assert "create table contact" in done.stdout, done.stderr


def test_first_command_migrates_the_embedded_default(tmp_path: Path) -> None:
    command = SHELL[0].strip().split(" && ")
    assert command[0] == "python3 -m venv .venv"
    assert command[1] == ".venv/bin/pip install -q ."
    variables = {k: v for k, v in os.environ.items() if not k.startswith("WHATSAPP_DATABASE_")}
    last = [sys.executable, *command[2].split()[1:]]
    done = subprocess.run(last, env=variables, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data" / "whatspire.db").exists()


def test_ci_runs_the_test_command_of_the_readme() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    assert SHELL[1].strip().split(" && ")[1].removeprefix(".venv/bin/") in ci.replace('"$env"/bin/', "")


def test_every_setting_is_in_the_readme_and_in_the_example() -> None:
    example = (ROOT / ".env.example").read_text()
    for name in NAMES:
        assert f"WHATSAPP_DATABASE_{name}" in README
        assert f"WHATSAPP_DATABASE_{name}=" in example


def test_every_verb_and_option_is_in_the_readme() -> None:
    for verb in (*VERBS, *backup.VERBS):
        assert f"`{verb}" in README
    for command in (migrate, health, backup):
        parser = command._parser()
        usage = next(line for line in README.splitlines() if line.startswith(f"`{parser.prog} "))
        chosen = [action for action in parser._actions if isinstance(action.choices, dict)]
        verbs = [verb for action in chosen for verb in action.choices.values()]
        for action in (action for each in (parser, *verbs) for action in each._actions):
            for option in action.option_strings:
                assert re.search(rf"{option}\b", usage) or option in ("-h", "--help", "--quiet", "--verbose"), option


def test_all_that_health_prints_is_in_the_readme(place: Place) -> None:
    (table,) = re.findall(r"\| line \|.*?\n\n", README, re.DOTALL)
    assert place.run().returncode == 0
    for options in ([], ["--json"]):
        done = place.run("--quick-check", *options, module="whatspire_db.health")
        assert done.returncode == 0, done.stderr
        names = json.loads(done.stdout) if options else [line[:16].strip() for line in done.stdout.splitlines()]
        missing = {name for name in names if name and f"`{name}`" not in table}
        assert not missing
