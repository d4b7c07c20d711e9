"""An upstream answer: sending its request, waiting for it, reading it.

Facts
  - A provider may answer before the request's body is there, and then say no more.

Rules
  1. The face is narrow: `start` waits for the head, `read` gives bytes, then ``b""``, or raises
     `ProxyError`; `abort` at any moment.
  2. Every wait has a timer of ours, and one handle per answer: it is armed again when it fires early.
  3. Only a message that ended exactly where it said, with nothing behind it, gives its connection back.
  4. What upstream sends is handed on as it came; at most about ``buffer_bytes`` wait here.

Not here: where head and body end (`framing`), retries (`attempt`), header rules (`headers`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import NamedTuple

from .config import NetworkConfig
from .connection import Connection, Origin
from .errors import ProxyError, Source
from .framing import Framing

SEND_BYTES = 262144
"""A request body goes out in slices of this size, so that other streams get their turn between."""

CHUNK_COST = 64
"""What a chunk costs beside its bytes; without it a million one-byte chunks would look small."""


class Request(NamedTuple):
    """What is written upstream. `head` lacks the final empty line; `body` is None when there is none."""

    origin: Origin
    method: str
    head: bytes
    body: bytes | AsyncGenerator[bytes, None] | None
    chunked: bool
    network: NetworkConfig
    buffer_bytes: int
    """Bytes of the answer's body that wait before reading from upstream pauses."""
    fresh: bool
    """Take no pooled connection: what is sent once cannot be sent again."""


