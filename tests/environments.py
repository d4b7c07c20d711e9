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
from collections.abc import Awaitable, Callable
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
    assert getattr(request.config, "cache", None), "pytest's cache holds the packages; do not switch it off"
    home = request.config.cache.mkdir("packages")

    def install(*requirements: str) -> Path:
        digest = hashlib.sha256(" ".join(requirements).encode()).hexdigest()[:12]
        tag = f"{sys.implementation.cache_tag}-{platform.system()}-{platform.machine()}"
        place = home / f"{requirements[0].partition('==')[0]}-{digest}-{tag}"
        if place.exists():
            return place
        # Whole or not at all: a run that is interrupted, or another at the same time, leaves no half behind.
        with tempfile.TemporaryDirectory(dir=home) as scratch:
            # Compiled where it is imported: most of it never is.
            options = ("--quiet", "--no-input", "--only-binary=:all:", "--no-compile")
            command = [sys.executable, "-m", "pip", "install", *options]
            target = Path(scratch) / "packages"
            done = subprocess.run(
                [*command, "--disable-pip-version-check", "--target", str(target), *requirements],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"pip could not install {requirements}:\n{done.stderr}"
            if not place.exists():
                target.rename(place)
        return place

    return install


@pytest.fixture
def run_script(installed: Installed) -> RunScript:
    """Runs ``sdk/NAME.py`` with packages: ``await run_script(("openai==3.54.0",), "openai_chat", url)``.

    Returns what it printed. Keyword arguments are environment variables.
    """

    async def run(requirements: tuple[str, ...], script: str, *arguments: str, **variables: str) -> Any:
        home = await asyncio.to_thread(installed, *requirements)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(KEPT_OUT)}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", str(Path(__file__).parent / "sdk" / f"{script}.py"), *arguments),
            env={**inherited, "PYTHONPATH": str(home), "NO_PROXY": "127.0.0.1", **variables},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, err.decode()
        return json.loads(out)

    return run
