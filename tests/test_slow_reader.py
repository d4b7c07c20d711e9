"""A slow reader slows its own stream down, and costs a bounded amount of memory.

Facts
  - Whatever the proxy does not take stays in the kernel's buffers, and then upstream cannot send.
  - Both sides of these tests live in one process: what `tracemalloc` counts beyond the start is what the
    proxy holds, besides one block of the scripted upstream for each stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import tracemalloc
from collections.abc import Iterator

import pytest
from rawclient import Client, asked, get, post, request_head
from running import Proxy, StartProxy, StartUpstream
from scripted import (
    LAST_CHUNK,
    Conn,
    Request,
    Step,
    answer,
    chunk,
    raw,
    sse,
    stream_head,
)

MESSAGES = "/anthropic/v1/messages"
EVENT = sse("content_block_delta", "x" * 16_000)
BLOCK = chunk(EVENT)
STREAMS = 6
BUFFER = 65536


@pytest.fixture
def memory() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


class Stalls:
    """A step that sends until for `seconds` nothing more could be sent; then it goes on, or finishes."""

    def __init__(self, seconds: float = 0.5, *, finishes: bool = False) -> None:
        self.stalled = asyncio.Event()
        self._seconds = seconds
        self._finishes = finishes

    async def __call__(self, conn: Conn, _: Request) -> None:
        await conn.send(stream_head())
        while not (self._finishes and self.stalled.is_set()):
            sending = asyncio.ensure_future(conn.send(BLOCK))
            try:
                if await stands(sending, self._seconds):
                    self.stalled.set()
                await sending
            finally:
                sending.cancel()
        await conn.send(LAST_CHUNK)


async def stands(sending: asyncio.Future[None], seconds: float) -> bool:
    """Whether what is being sent cannot be for so long."""
    # In two parts: that the time of one has passed shows nothing where the machine stood still.
    for _ in range(2):
        await asyncio.wait([sending], timeout=seconds / 2)
    return not sending.done()


async def never_reads(p: Proxy) -> Client:
    """A client that asks for a stream and reads nothing of it."""
    client = await p.connect(receive_buffer=4096)
    client.stop_reading()
    await client.send(post(MESSAGES, asked(stream=True)))
    return client


def kernel_limit() -> int:
    """The most bytes that the kernel's buffers hold on the way: two sends and two receives, in bytes."""
    limits = []
    for name in ("tcp_wmem", "tcp_rmem"):
        with open(f"/proc/sys/net/ipv4/{name}") as setting:
            limits.append(int(setting.read().split()[2]))
    return 2 * sum(limits)


async def test_memory_is_bounded_for_clients_that_never_read(
    upstream: StartUpstream, proxy: StartProxy, memory: None
) -> None:
    """An endless stream stops when its client does not read; about `max_buffer_bytes` of it are held."""
    steps = [Stalls() for _ in range(STREAMS)]
    up = await upstream(*steps)
    p = await proxy(up, max_buffer_bytes=BUFFER, ping_interval=0.05)
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(STREAMS):
        await never_reads(p)
    for step in steps:
        async with asyncio.timeout(20):
            await step.stalled.wait()
    held = (tracemalloc.get_traced_memory()[0] - before) / STREAMS
    # Beside the buffer: what was read but not parsed, the upstream's own block, and the connections' objects.
    assert held < 3 * BUFFER + len(BLOCK) + 65536, f"{held:.0f} bytes a stream"
    for conn in up.conns:
        assert conn.sent < kernel_limit() + 4 * BUFFER


@pytest.mark.parametrize("how", [Client.close, Client.reset], ids=["FIN", "RST"])
async def test_a_client_that_never_read_can_leave(
    upstream: StartUpstream, proxy: StartProxy, how: object
) -> None:
    """Though nothing can be written to it, its leaving is seen, and upstream is closed."""
    step = Stalls()
    up = await upstream(step)
    p = await proxy(up)
    client = await never_reads(p)
    async with asyncio.timeout(20):
        await step.stalled.wait()
    assert callable(how)
    how(client)
    await up.quiet()
    assert (await p.line())["ending"] == "DD"


def sends(events: list[bytes]) -> Step:
    async def play(conn: Conn, _: Request) -> None:
        await conn.send(stream_head())
        for event in events:
            await conn.send(chunk(event))
        await conn.send(LAST_CHUNK)

    return play


EVENTS = [sse("content_block_delta", f"{i}:" + "é" * 3000) for i in range(1000)]
DIGEST = hashlib.sha256(b"".join(EVENTS)).hexdigest()


async def test_a_slow_reader_gets_every_byte(upstream: StartUpstream, proxy: StartProxy) -> None:
    """A client that reads in small steps has the same stream in the end, and pings do not tear it."""
    up = await upstream(sends(EVENTS))
    p = await proxy(up, max_buffer_bytes=4096, ping_interval=0)
    client = await p.connect(receive_buffer=4096)
    await client.send(post(MESSAGES, asked(stream=True)))
    await client.head()
    for event in EVENTS[::50]:
        client.stop_reading()
        await asyncio.sleep(0)
        client.go_on_reading()
        await client.read_until(event)
    response = await client.rest()
    assert response.complete
    assert hashlib.sha256(response.body).hexdigest() == DIGEST


