"""What one side could read otherwise than the other: lengths, trailers, upgrades, codings, odd spellings.

Each test sends bytes that two readers understand differently, and looks at what came of them on both sides.
"""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest
from rawclient import Gone, Headers, Response, asked, get, post, request_head
from running import StartProxy, StartUpstream, keyed
from scripted import (
    JSON_TYPE,
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
    refusal,
    stream_head,
)

MESSAGES = "/anthropic/v1/messages"
BATCH = "/anthropic/v1/messages/batches/msgbatch_1"
FIRST = MESSAGE_EVENTS[0]
WHOLE = b"".join(MESSAGE_EVENTS)
GOOD = answer(body=MESSAGE)


def of_upstream(response: Response) -> Headers:
    """The header fields of an answer, less those that the proxy adds to every one."""
    return [pair for pair in response.headers if not pair[0].startswith(b"x-bifrost-") and pair[0] != b"Date"]


# A stream with a length.


async def test_pings_do_not_count_into_a_length(upstream: StartUpstream, proxy: StartProxy) -> None:
    """A stream that upstream sends with Content-Length is chunked anew; it and the connection stay whole."""
    go_on = asyncio.Event()

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(head(200, [SSE_TYPE, (b"Content-Length", b"%d" % len(WHOLE))]) + FIRST)
        await go_on.wait()
        await conn.send(WHOLE.removeprefix(FIRST))

    p = await proxy(await upstream(step, GOOD), ping_interval=0.03)
    client = await p.connect()
    await client.send(post(MESSAGES, asked(stream=True)))
    response = await client.head()
    assert response.values("content-length") == []
    assert response.header("transfer-encoding") == b"chunked"
    assert await client.read_until(PING * 2) == FIRST + PING * 2
    go_on.set()
    response = await client.rest()
    assert response.complete
    assert response.body.startswith(FIRST + PING * 2)
    assert response.body.endswith(WHOLE.removeprefix(FIRST))
    assert response.body.replace(PING, b"") == WHOLE.replace(PING, b"")
    await client.send(post(MESSAGES, asked()))
    assert (await client.response()).body == MESSAGE
    assert client.leftover == b""


@pytest.mark.parametrize("how", ["FIN", "RST"])
async def test_a_stream_short_of_its_length_is_reset(
    upstream: StartUpstream, proxy: StartProxy, how: str
) -> None:
    """The error event must not fill up the length that upstream promised."""
    relayed = asyncio.Event()

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(head(200, [SSE_TYPE, (b"Content-Length", b"%d" % (len(FIRST) + 20))]) + FIRST)
        await relayed.wait()
        if how == "FIN":
            await conn.close()
        else:
            conn.reset()

    p = await proxy(await upstream(step), ping_interval=0)
    client = await p.connect()
    await client.send(post(MESSAGES, asked(stream=True)))
    await client.head()
    assert await client.read_until(FIRST) == FIRST
    relayed.set()
    response = await client.rest()
    assert (response.complete, response.reset) == (False, True)
    assert response.body.startswith(FIRST + b"event: error\n")
    assert (await p.line())["ending"] == "UD"


async def test_a_204_has_no_length(upstream: StartUpstream, proxy: StartProxy) -> None:
    """A reader that takes the length of a 204 for true would wait for a body, or eat the next answer."""
    up = await upstream(head(204, [(b"Content-Length", b"5"), (b"x-a", b"1")]), GOOD)
    p = await proxy(up)
    client = await p.connect()
    await client.send(get("/anthropic/v1/x", method="DELETE"))
    response = await client.response("DELETE")
    assert (response.status, response.values("content-length"), response.header("x-a")) == (204, [], b"1")
    assert response.values("transfer-encoding") == []
    await client.send(post(MESSAGES, asked()))
    assert (await client.response()).body == MESSAGE
    assert client.leftover == b""


NO_BATCH: dict[str, tuple[str, Headers, int, bytes]] = {
    "HEAD": ("HEAD", [JSON_TYPE, (b"Content-Length", b"1234"), (b"ETag", b'"1"')], 200, b""),
    "HEAD, chunked": ("HEAD", [JSON_TYPE, (b"ETag", b'"1"')], 200, b""),
    "304": ("GET", [(b"ETag", b'"1"'), (b"Content-Length", b"1234")], 304, b""),
    "304 without a length": ("GET", [(b"ETag", b'"1"')], 304, b""),
    "404": (
        "GET",
        [JSON_TYPE, (b"Content-Length", b"76")],
        404,
        b'{"results_url":"https://api.anthropic.com/v1/messages/batches/x/results"}   ',
    ),
    "404, compressed": (
        "GET",
        [JSON_TYPE, (b"Content-Encoding", b"gzip"), (b"Content-Length", b"4")],
        404,
        b"\x1f\x8b..",
    ),
}


