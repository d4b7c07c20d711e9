"""Pings keep a silent stream alive: between events only, never where they could be taken for something else.

That a ping does not come can only be seen while pings come elsewhere. So every such test has a second stream,
the clock: when it has had three pings, three intervals have passed.
"""

from __future__ import annotations

import asyncio

import pytest
from rawclient import PATIENCE, Client, asked, get, post
from running import Proxy, StartProxy, StartUpstream
from scripted import (
    COMPLETION_EVENTS,
    COMPLETION_EVENTS_2023_01_01,
    JSON_TYPE,
    LAST_CHUNK,
    MESSAGE_EVENTS,
    PING,
    SSE_TYPE,
    Conn,
    Request,
    Step,
    chunk,
    head,
    stream_head,
)

MESSAGES = "/anthropic/v1/messages"
SHORT = 0.05
FIRST = MESSAGE_EVENTS[0]


def silent_after(*sent: bytes) -> Step:
    """A step that sends these bytes, each by itself, and then nothing more until the proxy leaves."""

    async def play(conn: Conn, _: Request) -> None:
        for data in sent:
            await conn.send(data)
            await asyncio.sleep(0)
        await conn.gone()

    return play


async def ask(p: Proxy) -> Client:
    """A client that has asked for a stream."""
    client = await p.connect()
    await client.send(post(MESSAGES, asked(stream=True)))
    return client


async def three_intervals(clock: Client) -> None:
    """Returns when the clock's stream has had three more pings."""
    for _ in range(3):
        await clock.read_until(PING)


async def with_clock(upstream: StartUpstream, proxy: StartProxy, *sent: bytes) -> tuple[Client, Client]:
    """A client of a stream that gets `sent` and then silence, and the clock."""
    up = await upstream(silent_after(stream_head()), silent_after(*sent))
    p = await proxy(up, ping_interval=SHORT)
    clock = await ask(p)
    await clock.head()
    return await ask(p), clock


# Where a ping comes.


async def test_a_silent_stream_gets_pings(upstream: StartUpstream, proxy: StartProxy) -> None:
    """The provider's own ping event, in a chunk of its own, again and again, and the log counts them."""
    go_on = asyncio.Event()

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(stream_head() + chunk(FIRST))
        await go_on.wait()
        await conn.send(b"".join(map(chunk, MESSAGE_EVENTS[1:])) + LAST_CHUNK)

    up = await upstream(step)
    p = await proxy(up, ping_interval=SHORT)
    client = await ask(p)
    await client.head()
    assert [await anext(client) for _ in range(4)] == [FIRST, PING, PING, PING]
    go_on.set()
    response = await client.rest()
    pings = response.body.count(PING) - MESSAGE_EVENTS.count(PING)
    assert response.body.replace(PING, b"") == b"".join(MESSAGE_EVENTS).replace(PING, b"")
    assert response.complete
    assert (await p.line())["pings"] == pings >= 3


