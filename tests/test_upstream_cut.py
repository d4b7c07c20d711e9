"""An answer that upstream does not finish never looks finished downstream.

SDKs report a clean end as success, so a cut answer ends with a reset; where a stream stands between events an
``error`` event comes first, because SDKs show that to their users.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import pytest
from rawclient import Body, Response, asked, post
from running import Proxy, StartProxy, StartUpstream
from scripted import (
    COMPLETION_EVENTS_2023_01_01,
    JSON_TYPE,
    LAST_CHUNK,
    MESSAGE,
    MESSAGE_EVENTS,
    PING,
    SSE_TYPE,
    Conn,
    Request,
    answer,
    chunk,
    head,
    stream_head,
)

MESSAGES = "/anthropic/v1/messages"
FIRST = MESSAGE_EVENTS[0]

clock = time.monotonic

AFTER: dict[str, tuple[bytes, bool]] = {
    "the head": (b"", True),
    "an event": (FIRST, True),
    "an event with CRLF": (FIRST.replace(b"\n", b"\r\n"), True),
    "two events": (FIRST + MESSAGE_EVENTS[1], True),
    "a line": (FIRST + b"event: content_block_delta\n", False),
    "half an event": (FIRST + MESSAGE_EVENTS[3][:-2], False),
    "all of it but a line end": (FIRST + MESSAGE_EVENTS[3][:-1], False),
    "half a letter": (FIRST + b"data: \xc3", False),
    "its own end": (b"".join(MESSAGE_EVENTS), False),
    "its own end in 2023": (b"".join(COMPLETION_EVENTS_2023_01_01), False),
}
"""What a stream had sent when it was cut, and whether an error event has its place there."""


async def fin(conn: Conn) -> None:
    await conn.close()


async def rst(conn: Conn) -> None:
    conn.reset()


async def silence(conn: Conn) -> None:
    await conn.gone()


async def garbage(conn: Conn) -> None:
    await conn.send(b"zz\r\n")
    await conn.gone()


CUTS: dict[str, Callable[[Conn], Awaitable[None]]] = {
    "FIN": fin,
    "RST": rst,
    "silence": silence,
    "garbage": garbage,
}
"""How it was cut. After garbage upstream stays connected: the proxy must not wait for more."""


def error_of(event: bytes) -> dict[str, dict[str, str]]:
    """The data of an error event as the provider spells one."""
    assert event.startswith(b"event: error\ndata: "), event
    assert event.endswith(b"}\n\n")
    assert event.count(b"\n") == 3
    data = json.loads(event.split(b"\n")[1].removeprefix(b"data: "))
    assert data["type"] == "error"
    assert data["request_id"].startswith("req_")
    return dict(data)


async def stream(p: Proxy, sent: bytes, relayed: asyncio.Event) -> Response:
    """A streamed request's answer; `relayed` is set when `sent` has come down."""
    client = await p.connect()
    await client.send(post(MESSAGES, asked(stream=True)))
    await client.head()
    await client.wire.until(lambda: client.received.startswith(sent), "what came before the cut")
    relayed.set()
    response = await client.rest()
    assert await client.eof() == "reset"
    return response


@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize("after", AFTER)
async def test_a_cut_stream_is_reset(
    upstream: StartUpstream, proxy: StartProxy, after: str, how: str
) -> None:
    """What came goes down, then an error event where one fits, then a reset; never an end."""
    sent, between = AFTER[after]
    relayed = asyncio.Event()

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(stream_head())
        for start in range(0, len(sent), 700):
            await conn.send(chunk(sent[start : start + 700]))
        await relayed.wait()
        await CUTS[how](conn)

    up = await upstream(step)
    # Only silence may meet the timer, however slow the machine is.
    p = await proxy(up, network={"idle_timeout": 0.3 if how == "silence" else 60}, ping_interval=0)
    response = await stream(p, sent, relayed)
    assert (response.complete, response.reset) == (False, True)
    assert LAST_CHUNK not in response.raw[-7:]
    assert response.body.startswith(sent)
    rest = response.body.removeprefix(sent)
    if between:
        kind = "timeout_error" if how == "silence" else "api_error"
        assert error_of(rest)["error"]["type"] == kind
    else:
        assert rest == b""
    line = await p.line()
    assert (line["status"], line["ending"]) == (200, "uD" if how == "silence" else "UD")
    assert up.arrived == 1


