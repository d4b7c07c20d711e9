"""A name that asyncio does not promise, and that `server` uses for what it saves."""

from __future__ import annotations

from asyncio import selector_events

from rawclient import asked, post
from running import StartProxy, StartUpstream
from scripted import MESSAGE, answer

from proxy import server


def test_a_transport_has_a_size_of_reads() -> None:
    """Were the name gone, setting it would do nothing, and each read would map new memory."""
    assert selector_events._SelectorTransport.max_size > server.RECEIVE_BYTES


async def test_the_size_is_set(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Every downstream connection reads in pieces of that size."""
    up = await upstream(answer(body=MESSAGE))
    p = await proxy(up)
    client = await p.connect()
    await client.send(post("/anthropic/v1/messages", asked()))
    await client.response()
    assert p.server is not None
    assert p.server._runner is not None
    assert p.server._runner.server is not None
    (door,) = p.server._runner.server.connections
    assert door.transport is not None
    assert door.transport.max_size == server.RECEIVE_BYTES
