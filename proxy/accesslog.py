"""One JSON line per request, on stdout.

Facts
  - A write to a pipe blocks when its reader stalls, and a blocked loop stalls every stream. Lines are
    therefore written from a thread of their own, one batch at a time.

Rules
  1. One request, one line, whatever its end.
  2. Client text (path, model) is cut, and what looks like a key in it is struck out.
  3. While the reader stalls at most `MAX_WAITING` lines are kept; what is dropped is counted and said. Nor
     does the end of the process wait for it.

Not here: what happened. `exchange` knows.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import queue
import re
import threading
import time
from collections.abc import Callable

import orjson

from .exchange import Exchange
from .limits import dollars

MAX_WAITING = 10_000
BATCH_SECONDS = 0.05
CLOSE_SECONDS = 1.0
MAX_TEXT = 200

_KEY = re.compile(r"sk-[A-Za-z0-9_-]{8,}")

_NAMED_KEY = re.compile(r"(?i)((?:key|token|signature)(?:=|%3d))[^&;/]+")

_USER = re.compile(r"//[^/@]*@")

logger = logging.getLogger(__name__)


class AccessLog:
    """Writes lines through `write`, which is called in a thread with whole lines."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._waiting: list[bytes] = []
        self._batches: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._written = asyncio.Event()
        self._written.set()
        self._timer: asyncio.TimerHandle | None = None
        self._dropped = 0

    def log(self, exchange: Exchange) -> None:
        """Queue the line of a finished exchange."""
        if len(self._waiting) >= MAX_WAITING:
            self._dropped += 1
            return
        self._waiting.append(line(exchange))
        if self._timer is None and self._written.is_set():
            # A batch: to wake a thread per line would cost more than the request.
            self._timer = asyncio.get_running_loop().call_later(BATCH_SECONDS, self._flush)

    async def close(self) -> None:
        """Write what is waiting, if that can be done in `CLOSE_SECONDS`."""
        if self._timer is not None:
            self._timer.cancel()
            self._flush()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._written.wait()
        except TimeoutError:
            logger.warning("the end of the access log is lost: the reader of stdout stalled")
        self._batches.put(None)
        self._batches, self._thread = queue.SimpleQueue(), None

    def _flush(self) -> None:
        self._timer = None
        if self._thread is None:
            # A daemon: the process does not wait for a write that never returns.
            self._thread = threading.Thread(
                target=self._run, args=(asyncio.get_running_loop(), self._batches), name="log", daemon=True
            )
            self._thread.start()
        self._written.clear()
        self._batches.put(b"".join(self._waiting))
        self._waiting.clear()

    def _run(self, loop: asyncio.AbstractEventLoop, batches: queue.SimpleQueue[bytes | None]) -> None:
        """The thread."""
        while (batch := batches.get()) is not None:
            failure = ""
            try:
                self._write(batch)
            except Exception as error:
                failure = type(error).__name__
            try:
                loop.call_soon_threadsafe(self._flushed, failure)
            except RuntimeError:
                # The loop has ended before the write did.
                return

    def _flushed(self, failure: str) -> None:
        if self._dropped:
            logger.warning("%d access-log lines were dropped: the reader of stdout stalled", self._dropped)
            self._dropped = 0
        if failure:
            logger.error("the access log cannot be written: %s", failure)
        if self._waiting:
            self._flush()
        else:
            self._written.set()


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
        "cost": dollars(exchange.cost),
        "virtual_key": exchange.virtual_key and _text(exchange.virtual_key),
        "key": exchange.key,
        "upstream_request_id": _text(exchange.upstream_id),
    }
    if exchange.job:
        out["job"] = _text(exchange.job)
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
    if "=" in value or "@" in value or "%3" in value:
        # In a path, where no query belongs, and in the target of a request to a forward proxy.
        value = _NAMED_KEY.sub(r"\1***", _USER.sub("//***@", value))
    if value.isascii():
        return value[:MAX_TEXT]
    return value[:MAX_TEXT].encode("utf-8", "backslashreplace").decode()
