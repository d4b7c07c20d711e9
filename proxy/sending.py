"""A request on its way upstream.

Facts
  - Most requests fit into the kernel's buffer. A large body, and one that is still coming in, would hold the
    loop, or has to be waited for: such a body has a task of its own.

Rules
  1. A body goes out in slices of `SEND_BYTES`, so that other streams get their turn between.
  2. Upstream is written to as fast as it reads, and no faster.
  3. The task belongs to the `Sending`, and that to the answer: who stops the answer stops it. What goes wrong
     in it is told to the answer.

Not here: what the head and the body are (`headers`, `body`), the answer (`answer`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import NamedTuple

from .config import NetworkConfig
from .connection import Connection, Origin

SEND_BYTES = 262144
"""A body above this size is sent in slices of it."""


Body = bytes | list[memoryview] | AsyncGenerator[bytes, None] | None
"""What is sent behind a head; None is nothing."""


class Request(NamedTuple):
    """What is written upstream. `head` lacks the final empty line."""

    origin: Origin
    method: str
    head: bytes
    body: Body
    chunked: bool
    network: NetworkConfig
    buffer_bytes: int
    """Bytes of the answer's body that wait before reading from upstream pauses."""
    fresh: bool
    """Take no pooled connection: what is sent once cannot be sent again."""
    hear: Callable[[bytes], None]
    """Told of the bytes of the answer's body as they arrive, until they are poured: then the sink is."""
    hear_end: Callable[[], None]
    """Told that the body is complete."""
    about_to_send: Callable[[], Awaitable[None]] | None = None
    """Awaited when there is a connection and nothing has been written; what it raises ends the attempt."""

    def __repr__(self) -> str:
        # Without the head: it holds a key.
        return f"<Request {self.method} {self.origin.host}>"


class Sending:
    """A body that has not gone out at once."""

    def __init__(self, running: asyncio.Task[None]) -> None:
        self._running = running

    @property
    def done(self) -> bool:
        """Whether nothing more will be written."""
        return self._running.done()

    def when_done(self, call: Callable[[], None]) -> None:
        """Call `call` once nothing more will be written."""
        self._running.add_done_callback(lambda _: call())

    def stop(self) -> None:
        """Write no more."""
        self._running.cancel()


def send(
    request: Request,
    connection: Connection,
    sent: Callable[[], None],
    failed: Callable[[Exception], None],
) -> Sending | None:
    """Write `request`; what is returned goes on writing, None is all written.

    `sent` is called when upstream has taken a slice, `failed` with what ended the sending.
    """
    body = request.body
    if body is None:
        connection.transport.write(request.head + b"\r\n")
        return None
    if isinstance(body, bytes) and len(body) <= SEND_BYTES:
        connection.transport.write(b"%b\r\n%b" % (request.head, body))
        return None
    connection.transport.write(request.head + b"\r\n")
    if isinstance(body, bytes):
        body = [memoryview(body)]
    slices: AsyncGenerator[bytes | memoryview, None] = _slices(body) if isinstance(body, list) else body
    writing = _write(slices, connection, sent, failed, chunked=request.chunked)
    return Sending(asyncio.get_running_loop().create_task(writing))


async def _write(
    slices: AsyncGenerator[bytes | memoryview, None],
    connection: Connection,
    sent: Callable[[], None],
    failed: Callable[[Exception], None],
    *,
    chunked: bool,
) -> None:
    try:
        async with contextlib.aclosing(slices):
            async for part in slices:
                data = b"%x\r\n%b\r\n" % (len(part), bytes(part)) if chunked else part
                connection.transport.write(data)
                await connection.drain()
                sent()
        if chunked:
            connection.transport.write(b"0\r\n\r\n")
    except Exception as error:
        # Whoever waits for the answer gets it; nobody waits for this task.
        failed(error)


async def _slices(parts: list[memoryview]) -> AsyncGenerator[memoryview, None]:
    for part in parts:
        for start in range(0, len(part), SEND_BYTES):
            yield part[start : start + SEND_BYTES]
            await asyncio.sleep(0)
