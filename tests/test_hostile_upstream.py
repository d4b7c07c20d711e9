"""An upstream that sends without end, in pieces, or nonsense: its cost is bounded, what comes down is clean.

Not here: answers that are cut (`test_upstream_cut`), and the framing that two readers read differently
(`test_smuggling`).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import logging
import os
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from rawclient import PATIENCE, Gone, asked, connect, post
from running import StartProxy, StartUpstream, keyed
from scripted import (
    JSON_TYPE,
    LAST_CHUNK,
    MESSAGE,
    Conn,
    Request,
    Step,
    answer,
    chunk,
    raw,
    stream_head,
)

from proxy import accesslog
from proxy import framing as framing_room
from proxy import upstream as upstream_room
from proxy.exchange import Exchange

MESSAGES = "/anthropic/v1/messages"
BATCH = "/anthropic/v1/messages/batches/msgbatch_1"
GOOD = answer(body=MESSAGE)
ONCE = {"max_retries": 0}
FLOOD = 16 * framing_room.MAX_OVERHEAD_BYTES
"""Bytes after which an answer without end must have been cut; a part of them is in the sockets' buffers."""


# Without end.

ENDLESS = {
    "trailer fields": (b"0\r\n", b"x-a: " + b"b" * 93 + b"\r\n"),
    "one trailer": (b"0\r\nx-a: ", b"b" * 100),
    "one trailer's name": (b"0\r\n", b"b" * 100),
    "a chunk extension": (b"1;a=", b"b" * 100),
    "many chunk extensions": (b"1", b";a=b" * 25),
    "a chunk size": (b"", b"0" * 100),
}
"""What an answer goes on with behind its first chunk, and what it then repeats for ever."""


def endless(case: str, fields: bytes) -> tuple[Step, list[int]]:
    """A step that goes on until the proxy leaves, and how many bytes it could send."""
    begin, repeated = ENDLESS[case]
    sent: list[int] = []

    async def play(conn: Conn, _: Request) -> None:
        await conn.send(fields + chunk(b"{}") + begin)
        try:
            while conn.sent < FLOOD:
                await conn.send(repeated * 100)
                await asyncio.sleep(0)
        except Gone:
            sent.append(conn.sent)
        else:
            sent.append(FLOOD)
            await conn.gone()

    return play, sent


@pytest.mark.parametrize("case", ENDLESS)
async def test_an_answer_whose_framing_has_no_end_is_reset(
    upstream: StartUpstream, proxy: StartProxy, case: str
) -> None:
    """Extensions and trailers are bounded as a head is: no memory fills, and nothing is read for ever."""
    step, sent = endless(case, stream_head([JSON_TYPE]))
    p = await proxy(await upstream(step))
    response = await p.post(MESSAGES, asked())
    assert (response.status, response.complete, response.reset) == (200, False, True)
    line = await p.line()
    assert (line["ending"], line["error"]) == (
        "UD",
        "The provider sent a response head or trailers without end.",
    )
    assert sent == [sent[0]]
    assert sent[0] < FLOOD


@pytest.mark.parametrize("case", ENDLESS)
async def test_an_answer_whose_framing_has_no_end_is_502_where_it_can_be(
    upstream: StartUpstream, proxy: StartProxy, case: str
) -> None:
    """An answer that is read whole before it goes down is an error of ours."""
    step, sent = endless(case, stream_head([JSON_TYPE]))
    p = await proxy(keyed(await upstream(step), "main"))
    response = await p.get(BATCH)
    assert (response.status, response.complete) == (502, True)
    assert (await p.line())["ending"][0] == "U"
    assert sent[0] < FLOOD


