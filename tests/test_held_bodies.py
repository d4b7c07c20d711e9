"""The cap over all held bodies: beyond it a request is asked to come again, and memory stays bounded."""

from __future__ import annotations

import asyncio
import gzip

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rawclient import asked, post, request_head
from running import Proxy, StartProxy, StartUpstream
from scripted import MESSAGE, Conn, Request, Step, answer, chunk, head

MESSAGES = "/anthropic/v1/messages"
GOOD = answer(body=MESSAGE)
SIZE = 60_000


def sized(size: int = SIZE) -> bytes:
    """A good body of exactly `size` bytes."""
    empty = asked(metadata={"pad": ""})
    return asked(metadata={"pad": "x" * (size - len(empty))})


async def held(p: Proxy) -> float:
    """What `/metrics` says is held."""
    text = (await p.get("/metrics")).body.decode()
    return next(
        family.samples[0].value
        for family in text_string_to_metric_families(text)
        if family.name == "verbatim_buffered_bytes"
    )


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_beyond_the_cap_it_is_503_with_retry_after(
    upstream: StartUpstream, proxy: StartProxy, framing: str
) -> None:
    """One body waits for its provider; a second has no room until it has gone."""
    go = asyncio.Event()

    async def step(conn: Conn, _: Request) -> None:
        await go.wait()
        await conn.send(GOOD)

    up = await upstream(step, GOOD)
    p = await proxy(up, max_buffered_bytes=100_000, max_body_bytes=100_000)
    first = await p.connect()
    await first.send(post(MESSAGES, sized()))
    await up.received()
    assert await held(p) == SIZE
    if framing == "length":
        request = post(MESSAGES, sized())
    else:
        fields = [(b"Host", b"h"), (b"Transfer-Encoding", b"chunked")]
        request = request_head("POST", MESSAGES, fields) + chunk(sized()) + b"0\r\n\r\n"
    response = await p.ask(request)
    assert (response.status, response.header("retry-after")) == (503, b"1")
    assert b"overloaded_error" in response.body
    assert (await p.post(MESSAGES, sized(30_000))).status == 200, "what has room is served"
    go.set()
    assert (await first.response()).status == 200
    assert await held(p) == 0
    up.then(GOOD)
    assert (await p.ask(request)).status == 200
    assert [request.body for request in up.requests].count(sized()) == 2


async def test_a_promise_costs_nothing(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Clients that announce large bodies and send nothing keep nobody out."""
    up = await upstream(GOOD)
    p = await proxy(up, max_buffered_bytes=100_000, max_body_bytes=100_000)
    fields = [(b"Host", b"h"), (b"Content-Length", b"90000")]
    for _ in range(20):
        await (await p.connect()).send(request_head("POST", MESSAGES, fields) + b"{")
    assert (await p.post(MESSAGES, sized())).status == 200


async def test_a_refusal_comes_before_the_upload(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Who asks first (100-continue) is told without having sent a byte of the body."""
    go = asyncio.Event()

    async def step(conn: Conn, _: Request) -> None:
        await go.wait()
        await conn.send(GOOD)

    up = await upstream(step)
    p = await proxy(up, max_buffered_bytes=100_000, max_body_bytes=100_000)
    first = await p.connect()
    await first.send(post(MESSAGES, sized()))
    await up.received()
    client = await p.connect()
    fields = [(b"Host", b"h"), (b"Content-Length", b"90000"), (b"Expect", b"100-continue")]
    await client.send(request_head("POST", MESSAGES, fields))
    response = await client.response()
    assert (response.status, response.informational) == (503, [])
    go.set()
    assert (await first.response()).status == 200


async def test_what_a_body_is_decoded_to_counts(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Small compressed bodies that are large inside are held to the same cap, and let go after the look."""
    body = gzip.compress(sized(90_000))
    assert len(body) < 5_000
    up = await upstream(GOOD)
    p = await proxy(up, max_buffered_bytes=100_000, max_body_bytes=100_000)
    client = await p.connect()
    await client.send(post(MESSAGES, sized(50_000))[:-1])
    while await held(p) < 49_000:
        pass
    request = post(MESSAGES, body, [(b"Content-Encoding", b"gzip")])
    assert (await p.ask(request)).status == 503
    client.reset()
    while await held(p):
        pass
    assert (await p.ask(request)).status == 200
    assert up.requests[0].body == body
    assert await held(p) == 0


ENDS: dict[str, list[Step]] = {
    "an answer": [GOOD],
    "an error": [answer(400)],
    "a cut": [head(200, [(b"Content-Length", b"5")]) + b"x"],
    "a bad answer": [b"nonsense\r\n\r\n"],
}


@pytest.mark.parametrize("case", ENDS)
async def test_what_was_held_is_let_go(upstream: StartUpstream, proxy: StartProxy, case: str) -> None:
    """Whatever becomes of the request."""

    async def closes(conn: Conn, _: Request) -> None:
        await conn.send(b"".join(step for step in ENDS[case] if isinstance(step, bytes)))
        await conn.close()

    up = await upstream(closes)
    p = await proxy(up, network={"max_retries": 0}, max_buffered_bytes=100_000, max_body_bytes=100_000)
    await p.post(MESSAGES, sized())
    await p.line()
    assert await held(p) == 0


async def test_a_client_that_leaves_lets_go(upstream: StartUpstream, proxy: StartProxy) -> None:
    """In the middle of its body."""
    p = await proxy(await upstream(), max_buffered_bytes=100_000, max_body_bytes=100_000)
    client = await p.connect()
    await client.send(post(MESSAGES, sized())[:-10])
    async with asyncio.timeout(10):
        while not await held(p):
            pass
        client.reset()
        while await held(p):
            pass


async def test_an_open_stream_holds_no_body(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Once upstream has begun to answer the request's body is gone."""

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(head(200, [(b"Content-Length", b"2")]) + b"{")
        await done.wait()
        await conn.send(b"}")

    done = asyncio.Event()
    p = await proxy(await upstream(step), max_buffered_bytes=100_000, max_body_bytes=100_000)
    client = await p.connect()
    await client.send(post(MESSAGES, sized()))
    await client.head()
    await client.read_until(b"{")
    assert await held(p) == 0
    done.set()
    assert (await client.rest()).complete
