"""Errors of the proxy's own, and streams that are cut, as the official OpenAI SDK raises them.

Fact: it raises its class by the status; 413 has none, and is an ``APIStatusError``. A stream's error is an
``APIError`` without a status. Its ``request_id`` is the field ``x-request-id``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from environments import RunScript
from openai_sdk import BEFORE, CURRENT, StartOpenAI, azure, openai, openai_upstream, origin, provider, serving
from rawclient import asked, post
from running import Proxy, StartProxy

from proxy import limits

__all__ = ["openai_upstream"]

HOLDERS = {"alice": "sk-bf-sk-test-alice", "bob": "sk-bf-sk-test-bob", "carol": "sk-bf-sk-test-carol"}
ALICE, BOB, CAROL = HOLDERS.values()
"""Who may do everything, who has used up its requests, and who may use one model."""

ERRORS: dict[str, tuple[str, int, str]] = {
    "a fallback that names no provider": ("BadRequestError", 400, "invalid_request_error"),
    "no virtual key": ("AuthenticationError", 401, "authentication_error"),
    "a model that is not allowed": ("PermissionDeniedError", 403, "permission_error"),
    "an unknown job": ("NotFoundError", 404, "not_found_error"),
    "a body that is too large": ("APIStatusError", 413, "invalid_request_error"),
    "a limit that is reached": ("RateLimitError", 429, "rate_limit_error"),
    "a provider that is not there": ("InternalServerError", 502, "server_error"),
    "a provider that is silent": ("InternalServerError", 504, "server_error"),
}


@pytest.fixture(autouse=True)
def _windows_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """No window ends in the middle of a test."""
    monkeypatch.setattr(limits, "_window", lambda duration, minute: (0, 4_000_000_000))


def calls(base: dict[str, Any], prefix: str, form: dict[str, Any]) -> dict[str, Any]:
    """A call for each of `ERRORS`."""

    def call(model: str, key: str = ALICE, **more: Any) -> dict[str, Any]:
        client = {**base, "options": {**base["options"], "api_key": key}}
        return {"client": client, **form, "model": prefix + model, **more}

    told = [
        call("gpt-4o-mini", headers={"x-bf-fallbacks": "nowhere/gpt-4o-mini"}),
        call("gpt-4o-mini", "sk-test-client"),
        call("gpt-4o", CAROL),
        call("gpt-4o-mini", headers={"x-bf-async-id": "job_" + "0" * 32}),
        call("gpt-4o-mini", characters=60_000),
        call("gpt-4o-mini", BOB),
        {**call(""), "model": "dead/gpt-4o-mini"},
        call("silent"),
    ]
    return dict(zip(ERRORS, told, strict=True))


async def test_each_status_raises_its_own_class(
    run_script: RunScript, openai_upstream: StartOpenAI, proxy: StartProxy, closed_port: int, tmp_path: Path
) -> None:
    """In the unified API, below /openai and at Azure's paths; JSON, streams and forms, sync and async."""
    p = await governed(proxy, await openai_upstream(), closed_port, tmp_path)
    here = origin(p)
    routes = {
        "unified": calls(openai(f"{here}/v1"), "openai/", {"call": "chat"}),
        "openai": calls(openai(f"{here}/openai/v1"), "", {"call": "responses", "stream": True}),
        "azure": calls(azure(f"{here}/openai"), "", {"call": "completions", "stream": True}),
        "form": calls(openai(f"{here}/v1"), "openai/", {"call": "transcriptions"}),
    }
    wanted = {f"{route}: {name}": ERRORS[name] for route in routes for name in ERRORS}
    # A job has a JSON body, and is OpenAI's own or the unified API's; a form is not held, so it has no bound.
    for name in ("form: an unknown job", "azure: an unknown job", "form: a body that is too large"):
        del wanted[name]
    asking = {name: routes[name.partition(":")[0]][name.partition(": ")[2]] for name in wanted}
    seen = await run_script((CURRENT,), "openai_errors", json.dumps(asking))
    await p.stop()
    ours = {line["request_id"] for line in p.lines}
    for told in (seen["sync"], seen["async"]):
        assert {name: (e["class"], e["status"], e["type"]) for name, e in told.items()} == wanted
        for name, error in told.items():
            assert error["request_id"] in ours, name
            assert list(error["body"]) == ["message", "type", "param", "code"], name
            assert error["content_type"] == "application/json", name
            assert (error["retry_after"] is not None) == (error["status"] == 429), name
    assert "nowhere" in seen["sync"]["unified: a fallback that names no provider"]["message"]


