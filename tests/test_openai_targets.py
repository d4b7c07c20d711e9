"""OpenAI's wire format: where a model is named, or is not, and which provider that leads to.

Not here: forms (`test_openai_forms`), what the SDKs send (`test_sdk_openai`).
"""

from __future__ import annotations

import asyncio
import gzip
import zlib
from typing import Any

import pytest
from rawclient import Response, post, request_head
from running import Proxy, StartProxy, StartUpstream
from scripted import JSON_TYPE, Conn, Request, Upstream, answer, refusal, streamed

GOOD = answer(body=b'{"object":"x"}')
AZURE = "/openai/deployments/{}/chat/completions?api-version=2025-01-01"


def speaks(up: Upstream, wire_format: str) -> dict[str, Any]:
    url = up.url + ("/v1" if wire_format == "openai" else "")
    return {"base_urls": {wire_format: url}, "keys": [{"name": "main", "value": "env.TEST_KEY_MAIN"}]}


async def ask(p: Proxy, path: str, body: bytes, *fields: tuple[bytes, bytes]) -> Response:
    """As an SDK that is not Anthropic's sends it."""
    json, length = (b"Content-Type", b"application/json"), (b"Content-Length", b"%d" % len(body))
    return await p.ask(request_head("POST", path, [(b"Host", b"proxy.test"), json, *fields, length]) + body)


NULL = b'{"model":null,"messages":[], "n": 1}'


@pytest.mark.parametrize("named", ["dd", "azure/dd"])
async def test_a_model_that_is_null_is_named_by_the_path(
    upstream: StartUpstream, proxy: StartProxy, named: str
) -> None:
    """So does LangChain ask Azure; the body goes there as it came."""
    up = await upstream(GOOD)
    p = await proxy(providers={"azure": speaks(up, "azure")}, default_providers={})
    assert (await ask(p, AZURE.format(named), NULL)).status == 200
    (request,) = up.requests
    assert (request.target.decode(), request.body) == (AZURE.format("dd"), NULL)


