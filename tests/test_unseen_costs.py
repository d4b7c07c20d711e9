"""Work whose usage passes nowhere: who has a limit on tokens cannot begin it, and nobody begins it twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rawclient import request_head
from running import Proxy, StartProxy, StartUpstream
from scripted import Conn, Request, Upstream, answer

KEYS = {"alice": "sk-bf-sk-test-alice", "bob": "sk-bf-sk-test-bob"}
BEGUN = {
    "anthropic": "/anthropic/v1/messages/batches",
    "openai": "/openai/v1/batches",
    "unified": "/v1/fine_tuning/jobs",
    "azure": "/openai/openai/batches?api-version=1",
    "cohere": "/cohere/v1/embed-jobs",
    "genai": "/genai/v1beta/models/gemini-2.5-flash:batchGenerateContent",
    "interactions": "/genai/v1beta/interactions",
    "bedrock": "/bedrock/async-invoke",
    "another format's path": "/anthropic/v1/chat/completions",
    "Gemini in OpenAI's format": "/genai/v1beta/openai/chat/completions",
    "Cohere in OpenAI's format": "/cohere/compatibility/v1/chat/completions",
    "an engine": "/openai/v1/engines/x/completions",
    "a tuned model": "/genai/v1beta/tunedModels/x:generateContent",
    "a session": "/anthropic/v1/sessions",
    "a run": "/openai/v1/threads/runs",
    "a run's next step": "/openai/v1/threads/t/runs/r/submit_tool_outputs",
    "a call": "/v1/realtime/calls",
    "a token": "/genai/v1alpha/auth_tokens",
    "a secret": "/openai/v1/realtime/client_secrets",
    "a secret at Azure": "/openai/openai/v1/realtime/client_secrets",
    "in another spelling": "/openai/v1/files/..%2frealtime%2fclient_secrets",
    "a video from a video": "/openai/v1/videos/edits",
    "a container": "/openai/v1/containers",
    "a cache": "/genai/v1beta/cachedContents",
    "an index": "/genai/v1beta/fileSearchStores/x:importFile",
    "Mistral's conversation": "/v1/conversations",
    "vLLM's batch": "/v1/chat/completions/batch",
    "nothing": "/anthropic/",
    "what comes tomorrow": "/cohere/v3/think",
}
FREE = (
    "/anthropic/v1/files",
    "/anthropic/v1/messages/batches/b/cancel",
    "/anthropic/v1/skills/s/versions",
    "/openai/v1/files",
    "/openai/v1/uploads/u/parts",
    "/openai/v1/vector_stores/v/file_batches",
    "/openai/v1/containers/c/files",
    "/openai/v1/threads",
    "/openai/v1/threads/t/messages",
    "/openai/v1/threads/t/runs/r/cancel",
    "/v1/conversations/c/items",
    "/v1/responses/r/cancel",
    "/v1/chat/completions/chatcmpl-c",
    "/openai/openai/v1/files",
    "/openai/openai/files?api-version=1",
    "/genai/upload/v1beta/files",
    "/genai/v1beta/fileSearchStores",
    "/genai/v1beta/batches/b:cancel",
    "/cohere/v1/datasets",
    "/cohere/v1/embed-jobs/j/cancel",
)
"""What uses up nothing."""


def providers(up: Upstream) -> dict[str, Any]:
    key = {"name": "main", "value": "env.TEST_KEY_MAIN"}
    formats = ("anthropic", "openai", "azure", "genai", "cohere", "bedrock")
    return {name: {"base_urls": {name: up.url}, "keys": [key]} for name in formats}


async def reset(conn: Conn, _: Request) -> None:
    """An upstream that has the whole request, and says nothing to it."""
    conn.reset()


async def governed(proxy: StartProxy, up: Upstream, place: Path) -> Proxy:
    """With a key ``alice`` that has a limit on tokens, and ``bob`` that has none."""
    grants = [{"provider": name, "allowed_models": ["*"]} for name in providers(up)]
    limit = {"rate_limit": {"token_max_limit": 1000, "token_reset_duration": "1Y"}}
    return await proxy(
        providers=providers(up),
        default_providers={},
        store=f"sqlite:{place / 'state.db'}",
        virtual_keys={
            name: {"value": f"env.{name.upper()}", "provider_configs": grants, **more}
            for name, more in {"alice": limit, "bob": {}}.items()
        },
        environ={name.upper(): value for name, value in KEYS.items()},
    )


async def asked(p: Proxy, path: str, holder: str, *more: tuple[bytes, bytes], method: str = "POST") -> int:
    body = b'{"model":"m"}'
    fields = [
        (b"Host", b"proxy.test"),
        (b"x-bf-vk", KEYS[holder].encode()),
        *more,
        (b"Content-Type", b"application/json"),
        (b"Content-Length", b"%d" % len(body)),
    ]
    return (await p.ask(request_head(method, path, fields) + body, method)).status


@pytest.mark.parametrize("what", BEGUN)
async def test_who_has_a_limit_on_tokens_cannot_begin_it(
    upstream: StartUpstream, proxy: StartProxy, tmp_path: Path, what: str
) -> None:
    """Nothing goes upstream; who has none may."""
    up = await upstream(answer(body=b"{}"))
    p = await governed(proxy, up, tmp_path)
    refused = await asked(p, BEGUN[what], "alice")
    assert not up.requests
    if "%2f" in BEGUN[what]:
        assert refused == 400
        up.allow_unused = True
        return
    assert refused == 403
    assert await asked(p, BEGUN[what], "bob") == 200


@pytest.mark.parametrize("method", ["PUT", "PATCH", "QUERY"])
async def test_no_other_method_begins_it(
    upstream: StartUpstream, proxy: StartProxy, tmp_path: Path, method: str
) -> None:
    """What writes is written with POST by today's APIs only."""
    up = await upstream(answer(body=b"{}"))
    p = await governed(proxy, up, tmp_path)
    path = "/openai/openai/ingestion/jobs/j?api-version=1"
    assert await asked(p, path, "alice", method=method) == 403
    assert await asked(p, path, "bob", method=method) == 200
    assert len(up.requests) == 1


