"""Claude Code itself works through the proxy: its requests arrive as it sent them, and it reads the answers.

Facts
  - With ANTHROPIC_API_KEY it sends ``x-api-key``, with ANTHROPIC_AUTH_TOKEN ``Authorization: Bearer``.
  - CLAUDE_CODE_ENABLE_GATEWAY_MODEL_DISCOVERY has it ask a gateway for its models;
    CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC switches off updates, telemetry and reports (code.claude.com,
    environment variables).
  - After a stream that broke off it asks again, as a rule without a stream. A 401 it repeats for minutes.

Rules
  1. It runs in a home of its own, with nothing of the environment of whoever runs the tests.
  2. All that it asks of other hosts would go to an HTTP proxy of ours, which fails the test.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from environments import printed
from hop import StartHop, elsewhere, hop
from node import DIRECT, NpmPackages, node, npm_packages
from running import StartProxy, StartUpstream, keyed
from scripted import (
    LAST_CHUNK,
    MESSAGE,
    MESSAGE_EVENTS,
    PING,
    Conn,
    Request,
    answer,
    chunk,
    refusal,
    sse,
    stream_head,
    streamed,
)

__all__ = ["elsewhere", "hop", "node", "npm_packages"]

pytestmark = pytest.mark.timeout(300)
"""The program is installed first, and is large."""

CLAUDE_CODE = "@anthropic-ai/claude-code@2.1.330"
MODEL = "claude-opus-5-5"
VIRTUAL_KEY = "sk-bf-sk-test-alice"
OURS = ("host", "connection", "content-length", "x-api-key", "authorization", "accept-encoding")
"""Fields of a stream's request that are each hop's own, or the proxy's."""

Claude = Callable[..., Awaitable[dict[str, Any]]]


@pytest.fixture
def claude(npm_packages: NpmPackages, elsewhere: str, tmp_path: Path) -> Claude:
    """Runs ``claude -p`` with an API at a port: ``await claude(h.port, "Say hello", ANTHROPIC_API_KEY=...)``.

    Returns the result that it printed. Keyword arguments are environment variables.
    """

    async def ask(
        port: int, prompt: str, *arguments: str, fails: bool = False, **variables: str
    ) -> dict[str, Any]:
        packages = await asyncio.to_thread(npm_packages, CLAUDE_CODE)
        environ = {
            "HOME": str(tmp_path),
            "PATH": "/usr/bin:/bin",
            "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{port}/anthropic",
            "ANTHROPIC_MODEL": MODEL,
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "HTTP_PROXY": elsewhere,
            "HTTPS_PROXY": elsewhere,
            **DIRECT,
            **variables,
        }
        program = str(packages / "node_modules" / ".bin" / "claude")
        command = [program, "-p", prompt, "--output-format", "json", *arguments]
        said = dict(json.loads(await printed(command, environ, tmp_path, code=int(fails))))
        assert said["is_error"] is fails
        return said

    return ask


def fields_of(request: Request) -> list[tuple[bytes, bytes]]:
    """The field lines that pass unchanged, in order."""
    return [
        (name, value)
        for name, value in request.headers
        if name.decode().lower() not in OURS and not name.startswith(b"x-bf-")
    ]


def assert_verbatim(sent: list[Request], came: list[Request]) -> None:
    """What came upstream is what was sent: paths below the prefix, bodies, and fields that are not ours."""
    assert [request.target.removeprefix(b"/anthropic") for request in sent] == [r.target for r in came]
    assert [request.body for request in sent] == [request.body for request in came]
    assert [fields_of(request) for request in sent] == [fields_of(request) for request in came]
    assert all(request.header("anthropic-beta") for request in came if request.method == "POST")


async def test_a_message_with_an_api_key(
    upstream: StartUpstream, proxy: StartProxy, hop: StartHop, claude: Claude
) -> None:
    """Its request arrives byte for byte, with every beta header and without its key; it prints the answer."""
    up = await upstream(streamed(MESSAGE_EVENTS))
    p = await proxy(keyed(up, "main"))
    h = await hop(p.port)
    said = await claude(h.port, "Say hello", ANTHROPIC_API_KEY="sk-test-client")
    assert (said["result"], said["usage"]["output_tokens"]) == ("Hello there.", 6)
    assert_verbatim(h.requests, up.requests)
    (sent,), (came,) = h.requests, up.requests
    assert (sent.header("x-api-key"), came.header("x-api-key")) == (b"sk-test-client", b"sk-test-main")
    assert b"sk-test-client" not in came.raw
    line = await p.line()
    assert (line["status"], line["stream"], line["ending"]) == (200, True, "--")


