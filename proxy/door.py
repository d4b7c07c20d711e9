"""The door downstream: one connection, as aiohttp parses it, and what aiohttp leaves open.

Facts
  - aiohttp's own error answers echo the line that it could not parse, key included, and its logger
    prints it. `Door` answers and logs in its place.
  - aiohttp has no timer for a request head but the one for idle connections, which every request renews.
  - A body that breaks off in the middle of an upload (a bad chunk) is told to nobody: the parser's error
    waits behind the request whose body it is.
  - While we do not read, a client that leaves is not noticed: its FIN stands behind bytes that nobody takes.
    poll(2) tells of it all the same (POLLRDHUP).

Rules
  1. A head is complete within ``head_timeout`` of the connection's first moment, or of a later head's first
     byte; 408 otherwise, and silence for who was silent. (One that began in the very read in which the
     request before it ended cannot be told from idleness: it has ``keepalive_timeout``.)
  2. A connection is `idle` when no byte of a request is in.

Not here: accepting connections (`listener`), requests (`handle`), answers (`reply`).
"""

from __future__ import annotations

import asyncio
import heapq
import select
import socket
from collections.abc import Callable
from typing import Any, cast

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo

from .config import Config
from .errors import ProxyError, Source
from .handle import Handler

RECEIVE_BYTES = 65536
"""The most that one read from downstream brings."""

LINGER_SECONDS = 5
"""How long an answer that came before the end of its request may still be read."""

LOOK_SECONDS = 0.25
"""How often a connection that is not read is asked whether its client is still there."""

_NOT_SENT = getattr(socket, "TCP_NOTSENT_LOWAT", None)

_HALF_CLOSED = getattr(select, "POLLRDHUP", 0)
"""What poll(2) is asked for, where the system knows it; it always tells of a reset."""


ROOM = 16
"""Idle connections closed at a time when others wait to be accepted."""

IDLE_SECONDS = 1.0
"""A connection that has been idle for less may be about to bring its next request."""

NEW_SECONDS = 2.0
"""How long a connection without a request is no idle one to a server that stops."""

_BUSY = -1
"""Stands for a count of requests where one is going on."""


class Downstream(web.Server):
    """aiohttp's low-level server, which makes the doors."""

    def __init__(self, handler: Handler, config: Config, left: Callable[[], None]) -> None:
        super().__init__(handler)
        self.handler_cancellation = True
        self.loop = asyncio.get_running_loop()
        self.handler = handler
        self._left = left
        self.use(config)

    def use(self, config: Config) -> None:
        """Go by this config on every new connection."""
        self.config = config
        # aiohttp takes None for no access log of its own, which its annotation does not say.
        self.settings: dict[str, Any] = {
            "access_log": None,
            "auto_decompress": False,
            "lingering_time": LINGER_SECONDS,
            "keepalive_timeout": config.keepalive_timeout,
        }

    def __call__(self) -> web.RequestHandler:
        return Door(self)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self._left()

    def close_idle(self) -> None:
        """Close the connections that were idle at the last call, and have been since.

        One that has not asked yet is given `NEW_SECONDS`: who has just connected is about to.
        """
        new = self.loop.time() - NEW_SECONDS
        for door in cast(list[Door], self.connections):
            requests = door.request_count if door.idle else _BUSY
            if not requests and door.idle_since > new:
                continue
            if door.idle_at == requests != _BUSY:
                door.force_close()
            door.idle_at = requests

    def make_room(self) -> None:
        """Close some of the connections that have been idle for a while, the longest so first."""
        recent = self.loop.time() - IDLE_SECONDS
        idle = [door for door in cast(list[Door], self.connections) if door.idle and door.idle_since < recent]
        for door in heapq.nsmallest(ROOM, idle, key=lambda door: door.idle_since):
            door.force_close()


