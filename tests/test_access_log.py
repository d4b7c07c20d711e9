"""The access log: one JSON line per request, whatever its end, with what happened and without any secret."""

from __future__ import annotations

import asyncio
import datetime
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from rawclient import asked, get, post, request_head
from running import StartProxy, StartUpstream, keyed
from scripted import (
    COMPLETION_EVENTS,
    JSON_TYPE,
    LAST_CHUNK,
    MESSAGE,
    MESSAGE_EVENTS,
    Conn,
    Request,
    answer,
    chunk,
    raw,
    refusal,
    sse,
    stream_head,
    streamed,
)

MESSAGES = "/anthropic/v1/messages"
ONCE = {"max_retries": 0}
FIELDS = [
    "time",
    "request_id",
    "method",
    "path",
    "wire_format",
    "status",
    "ending",
    "attempts",
    "model",
    "provider",
    "served_model",
    "stream",
    "bytes_in",
    "bytes_out",
    "head_ms",
    "first_ms",
    "total_ms",
    "pings",
    "usage",
    "cost",
    "virtual_key",
    "key",
    "upstream_request_id",
]


async def test_a_line_says_what_happened(upstream: StartUpstream, proxy: StartProxy) -> None:
    """All fields of a request that a fallback answered."""
    up = await upstream(refusal(529))
    backup = await upstream(answer(200, [JSON_TYPE, (b"request-id", b"req_backup")], MESSAGE))
    p = await proxy(providers={"anthropic": up, "backup": backup}, network=ONCE)
    body = asked(fallbacks=["backup/claude-3"])
    started = datetime.datetime.now(datetime.UTC)
    response = await p.post(MESSAGES + "?beta=true", body)
    line = await p.line()
    assert list(line) == FIELDS
    assert line["request_id"].startswith("req_")
    assert (line["method"], line["path"], line["wire_format"]) == ("POST", MESSAGES, "anthropic")
    assert (line["status"], line["ending"], line["stream"], line["pings"]) == (200, "--", False, 0)
    assert line["attempts"] == ["anthropic/claude-2:529", "backup/claude-3:200"]
    assert (line["model"], line["provider"], line["served_model"]) == ("claude-2", "backup", "claude-3")
    assert (line["bytes_in"], line["bytes_out"]) == (len(body), len(response.raw))
    assert line["usage"] == {"input_tokens": 12, "output_tokens": 6}
    assert line["upstream_request_id"] == "req_backup"
    at = datetime.datetime.fromisoformat(line["time"])
    assert at.tzinfo is not None
    assert abs((at - started).total_seconds()) < 10


async def test_times_are_in_order(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Milliseconds to upstream's head, to its first bytes, and in all."""
    pauses = [asyncio.Event(), asyncio.Event(), asyncio.Event()]

    async def step(conn: Conn, _: Request) -> None:
        await pauses[0].wait()
        await conn.send(stream_head())
        await pauses[1].wait()
        await conn.send(chunk(MESSAGE_EVENTS[0]))
        await pauses[2].wait()
        await conn.send(chunk(MESSAGE_EVENTS[-1]) + LAST_CHUNK)

    clock = asyncio.get_running_loop().time
    up = await upstream(step)
    p = await proxy(up, ping_interval=0)
    client = await p.connect()
    await client.send(post(MESSAGES, asked(stream=True)))
    await up.received()
    waited = []
    steps: list[Callable[[], Awaitable[object]]] = [
        client.head,
        lambda: client.read_until(b"\n\n"),
        client.rest,
    ]
    for pause, reached in zip(pauses, steps, strict=True):
        began = clock()
        # What is measured must be longer than the clock's grain, which is why there is a sleep here.
        await asyncio.sleep(0.03)
        waited.append((clock() - began) * 1000)
        pause.set()
        await reached()
    line = await p.line()
    assert line["head_ms"] >= waited[0] - 2
    assert line["first_ms"] >= line["head_ms"] + waited[1] - 2
    assert line["total_ms"] >= line["first_ms"] + waited[2] - 2
    assert line["stream"] is True


NESTED = {
    "input_tokens": 3,
    "cache_creation_input_tokens": 1000,
    "cache_read_input_tokens": 2000,
    "cache_creation": {"ephemeral_5m_input_tokens": 1000, "ephemeral_1h_input_tokens": 0},
    "output_tokens": 1,
    "service_tier": "standard",
}
TALK = 'They said "usage":{"input_tokens":999,"output_tokens":999}'
USAGE: dict[str, tuple[bytes, dict[str, int]]] = {
    "a message": (answer(body=MESSAGE), {"input_tokens": 12, "output_tokens": 6}),
    "a stream": (streamed(MESSAGE_EVENTS), {"input_tokens": 12, "output_tokens": 6}),
    "nested": (
        answer(body=json.dumps({"content": [{"text": TALK}], "usage": NESTED}).encode()),
        {
            "input_tokens": 3,
            "cache_creation_input_tokens": 1000,
            "cache_read_input_tokens": 2000,
            "ephemeral_1h_input_tokens": 0,
            "output_tokens": 1,
        },
    ),
    "nested, in a stream": (
        streamed(
            [
                sse("message_start", {"type": "message_start", "message": {"usage": NESTED}}),
                sse("content_block_delta", {"delta": {"type": "text_delta", "text": TALK}}),
                sse("message_delta", {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 70}}),
            ]
        ),
        {
            "input_tokens": 3,
            "cache_creation_input_tokens": 1000,
            "cache_read_input_tokens": 2000,
            "ephemeral_1h_input_tokens": 0,
            "output_tokens": 70,
        },
    ),
    "bytes one by one": (
        stream_head() + b"".join(chunk(bytes([byte])) for byte in b"".join(MESSAGE_EVENTS)) + LAST_CHUNK,
        {"input_tokens": 12, "output_tokens": 6},
    ),
    "a legacy stream": (streamed(COMPLETION_EVENTS), {}),
    "an error": (refusal(400, message=TALK), {}),
}


