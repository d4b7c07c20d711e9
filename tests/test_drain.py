"""Stopping: open requests may finish; what cannot is ended so that it does not look finished."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from rawclient import PATIENCE, asked, connect, get, post, request_head
from running import StartProxy, StartUpstream
from scripted import MESSAGE_EVENTS, Conn, Request, answer, chunk, raw, stream_head

from proxy import server

MESSAGES = "/anthropic/v1/messages"


async def hangs_in_a_stream(conn: Conn, _: Request) -> None:
    await conn.send(stream_head() + chunk(MESSAGE_EVENTS[0]))
    await conn.gone()


async def hangs_before_the_head(conn: Conn, _: Request) -> None:
    await conn.gone()


async def test_a_stream_that_outlasts_the_drain_is_reset(
    upstream: StartUpstream, proxy: StartProxy, machine: Callable[[], float]
) -> None:
    """Even to an HTTP/1.0 reader, for whom a plain close is the end of a whole answer."""
    p = await proxy(await upstream(hangs_in_a_stream), drain_timeout=0.1)
    client = await p.connect()
    await client.send(post(MESSAGES, asked(stream=True)).replace(b"HTTP/1.1", b"HTTP/1.0"))
    await client.head()
    await client.read_until(b"message_start")
    began, late = asyncio.get_running_loop().time(), machine()
    await p.stop()
    assert asyncio.get_running_loop().time() - began < 1 + machine() - late
    response = await client.rest()
    assert b"event: error" in response.body
    assert b"stopping" in response.body
    assert (response.complete, response.reset) == (False, True)
    assert (await p.line())["ending"] == "PD"


async def test_a_request_without_a_head_gets_a_503(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Before the commit point an answer can still be given; the SDK will try again."""
    up = await upstream(hangs_before_the_head)
    p = await proxy(up, drain_timeout=0.1)
    client = await p.connect()
    await client.send(post(MESSAGES, asked()))
    await up.received()
    await p.stop()
    response = await client.response("POST")
    assert (response.status, response.complete) == (503, True)
    assert b"overloaded_error" in response.body
    assert (await p.line())["ending"] == "PH"


async def test_what_finishes_in_time_is_whole(upstream: StartUpstream, proxy: StartProxy) -> None:
    """The drain ends with the last open request, not with its time."""
    go = asyncio.Event()

    async def step(conn: Conn, _: Request) -> None:
        await go.wait()
        await conn.send(answer(body=b"{}"))

    up = await upstream(step)
    p = await proxy(up, drain_timeout=30)
    client = await p.connect()
    await client.send(post(MESSAGES, asked()))
    await up.received()
    stopping = asyncio.ensure_future(p.stop())
    go.set()
    assert (await client.response("POST")).status == 200
    async with asyncio.timeout(5):
        await stopping
    assert (await p.line())["ending"] == "--"


async def test_a_hurried_drain_waits_for_nobody(upstream: StartUpstream, proxy: StartProxy) -> None:
    """What a second signal does."""
    up = await upstream(hangs_before_the_head)
    p = await proxy(up, drain_timeout=30)
    client = await p.connect()
    await client.send(post(MESSAGES, asked()))
    await up.received()
    stopping = asyncio.ensure_future(p.stop())
    await asyncio.sleep(0)
    p.server.hurry()
    async with asyncio.timeout(5):
        assert (await client.response("POST")).status == 503
        await stopping


