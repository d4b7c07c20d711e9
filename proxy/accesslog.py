"""One JSON line per request, on stdout.

Facts
  - A write to a pipe blocks when its reader stalls, and a blocked loop stalls every stream. Lines are
    therefore written from a thread, one batch at a time.

Rules
  1. One request, one line, whatever its end.
  2. Client text (path, model) is cut, and what looks like a key in it is struck out.
  3. While the reader stalls at most `MAX_WAITING` lines are kept; what is dropped is counted and said.

Not here: what happened. `exchange` knows.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import time
from collections.abc import Callable

import orjson

from .exchange import Exchange

MAX_WAITING = 10_000
BATCH_SECONDS = 0.05
MAX_TEXT = 200

_KEY = re.compile(r"sk-[A-Za-z0-9_-]{8,}")

logger = logging.getLogger(__name__)


class AccessLog:
    """Writes lines through `write`, which is called in a thread with whole lines."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._waiting: list[bytes] = []
        self._writing: asyncio.Future[object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._dropped = 0

    def log(self, exchange: Exchange) -> None:
        """Queue the line of a finished exchange."""
        if len(self._waiting) >= MAX_WAITING:
            self._dropped += 1
            return
        self._waiting.append(line(exchange))
        if self._timer is None and self._writing is None:
            # A batch: a thread per line would cost more than the request.
            self._timer = asyncio.get_running_loop().call_later(BATCH_SECONDS, self._flush)

    async def close(self) -> None:
        """Write what is waiting."""
        if self._timer is not None:
            self._timer.cancel()
            self._flush()
        while self._writing is not None:
            await asyncio.wait([self._writing])

    def _flush(self) -> None:
        self._timer = None
        batch = b"".join(self._waiting)
        self._waiting.clear()
        self._writing = asyncio.get_running_loop().run_in_executor(None, self._write, batch)
        self._writing.add_done_callback(self._flushed)

    def _flushed(self, writing: asyncio.Future[object]) -> None:
        self._writing = None
        if self._dropped:
            logger.warning("%d access-log lines were dropped: the reader of stdout stalled", self._dropped)
            self._dropped = 0
        if writing.exception() is not None:
            logger.error("the access log cannot be written: %s", type(writing.exception()).__name__)
        if self._waiting:
            self._flush()


def line(exchange: Exchange) -> bytes:
    """The line of one exchange, its newline included."""
    route, target = exchange.route, exchange.target
    out: dict[str, object] = {
        "time": f"{_second(int(exchange.at))}.{int(exchange.at % 1 * 1000):03d}+00:00",
        "request_id": exchange.request_id,
        "method": exchange.method[:32],
        "path": _text(exchange.path),
        "wire_format": route.wire_format if route else "",
        "status": exchange.status,
        "ending": exchange.ending,
        "attempts": [f"{_text(name)}:{outcome}" for name, outcome in exchange.attempts],
        "model": _text(exchange.model),
        "provider": target.provider.name if target else "",
        "served_model": _text(target.model) if target else "",
        "stream": exchange.stream,
        "bytes_in": exchange.bytes_in,
        "bytes_out": exchange.bytes_out,
        "head_ms": _ms(exchange.started, exchange.head_at),
        "first_ms": _ms(exchange.started, exchange.first_at),
        "total_ms": _ms(exchange.started, exchange.ended),
        "pings": exchange.pings,
        "usage": exchange.tokens,
        "upstream_request_id": _text(exchange.upstream_id),
    }
    if exchange.error:
        out["error"] = _text(exchange.error)
    return orjson.dumps(out) + b"\n"


def _ms(start: float, end: float) -> float | None:
    return round((end - start) * 1000, 1) if end else None


@functools.lru_cache(2)
def _second(at: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))


def _text(value: str) -> str:
    """Client text as valid, bounded UTF-8, without what looks like a key."""
    if "sk-" in value:
        value = _KEY.sub("sk-***", value)
    if value.isascii():
        return value[:MAX_TEXT]
    return value[:MAX_TEXT].encode("utf-8", "backslashreplace").decode()