@pytest.mark.parametrize("case", USAGE)
async def test_token_usage_is_seen_passing(upstream: StartUpstream, proxy: StartProxy, case: str) -> None:
    """The provider's own counts, from JSON and from streams, not from what somebody says about usage."""
    sent, usage = USAGE[case]
    p = await proxy(await upstream(sent))
    await p.post(MESSAGES, asked(stream="stream" in case))
    assert (await p.line())["usage"] == usage


async def test_one_line_per_request(upstream: StartUpstream, proxy: StartProxy) -> None:
    """As many lines as requests, each whole, each with an id of its own; own routes are requests too."""
    count = 100
    up = await upstream(*[answer(body=MESSAGE)] * count)
    p = await proxy(up)
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(p.post(MESSAGES, asked()))
    await p.get("/health")
    await p.get("/unknown")
    lines = [await p.line() for _ in range(count + 2)]
    await p.stop()
    assert len(p.lines) == count + 2
    assert len({line["request_id"] for line in lines}) == count + 2
    assert sorted(line["status"] for line in lines) == [200] * (count + 1) + [404]


async def test_lines_are_written_when_the_proxy_stops(upstream: StartUpstream, proxy: StartProxy) -> None:
    """What has ended before `stop` returns is in the log by then."""
    up = await upstream(*[answer(body=MESSAGE)] * 10)
    p = await proxy(up)
    client = await p.connect()
    await client.send(post(MESSAGES, asked()) * 10)
    for _ in range(10):
        assert (await client.response()).status == 200
    await p.stop()
    assert len(p.lines) == 10


async def resets(conn: Conn) -> None:
    await conn.request()
    conn.reset()


async def cuts(conn: Conn) -> None:
    await conn.request()
    await conn.send(answer(body=MESSAGE)[:-1])
    await conn.close()


async def silent(conn: Conn) -> None:
    await conn.request()
    await conn.gone()


async def stops(conn: Conn) -> None:
    await conn.request()
    await conn.send(answer(body=MESSAGE)[:-1])
    await conn.gone()


GOOD = post(MESSAGES, asked())
ENDINGS: dict[str, tuple[bytes, Any, str, int | None]] = {
    "complete": (GOOD, answer(body=MESSAGE), "--", 200),
    "an error of upstream's": (GOOD, refusal(400), "--", 400),
    "a bad body": (post(MESSAGES, b"{"), None, "DP", 400),
    "no such path": (get("/unknown"), None, "DP", 404),
    "not HTTP": (b"nonsense\r\n\r\n", None, "DR", 400),
    "too large": (post(MESSAGES, b"x" * 5000), None, "DR", 413),
    "no answer": (GOOD, raw(resets), "UH", 502),
    "no answer in time": (GOOD, raw(silent), "uH", 504),
    "half an answer": (GOOD, raw(cuts), "UD", None),
    "half an answer in time": (GOOD, raw(stops), "uD", None),
}


