"""The official OpenAI SDK sees through the proxy what it sees without it, and what it sends arrives as sent.

Not here: errors of ours (`test_sdk_openai_errors`), pings (`test_sdk_openai_pings`), fallbacks
(`test_sdk_openai_fallbacks`), forms that the SDK does not send (`test_openai_forms`).
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from environments import RunScript
from openai_sdk import (
    BEFORE,
    CURRENT,
    KEY,
    StartOpenAI,
    azure,
    openai,
    openai_upstream,
    origin,
    provider,
    serving,
)
from openai_upstream import Kept
from rawclient import Headers
from running import StartProxy

__all__ = ["openai_upstream"]

HOPS = ("host", "connection", "accept-encoding", "authorization", "api-key", "content-length")
"""What may differ between a request that came straight and one that came through the proxy."""


def passed(kept: Kept) -> Headers:
    """All fields that must pass, but for a form's boundary; and the length is that of the body."""
    assert kept.values("content-length") == ([b"%d" % len(kept.body)] if kept.method == "POST" else [])
    return [
        (name, value.partition(b"; boundary=")[0])
        for name, value in kept.headers
        if name.lower().decode() not in HOPS
    ]


def same_answers(seen: dict[str, Any], straight: dict[str, Any]) -> None:
    """Call by call, so that a failure names its call."""
    for form in ("sync", "async"):
        assert list(seen[form]) == list(straight[form])
        for call, told in straight[form].items():
            assert seen[form][call] == told, (form, call)


def same_requests(came: list[Kept], straight: list[Kept], key: bytes = b"Bearer sk-test-main") -> None:
    """`came` are the requests of `straight`, byte for byte, with the provider's own credential."""
    field = "authorization" if key.startswith(b"Bearer ") else "api-key"
    assert [(kept.method, kept.target) for kept in came] == [(kept.method, kept.target) for kept in straight]
    for ours, theirs in zip(came, straight, strict=True):
        assert ours.steady == theirs.steady, theirs.target
        assert passed(ours) == passed(theirs), theirs.target
        assert ours.values(field) == [key]
        assert KEY.encode() not in b"".join(value for _, value in ours.headers)


def digests(came: list[Kept]) -> list[list[str]]:
    return [[kept.method, hashlib.sha256(kept.body).hexdigest()] for kept in came]


@pytest.mark.parametrize("version", [CURRENT, BEFORE])
async def test_openai(
    run_script: RunScript, openai_upstream: StartOpenAI, proxy: StartProxy, version: str
) -> None:
    """With ``base_url`` /openai/v1 and /openai every request arrives as sent, and every answer as it was."""
    straight, up = await openai_upstream(), await openai_upstream()
    p = await serving(proxy, {"openai": provider(up)})
    bases = [f"{straight.url}/v1", f"{origin(p)}/openai/v1", f"{origin(p)}/openai"]
    clients = [openai(base) for base in bases]
    first, *others = await run_script((version,), "openai_calls", json.dumps(clients))
    count = len(straight.requests)
    assert len(up.requests) == 2 * count
    for number, seen in enumerate(others):
        same_answers(seen, first)
        came = up.requests[number * count :][:count]
        same_requests(came, straight.requests)
        assert digests(came) == seen["sent"]
    told = first["sync"]
    assert told["chat"]["create"]["choices"][0]["message"]["content"].startswith(
        "You said “Sag »grüß Gott« 🙂"
    )
    assert told["chat"]["counted"][-1]["usage"]["total_tokens"] == 26
    assert told["speech"]["audio"]["bytes"] == 131_072
    assert told["files"]["content"]["sha256"] == told["files"]["sent"]["sha256"]
    assert [error[1] for error in told["refusals"].values()] == [int(name) for name in told["refusals"]]


