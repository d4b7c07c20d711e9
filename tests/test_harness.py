"""The harness itself: the raw client and the scripted upstream show what happened on the wire, nothing else.

Every other test looks at the proxy through these two, so a wrong answer here would be a wrong answer there.
"""

from __future__ import annotations

import asyncio
import ssl

import pytest
import rawclient
import trustme
from rawclient import Body, Client, Gone, connect, get, post
from running import StartUpstream
from scripted import (
    LAST_CHUNK,
    MESSAGE_EVENTS,
    Conn,
    Request,
    Upstream,
    answer,
    chunk,
    raw,
    sse,
    stream_head,
    streamed,
)


async def test_a_plain_answer_is_shown_with_its_bytes(upstream: StartUpstream) -> None:
    """Status, reason, headers in order and in their own case, body, and the raw bytes."""
    sent = answer(201, [(b"X-One", b"a"), (b"x-one", b"b")], b"hello", reason="Made")
    up = await upstream(sent)
    async with await connect(up.port) as client:
        await client.send(post("/v1/x", b"{}"))
        response = await client.response()
    assert (response.status, response.reason, response.version) == (201, b"Made", b"HTTP/1.1")
    assert response.headers == [(b"X-One", b"a"), (b"x-one", b"b"), (b"Content-Length", b"5")]
    assert response.values("X-ONE") == [b"a", b"b"]
    assert (response.body, response.complete, response.reset) == (b"hello", True, False)
    assert response.raw == sent


async def test_a_request_is_kept_byte_for_byte(upstream: StartUpstream) -> None:
    """`Request.raw` is what was sent; the parsed parts agree with it."""
    up = await upstream(answer())
    sent = (
        b"POST /a%2Fb?x=1 HTTP/1.1\r\nhOst: h\r\nX:  padded \r\nX: \xff\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\nTrailer: t\r\n\r\n"
    )
    async with await connect(up.port) as client:
        await client.send(sent)
        assert (await client.response()).status == 200
    (request,) = up.requests
    assert request.raw == sent
    assert (request.method, request.target, request.version) == ("POST", b"/a%2Fb?x=1", b"HTTP/1.1")
    assert request.headers[:3] == [(b"hOst", b"h"), (b"X", b"padded"), (b"X", b"\xff")]
    assert (request.body, request.chunked, request.connection_number) == (b"abcde", True, 0)


async def test_steps_answer_in_order_of_arrival_over_all_connections(upstream: StartUpstream) -> None:
    """The i-th request gets the i-th step, whichever connection it comes on; keep-alive is honoured."""
    up = await upstream(*(answer(body=b"%d" % i) for i in range(4)))
    async with await connect(up.port) as one, await connect(up.port) as two:
        for i, client in enumerate([one, two, two, one]):
            await client.send(get("/"))
            assert (await client.response("GET")).body == b"%d" % i
    assert [request.connection_number for request in up.requests] == [0, 1, 1, 0]
    assert up.connections == 2


BODY = b"5\r\nhello\r\n1\r\n!\r\n3\r\n\r\n\n\r\n0\r\nX-T: 1\r\n\r\n"


@pytest.mark.parametrize("feed", ["whole", "byte by byte", "with trailing bytes"])
def test_chunked_is_decoded_over_any_chunking(feed: str) -> None:
    """The decoder takes what belongs to the body and nothing more, however it comes."""
    body = Body(length=None, chunked=True)
    buffer = bytearray()
    trailing = b"HTTP/1.1" if feed == "with trailing bytes" else b""
    pieces = [bytes([byte]) for byte in BODY] if feed == "byte by byte" else [BODY + trailing]
    for piece in pieces:
        assert not body.done
        buffer += piece
        body.pull(buffer)
    assert body.done
    assert (bytes(body.data), body.chunks) == (b"hello!\r\n\n", [b"hello", b"!", b"\r\n\n"])
    assert (bytes(body.raw), body.trailers, bytes(buffer)) == (BODY, [(b"X-T", b"1")], trailing)


@pytest.mark.parametrize("bad", [b"zz\r\n", b"3\r\nabcd\r\n", b"-1\r\n", b"0x3\r\n", b" 3\r\n"])
def test_bad_chunked_is_an_error(bad: bytes) -> None:
    """The client does not forgive what another client would choke on."""
    with pytest.raises(AssertionError):
        Body(length=None, chunked=True).pull(bytearray(bad))