@pytest.mark.parametrize("case", ENDINGS)
async def test_the_ending_says_who_and_when(upstream: StartUpstream, proxy: StartProxy, case: str) -> None:
    """Two letters: who ended the request, and in which phase; a small letter where a timer ran out."""
    request, step, ending, status = ENDINGS[case]
    up = await upstream(*([step] if step else []))
    # Only where a timer is to run out may it, however slow the machine is.
    seconds = 0.2 if ending[0] == "u" else 60
    network = {"max_retries": 0, "first_byte_timeout": seconds, "idle_timeout": seconds}
    p = await proxy(up, network=network, max_body_bytes=4000)
    response = await p.ask(request)
    line = await p.line()
    # Half an answer may be seen cut before its head goes down; then it is a whole error of ours.
    cut_early = status is None and response.complete
    assert line["ending"] == (ending if not cut_early else ending[0] + line["ending"][1])
    assert line["status"] == response.status == (status or (502 if cut_early else 200))
    assert ("error" in line) == (ending != "--")


async def test_connecting_is_a_phase_of_its_own(proxy: StartProxy, closed_port: int) -> None:
    """Whether upstream was reached at all is what one asks first."""
    p = await proxy({"base_urls": {"anthropic": f"http://127.0.0.1:{closed_port}"}}, network=ONCE)
    assert (await p.post(MESSAGES, asked())).status == 502
    line = await p.line()
    assert (line["ending"], line["attempts"]) == ("UC", ["anthropic/claude-2:connect"])


async def test_an_error_of_ours_is_in_its_line(upstream: StartUpstream, proxy: StartProxy) -> None:
    """The id that the client was told finds the line, and the line holds the same message."""
    p = await proxy(await upstream())
    response = await p.post(MESSAGES, b'{"model":1}')
    error = json.loads(response.body)
    line = await p.line()
    assert (line["request_id"], line["error"]) == (error["request_id"], error["error"]["message"])


# Client text.


async def test_client_text_cannot_break_a_line(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Line ends and control bytes in a model's name, and quotes in a path, stay inside one JSON string."""
    up = await upstream(answer(body=MESSAGE), answer(body=b"{}"))
    p = await proxy(up)
    model = 'm"\n{"forged":1}\r\n\x1b[31m\u2028'
    await p.post(MESSAGES, asked(model))
    path = '/anthropic/v1/x"y%0a'
    await p.ask(request_head("GET", path, [(b"Host", b"h")]), "GET")
    first, second = await p.line(), await p.line()
    assert first["model"] == model
    assert second["path"] == path
    await p.stop()
    assert len(p.lines) == 2


async def test_client_text_is_cut(upstream: StartUpstream, proxy: StartProxy) -> None:
    """A name of a megabyte does not make a line of a megabyte."""
    up = await upstream(answer(body=MESSAGE))
    # Whether such a name is refused is another matter.
    up.allow_unused = True
    p = await proxy(up)
    response = await p.post(MESSAGES, asked("m" * 1_000_000))
    assert response.status in (200, 400)
    await p.line()
    assert len(p.log_text) < 5000


async def test_no_secret_is_logged(upstream: StartUpstream, proxy: StartProxy, closed_port: int) -> None:
    """Keys in headers, query, path and body, on requests that work and on requests that fail."""
    up = await upstream(answer(body=MESSAGE), refusal(401), answer(body=MESSAGE))
    p = await proxy(
        providers={
            "anthropic": keyed(up, "main"),
            "dead": {"base_urls": {"anthropic": f"http://127.0.0.1:{closed_port}"}},
        },
        network=ONCE,
    )
    secret = [
        (b"Authorization", b"Bearer sk-test-bearer"),
        (b"Cookie", b"key=sk-test-cookie"),
        (b"X-Other", b"sk-test-other"),
    ]
    body = asked(metadata={"key": "sk-test-body"})
    for path in (MESSAGES, MESSAGES + "?key=sk-test-query"):
        await p.post(path, body, secret)
    await p.post("/anthropic/v1/keys/sk-test-path", body, secret)
    await p.post("/unknown?key=sk-test-query", body, secret)
    await p.post(MESSAGES, asked("dead/x"), secret)
    await p.post(MESSAGES, b'{"model":"sk-test-model","x":sk-test-broken}', secret)
    await p.ask(b"GET / HTTP/1.1\r\nx-api-key sk-test-line\r\n\r\n", "GET")
    await p.ask(b"sk-test-method / HTTP/9.9\r\n\r\n", "GET")
    await p.stop()
    assert "sk-test" not in p.log_text
    assert len(p.lines) == 8
