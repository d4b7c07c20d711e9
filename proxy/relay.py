"""The only room that streams downstream: the reply, the relay loop, the pings.

Facts
  - aiohttp ends a chunked answer properly whenever a handler returns, even after a failed copy. So the
    bytes of a reply are framed here, and aiohttp only learns that the reply is done.
  - Behind an HTTP/1.0 hop a plain close looks like the end of a complete answer; a reset does not.
    ``transport.abort()`` alone closes with FIN, with ``SO_LINGER`` 0 it resets (socket(7)).
  - 204 and 304 answers and answers to HEAD have no body bytes (RFC 9112 section 6.3).

Rules
  1. A chunk goes out when it comes in, as it came.
  2. A ping goes out after `ping_interval` of silence downstream, between events only, never in a
     compressed stream, never after the stream's own end.
  3. A cut answer is reset, after an ``error`` event where the stream stands between events.
  4. Nothing here retries.

Not here: which header fields pass (`headers`), what an event looks like (`sse`).
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import socket
import struct
from email.utils import formatdate

from aiohttp import web

from . import errors, headers, sse
from .answer import Answer
from .attempt import Served
from .errors import ProxyError, Source
from .exchange import Exchange, Phase

MAX_ERROR_BYTES = 65536
"""An upstream error that becomes an event is read up to this size."""

CUT_SECONDS = 5
"""How long the end of a cut reply may take to leave; a reset throws away what has not."""

_NO_BODY = (204, 304)

_EARLY_HEAD = (
    (b"Content-Type", b"text/event-stream; charset=utf-8"),
    (b"Cache-Control", b"no-cache"),
    (b"X-Accel-Buffering", b"no"),
)

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Reply(web.StreamResponse):
    """One downstream answer, written as bytes. aiohttp gets it back when it is done."""

    def __init__(self, request: web.BaseRequest, exchange: Exchange) -> None:
        super().__init__()
        self._request = request
        self._exchange = exchange
        self._writer = request.writer
        self._framed = False
        self._bodyless = False
        self._open = request.keep_alive
        self._aborted = False
        self.pulse = Pulse(exchange, "", 0, stream=False)

    # What aiohttp asks of a finished reply.

    @property
    def keep_alive(self) -> bool | None:
        return self._open

    async def prepare(self, request: web.BaseRequest) -> None:
        if self._aborted:
            raise ConnectionResetError

    async def write_eof(self, data: bytes = b"") -> None:
        """All has been written."""

    # What the path asks.

    async def begin(self, status: int, reason: bytes, fields: headers.Fields, body: bytes = b"") -> None:
        """Write the head, and the first bytes of the body if they are there. The commit point."""
        request, exchange = self._request, self._exchange
        out = [b"HTTP/1.1 %d %b" % (status, reason or _phrase(status))]
        names = set()
        for name, value in fields:
            names.add(name.lower())
            out.append(name + b": " + value)
        self._bodyless = request.method == "HEAD" or status in _NO_BODY
        if b"content-length" not in names and not self._bodyless:
            if request.version >= (1, 1):
                self._framed = True
                out.append(b"Transfer-Encoding: chunked")
            else:
                self._open = False
        if b"date" not in names:
            out.append(b"Date: " + formatdate(usegmt=True).encode())
        if not request.content.is_eof():
            # The rest of the request may never come; its bytes must not be read as another request.
            self._open = False
        if not self._open:
            out.append(b"Connection: close")
        elif request.version < (1, 1):
            out.append(b"Connection: keep-alive")
        exchange.status = status
        exchange.committed = True
        exchange.phase = Phase.DATA
        await self._write(b"\r\n".join(out) + b"\r\n\r\n" + self._frame(body))

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write bytes of the body; waits while downstream is slow."""
        await self._write(self._frame(bytes(data)))

    async def end(self) -> None:
        """The body is complete."""
        if self._framed:
            await self._write(b"0\r\n\r\n")
        self._exchange.ending = self._exchange.ending or "--"

    async def whole(self, status: int, fields: headers.Fields, body: bytes, reason: bytes = b"") -> None:
        """Write a reply whose body is at hand."""
        await self.begin(status, reason, [*fields, (b"Content-Length", b"%d" % len(body))], body)
        await self.end()

    def bound(self, size: int) -> None:
        """Let at most about `size` bytes wait for a slow reader."""
        transport = self._request.transport
        if isinstance(transport, asyncio.WriteTransport):
            transport.set_write_buffer_limits(size)

    def close(self) -> None:
        """Let the connection carry no further request."""
        self._open = False

    async def flush(self) -> None:
        """Wait until the kernel has taken what was written."""
        transport = self._request.transport
        if isinstance(transport, asyncio.WriteTransport):
            transport.set_write_buffer_limits(0)
            await self._writer.drain()

    def abort(self) -> None:
        """Reset the connection, so that what was sent cannot look complete."""
        self._aborted = True
        self._open = False
        transport = self._request.transport
        if transport is None:
            return
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        if isinstance(transport, asyncio.WriteTransport):
            transport.abort()

    def _frame(self, data: bytes) -> bytes:
        if not data or self._bodyless:
            return b""
        return b"%x\r\n%b\r\n" % (len(data), data) if self._framed else data

    async def _write(self, data: bytes) -> None:
        if data:
            await self._writer.write(data)


