"""The official OpenAI SDK, OpenAI upstreams for it, and the proxy in front of them.

Each version runs in a process of its own (`environments`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest
from openai_upstream import VERSION, OpenAIUpstream
from running import Proxy, StartProxy

CURRENT = "openai==3.54.0"
BEFORE = "openai==2.54.0"
KEY = "sk-test-client"

CALLS = (
    *("chat", "raw", "lines", "completions", "responses", "embeddings", "images", "speech"),
    *("transcriptions", "files", "batches", "models", "refusals"),
)
"""What OpenAI and Azure both have, as ``sdk/openai_calls.py`` names it."""

Client = dict[str, Any]
StartOpenAI = Callable[..., Awaitable[OpenAIUpstream]]


@pytest.fixture
async def openai_upstream(proxy: StartProxy) -> AsyncIterator[StartOpenAI]:
    """Starts OpenAI upstreams. They stop before the proxy does."""
    started: list[OpenAIUpstream] = []

    async def start(**options: Any) -> OpenAIUpstream:
        upstream = OpenAIUpstream(**options)
        started.append(upstream)
        await upstream.start()
        return upstream

    yield start
    for upstream in started:
        await upstream.stop()


def provider(upstream: OpenAIUpstream | str, key: str = "main", **more: Any) -> dict[str, Any]:
    """A provider of OpenAI's and Azure's format, with a key of its own: ``sk-test-`` and `key`."""
    url = upstream if isinstance(upstream, str) else upstream.url
    return {
        "base_urls": {"openai": f"{url}/v1", "azure": url},
        "keys": [{"name": key, "value": f"env.TEST_KEY_{key.upper()}"}],
        "network_config": {"max_retries": 0},
        **more,
    }


async def serving(proxy: StartProxy, providers: dict[str, Any], **settings: Any) -> Proxy:
    """The proxy before these providers, of which the first is the default one."""
    first = next(iter(providers))
    defaults = {"openai": first, "azure": first}
    return await proxy(providers=providers, default_providers=defaults, **settings)


def origin(proxy: Proxy) -> str:
    return f"http://127.0.0.1:{proxy.port}"


def openai(base_url: str, prefix: str = "", calls: Sequence[str] = (*CALLS, "moderations")) -> Client:
    """A client, as the scripts want it; `prefix` stands before every model."""
    options = {"base_url": base_url, "api_key": KEY}
    return {"class": "OpenAI", "options": options, "prefix": prefix, "calls": calls}


def azure(endpoint: str, prefix: str = "", calls: Sequence[str] = CALLS, **more: str) -> Client:
    """The same of Azure; `more` are options, which may bring another credential than the key."""
    options = {"azure_endpoint": endpoint, "api_version": VERSION, **more}
    if "azure_ad_token" not in more:
        options["api_key"] = KEY
    return {"class": "AzureOpenAI", "options": options, "prefix": prefix, "calls": calls}
