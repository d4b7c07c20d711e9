"""An answer that upstream does not finish never looks finished downstream.

SDKs report a clean end as success, so a cut answer ends with a reset; where a stream stands between events an
``error`` event comes first, because SDKs show that to their users.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest
from rawclient import Response, asked, post
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
    Step,
    answer,
    chunk,
    head,
    raw,
    stream_head,
)

MESSAGES = "/anthropic/v1/messages"
FIRST = MESSAGE_EVENTS[0]

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


def garbage(data: bytes) -> Callable[[Conn], Awaitable[None]]:
    async def cut(conn: Conn) -> None:
        await conn.send(data)
        await conn.gone()

    return cut


CUTS: dict[str, Callable[[Conn], Awaitable[None]]] = {
    "FIN": fin,
    "RST": rst,
    "silence": silence,
    "bad chunk size": garbage(b"zz\r\n"),
    "negative chunk size": garbage(b"-1\r\n"),
    "huge chunk size": garbage(b"fffffffffffffffff\r\n"),
    "no chunk size": garbage(b"\r\n"),
    "bare LF": garbage(b"5\nhello"),
    "plain text": garbage(b"HTTP/1.1 500 Oh\r\n\r\n"),
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
    p = await proxy(up, network={"idle_timeout": 0.3}, ping_interval=0)
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
    p = await proxy(up, network={"idle_timeout": 0.3}, ping_interval=0.02)
    response = await p.post(MESSAGES, asked(stream=True))
    assert response.reset
    pings, _, event = response.body.removeprefix(FIRST).partition(b"event: error")
    assert pings == PING * (len(pings) // len(PING))
    assert len(pings) >= 2 * len(PING)
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


SENT = MESSAGE[:40]
WITH_LENGTH = answer(body=MESSAGE).removesuffix(MESSAGE)
CHUNKED = head(200, [JSON_TYPE, (b"Transfer-Encoding", b"chunked")])
JSON_CUTS: dict[str, tuple[bytes, Callable[[Conn], Awaitable[None]]]] = {
    "length, FIN": (WITH_LENGTH + SENT, fin),
    "length, one byte short": (WITH_LENGTH + MESSAGE[:-1], fin),
    "length, RST": (WITH_LENGTH + SENT, rst),
    "length, silence": (WITH_LENGTH + SENT, silence),
    "length, no body": (WITH_LENGTH, fin),
    "chunked, FIN": (CHUNKED + chunk(MESSAGE), fin),
    "chunked, FIN in the last chunk": (CHUNKED + chunk(MESSAGE) + b"0\r\n", fin),
    "chunked, FIN in a chunk": (CHUNKED + b"%x\r\n" % len(MESSAGE) + SENT, fin),
    "chunked, garbage": (CHUNKED + chunk(SENT), garbage(b"zz\r\n")),
    "until close, RST": (head(200, [JSON_TYPE]) + SENT, rst),
    "until close, silence": (head(200, [JSON_TYPE]) + SENT, silence),
}


@pytest.mark.parametrize("case", JSON_CUTS)
async def test_a_cut_json_answer_is_reset(upstream: StartUpstream, proxy: StartProxy, case: str) -> None:
    """An answer that is no stream has no place for an error event either; nothing is added to it."""
    sent, how = JSON_CUTS[case]
    relayed = asyncio.Event()

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(sent)
        await relayed.wait()
        await how(conn)

    up = await upstream(step)
    p = await proxy(up, network={"idle_timeout": 0.2})
    client = await p.connect()
    await client.send(post(MESSAGES, asked()))
    assert (await client.head()).status == 200
    relayed.set()
    response = await client.rest()
    assert (response.complete, response.reset) == (False, True)
    assert MESSAGE.startswith(response.body)
    line = await p.line()
    assert line["ending"] == ("uD" if "silence" in case else "UD")
    assert up.arrived == 1


# Before the head.


def sends(data: bytes, then: Callable[[Conn], Awaitable[None]] = silence) -> Step:
    async def play(conn: Conn) -> None:
        await conn.request()
        await conn.send(data)
        await then(conn)

    return raw(play)


OK = b"HTTP/1.1 200 OK\r\n"
BAD_HEADS: dict[str, Step] = {
    "cut, FIN": sends(OK + b"Content-Le", fin),
    "cut, RST": sends(OK, rst),
    "not HTTP": sends(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "TLS alert": sends(b"\x15\x03\x01\x00\x02\x02\x46"),
    "HTTP/0.9": sends(b"hello\n", fin),
    "HTTP/2": sends(b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n"),
    "status 99": sends(b"HTTP/1.1 99 Low\r\nContent-Length: 0\r\n\r\n"),
    "status 600": sends(b"HTTP/1.1 600 High\r\nContent-Length: 0\r\n\r\n"),
    "status 999999": sends(b"HTTP/1.1 999999 High\r\nContent-Length: 0\r\n\r\n"),
    "unasked 101": sends(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n" + b"\x00" * 9
    ),
    "length and chunked": sends(
        OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    ),
    "two lengths": sends(OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc"),
    "list of lengths": sends(OK + b"Content-Length: 3, 3\r\n\r\nabc"),
    "odd length": sends(OK + b"Content-Length: +3\r\n\r\nabc"),
    "negative length": sends(OK + b"Content-Length: -3\r\n\r\nabc"),
    "gzip coding": sends(OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    "two codings": sends(OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "unknown coding": sends(OK + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    "folded line": sends(OK + b"X-A: 1\r\n folded\r\nContent-Length: 0\r\n\r\n"),
    "NUL in a value": sends(OK + b"X-A: a\x00b\r\nContent-Length: 0\r\n\r\n"),
    "CR in a value": sends(OK + b"X-A: a\rSet-Cookie: b\r\nContent-Length: 0\r\n\r\n"),
    "blank before the colon": sends(OK + b"Content-Length : 0\r\n\r\n"),
    "no colon": sends(OK + b"nonsense\r\n\r\n"),
    "endless head": sends(OK + b"X-A: b\r\n" * 20_000),
    "endless line": sends(OK + b"X-A: " + b"b" * 200_000),
    "endless interim answers": sends(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 500),
}


@pytest.mark.parametrize("case", BAD_HEADS)
async def test_a_head_that_cannot_be_understood_is_502(
    upstream: StartUpstream, proxy: StartProxy, case: str
) -> None:
    """What is not a proper HTTP/1.1 answer never comes down; the client gets an error of ours, at once."""
    up = await upstream(BAD_HEADS[case])
    p = await proxy(up, network={"max_retries": 0, "first_byte_timeout": 5, "idle_timeout": 5})
    async with asyncio.timeout(3):
        response = await p.post(MESSAGES, asked())
    error = json.loads(response.body)
    assert (response.status, response.complete) == (502, True)
    assert error["error"]["type"] == "api_error"
    assert error["request_id"].encode() == response.header("request-id")
    assert (await p.line())["ending"] == "UH"


@pytest.mark.parametrize(
    "case", ["cut, RST", "not HTTP", "HTTP/2", "unasked 101", "two lengths", "endless head"]
)
async def test_a_head_that_cannot_be_understood_moves_on(
    upstream: StartUpstream, proxy: StartProxy, case: str
) -> None:
    """A provider that speaks something else is broken: the next target answers."""
    up, backup = await upstream(BAD_HEADS[case]), await upstream(answer(body=MESSAGE))
    p = await proxy(providers={"anthropic": up, "backup": backup}, network={"max_retries": 3})
    response = await p.post(MESSAGES, asked(fallbacks=["backup/x"]))
    assert (response.status, response.body) == (200, MESSAGE)
    assert response.header("x-bifrost-provider") == b"backup"


async def test_a_head_that_dribbles_is_504(upstream: StartUpstream, proxy: StartProxy) -> None:
    """`first_byte_timeout` ends with the whole head, not with its first byte."""

    async def step(conn: Conn, _: Request) -> None:
        for byte in answer(200, [(b"X-Slow", b"s" * 10_000)], MESSAGE):
            await conn.send(bytes([byte]))
            await asyncio.sleep(0.01)

    p = await proxy(await upstream(step), network={"first_byte_timeout": 0.3, "max_retries": 0})
    async with asyncio.timeout(5):
        response = await p.post(MESSAGES, asked())
    assert (response.status, json.loads(response.body)["error"]["type"]) == (504, "timeout_error")
    assert (await p.line())["ending"] == "uH"
