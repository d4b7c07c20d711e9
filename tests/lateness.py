"""Machines that stand still for a moment: how late this process is, and connections without a pause.

Facts
  - What stops all processes stops this one: a limit on a time that a test measures, plus what this process
    was late meanwhile, holds on a machine that stands still now and then.
  - The kernel takes a connection, and what is sent on it, before the proxy accepts it. So nothing can come
    between, and a proxy that is impatient with silent connections meets none.

Not here: limits. Each test states its own.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable

import pytest
from rawclient import Client, Wire
from running import Proxy


@pytest.fixture
async def machine() -> AsyncIterator[Callable[[], float]]:
    """Tells how late, in seconds, this process has been so far in all: others want the processors as well."""
    loop = asyncio.get_running_loop()
    late = 0.0
    due = loop.time()

    async def watch() -> None:
        nonlocal late, due
        while True:
            due = loop.time() + 0.01
            await asyncio.sleep(0.01)
            late += loop.time() - due

    def so_far() -> float:
        # The test may run before the watch does, after both were late.
        return late + max(0.0, loop.time() - due)

    watching = loop.create_task(watch())
    yield so_far
    watching.cancel()
    await asyncio.wait([watching])


async def sent_at_once(p: Proxy, data: bytes) -> Client:
    """A new connection on which `data` (a few kilobytes at most) is there when the proxy accepts it."""
    endpoint = socket.create_connection(("127.0.0.1", p.port))
    endpoint.sendall(data)
    endpoint.setblocking(False)
    _, wire = await asyncio.get_running_loop().create_connection(Wire, sock=endpoint)
    p.clients.append(Client(wire))
    return p.clients[-1]