async def test_a_stream_without_an_event_yet_gets_pings(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Between the head and the first event there is a place for a ping too."""
    up = await upstream(silent_after(stream_head()))
    client = await ask(await proxy(up, ping_interval=SHORT))
    assert (await client.head()).status == 200
    assert await client.read_until(PING) == PING


BETWEEN: dict[str, bytes] = {
    "LF LF": b"event: a\ndata: 1\n\n",
    "CRLF CRLF": b"event: a\r\ndata: 1\r\n\r\n",
    "CR CR": b"event: a\rdata: 1\r\r",
    "LF CRLF": b"data: 1\n\r\n",
    "CRLF LF": b"data: 1\r\n\n",
    "comment": b": comment\n\n",
    "many blank lines": b"data: 1\n\n\n\n",
    "several events": FIRST * 3,
    "large": b"data: " + b"x" * 100_000 + b"\n\n",
}


@pytest.mark.parametrize("chunking", ["whole", "byte by byte", "end in two chunks"])
@pytest.mark.parametrize("state", BETWEEN)
async def test_a_ping_comes_between_events(
    upstream: StartUpstream, proxy: StartProxy, state: str, chunking: str
) -> None:
    """After a blank line, in every spelling, over any chunking; and what came before is whole."""
    data = BETWEEN[state]
    if chunking == "whole":
        pieces = [data]
    elif chunking == "end in two chunks":
        pieces = [data[:-1], data[-1:]]
    else:
        pieces = [data[:-64], *(data[i : i + 1] for i in range(max(0, len(data) - 64), len(data)))]
    up = await upstream(silent_after(stream_head(), *(chunk(piece) for piece in pieces if piece)))
    client = await ask(await proxy(up, ping_interval=SHORT))
    await client.head()
    seen = b""
    async with asyncio.timeout(PATIENCE):
        while len(seen.replace(PING, b"")) < len(data):
            seen += await client.read_until(PING)
    # On a slow machine there may be others before it, at other places between two events.
    begun = b""
    for part in seen.split(PING)[:-1]:
        begun += part
        assert not begun or begun.endswith((b"\n\n", b"\r\r", b"\n\r\n")), seen
    assert begun == data


@pytest.mark.parametrize(
    "path",
    ["/anthropic/v1/complete", "/v1/complete", "/v1/messages", "/anthropic/v1/messages?beta=true"],
)
@pytest.mark.parametrize("event", [COMPLETION_EVENTS[0], COMPLETION_EVENTS_2023_01_01[0], FIRST])
async def test_every_stream_of_the_format_gets_the_same_ping(
    upstream: StartUpstream, proxy: StartProxy, path: str, event: bytes
) -> None:
    """Legacy streams of both versions get the event that each of their clients ignores."""
    up = await upstream(silent_after(stream_head() + chunk(event)))
    p = await proxy(up, ping_interval=SHORT)
    client = await p.connect()
    await client.send(post(path, asked(stream=True)))
    await client.head()
    assert await client.read_until(PING) == event + PING


async def test_a_stream_over_get_gets_pings(upstream: StartUpstream, proxy: StartProxy) -> None:
    """It is the answer's type that makes a stream, not the request's method."""
    up = await upstream(silent_after(stream_head([(b"content-type", b"Text/Event-Stream")]) + chunk(FIRST)))
    p = await proxy(up, ping_interval=SHORT)
    client = await p.connect()
    await client.send(get("/anthropic/v1/sessions/s/events/stream", [(b"Accept", b"text/event-stream")]))
    await client.head("GET")
    assert await client.read_until(PING) == FIRST + PING


async def test_an_unframed_stream_gets_pings(upstream: StartUpstream, proxy: StartProxy) -> None:
    """A client of HTTP/1.0 has no chunks; its pings stand in the plain stream."""
    up = await upstream(silent_after(stream_head() + chunk(FIRST)))
    p = await proxy(up, ping_interval=SHORT)
    client = await p.connect()
    await client.send(post(MESSAGES, asked(stream=True)).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
    assert (await client.head()).header("transfer-encoding") is None
    assert await client.read_until(PING) == FIRST + PING


async def test_pings_come_while_a_fallback_is_still_possible(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """Holding the first event back, to see whether it is an error, does not mean silence."""
    up, backup = await upstream(silent_after(stream_head())), await upstream()
    p = await proxy(providers={"anthropic": up, "backup": backup}, ping_interval=SHORT)
    client = await p.connect()
    await client.send(post(MESSAGES, asked(stream=True, fallbacks=["backup/x"])))
    assert (await client.head()).status == 200
    assert await client.read_until(PING) == PING


# When.


async def test_the_interval_is_counted_from_the_last_byte_downstream(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """A ping comes no earlier than an interval after the last event, and the next an interval later."""
    interval = 0.3
    clock = asyncio.get_running_loop().time
    sent = []

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(stream_head())
        # Less than an interval: the event starts the interval anew.
        await asyncio.sleep(interval * 0.6)
        sent.append(clock())
        await conn.send(chunk(FIRST))
        await conn.gone()

    up = await upstream(step)
    client = await ask(await proxy(up, ping_interval=interval))
    await client.head()
    # On a slow machine the pause may have been longer than the interval.
    assert (await client.read_until(FIRST)).replace(PING, b"") == FIRST
    for count in (1, 2):
        assert await client.read_until(PING) == PING
        # The clock's grain is one millisecond at worst.
        assert clock() - sent[0] >= count * interval - 0.002


async def test_a_stream_that_is_not_silent_gets_no_ping(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Events that come faster than the interval leave no room for one."""
    turns = asyncio.Semaphore(0)

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(stream_head())
        for _i in range(50):
            await conn.send(chunk(FIRST))
            await turns.acquire()
        await conn.send(LAST_CHUNK)

    up = await upstream(step)
    client = await ask(await proxy(up, ping_interval=5))
    await client.head()
    async for event in client.chunks():
        assert event == FIRST
        turns.release()
    assert (await client.rest()).body == FIRST * 50


# Where it does not come.

INSIDE: dict[str, bytes] = {
    "a name": b"event: content_block_delta",
    "a line": b"event: content_block_delta\n",
    "a line with CRLF": b"event: content_block_delta\r\n",
    "a line with CR": b"event: content_block_delta\r",
    "data": b'event: a\ndata: {"type":',
    "data with a blank line escaped": b'event: a\ndata: "\\n\\n',
    "the last line": b"event: a\ndata: 1\n",
    "the last line with CRLF": b"event: a\r\ndata: 1\r\n",
    "half of CRLF CRLF": b"event: a\r\ndata: 1\r\n\r",
    "the next event": FIRST + b"event: b",
    "a comment": b": comment\n",
    "one byte": b"e",
}


@pytest.mark.parametrize("pieces", [1, 2], ids=["one chunk", "two chunks"])
@pytest.mark.parametrize("state", INSIDE)
async def test_no_ping_inside_an_event(
    upstream: StartUpstream, proxy: StartProxy, state: str, pieces: int
) -> None:
    """Half an event stays half an event, however long its rest takes."""
    data = INSIDE[state]
    parts = [data] if pieces == 1 else [data[:-1], data[-1:]]
    sent = (chunk(part) for part in parts if part)
    client, clock = await with_clock(upstream, proxy, stream_head(), *sent)
    await client.head()
    assert (await client.read_until(data)).endswith(data)
    await three_intervals(clock)
    assert client.received.endswith(data)


ENDS = {
    "message_stop": MESSAGE_EVENTS[-1],
    "[DONE]": COMPLETION_EVENTS_2023_01_01[-1],
    "CRLF": MESSAGE_EVENTS[-1].replace(b"\n", b"\r\n"),
}


@pytest.mark.parametrize("end", ENDS)
async def test_no_ping_after_the_end(upstream: StartUpstream, proxy: StartProxy, end: str) -> None:
    """After a stream's own last event nothing may follow, though the connection is still open."""
    client, clock = await with_clock(upstream, proxy, stream_head() + chunk(FIRST), chunk(ENDS[end]))
    await client.head()
    await client.read_until(ENDS[end])
    await three_intervals(clock)
    assert client.received.endswith(ENDS[end])
    # On a slow machine there may be pings before the end.
    assert client.received.replace(PING, b"") == FIRST + ENDS[end]


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"zstd"])
async def test_no_ping_in_a_compressed_stream(
    upstream: StartUpstream, proxy: StartProxy, coding: bytes
) -> None:
    """What looks like a boundary in compressed bytes is none."""
    compressed = stream_head([SSE_TYPE, (b"Content-Encoding", coding)]) + chunk(b"\x1f\x8b..\n\n")
    client, clock = await with_clock(upstream, proxy, compressed)
    await client.head()
    assert await client.read_until(b"\n\n") == b"\x1f\x8b..\n\n"
    await three_intervals(clock)
    assert client.received == b"\x1f\x8b..\n\n"