async def governed(proxy: StartProxy, upstream: Any, closed_port: int, tmp_path: Path) -> Proxy:
    """The proxy with virtual keys; bob's one request has been made."""
    both = [{"provider": name, "allowed_models": ["*"]} for name in ("openai", "dead")]
    keys: dict[str, Any] = {
        name: {"value": f"env.{name.upper()}", "provider_configs": both} for name in HOLDERS
    }
    keys["carol"]["provider_configs"] = [{"provider": "openai", "allowed_models": ["gpt-4o-mini"]}]
    keys["bob"]["rate_limit"] = {"request_max_limit": 1, "request_reset_duration": "1h"}
    p = await serving(
        proxy,
        {
            "openai": provider(upstream),
            "dead": provider(f"http://127.0.0.1:{closed_port}", "dead"),
        },
        network={"first_byte_timeout": 0.7},
        environ={name.upper(): value for name, value in HOLDERS.items()},
        virtual_keys=keys,
        require_virtual_key=True,
        store=f"sqlite:{tmp_path / 'state.db'}",
        max_body_bytes=50_000,
    )
    bearer = [(b"Authorization", b"Bearer " + BOB.encode())]
    answer = await p.ask(post("/openai/v1/chat/completions", asked("gpt-4o-mini"), bearer, key=None))
    assert answer.status == 200, answer
    return p


@pytest.mark.parametrize("version", [CURRENT, BEFORE])
async def test_a_stream_that_is_cut_raises(
    run_script: RunScript, openai_upstream: StartOpenAI, proxy: StartProxy, version: str
) -> None:
    """Between two events an error event comes, which is an ``APIError``; within one only a reset can.

    The same event tells what came too late for a status, because the 200 was out.
    """
    up = await openai_upstream()
    hasty = provider(up, network_config={"max_retries": 0, "first_byte_timeout": 0.8})
    providers = {"openai": provider(up), "hasty": hasty}
    p = await serving(proxy, providers, early_stream_after=0.05, ping_interval=0.02)
    asking = {
        f"{model} {name} {call}": {
            "client": client,
            "call": call,
            "model": model,
            **({} if call == "gathered" else {"stream": True}),
        }
        for name, client in (("openai", openai(f"{origin(p)}/openai/v1")), ("azure", azure(origin(p))))
        for model in ("cut", "torn", "hasty/silent")
        for call in ("chat", "completions", "responses", "gathered")
        if (model, name) != ("hasty/silent", "azure")
    }
    seen = await run_script((version,), "openai_errors", json.dumps(asking))
    # The older one lets out what its HTTP client raises for a reset.
    torn = "APIConnectionError" if version == CURRENT else "ReadError"
    for told in (seen["sync"], seen["async"]):
        for name, error in told.items():
            model = name.partition(" ")[0]
            assert error["events"] == (0 if model == "hasty/silent" else 3), name
            assert error["class"] == (torn if model == "torn" else "APIError"), name
            if model != "torn":
                assert error["type"] == "server_error", name
                assert list(error["body"]) == ["message", "type", "param", "code"], name
    await p.stop()
    late = [line for line in p.lines if line["model"] == "hasty/silent"]
    assert [line["status"] for line in late] == [200] * 8
    assert min(line["pings"] for line in late) > 0
