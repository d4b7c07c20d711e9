"""Errors of the proxy's own, under boto3: it raises its own typed exceptions, for answers and for streams.

Not here: errors of the provider (`test_sdk_bedrock`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
from bedrock_sdk import MODEL, Boto, base_url, boto, environ, provider
from bedrock_upstream import StartBedrock, bedrock
from rawclient import post
from running import Proxy, StartProxy

from proxy import limits

__all__ = ["bedrock", "boto"]

VIRTUAL_KEY = "sk-bf-sk-test-alice"
STATUSES = {
    "400": (400, "ValidationException", "names no configured provider"),
    "401": (401, "AccessDeniedException", "virtual_key_required"),
    "403": (403, "AccessDeniedException", "model_blocked"),
    "404": (404, "ResourceNotFoundException", "job"),
    "413": (413, "ValidationException", "20000 bytes"),
    "429": (429, "ThrottlingException", "request_limited"),
    "502": (502, "InternalServerException", "cannot be reached"),
    "504": (504, "ModelTimeoutException", "provider"),
    "no credentials": (401, "AccessDeniedException", "signature cannot survive a proxy"),
}
"""By case: status, the SDK's class and Bedrock's name for it, and what the message must say."""


class Told(NamedTuple):
    """What boto3 raised, and the access log."""

    seen: dict[str, Any]
    lines: list[dict[str, Any]]


@pytest.fixture(scope="session")
def once() -> list[Told]:
    """All cases are run together, in one process of boto3."""
    return []


@pytest.fixture
async def told(
    once: list[Told],
    boto: Boto,
    bedrock: StartBedrock,
    proxy: StartProxy,
    closed_port: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Told:
    if once:
        return once[0]
    # No window of a limit ends while the cases are run.
    monkeypatch.setattr(limits, "_window", lambda duration, minute: (0, 4_000_000_000))
    up = await bedrock()
    store = f"sqlite:{tmp_path / 'state.db'}"
    everything = {
        "value": "env.ALICE",
        "provider_configs": [{"provider": "bedrock", "allowed_models": ["*"]}],
    }
    other = {"provider": "bedrock", "allowed_models": ["anthropic.another"]}
    once_a_day = {"rate_limit": {"request_max_limit": 1, "request_reset_duration": "1d"}}

    async def start(where: Any = up, **more: Any) -> Proxy:
        made = where if isinstance(where, dict) else provider(where)
        variables = environ() | {"ALICE": VIRTUAL_KEY}
        return await proxy(
            providers={"bedrock": made}, default_providers={"bedrock": "bedrock"}, environ=variables, **more
        )

    proxies = {
        "400": await start(),
        "401": await start(require_virtual_key=True),
        "403": await start(virtual_keys={"alice": everything | {"provider_configs": [other]}}),
        "404": await start(store=store),
        "413": await start(max_body_bytes=20000),
        "429": await start(store=store, virtual_keys={"alice": everything | once_a_day}),
        "502": await start(f"http://127.0.0.1:{closed_port}"),
        "504": await start(network={"first_byte_timeout": 0.2}),
        "no credentials": await start({"base_urls": {"bedrock": up.url}}),
    }
    first = post(f"/bedrock/model/{MODEL}/converse", b'{"messages":[]}', key=VIRTUAL_KEY.encode())
    assert (await proxies["429"].ask(first)).status == 200
    alice = {"x-bf-vk": VIRTUAL_KEY}
    headers = {
        "400": {"x-bf-fallbacks": "nowhere/x"},
        "403": alice,
        "404": {"x-bf-async-id": "job_nobody"},
        "429": alice,
    }
    steps = {}
    for name in STATUSES:
        model = "silent-1" if name == "504" else MODEL
        for call in ("converse_at_length" if name == "413" else "converse", "converse_stream"):
            if (name, call) != ("413", "converse_stream"):
                steps[f"{name} {call}"] = (base_url(proxies[name]), call, model, headers.get(name, {}))
    seen = await boto(steps)
    for one in proxies.values():
        await one.stop()
    once.append(Told(seen, [line for one in proxies.values() for line in one.lines]))
    return once[0]


@pytest.mark.parametrize("name", STATUSES)
async def test_typed_errors(told: Told, name: str) -> None:
    """The SDK's own class by the error's name, with the status, the message and the id that the log has."""
    status, kind, message = STATUSES[name]
    raised = {step: error for step, error in told.seen.items() if step.startswith(f"{name} conv")}
    assert len(raised) == (1 if name == "413" else 2)
    logged = {line["request_id"]: line for line in told.lines}
    for error in raised.values():
        assert error["client_error"], error
        assert (error["class"], error["Code"], error["status"]) == (kind, kind, status)
        assert message in error["Message"]
        assert logged[error["id"]]["status"] == status
