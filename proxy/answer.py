"""An upstream answer: waiting for it, reading it.

Facts
  - A provider may answer before the request's body is there, and then say no more.

Rules
  1. The face is narrow: `start` waits for the head, `read` gives bytes, then ``b""``, or raises
     `ProxyError`; `abort` at any moment.
  2. Every wait has a time limit of ours; the connection keeps the timer.
  3. Only a message that ended exactly where it said, with nothing behind it, gives its connection back.
  4. What upstream sends is handed on as it came; at most about ``buffer_bytes`` wait here.

Not here: how its request is written (`sending`), where head and body end (`framing`), retries (`attempt`),
header rules (`headers`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from . import inbound
from .connection import Connection
from .errors import ProxyError, Source
from .sending import Request, Sending, send

CHUNK_COST = 64
"""What a chunk costs beside its bytes; without it a million one-byte chunks would look small."""


class Sink(Protocol):
    """Where a body is poured: a reply."""

    @property
    def slow(self) -> bool: ...

    def pass_on(self, data: bytes) -> None:
        """Take bytes that waited. Must not raise."""

    def take(self, data: bytes) -> None:
        """Take bytes that arrive in this moment. Must not raise."""


class Answer:
    """An upstream answer: its head, then its body."""

    def __init__(self, connection: Connection, request: Request, loop: asyncio.AbstractEventLoop) -> None:
        self.status = 0
        """0 until the head is there."""
        self.reason = b""
        self.fields = inbound.Inbound(())
        self.head_at = 0.0
        """When the head came, by the loop's clock."""
        self.ended = False
        self._connection: Connection | None = connection
        self._reused = connection.reused
        self._request: Request | None = request
        self._network = request.network
        self._hear, self._hear_end = request.hear, request.hear_end
        self._buffer_bytes = request.buffer_bytes
        self._loop = loop
        self._clock = time.monotonic  # What `loop.time` calls; this is done for every event.
        self._chunks: list[bytes] = []
        self._waiting_bytes = 0
        self._paused = False
        self._sink: Sink | None = None
        self._sending: Sending | None = None
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        connection.attach(self, request.method)

    # The face.

    async def start(self) -> None:
        """Write the request and wait for the head."""
        # Kept no longer than it is needed: a body may be megabytes, and an answer may last for minutes.
        request, self._request = self._request, None
        connection = self._connection
        if request is None or connection is None or connection.transport.is_closing():
            raise self._lost_error()
        self._await_head()
        self._sending = send(request, connection, self._await_head, self._set_error)
        while not self.status and self._error is None:
            self._waiter = self._loop.create_future()
            await self._waiter
        if self._error is not None:
            if isinstance(self._error, ProxyError) and self._error.source is Source.UPSTREAM:
                # Nothing is committed yet: another target may still answer whole.
                self._error.event = self._error.event or "protocol"
            raise self._error

    async def pour(self, sink: Sink) -> bool:
        """Hand the body to `sink` as it arrives, without a turn of the loop in between.

        Returns True at the end, and False when `sink` is slow: reading stands still then until the next
        call. Raises `ProxyError` as `read` does.
        """
        if self._paused and not self._chunks:
            self._resume()
        if self._chunks:
            sink.pass_on(self.ready())
        while True:
            if self._error is not None:
                raise self._error
            if self.ended:
                return True
            connection = self._connection
            if connection is None:
                raise AssertionError("an answer that goes on has a connection")
            if sink.slow or self._paused:
                self._pause()
                return False
            self._patient()
            self._sink = sink
            connection.take = sink.take
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._sink = None
                if self._connection is not None:
                    self._connection.take = self.take

    async def read(self, patience: float | None = None) -> bytes | None:
        """The next bytes of the body, ``b""`` after the last, or None after `patience` seconds of silence.

        Raises `ProxyError` when the answer is cut, garbled, or silent for ``idle_timeout``.
        """
        if not self._chunks and not self.ended and self._error is None:
            self._patient()
            self._waiter = self._loop.create_future()
            if patience is None:
                await self._waiter
            else:
                timer = self._loop.call_later(patience, self._wake)
                try:
                    await self._waiter
                finally:
                    timer.cancel()
        if self._chunks:
            return self.ready()
        if self._error is not None:
            raise self._error
        return b"" if self.ended else None

    async def body(self, limit: int, hold: Callable[[int], None] | None = None) -> bytes:
        """The rest of the body, whole; `hold` is told of its bytes as they come.

        Raises `ProxyError` 502 beyond `limit` bytes, and whatever `hold` raises.
        """
        parts = []
        size = 0
        while part := await self.read():
            if hold is not None:
                hold(len(part))
            parts.append(part)
            size += len(part)
            if size > limit:
                raise _error(502, f"The provider's answer is larger than {limit} bytes.", "")
        return b"".join(parts)

    @property
    def sending(self) -> bool:
        """Whether a part of the request's body is still on its way."""
        return self._sending is not None and not self._sending.done

    def when_sent(self, call: Callable[[], None]) -> None:
        """While the body is `sending`: call `call` once nothing of it is on its way any more."""
        if self._sending is not None:
            self._sending.when_done(call)

    def abort(self) -> None:
        """Close the connection at once unless the answer is complete. May be called again."""
        self._settle()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.detach()
            connection.reset()

    def ready(self) -> bytes:
        """The bytes of the body that are here already, without waiting."""
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._waiting_bytes = 0
        if self._paused:
            self._resume()
        return data

    # What the connection says.

    def progress(self) -> None:
        connection = self._connection
        if connection is None or self._error is not None:
            return
        if not self.status and connection.has_head:
            self.status, self.reason = connection.status, connection.reason
            self.fields = inbound.Inbound(connection.headers)
            self.head_at = self._clock()
            connection.await_until(self.head_at + self._network.idle_timeout)
            self._wake()
        if connection.ended:
            self._detach(connection)
            self._wake()
        elif connection.fault:
            self._set_error(_error(502, connection.fault, "" if self.status else "protocol"))
        elif self.status:
            connection.due = self._clock() + self._network.idle_timeout
            if self._sink is not None and self._sink.slow:
                # Stand still until the reader downstream has caught up.
                self._pause()
                self._wake()

    def eof(self, *, told: bool) -> None:
        if self._error is not None or self._connection is None:
            return
        if self._connection.until_close and told:
            self.ended = True
            self._hear_end()
            self._settle()
            self._wake()
        else:
            self._cut()

    def lost(self) -> None:
        self._settle()
        if not self.ended:
            self._cut()
        self._connection = None

    def silent(self) -> None:
        if self._waiter is None:
            # Nobody waits: the answer is held, or its reader downstream is slow.
            return
        message = "The provider stopped sending." if self.status else "The provider did not answer in time."
        self._set_error(_error(504, message, "timeout"))

    def take(self, data: bytes) -> None:
        self._hear(data)
        self._chunks.append(data)
        self._waiting_bytes += len(data) + CHUNK_COST
        if self._waiting_bytes > self._buffer_bytes:
            self._pause()
        self._wake()

    # Inside.

    def _await_head(self) -> None:
        """Begin to wait for the head, or to wait anew: before the body is there it is not due."""
        if self._connection is not None and not self.status:
            self._connection.await_until(self._clock() + self._network.first_byte_timeout)

    def _patient(self) -> None:
        """Begin to wait for bytes of the body."""
        if self._connection is not None:
            self._connection.await_until(self._clock() + self._network.idle_timeout)

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
        if self._connection is not None and not self._connection.transport.is_closing():
            self._connection.transport.resume_reading()

    def _settle(self) -> None:
        """Nothing more will be sent."""
        if self._sending is not None:
            self._sending.stop()
            self._sending = None

    def _detach(self, connection: Connection) -> None:
        """The answer is over: let the connection go, back to the pool if it is clean."""
        self.ended = True
        self._hear_end()
        self._connection = None
        connection.detach()
        sending = self.sending
        self._settle()
        if self._paused:
            self._paused = False
            connection.transport.resume_reading()
        if connection.clean and connection.keep_alive and not sending and not connection.until_close:
            connection.pool.release(connection)
        else:
            connection.abort()

    def _cut(self) -> None:
        if self.status:
            self._set_error(_error(502, "The provider's answer was cut short.", ""))
        elif self._connection is not None and self._connection.seen:
            self._set_error(_error(502, "The provider's response head was cut short.", "protocol"))
        else:
            self._set_error(self._lost_error())

    def _lost_error(self) -> ProxyError:
        return _error(
            502, "The provider closed the connection without an answer.", "reset", reused=self._reused
        )

    def _set_error(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        self._wake()


def _error(status: int, message: str, event: str, *, reused: bool = False) -> ProxyError:
    return ProxyError(status, message, source=Source.UPSTREAM, event=event, reused=reused)