ROUND = [
    MESSAGE_EVENTS[0],
    sse(
        "content_block_start",
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "thinking", "thinking": "", "signature": ""},
        },
    ),
    sse(
        "content_block_delta",
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "thinking_delta", "thinking": "I must read »note.txt« 🙂."},
        },
    ),
    sse(
        "content_block_delta",
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "signature_delta", "signature": "c2lnbmVkIGJ5/dXBzdHJlYW0+MQ=="},
        },
    ),
    sse("content_block_stop", {"type": "content_block_stop", "index": 0}),
    sse(
        "content_block_start",
        {
            "type": "content_block_start",
            "index": 1,
            "content_block": {"type": "tool_use", "id": "toolu_01", "name": "Bash", "input": {}},
        },
    ),
    sse(
        "content_block_delta",
        {
            "type": "content_block_delta",
            "index": 1,
            "delta": {"type": "input_json_delta", "partial_json": '{"command": "cat note.txt"'},
        },
    ),
    sse(
        "content_block_delta",
        {
            "type": "content_block_delta",
            "index": 1,
            "delta": {"type": "input_json_delta", "partial_json": ', "description": "Read the note"}'},
        },
    ),
    sse("content_block_stop", {"type": "content_block_stop", "index": 1}),
    sse(
        "message_delta",
        {
            "type": "message_delta",
            "delta": {"stop_reason": "tool_use", "stop_sequence": None},
            "usage": {"output_tokens": 20},
        },
    ),
    MESSAGE_EVENTS[-1],
]
"""A message that thinks, signs its thoughts, and wants a tool to be used."""


async def test_a_round_with_a_tool(
    upstream: StartUpstream, proxy: StartProxy, hop: StartHop, claude: Claude, tmp_path: Path
) -> None:
    """It uses the tool that the first answer names; result and signed thoughts go up with its next one."""
    (tmp_path / "note.txt").write_text("The word is xyzzy.\n")
    up = await upstream(streamed(ROUND), streamed(MESSAGE_EVENTS))
    p = await proxy(keyed(up, "main"))
    h = await hop(p.port)
    allowed = ("--allowedTools", "Bash(cat:*)")
    said = await claude(h.port, "What does the note say?", *allowed, ANTHROPIC_API_KEY="sk-test-client")
    assert (said["result"], said["num_turns"]) == ("Hello there.", 2)
    assert_verbatim(h.requests, up.requests)
    messages = json.loads(up.requests[1].body)["messages"]
    (thought,) = (part for part in messages[-2]["content"] if part["type"] == "thinking")
    assert thought["thinking"] == "I must read »note.txt« 🙂."
    assert thought["signature"] == "c2lnbmVkIGJ5/dXBzdHJlYW0+MQ=="
    (result,) = (part for part in messages[-1]["content"] if part["type"] == "tool_result")
    assert result["tool_use_id"] == "toolu_01"
    assert "The word is xyzzy." in json.dumps(result["content"])


async def test_with_a_virtual_key(
    upstream: StartUpstream, proxy: StartProxy, hop: StartHop, claude: Claude
) -> None:
    """A virtual key is its bearer token, for its list of models too; upstream sees the provider's key."""
    models = json.dumps({"data": [{"type": "model", "id": MODEL}], "has_more": False}).encode()

    async def play(conn: Conn, request: Request) -> None:
        # It does not wait for the one before it asks the other.
        await conn.send(answer(body=models) if request.method == "GET" else streamed(MESSAGE_EVENTS))

    up = await upstream(play, play)
    key = {"value": "env.ALICE", "provider_configs": [{"provider": "anthropic", "allowed_models": [MODEL]}]}
    p = await proxy(
        keyed(up, "main"),
        virtual_keys={"alice": key},
        require_virtual_key=True,
        environ={"ALICE": VIRTUAL_KEY},
    )
    h = await hop(p.port)
    said = await claude(
        h.port,
        "Say hello",
        ANTHROPIC_AUTH_TOKEN=VIRTUAL_KEY,
        CLAUDE_CODE_ENABLE_GATEWAY_MODEL_DISCOVERY="1",
    )
    assert said["result"] == "Hello there."
    # It may have left before its list of models was whole.
    await p.stop()
    # On two connections, so in any order.
    sent, came = (sorted(requests, key=lambda each: each.method) for requests in (h.requests, up.requests))
    assert_verbatim(sent, came)
    assert [request.target for request in came] == [b"/v1/models?limit=1000", b"/v1/messages?beta=true"]
    assert {request.header("authorization") for request in sent} == {b"Bearer " + VIRTUAL_KEY.encode()}
    for request in came:
        assert (request.header("x-api-key"), request.header("authorization")) == (b"sk-test-main", None)
        assert b"sk-bf" not in request.raw
    assert [line["virtual_key"] for line in p.lines] == ["alice", "alice"]