async def test_what_uses_up_nothing_is_allowed(
    upstream: StartUpstream, proxy: StartProxy, tmp_path: Path
) -> None:
    """Files, and ends of what was begun."""
    up = await upstream(*[answer(body=b"{}")] * len(FREE))
    p = await governed(proxy, up, tmp_path)
    assert {path: await asked(p, path, "alice") for path in FREE} == dict.fromkeys(FREE, 200)


@pytest.mark.parametrize("what", ["genai", "a video"])
async def test_it_is_not_begun_twice(
    upstream: StartUpstream, proxy: StartProxy, tmp_path: Path, what: str
) -> None:
    """An upstream that resets when it has the request may have begun it."""
    up = await upstream(reset)
    p = await governed(proxy, up, tmp_path)
    assert await asked(p, BEGUN.get(what, "/openai/v1/videos"), "bob") == 502
    assert len(up.requests) == 1


async def test_a_job_does_not_begin_it_twice(
    upstream: StartUpstream, proxy: StartProxy, tmp_path: Path
) -> None:
    """It keeps what its route was."""
    up = await upstream(reset)
    p = await governed(proxy, up, tmp_path)
    assert await asked(p, "/openai/v1/videos", "bob", (b"x-bf-async", b"true")) == 200
    (done,) = [line for line in (await p.line(), await p.line()) if line["attempts"]]
    assert (done["status"], done["attempts"]) == (502, ["openai/m:reset"])
    assert len(up.requests) == 1


async def test_an_interaction_is_asked_again(
    upstream: StartUpstream, proxy: StartProxy, tmp_path: Path
) -> None:
    """It is mostly a talk like any: its usage is not seen, but nothing goes on without the client."""
    up = await upstream(reset, answer(body=b"{}"))
    p = await governed(proxy, up, tmp_path)
    assert await asked(p, BEGUN["interactions"], "bob") == 200
