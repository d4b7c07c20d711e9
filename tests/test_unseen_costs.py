"""Work whose usage passes nowhere: who has a limit on tokens cannot begin it, in any wire format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rawclient import request_head
from running import Proxy, StartProxy, StartUpstream
from scripted import Upstream, answer

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
}


def providers(up: Upstream) -> dict[str, Any]:
    key = {"name": "main", "value": "env.TEST_KEY_MAIN"}
    formats = ("anthropic", "openai", "azure", "genai", "cohere", "bedrock")
    return {name: {"base_urls": {name: up.url}, "keys": [key]} for name in formats}


async def asked(p: Proxy, path: str, holder: str) -> int:
    body = b'{"model":"m"}'
    fields = [
        (b"Host", b"proxy.test"),
        (b"x-bf-vk", KEYS[holder].encode()),
        (b"Content-Type", b"application/json"),
        (b"Content-Length", b"%d" % len(body)),
    ]
    return (await p.ask(request_head("POST", path, fields) + body)).status


@pytest.mark.parametrize("what", BEGUN)
async def test_who_has_a_limit_on_tokens_cannot_begin_it(
    upstream: StartUpstream, proxy: StartProxy, tmp_path: Path, what: str
) -> None:
    """Nothing goes upstream; who has none may."""
    up = await upstream(answer(body=b"{}"))
    grants = [{"provider": name, "allowed_models": ["*"]} for name in providers(up)]
    limit = {"rate_limit": {"token_max_limit": 1000, "token_reset_duration": "1Y"}}
    p = await proxy(
        providers=providers(up),
        default_providers={},
        store=f"sqlite:{tmp_path / 'state.db'}",
        virtual_keys={
            name: {"value": f"env.{name.upper()}", "provider_configs": grants, **more}
            for name, more in {"alice": limit, "bob": {}}.items()
        },
        environ={name.upper(): value for name, value in KEYS.items()},
    )
    assert await asked(p, BEGUN[what], "alice") == 403
    assert not up.requests
    assert await asked(p, BEGUN[what], "bob") == 200