async def test_unified(run_script: RunScript, openai_upstream: StartOpenAI, proxy: StartProxy) -> None:
    """With ``base_url`` /v1 and ``provider/model`` the model loses its prefix, and no other byte changes.

    What names no model goes to the default provider. The list of models is that of all providers.
    """
    straight, up = await openai_upstream(), await openai_upstream()
    p = await serving(proxy, {"openai": provider(up)})
    clients = [openai(f"{straight.url}/v1"), openai(f"{origin(p)}/v1", "openai/")]
    first, seen = await run_script((CURRENT,), "openai_calls", json.dumps(clients))
    for way in ("sync", "async"):
        listed, plain = seen[way]["models"].pop("list"), first[way]["models"].pop("list")
        assert [model["id"] for model in listed] == [f"openai/{model['id']}" for model in plain]
    same_answers(seen, first)

    def without_lists(requests: list[Kept]) -> list[Kept]:
        return [kept for kept in requests if not kept.target.endswith(b"/v1/models")]

    same_requests(without_lists(up.requests), without_lists(straight.requests))


async def test_azure(run_script: RunScript, openai_upstream: StartOpenAI, proxy: StartProxy) -> None:
    """AzureOpenAI with ``azure_endpoint`` /openai and at the root: deployments, and what has none."""
    straight, up = await openai_upstream(), await openai_upstream()
    p = await serving(proxy, {"azure": provider(up)})
    clients = [azure(base) for base in (straight.url, f"{origin(p)}/openai", origin(p))]
    first, *others = await run_script((CURRENT,), "openai_calls", json.dumps(clients))
    assert first["sync"]["chat"]["create"]["prompt_filter_results"]
    count = len(straight.requests)
    assert len(up.requests) == 2 * count
    for number, seen in enumerate(others):
        came = up.requests[number * count :][:count]
        same_requests(came, straight.requests, b"sk-test-main")
        assert digests(came) == seen["sent"]
        same_answers(seen, first)


async def test_azure_credentials_and_deployments(
    run_script: RunScript, openai_upstream: StartOpenAI, proxy: StartProxy
) -> None:
    """A token of Entra, a deployment of the client's own, the v1 API, a provider in front of deployments."""
    straight, up = await openai_upstream(), await openai_upstream()
    p = await serving(proxy, {"azure": provider(up)})
    here, some = origin(p), ("raw", "transcriptions")
    clients = [
        azure(straight.url, calls=some, azure_ad_token=KEY),
        azure(f"{here}/openai", calls=some, azure_ad_token=KEY),
        azure(straight.url, calls=("raw", "models"), azure_deployment="gpt-4o-mini"),
        azure(here, calls=("raw", "models"), azure_deployment="gpt-4o-mini"),
        openai(f"{straight.url}/openai/v1", calls=some),
        openai(f"{here}/openai/openai/v1", calls=some),
        azure(straight.url, calls=some),
        azure(here, "azure/", calls=some),
    ]
    seen = await run_script((CURRENT,), "openai_calls", json.dumps(clients))
    for first, other in zip(seen[::2], seen[1::2], strict=True):
        same_answers(other, first)
    same_requests(up.requests, straight.requests, b"sk-test-main")


async def test_without_own_keys(
    run_script: RunScript, openai_upstream: StartOpenAI, proxy: StartProxy
) -> None:
    """A provider without keys gets the client's credentials, as they came."""
    up = await openai_upstream()
    p = await serving(proxy, {"openai": provider(up, keys=[])})
    some = ("raw", "transcriptions", "models", "denials")
    clients = [
        openai(f"{origin(p)}/openai/v1", calls=some),
        azure(f"{origin(p)}/openai", calls=some),
        azure(f"{origin(p)}/openai", calls=some, azure_ad_token=KEY),
    ]
    for seen in await run_script((CURRENT,), "openai_calls", json.dumps(clients)):
        assert [error[:2] for error in seen["sync"]["denials"].values()] == [
            ["AuthenticationError", 401],
            ["PermissionDeniedError", 403],
        ]
    count = len(up.requests) // 3
    credentials = [(kept.values("authorization"), kept.values("api-key")) for kept in up.requests]
    bearer, key = ([b"Bearer " + KEY.encode()], []), ([], [KEY.encode()])
    assert credentials == [bearer] * count + [key] * count + [bearer] * count
