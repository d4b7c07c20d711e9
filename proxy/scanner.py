"""Scanning a body without standing in the way of other streams.

Facts
  - A scan of 20 MB takes up to 90 ms of CPU (`body`), and the patterns hold the interpreter while they match.
  - A thread that never gives the interpreter away keeps it for 5 ms at a time (`sys.setswitchinterval`);
    one that sleeps for no time after each step lets a waiting loop go first.

Rules
  1. A small body is scanned where it is: most take a few microseconds, and those that take a
     millisecond let others run in between.
  2. A large one goes to the one thread of the scanner, which gives way after every step.
  3. When the client leaves, its scan ends at the next step.

Not here: what is looked for (`body`), how a content coding is undone (`coding`).
"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from . import coding
from .body import Scan, steps

LARGE_BYTES = 262144
"""A body above this size goes to the thread."""


class Scanner:
    """Scans bodies. One per server."""

    def __init__(self) -> None:
        # One thread: several would compete with each other, and all of them with the loop.
        self._thread = ThreadPoolExecutor(1, "scanner")

    async def scan(self, body: bytes) -> Scan:
        """What stands in `body`; `ProxyError` 400 when it breaks the rules."""
        if len(body) > LARGE_BYTES:
            return await self._aside(body)
        walk = steps(body)
        while True:
            try:
                next(walk)
            except StopIteration as done:
                found: Scan = done.value
                return found
            await asyncio.sleep(0)

    async def decoded(self, body: bytes, encoding: str, limit: int) -> bytes:
        """`body` without its content coding, as `coding.decoded` does it, in the thread."""
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, coding.decoded, body, encoding, limit
        )

    def close(self) -> None:
        """Let the thread end. Its scans are over by now: every one has a request that waits for it."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _aside(self, body: bytes) -> Scan:
        gone = threading.Event()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, _walked, body, gone)
        finally:
            gone.set()


def _walked(body: bytes, gone: threading.Event) -> Scan:
    walk = steps(body)
    while True:
        try:
            next(walk)
        except StopIteration as done:
            found: Scan = done.value
            return found
        if gone.is_set():
            raise InterruptedError("nobody waits for this scan")
        time.sleep(0)
