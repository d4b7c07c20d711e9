"""Other people's packages for tests, each set in a directory of its own, and scripts that run with one.

The sets cannot live in one environment: majors of one SDK contradict each other. They are installed when they
are first asked for, and kept in pytest's cache. The scripts are in ``sdk/``; each prints what it saw as JSON.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

Installed = Callable[..., Path]
RunScript = Callable[..., Awaitable[Any]]

KEPT_OUT = ("ANTHROPIC_", "OPENAI_", "AZURE_", "GEMINI_", "GOOGLE_", "CO_", "COHERE_", "AWS_", "LITELLM_")
"""What SDKs read of their own accord; the variables of whoever runs the tests are none of theirs."""


@pytest.fixture(scope="session")
def installed(request: pytest.FixtureRequest) -> Installed:
    """``installed("openai==3.54.0")``: a directory for PYTHONPATH that holds these and what they need."""
    home = cache(request, "packages")

    def install(*requirements: str) -> Path:
        tag = f"{sys.implementation.cache_tag}-{platform.system()}-{platform.machine()}"
        # Compiled where it is imported: most of it never is.
        options = (
            "--quiet",
            "--no-input",
            "--only-binary=:all:",
            "--no-compile",
            "--disable-pip-version-check",
        )
        return filled(
            home / f"{requirements[0].partition('==')[0]}-{digest(requirements)}-{tag}",
            lambda target: (
                *(sys.executable, "-m", "pip", "install", *options, "--target", str(target)),
                *requirements,
            ),
        )

    return install


@pytest.fixture
def run_script(installed: Installed) -> RunScript:
    """Runs ``sdk/NAME.py`` with packages: ``await run_script(("openai==3.54.0",), "openai_chat", url)``.

    Returns what it printed. Keyword arguments are environment variables.
    """

    async def run(requirements: tuple[str, ...], script: str, *arguments: str, **variables: str) -> Any:
        home = await asyncio.to_thread(installed, *requirements)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(KEPT_OUT)}
        out = await printed(
            [sys.executable, "-P", str(Path(__file__).parent / "sdk" / f"{script}.py"), *arguments],
            {**inherited, "PYTHONPATH": str(home), "NO_PROXY": "127.0.0.1", **variables},
        )
        return json.loads(out)

    return run


def cache(request: pytest.FixtureRequest, name: str) -> Path:
    """A directory that outlives the run."""
    assert getattr(request.config, "cache", None), "pytest's cache holds the packages; do not switch it off"
    return Path(request.config.cache.mkdir(name))


def digest(packages: Sequence[str]) -> str:
    return hashlib.sha256(" ".join(packages).encode()).hexdigest()[:12]


def filled(
    place: Path, command: Callable[[Path], Sequence[str]], environ: Mapping[str, str] | None = None
) -> Path:
    """`place`, filled when it is first asked for by the command that installs into the given directory.

    Whole or not at all: a run that is interrupted, or another at the same time, leaves no half behind.
    """
    if place.exists():
        return place
    with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
        target = Path(scratch) / "packages"
        target.mkdir()
        done = subprocess.run(
            command(target), cwd=target, env=environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"not installed: {place.name}\n{done.stdout}{done.stderr}"
        if not place.exists():
            target.rename(place)
    return place


async def printed(
    command: list[str], environ: dict[str, str], place: Path | None = None, *, code: int = 0
) -> str:
    """What a program printed until it ended, with `code`; it may not outlive the test."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=place,
        env=environ,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == code, f"{err.decode()}\n{out.decode()}"
    return out.decode()
