"""LangChain, Pydantic AI and LiteLLM see below their prefixes what they see without the proxy.

Facts
  - Each has OpenAI's API at its prefix, with /v1 and without it, and again at ``openai``; Anthropic's is at
    ``anthropic`` below it (Bifrost's integrations).
  - LiteLLM fetches a table of prices when it is imported, unless LITELLM_LOCAL_MODEL_COST_MAP forbids it.

Rule: all that they ask of other hosts would go to an HTTP proxy of ours, which fails the test.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from environments import RunScript
from hop import Hop, StartHop, elsewhere, hop
from openai_sdk import StartOpenAI, openai_upstream
from openai_upstream import Kept
from running import StartProxy
from scripted import Request
from sdks import upstream_like

__all__ = ["elsewhere", "hop", "openai_upstream", "upstream_like"]

pytestmark = pytest.mark.timeout(400)
"""The packages are installed first, and are large."""

KEY = b"sk-test-client"
HOPS = ("host", "connection", "accept-encoding", "authorization", "x-api-key", "api-key")
"""Fields that may differ between a request that came straight and one that came through the proxy."""

FRAMEWORKS: dict[str, tuple[str, ...]] = {
    "langchain": ("langchain-openai==1.7.3", "langchain-anthropic==1.7.7"),
    "pydanticai": ("pydantic-ai-slim[openai,anthropic]==2.66.0",),
    "litellm": ("litellm==1.106.2",),
}
BELOW = {"": "main/", "/v1": "main/", "/openai": "", "/openai/v1": ""}
"""Where OpenAI's API is below a prefix, and what stands before the model there."""


def models(framework: str, openai: str, anthropic: str, before: str = "") -> list[dict[str, str]]:
    """A model of each kind that the framework has; `before` stands before OpenAI's."""
    chat, claude = f"{before}gpt-4o-mini", "claude-haiku-4-5"
    if framework == "litellm":
        # What stands before the first slash is LiteLLM's own, and it is not sent.
        named = {f"openai/{chat}": openai, f"anthropic/{claude}": anthropic}
        return [{"name": name, "base_url": url} for name, url in named.items()]
    return [
        {"kind": "chat", "name": chat, "base_url": openai},
        {"kind": "responses", "name": chat, "base_url": openai},
        {"kind": "anthropic", "name": claude, "base_url": anthropic},
    ]


def passed(request: Kept | Request) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in request.headers if name.decode().lower() not in HOPS]


def assert_verbatim(came: list[Any], straight: list[Any], field: str, credential: bytes) -> None:
    """`came` are the requests of `straight`, byte for byte, with the provider's key."""
    assert [(each.method, each.target) for each in came] == [(each.method, each.target) for each in straight]
    for ours, theirs in zip(came, straight, strict=True):
        assert ours.body == theirs.body, theirs.target
        assert passed(ours) == passed(theirs), theirs.target
        assert ours.values(field) == [credential]
        assert KEY in b"".join(value for _, value in theirs.headers)
        assert KEY not in b"".join(value for _, value in ours.headers)


async def test_langchain_and_azure(
    run_script: RunScript, openai_upstream: StartOpenAI, proxy: StartProxy, elsewhere: str
) -> None:
    """It names the deployment in the path, and a model that is null in the body."""
    straight, up = await openai_upstream(), await openai_upstream()
    keys = [{"name": "main", "value": "env.TEST_KEY_MAIN"}]
    p = await proxy(providers={"azure": {"base_urls": {"azure": up.url}, "keys": keys}}, default_providers={})
    urls = (straight.url, f"http://127.0.0.1:{p.port}", f"http://127.0.0.1:{p.port}/langchain")
    asking = [{"kind": "azure", "name": "gpt-4o-mini", "base_url": url} for url in urls]
    seen = await run_script(
        FRAMEWORKS["langchain"],
        "framework_langchain",
        json.dumps(asking),
        HTTP_PROXY=elsewhere,
        HTTPS_PROXY=elsewhere,
    )
    assert seen == seen[:1] * len(urls)
    assert all(b'"model":null' in request.body for request in up.requests)
    assert_verbatim(up.requests, straight.requests * 2, "api-key", b"sk-test-main")


@pytest.mark.parametrize("framework", FRAMEWORKS)
async def test_a_framework(
    run_script: RunScript,
    openai_upstream: StartOpenAI,
    upstream_like: Any,
    proxy: StartProxy,
    hop: StartHop,
    elsewhere: str,
    framework: str,
) -> None:
    """One call and one stream of each kind of model: requests arrive as sent, answers come as they were."""

    async def recorded() -> Hop:
        demo = await upstream_like()
        return await hop(int(demo.url.rpartition(":")[2]))

    straight, up = await openai_upstream(), await openai_upstream()
    claude_straight = await recorded()
    first = models(framework, f"{straight.url}/v1", claude_straight.url)
    asking, claudes = list(first), []
    for below, before in BELOW.items():
        claudes.append(await recorded())
        p = await proxy(
            providers={
                "main": {
                    "base_urls": {"openai": f"{up.url}/v1", "anthropic": claudes[-1].url},
                    "keys": [{"name": "main", "value": "env.TEST_KEY_MAIN"}],
                }
            },
            default_providers={"openai": "main", "anthropic": "main"},
        )
        here = f"http://127.0.0.1:{p.port}/{framework}"
        asking += models(framework, here + below, f"{here}/anthropic", before)
    seen = await run_script(
        FRAMEWORKS[framework],
        f"framework_{framework}",
        json.dumps(asking),
        LITELLM_LOCAL_MODEL_COST_MAP="True",
        HTTP_PROXY=elsewhere,
        HTTPS_PROXY=elsewhere,
    )
    assert seen == seen[: len(first)] * (1 + len(BELOW))
    assert [len(told) for told in seen] == [2] * len(asking)
    assert_verbatim(up.requests, straight.requests * len(BELOW), "authorization", b"Bearer sk-test-main")
    for claude in claudes:
        assert_verbatim(claude.requests, claude_straight.requests, "x-api-key", b"sk-test-main")
