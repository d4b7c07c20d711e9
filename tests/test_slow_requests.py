"""Requests that come slowly, or not at all: each phase has its time, and nobody else waits for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import pytest
from lateness import sent_at_once
from rawclient import Gone, asked, get, post, request_head
from running import Proxy, StartProxy, StartUpstream
from scripted import LAST_CHUNK, MESSAGE, Conn, answer, chunk, raw

from proxy import arrival

MESSAGES = "/anthropic/v1/messages"
FILES = "/anthropic/v1/files"
GOOD = answer(body=MESSAGE)
HEAD = get("/anthropic/v1/models")


def clock() -> float:
    return asyncio.get_running_loop().time()


async def is_well(p: Proxy) -> None:
    assert (await p.get("/health")).status == 200


# Heads.


async def test_a_connection_that_says_nothing_is_closed(
    upstream: StartUpstream, proxy: StartProxy, machine: Callable[[], float]
) -> None:
    """Without an answer: there was no question. And without a log line."""
    p = await proxy(await upstream(), head_timeout=0.2)
    began = clock()
    client = await p.connect()
    assert await client.eof() == "fin"
    assert 0.2 <= clock() - began < 2 + machine()
    assert client.leftover == b""
    await p.stop()
    assert p.lines == []


@pytest.mark.parametrize("part", [1, 20, len(HEAD) - 2], ids=["a letter", "a line", "all but the last"])
async def test_a_head_that_does_not_end_is_408(upstream: StartUpstream, proxy: StartProxy, part: int) -> None:
    """The answer says so, and the connection is closed."""
    up = await upstream()
    p = await proxy(up, head_timeout=0.2)
    client = await sent_at_once(p, HEAD[:part])
    response = await client.response("GET")
    assert (response.status, response.header("connection")) == (408, b"close")
    assert b"invalid_request_error" in response.body
    assert await client.eof() == "fin"
    line = await p.line()
    assert (line["status"], line["ending"]) == (408, "dR")
    assert up.connections == 0


async def test_a_head_that_dribbles_is_408(
    upstream: StartUpstream, proxy: StartProxy, machine: Callable[[], float]
) -> None:
    """Bytes do not buy time: the head as a whole has its limit."""
    p = await proxy(await upstream(), head_timeout=0.4)
    began = clock()
    client = await sent_at_once(p, HEAD[:1])
    with contextlib.suppress(Gone):
        for byte in HEAD[1:]:
            await asyncio.sleep(0.02)
            await client.send(bytes([byte]))
    assert 0.4 <= clock() - began < 2 + machine()
    assert client.leftover.startswith(b"HTTP/1.1 408 ")


async def test_a_later_head_has_the_same_limit(
    upstream: StartUpstream, proxy: StartProxy, machine: Callable[[], float]
) -> None:
    """On a kept connection the time runs from its first byte; idleness before it does not count."""
    p = await proxy(await upstream(GOOD, GOOD), head_timeout=1, keepalive_timeout=60)
    client = await sent_at_once(p, post(MESSAGES, asked()))
    assert (await client.response()).status == 200
    await asyncio.sleep(1.1)
    await client.send(post(MESSAGES, asked())[:30])
    await asyncio.sleep(0.05)
    await client.send(post(MESSAGES, asked())[30:])
    assert (await client.response()).status == 200
    began = clock()
    await client.send(HEAD[:10])
    assert (await client.response("GET")).status == 408
    assert 1 <= clock() - began < 3 + machine()


async def test_a_head_that_has_begun_is_not_idleness(upstream: StartUpstream, proxy: StartProxy) -> None:
    """A connection whose keep-alive time runs out in the middle of a head is not closed for that."""
    p = await proxy(await upstream(GOOD, GOOD), head_timeout=30, keepalive_timeout=1)
    client = await p.connect()
    await client.send(post(MESSAGES, asked()))
    assert (await client.response()).status == 200
    request = post(MESSAGES, asked())
    await client.send(request[:30])
    await asyncio.sleep(1.2)
    await client.send(request[30:])
    assert (await client.response()).status == 200


async def test_a_head_behind_a_request_is_timed_too(upstream: StartUpstream, proxy: StartProxy) -> None:
    """It begins while another request is being answered, and does not end: 408, behind that answer."""
    go = asyncio.Event()

    async def step(conn: Conn, _: object) -> None:
        await go.wait()
        await conn.send(GOOD)

    up = await upstream(step)
    p = await proxy(up, head_timeout=0.3)
    client = await sent_at_once(p, post(MESSAGES, asked()))
    await up.received()
    await client.send(HEAD[:10])
    await asyncio.sleep(0.5)
    go.set()
    assert (await client.response()).status == 200
    assert (await client.response("GET")).status == 408
    assert await client.eof() == "fin"


async def test_an_empty_line_begins_no_request(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Some clients send one behind a body; the connection is idle all the same."""
    p = await proxy(await upstream(GOOD, GOOD), head_timeout=0.2)
    client = await sent_at_once(p, post(MESSAGES, asked()) + b"\r\n")
    assert (await client.response()).status == 200
    await client.send(b"\r\n")
    await asyncio.sleep(0.4)
    await client.send(post(MESSAGES, asked()))
    assert (await client.response()).status == 200