async def test_a_slow_reader_slows_nobody_else_down(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Beside clients that never read, another one gets its whole stream."""
    slow = [Stalls() for _ in range(STREAMS)]
    up = await upstream(*slow, sends(EVENTS))
    p = await proxy(up)
    for _ in slow:
        await never_reads(p)
    for step in slow:
        async with asyncio.timeout(20):
            await step.stalled.wait()
    response = await p.post(MESSAGES, asked(stream=True))
    assert (response.complete, hashlib.sha256(response.body).hexdigest()) == (True, DIGEST)


async def test_a_slow_readers_silence_is_not_upstreams(upstream: StartUpstream, proxy: StartProxy) -> None:
    """While the proxy itself does not read, `idle_timeout` does not run: the stream goes on afterwards."""
    step = Stalls(1.5, finishes=True)
    up = await upstream(step)
    p = await proxy(up, network={"idle_timeout": 1}, ping_interval=0)
    client = await never_reads(p)
    async with asyncio.timeout(20):
        # A second and a half without progress is longer than `idle_timeout`.
        await step.stalled.wait()
    assert up.open == 1
    client.go_on_reading()
    response = await client.response()
    assert response.complete
    assert response.body == EVENT * (len(response.body) // len(EVENT))


async def test_pings_do_not_pile_up(upstream: StartUpstream, proxy: StartProxy) -> None:
    """A stream that cannot be written to needs no ping: none waits in memory for its reader."""
    stalls = Stalls()
    up = await upstream(stalls)
    p = await proxy(up, ping_interval=0.01)
    client = await never_reads(p)
    async with asyncio.timeout(20):
        await stalls.stalled.wait()
    assert p.server._handler is not None
    ((exchange, _),) = p.server._handler._open.values()
    pings = exchange.pings
    # Time for fifty.
    await asyncio.sleep(0.5)
    client.reset()
    assert (await p.line())["pings"] == pings


async def test_an_upstream_that_does_not_read_slows_an_upload_down(
    upstream: StartUpstream, proxy: StartProxy, memory: None
) -> None:
    """The same in the other direction: an upload is not collected in memory."""

    over = asyncio.Event()

    async def deaf(conn: Conn) -> None:
        await conn.read_until(b"\r\n\r\n")
        conn.stop_reading()
        await over.wait()
        # Only who reads sees that the other side has gone.
        conn.go_on_reading()
        await conn.gone()

    up = await upstream(raw(deaf))
    p = await proxy(up, network={"first_byte_timeout": 8})
    client = await p.connect()
    fields = [(b"Host", b"h"), (b"Content-Length", b"%d" % (1 << 40))]
    await client.send(request_head("POST", "/anthropic/v1/files", fields))
    before, _ = tracemalloc.get_traced_memory()
    sent = 0
    stalled = False
    block = b"x" * 65536
    while not stalled:
        sending = asyncio.ensure_future(client.wire.send(block, forever=True))
        stalled = await stands(sending, 0.5)
        sent += len(block)
        assert sent < kernel_limit() + (4 << 20), "the proxy takes an upload without end"
    held = tracemalloc.get_traced_memory()[0] - before
    assert held < 2 << 20, f"{held} bytes"
    client.reset()
    with pytest.raises(ConnectionError):
        await sending
    # A proxy that does not read from its client cannot see it leave either; then a timer ends the request.
    assert (await p.line())["ending"][0] in "Du"
    over.set()
    await up.quiet()


async def test_a_large_answer_to_a_slow_reader_is_whole(upstream: StartUpstream, proxy: StartProxy) -> None:
    """An answer with Content-Length is held back by its reader as a stream is, and is complete in the end."""
    body = b"".join(b"%08d" % i for i in range(1_000_000))
    up = await upstream(answer(body=body))
    p = await proxy(up, max_buffer_bytes=4096)
    client = await p.connect(receive_buffer=4096)
    client.stop_reading()
    await client.send(post(MESSAGES, asked()))
    await up.received()
    client.go_on_reading()
    response = await client.response()
    assert (response.complete, hashlib.sha256(response.body).digest()) == (
        True,
        hashlib.sha256(body).digest(),
    )


async def test_a_reader_that_stands_still_is_reset(upstream: StartUpstream, proxy: StartProxy) -> None:
    """`send_timeout` ends it, so that it cannot hold an upstream connection for ever."""
    gone = asyncio.Event()

    async def floods(conn: Conn, _: Request) -> None:
        await conn.send(stream_head())
        data = chunk(b"event: x\ndata: " + b"y" * 60_000 + b"\n\n")
        with contextlib.suppress(ConnectionError):
            while True:
                await conn.send(data)
        await conn.gone()
        gone.set()

    p = await proxy(await upstream(floods), send_timeout=0.2)
    client = await p.connect()
    await client.send(post(MESSAGES, asked(stream=True)))
    await client.head()
    client.stop_reading()
    async with asyncio.timeout(10):
        await gone.wait()
    line = await p.line()
    assert (line["ending"], line["error"]) == ("dD", "The client does not read.")
    client.go_on_reading()
    assert await client.eof() == "reset"


async def test_replies_of_ours_do_not_pile_up(upstream: StartUpstream, proxy: StartProxy) -> None:
    """A client that asks and asks and reads nothing gets no second reply before it has taken the first."""
    p = await proxy(await upstream(), send_timeout=0.5)
    client = await p.connect(receive_buffer=4096)
    client.stop_reading()
    sending = asyncio.ensure_future(client.send(get("/metrics") * 2000))
    line = await p.line()
    assert p.server._downstream is not None
    assert p.server._listener is not None
    left = asyncio.ensure_future(p.server._listener.all_left.wait())
    async with asyncio.timeout(10):
        while not left.done():
            for door in p.server._downstream.connections:
                if door.transport is not None:
                    assert door.transport.get_write_buffer_size() < 2 * line["bytes_out"] + 100_000
            await asyncio.wait([left], timeout=0.05)
    sending.cancel()
    await p.stop()
    assert len(p.lines) < 1000
