"""The official Cohere SDK, Cohere upstreams for it, and how the proxy is told of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from cohere_upstream import CohereUpstream
from running import Proxy
from scripted import Upstream

SDK = ("cohere==7.3.1",)
KEY = "sk-test-client"
VIRTUAL_KEY = "sk-bf-sk-test-alice"

StartCohere = Callable[..., Awaitable[CohereUpstream]]


@pytest.fixture
def cohere(_upstreams: list[Upstream]) -> StartCohere:
    """Starts Cohere upstreams: ``up = await cohere("name")``."""

    async def start(*arguments: Any) -> CohereUpstream:
        started = CohereUpstream(*arguments)
        await started.start()
        _upstreams.append(started)
        return started

    return start


def provider(upstream: CohereUpstream | str, key: str = "main", **more: Any) -> dict[str, Any]:
    """A provider with a key of its own: ``sk-test-`` and `key`; with no `key`, without one."""
    url = upstream if isinstance(upstream, str) else upstream.url
    keys = {"keys": [{"name": key, "value": f"env.TEST_KEY_{key.upper()}"}]} if key else {}
    return {"base_urls": {"cohere": url}, "network_config": {"max_retries": 0}, **keys, **more}


def settings(*names: str, **more: Any) -> dict[str, Any]:
    """What the proxy's fixture wants besides providers; `names` are those that ``alice`` may use."""
    allowed = [{"provider": name, "allowed_models": ["*"]} for name in names]
    keys = {
        "virtual_keys": {"alice": {"value": "env.ALICE", "provider_configs": allowed}},
        "environ": {"ALICE": VIRTUAL_KEY},
    }
    return {"default_providers": {"cohere": "cohere"}, **(keys if names else {}), **more}


def base_url(proxy: Proxy) -> str:
    return f"http://127.0.0.1:{proxy.port}/cohere"
