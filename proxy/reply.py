"""One downstream answer, written as bytes.

Facts
  - aiohttp ends a chunked answer properly whenever a handler returns, even after a failed copy. So the
    bytes of a reply are framed here, and aiohttp only learns that the reply is done.
  - Behind an HTTP/1.0 hop a plain close looks like the end of a complete answer; a reset does not.
    ``transport.abort()`` alone closes with FIN, with ``SO_LINGER`` 0 it resets (socket(7)).
  - 204 and 304 answers and answers to HEAD have no body bytes (RFC 9112 section 6.3).

Rules
  1. `begin` is the commit point.
  2. What was begun ends with `end`, or with `abort`, which nobody can take for an end.
  3. Behind a request that was not read to its end the connection carries no other.

Not here: which header fields pass (`headers`), the loop that relays (`relay`).
"""

from __future__ import annotations

import asyncio
import functools
import http
import re
import socket
import time
from email.utils import formatdate

from aiohttp import hdrs, web

from . import inbound
from .config import Config
from .connection import RESET_ON_CLOSE
from .errors import ProxyError, Source
from .exchange import Exchange, Phase
from .pulse import Pulse

_NO_BODY = (204, 304)

_REASON = re.compile(rb"[\t -~\x80-\xff]+")

_SHORT = 64
"""A reason phrase of at most this size is remembered; providers choose them."""

_LAST_CHUNK = b"0\r\n\r\n"


