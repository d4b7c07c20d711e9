"""``GET /v1/models``: the models of all providers as one list, and what a virtual key may see of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from rawclient import Response, request_head
from running import Proxy, StartProxy, StartUpstream
from scripted import JSON_TYPE, Conn, Request, Upstream, answer

from proxy import models

VALUE = "sk-bf-sk-test-alice"


def listing(*names: str, member: str = "data", name: str = "id", **more: Any) -> bytes:
    items = [{name: each, "object": "model", **more} for each in names]
    return answer(body=json.dumps({member: items}).encode())


def speaks(up: Upstream, wire_format: str, *keys: str, **more: Any) -> dict[str, Any]:
    named = [{"name": key, "value": f"env.TEST_KEY_{key.upper()}"} for key in keys]
    url = up.url + ("/v1" if wire_format == "openai" else "")
    return {"base_urls": {wire_format: url}, "keys": named, **more}


def ids(response: Response) -> list[str]:
    assert response.status == 200, response.body
    return [item["id"] for item in json.loads(response.body)["data"]]


async def ask(
    p: Proxy, path: str, fields: Iterable[tuple[bytes, bytes]] = (), body: bytes | None = None
) -> Response:
    """A request as OpenAI's SDK sends it: without Anthropic's version."""
    method = "GET" if body is None else "POST"
    sized = [] if body is None else [(b"Content-Length", b"%d" % len(body))]
    head = request_head(method, path, [(b"Host", b"proxy.test"), *fields, *sized])
    return await p.ask(head + (body or b""), method)


async def silent(conn: Conn, _: Request) -> None:
    """Take the request, and say nothing until the proxy leaves."""
    await conn.gone()


async def test_every_provider_lists_its_models_in_its_own_format(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """Each is asked with its own key in its own field; the ids say whose they are."""
    ups = {
        "openai": await upstream(listing("gpt-4o", "o3", created=7)),
        "anthropic": await upstream(listing("claude-haiku-4-5")),
        "genai": await upstream(listing("models/gemini-2.5-flash", member="models", name="name")),
        "cohere": await upstream(listing("command-a", member="models", name="name")),
        "azure": await upstream(listing("my-deployment")),
    }
    providers = {f"p-{name}": speaks(up, name, name) for name, up in ups.items()}
    p = await proxy(providers=providers, default_providers={})
    response = await ask(p, "/v1/models", [(b"Authorization", b"Bearer sk-test-client")])
    assert ids(response) == [
        "p-openai/gpt-4o",
        "p-openai/o3",
        "p-anthropic/claude-haiku-4-5",
        "p-genai/gemini-2.5-flash",
        "p-cohere/command-a",
        "p-azure/my-deployment",
    ]
    body = json.loads(response.body)
    assert body["data"][0] == {
        "id": "p-openai/gpt-4o",
        "object": "model",
        "created": 7,
        "owned_by": "p-openai",
    }
    assert list(body) == ["object", "data"]
    asked = {name: up.requests[0] for name, up in ups.items()}
    assert {name: request.target for name, request in asked.items()} == {
        "openai": b"/v1/models",
        "anthropic": b"/v1/models?limit=1000",
        "genai": b"/v1beta/models?pageSize=1000",
        "cohere": b"/v1/models?page_size=1000",
        "azure": b"/openai/v1/models",
    }
    assert asked["openai"].values("authorization") == [b"Bearer sk-test-openai"]
    assert asked["anthropic"].header("x-api-key") == b"sk-test-anthropic"
    assert asked["anthropic"].header("anthropic-version") == b"2023-06-01"
    assert asked["genai"].header("x-goog-api-key") == b"sk-test-genai"
    assert asked["azure"].header("api-key") == b"sk-test-azure"
    line = await p.line()
    assert (line["path"], line["ending"], line["status"]) == ("/v1/models", "--", 200)


async def test_who_fails_is_named_and_the_others_are_listed(
    upstream: StartUpstream, proxy: StartProxy, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    """Refused, garbled, silent and unreachable: the answer is partial, and says so."""
    monkeypatch.setattr(models, "PATIENCE", 0.5)
    good = await upstream(listing("gpt-4o"))
    refusing = await upstream(answer(403, body=b"{}"))
    garbled = await upstream(answer(body=b'{"data":[1]}'))
    slow = await upstream(silent)
    providers = {
        "good": speaks(good, "openai", "good"),
        "refusing": speaks(refusing, "openai", "refusing"),
        "garbled": speaks(garbled, "openai", "garbled"),
        "slow": speaks(slow, "openai", "slow"),
        "gone": {"base_urls": {"openai": f"http://127.0.0.1:{closed_port}/v1"}, "is_key_less": True},
    }
    p = await proxy(providers=providers, default_providers={"openai": "good"}, network={"max_retries": 0})
    response = await ask(p, "/v1/models")
    assert ids(response) == ["good/gpt-4o"]
    body = json.loads(response.body)
    assert body["partial"] is True
    assert sorted(body["failed"]) == ["garbled", "gone", "refusing", "slow"]
    assert body["failed"]["slow"] == "it did not answer in time"


async def test_without_any_list_it_is_a_502(proxy: StartProxy, closed_port: int) -> None:
    """In OpenAI's shape, naming who failed."""
    dead = {"base_urls": {"openai": f"http://127.0.0.1:{closed_port}/v1"}, "is_key_less": True}
    p = await proxy(providers={"dead": dead}, default_providers={})
    response = await ask(p, "/v1/models")
    assert response.status == 502
    error = json.loads(response.body)["error"]
    assert error["type"] == "server_error"
    assert "dead" in error["message"]