async def test_pings_while_the_model_is_silent(
    upstream: StartUpstream, proxy: StartProxy, hop: StartHop, claude: Claude
) -> None:
    """With pings at every boundary of a stream it prints the same answer, and asks once."""
    events = [event for event in MESSAGE_EVENTS if event != PING]
    up = await upstream()
    p = await proxy(keyed(up, "main"), ping_interval=0.01)
    h = await hop(p.port)

    async def play(conn: Conn, _: Request) -> None:
        await conn.send(stream_head())
        for event in events:
            await h.answered(PING, h.answers.count(PING) + 1)
            await conn.send(chunk(event))
            await h.answered(event, 1)
        await conn.send(LAST_CHUNK)

    up.then(play)
    said = await claude(h.port, "Say hello", ANTHROPIC_API_KEY="sk-test-client")
    assert said["result"] == "Hello there."
    assert (await p.line())["pings"] >= len(events)


FALLBACKS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "the config": ({"models": {MODEL: [f"anthropic/{MODEL}", "backup/other-model"]}}, {}),
    "a header": ({}, {"ANTHROPIC_CUSTOM_HEADERS": "x-bf-fallbacks: backup/other-model"}),
}
"""Who names the second provider: settings of the proxy, variables of the program."""


@pytest.mark.parametrize("where", FALLBACKS)
async def test_an_overloaded_provider_is_not_seen(
    upstream: StartUpstream, proxy: StartProxy, hop: StartHop, claude: Claude, where: str
) -> None:
    """A 529 of the primary is answered by the second provider; in what that gets only `model` differs."""
    settings, variables = FALLBACKS[where]
    up = await upstream(refusal(529, "overloaded_error"))
    backup = await upstream(streamed(MESSAGE_EVENTS))
    p = await proxy(
        providers={"anthropic": keyed(up, "main"), "backup": keyed(backup, "spare")},
        network={"max_retries": 0},
        **settings,
    )
    h = await hop(p.port)
    said = await claude(h.port, "Say hello", ANTHROPIC_API_KEY="sk-test-client", **variables)
    assert said["result"] == "Hello there."
    assert_verbatim(h.requests, up.requests)
    (sent,), (came,) = h.requests, backup.requests
    name = b'"model":"%s"' % MODEL.encode()
    assert sent.body.count(name) == 1
    assert came.body == sent.body.replace(name, b'"model":"other-model"')
    assert fields_of(came) == fields_of(sent)


async def test_an_error_of_ours_is_shown(upstream: StartUpstream, proxy: StartProxy, claude: Claude) -> None:
    """Who has no virtual key is told so, in our words."""
    p = await proxy(await upstream(), require_virtual_key=True)
    said = await claude(p.port, "Say hello", fails=True, ANTHROPIC_API_KEY="sk-test-client")
    assert said["api_error_status"] == 401
    assert "virtual_key_required" in said["result"]


async def test_a_cut_stream_is_no_answer(
    upstream: StartUpstream, proxy: StartProxy, hop: StartHop, claude: Claude
) -> None:
    """Where upstream breaks off, it asks again; what it got before is not its answer."""
    up = await upstream()
    p = await proxy(keyed(up, "main"))
    h = await hop(p.port)

    async def cut(conn: Conn, _: Request) -> None:
        await conn.send(stream_head() + b"".join(map(chunk, MESSAGE_EVENTS[:4])))
        await h.answered(MESSAGE_EVENTS[3], 1)
        conn.reset()

    async def whole(conn: Conn, request: Request) -> None:
        # With a stream or without: that depends on whether it saw our error event before the reset.
        stream = json.loads(request.body).get("stream")
        reply = streamed(MESSAGE_EVENTS) if stream else answer(body=MESSAGE)
        await conn.send(reply.replace(b"Hello", b"Again"))

    up.then(cut, whole)
    said = await claude(h.port, "Say hello", ANTHROPIC_API_KEY="sk-test-client")
    assert said["result"] == "Again there."
    assert [(await p.line())["ending"] for _ in h.requests] == ["UD", "--"]
