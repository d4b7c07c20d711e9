"""Errors of the proxy's own, and streams that are cut, as the official TypeScript SDKs throw them.

Facts
  - They choose their class by the status; what has none is an ``APIError``, and above 500 all are
    ``InternalServerError`` where there is no better one.
  - An ``error`` event within a stream is an ``APIError`` without a status; a reset is undici's ``TypeError``.
  - ``requestID`` is the field ``request-id`` of Anthropic's answers, and ``x-request-id`` of OpenAI's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from node import RunNode, node, npm_packages, run_node
from rawclient import asked, post
from running import StartProxy, StartUpstream
from scripted import MESSAGE, MESSAGE_EVENTS, PING, Conn, Request, Step, answer, chunk, sse, stream_head
from test_node_sdks import SDKS

from proxy import limits

__all__ = ["node", "npm_packages", "run_node"]

KEYS = {name: f"sk-bf-sk-test-{name}" for name in ("alice", "bob", "carol")}
ALICE, BOB, CAROL = KEYS.values()
"""Who may do everything, who has made the one request of the window, and who may use one other model."""

CASES: dict[int, dict[str, Any]] = {
    400: {"key": ALICE, "headers": {"x-bf-fallbacks": "nowhere/other"}},
    401: {"key": "sk-test-client"},
    403: {"key": CAROL},
    404: {"key": ALICE, "headers": {"x-bf-async-id": "job_" + "0" * 32}},
    413: {"key": ALICE, "characters": 60_000},
    429: {"key": BOB},
    502: {"key": ALICE, "provider": "dead"},
    504: {"key": ALICE, "provider": "silent"},
}
"""What leads to each status."""

OPENAI = {
    400: ("BadRequestError", "invalid_request_error"),
    401: ("AuthenticationError", "authentication_error"),
    403: ("PermissionDeniedError", "permission_error"),
    404: ("NotFoundError", "not_found_error"),
    413: ("APIError", "invalid_request_error"),
    429: ("RateLimitError", "rate_limit_error"),
    502: ("InternalServerError", "server_error"),
    504: ("InternalServerError", "server_error"),
}
ANTHROPIC = {
    **OPENAI,
    413: ("ContentTooLargeError", "request_too_large"),
    502: ("InternalServerError", "api_error"),
    504: ("GatewayTimeoutError", "timeout_error"),
}
"""By status: the SDK's class, and the error's type."""

CHAT = [
    sse(None, {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": word}}]})
    for word in ("Hello", " there.")
]
MESSAGES = [event for event in MESSAGE_EVENTS if event != PING]


@pytest.fixture(autouse=True)
def _windows_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """No window ends in the middle of a test."""
    monkeypatch.setattr(limits, "_window", lambda duration, minute: (0, 4_000_000_000))


def wanted() -> dict[str, tuple[str, int, str]]:
    """What is thrown, by API, form and status."""
    found = {}
    for api in ("anthropic", "openai", "responses", "transcriptions"):
        for status, (kind, type_) in (ANTHROPIC if api == "anthropic" else OPENAI).items():
            # A form is not held, so it has no bound, and makes no job.
            if api != "transcriptions" or status not in (404, 413):
                found[f"{api} {status}"] = kind, status, type_
            if api in ("anthropic", "openai"):
                found[f"{api} {status} stream"] = kind, status, type_
    return found


async def silent(conn: Conn, _: Request) -> None:
    await conn.gone()


async def test_each_status_has_its_class(
    run_node: RunNode, upstream: StartUpstream, proxy: StartProxy, closed_port: int, tmp_path: Path
) -> None:
    """Both SDKs, JSON, streams and forms: the class of the status, and the request id that the log has."""
    up = await upstream(answer(body=MESSAGE))
    waiting = sum(" 504" in name for name in wanted())
    quiet = await upstream(*[silent] * waiting)
    urls = {"main": up.url, "dead": f"http://127.0.0.1:{closed_port}", "silent": quiet.url}
    keys: dict[str, Any] = {
        name: {
            "value": f"env.{name.upper()}",
            "provider_configs": [{"provider": each, "allowed_models": ["*"]} for each in urls],
        }
        for name in KEYS
    }
    keys["bob"]["rate_limit"] = {"request_max_limit": 1, "request_reset_duration": "1h"}
    keys["carol"]["provider_configs"] = [{"provider": "main", "allowed_models": ["other"]}]
    p = await proxy(
        providers={
            name: {
                "base_urls": {"anthropic": url, "openai": f"{url}/v1"},
                "keys": [{"name": name, "value": f"env.TEST_KEY_{name.upper()}"}],
                "network_config": {"max_retries": 0}
                | ({"first_byte_timeout": 0.2} if name == "silent" else {}),
            }
            for name, url in urls.items()
        },
        default_providers={"anthropic": "main", "openai": "main"},
        environ={name.upper(): value for name, value in KEYS.items()},
        virtual_keys=keys,
        require_virtual_key=True,
        store=f"sqlite:{tmp_path / 'state.db'}",
        max_body_bytes=50_000,
    )
    assert (await p.ask(post("/anthropic/v1/messages", asked(), key=BOB.encode()))).status == 200
    calls = {}
    for name in wanted():
        api, status, *stream = name.split()
        call = {"provider": "main", **CASES[int(status)]}
        calls[name] = {**call, "api": api, "stream": bool(stream), "model": f"{call['provider']}/claude-2"}
    origin = f"http://127.0.0.1:{p.port}"
    seen = await run_node(SDKS, "errors", origin, json.dumps(calls))
    assert {name: (told["class"], told["status"], told["type"]) for name, told in seen.items()} == wanted()
    await p.stop()
    ours = [line["request_id"] for line in p.lines]
    assert [told["requestID"] for told in seen.values()] == ours[1:]
    assert "nowhere" in seen["openai 400"]["message"]


async def test_a_cut_stream_is_an_error(
    run_node: RunNode, upstream: StartUpstream, proxy: StartProxy
) -> None:
    """Where upstream dies between two events there is an error event; within one only the reset is left."""

    def cut(events: list[bytes]) -> Step:
        async def play(conn: Conn, _: Request) -> None:
            await conn.send(stream_head() + b"".join(map(chunk, events)))
            await conn.close()

        return play

    calls, steps = {}, []
    for api, events in (("anthropic", MESSAGES), ("openai", CHAT)):
        for where, half in (("between", []), ("within", [events[-1][:20]])):
            calls[f"{api} {where}"] = {
                "api": api,
                "key": "sk-test-client",
                "model": "claude-2",
                "stream": True,
            }
            steps.append(cut(events[:-1] + half))
    up = await upstream(*steps)
    p = await proxy(
        providers={"main": {"base_urls": {"anthropic": up.url, "openai": f"{up.url}/v1"}}},
        default_providers={"anthropic": "main", "openai": "main"},
    )
    seen = await run_node(SDKS, "errors", f"http://127.0.0.1:{p.port}", json.dumps(calls))
    told = {name: (each["events"], each["class"], each["type"]) for name, each in seen.items()}
    assert told == {
        "anthropic between": (len(MESSAGES) - 1, "APIError", "api_error"),
        "anthropic within": (len(MESSAGES) - 1, "TypeError", None),
        "openai between": (len(CHAT) - 1, "APIError", "server_error"),
        "openai within": (len(CHAT) - 1, "TypeError", None),
    }
    assert {each["status"] for each in seen.values()} == {None}
    assert seen["openai within"]["message"] == seen["anthropic within"]["message"] == "terminated"
