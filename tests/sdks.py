"""The official Anthropic SDKs, and the proxy before the demo's upstream for them.

Each version runs in a process of its own (`environments`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from environments import RunScript
from running import Proxy, StartProxy

from proxy.demo_upstream import DemoUpstream

LAST_WITH_COMPLETIONS = "0.125.0"
CURRENT = "2.12.0"
MAJORS = (LAST_WITH_COMPLETIONS, CURRENT)
KEY = "sk-test-client"

Run = Callable[[str, str, str], Awaitable[dict[str, Any]]]
StartDemo = Callable[..., Awaitable[Proxy]]


@pytest.fixture
def run(run_script: RunScript) -> Run:
    """Runs a script under one version of the SDK against a base URL, and returns what it printed."""

    async def under(version: str, script: str, base_url: str) -> dict[str, Any]:
        return dict(await run_script((f"anthropic=={version}",), f"sdk_{script}", base_url, KEY))

    return under


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