async def test_an_idle_connection_is_closed_at_once(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Kept-alive connections do not hold the process."""
    p = await proxy(await upstream(answer(body=b"{}")), drain_timeout=30)
    client = await p.connect()
    await client.send(post(MESSAGES, asked()))
    await client.response("POST")
    async with asyncio.timeout(5):
        await p.stop()
        assert await client.eof() == "fin"


async def test_what_a_slow_reader_has_not_taken_is_still_open(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """Upstream is done, the client is not: a stop that cuts it resets, so that it does not look whole."""
    events = chunk(b"event: x\ndata: " + b"y" * 60_000 + b"\n\n") * 200
    sent = asyncio.Event()

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(stream_head() + events + b"0\r\n\r\n")
        sent.set()

    up = await upstream(step)
    p = await proxy(up, drain_timeout=0.2, max_buffer_bytes=80_000_000)
    client = await p.connect()
    client.stop_reading()
    await client.send(post(MESSAGES, asked(stream=True)).replace(b"HTTP/1.1", b"HTTP/1.0"))
    await sent.wait()
    await p.stop()
    client.go_on_reading()
    assert await client.eof() == "reset"
    assert (await p.line())["ending"] == "PD"


async def test_a_client_that_leaves_does_not_spoil_the_drain_of_others(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """One is gone in the turn in which all are ended; the other still gets its 503."""
    up = await upstream(hangs_before_the_head, hangs_before_the_head)
    p = await proxy(up, drain_timeout=30)
    leaving, staying = await p.connect(), await p.connect()
    for client in (leaving, staying):
        await client.send(post(MESSAGES, asked()))
    await up.received(2)
    stopping = asyncio.ensure_future(p.stop())
    await asyncio.sleep(0)
    for connection in list(p.server._downstream.connections):
        if connection.transport.get_extra_info("peername") == leaving.wire.transport.get_extra_info(
            "sockname"
        ):
            connection.transport.abort()
    p.server.hurry()
    async with asyncio.timeout(5):
        assert (await staying.response("POST")).status == 503
        await stopping


# While it drains.


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection is closed for being idle before the test, on a slow machine, asks on it again."""
    monkeypatch.setattr(server, "GRACE_SECONDS", PATIENCE)


@pytest.mark.usefixtures("patient")
async def test_health_says_draining(upstream: StartUpstream, proxy: StartProxy) -> None:
    """On a connection that is open, while others finish; it is told to close, and new ones are refused."""
    up = await upstream(hangs_before_the_head)
    p = await proxy(up, drain_timeout=30)
    busy, asking = await p.connect(), await p.connect()
    await busy.send(post(MESSAGES, asked()))
    await up.received()
    await asking.send(get("/health"))
    assert (await asking.response("GET")).body == b'{"status":"ok"}'
    port = p.port
    stopping = asyncio.ensure_future(p.stop())
    await asyncio.sleep(0)
    await asking.send(get("/health"))
    response = await asking.response("GET")
    assert (response.status, response.body) == (503, b'{"status":"draining"}')
    assert response.header("connection") == b"close"
    assert await asking.eof() == "fin"
    with pytest.raises(ConnectionRefusedError):
        await connect(port)
    p.server.hurry()
    assert (await busy.response()).status == 503
    await stopping


@pytest.mark.usefixtures("patient")
async def test_a_request_on_an_open_connection_is_still_served(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """It may have been on its way; its reply says that it was the last here."""
    up = await upstream(answer(body=b"1"), answer(body=b"2"))
    p = await proxy(up, drain_timeout=30)
    client = await p.connect()
    await client.send(post(MESSAGES, asked()))
    assert (await client.response()).header("connection") is None
    stopping = asyncio.ensure_future(p.stop())
    await asyncio.sleep(0)
    await client.send(post(MESSAGES, asked()))
    response = await client.response()
    assert (response.status, response.body, response.header("connection")) == (200, b"2", b"close")
    async with asyncio.timeout(5):
        await stopping
    assert await client.eof() == "fin"


async def test_an_upload_goes_on(upstream: StartUpstream, proxy: StartProxy) -> None:
    """A request whose body is still coming in is open: all of it is taken."""
    come = asyncio.Event()

    async def step(conn: Conn) -> None:
        await conn.read_until(b"\r\n\r\nfirst")
        come.set()
        await conn.read_until(b"last")
        await conn.send(answer(body=b"{}"))

    p = await proxy(await upstream(raw(step)), drain_timeout=30)
    client = await p.connect()
    fields = [(b"Host", b"h"), (b"Content-Length", b"9")]
    await client.send(request_head("POST", "/anthropic/v1/files", fields) + b"first")
    await come.wait()
    stopping = asyncio.ensure_future(p.stop())
    # Longer than the grace in which any connection is served.
    await asyncio.sleep(0.4)
    await client.send(b"last")
    response = await client.response()
    assert (response.status, response.header("connection")) == (200, b"close")
    await stopping


async def test_a_head_that_has_begun_is_waited_for(upstream: StartUpstream, proxy: StartProxy) -> None:
    """A connection on which a request is coming in is not idle."""
    p = await proxy(await upstream(answer(body=b"{}")), drain_timeout=30)
    client = await p.connect()
    request = post(MESSAGES, asked())
    await client.send(request[:40])
    assert (await p.get("/health")).status == 200
    stopping = asyncio.ensure_future(p.stop())
    await asyncio.sleep(0.4)
    await client.send(request[40:])
    assert (await client.response()).status == 200
    await stopping


@pytest.mark.parametrize("asks", [True, False], ids=["asks again", "asks no more"])
async def test_a_stream_that_had_begun_is_not_the_last_reply(
    upstream: StartUpstream, proxy: StartProxy, monkeypatch: pytest.MonkeyPatch, *, asks: bool
) -> None:
    """Its head could not say ``Connection: close`` any more: who asks behind it gets an answer that does."""
    if asks:
        # However late that is, on a slow machine.
        monkeypatch.setattr(server, "GRACE_SECONDS", PATIENCE)
    go = asyncio.Event()

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(stream_head() + chunk(MESSAGE_EVENTS[0]))
        await go.wait()
        await conn.send(chunk(MESSAGE_EVENTS[-1]) + b"0\r\n\r\n")

    up = await upstream(step)
    p = await proxy(up, drain_timeout=30)
    client = await p.connect()
    await client.send(post(MESSAGES, asked(stream=True)))
    assert (await client.head()).header("connection") is None
    stopping = asyncio.ensure_future(p.stop())
    await asyncio.sleep(0.5)
    go.set()
    response = await client.rest()
    assert response.complete
    assert response.body == MESSAGE_EVENTS[0] + MESSAGE_EVENTS[-1]
    if asks:
        up.then(answer(body=b"{}"))
        await client.send(post(MESSAGES, asked()))
        response = await client.response()
        assert (response.status, response.header("connection")) == (200, b"close")
    assert await client.eof() == "fin"
    async with asyncio.timeout(5):
        await stopping