@pytest.mark.parametrize("case", NO_BATCH)
async def test_what_holds_no_batch_is_not_touched(
    upstream: StartUpstream, proxy: StartProxy, case: str
) -> None:
    """Under own keys too, an answer without a batch keeps its fields, its length and its bytes."""
    method, fields, status, body = NO_BATCH[case]
    up = await upstream(head(status, fields) + body, GOOD)
    p = await proxy(keyed(up, "main"), network={"max_retries": 0})
    client = await p.connect()
    await client.send(get(BATCH, method=method))
    response = await client.response(method)
    assert (response.status, response.body, response.complete) == (status, body, True)
    assert of_upstream(response) == fields
    await client.send(post(MESSAGES, asked()))
    assert (await client.response()).body == MESSAGE
    assert client.leftover == b""


# Trailers.

TRAILERS = {
    "coding": b"Content-Encoding: gzip",
    "cookie": b"Set-Cookie: a=b",
    "unknown": b"x-trailer: 1",
    "connection": b"Connection: content-type",
    "close": b"Connection: close",
    "framing": b"Transfer-Encoding: chunked",
    "a field of ours": b"x-bifrost-provider: other",
}


def check_no_trailer(response: Response, fields: Headers) -> None:
    """`response` has these fields of upstream's, and nothing of what stood behind its body."""
    assert of_upstream(response) == [*fields, (b"Transfer-Encoding", b"chunked")]
    assert response.trailers == []
    assert response.complete


@pytest.mark.parametrize("case", TRAILERS)
async def test_a_trailer_that_comes_with_its_head_is_no_header_field(
    upstream: StartUpstream, proxy: StartProxy, case: str
) -> None:
    """Though it is there before the head goes down, a trailer does not become a part of it."""
    whole = stream_head([JSON_TYPE]) + chunk(b"{}") + b"0\r\n" + TRAILERS[case] + b"\r\n\r\n"
    up = await upstream(whole, GOOD)
    p = await proxy(up)
    client = await p.connect()
    await client.send(post(MESSAGES, asked()))
    response = await client.response()
    check_no_trailer(response, [JSON_TYPE])
    assert response.body == b"{}"
    await client.send(post(MESSAGES, asked()))
    assert (await client.response()).body == MESSAGE
    assert client.leftover == b""


@pytest.mark.parametrize("case", TRAILERS)
async def test_a_trailer_that_comes_later_is_no_header_field(
    upstream: StartUpstream, proxy: StartProxy, case: str
) -> None:
    """An answer that is held for the end of its plan gets no field from trailers that come meanwhile."""
    sent = asyncio.Event()

    async def in_pieces(conn: Conn, _: Request) -> None:
        await conn.send(stream_head([JSON_TYPE], 529))
        for byte in chunk(b"{}") + b"0\r\n" + TRAILERS[case] + b"\r\n\r\n":
            await conn.send(bytes((byte,)))
            await asyncio.sleep(0.001)
        sent.set()
        await conn.gone()

    async def fails_later(conn: Conn, _: Request) -> None:
        await sent.wait()
        await conn.send(refusal(503))

    up, backup = await upstream(in_pieces), await upstream(fails_later)
    p = await proxy(providers={"anthropic": up, "backup": backup}, network={"max_retries": 0})
    response = await p.post(MESSAGES, asked(fallbacks=["backup/x"]))
    assert (response.status, response.body) == (529, b"{}")
    check_no_trailer(response, [JSON_TYPE])
    # It ended where it said, so its connection is free for another request, and goes when the proxy stops.
    assert up.open == 1


@pytest.mark.parametrize("later", [False, True], ids=["with the head", "later"])
async def test_a_length_as_a_trailer_is_no_length(
    upstream: StartUpstream, proxy: StartProxy, later: bool
) -> None:
    """Two framings in one answer: it is refused, or reset where its head went down already."""
    relayed = asyncio.Event()
    begin, rest = stream_head([JSON_TYPE]) + chunk(b"{}"), b"0\r\nContent-Length: 3\r\n\r\n"

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(begin if later else begin + rest)
        if later:
            await relayed.wait()
            await conn.send(rest)
        await conn.gone()

    p = await proxy(await upstream(step), network={"max_retries": 0})
    client = await p.connect()
    await client.send(post(MESSAGES, asked()))
    response = await client.head()
    relayed.set()
    response = await client.rest()
    expected = (200, b"{}", False, True) if later else (502, response.body, True, False)
    assert (response.status, response.body, response.complete, response.reset) == expected
    assert response.values("content-length") == ([] if later else [b"%d" % len(response.body)])
    assert (await p.line())["ending"] == ("UD" if later else "UH")