async def test_a_virtual_key_sees_what_it_may_use(upstream: StartUpstream, proxy: StartProxy) -> None:
    """And of a provider that it may not use at all nothing is asked."""
    first = await upstream(listing("gpt-4o", "o3", "gpt-4o-mini"))
    other = await upstream()
    grants = [{"provider": "first", "allowed_models": ["gpt-*"], "blacklisted_models": ["*-mini"]}]
    p = await proxy(
        providers={"first": speaks(first, "openai", "first"), "other": speaks(other, "openai", "other")},
        default_providers={"openai": "first"},
        virtual_keys={"alice": {"value": "env.ALICE", "provider_configs": grants}},
        environ={"ALICE": VALUE},
        require_virtual_key=True,
    )
    seen = await ask(p, "/v1/models", [(b"Authorization", f"Bearer {VALUE}".encode())])
    assert ids(seen) == ["first/gpt-4o"]
    assert VALUE.encode() not in first.requests[0].raw
    assert (await ask(p, "/v1/models")).status == 401


async def test_provider_keys_bound_what_is_listed(upstream: StartUpstream, proxy: StartProxy) -> None:
    """A model that no key of the provider may be used for could not be asked for."""
    up = await upstream(listing("gpt-4o", "o3"))
    provider = speaks(up, "openai", "main")
    provider["keys"][0]["models"] = ["gpt-*"]
    p = await proxy(providers={"openai": provider}, default_providers={})
    assert ids(await ask(p, "/v1/models")) == ["openai/gpt-4o"]