async def test_a_head_that_came_is_not_timed_any_more(upstream: StartUpstream, proxy: StartProxy) -> None:
    """What a request takes after its head is not the head's time."""

    async def step(conn: Conn, _: object) -> None:
        await asyncio.sleep(0.5)
        await conn.send(GOOD)

    p = await proxy(await upstream(step), head_timeout=0.2)
    request = post(MESSAGES, asked())
    cut = request.index(b"\r\n\r\n") + 10
    client = await sent_at_once(p, request[:cut])
    await asyncio.sleep(0.3)
    await client.send(request[cut:])
    assert (await client.response()).body == MESSAGE


async def test_slow_heads_keep_nobody_waiting(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Two hundred of them, each a byte at a time; then all are answered 408."""
    p = await proxy(await upstream(GOOD), head_timeout=0.5)
    slow = [await sent_at_once(p, HEAD[:1]) for _ in range(200)]
    for byte in HEAD[1:5]:
        for client in slow:
            # On a slow machine the first have had their 408 by now.
            with contextlib.suppress(Gone):
                await client.send(bytes([byte]))
        # What has come is taken before more is sent: a reset would throw it away.
        await asyncio.sleep(0.01)
    good = await sent_at_once(p, post(MESSAGES, asked()))
    assert (await good.response()).body == MESSAGE
    for client in slow:
        assert (await client.response("GET")).status == 408


# Bodies.


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("path", [MESSAGES, FILES])
async def test_a_body_that_dribbles_is_408(
    upstream: StartUpstream, proxy: StartProxy, machine: Callable[[], float], framing: str, path: str
) -> None:
    """A byte now and then is no progress."""
    up = await upstream()
    up.allow_unused = True
    p = await proxy(up, body_timeout=0.4)
    client = await p.connect()
    framed = (b"Content-Length", b"1000") if framing == "length" else (b"Transfer-Encoding", b"chunked")
    began = clock()
    await client.send(request_head("POST", path, [(b"Host", b"h"), framed]))
    answered = asyncio.ensure_future(client.response())
    while not answered.done():
        with contextlib.suppress(Gone):
            await client.send(b" " if framing == "length" else chunk(b" "))
        await asyncio.sleep(0.05)
    assert (await answered).status == 408
    assert 0.4 <= clock() - began < 3 + machine()
    assert (await p.line())["ending"] == ("dR" if path == MESSAGES else "dH")
    await up.quiet()
    assert up.requests == []


async def test_a_body_that_goes_on_may_take_its_time(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Whoever sends enough in each step is waited for, however long it takes in all."""
    body = asked(metadata={"pad": "x" * arrival.STEP_BYTES * 6})
    up = await upstream(GOOD)
    p = await proxy(up, body_timeout=1)
    client = await p.connect()
    request = post(MESSAGES, body)
    began = clock()
    for start in range(0, len(request), arrival.STEP_BYTES):
        await client.send(request[start : start + arrival.STEP_BYTES])
        await asyncio.sleep(0.2)
    assert clock() - began > 1.3
    assert (await client.response()).status == 200
    assert up.requests[0].body == body


async def test_a_held_body_must_go_on_in_proportion(
    upstream: StartUpstream, proxy: StartProxy, machine: Callable[[], float]
) -> None:
    """Whoever has filled megabytes of others' room, and then crawls, is let go."""
    p = await proxy(await upstream(), body_timeout=0.4)
    client = await p.connect()
    fields = [(b"Host", b"h"), (b"Content-Length", b"2000000")]
    began = clock()
    await client.send(request_head("POST", MESSAGES, fields) + b" " * 1_500_000)
    answered = asyncio.ensure_future(client.response())
    while not answered.done():
        with contextlib.suppress(Gone):
            await client.send(b" " * 1_000)
        await asyncio.sleep(0.05)
    assert (await answered).status == 408
    assert 0.4 <= clock() - began < 5 + machine()


async def test_an_upload_is_not_blamed_for_a_slow_upstream(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """The time in which upstream takes nothing is not the client's."""
    size = 40_000_000
    stands, go_on = asyncio.Event(), asyncio.Event()

    async def step(conn: Conn) -> None:
        await conn.read_until(b"\r\n\r\n")
        conn.stop_reading()
        stands.set()
        await go_on.wait()
        conn.go_on_reading()
        await conn.read_exactly(size)
        await conn.send(GOOD)

    p = await proxy(await upstream(raw(step)), body_timeout=1)
    client = await p.connect()
    fields = [(b"Host", b"h"), (b"Content-Length", b"%d" % size)]
    sending = asyncio.ensure_future(client.send(request_head("POST", FILES, fields) + b"x" * size))
    await stands.wait()
    await asyncio.sleep(1.5)
    assert not sending.done(), "the buffers on the way hold all of it"
    go_on.set()
    await sending
    assert (await client.response()).body == MESSAGE


# Uploads that break.


async def test_a_bad_chunk_in_an_upload_is_told_at_once(
    upstream: StartUpstream, proxy: StartProxy, machine: Callable[[], float]
) -> None:
    """It does not have to wait until the body is late; upstream is let go, the client gets a 400."""
    come = asyncio.Event()

    async def step(conn: Conn) -> None:
        await conn.read_until(chunk(b"part"))
        come.set()
        await conn.gone()

    up = await upstream(raw(step))
    p = await proxy(up, body_timeout=60)
    client = await p.connect()
    fields = [(b"Host", b"h"), (b"Transfer-Encoding", b"chunked")]
    await client.send(request_head("POST", FILES, fields) + chunk(b"part"))
    await come.wait()
    began = clock()
    await client.send(b"zz\r\nGET /anthropic/v1/evil HTTP/1.1\r\nHost: h\r\n\r\n")
    response = await client.response()
    assert response.status == 400
    assert b"framed" in response.body
    assert await client.eof() in ("fin", "reset")
    assert client.leftover == b""
    await up.quiet()
    assert clock() - began < 1.5 + machine()
    assert LAST_CHUNK not in up.conns[0].reads()
    await is_well(p)
    await p.stop()
    assert [line["ending"] for line in p.lines] == ["DH", "--"]
    assert "Traceback" not in p.log_text


async def test_a_bad_chunk_in_a_held_body_is_told_at_once(
    upstream: StartUpstream, proxy: StartProxy, machine: Callable[[], float]
) -> None:
    """The same where the body is held."""
    up = await upstream()
    p = await proxy(up, body_timeout=60)
    client = await p.connect()
    fields = [(b"Host", b"h"), (b"Transfer-Encoding", b"chunked")]
    await client.send(request_head("POST", MESSAGES, fields) + chunk(b'{"model"'))
    await is_well(p)
    began = clock()
    await client.send(b"zz\r\n")
    assert (await client.response()).status == 400
    assert clock() - began < 1.5 + machine()
    assert up.connections == 0
    assert "Traceback" not in p.log_text


@pytest.mark.parametrize("how", ["FIN", "RST"])
async def test_a_client_that_leaves_while_it_is_not_read_is_noticed(
    upstream: StartUpstream, proxy: StartProxy, machine: Callable[[], float], how: str
) -> None:
    """Upstream does not read, so we do not read the client; that it left is seen all the same."""
    finished = asyncio.Event()

    async def step(conn: Conn) -> None:
        await conn.read_until(b"\r\n\r\n")
        conn.stop_reading()
        await finished.wait()
        conn.go_on_reading()
        await conn.gone()

    up = await upstream(raw(step))
    p = await proxy(up, body_timeout=60, network={"first_byte_timeout": 60, "idle_timeout": 60})
    client = await p.connect()
    fields = [(b"Host", b"h"), (b"Content-Length", b"100000000")]
    await client.send(request_head("POST", FILES, fields))
    assert p.server._downstream is not None
    (door,) = p.server._downstream.connections
    while not door._reading_paused:
        # So little at a time that the kernel has room for all of it: a FIN behind it arrives.
        await client.send(b"x" * 10_000)
        await asyncio.sleep(0)
    began = clock()
    if how == "RST":
        client.reset()
    else:
        client.finish_sending()
    assert (await p.line())["ending"] == "DH"
    assert clock() - began < 2 + machine()
    finished.set()
    await up.quiet()