async def test_a_stream_is_read_step_by_step(upstream: StartUpstream) -> None:
    """Head, marks in the content and chunks can be awaited one after the other, while upstream waits."""
    go_on = asyncio.Event()

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(stream_head() + chunk(b"on") + chunk(b"e\n\ntw"))
        await go_on.wait()
        await conn.send(chunk(b"o\n\n") + LAST_CHUNK)

    up = await upstream(step)
    async with await connect(up.port) as client:
        await client.send(post("/", b"{}"))
        head = await client.head()
        assert (head.status, head.header("transfer-encoding")) == (200, b"chunked")
        assert await client.read_until(b"\n\n") == b"one\n\n"
        go_on.set()
        assert await client.read_until(b"\n\n") == b"two\n\n"
        assert [piece async for piece in client.chunks()] == [b"on", b"e\n\ntw", b"o\n\n"]
        response = await client.rest()
    assert (response.body, response.complete) == (b"one\n\ntwo\n\n", True)
    assert response.raw == stream_head() + BODY_OF_TWO


BODY_OF_TWO = b"2\r\non\r\n5\r\ne\n\ntw\r\n3\r\no\n\n\r\n0\r\n\r\n"


async def test_informational_answers_are_listed(upstream: StartUpstream) -> None:
    """1xx heads come before the answer and are no answer."""
    up = await upstream(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n" + answer())
    async with await connect(up.port) as client:
        await client.send(post("/", b"{}"))
        response = await client.response()
    assert [seen.status for seen in response.informational] == [100, 103]
    assert response.status == 200


@pytest.mark.parametrize(
    ("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)], ids=["HEAD", "204", "304"]
)
async def test_bodiless_answers_have_no_body(upstream: StartUpstream, method: str, status: int) -> None:
    """After HEAD, 204 and 304 no body is read, and bytes that came anyhow are `leftover`."""
    up = await upstream(b"HTTP/1.1 %d X\r\nContent-Length: 3\r\n\r\nabc" % status)
    async with await connect(up.port) as client:
        await client.send(get("/").replace(b"GET", method.encode(), 1))
        response = await client.response(method)
        assert (response.body, response.complete) == (b"", True)
        await client.wire.until(lambda: bool(client.leftover), "the stray bytes")
        assert client.leftover == b"abc"


CUTS = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
    "chunked": stream_head() + chunk(b"half"),
    "mid-chunk": stream_head() + b"8\r\nhalf",
    "no head": b"HTTP/1.1 200 OK\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize("how", ["fin", "reset"])
@pytest.mark.parametrize("cut", CUTS)
async def test_a_cut_answer_is_incomplete_and_tells_reset_from_fin(
    upstream: StartUpstream, cut: str, how: str
) -> None:
    """RST and FIN are told apart, in every kind of framing, and neither makes an answer complete."""

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(CUTS[cut])
        if how == "fin":
            await conn.close()
        else:
            conn.reset()

    up = await upstream(step)
    async with await connect(up.port) as client:
        await client.send(post("/", b"{}"))
        response = await client.response()
        assert await client.eof() == how
    assert (response.complete, response.reset) == (False, how == "reset")
    assert response.status == (0 if cut.startswith("no") else 200)
    assert response.body == (b"" if response.status == 0 else b"half")


@pytest.mark.parametrize("how", ["fin", "reset"])
async def test_a_body_until_the_end_is_complete_with_fin_only(upstream: StartUpstream, how: str) -> None:
    """Without framing FIN finishes a body, and RST cuts it."""

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(b"HTTP/1.1 200 OK\r\n\r\nall")
        if how == "fin":
            await conn.close()
        else:
            conn.reset()

    up = await upstream(step)
    async with await connect(up.port) as client:
        await client.send(get("/"))
        response = await client.response("GET")
    assert (response.body, response.complete, response.reset) == (b"all", how == "fin", how == "reset")


@pytest.mark.parametrize("how", ["fin", "reset"])
async def test_upstream_sees_that_the_other_side_has_gone(upstream: StartUpstream, how: str) -> None:
    """`Conn.gone` returns on FIN and on RST, also in the middle of a request, and `open` follows."""
    seen = asyncio.Event()
    left = asyncio.Event()

    async def step(conn: Conn) -> None:
        assert await conn.read_until(b"\r\n\r\n") == b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n"
        assert await conn.read_exactly(2) == b"ab"
        assert not left.is_set()
        seen.set()
        await conn.gone()
        left.set()

    up = await upstream(raw(step))
    client = await connect(up.port)
    await client.send(b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nab")
    async with asyncio.timeout(rawclient.PATIENCE):
        await seen.wait()
        assert up.open == 1
        if how == "fin":
            client.close()
        else:
            client.reset()
        await left.wait()
    assert (up.open, up.arrived, up.requests) == (0, 1, [])
    assert up.conns[0].reads().endswith(b"\r\n\r\nab")


async def test_a_client_that_never_reads_stops_the_sender(upstream: StartUpstream) -> None:
    """`Conn.sent` counts what the kernel took; a client that does not read bounds it."""
    block = b"x" * 65536
    full = asyncio.Event()

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            sending = asyncio.ensure_future(conn.send(block))
            done, _pending = await asyncio.wait([sending], timeout=0.2)
            if not done:
                full.set()
            await sending

    up = await upstream(step)
    client = await connect(up.port, receive_buffer=4096)
    client.stop_reading()
    await client.send(get("/"))
    async with asyncio.timeout(rawclient.PATIENCE):
        await full.wait()
    assert up.conns[0].sent < 64 << 20
    client.go_on_reading()
    await client.head("GET")
    client.reset()
    await up.conns[0].gone()


async def test_connections_can_be_reset_before_a_request(upstream: StartUpstream) -> None:
    """`connected` acts on a connection before a byte of a request came."""
    up = await upstream(connected=Conn.reset)
    client = await connect(up.port)
    assert await client.eof() == "reset"
    assert (up.connections, up.arrived) == (1, 0)
    client.close()


async def test_tls(upstream: StartUpstream) -> None:
    """An upstream can speak TLS; a reset is still a reset."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    async def cut(conn: Conn, _: Request) -> None:
        await conn.send(stream_head() + chunk(b"half"))
        conn.reset()

    up = await upstream(answer(body=b"secret"), cut, tls=server)
    assert up.url == f"https://127.0.0.1:{up.port}"
    client = await connect(up.port, tls=trusting)
    await client.send(get("/"))
    assert (await client.response("GET")).body == b"secret"
    await client.send(get("/"))
    response = await client.response("GET")
    assert (response.body, response.complete, response.reset) == (b"half", False, True)


async def started(*steps: bytes) -> tuple[Upstream, Client]:
    up = Upstream(*steps)
    await up.start()
    return up, await connect(up.port)


async def test_an_unexpected_request_fails_the_test() -> None:
    """A request beyond the script gets no answer, and `check` says so."""
    up, client = await started()
    await client.send(get("/surprise"))
    response = await client.response("GET")
    assert (response.status, response.complete) == (0, False)
    assert await client.eof() == "fin"
    client.close()
    await up.stop()
    with pytest.raises(AssertionError, match="no step for request 1: b'GET /surprise"):
        up.check()


async def test_an_unused_step_fails_the_test_unless_it_is_allowed() -> None:
    """The script must have been played to its end."""
    up, client = await started(answer(), answer())
    await client.send(get("/"))
    assert (await client.response("GET")).status == 200
    client.close()
    await up.stop()
    with pytest.raises(AssertionError, match=r"1 step\(s\) were never asked for, 1 were"):
        up.check()
    up.allow_unused = True
    up.check()


async def test_a_step_that_raises_fails_the_test() -> None:
    """An assertion in a step is a failure, and not only a closed connection."""

    async def step(conn: Conn, request: Request) -> None:
        assert request.body == b"other", "not the other body"

    up = Upstream(step)
    await up.start()
    client = await connect(up.port)
    await client.send(post("/", b"{}"))
    assert (await client.response()).reset
    await up.stop()
    with pytest.raises(AssertionError, match="a step raised AssertionError: not the other body"):
        up.check()


async def test_a_hang_is_a_failure_with_a_message(upstream: StartUpstream) -> None:
    """A wait that lasts too long says what it waited for."""

    async def silent(conn: Conn, _: Request) -> None:
        await conn.gone()

    up = await upstream(silent)
    async with await connect(up.port) as client:
        await client.send(get("/"))
        client.wire.patience = 0.05
        with pytest.raises(AssertionError, match=r"bytes up to .* not within 0.05 s"):
            await client.response("GET")


async def test_a_mark_that_never_comes_is_gone(upstream: StartUpstream) -> None:
    """`read_until` does not wait for what cannot come any more."""
    up = await upstream(streamed(MESSAGE_EVENTS))
    async with await connect(up.port) as client:
        await client.send(post("/", b"{}"))
        await client.head()
        with pytest.raises(Gone):
            await client.read_until(b"never")
        assert (await client.rest()).body == b"".join(MESSAGE_EVENTS)


async def test_a_port_that_refuses(closed_port: int) -> None:
    """`closed_port` refuses at once."""
    with pytest.raises(ConnectionRefusedError):
        await connect(closed_port)


def test_an_event_is_spelt_as_the_provider_spells_it() -> None:
    """LF only, one line of JSON, a blank line."""
    assert sse("ping", {"type": "ping"}) == b'event: ping\ndata: {"type": "ping"}\n\n'
    assert sse(None, "[DONE]") == b"data: [DONE]\n\n"
