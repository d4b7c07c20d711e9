"""Claude at Bedrock through the proxy, in both wire formats, under Anthropic's own SDK.

In Anthropic's format a request can fall back from Anthropic to Bedrock, and nothing is translated.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest
from bedrock_sdk import ANTHROPIC, MODEL, base_url, environ, provider
from bedrock_signatures import Signed
from bedrock_upstream import OURS, THEIRS, BedrockUpstream, StartBedrock, bedrock, claude_message
from environments import RunScript
from running import StartProxy, StartUpstream, keyed
from scripted import Upstream, refusal

__all__ = ["bedrock"]

VIRTUAL_KEY = "sk-bf-sk-test-alice"
SIGNING = {
    "aws_access_key": THEIRS.access_key,
    "aws_secret_key": THEIRS.secret_key,
    "aws_session_token": THEIRS.token,
    "aws_region": "us-east-1",
}


class Told(NamedTuple):
    """What the SDK saw, and what came upstream."""

    seen: dict[str, Any]
    anthropic: Upstream
    bedrock: BedrockUpstream
    lines: list[dict[str, Any]]


@pytest.fixture(scope="session")
def once() -> list[Told]:
    """All cases are run together, in one process of the SDK."""
    return []


@pytest.fixture
async def told(
    once: list[Told], run_script: RunScript, upstream: StartUpstream, bedrock: StartBedrock, proxy: StartProxy
) -> Told:
    if once:
        return once[0]
    direct, up = await bedrock(), await bedrock(credentials=[OURS])
    overloaded = await upstream(*[refusal(529, "overloaded_error")] * 3)
    alice = {"value": "env.ALICE", "provider_configs": [{"provider": "bedrock", "allowed_models": [MODEL]}]}
    p = await proxy(
        providers={
            "anthropic": keyed(overloaded, "main", network_config={"max_retries": 0}),
            "bedrock": provider(up),
        },
        default_providers={"anthropic": "anthropic", "bedrock": "bedrock"},
        virtual_keys={"alice": alice},
        environ=environ() | {"ALICE": VIRTUAL_KEY},
        ping_interval=0.001,
    )
    root = base_url(p).removesuffix("/bedrock")
    to_bedrock = {"x-bf-fallbacks": f"bedrock/{MODEL}"}
    cases = {
        "direct": ("AnthropicBedrock", {"base_url": direct.url, **SIGNING}, MODEL, {}),
        "bedrock": ("AnthropicBedrock", {"base_url": f"{root}/bedrock", **SIGNING}, MODEL, {}),
        "async": ("AsyncAnthropicBedrock", {"base_url": f"{root}/bedrock", **SIGNING}, MODEL, {}),
        "virtual key": (
            "AnthropicBedrock",
            {"base_url": f"{root}/bedrock", "api_key": VIRTUAL_KEY, "aws_region": "us-east-1"},
            *(MODEL, {}),
        ),
        "not allowed": (
            "AnthropicBedrock",
            {"base_url": f"{root}/bedrock", "api_key": VIRTUAL_KEY, "aws_region": "us-east-1"},
            *("anthropic.another", {}),
        ),
        "fallback": (
            "Anthropic",
            {"base_url": f"{root}/anthropic", "api_key": "sk-test-client"},
            *("claude-haiku-4-5", to_bedrock),
        ),
        "mantle": (
            "AnthropicBedrockMantle",
            {"base_url": f"{root}/anthropic", **SIGNING},
            *(f"bedrock/{MODEL}", {}),
        ),
    }
    variables = {"AWS_EC2_METADATA_DISABLED": "true"}
    seen = await run_script(ANTHROPIC, "bedrock_claude", json.dumps(cases), **variables)
    await p.stop()
    once.append(Told(seen, overloaded, up, p.lines))
    return once[0]


async def test_anthropic_bedrock(told: Told) -> None:
    """The SDK's own Bedrock client, sync and async: as without the proxy, and signed anew."""
    direct = told.seen["direct"]
    assert direct["message"] == claude_message(MODEL)
    assert direct["final"]["content"] == direct["message"]["content"]
    assert {**told.seen["bedrock"], "served": []} == {**direct, "served": []}
    assert told.seen["async"] == {"message": direct["message"], "final": direct["final"]}
    assert {each["x-bifrost-provider"] for each in told.seen["bedrock"]["served"]} == {"bedrock"}


async def test_every_request_is_signed_anew(told: Told) -> None:
    """In both formats, by the proxy's credentials, and with nothing of the client's."""
    assert len(told.bedrock.signed) == 14
    for said in told.bedrock.signed:
        assert isinstance(said, Signed), said
        assert said.access_key == OURS.access_key
    for request in told.bedrock.requests:
        assert b"theirs" not in request.raw
        assert b"sk-bf-" not in request.raw
        assert b"sk-test-client" not in request.raw
        assert request.header("x-api-key") is None


async def test_a_virtual_key_as_a_bearer(told: Told) -> None:
    """What Bedrock's clients send as an API key may be a virtual key, with its limits."""
    assert told.seen["virtual key"] == told.seen["bedrock"]
    refused = told.seen["not allowed"]
    assert (refused["class"], refused["status"]) == ("PermissionDeniedError", 403)
    assert [line["virtual_key"] for line in told.lines if line["status"] == 403] == ["alice"]


async def test_anthropic_falls_back_to_bedrock(told: Told) -> None:
    """Overloaded at Anthropic, served by Bedrock: the same format, so the same body but for the model."""
    seen = told.seen["fallback"]
    assert seen["message"] == told.seen["direct"]["message"]
    assert seen["final"]["content"] == told.seen["direct"]["final"]["content"]
    for each in seen["served"]:
        assert each["x-bifrost-provider"] == "bedrock"
        assert each["x-bifrost-attempts"] == f"anthropic/claude-haiku-4-5:529,bedrock/{MODEL}:200"
    fallen = [each for each in told.bedrock.requests if each.target == b"/anthropic/v1/messages"][:3]
    for first, second in zip(told.anthropic.requests, fallen, strict=True):
        assert first.header("x-api-key") == b"sk-test-main"
        assert second.body == first.body.replace(b'"claude-haiku-4-5"', f'"{MODEL}"'.encode())
        assert second.header("anthropic-version") == first.header("anthropic-version")


async def test_mantle(told: Told) -> None:
    """The SDK's client for Bedrock in Anthropic's format, which signs its requests too."""
    assert told.seen["mantle"]["message"] == told.seen["direct"]["message"]
    assert {each["x-bifrost-provider"] for each in told.seen["mantle"]["served"]} == {"bedrock"}
