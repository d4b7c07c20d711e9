"""The official Anthropic SDKs, and the proxy before the demo's upstream for them.

Each SDK is installed with pip into a directory of its own, once, and runs in a process of its own: the majors
cannot live in one environment. The scripts are in ``sdk/``; each prints what it saw as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from running import Proxy, StartProxy

from proxy.demo_upstream import DemoUpstream

LAST_WITH_COMPLETIONS = "0.125.0"
CURRENT = "2.12.0"
MAJORS = (LAST_WITH_COMPLETIONS, CURRENT)
KEY = "sk-test-client"

Run = Callable[[str, str, str], Awaitable[dict[str, Any]]]
StartDemo = Callable[..., Awaitable[Proxy]]


@pytest.fixture(scope="session")
def sdk(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """The directory that holds one version of the SDK and what it needs; installed when first asked for."""
    assert request.config.cache is not None, "pytest's cache holds the SDKs; do not switch it off"
    home = request.config.cache.mkdir("anthropic-sdks")

    def install(version: str) -> Path:
        place = home / f"{version}-{sys.implementation.cache_tag}-{platform.system()}-{platform.machine()}"
        if place.exists():
            return place
        # Whole or not at all: a run that is interrupted, or another at the same time, leaves no half behind.
        with tempfile.TemporaryDirectory(dir=home) as scratch:
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--only-binary=:all:"]
            target = Path(scratch) / "sdk"
            done = subprocess.run(
                [*command, "--disable-pip-version-check", "--target", str(target), f"anthropic=={version}"],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"pip could not install anthropic {version}:\n{done.stderr}"
            if not place.exists():
                target.rename(place)
        return place

    return install


@pytest.fixture
def run(sdk: Callable[[str], Path]) -> Run:
    """Runs a script under one version of the SDK against a base URL, and returns what it printed."""

    async def run_script(version: str, script: str, base_url: str) -> dict[str, Any]:
        home = await asyncio.to_thread(sdk, version)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ANTHROPIC_")}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", str(Path(__file__).parent / "sdk" / f"sdk_{script}.py"), base_url, KEY),
            env={**inherited, "PYTHONPATH": str(home), "NO_PROXY": "127.0.0.1"},
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
        return dict(json.loads(out))

    return run_script


@pytest.fixture
async def upstream_like(proxy: StartProxy) -> AsyncIterator[Callable[..., Awaitable[DemoUpstream]]]:
    """Starts demo upstreams, all alike, so that two can be compared. They stop before the proxy does."""
    started: list[DemoUpstream] = []

    async def start(name: str = "demo", interval: float = 0.002, silence: float = 0.3) -> DemoUpstream:
        upstream = DemoUpstream(name, interval=interval, silence=silence)
        started.append(upstream)
        await upstream.start()
        return upstream

    yield start
    for upstream in started:
        await upstream.stop()


@pytest.fixture
async def demo_proxy(
    upstream_like: Callable[..., Awaitable[DemoUpstream]], proxy: StartProxy, closed_port: int
) -> StartDemo:
    """Starts the proxy before two demo upstreams, with keys of its own unless `keys` says otherwise."""

    async def start(
        *, keys: bool = True, interval: float = 0.002, silence: float = 0.3, **settings: Any
    ) -> Proxy:
        providers: dict[str, dict[str, Any]] = {}
        for name in ("demo", "backup"):
            upstream = await upstream_like(name, interval, silence)
            providers[name] = {"base_urls": {"anthropic": upstream.url}, "network_config": {"max_retries": 0}}
        providers["dead"] = {
            "base_urls": {"anthropic": f"http://127.0.0.1:{closed_port}"},
            "network_config": {"max_retries": 0},
        }
        if keys:
            for name, provider in providers.items():
                provider["keys"] = [{"name": name, "value": f"env.{name.upper()}_KEY"}]
        return await proxy(providers=providers, **settings)

    return start


def base_urls(proxy: Proxy) -> list[str]:
    """The two base URLs that users of this SDK may set."""
    return [f"http://127.0.0.1:{proxy.port}/anthropic", f"http://127.0.0.1:{proxy.port}"]
