"""Restarts under load: the socket stays, processes come and go on it, and no request is lost.

Facts
  - The kernel keeps who connects while nobody accepts, as long as somebody holds the socket: systemd, and
    here the test.
  - A client that has heard ``Connection: close`` asks on a new connection. A server that closes without
    having said so may do it in the moment in which a request is sent; HTTP has no remedy for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import signal
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Self

import crowd
from crowd import Call, Process, Service, clock
from rawclient import Client, Gone, Response, asked, connect, post, request_head
from scripted import LAST_CHUNK, answer, chunk, sse, stream_head

MESSAGES = "/anthropic/v1/messages"
FILES = "/anthropic/v1/files"

RESTARTS = 10
KILLS = 3

LARGE = 1_000_000
"""Bytes of a large body and of an upload."""

PARTS = 10
"""An upload comes in so many."""

EVENTS = [sse("content_block_delta", {"index": index, "text": "word " * 10}) for index in range(20)]
PACE = 0.04
"""Seconds between two events of a stream."""

CONFIG = """
listen: ["127.0.0.1:0"]
providers:
  anthropic:
    base_urls: {{anthropic: "{url}"}}
"""


def answer_to(number: str) -> bytes:
    return b'{"answers":"%b"}' % number.encode()


async def provide(call: Call, body: bytes) -> None:
    """Answers each request with its number, some at once, others in a moment; streams take their time."""
    number = call.field("x-id")
    if b'"stream":true' in body:
        await call.send(stream_head())
        for event in EVENTS:
            await call.send(chunk(event))
            await asyncio.sleep(PACE)
        await call.send(LAST_CHUNK)
        return
    await asyncio.sleep(int(number) % 5 * 0.004)
    await call.send(answer(body=answer_to(number)))


class Traffic:
    """Clients that ask without end; what they asked and what became of it."""

    def __init__(self, port: int) -> None:
        self.answered: set[str] = set()
        self.lost: list[str] = []
        self.counts: Counter[str] = Counter()
        self.worst = 0.0
        self.cut = 0
        """Streams that did not come to their end."""
        self.mistaken: list[Response] = []
        """Answers that look whole, and are not."""
        self._port = port
        self._numbers = itertools.count(1)
        self._listening: set[Client] = set()
        self._over = False

    async def __aenter__(self) -> Self:
        """Eight that keep their connection, eight that do not, large bodies, uploads, twenty streams."""
        kinds: list[tuple[int, Callable[[], Coroutine[Any, Any, None]]]] = [
            (8, self._keeps),
            (8, self._returns),
            (2, self._sends_large),
            (2, self._uploads),
            (20, self._listens),
        ]
        self._clients = [asyncio.create_task(kind()) for count, kind in kinds for _ in range(count)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients:
            client.cancel()
        await asyncio.wait(self._clients)

    async def end(self) -> None:
        """Ask no more; what was asked is still waited for."""
        self._over = True
        await asyncio.gather(*self._clients)

    async def _keeps(self) -> None:
        async with contextlib.AsyncExitStack() as connection:
            client: Client | None = None
            while not self._over:
                # As a real client does: a connection that was closed while it was idle is not used.
                if client is None or client.wire.over:
                    await connection.aclose()
                    client = await connection.enter_async_context(await self.connect())
                response = await self.ask(client, "kept", self.message(asked()))
                if response is None or response.header("connection") == b"close":
                    client = None

    async def _returns(self) -> None:
        while not self._over:
            async with await self.connect() as client:
                await self.ask(client, "new", self.message(asked()))

    async def _sends_large(self) -> None:
        body = asked(metadata={"pad": "x" * LARGE})
        while not self._over:
            async with await self.connect() as client:
                await self.ask(client, "large", self.message(body))

    async def _uploads(self) -> None:
        part = b"u" * (LARGE // PARTS)
        while not self._over:
            number = f"{next(self._numbers)}"
            fields = [(b"Host", b"h"), (b"x-id", number.encode()), (b"Content-Length", b"%d" % LARGE)]
            async with await self.connect() as client:
                head = request_head("POST", FILES, fields)
                await self.ask(client, "upload", (number, [head, *[part] * PARTS]))

    async def _listens(self) -> None:
        while not self._over:
            async with await self.connect() as client:
                self._listening.add(client)
                await self.ask(client, "stream", self.message(asked(stream=True)))
                self._listening.remove(client)

    def listens(self) -> bool:
        """Whether somebody has had the beginning of a stream, and not yet half of it."""
        came = [bytes(client.wire.everything) for client in self._listening]
        return any(EVENTS[0] in begun and EVENTS[len(EVENTS) // 2] not in begun for begun in came)

    def message(self, body: bytes) -> tuple[str, list[bytes]]:
        number = f"{next(self._numbers)}"
        return number, [post(MESSAGES, body, [(b"x-id", number.encode())])]

    async def connect(self) -> Client:
        client = await connect(self._port)
        client.wire.patience = crowd.HUSH_SECONDS
        return client

    async def ask(self, client: Client, kind: str, request: tuple[str, list[bytes]]) -> Response | None:
        """One request and its whole answer; None where it is lost."""
        number, parts = request
        began = clock()
        try:
            for part in parts:
                await client.send(part)
                if len(parts) > 1:
                    await asyncio.sleep(0.01)
            response = await client.response()
        except Gone as error:
            self.lost.append(f"{kind} {number}: {error}")
            return None
        expected = b"".join(EVENTS) if kind == "stream" else answer_to(number)
        if (response.status, response.complete, response.body) != (200, True, expected):
            if response.status == 200 and response.complete:
                self.mistaken.append(response)
            self.cut += kind == "stream" and response.status == 200
            self.lost.append(f"{kind} {number}: {response}, {client.wire.end}")
            return None
        if kind != "stream":
            self.worst = max(self.worst, clock() - began)
        self.counts[kind] += 1
        self.answered.add(number)
        return response

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.counts.items())
        whole = sum(self.counts.values())
        return f"{whole} requests whole ({kinds}), {len(self.lost)} lost; the worst wait {self.worst:.2f} s"


class Replaced:
    """The processes of a service, one after another."""

    process: Process

    def __init__(self, service: Service) -> None:
        self.codes: list[asyncio.Task[int]] = []
        self._service = service

    async def __aenter__(self) -> Self:
        self.process = await self._service.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for code in self.codes:
            code.cancel()

    async def stop_and_start(self) -> None:
        """As ``systemctl restart`` does: who connects meanwhile waits."""
        self.stop()
        await self.codes[-1]
        self.process = await self._service.start()

    async def overlap(self) -> None:
        """The new process serves before the old one stops."""
        fresh = await self._service.start()
        self.stop()
        self.process = fresh

    async def reload(self) -> None:
        self.process.signal(signal.SIGHUP)
        await self.process.told("RELOADING=1")
        await self.process.told("READY=1")

    def stop(self) -> None:
        self.process.signal(signal.SIGTERM)
        self.codes.append(asyncio.create_task(self.process.ended()))


async def test_restarts_under_load(tmp_path: Path) -> None:
    """Stopped and started, overlapping, reloaded in between: each request is answered, and was sent once."""
    async with (
        crowd.provider(provide) as provider,
        Service(tmp_path, CONFIG.format(url=provider.url)) as service,
        Replaced(service) as replaced,
        Traffic(service.port) as traffic,
    ):
        began = clock()
        for number in range(RESTARTS):
            await (replaced.overlap() if number % 2 else replaced.stop_and_start())
            await replaced.reload()
        await traffic.end()
        seconds = clock() - began
        replaced.stop()
        assert set(await asyncio.gather(*replaced.codes)) == {0}
        print(f"\n{RESTARTS} restarts and reloads in {seconds:.1f} s: {traffic}")
        assert traffic.lost == []
        assert set(provider.asked.values()) == {1}
        assert provider.asked.keys() == traffic.answered
        assert min(traffic.counts[kind] for kind in ("kept", "new", "large", "upload", "stream")) > RESTARTS
        assert "Traceback" not in service.log


async def test_a_killed_process_is_followed_by_another(tmp_path: Path) -> None:
    """What it was about to answer is lost; nothing of that looks whole, and who waits is served."""
    async with (
        crowd.provider(provide) as provider,
        Service(tmp_path, CONFIG.format(url=provider.url)) as service,
    ):
        process = await service.start()
        async with Traffic(service.port) as traffic:
            for _ in range(KILLS):
                await asyncio.sleep(0.5)
                await crowd.until(traffic.listens, "a stream that has begun")
                process.signal(signal.SIGKILL)
                await process.ended()
                process = await service.start()
            await traffic.end()
        print(f"\n{KILLS} kills: {traffic}; {traffic.cut} of the lost are streams that had begun")
        assert traffic.cut, "no stream was open"
        assert traffic.mistaken == []
        assert provider.asked.keys() >= traffic.answered
        assert set(provider.asked.values()) == {1}


IDLE = 10
"""Seconds; as long as `head_timeout`, which is about another silence."""

GRACE = 0.2
"""Seconds for which a stopping process takes requests on connections that are open."""


async def test_idle_connections_are_asked_on_as_the_process_is_stopped(tmp_path: Path) -> None:
    """Whatever is sent before the grace has passed is served; then the idle ones are closed."""
    async with (
        crowd.provider(provide) as provider,
        Service(tmp_path, CONFIG.format(url=provider.url)) as service,
        contextlib.AsyncExitStack() as connections,
    ):
        process = await service.start()
        traffic, sent, too_late = Traffic(service.port), dict[str, Client](), set[Client]()
        clients = [await connections.enter_async_context(await traffic.connect()) for _ in range(40)]

        async def ask(some: list[Client], until: float = math.inf) -> None:
            for client in some:
                # On a machine that is too slow for it nothing is asked any more.
                if clock() >= until:
                    break
                number, parts = traffic.message(asked())
                await client.send(b"".join(parts))
                if clock() >= until:
                    too_late.add(client)
                else:
                    sent[number] = client

        for client in clients:
            await traffic.ask(client, "first", traffic.message(asked()))
        await asyncio.sleep(IDLE)
        assert not any(client.wire.over for client in clients)
        await ask(clients[:10])
        signalled = clock()
        process.signal(signal.SIGTERM)
        await ask(clients[10:20], signalled + GRACE - 0.05)
        await process.told("STOPPING=1")
        for client in clients[20:30]:
            await asyncio.sleep(0.01)
            await ask([client], signalled + GRACE - 0.05)
        for number, client in sent.items():
            response = await client.response()
            assert (response.status, response.body) == (200, answer_to(number))
        for client in clients:
            assert client in too_late or await client.eof() == "fin"
        assert await process.ended() == 0
        assert traffic.lost == []
        assert set(provider.asked.values()) == {1}
