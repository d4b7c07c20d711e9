"""The official Gemini SDK sees through the proxy what it sees without it, and what it sends arrives as sent.

Not here: errors of ours (`test_sdk_genai_errors`), what the SDK never sends (`test_genai_targets`,
`test_genai_keys`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from environments import RunScript
from genai_sdk import KEY, SDK, VIRTUAL_KEY, StartGemini, base_url, gemini, provider, settings
from genai_upstream import GenaiUpstream
from hop import StartHop, hop
from pinging import Gate, streams_in, without_pings
from rawclient import Headers
from running import StartProxy
from scripted import Request

__all__ = ["gemini", "hop"]

PING = b"\n"
NOT_COMPARED = ("host", "connection", "accept-encoding", "x-goog-api-key", "content-length")
"""What may differ between a request that came straight and one that came through the proxy."""

Sent = tuple[str, bytes, Headers, bytes]
"""Method, target, fields and body."""
Straight = Callable[..., Awaitable[tuple[dict[str, Any], list[Sent]]]]


def sent(request: Request) -> Sent:
    """All of a request that must be the same."""
    fields = [field for field in request.headers if field[0].lower().decode() not in NOT_COMPARED]
    body = request.body
    if len(body) > 10_000:
        # So that a failure can be shown.
        body = hashlib.sha256(body).hexdigest().encode()
    return request.method, request.target, fields, body


def without_origin(seen: dict[str, Any], up: GenaiUpstream) -> dict[str, Any]:
    """`seen` with every URL of the upstream as a path; those of the proxy stay."""
    return dict(json.loads(json.dumps(seen).replace(f'"{up.url}/', '"/')))


@pytest.fixture(scope="session")
def seen_straight() -> dict[str, Any]:
    """What a script saw and sent without the proxy: always the same, so it is run once."""
    return {}


@pytest.fixture
def straight(run_script: RunScript, gemini: StartGemini, seen_straight: dict[str, Any]) -> Straight:
    """Runs a script straight against an upstream: what it saw, and what came."""

    async def run(script: str, *more: str) -> tuple[dict[str, Any], list[Sent]]:
        if script not in seen_straight:
            up = await gemini()
            seen = await run_script(SDK, f"genai_{script}", up.url, KEY, *more)
            seen_straight[script] = without_origin(seen, up), [sent(request) for request in up.requests]
        seen, came = seen_straight[script]
        return seen, list(came)

    return run


def same(seen: dict[str, Any], straight: dict[str, Any]) -> None:
    """Call by call, so that a failure names its call."""
    for form in ("sync", "async"):
        assert list(seen[form]) == list(straight[form])
        for call, told in straight[form].items():
            assert seen[form][call] == told, (form, call)


@pytest.mark.parametrize(("keys", "version"), [("virtual", "v1beta"), ("client", "v1")])
async def test_models(
    run_script: RunScript,
    straight: Straight,
    gemini: StartGemini,
    proxy: StartProxy,
    keys: str,
    version: str,
) -> None:
    """Answers, streams and refusals are the same, and so is every byte of a request.

    With a virtual key where one is required, and with the client's own key; for whichever version the client
    asks: ``v1`` is the SDK's own choice.
    """
    wanted, wanted_requests = await straight("calls", "v1beta")
    up = await gemini()
    more = settings("gemini", require_virtual_key=True) if keys == "virtual" else settings()
    p = await proxy(
        providers={"gemini": provider(up, "" if keys == "client" else "main")}, ping_interval=0, **more
    )
    key = VIRTUAL_KEY if keys == "virtual" else KEY
    seen = await run_script(SDK, "genai_calls", base_url(p), key, version)
    same(without_origin(seen, up), wanted)
    assert [sent(request) for request in up.requests] == [
        (method, target.replace(b"/v1beta/", f"/{version}/".encode()), *rest)
        for method, target, *rest in wanted_requests
    ]
    own = b"sk-test-client" if keys == "client" else b"sk-test-main"
    assert {value for request in up.requests for value in request.values("x-goog-api-key")} == {own}
    for request in up.requests:
        assert request.header("content-length") == (
            b"%d" % len(request.body) if request.method == "POST" else None
        )
        is_stream = b":streamGenerateContent" in request.target
        assert (request.header("accept-encoding") == b"identity") is is_stream, request.target
    await p.stop()
    counted = 0
    for line, request in zip(p.lines, up.requests, strict=True):
        if re.search("gemini-2.5-flash:(g|streamG)enerateContent", line["path"]):
            assert line["stream"] is ("stream" in line["path"])
            asked, told = (1, 7) if b"And?" in request.body else (5, 11)
            assert line["usage"] == {"input_tokens": asked, "output_tokens": told}
            counted += 1
    assert counted == 6


@pytest.mark.parametrize("keys", ["own", "virtual"])
async def test_files(
    run_script: RunScript, straight: Straight, gemini: StartGemini, proxy: StartProxy, keys: str
) -> None:
    """A file goes up in parts through the proxy, which the SDK only finds if the upload's URL leads there.

    Where a virtual key is required they go to the provider itself, for the SDK sends no key with them. A
    file's own URI is not touched.
    """
    wanted, wanted_requests = await straight("files")
    up = await gemini()
    more = settings("gemini", require_virtual_key=True) if keys == "virtual" else settings()
    p = await proxy(providers={"gemini": provider(up)}, **more)
    key = VIRTUAL_KEY if keys == "virtual" else KEY
    seen = await run_script(SDK, "genai_files", base_url(p), key)
    same(without_origin(seen, up), wanted)
    assert [sent(request) for request in up.requests] == wanted_requests
    assert [len(content) for content in up.contents.values()] == [11, 8 * 1024 * 1024 + 5, 5]
    await p.stop()
    passed = len(p.lines) == len(up.requests)
    assert passed is (keys == "own"), "whether the parts of an upload came through the proxy"
    assert "AP-0000" not in p.log_text


async def test_pings_at_every_boundary(
    run_script: RunScript, straight: Straight, gemini: StartGemini, proxy: StartProxy, hop: StartHop
) -> None:
    """With empty lines before, between and behind all chunks the SDK sees what it sees without."""
    wanted, _ = await straight("calls", "v1beta")
    gate = Gate(PING)
    up = await gemini("gemini", gate)
    p = await proxy(providers={"gemini": provider(up)}, ping_interval=0.02, **settings())
    gate.hop = between = await hop(p.port)
    seen = await run_script(SDK, "genai_stream", f"http://127.0.0.1:{between.port}/genai", KEY)
    assert seen["sync"] == seen["async"] == wanted["async"]["stream"]
    streams = streams_in(between.answers)
    assert len(streams) == len(up.streams) == 2
    for (_, content), chunks in zip(streams, up.streams, strict=True):
        assert len(chunks) == 11
        assert without_pings(content, PING, chunks, at_end=True) == b"".join(chunks)


SERVED = {
    "body": ("gemini-2.5-pro", "1", "gemini/demo-overloaded:503,gemini2/gemini-2.5-pro:200"),
    "header": (
        "gemini-2.5-pro",
        "2",
        "gemini/demo-overloaded:503,gemini2/demo-overloaded:503,gemini2/gemini-2.5-pro:200",
    ),
    "header, odd model": (
        "gemini-tuned+v1@2",
        "1",
        "gemini/demo-overloaded:503,gemini2/gemini-tuned+v1@2:200",
    ),
    "prefix": ("gemini-2.5-pro", "0", "gemini2/gemini-2.5-pro:200"),
    "prefix, odd model": ("gemini-tuned+v1@2", "0", "gemini2/gemini-tuned+v1@2:200"),
    "alias": ("gemini-2.5-pro", "0", "gemini2/gemini-2.5-pro:200"),
    "broken, stream": ("gemini-2.5-pro", "1", "dead/gemini-2.5-pro:connect,gemini2/gemini-2.5-pro:200"),
}
"""Model, index and attempts of each kind of call; one that is not here is like the one it begins with."""


async def test_other_targets(
    run_script: RunScript, gemini: StartGemini, proxy: StartProxy, closed_port: int
) -> None:
    """Fallbacks of body and header, ``provider/model``, an alias: each call is served by who it names."""
    up, second = await gemini(), await gemini("gemini2")
    providers = {
        "gemini": provider(up),
        "gemini2": provider(second, "second"),
        "dead": provider(f"http://127.0.0.1:{closed_port}"),
    }
    p = await proxy(providers=providers, **settings(models={"ours": ["gemini2/gemini-2.5-pro"]}))
    seen = await run_script(SDK, "genai_fallbacks", base_url(p), KEY)
    for call, told in [item for form in ("sync", "async") for item in seen[form].items()]:
        default = call == "prefix of the default"
        kind = SERVED.get(call) or SERVED[call.split(",")[0].split(" of")[0]]
        name = "gemini" if default else "gemini2"
        assert told["text"] in ("1", f"You said “Hello”.\u2028 Yours verbatim, {name} 🙂."), call
        served = told["served"]
        attempts = "gemini/gemini-2.5-pro:200" if default else kind[2]
        assert (served["provider"], served["resolved-model"]) == (name, kind[0]), call
        assert (served["fallback-index"], served["attempts"]) == (kind[1], attempts), call
    assert {request.header("x-goog-api-key") for request in second.requests} == {b"sk-test-second"}
    for request in second.requests + up.requests:
        assert b"fallbacks" not in request.raw
        assert request.header("content-length") == b"%d" % len(request.body)


async def test_embeddings_of_another_target(
    run_script: RunScript, gemini: StartGemini, proxy: StartProxy
) -> None:
    """The SDK embeds in batches, and each request in one names the path's model: it must be renamed too."""
    up, second = await gemini(), await gemini("gemini2")
    providers = {"gemini": provider(up), "gemini2": provider(second, "second")}
    p = await proxy(providers=providers, **settings())
    seen = await run_script(SDK, "genai_embeddings", base_url(p), KEY)
    assert seen["prefix"] == seen["fallback"]
    (first, *_), (prefix, fallback) = up.requests, second.requests
    body = first.body.replace(b"models/demo-overloaded", b"models/gemini-embedding-001")
    assert prefix.body == fallback.body == body
    assert prefix.target == fallback.target == b"/v1beta/models/gemini-embedding-001:batchEmbedContents"
