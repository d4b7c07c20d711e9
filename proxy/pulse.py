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

    def push(self, data: bytes) -> None: ...


class Pulse:
    """The pulse of one stream, kept alive with `ping`, if there is one and `interval` (seconds) is not 0."""

    def __init__(
        self, reply: Sink, exchange: Exchange, ping: bytes, interval: float, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._reply: Sink | None = reply
        self._exchange = exchange
        self._ping = ping
        self._interval = interval
        self._loop = loop
        self._boundary = sse.Boundary()
        self._last = loop.time()
        self._timer: asyncio.TimerHandle | None = None
        if ping and interval:
            self._timer = loop.call_at(self._last + interval, self._tick)

    def stop(self) -> None:
        """No ping any more."""
        self._reply = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def passed(self, chunk: bytes, now: float) -> None:
        """Take note of bytes of the answer that go downstream now, a time of the loop's clock."""
        self._last = now
        self._boundary.feed(chunk)

    @property
    def between(self) -> bool:
        """Whether an event of ours may be written here."""
        return self._boundary.between and not self._boundary.finished

    def _tick(self) -> None:
        reply = self._reply
        if reply is None:
            return
        now = self._loop.time()
        if now >= self._last + self._interval:
            self._last = now
            if self.between and not reply.waiting:
                self._exchange.pings += 1
                reply.push(self._ping)
        self._timer = self._loop.call_at(self._last + self._interval, self._tick)