class Reply:
    """The reply to one request.

    aiohttp gets it back when it is done, and asks `prepare`, `write_eof` and `keep_alive` of it. It is no
    `web.StreamResponse`, whose header map and checks would be made per request and never used.
    """

    def __init__(
        self, request: web.BaseRequest, exchange: Exchange, config: Config, loop: asyncio.AbstractEventLoop
    ) -> None:
        # None when the client left before its request was looked at.
        self._transport = request.transport
        self._protocol = request.protocol
        self._request = request
        self._exchange = exchange
        self._config = config
        self._loop = loop
        self._clock = time.monotonic  # What `loop.time` calls; this is done for every event.
        self._framed = False
        self._bodyless = False
        self._aborted = False
        self._pulse: Pulse | None = None
        self.keep_alive = request.keep_alive and _may_be_followed(request)

    # What aiohttp asks of a finished reply.

    async def prepare(self, request: web.BaseRequest) -> None:
        if self._aborted:
            raise ConnectionResetError

    async def write_eof(self) -> None:
        """All has been written. Whatever comes next on this connection waits until it has left."""
        transport = self._transport
        if transport is None or not transport.get_write_buffer_size():
            return
        try:
            await self.drain(last=True)
        except ProxyError:
            self.abort()
            raise ConnectionResetError from None

    # What the path asks.

    def begin(self, status: int, reason: bytes, head: inbound.Head, body: bytes = b"") -> None:
        """Write the head, and the first bytes of the body if they are there. The commit point."""
        request, exchange, transport = self._request, self._exchange, self._transport
        first = _status_line if len(reason) <= _SHORT else _status_line.__wrapped__
        out = [first(status, reason), *head.lines]
        self._bodyless = request.method == "HEAD" or status in _NO_BODY
        if not head.has_length and not self._bodyless:
            if request.version >= (1, 1):
                self._framed = True
                out.append(b"Transfer-Encoding: chunked")
            else:
                self.keep_alive = False
        if not head.has_date:
            # RFC 9110 section 6.6.1: who forwards an answer without a date adds one.
            out.append(_date(int(exchange.at)))
        if not request.content.is_eof():
            # The rest of the request may never come; its bytes must not be read as another request.
            self.keep_alive = False
        if not self.keep_alive:
            out.append(b"Connection: close")
        elif request.version < (1, 1):
            out.append(b"Connection: keep-alive")
        if transport is None or transport.is_closing():
            raise ConnectionResetError
        exchange.status = status
        exchange.committed = True
        exchange.phase = Phase.DATA
        if not body or self._bodyless:
            out.append(b"\r\n")
        elif self._framed:
            out.append(b"\r\n%x\r\n%b\r\n" % (len(body), body))
        else:
            out.append(b"\r\n" + body)
        data = b"\r\n".join(out)
        exchange.bytes_out += len(data)
        transport.write(data)

    def stream(self, ping: bytes) -> None:
        """What follows is a stream of events, kept alive with `ping`."""
        self._pulse = Pulse(self, self._exchange, ping, self._config.ping_interval, self._loop)

    def note(self, data: bytes) -> None:
        """Take note of bytes of upstream's answer that go downstream now."""
        now = self._clock()
        exchange = self._exchange
        exchange.first_at = exchange.first_at or now
        if self._pulse is not None:
            self._pulse.passed(data, now)

    def pass_on(self, data: bytes) -> None:
        """`push` for bytes of upstream's answer that waited."""
        self.note(data)
        self.push(data)

    def take(self, data: bytes) -> None:
        """`push` for bytes of upstream's answer that arrive in this moment."""
        self._exchange.usage.feed(data)
        self.note(data)
        self.push(data)

    def push(self, data: bytes) -> None:
        """Write bytes of the body. Never raises: when the client has left, its cancellation is on the way."""
        transport = self._transport
        if not data or self._bodyless or transport is None or transport.is_closing():
            return
        if self._framed:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        self._exchange.bytes_out += len(data)
        transport.write(data)

    @property
    def slow(self) -> bool:
        """Whether `drain` should come before more is written."""
        return self._protocol.writing_paused

    @property
    def between_events(self) -> bool:
        """Whether an event of ours may be written here."""
        return self._pulse is not None and self._pulse.between

    @property
    def waiting(self) -> int:
        """Bytes that wait for a slow reader."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    async def drain(self, *, last: bool = False) -> None:
        """Wait until a slow reader has taken most of what was written; `ProxyError` 408 if it does not."""
        try:
            async with asyncio.timeout(self._config.send_timeout):
                await (self.flush() if last else self._request.writer.drain())
        except TimeoutError:
            raise ProxyError(
                408, "The client does not read.", source=Source.DOWNSTREAM, event="timeout"
            ) from None

    def end(self) -> None:
        """The body is complete."""
        transport = self._transport
        if transport is None or transport.is_closing():
            self._exchange.finish("D")
            return
        if self._framed:
            self._exchange.bytes_out += len(_LAST_CHUNK)
            transport.write(_LAST_CHUNK)
        self._exchange.finish_whole()

    def whole(self, status: int, head: inbound.Head, body: bytes) -> None:
        """Write a reply whose body is at hand."""
        head.set_length(len(body))
        self.begin(status, b"", head, body)
        self.end()

    def close(self) -> None:
        """Let the connection carry no further request."""
        self.keep_alive = False

    async def flush(self) -> None:
        """Wait until the kernel has taken what was written."""
        transport = self._transport
        if transport is None:
            return
        transport.set_write_buffer_limits(0)
        try:
            await self._request.writer.drain()
        finally:
            transport.set_write_buffer_limits(self._config.side_bytes)

    def stop(self) -> None:
        """The request is over: no ping any more."""
        pulse, self._pulse = self._pulse, None
        if pulse is not None:
            pulse.stop()

    def abort(self) -> None:
        """Reset the connection, so that what was sent cannot look complete."""
        self._aborted = True
        self.keep_alive = False
        if self._transport is None:
            return
        raw = self._transport.get_extra_info("socket")
        if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6) and raw.fileno() >= 0:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self._transport.abort()


def _may_be_followed(request: web.BaseRequest) -> bool:
    """Whether aiohttp reads what comes behind this request as what it is."""
    fields = request.headers
    # It drops the bytes behind an upgrade that it does not know, and reads on in the middle of them. Of a
    # chunked body's trailers the last becomes a field of the next request.
    if hdrs.UPGRADE in fields or hdrs.TRANSFER_ENCODING in fields:
        return False
    # Of ``close`` and ``keep-alive`` it obeys the one that HTTP/1.0 needs more.
    return request.version >= (1, 1) or "close" not in fields.get(hdrs.CONNECTION, "").lower()


@functools.lru_cache(2)
def _date(second: int) -> bytes:
    return b"Date: " + formatdate(second, usegmt=True).encode()


@functools.lru_cache(64)
def _status_line(status: int, reason: bytes) -> bytes:
    return b"HTTP/1.1 %d %b" % (status, reason if _REASON.fullmatch(reason) else _phrase(status))


def _phrase(status: int) -> bytes:
    try:
        return http.HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""
