"""The pulse of a stream: what passed downstream last, and the pings that follow silence.

Facts
  - Load balancers and SDKs cut a connection that is silent for 30 to 300 seconds; models think longer.
  - A ping inside an event breaks it, and one after the stream's own end has no place (`sse`).

Rules
  1. A ping follows `interval` of silence downstream, whatever came from upstream meanwhile.
  2. One timer per stream, armed again when it fires early: an event only notes the time.
  3. To a reader that is slow itself no ping is written.

Not here: what a ping looks like (`sse`), who writes the events (`relay`).
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from . import sse
from .exchange import Exchange


class Sink(Protocol):
    """Where a ping goes: a reply."""

    @property
    def waiting(self) -> int: ...

    def push(self, data: bytes) -> bool: ...


class Pulse:
    """The pulse of one reply; at rest until `start`."""

    def __init__(self, reply: Sink, exchange: Exchange) -> None:
        self._reply = reply
        self._exchange = exchange
        self._loop = asyncio.get_running_loop()
        self._ping = b""
        self._interval = 0.0
        self._stream = False
        self._boundary = sse.Boundary()
        self._last = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self, ping: bytes, interval: float) -> None:
        """From now on this is a stream of events, kept alive with `ping` if `interval` is not 0."""
        self._stream = True
        self._last = self._loop.time()
        if ping and interval:
            self._ping = ping
            self._interval = interval
            self._timer = self._loop.call_at(self._last + interval, self._tick)

    def stop(self) -> None:
        """No ping any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def passed(self, chunk: bytes) -> None:
        """Take note of bytes of the answer that go downstream now."""
        self._last = self._loop.time()
        exchange = self._exchange
        if not exchange.first_at:
            exchange.first_at = self._last
        self._boundary.feed(chunk)
        exchange.usage.feed(chunk)

    @property
    def between(self) -> bool:
        """Whether an event of ours may be written here."""
        return self._stream and self._boundary.between and not self._boundary.finished

    def _tick(self) -> None:
        now = self._loop.time()
        if now >= self._last + self._interval:
            self._last = now
            if self.between and not self._reply.waiting:
                self._exchange.pings += 1
                self._reply.push(self._ping)
        self._timer = self._loop.call_at(self._last + self._interval, self._tick)
