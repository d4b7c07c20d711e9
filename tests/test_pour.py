"""Pouring an answer into a reader that is now fast, now slow, without a socket between."""

from __future__ import annotations

import asyncio
from typing import cast

from rawclient import PATIENCE

from proxy.answer import Answer, Request
from proxy.config import NetworkConfig
from proxy.connection import Connection, Origin

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Pool:
    """Buffers, and nothing behind them."""

    def __init__(self) -> None:
        self.buffer = self.tls_buffer = memoryview(bytearray(65536))

    def opened(self, connection: Connection) -> None:
        """No one keeps count."""

    lost = release = opened


class Transport(asyncio.Transport):
    """Notes whether reading is paused."""

    paused = False

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """The request, of no interest here."""

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class Sink:
    """A reader whose speed the test sets."""

    def __init__(self) -> None:
        self.slow = False
        self.data = b""

    def take(self, data: bytes) -> None:
        self.pass_on(data)

    def pass_on(self, data: bytes) -> None:
        self.data += data


async def test_a_reader_that_catches_up_at_once_gets_the_rest() -> None:
    """Reading was paused for it, and it had caught up before anybody looked: reading goes on."""
    loop = asyncio.get_running_loop()
    origin = Origin.parse("http://127.0.0.1:1")
    connection = Connection(Pool(), origin, loop)
    transport = Transport()
    connection.connection_made(transport)
    network = NetworkConfig(idle_timeout=60)
    answer = Answer(
        connection,
        Request(origin, "GET", b"", None, False, network, 65536, False, lambda data: None, lambda: None),
        loop,
    )
    started = loop.create_task(answer.start())
    await asyncio.sleep(0)

    def comes(data: bytes) -> None:
        cast(memoryview, connection.get_buffer(-1))[: len(data)] = data
        connection.buffer_updated(len(data))

    comes(HEAD + b"2\r\nab\r\n")
    await started
    sink = Sink()
    pouring = loop.create_task(answer.pour(sink))
    await asyncio.sleep(0)
    sink.slow = True
    comes(b"2\r\ncd\r\n")
    assert transport.paused
    sink.slow = False
    assert await asyncio.wait_for(pouring, PATIENCE) is False
    pouring = loop.create_task(answer.pour(sink))
    await asyncio.sleep(0)
    assert not transport.paused
    comes(b"2\r\nef\r\n0\r\n\r\n")
    assert await asyncio.wait_for(pouring, PATIENCE) is True
    assert sink.data == b"abcdef"
