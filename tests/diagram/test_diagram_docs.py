"""The pictures in the documentation are what the command draws now."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
DATABASE = ["--driver", "postgres", "--dsn", "postgres://localhost/whatspire"]


def drawn(folder: Path, *arguments: str) -> str:
    """Return what the command prints in an empty folder, where no setting is read."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("WHATSAPP_")}
    command = [sys.executable, "-m", "whatspire_db", "diagram", *DATABASE, *arguments]
    return subprocess.run(command, env=variables, cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("page", ["README.md", "docs/diagrams.md"])
def test_schema_on_a_page_is_what_the_command_prints(tmp_path: Path, page: str) -> None:
    """Run `whatspire-db diagram --keys`, with these options for the database, and put its output there."""
    blocks = re.findall(r"^```mermaid\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    assert blocks or page == "README.md"
    assert all(block == drawn(tmp_path, "--keys") for block in blocks)


def test_picture_in_the_documentation_is_current(tmp_path: Path) -> None:
    """Run `whatspire-db diagram --output docs/schema.svg` with these options for the database."""
    assert (ROOT / "docs" / "schema.svg").read_text() == drawn(tmp_path, "--format", "svg")
