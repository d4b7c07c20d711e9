"""One connection to a provider: the transport's side of it.

Facts
  - A connection is idle, or carries one answer. Bytes on an idle one belong to nobody.
  - All connections of a pool share one receive buffer: what it gets is parsed, and so copied, before it
    is used again. A buffer of its own would cost every open stream 64 KiB.

Rules
  1. This room moves bytes between the transport and the answer; it does not look at them.
  2. Who owns the pool is told when a connection opens and when it is lost.

Not here: HTTP (`answer`), the pool and TLS (`upstream`).
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple, Protocol, cast
from urllib.parse import urlsplit


class Origin(NamedTuple):
    """A base URL, taken apart."""

    secure: bool
    host: str
    port: int
    host_field: bytes
    path: bytes

    @classmethod
    def parse(cls, url: str) -> Origin:
        """`url` is one that the config has checked."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        secure = parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
        return cls(secure, host, port, parts.netloc.encode("ascii"), parts.path.encode("ascii"))


class Pool(Protocol):
    """Where connections come from and go back to."""

    buffer: memoryview

    def opened(self, connection: Connection) -> None: ...

    def lost(self, connection: Connection) -> None: ...

    def release(self, connection: Connection) -> None: ...


class Reader(Protocol):
    """What reads from a connection: an answer."""

    def feed(self, data: memoryview) -> None: ...

    def eof(self) -> None: ...

    def lost(self) -> None: ...


class Connection(asyncio.BufferedProtocol):
    """One connection, and the answer that is on it, if any."""

    transport: asyncio.Transport

    def __init__(self, pool: Pool, origin: Origin) -> None:
        self.pool = pool
        self.key = (origin.secure, origin.host, origin.port)
        self.answer: Reader | None = None
        self.idle_since = 0.0
        self.reused = False
        self._writable: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.pool.opened(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.pool.buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self.answer is None:
            # Bytes that nobody asked for: whose answer would they be?
            self.abort()
        else:
            self.answer.feed(self.pool.buffer[:nbytes])

    def eof_received(self) -> bool:
        if self.answer is not None:
            self.answer.eof()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.pool.lost(self)
        self.resume_writing()
        if self.answer is not None:
            self.answer.lost()

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    async def drain(self) -> None:
        """Wait until the transport takes more."""
        if self._writable is not None:
            await self._writable

    def abort(self) -> None:
        self.transport.abort()