class Pulse:
    """What passed downstream last, and whether a ping may follow it."""

    def __init__(self, exchange: Exchange, wire_format: str, interval: float, *, stream: bool) -> None:
        self._exchange = exchange
        self._interval = interval
        self._clock = asyncio.get_running_loop().time
        self._ping = sse.PINGS.get(wire_format, b"") if interval and stream else b""
        self._boundary = sse.Boundary()
        self._stream = stream
        self._last = self._clock()

    def passed(self, chunk: bytes) -> None:
        """Take note of bytes of the answer that go downstream now."""
        self._last = self._clock()
        exchange = self._exchange
        if not exchange.first_at:
            exchange.first_at = self._last
        self._boundary.feed(chunk)
        exchange.usage.feed(chunk)

    @property
    def patience(self) -> float | None:
        """Seconds until a ping is due; None when there are none."""
        return max(0.0, self._last + self._interval - self._clock()) if self._ping else None

    @property
    def between(self) -> bool:
        """Whether an event of ours may be written here."""
        return self._stream and self._boundary.between and not self._boundary.finished

    def ping(self) -> bytes:
        """The ping to write now, empty when it has no place here."""
        self._last = self._clock()
        if not self.between:
            return b""
        self._exchange.pings += 1
        return self._ping


async def copy(answer: Answer, held: bytes, fields: headers.Fields, reply: Reply) -> None:
    """Relay an answer: its head with `fields`, the bytes `held` back so far, then the rest.

    Raises `ProxyError` when upstream fails; the reply is committed then.
    """
    first = held + answer.ready()
    if first:
        reply.pulse.passed(first)
    await reply.begin(answer.status, answer.reason, fields, first)
    await _rest(answer, reply)


async def commit_early(outcome: asyncio.Future[Served], reply: Reply, exchange: Exchange) -> None:
    """Begin a stream of ours, and keep it alive until `outcome` is there."""
    await reply.begin(200, b"", (*_EARLY_HEAD, (b"request-id", exchange.request_id.encode())))
    while not outcome.done():
        await asyncio.wait([outcome], timeout=reply.pulse.patience)
        if not outcome.done():
            await reply.write(reply.pulse.ping())


async def copy_early(answer: Answer, held: bytes, reply: Reply, exchange: Exchange) -> None:
    """Relay an answer into a stream that has begun; one that is no stream becomes an ``error`` event."""
    if answer.status == 200 and headers.is_plain_stream(answer.headers):
        if held:
            reply.pulse.passed(held)
            await reply.write(held)
        await _rest(answer, reply)
        return
    body = held + await answer.body(MAX_ERROR_BYTES)
    if not errors.is_error_body(body):
        error = ProxyError(
            502, f"The provider answered {answer.status} without a stream.", source=Source.UPSTREAM
        )
        body = errors.body(error, exchange.request_id)
    await reply.write(sse.error_event(body))
    await reply.end()


async def cut(reply: Reply, exchange: Exchange, error: ProxyError) -> None:
    """End a committed reply that cannot be completed: an error event where one fits, then a reset."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CUT_SECONDS):
            if reply.pulse.between:
                await reply.write(sse.our_error(error, exchange.request_id))
            await reply.flush()
    reply.abort()


async def _rest(answer: Answer, reply: Reply) -> None:
    pulse = reply.pulse
    while True:
        chunk = await answer.read(pulse.patience)
        if chunk:
            pulse.passed(chunk)
            await reply.write(chunk)
        elif chunk is None:
            await reply.write(pulse.ping())
        else:
            break
    await reply.end()


def _phrase(status: int) -> bytes:
    try:
        return http.HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""