async def test_no_ping_in_an_answer_that_is_no_stream(upstream: StartUpstream, proxy: StartProxy) -> None:
    """A JSON answer that pauses is left alone, even after a blank line."""
    slow = head(200, [JSON_TYPE, (b"Transfer-Encoding", b"chunked")]) + chunk(b'{"a":1,\n\n')
    client, clock = await with_clock(upstream, proxy, slow)
    await client.head()
    await client.read_until(b"\n\n")
    await three_intervals(clock)
    assert client.received == b'{"a":1,\n\n'


async def test_no_ping_before_the_head(upstream: StartUpstream, proxy: StartProxy) -> None:
    """While upstream has not answered nothing is promised, so nothing is sent."""
    client, clock = await with_clock(upstream, proxy)
    await three_intervals(clock)
    assert bytes(client.wire.everything) == b""


async def test_interval_zero_disables_pings(upstream: StartUpstream, proxy: StartProxy) -> None:
    """`ping_interval: 0` means none."""
    up = await upstream(silent_after(stream_head()), silent_after(stream_head() + chunk(FIRST)))
    clock = await ask(await proxy(up, ping_interval=SHORT))
    await clock.head()
    client = await ask(await proxy(up, ping_interval=0))
    await client.head()
    await client.read_until(FIRST)
    await three_intervals(clock)
    assert client.received == FIRST