async def test_a_client_s_key_is_shown_to_the_default_provider_only(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """The others are not asked: no request could use them either."""
    default, other = await upstream(listing("gpt-4o")), await upstream()
    claude = await upstream()
    p = await proxy(
        providers={
            "openai": {"base_urls": {"openai": default.url}},
            "other": {"base_urls": {"openai": other.url}, "is_key_less": False},
            "anthropic": {"base_urls": {"anthropic": claude.url}, "is_key_less": False},
        },
        default_providers={"openai": "openai", "anthropic": "anthropic"},
    )
    fields = [(b"Authorization", b"Bearer sk-test-client"), (b"Cookie", b"a=b")]
    response = await ask(p, "/langchain/models", fields)
    assert ids(response) == ["openai/gpt-4o"]
    assert list(json.loads(response.body)) == ["object", "data"]
    assert default.requests[0].header("authorization") == b"Bearer sk-test-client"
    assert default.requests[0].header("cookie") is None


async def test_a_list_in_the_next_format_counts(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Who does not list its models in its own format may do so in OpenAI's."""
    up = await upstream(answer(404, body=b"{}"), listing("deepseek-chat"))
    provider = speaks(up, "anthropic", "main")
    provider["base_urls"]["openai"] = up.url + "/v1"
    p = await proxy(providers={"deepseek": provider}, default_providers={})
    assert ids(await ask(p, "/v1/models")) == ["deepseek/deepseek-chat"]
    assert [request.target for request in up.requests] == [b"/v1/models?limit=1000", b"/v1/models"]


async def test_one_model_is_asked_of_its_provider(upstream: StartUpstream, proxy: StartProxy) -> None:
    """``GET /v1/models/provider/model``: the name picks the provider, and its own API has it without."""
    default, groq = await upstream(answer(body=b"{}")), await upstream(answer(body=b"{}"), answer(body=b"{}"))
    p = await proxy(
        providers={"openai": speaks(default, "openai", "main"), "groq": speaks(groq, "openai", "groq")},
        default_providers={},
    )
    for path in ("/v1/models/groq/llama-3", "/v1/models/groq%2Fllama%2D3"):
        assert (await ask(p, path)).status == 200
    assert (await ask(p, "/v1/models/meta/llama-3")).status == 200
    assert [request.target for request in groq.requests] == [b"/v1/models/llama-3", b"/v1/models/llama%2D3"]
    assert default.requests[0].target == b"/v1/models/meta/llama-3"


async def test_a_provider_can_be_named_where_no_model_is(upstream: StartUpstream, proxy: StartProxy) -> None:
    """``x-model-provider``, as in Bifrost; it goes no further, and a name that is none is a 400."""
    default, groq = await upstream(), await upstream(answer(body=b"{}"))
    p = await proxy(
        providers={"openai": speaks(default, "openai", "main"), "groq": speaks(groq, "openai", "groq")},
        default_providers={},
    )
    assert (await ask(p, "/v1/files", [(b"x-model-provider", b"groq")])).status == 200
    assert groq.requests[0].header("x-model-provider") is None
    assert groq.requests[0].header("authorization") == b"Bearer sk-test-groq"
    refused = await ask(p, "/v1/files", [(b"x-model-provider", b"grok")])
    assert (refused.status, json.loads(refused.body)["error"]["type"]) == (400, "invalid_request_error")


async def test_a_request_of_the_unified_api_falls_back_to_another_provider(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """By its body or by ``x-bf-fallbacks``, which comes behind; each target gets its own model and key."""
    first = await upstream(answer(529, body=b"{}"), answer(529, body=b"{}"))
    second, third = (
        await upstream(answer(500, body=b"{}"), answer(500, body=b"{}")),
        await upstream(answer(body=b"{}", headers=[JSON_TYPE]), answer(body=b"{}", headers=[JSON_TYPE])),
    )
    p = await proxy(
        providers={
            "first": speaks(first, "openai", "first"),
            "second": speaks(second, "openai", "second"),
            "third": speaks(third, "openai", "third"),
        },
        default_providers={},
        network={"max_retries": 0},
    )
    body = b'{"model": "first/a/b", "fallbacks": ["second/c"], "messages": []}'
    fields = [(b"x-bf-fallbacks", b"third/d , third/e")]
    for path in ("/v1/chat/completions", "/openai/chat/completions"):
        response = await ask(p, path, fields, body)
        assert response.status == 200
        assert response.header("x-bifrost-attempts") == b"first/a/b:529,second/c:500,third/d:200"
    assert first.requests[0].body == b'{"model": "a/b", "messages": []}'
    assert third.requests[0].body == b'{"model": "d", "messages": []}'
    assert third.requests[0].header("authorization") == b"Bearer sk-test-third"
    assert third.requests[0].header("x-bf-fallbacks") is None


async def test_a_list_is_one_request_of_a_virtual_key(
    upstream: StartUpstream, proxy: StartProxy, tmp_path: Path
) -> None:
    """Whoever is asked for it; beyond the limit nobody is. And each is asked once, whatever it says."""
    first, second = await upstream(answer(429, body=b"{}")), await upstream(listing("gpt-4o"))
    p = await proxy(
        providers={
            "first": speaks(first, "openai", "one", "two"),
            "second": speaks(second, "openai", "three"),
        },
        default_providers={"openai": "first"},
        store=f"sqlite:{tmp_path / 'state.db'}",
        virtual_keys={
            "alice": {
                "value": "env.ALICE",
                "provider_configs": [
                    {"provider": name, "allowed_models": ["*"]} for name in ("first", "second")
                ],
                "rate_limit": {"request_max_limit": 1, "request_reset_duration": "1Y"},
            }
        },
        environ={"ALICE": VALUE},
        network={"max_retries": 3},
    )
    fields = [(b"Authorization", f"Bearer {VALUE}".encode())]
    assert ids(await ask(p, "/v1/models", fields)) == ["second/gpt-4o"]
    assert (await ask(p, "/v1/models", fields)).status == 429
    assert (len(first.requests), len(second.requests)) == (1, 1)


async def test_lists_that_others_have(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Together AI's is a bare array; an entry without a name is no model, and takes none with it."""
    bare = await upstream(answer(body=b'[{"id":"meta/llama","created":5},{"id":null},{},7]'))
    p = await proxy(providers={"together": speaks(bare, "openai", "main")}, default_providers={})
    assert ids(await ask(p, "/v1/models")) == ["together/meta/llama"]


async def test_a_list_without_end_and_names_that_are_none_are_not_listed(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """One provider cannot fill everybody's list."""
    endless = await upstream(listing(*[f"m{number}" for number in range(models.MOST + 1)]))
    odd = await upstream(listing("a", "", "b\r\nc", "x" * 201, "\u2603"))
    p = await proxy(
        providers={"endless": speaks(endless, "openai", "one"), "odd": speaks(odd, "openai", "two")},
        default_providers={"openai": "odd"},
    )
    response = await ask(p, "/v1/models")
    assert ids(response) == ["odd/a", "odd/\u2603"]
    assert list(json.loads(response.body)["failed"]) == ["endless"]


async def test_a_fault_of_ours_leaves_nobody_behind(
    upstream: StartUpstream,
    proxy: StartProxy,
    machine: Callable[[], float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is a 500 at once, and who was still asked is asked no longer."""
    broken, slow = await upstream(listing("gpt-4o")), await upstream(silent)
    p = await proxy(
        providers={"broken": speaks(broken, "openai", "one"), "slow": speaks(slow, "openai", "two")},
        default_providers={"openai": "broken"},
    )

    def fails(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(models, "_read", fails)
    began = time.monotonic()
    assert (await ask(p, "/v1/models")).status == 500
    await slow.quiet()
    assert time.monotonic() - began < models.PATIENCE + machine()


async def test_who_leaves_stops_what_was_asked_for_the_list(
    upstream: StartUpstream, proxy: StartProxy, machine: Callable[[], float]
) -> None:
    """Every provider's connection is closed at once."""
    arrived = asyncio.Event()

    async def silent_from_now(conn: Conn, request: Request) -> None:
        arrived.set()
        await silent(conn, request)

    slow = await upstream(silent_from_now)
    p = await proxy(providers={"slow": speaks(slow, "openai", "one")}, default_providers={})
    client = await p.connect()
    await client.send(request_head("GET", "/v1/models", [(b"Host", b"proxy.test")]))
    await arrived.wait()
    began = time.monotonic()
    client.close()
    await slow.quiet()
    assert time.monotonic() - began < models.PATIENCE / 2 + machine()
