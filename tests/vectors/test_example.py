"""The example of docs/vectors.md, from text to an answer, on both engines and without a network."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Place

PAGE = (Path(__file__).parent.parent.parent / "docs" / "vectors.md").read_text()
WITHOUT_NETWORK = """
import socket, sys

def refuse(event, arguments):
    if event == "socket.getaddrinfo" or (event == "socket.connect" and arguments[0].family != socket.AF_UNIX):
        raise OSError("no network in this test")

sys.addaudithook(refuse)
"""


@pytest.mark.soak  # tests/test_readme.py runs the page's examples by default
def test_question_is_answered_by_the_nearest_message_of_its_session(place: Place) -> None:
    example = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)[0]
    assert "disable_download=True" in example
    assert place.run().returncode == 0
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_NETWORK + example],
        env=place.variables() | {"HF_HUB_OFFLINE": "1"},
        cwd=place.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.endswith("My parcel has not arrived yet, where is it?")
    assert second.partition(" ")[2] in ("The invoice shows the wrong amount.", "How do I reset my password?")
    assert float(first.split()[0]) < float(second.split()[0])