async def test_a_model_that_is_null_is_none(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Where the provider has one of its own it may decide; elsewhere it is the error that it always was."""
    up = await upstream(GOOD)
    p = await proxy(providers={"openai": speaks(up, "openai")}, default_providers={})
    assert (await ask(p, "/v1/responses", NULL)).status == 200
    assert up.requests[0].body == NULL
    refused = await ask(p, "/v1/chat/completions", NULL)
    assert refused.status == 400
    assert b"`model` is not a string at byte 9" in refused.body


@pytest.mark.parametrize("body", [NULL, b'{"input":"x"}'], ids=["null", "missing"])
async def test_fallbacks_need_a_model_to_replace(
    upstream: StartUpstream, proxy: StartProxy, body: bytes
) -> None:
    """The fallback would get what the provider chooses, under the name of what a key may use."""
    up = await upstream()
    p = await proxy(providers={"openai": speaks(up, "openai")}, default_providers={})
    refused = await ask(p, "/v1/responses", body, (b"x-bf-fallbacks", b"openai/cheap"))
    assert refused.status == 400
    assert b"Fallbacks need a `model`" in refused.body


async def test_a_deployment_s_own_extensions(upstream: StartUpstream, proxy: StartProxy) -> None:
    """``mini/extensions`` is no deployment: a key for others cannot use ``mini`` by that path."""
    up = await upstream(GOOD)
    allowed = [{"provider": "azure", "allowed_models": ["mini/*", "other"]}]
    p = await proxy(
        providers={"azure": speaks(up, "azure")},
        default_providers={},
        virtual_keys={"alice": {"value": "env.ALICE", "provider_configs": allowed}},
        environ={"ALICE": "sk-bf-sk-test-alice"},
    )
    for deployment, status in (("mini", 403), ("other", 200)):
        path = f"/openai/deployments/{deployment}/extensions/chat/completions?api-version=1"
        response = await ask(p, path, b'{"messages":[]}', (b"api-key", b"sk-bf-sk-test-alice"))
        assert response.status == status, deployment
    assert [request.target for request in up.requests] == [path.encode()]


@pytest.mark.parametrize("path", ["fim/completions", "classifications", "score", "pooling", "classify"])
async def test_paths_that_only_others_have(upstream: StartUpstream, proxy: StartProxy, path: str) -> None:
    """What names a provider goes there, and not to OpenAI."""
    openai, mistral = await upstream(), await upstream(GOOD)
    p = await proxy(
        providers={"openai": speaks(openai, "openai"), "mistral": speaks(mistral, "openai")},
        default_providers={"openai": "openai"},
    )
    body = b'{"model":"%bcodestral-latest", "prompt":"def"}'
    assert (await ask(p, f"/v1/{path}", body % b"mistral/")).status == 200
    (request,) = mistral.requests
    assert (request.target, request.body) == (f"/v1/{path}".encode(), body % b"")


FIRST = {
    "an error behind comments": b": OPENROUTER PROCESSING\n\n" * 2 + b'data: {"error":{"code":1}}\n\n',
    "an error behind other members": b'data: {"id":"x","error":{"code":502,"message":"m"},"choices":[]}\n\n',
    "an error without a name": b'data: {"type":"error","error":{"code":"x"}}\n\n',
}


@pytest.mark.parametrize("what", FIRST)
async def test_an_error_as_the_first_event(upstream: StartUpstream, proxy: StartProxy, what: str) -> None:
    """However a provider writes it: the next target is asked."""
    first, second = await upstream(streamed((FIRST[what],))), await upstream(GOOD)
    p = await proxy(
        providers={"first": speaks(first, "openai"), "second": speaks(second, "openai")},
        default_providers={"openai": "first"},
    )
    body = b'{"model":"m","stream":true,"fallbacks":["second/m"]}'
    response = await ask(p, "/v1/chat/completions", body)
    assert response.header("x-bifrost-attempts") == b"first/m:stream_error,second/m:200"


GOES_ON = {
    "comments": b': OPENROUTER PROCESSING\n\n: x\ndata: {"id":"x","choices":[]}\n\n',
    "an error that is null": b'data: {"type":"response.created","error":null}\n\n',
}


@pytest.mark.parametrize("what", GOES_ON)
async def test_a_first_event_that_is_none(upstream: StartUpstream, proxy: StartProxy, what: str) -> None:
    """It is relayed, with what stood before it."""
    first, second = await upstream(streamed((GOES_ON[what], b"data: [DONE]\n\n"))), await upstream()
    p = await proxy(
        providers={"first": speaks(first, "openai"), "second": speaks(second, "openai")},
        default_providers={"openai": "first"},
    )
    body = b'{"model":"m","stream":true,"fallbacks":["second/m"]}'
    assert (await ask(p, "/v1/chat/completions", body)).body == GOES_ON[what] + b"data: [DONE]\n\n"


INVALID = (
    b'{"error":{"code":400,"message":"API key not valid.","status":"INVALID_ARGUMENT","details":['
    b'{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"API_KEY_INVALID","domain":"googleapis.com"}]}}'
)
REFUSED = {
    "Gemini": ("genai", "/genai/v1beta/models/m:generateContent", INVALID),
    "Gemini in OpenAI's format": ("openai", "/v1/chat/completions", b"[" + INVALID + b"]"),
    "xAI": (
        *("openai", "/v1/chat/completions"),
        b'{"code":"Client specified an invalid argument","error":"Incorrect API key provided: sk***."}',
    ),
}


@pytest.mark.parametrize("who", REFUSED)
async def test_a_400_may_be_about_our_key(upstream: StartUpstream, proxy: StartProxy, who: str) -> None:
    """The next key is taken, as after a 401; without one it is a 502, for the client has no such key."""
    wire_format, path, refused = REFUSED[who]
    up = await upstream(answer(400, body=refused), GOOD, answer(400, body=refused))
    named = [{"name": name, "value": f"env.TEST_KEY_{name.upper()}"} for name in ("bad", "good")]
    providers = {
        name: {**speaks(up, wire_format), "keys": keys}
        for name, keys in (("two", [named[0], {**named[1], "weight": 0}]), ("one", named[:1]))
    }
    p = await proxy(providers=providers, default_providers={wire_format: "two"})
    assert (await ask(p, path, b'{"model":"m"}')).status == 200
    response = await ask(p, path.replace("models/m", "models/one%2Fm"), b'{"model":"one/m"}')
    assert response.status == 502
    assert b"one takes none of the keys" in response.body
    assert b"API_KEY" not in response.body


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_compressed_400_may_be_about_our_key(
    upstream: StartUpstream, proxy: StartProxy, coding: str
) -> None:
    """It is looked into; what SDKs accept decides whether it comes so."""
    packed = gzip.compress(INVALID) if coding == "gzip" else zlib.compress(INVALID)
    fields = [JSON_TYPE, (b"Content-Encoding", coding.encode())]
    up = await upstream(answer(400, fields, packed))
    p = await proxy(providers={"gemini": speaks(up, "genai")}, default_providers={})
    response = await ask(p, "/genai/v1beta/models/m:generateContent", b"{}")
    assert response.status == 502
    assert b"gemini takes none of the keys" in response.body


@pytest.mark.parametrize("first", [answer(400, body=INVALID), refusal(401)], ids=["400", "401"])
async def test_a_refused_key_is_not_shown_when_the_next_has_no_answer(
    upstream: StartUpstream, proxy: StartProxy, first: bytes
) -> None:
    """What the provider said last is about a key that the client does not have."""

    async def reset(conn: Conn, _: Request) -> None:
        conn.reset()

    # A connection that was used before may just have been old: that is tried once more.
    up = await upstream(first, reset, reset)
    named = [{"name": name, "value": f"env.TEST_KEY_{name.upper()}"} for name in ("bad", "good")]
    keys = [named[0], {**named[1], "weight": 0}]
    p = await proxy(
        providers={"gemini": {**speaks(up, "genai"), "keys": keys}},
        default_providers={},
        network={"max_retries": 0},
    )
    response = await ask(p, "/genai/v1beta/models/m:generateContent", b"{}")
    assert response.status == 502
    assert b"API_KEY" not in response.body


@pytest.mark.parametrize("size", [10, 7_000, 9_000, 200_000])
async def test_any_other_400_is_the_client_s(upstream: StartUpstream, proxy: StartProxy, size: int) -> None:
    """It comes down as it is, whatever its size, and what it quotes of the request."""
    echo = b'{"error":{"message":"bad: \\"reason\\":\\"API_KEY_INVALID\\" %b"}}' % (b"x" * size)
    up = await upstream(answer(400, body=echo))
    p = await proxy(providers={"gemini": speaks(up, "genai")}, default_providers={})
    response = await ask(p, "/genai/v1beta/models/m:generateContent", b"{}")
    assert (response.status, response.body) == (400, echo)


@pytest.mark.parametrize("end", ["cut", "silence"])
async def test_a_400_that_is_not_whole(upstream: StartUpstream, proxy: StartProxy, end: str) -> None:
    """What was read of it to see whether it is about the key does not make it whole, nor wait for ever."""
    asked = asyncio.Event()

    async def play(conn: Conn, _: Request) -> None:
        await conn.send(refusal(400)[:-10])
        if end == "silence":
            await asked.wait()
        conn.reset()

    p = await proxy(providers={"gemini": speaks(await upstream(play), "genai")}, default_providers={})
    client = await p.connect()
    await client.send(post("/genai/v1beta/models/m:generateContent", b"{}"))
    assert (await client.head()).status == 400
    asked.set()
    response = await client.rest()
    assert refusal(400)[:-10].endswith(response.body)
    assert (response.complete, response.reset) == (False, True)
