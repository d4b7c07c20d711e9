"""The official TypeScript SDKs of Anthropic and OpenAI see through the proxy what they see without it.

Not here: errors (`test_node_sdk_errors`).
"""

from __future__ import annotations

import json
from typing import Any

from hop import StartHop, hop
from node import RunNode, node, npm_packages, run_node
from openai_sdk import StartOpenAI, openai_upstream, origin, provider, serving
from openai_upstream import Kept
from pinging import Gate
from rawclient import Headers
from running import StartProxy, StartUpstream, keyed
from scripted import LAST_CHUNK, MESSAGE_EVENTS, PING, Conn, Request, chunk, stream_head, streamed
from sdks import StartDemo, base_urls, demo_proxy, upstream_like

__all__ = ["demo_proxy", "hop", "node", "npm_packages", "openai_upstream", "run_node", "upstream_like"]

SDKS = ("@anthropic-ai/sdk@1.12.0", "openai@7.57.0")
KEY = "sk-test-client"
STREAMS = (
    *("chat_stream", "chat_helper", "tool_helper", "responses_stream", "responses_helper"),
    *("completions", "transcription_stream"),
)
OPENAI_PING = b": ping\n"

HOPS = ("host", "connection", "content-length", "accept-encoding", "authorization")
"""Fields that may differ between a request that came straight and one that came through the proxy."""


def without_origin(seen: dict[str, Any], base_url: str) -> dict[str, Any]:
    """`seen` with every URL below `base_url` as a path."""
    return dict(json.loads(json.dumps(seen).replace(f'"{base_url}/', '"/')))


def passed(headers: Headers) -> Headers:
    """All fields that must pass, but for a form's boundary, which is drawn anew for every request."""
    return [
        (name, value.partition(b"; boundary=")[0])
        for name, value in headers
        if name.lower().decode() not in HOPS
    ]


def assert_verbatim(came: list[Kept], straight: list[Kept]) -> None:
    """`came` are the requests of `straight`, byte for byte, with the provider's key."""
    assert [(each.method, each.target) for each in came] == [(each.method, each.target) for each in straight]
    for ours, theirs in zip(came, straight, strict=True):
        assert ours.steady == theirs.steady, theirs.target
        assert passed(ours.headers) == passed(theirs.headers), theirs.target
        assert ours.values("authorization") == [b"Bearer sk-test-main"]


async def test_anthropic(run_node: RunNode, upstream_like: Any, demo_proxy: StartDemo) -> None:
    """Messages, streams, the stream helper, tokens, models, files, batches: as without the proxy."""
    demo = await upstream_like()
    straight = without_origin(await run_node(SDKS, "anthropic", demo.url, KEY), demo.url)
    assert straight["helper"]["message"]["content"] == straight["create"]["data"]["content"]
    assert straight["thinking"]["message"]["content"][0]["signature"]
    assert straight["error"]["error"] == {"class": "APIError", "status": None, "type": "overloaded_error"}
    assert straight["files"]["same"]
    for base in (0, 1):
        base_url = base_urls(await demo_proxy(ping_interval=0))[base]
        assert without_origin(await run_node(SDKS, "anthropic", base_url, KEY), base_url) == straight


async def test_anthropic_pings(
    run_node: RunNode, upstream: StartUpstream, proxy: StartProxy, hop: StartHop
) -> None:
    """With a ping at every boundary of a stream, raw events and the stream helper are as without."""
    events = [event for event in MESSAGE_EVENTS if event != PING]
    gate = Gate(PING)

    async def play(conn: Conn, _: Request) -> None:
        await conn.send(stream_head())
        for number, event in enumerate(events):
            await gate(events[:number])
            await conn.send(chunk(event))
        await conn.send(LAST_CHUNK)

    straight, up = await upstream(*[streamed(events)] * 2), await upstream(*[play] * 2)
    p = await proxy(keyed(up, "main"), ping_interval=0.005)
    gate.hop = await hop(p.port)
    seen = [
        await run_node(SDKS, "anthropic", url, KEY, "raw", "helper")
        for url in (straight.url, f"http://127.0.0.1:{gate.hop.port}/anthropic")
    ]
    assert seen[0] == seen[1]
    assert len(seen[0]["raw"]["events"]) == len(events)
    assert seen[0]["helper"]["words"] == ["Hello", " there."]


async def test_openai(run_node: RunNode, openai_upstream: StartOpenAI, proxy: StartProxy) -> None:
    """Every request arrives as it was sent, every answer as it was, below /openai and in the unified API.

    There the model has its provider before it, which is cut off, in forms behind a file too.
    """
    straight, up = await openai_upstream(), await openai_upstream()
    p = await serving(proxy, {"openai": provider(up)})
    first = await run_node(SDKS, "openai", f"{straight.url}/v1", "")
    told = first["chat"]["data"]["choices"][0]["message"]["content"]
    assert "".join(first["chat_helper"]["words"]) == told
    assert first["responses_helper"]["whole"]["output"][0]["content"][0]["text"].startswith("You said “Sag")
    assert first["transcription"]["text"]
    for base, prefix in (("/openai/v1", ""), ("/openai", ""), ("/v1", "openai/")):
        up.requests.clear()
        seen = await run_node(SDKS, "openai", origin(p) + base, prefix)
        listed = [model["id"].removeprefix(prefix) for model in seen.pop("models")]
        assert listed == [model["id"] for model in first["models"]]
        assert seen == {name: told for name, told in first.items() if name != "models"}
        # The unified API's list of models is made by the proxy.
        assert_verbatim(up.requests[:-1], straight.requests[:-1])


async def test_openai_pings(
    run_node: RunNode, openai_upstream: StartOpenAI, proxy: StartProxy, hop: StartHop
) -> None:
    """With a ping at every boundary of a stream, raw events and both stream helpers are as without."""
    gate = Gate(OPENAI_PING)
    straight, up = await openai_upstream(), await openai_upstream(pause=gate)
    p = await serving(proxy, {"openai": provider(up)}, ping_interval=0.005)
    gate.hop = await hop(p.port)
    first, seen = [
        await run_node(SDKS, "openai", f"{url}/v1", "", *STREAMS)
        for url in (straight.url, f"http://127.0.0.1:{gate.hop.port}/openai")
    ]
    assert seen == first
