"""The fuzzers in `fuzz` find nothing in a bounded number of runs, and are able to find something.

They run for hours by hand; how, says ``tests/fuzz/__main__.py``. Here the seed of chance is fixed, so that a
commit fails for what it changes.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import proxy

FUZZ = Path(__file__).parent / "fuzz"

RUNS = {"scan": 10_000, "stream": 5_000, "response": 8_000}

HAS_WHEEL = (
    sys.platform == "linux"
    and platform.machine() == "x86_64"
    and sys.implementation.name == "cpython"
    and sys.version_info < (3, 15)
)
"""Where atheris is installed with the other packages for tests (`setup.cfg`)."""

HIDDEN = 'raise ModuleNotFoundError("hidden from this test", name="atheris")\n'


def fuzzed(target: str, here: Path, runs: int, crash: Path | None = None) -> tuple[int, str]:
    """The exit status of a fuzzer, and what it printed. It imports what is `here` before anything else."""
    (here / "found").mkdir(exist_ok=True)
    run = subprocess.run(
        [sys.executable, FUZZ, target, crash or here / "found", f"-runs={runs}", "-seed=1"],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(here), "PYTHONHASHSEED": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=100,
        check=False,
    )
    return run.returncode, run.stdout.decode("utf-8", "replace")


def seeds(target: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (FUZZ / "corpus" / target).iterdir()}


@pytest.mark.parametrize("target", RUNS)
def test_nothing_is_found(target: str, tmp_path: Path) -> None:
    """With every branch watched, where there is a wheel for that; and the seeds stay as they are."""
    before = seeds(target)
    status, printed = fuzzed(target, tmp_path, RUNS[target])
    assert status == 0, printed[-4000:]
    done = re.search(r"Done (\d+) runs", printed)
    # libFuzzer ends a few runs late when it has just found something new.
    assert done is not None
    assert int(done[1]) >= RUNS[target]
    assert ("Using built-in libfuzzer" if HAS_WHEEL else "varied at random") in printed
    assert seeds(target) == before


@pytest.mark.parametrize("target", RUNS)
def test_nothing_is_found_at_random(target: str, tmp_path: Path) -> None:
    """The same without atheris, as it is run where that does not exist."""
    (tmp_path / "atheris.py").write_text(HIDDEN)
    status, printed = fuzzed(target, tmp_path, RUNS[target] // 5)
    assert status == 0, printed[-4000:]
    assert "varied at random" in printed
    assert f"Done {RUNS[target] // 5} runs" in printed


FAULTS = {
    "a second object is no error": (
        "scan",
        "body.py",
        "if end < len(body):",
        "if end < len(body) and body[end] != 0x7D:",
    ),
    "NaN is a number": ("scan", "grammar.py", '|null"', '|null|NaN"'),
    "CR CR LF ends no event": ("stream", "sse.py", r"|\r\r\n", ""),
    "a mark is cut at its last byte": ("stream", "usage.py", "1 - len(shape.mark)", "2 - len(shape.mark)"),
    "a 304 has a body": ("response", "framing.py", "(204, 304)", "(204,)"),
    "the second answer is not seen": ("response", "framing.py", "self.clean = False", "self.clean = True"),
}


@pytest.mark.parametrize("watched", [True, False], ids=["watched", "at random"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault: str, watched: bool, tmp_path: Path) -> None:
    """Put into a copy of the proxy; and the input that shows it fails again, and passes without it."""
    target, room, right, wrong = FAULTS[fault]
    copy = tmp_path / "proxy"
    shutil.copytree(Path(proxy.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    text = (copy / room).read_text()
    assert right in text, "the proxy has changed: put another fault in"
    (copy / room).write_text(text.replace(right, wrong))
    if not watched:
        (tmp_path / "atheris.py").write_text(HIDDEN)
    status, printed = fuzzed(target, tmp_path, RUNS[target])
    assert status != 0
    assert "AssertionError" in printed
    (crash,) = tmp_path.glob("crash-*")
    assert fuzzed(target, tmp_path, 1, crash)[0] != 0
    shutil.rmtree(copy)
    assert fuzzed(target, tmp_path, 1, crash)[0] == 0
