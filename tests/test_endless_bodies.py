"""A request body that never ends, or comes in the smallest pieces, costs bounded memory and linear time.

Facts
  - A chunk costs a reader far more than its bytes; taking them together anew for each was CVE-2025-69229.
  - What stands behind a chunk's size is ignored (RFC 9112 section 7.1.1), but must be read.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import tracemalloc
from collections.abc import Iterator

import pytest
from hostile_case import BODY, CHUNKED, MODEL, UPLOAD
from rawclient import Client, Gone, Response
from refusals import error_message
from running import StartProxy, StartUpstream
from scripted import LAST_CHUNK, Conn, answer, chunk, raw
from test_slow_reader import kernel_limit

from proxy import door

GOOD = answer(body=b"{}")
BLOCK = 65536


@pytest.fixture
def memory() -> Iterator[None]:
    """Python's memory is counted while the test runs."""
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.fixture(autouse=True)
def _linger_shortly(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an early answer the proxy reads on for a while; here nothing but the answer is wanted."""
    monkeypatch.setattr(door, "LINGER_SECONDS", 0.2)


async def sent_for_ever(client: Client, begin: bytes, block: bytes) -> Response:
    """The answer to a request whose body is `block` again and again; the connection is closed behind it."""

    async def send() -> None:
        with contextlib.suppress(Gone):
            await client.send(begin)
            while True:
                await client.send(block)
                # Where the kernel takes everything at once the proxy would get no turn.
                await asyncio.sleep(0)

    sending = asyncio.ensure_future(send())
    response = await client.response()
    await sending
    return response


async def test_an_endless_body_is_413(upstream: StartUpstream, proxy: StartProxy, memory: None) -> None:
    """On a model route it is read to the limit and not beyond, and about so much memory is used."""
    limit = 4 << 20
    up = await upstream()
    p = await proxy(up, max_body_bytes=limit)
    client = await p.connect()
    before, _ = tracemalloc.get_traced_memory()
    response = await sent_for_ever(client, MODEL + CHUNKED, chunk(b" " * BLOCK))
    error_message(response, 413)
    assert response.header("connection") == b"close"
    line = await p.line()
    assert line["status"] == 413
    # aiohttp reads ahead by at most two of its buffers.
    assert limit < line["bytes_in"] < limit + 4 * BLOCK
    _, peak = tracemalloc.get_traced_memory()
    assert peak - before < 2 * limit
    assert up.connections == 0


async def test_an_endless_upload_waits_for_upstream(
    upstream: StartUpstream, proxy: StartProxy, memory: None
) -> None:
    """On every other route it goes as fast as upstream takes it, and no byte is lost for the waiting."""
    goes_on = asyncio.Event()

    async def reads_late(conn: Conn) -> None:
        conn.stop_reading()
        await goes_on.wait()
        conn.go_on_reading()
        await conn.request()
        await conn.send(GOOD)

    up = await upstream(raw(reads_late))
    p = await proxy(up)
    client = await p.connect()
    await client.send(UPLOAD + CHUNKED)
    before, _ = tracemalloc.get_traced_memory()
    block = chunk(b"x" * BLOCK)
    count = 0
    while True:
        sending = asyncio.ensure_future(client.wire.send(block, forever=True))
        count += 1
        done, _ = await asyncio.wait([sending], timeout=0.5)
        if not done:
            break
        assert count * BLOCK < kernel_limit() + (4 << 20), "the proxy takes an upload without end"
    held = tracemalloc.get_traced_memory()[0] - before
    assert held < 2 << 20, f"{held} bytes"
    goes_on.set()
    await sending
    await client.send(LAST_CHUNK)
    assert (await client.response()).status == 200
    assert up.requests[0].body == b"x" * (BLOCK * count)


@pytest.mark.parametrize("begin", [MODEL, UPLOAD], ids=["model", "upload"])
async def test_an_endless_extension_is_408(
    upstream: StartUpstream, proxy: StartProxy, memory: None, begin: bytes
) -> None:
    """It is no byte of the body, so the time for the body runs out; and nobody keeps it."""
    up = await upstream()
    up.allow_unused = True
    p = await proxy(up, body_timeout=0.3)
    client = await p.connect()
    before, _ = tracemalloc.get_traced_memory()
    response = await sent_for_ever(client, begin + CHUNKED + b"d;", b"a" * BLOCK)
    error_message(response, 408)
    _, peak = tracemalloc.get_traced_memory()
    assert peak - before < 2 << 20
    await up.quiet()
    assert up.requests == []


def in_single_bytes(count: int) -> bytes:
    """A chunked body of `BODY` and blanks, `count` bytes, each a chunk of its own."""
    return b"".join(b"1\r\n%c\r\n" % byte for byte in BODY.ljust(count)) + LAST_CHUNK


@pytest.mark.parametrize("begin", [MODEL, UPLOAD], ids=["model", "upload"])
async def test_single_bytes_take_linear_time(
    upstream: StartUpstream, proxy: StartProxy, begin: bytes
) -> None:
    """Ten times as many one-byte chunks take about ten times as long, not a hundred times."""
    counts = (10_000, 100_000)
    up = await upstream(*[GOOD] * 2 * len(counts))
    p = await proxy(up)
    taken: list[float] = []
    for count in counts:
        best = float("inf")
        for _ in range(2):
            request = begin + CHUNKED + in_single_bytes(count)
            client = await p.connect()
            began = time.process_time()
            await client.send(request)
            assert (await client.response()).status == 200
            best = min(best, time.process_time() - began)
        taken.append(best)
    assert [len(request.body) for request in up.requests] == [count for count in counts for _ in range(2)]
    assert taken[1] < 40 * taken[0], taken
