"""A hop between two programs that keeps what passes and changes nothing, and one that leads nowhere.

In front of the proxy it shows what a program sends that nobody can look into, byte for byte.

Not here: any judgement, and waiting for more than bytes of answers.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from rawclient import PATIENCE, Body, Gone, Wire, header_pairs, header_values, take
from running import StartProxy
from scripted import Request


class Hop:
    """Listens on a free port of 127.0.0.1, and passes everything on to `port` there."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._pairs: list[tuple[Wire, Wire]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._answered = asyncio.Event()

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Wire(self._opened), "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def requests(self) -> list[Request]:
        """Every request that passed, connection by connection."""
        return [
            request
            for number, (client, _) in enumerate(self._pairs)
            for request in requests_in(bytes(client.everything), number)
        ]

    @property
    def answers(self) -> bytes:
        """Every byte that came back."""
        return b"".join(bytes(server.everything) for _, server in self._pairs)

    async def answered(self, mark: bytes, count: int) -> None:
        """Returns when `mark` has passed `count` times in answers, over all connections."""
        try:
            async with asyncio.timeout(PATIENCE):
                while self.answers.count(mark) < count:
                    self._answered.clear()
                    await self._answered.wait()
        except TimeoutError:
            raise AssertionError(f"{mark!r} passed {self.answers.count(mark)} times, not {count}") from None

    def _opened(self, client: Wire) -> None:
        task = asyncio.get_running_loop().create_task(self._joined(client))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _joined(self, client: Wire) -> None:
        loop = asyncio.get_running_loop()
        _, server = await loop.create_connection(Wire, "127.0.0.1", self._to)
        self._pairs.append((client, server))
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._passed(client, server))
                both.create_task(self._passed(server, client))
        finally:
            client.transport.abort()
            server.transport.abort()

    async def _passed(self, source: Wire, sink: Wire) -> None:
        """Passes bytes on as they come, and an end as it was: FIN as FIN, RST as RST."""
        while True:
            await source.until(lambda: bool(source.received) or source.over, "bytes", forever=True)
            if not source.received:
                break
            data = take(source.received, len(source.received))
            self._answered.set()
            try:
                await sink.send(data, forever=True)
            except Gone:
                source.reset()
                return
        if source.end == "fin":
            sink.finish_sending()
        else:
            sink.reset()


def requests_in(raw: bytes, number: int) -> list[Request]:
    """The whole requests in what one connection, the `number`-th, has carried."""
    left = bytearray(raw)
    found = []
    while b"\r\n\r\n" in left:
        top = take(left, left.index(b"\r\n\r\n") + 4)
        first, *lines = top.removesuffix(b"\r\n\r\n").split(b"\r\n")
        line = re.fullmatch(rb"([A-Z]+) (\S+) (HTTP/1\.1)", first)
        assert line, f"not a request line: {first!r}"
        headers = header_pairs(lines)
        chunked = bool(header_values(headers, "transfer-encoding"))
        length = header_values(headers, "content-length")
        body = Body(length=int(length[0]) if length else 0, chunked=chunked)
        body.pull(left)
        if not body.done:
            break
        found.append(
            Request(
                raw=top + bytes(body.raw),
                method=line[1].decode(),
                target=line[2],
                version=line[3],
                headers=headers,
                body=bytes(body.data),
                chunked=chunked,
                connection_number=number,
            )
        )
    return found


StartHop = Callable[[int], Awaitable[Hop]]


@pytest.fixture
async def hop(proxy: StartProxy) -> AsyncIterator[StartHop]:
    """Starts a hop to a port: ``h = await hop(p.port)``. It is stopped before the proxy is."""
    started: list[Hop] = []

    async def start(port: int) -> Hop:
        one = Hop(port)
        await one.start()
        started.append(one)
        return one

    yield start
    for one in started:
        await one.stop()


@pytest.fixture
async def elsewhere() -> AsyncIterator[str]:
    """The URL of an HTTP proxy that nobody may use."""
    asked: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    await server.wait_closed()
    assert not asked, f"asked of other hosts: {asked}"