async def test_trailers_and_extensions_within_the_limit_pass(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """The bound is on what comes between two bytes of the body, not on the whole answer."""
    extension = b";a=" + b"b" * 60_000
    chunks = (b"1" + extension + b"\r\nx\r\n") * 5
    trailers = b"x-a: " + b"b" * 60_000 + b"\r\n"
    up = await upstream(stream_head([JSON_TYPE]) + chunks + b"0\r\n" + trailers + b"\r\n", GOOD)
    p = await proxy(up)
    response = await p.post(MESSAGES, asked())
    assert (response.body, response.complete) == (b"xxxxx", True)
    assert (await p.post(MESSAGES, asked())).body == MESSAGE
    assert up.connections == 1


# The reason phrase.


async def test_a_reason_in_pieces_is_whole(upstream: StartUpstream, proxy: StartProxy) -> None:
    """However many reads it takes, the reason is upstream's own."""

    async def step(conn: Conn, _: Request) -> None:
        for byte in b"HTTP/1.1 404 Not Found At All\r\nContent-Length: 2\r\n\r\n{}":
            await conn.send(bytes((byte,)))
            await asyncio.sleep(0.001)

    p = await proxy(await upstream(step))
    response = await p.post(MESSAGES, asked())
    assert (response.status, response.reason, response.body) == (404, b"Not Found At All", b"{}")


async def test_the_reason_of_an_interim_answer_is_not_the_answers(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """Each status line has a reason of its own, and an empty one becomes the standard phrase."""
    data = b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 201 \r\nContent-Length: 2\r\n\r\n{}"
    p = await proxy(await upstream(data))
    response = await p.post(MESSAGES, asked())
    assert (response.status, response.reason) == (201, b"Created")


@pytest.mark.parametrize("byte", [b"\x01", b"\x08", b"\x0b", b"\x1b", b"\x1f", b"\x7f"])
async def test_a_reason_with_control_bytes_is_replaced(
    upstream: StartUpstream, proxy: StartProxy, byte: bytes
) -> None:
    """They are not allowed in a status line (RFC 9112 section 4), and a terminal would act on them."""
    p = await proxy(await upstream(b"HTTP/1.1 403 No" + byte + b"way\r\nContent-Length: 2\r\n\r\n{}"))
    response = await p.post(MESSAGES, asked())
    assert (response.status, response.reason, response.body) == (403, b"Forbidden", b"{}")


# An event without end.

CONFIG = """
listen: ["127.0.0.1:0"]
default_providers: {{anthropic: anthropic}}
providers:
  anthropic: {{base_urls: {{anthropic: "{url}"}}}}
  backup: {{base_urls: {{anthropic: "{url}"}}, is_key_less: true}}
"""
BLOCKS = 1600
"""Blocks of 64 KiB in one event: 100 MiB."""


def event_of_100_mib() -> Iterator[bytes]:
    """One event in parts, of which no two are equal."""
    yield b"event: content_block_delta\ndata: "
    for number in range(BLOCKS):
        yield b"%08x" % number * 8192
    yield b"\n\n"


@contextlib.asynccontextmanager
async def served(config: Path) -> AsyncIterator[tuple[int, int]]:
    """The proxy as a process of its own: its id and its port."""
    pipe = asyncio.subprocess.PIPE
    arguments = ("-m", "proxy", "serve", "--config", str(config))
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=pipe, stderr=pipe)
    try:
        assert process.stderr is not None
        async with asyncio.timeout(3 * PATIENCE):
            while b"serving on" not in (line := await process.stderr.readline()):
                assert line, "it ended without serving"
        yield process.pid, int(line.rpartition(b":")[2])
    finally:
        process.terminate()
        await process.communicate()
    assert process.returncode == 0


def memory_of(pid: int, name: str) -> int:
    """Bytes of the process: ``VmRSS`` now, ``VmHWM`` at most so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) * 1024


async def stalled(conn: Conn) -> None:
    """Returns when nothing more could be sent for a while."""
    before = -1
    while conn.sent != before:
        before = conn.sent
        await asyncio.sleep(0.2)


async def chunks_of(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The chunks of a body, each dropped when it was looked at; the last one must be there."""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        yield await reader.readexactly(size)
        assert await reader.readexactly(2) == b"\r\n"
    assert await reader.readexactly(2) == b"\r\n"


@pytest.mark.parametrize(
    ("pauses", "fallbacks"), [(3, None), (0, ["backup/claude-2"])], ids=["a slow reader", "with a fallback"]
)
async def test_an_event_of_100_mib_passes_in_bounded_memory(
    upstream: StartUpstream, tmp_path: Path, pauses: int, fallbacks: list[str] | None
) -> None:
    """It has no boundary inside; it passes byte for byte, and the process holds a few pieces of it."""
    sent = hashlib.sha256()

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(stream_head())
        for part in event_of_100_mib():
            sent.update(part)
            await conn.send(chunk(part))
        await conn.send(LAST_CHUNK)

    up = await upstream(answer(body=MESSAGE), step)
    config = tmp_path / "proxy.yaml"
    config.write_text(CONFIG.format(url=up.url))
    came, size = hashlib.sha256(), 0
    async with served(config) as (pid, port), asyncio.timeout(60):
        first = await connect(port)
        await first.send(post(MESSAGES, asked()))
        assert (await first.response()).status == 200
        first.close()
        idle = memory_of(pid, "VmRSS")

        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post(MESSAGES, asked(stream=True, fallbacks=fallbacks)))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        pauses_at = [BLOCKS * 65536 * number // pauses for number in range(pauses)]
        async for data in chunks_of(reader):
            came.update(data)
            size += len(data)
            if pauses_at and size > pauses_at[0]:
                pauses_at.pop(0)
                await stalled(up.conns[-1])
        writer.close()
        await writer.wait_closed()
        grown = memory_of(pid, "VmHWM") - idle
    assert size == BLOCKS * 65536 + len(b"event: content_block_delta\ndata: \n\n")
    assert came.digest() == sent.digest()
    assert pauses_at == []
    assert grown < 16 * 2**20, f"{grown} bytes more than idle"


# A slow upstream.

LARGE = 24 * 1024 * 1024
PIECE = 1024 * 1024


async def test_a_large_body_that_is_read_slowly_is_no_timeout(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """`first_byte_timeout` counts from when upstream last took something: it cannot answer before."""
    first_byte_timeout = 1.5

    async def reads_slowly(conn: Conn) -> None:
        # Long before the last byte was written: what the kernel holds is less than what is left.
        for _ in range(12):
            await conn.read_exactly(PIECE)
            conn.stop_reading()
            # Far less than the timer: a slow machine may take longer.
            await asyncio.sleep(first_byte_timeout / 7)
            conn.go_on_reading()
        await conn.read_exactly(LARGE - 12 * PIECE)
        await conn.send(GOOD)

    p = await proxy(
        await upstream(raw(reads_slowly)), network={**ONCE, "first_byte_timeout": first_byte_timeout}
    )
    response = await p.post(MESSAGES, asked(padding="x" * LARGE))
    assert (response.status, response.body) == (200, MESSAGE)
    assert (await p.line())["total_ms"] > 1.5 * 1000 * first_byte_timeout


async def test_a_large_body_that_is_not_read_is_504(upstream: StartUpstream, proxy: StartProxy) -> None:
    """The timer is not switched off by a body that is still on its way."""

    async def never_reads(conn: Conn) -> None:
        conn.stop_reading()
        await asyncio.sleep(1)
        conn.go_on_reading()
        await conn.gone()

    p = await proxy(await upstream(raw(never_reads)), network={**ONCE, "first_byte_timeout": 0.3})
    response = await p.post(MESSAGES, asked(padding="x" * LARGE))
    assert response.status == 504
    assert (await p.line())["ending"] == "uH"


# Bounds.


async def test_the_pool_is_bounded(
    upstream: StartUpstream, proxy: StartProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond `POOL_SIZE` idle connections are closed, however many were needed at once."""
    monkeypatch.setattr(upstream_room, "POOL_SIZE", 2)
    count = 5
    everyone = asyncio.Barrier(count)

    async def together(conn: Conn, _: Request) -> None:
        await everyone.wait()
        await conn.send(GOOD)

    up = await upstream(*[together] * count, GOOD)
    p = await proxy(up)
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        asking = [group.create_task(p.post(MESSAGES, asked())) for _ in range(count)]
    assert [task.result().status for task in asking] == [200] * count
    leaving = [asyncio.ensure_future(conn.gone()) for conn in up.conns]
    async with asyncio.timeout(PATIENCE):
        while sum(task.done() for task in leaving) < count - 2:
            await asyncio.wait([task for task in leaving if not task.done()], return_when="FIRST_COMPLETED")
    assert (up.open, up.connections) == (2, count)
    assert (await p.post(MESSAGES, asked())).status == 200
    assert (up.open, up.connections) == (2, count)
    for task in leaving:
        task.cancel()
    await asyncio.wait(leaving)


def exchange(number: int) -> Exchange:
    finished = Exchange(f"req_{number}", "GET", "/health", started=0.0, at=0.0)
    finished.status, finished.ending, finished.ended = 200, "--", 1.0
    return finished


async def test_a_stalled_reader_of_the_log_costs_a_bounded_number_of_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What does not fit is dropped, counted and said; what did fit is written in order."""
    monkeypatch.setattr(accesslog, "MAX_WAITING", 3)
    stalled, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    written: list[bytes] = []

    def write(batch: bytes) -> None:
        loop.call_soon_threadsafe(stalled.set)
        assert go_on.wait(PATIENCE)
        written.append(batch)

    log = accesslog.AccessLog(write)
    log.log(exchange(0))
    async with asyncio.timeout(PATIENCE):
        await stalled.wait()
    for number in range(1, 8):
        log.log(exchange(number))
    with caplog.at_level(logging.WARNING):
        go_on.set()
        await log.close()
    ids = [line.split(b'"request_id":"')[1].split(b'"')[0] for line in b"".join(written).splitlines()]
    assert ids == [b"req_0", b"req_1", b"req_2", b"req_3"]
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "4 access-log lines were dropped: the reader of stdout stalled")
    ]


async def stays(conn: Conn) -> None:
    await conn.request()
    await conn.gone()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_client_that_leaves_while_connecting_leaves_no_socket(
    upstream: StartUpstream, proxy: StartProxy, host: str
) -> None:
    """In whichever turn of the loop it leaves, that in which connecting completes included."""
    tries, turns = 400, 20
    up = await upstream(*[raw(stays)] * (tries + 1))
    up.allow_unused = True
    p = await proxy({"base_urls": {"anthropic": up.url.replace("127.0.0.1", host)}})
    # The threads that write the log and resolve names, and what they open, come with the first request.
    first = await p.connect()
    await first.send(post(MESSAGES, asked()))
    await up.received()
    first.reset()
    await p.line()
    await up.quiet()
    gc.collect()
    before = descriptors()
    for number in range(tries):
        client = await p.connect()
        client.wire.transport.write(post(MESSAGES, asked()))
        for _ in range(number % turns):
            await asyncio.sleep(0)
        client.reset()
    await up.quiet()
    await p.stop()
    await up.quiet()
    for client in p.clients:
        client.close()
    await asyncio.sleep(0)
    gc.collect()
    # The sockets on which the proxy listened are closed now; nothing else may have been added.
    assert descriptors() <= before