class Answer(Framing):
    """An upstream answer: its head, then its body."""

    def __init__(self, connection: Connection, request: Request) -> None:
        super().__init__(request.method)
        self._connection: Connection | None = connection
        self._reused = connection.reused
        self._request = request
        self._loop = asyncio.get_running_loop()
        self._chunks: list[bytes] = []
        self._waiting_bytes = 0
        self._paused = False
        self._sink: Callable[[bytes], bool] | None = None
        self._sending: asyncio.Task[None] | None = None
        self._error: ProxyError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._silent_after = 0.0
        self._patient_until = 0.0
        connection.answer = self

    # The face.

    async def start(self) -> None:
        """Write the request and wait for the head."""
        connection, request = self._connection, self._request
        if connection is None or connection.transport.is_closing():
            raise self._lost_error()
        self._silent_after = self._loop.time() + request.network.first_byte_timeout
        body = request.body
        if body is None or (isinstance(body, bytes) and len(body) <= SEND_BYTES):
            connection.transport.write(request.head + b"\r\n" + (body or b""))
        else:
            connection.transport.write(request.head + b"\r\n")
            self._sending = self._loop.create_task(self._send(connection, body))
        while not self.has_head and self._error is None:
            await self._wait()
        if self._error is not None:
            # Nothing is committed yet: another target may still answer whole.
            self._error.event = self._error.event or "protocol"
            raise self._error

    async def pour(self, sink: Callable[[bytes], bool]) -> bool:
        """Hand the body to `sink` as it arrives, without a turn of the loop in between.

        Returns True at the end, and False when `sink` did: reading stands still then until the next call.
        `sink` must not raise. Raises `ProxyError` as `read` does.
        """
        self._patient_until = 0.0
        if self._paused and not self._chunks:
            self._resume()
        while True:
            if self._chunks and not sink(self.ready()):
                return False
            if self._error is not None:
                raise self._error
            if self.ended:
                return True
            self._sink = sink
            await self._wait()
            if self._sink is None:
                return False
            self._sink = None

    async def read(self, patience: float | None = None) -> bytes | None:
        """The next bytes of the body, ``b""`` after the last, or None after `patience` seconds of silence.

        Raises `ProxyError` when the answer is cut, garbled, or silent for ``idle_timeout``.
        """
        if not self._chunks and not self.ended and self._error is None:
            self._patient_until = self._loop.time() + patience if patience is not None else 0.0
            await self._wait()
        if self._chunks:
            return self.ready()
        if self._error is not None:
            raise self._error
        return b"" if self.ended else None

    async def body(self, limit: int) -> bytes:
        """The rest of the body, whole. Raises `ProxyError` 502 beyond `limit` bytes."""
        parts = []
        size = 0
        while part := await self.read():
            parts.append(part)
            size += len(part)
            if size > limit:
                raise _error(502, f"The provider's answer is larger than {limit} bytes.", "")
        return b"".join(parts)

    def abort(self) -> None:
        """Close the connection at once unless the answer is complete. May be called again."""
        self._settle()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.answer = None
            connection.abort()

    def ready(self) -> bytes:
        """The bytes of the body that are here already, without waiting."""
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._waiting_bytes = 0
        if self._paused:
            self._resume()
        return data

    # What the connection says.

    def feed(self, data: memoryview) -> None:
        if self._error is not None:
            return
        waited_for_head = not self.has_head
        self.parse(data)
        if self.has_head:
            self._silent_after = self._loop.time() + self._request.network.idle_timeout
        if self.ended:
            self._detach()
        elif self.fault:
            self._set_error(_error(502, self.fault, "" if self.has_head else "protocol"))
        if self.ended or waited_for_head:
            self._wake()

    def eof(self) -> None:
        if self.until_close and self._error is None:
            self.ended = True
            self._settle()
            self._wake()
        elif not self.ended:
            self._cut()

    def lost(self) -> None:
        self._connection = None
        self._settle()
        if not self.ended:
            self._cut()

    def take(self, data: bytes) -> None:
        if self._sink is not None:
            if not self._sink(data):
                # The reader downstream is slow: stand still until it has caught up.
                self._sink = None
                self._pause()
                self._wake()
            return
        self._chunks.append(data)
        self._waiting_bytes += len(data) + CHUNK_COST
        if self._waiting_bytes > self._request.buffer_bytes:
            self._pause()
        self._wake()

    # Inside.

    async def _send(self, connection: Connection, body: bytes | AsyncGenerator[bytes, None]) -> None:
        """Write a body that is large or still on its way."""
        slices = _slices(body) if isinstance(body, bytes) else body
        try:
            async with contextlib.aclosing(slices):
                async for chunk in slices:
                    data = b"%x\r\n%b\r\n" % (len(chunk), chunk) if self._request.chunked else chunk
                    connection.transport.write(data)
                    await connection.drain()
                    if not self.has_head:
                        # Upstream has nothing to answer before the body is there.
                        self._silent_after = self._loop.time() + self._request.network.first_byte_timeout
            if self._request.chunked:
                connection.transport.write(b"0\r\n\r\n")
        except ProxyError as error:
            self._set_error(error)
        self._sending = None

    async def _wait(self) -> None:
        """Wait for bytes, the end, an error, or the end of patience."""
        waiter = self._waiter = self._loop.create_future()
        due = min(self._silent_after, self._patient_until or self._silent_after)
        if self._timer is None or self._timer.when() > due:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(due, self._tick)
        await waiter

    def _tick(self) -> None:
        self._timer = None
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        now = self._loop.time()
        if now >= self._silent_after:
            message = (
                "The provider stopped sending." if self.has_head else "The provider did not answer in time."
            )
            self._set_error(_error(504, message, "timeout"))
        elif self._patient_until and now >= self._patient_until:
            self._wake()
        else:
            due = min(self._silent_after, self._patient_until or self._silent_after)
            self._timer = self._loop.call_at(due, self._tick)

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _pause(self) -> None:
        if not self._paused and self._connection is not None:
            self._paused = True
            self._connection.transport.pause_reading()

    def _resume(self) -> None:
        self._paused = False
        self._silent_after = self._loop.time() + self._request.network.idle_timeout
        if self._connection is not None and not self._connection.transport.is_closing():
            self._connection.transport.resume_reading()

    def _settle(self) -> None:
        """Nothing more will be sent or waited for."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def _detach(self) -> None:
        """The answer is over: let the connection go, back to the pool if it is clean."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        connection.answer = None
        sending = self._sending is not None
        self._settle()
        if self._paused:
            self._paused = False
            connection.transport.resume_reading()
        if self.clean and not sending and not self.until_close and self.keep_alive:
            connection.pool.release(connection)
        else:
            connection.abort()

    def _cut(self) -> None:
        if self.has_head:
            self._set_error(_error(502, "The provider's answer was cut short.", ""))
        elif self.seen:
            self._set_error(_error(502, "The provider's response head was cut short.", "protocol"))
        else:
            self._set_error(self._lost_error())

    def _lost_error(self) -> ProxyError:
        return _error(
            502, "The provider closed the connection without an answer.", "reset", reused=self._reused
        )

    def _set_error(self, error: ProxyError) -> None:
        if self._error is None:
            self._error = error
        self._wake()


def _error(status: int, message: str, event: str, *, reused: bool = False) -> ProxyError:
    return ProxyError(status, message, source=Source.UPSTREAM, event=event, reused=reused)


async def _slices(body: bytes) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(body), SEND_BYTES):
        yield body[start : start + SEND_BYTES]
        await asyncio.sleep(0)