async def test_pings_do_not_keep_a_dead_stream_alive(upstream: StartUpstream, proxy: StartProxy) -> None:
    """`idle_timeout` counts upstream's silence; what the proxy itself writes is no sign of life."""

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(stream_head() + chunk(FIRST))
        await conn.gone()

    up = await upstream(step)
    p = await proxy(up, network={"idle_timeout": 0.5}, ping_interval=0.01)
    response = await p.post(MESSAGES, asked(stream=True))
    assert response.reset
    pings, _, event = response.body.removeprefix(FIRST).partition(b"event: error")
    # About fifty; on a machine that stands still, one at least before the timer that is due later.
    assert pings
    assert pings == PING * (len(pings) // len(PING))
    assert error_of(b"event: error" + event)["error"]["type"] == "timeout_error"


async def test_a_cut_compressed_stream_gets_no_event(upstream: StartUpstream, proxy: StartProxy) -> None:
    """In compressed bytes there is no place for an event, only for the reset."""
    data = b"\x1f\x8b..\n\n"

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(stream_head([SSE_TYPE, (b"Content-Encoding", b"gzip")]) + chunk(data))
        await conn.close()

    p = await proxy(await upstream(step))
    response = await p.post(MESSAGES, asked(stream=True))
    assert (response.body, response.complete, response.reset) == (data, False, True)


async def test_a_client_of_http_1_0_sees_the_reset(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Where the end of the connection is the end of the body, only a reset can tell a cut from an end."""

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(stream_head() + chunk(FIRST))
        await conn.close()

    p = await proxy(await upstream(step))
    request = post(MESSAGES, asked(stream=True)).replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    response = await p.ask(request)
    assert response.body.startswith(FIRST + b"event: error")
    assert (response.complete, response.reset) == (False, True)


# A cut at any byte.

EVENTS = [MESSAGE_EVENTS[4], PING, MESSAGE_EVENTS[7]]
STREAMED = b"".join(EVENTS)
BETWEEN = (b"", EVENTS[0], EVENTS[0] + EVENTS[1])
"""What of it stands between two events, where an error event has its place."""


class Answer(NamedTuple):
    """An answer as it goes over the wire. Less of it than `commit` bytes brings nothing downstream."""

    head: bytes
    body: bytes
    content: bytes
    first_event: bytes

    @property
    def stream(self) -> bool:
        return bool(self.first_event)

    def commit(self, *, fallback: bool) -> int:
        # With another target to ask, the first event of a stream is awaited.
        return len(self.head) + (len(self.first_event) if fallback else 0)


SIZED_HEAD = head(200, [JSON_TYPE, (b"Content-Length", b"%d" % len(MESSAGE))])
SIZED_STREAM_HEAD = head(200, [SSE_TYPE, (b"Content-Length", b"%d" % len(STREAMED))])
ANSWERS = {
    "a message": Answer(SIZED_HEAD, MESSAGE, MESSAGE, b""),
    "a message in chunks": Answer(
        stream_head([JSON_TYPE]), chunk(MESSAGE[:9]) + chunk(MESSAGE[9:]) + LAST_CHUNK, MESSAGE, b""
    ),
    "a stream with a length": Answer(SIZED_STREAM_HEAD, STREAMED, STREAMED, EVENTS[0]),
    "a stream in chunks": Answer(
        stream_head(),
        b"".join(map(chunk, EVENTS)) + LAST_CHUNK,
        STREAMED,
        chunk(EVENTS[0]).removesuffix(b"\r\n"),
    ),
}


def content_of(body: bytes, *, chunked: bool) -> bytes:
    """As much of the content as `body`, the beginning of one, holds."""
    taken = Body(length=None, chunked=chunked)
    taken.pull(bytearray(body))
    return bytes(taken.data)


def check_cut_at(position: int, sent: Answer, response: Response, *, fallback: bool) -> None:
    """Whether this is what must come down when upstream ends the connection behind `position` bytes."""
    if position == len(sent.head + sent.body):
        assert (response.status, response.complete, response.body) == (200, True, sent.content), position
    elif position < sent.commit(fallback=fallback):
        assert response.complete, position
        if fallback:
            assert (response.status, response.body) == (200, MESSAGE), position
            assert response.header("x-bifrost-provider") == b"backup"
        else:
            assert (response.status, response.reset) == (502, False), position
            assert json.loads(response.body)["error"]["type"] == "api_error"
    else:
        assert (response.status, response.complete, response.reset) == (200, False, True), position
        came = content_of(sent.body[: position - len(sent.head)], chunked=b"chunked" in sent.head)
        assert response.body.startswith(came), position
        rest = response.body.removeprefix(came)
        if sent.stream and came in BETWEEN:
            assert error_of(rest)["error"]["type"] == "api_error", position
        else:
            assert rest == b"", position


@pytest.mark.parametrize("fallback", [False, True], ids=["alone", "with a fallback"])
@pytest.mark.parametrize("how", ["FIN", "RST"])
@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_that_ends_at_any_byte(
    upstream: StartUpstream,
    proxy: StartProxy,
    machine: Callable[[], float],
    name: str,
    how: str,
    *,
    fallback: bool,
) -> None:
    """An error of ours or the next target's answer, then a reset, and a whole answer only for a whole one."""
    sent = ANSWERS[name]
    wire = sent.head + sent.body
    positions = range(len(wire) + 1)

    async def step(conn: Conn, request: Request) -> None:
        await conn.send(wire[: json.loads(request.body)["top_k"]])
        await CUTS[how](conn)

    async def ask(position: int) -> None:
        fallbacks = ["backup/claude-2"] if fallback else None
        async with few:
            response = await p.post(MESSAGES, asked(stream=sent.stream, fallbacks=fallbacks, top_k=position))
        check_cut_at(position, sent, response, fallback=fallback)

    few = asyncio.Semaphore(100)
    up = await upstream(*[step] * len(positions))
    backup = await upstream(*[answer(body=MESSAGE)] * sent.commit(fallback=True) * fallback)
    p = await proxy(providers={"anthropic": up, "backup": backup}, network={"max_retries": 0})
    async with asyncio.TaskGroup() as group:
        for position in positions:
            group.create_task(ask(position))
    began, late = clock(), machine()
    await up.quiet()
    assert clock() - began < 1 + machine() - late
    await p.stop()
    commit = sent.commit(fallback=fallback)
    endings = Counter(line["ending"] for line in p.lines)
    whole = {"--": commit + 1} if fallback else {"--": 1, "UH": commit}
    assert endings == {**whole, "UD": len(wire) - commit}


# Standing still.

FIRST_BYTE, IDLE = 1.0, 1.4
"""The timers, in seconds: a machine may stand still for most of one while an answer is on its way."""

LATE = 0.5
"""Seconds behind its timer within which an answer must have ended, beside what the machine itself is late."""


class Stall(NamedTuple):
    """What upstream sends before it stands still, and what of its content comes down, None without a head.

    `event` is what it means where another target can still serve; then that one does.
    """

    sends: bytes
    content: bytes | None
    event: str = ""


STALLS = {
    "before the head": Stall(b"", None, "timeout"),
    "in the status line": Stall(SIZED_HEAD[:12], None, "timeout"),
    "in a field": Stall(SIZED_HEAD[:30], None, "timeout"),
    "behind an interim answer": Stall(b"HTTP/1.1 100 Continue\r\n\r\n", None, "timeout"),
    "behind a head with a length": Stall(SIZED_HEAD, b""),
    "in a message": Stall(SIZED_HEAD + MESSAGE[:-1], MESSAGE[:-1]),
    "in a message until close": Stall(head(200, [JSON_TYPE]) + MESSAGE, MESSAGE),
    "in a message in chunks": Stall(stream_head([JSON_TYPE]) + chunk(MESSAGE), MESSAGE),
    "behind the head of a stream": Stall(stream_head(), b"", "stream_error"),
    "in the first chunk size": Stall(stream_head() + b"8", b"", "stream_error"),
    "in the first event": Stall(stream_head() + chunk(EVENTS[0][:-1]), EVENTS[0][:-1], "stream_error"),
    "in a chunk size": Stall(stream_head() + chunk(EVENTS[0]) + b"2", EVENTS[0]),
    "behind a chunk size": Stall(stream_head() + chunk(EVENTS[0]) + b"20\r\n", EVENTS[0]),
    "in an event": Stall(stream_head() + chunk(EVENTS[0]) + chunk(PING[:20]), EVENTS[0] + PING[:20]),
    "between two events": Stall(stream_head() + chunk(EVENTS[0]) + chunk(PING), EVENTS[0] + PING),
    "before the last chunk": Stall(stream_head() + b"".join(map(chunk, EVENTS)), STREAMED),
    "in the last chunk": Stall(stream_head() + b"".join(map(chunk, EVENTS)) + b"0\r\n", STREAMED),
}


def check_stall(name: str, response: Response, line: dict[str, Any], *, fallback: bool) -> None:
    """Whether a request came to what it must; `name` is also that of its model."""
    stall = STALLS[name]
    seen = (response.status, response.complete, response.reset, line["ending"], line["attempts"])
    first, backup = f"anthropic/{name}", "backup/claude-2:200"
    if stall.event and fallback:
        assert seen == (200, True, False, "--", [f"{first}:{stall.event}", backup])
        assert response.body == MESSAGE
    elif stall.content is None:
        assert seen == (504, True, False, "uH", [f"{first}:timeout"])
        assert json.loads(response.body)["error"]["type"] == "timeout_error"
    else:
        assert seen == (200, False, True, "uD", [f"{first}:200"])
        assert response.body.startswith(stall.content)
        rest = response.body.removeprefix(stall.content)
        if SSE_TYPE[1] in stall.sends and stall.content in BETWEEN:
            assert error_of(rest)["error"]["type"] == "timeout_error"
        else:
            assert rest == b""


@pytest.mark.parametrize("fallback", [False, True], ids=["alone", "with a fallback"])
async def test_an_upstream_that_stands_still(
    upstream: StartUpstream, proxy: StartProxy, machine: Callable[[], float], *, fallback: bool
) -> None:
    """In whichever phase: the right timer ends it, in time, and what came does not look whole."""

    async def step(conn: Conn, request: Request) -> None:
        await conn.send(STALLS[json.loads(request.body)["model"]].sends)
        await conn.gone()

    up = await upstream(*[step] * len(STALLS))
    backup = await upstream(*[answer(body=MESSAGE)] * sum(bool(stall.event) for stall in STALLS.values()))
    backup.allow_unused = not fallback
    p = await proxy(
        providers={"anthropic": up, "backup": backup},
        network={"max_retries": 1, "first_byte_timeout": FIRST_BYTE, "idle_timeout": IDLE},
    )
    fallbacks = ["backup/claude-2"] if fallback else None
    async with asyncio.TaskGroup() as group:
        asking = {
            name: group.create_task(p.post(MESSAGES, asked(name, stream=True, fallbacks=fallbacks)))
            for name in STALLS
        }
    began, late = clock(), machine()
    await up.quiet()
    assert clock() - began < 1 + machine() - late
    await p.stop()
    lines = {line["model"]: line for line in p.lines}
    assert len(p.lines) == len(lines) == len(STALLS)
    for name, task in asking.items():
        check_stall(name, task.result(), lines[name], fallback=fallback)
        timer = FIRST_BYTE if STALLS[name].content is None else IDLE
        assert timer <= lines[name]["total_ms"] / 1000 < timer + LATE + machine(), name


DRIBBLES = {
    "line ends": (b"", b"\r\n"),
    "bytes": (b"HTTP/1.1 200 OK\r\nX-A: ", b"b"),
    "fields": (b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"),
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}
"""How a head begins, and what then comes every 20 ms."""


@pytest.mark.parametrize("name", DRIBBLES)
async def test_a_head_that_dribbles_is_504(
    upstream: StartUpstream, proxy: StartProxy, machine: Callable[[], float], name: str
) -> None:
    """`first_byte_timeout` ends with the whole head; bytes on the way to it buy no time."""
    begin, repeated = DRIBBLES[name]

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(begin)
        while conn.open:
            await conn.send(repeated)
            await asyncio.sleep(0.02)

    p = await proxy(await upstream(step), network={"first_byte_timeout": 0.2, "max_retries": 0})
    response = await p.post(MESSAGES, asked())
    assert (response.status, json.loads(response.body)["error"]["type"]) == (504, "timeout_error")
    line = await p.line()
    assert line["ending"] == "uH"
    assert 0.2 <= line["total_ms"] / 1000 < 0.2 + LATE + machine()


@pytest.mark.parametrize("name", ANSWERS)
async def test_a_body_that_dribbles_is_whole(upstream: StartUpstream, proxy: StartProxy, name: str) -> None:
    """`idle_timeout` counts silence alone: each byte begins it anew, however long the whole takes."""
    sent, idle = ANSWERS[name], 1.0
    parts = [sent.body[start : start + 8] for start in range(0, len(sent.body), 8)]

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(sent.head)
        for part in parts:
            await conn.send(part)
            await asyncio.sleep(1.1 * idle / len(parts))

    p = await proxy(await upstream(step), network={"idle_timeout": idle}, ping_interval=0)
    response = await p.post(MESSAGES, asked(stream=sent.stream))
    assert (response.complete, response.body) == (True, sent.content)
    assert (await p.line())["total_ms"] / 1000 > idle
