"""Scanning a body without standing in the way of other streams.

Facts
  - A scan of 20 MB takes 6 to 400 ms of CPU (`body`), and the patterns hold the interpreter while they match.
  - A thread that never gives the interpreter away keeps it for 5 ms at a time (`sys.setswitchinterval`);
    one that sleeps for no time after each step lets a waiting loop go first.

Rules
  1. A small body is scanned where it is: most take a few microseconds, and those that take a
     millisecond let others run in between.
  2. A large one goes to the one thread of the scanner, which gives way after every step.
  3. Large bodies take turns there: a slow one delays another by one turn, not by its whole scan.
  4. When the client leaves, its scan ends with the turn.

Not here: what is looked for (`body`), how a content coding is undone (`coding`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from . import inner
from .body import Scan, object_steps, steps

T = TypeVar("T")

LARGE_BYTES = 262144
"""A body above this size goes to the thread."""

TURN_SECONDS = 0.01
"""How long one body has the thread while others wait for it."""


class Scanner:
    """Scans bodies. One per server."""

    def __init__(self) -> None:
        # One thread: several would compete with each other, and all of them with the loop.
        self._thread = ThreadPoolExecutor(1, "scanner")
        self._decoder = ThreadPoolExecutor(1, "decoder")

    async def scan(self, body: bytes, *, named: bool = True) -> Scan:
        """What stands in `body`; `ProxyError` 400 when it breaks the rules. `named`: it must name a model."""
        return await self._walked(body, steps(body, named=named))

    async def named(self, body: bytes, path: tuple[bytes, ...], text: str) -> list[tuple[int, int]]:
        """Where `text` stands at `path`, which are keys, in a body that was scanned."""
        return await self._walked(body, inner.steps(body, path, text))

    async def is_object(self, body: bytes) -> bool:
        """Whether `body` is a JSON object."""
        return await self._walked(body, object_steps(body))

    async def _walked(self, body: bytes, walk: Generator[None, None, T]) -> T:
        if len(body) > LARGE_BYTES:
            loop = asyncio.get_running_loop()
            while True:
                found = await loop.run_in_executor(self._thread, _turn, walk)
                if found is not None:
                    return found
        while True:
            found = _step(walk)
            if found is not None:
                return found
            await asyncio.sleep(0)

    async def decode(self, decoded: Callable[..., bytes], *arguments: object) -> bytes:
        """Have a compressed body `decoded`, one at a time: asyncio's own threads look up names."""
        return await asyncio.get_running_loop().run_in_executor(self._decoder, decoded, *arguments)

    def close(self) -> None:
        """Let the thread end, with the turn that it is at."""
        for thread in (self._thread, self._decoder):
            thread.shutdown(wait=False, cancel_futures=True)


def _turn(walk: Generator[None, None, T]) -> T | None:
    """Steps until the turn is over; None when the walk is not."""
    until = time.monotonic() + TURN_SECONDS
    while time.monotonic() < until:
        found = _step(walk)
        if found is not None:
            return found
        time.sleep(0)
    return None


def _step(walk: Generator[None, None, T]) -> T | None:
    try:
        next(walk)
    except StopIteration as done:
        found: T = done.value
        return found
    return None
