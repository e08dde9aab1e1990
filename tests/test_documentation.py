"""The API reference builds, without warnings, and shows what users import."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import estimators as est
import plants

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_command_in_contributing_builds_the_reference(tmp_path):
    command = re.search(r"`\.venv/bin/python (.*pdoc.*) -o results/api`", (ROOT / "CONTRIBUTING.md").read_text())[1]
    arguments = [sys.executable, *command.split(), "-o", str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Warn" not in done.stderr
    for package in (est, plants):
        page = (tmp_path / f"{package.__name__}.html").read_text()
        absent = [name for name in package.__all__ if f'id="{name}"' not in page]
        assert all(inspect.ismodule(getattr(package, name)) for name in absent)  # which have pages of their own