# Upgrades.

UPGRADE = [(b"Host", b"h"), (b"Connection", b"Upgrade")]


@pytest.mark.parametrize("protocol", [b"foo", b"websocket", b"h2c", b"tcp"])
async def test_nothing_behind_an_upgrade_is_a_request(
    upstream: StartUpstream, proxy: StartProxy, protocol: bytes
) -> None:
    """One answer, which closes; neither a pipelined request nor the body of one is taken for a request."""
    hidden = get("/metrics")
    fields = [*UPGRADE, (b"Upgrade", protocol)]
    cover = request_head("POST", "/nowhere", [(b"Host", b"h"), (b"Content-Length", b"%d" % len(hidden))])
    p = await proxy(await upstream())
    client = await p.connect()
    await client.send(request_head("GET", "/health", fields) + cover)
    response = await client.response("GET")
    assert (response.status, response.header("connection")) == (200, b"close")
    with contextlib.suppress(Gone):
        await client.send(hidden)
    await client.eof()
    assert client.leftover == b""
    assert [(await p.line())["path"], len(p.lines)] == ["/health", 1]


# Codings.


async def test_no_ping_in_a_stream_with_two_codings(upstream: StartUpstream, proxy: StartProxy) -> None:
    """`identity` in the first Content-Encoding field does not hide the compression in the second."""

    async def silent(conn: Conn, _: Request) -> None:
        await conn.send(stream_head())
        await conn.gone()

    async def compressed(conn: Conn, _: Request) -> None:
        fields = [SSE_TYPE, (b"Content-Encoding", b"identity"), (b"Content-Encoding", b"br")]
        await conn.send(stream_head(fields) + chunk(FIRST))
        await conn.gone()

    steps: list[Step] = [silent, compressed]
    p = await proxy(await upstream(*steps), ping_interval=0.03)
    clock, client = await p.connect(), await p.connect()
    for one in (clock, client):
        await one.send(post(MESSAGES, asked(stream=True)))
        response = await one.head()
    assert response.values("content-encoding") == [b"identity", b"br"]
    assert await client.read_until(FIRST) == FIRST
    # When the stream beside it has had three more pings, three intervals have passed.
    for _ in range(3):
        await clock.read_until(PING)
    await clock.read_until(PING)
    assert client.received == FIRST


@pytest.mark.parametrize(
    "codings",
    [
        (b"identity", b"br"),
        (b"br", b"identity"),
        (b"identity", b"gzip"),
        (b"identity, br",),
        (b"gzip", b"gzip"),
    ],
)
async def test_a_body_with_two_codings_is_415(
    upstream: StartUpstream, proxy: StartProxy, codings: tuple[bytes, ...]
) -> None:
    """What cannot be looked into cannot be planned for, in however many fields it says so."""
    up = await upstream()
    p = await proxy(up)
    fields = [(b"Content-Encoding", coding) for coding in codings]
    response = await p.post(MESSAGES, asked(), fields)
    assert (response.status, json.loads(response.body)["type"]) == (415, "error")
    assert up.connections == 0


# Virtual keys.

VIRTUAL = [
    b"sk-bf-0123456789",
    b"Bearer sk-bf-0123456789",
    b"bearer  sk-bf-0123456789",
    b"Bearer\tsk-bf-0123456789",
    b"Basic sk-bf-0123456789",
    b"Token token=sk-bf-0123456789",
    b'"sk-bf-0123456789"',
    b"sk-test-own, sk-bf-0123456789",
]


@pytest.mark.parametrize("own", [False, True], ids=["the client's credentials", "own keys"])
@pytest.mark.parametrize("field", [b"Authorization", b"X-Api-Key", b"x-goog-api-key", b"api-key"])
@pytest.mark.parametrize("value", VIRTUAL)
async def test_a_virtual_key_is_refused_in_any_spelling(
    upstream: StartUpstream, proxy: StartProxy, value: bytes, field: bytes, own: bool
) -> None:
    """One that nobody issued is a 401, and no provider ever sees it."""
    up = await upstream()
    p = await proxy(keyed(up, "main") if own else up)
    response = await p.post(MESSAGES, asked(), [(field, value)], key=None)
    assert response.status == 401
    assert json.loads(response.body)["error"]["type"] == "authentication_error"
    assert up.connections == 0
    assert b"sk-bf-" not in response.raw
    await p.line()
    assert "0123456789" not in p.log_text