class Door(web.RequestHandler):
    """One downstream connection."""

    __slots__ = ("_began", "_downstream", "_head_timer", "_look_timer", "idle_at")

    def __init__(self, downstream: Downstream) -> None:
        super().__init__(downstream, loop=downstream.loop, **downstream.settings)
        self._downstream = downstream
        self._began = False
        """Whether a part of a head is in."""
        self._head_timer: asyncio.TimerHandle | None = None
        self._look_timer: asyncio.TimerHandle | None = None
        self.idle_at = _BUSY
        """`request_count` when `Downstream.close_idle` last found it idle."""

    @property
    def request_count(self) -> int:
        """How many requests have come."""
        return self._request_count

    @property
    def idle_since(self) -> float:
        """When it became idle, by the loop's clock, if it is."""
        return self._next_keepalive_close_time - self._keepalive_timeout

    @property
    def idle(self) -> bool:
        """Whether it waits for a request of which no byte has come."""
        waiter = self._waiter
        return waiter is not None and not waiter.done() and not self._began

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # asyncio reads into a new buffer of 256 KiB each time, which malloc maps and unmaps; 64 KiB it keeps.
        transport.max_size = RECEIVE_BYTES  # type: ignore[attr-defined]
        cast(asyncio.Transport, transport).set_write_buffer_limits(self._downstream.config.side_bytes)
        super().connection_made(transport)
        raw = transport.get_extra_info("socket")
        if raw.family != socket.AF_UNIX and _NOT_SENT is not None:
            # The kernel would take megabytes for a client that does not read.
            raw.setsockopt(socket.IPPROTO_TCP, _NOT_SENT, self._downstream.config.side_bytes)
        self._await_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        for timer in (self._head_timer, self._look_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._look_timer = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._upgraded:
            # Behind a request for an upgrade nothing is served (`reply`). It is read all the same, and thrown
            # away: at its end a client that leaves says so.
            return
        request, waiter = self._current_request, self._waiter
        waits = waiter is not None and not waiter.done()
        of_the_next = waits or (request is not None and request.content.is_eof())
        super().data_received(data)
        if self._messages:
            # A whole head is in, or what cannot be one.
            self._began = False
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None
            if not waits and isinstance(self._messages[-1][0], _ErrInfo):
                self._break_body()
        elif of_the_next and not self._began and data.strip(b"\r\n"):
            # RFC 9112 section 2.2: an empty line before a request is none of it.
            self._began = True
            if self._head_timer is None:
                self._await_head()

    def eof_received(self) -> None:
        # The client has left. asyncio would first wait until it has taken what is written for it.
        if self._current_request is not None and self.transport is not None:
            self.transport.abort()

    def _pause_transport_reading(self) -> None:
        # For flow control, and because of what waits in numbers behind the request that is served.
        super()._pause_transport_reading()
        if self._look_timer is None:
            self._look_timer = self._loop.call_later(LOOK_SECONDS, self._look)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is not a request, without repeating a byte of it."""
        if status not in (400, 408):
            # The handler answers for its own failures. Whatever this is, an answer may have been begun.
            raise ConnectionResetError
        if isinstance(exc, LineTooLong):
            error = _bad(431, "A header line is longer than 8190 bytes.")
        elif isinstance(exc, BadHttpMessage) and exc.message == "Too many headers received":
            error = _bad(431, "There are more than 128 header fields.")
        elif status == 408:
            error = _bad(408, "The request head did not arrive in time.", "timeout")
        else:
            error = _bad(400, "This is not a well-formed HTTP/1.1 request.")
        return self._downstream.handler.refuse(request, error)

    def _process_keepalive(self) -> None:
        # A request that has begun is not idleness.
        if self._began:
            self._keepalive_handle = None
        else:
            super()._process_keepalive()

    def _await_head(self) -> None:
        self._head_timer = self._loop.call_later(self._downstream.config.head_timeout, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        waiter = self._waiter
        if not self._began:
            self.force_close()
            return
        if waiter is None or waiter.done():
            # The request before it is still being answered.
            self._await_head()
            return
        # As aiohttp itself does with what it cannot parse.
        self._messages.append((_ErrInfo(status=408, exc=TimeoutError(), message=""), EMPTY_PAYLOAD))
        waiter.set_result(None)

    def _break_body(self) -> None:
        """The rest of the request that is being read cannot be parsed."""
        request = self._current_request
        if request is not None and not request.content.is_eof() and request.content.exception() is None:
            # Its end will never come: nothing to wait for when it has been answered.
            self._lingering_time = 0.0
            request.content.set_exception(web.RequestPayloadError())

    def _look(self) -> None:
        self._look_timer = None
        if self.transport is None or not (self._reading_paused or self._buffer_paused):
            return
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), _HALF_CLOSED)
        if poll.poll(0):
            self.transport.abort()
        else:
            self._look_timer = self._loop.call_later(LOOK_SECONDS, self._look)


def _bad(status: int, message: str, event: str = "") -> ProxyError:
    return ProxyError(status, message, source=Source.DOWNSTREAM, event=event)
