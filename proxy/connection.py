"""One connection to a provider: the transport's side of it.

Facts
  - A connection is idle, or carries one answer. Bytes on an idle one belong to nobody.
  - All connections of a pool share one receive buffer: what it gets is parsed, and so copied, before it
    is used again. A buffer of its own would cost every open stream 64 KiB.

Rules
  1. A connection carries one answer at a time and tells it what comes.
  2. One timer per connection, which outlives the answers: a request only moves the time that it waits for.
  3. Who owns the pool is told when a connection opens and when it is lost.

Not here: HTTP (`framing`), waiting (`answer`), the pool and TLS (`upstream`).
"""

from __future__ import annotations

import asyncio
import math
import socket
import struct
from asyncio.sslproto import SSLProtocolState
from typing import NamedTuple, Protocol, cast
from urllib.parse import urlsplit

from .framing import Framing

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""For SO_LINGER: closing resets (socket(7))."""


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
    tls_buffer: memoryview

    def opened(self, connection: Connection) -> None: ...

    def lost(self, connection: Connection) -> None: ...

    def release(self, connection: Connection) -> None: ...


class Reader(Protocol):
    """What reads from a connection: an answer."""

    def take(self, data: bytes) -> None: ...

    def progress(self) -> None:
        """Bytes were parsed; `Connection` says what they came to."""

    def eof(self, *, told: bool) -> None:
        """Upstream sends no more; `told` says that it said so itself, as far as its transport has words."""

    def lost(self) -> None: ...

    def silent(self) -> None:
        """The time has passed until which bytes were awaited."""


class Connection(Framing, asyncio.BufferedProtocol):
    """One connection, and the answer that is on it, if any."""

    transport: asyncio.Transport

    def __init__(self, pool: Pool, origin: Origin, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(_unasked)
        self.pool = pool
        self.key = (origin.secure, origin.host, origin.port)
        self.answer: Reader | None = None
        self._buffer = pool.tls_buffer if origin.secure else pool.buffer
        self.idle_since = 0.0
        self.reused = False
        self._loop = loop
        self.due = 0.0
        """When the answer's patience ends; may only be moved on, but by `await_until`."""
        self._rings_at = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._writable: asyncio.Future[None] | None = None

    def attach(self, answer: Reader, method: str) -> None:
        """Carry this answer, to a request with this method."""
        self.expect(method)
        self.answer = answer
        self.take = answer.take

    def detach(self) -> None:
        """Carry no answer."""
        self.answer = None
        self.take = _unasked

    def await_until(self, due: float) -> None:
        """Tell the answer when `due` has passed, a time of the loop's clock, unless it is moved before."""
        self.due = due
        if due < self._rings_at:
            self._stop_timer()
            self._rings_at = due
            self._timer = self._loop.call_at(due, self._tick)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.pool.opened(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        answer = self.answer
        if answer is None:
            # Bytes that nobody asked for: whose answer would they be?
            self.abort()
        else:
            self.parse(self._buffer[:nbytes])
            answer.progress()

    def eof_received(self) -> bool:
        if self.answer is not None:
            # That TLS was closed is told as it is read (RFC 8446 section 6.1), that it was cut off only when
            # asyncio shuts it down itself. It does not say which.
            tls = getattr(self.transport, "_ssl_protocol", None)
            self.answer.eof(told=tls is None or tls._state is not SSLProtocolState.SHUTDOWN)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.pool.lost(self)
        self.resume_writing()
        self.forget()
        self._stop_timer()
        if self.answer is not None:
            self.answer.lost()

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

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

    def reset(self) -> None:
        """Abort, so that upstream hears of it even where it has not read what was sent."""
        raw = self.transport.get_extra_info("socket")
        if raw is not None and raw.fileno() >= 0:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.transport.abort()

    def _tick(self) -> None:
        self._stop_timer()
        if self.answer is None:
            return
        if self._loop.time() < self.due:
            self.await_until(self.due)
        else:
            self.answer.silent()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self._rings_at = math.inf


def _unasked(data: bytes) -> None:
    """A body without an answer: `buffer_updated` has seen to it."""
