"""Names that asyncio and aiohttp do not promise, and that `door` and `connection` use for what they add."""

from __future__ import annotations

from asyncio import selector_events, sslproto

from aiohttp import web_protocol
from rawclient import asked, post
from running import StartProxy, StartUpstream
from scripted import MESSAGE, answer

from proxy import door


def test_a_transport_has_a_size_of_reads() -> None:
    """Were the name gone, setting it would do nothing, and each read would map new memory."""
    assert selector_events._SelectorTransport.max_size > door.RECEIVE_BYTES


def test_aiohttp_has_what_a_door_looks_at() -> None:
    """What the door reads and sets of aiohttp's connection is there, and means what it meant."""
    slots = set(web_protocol.RequestHandler.__slots__) | set(web_protocol.BaseProtocol.__slots__)
    assert {"_waiter", "_messages", "_current_request", "_lingering_time", "_reading_paused"} <= slots
    assert web_protocol._ErrInfo(status=408, exc=TimeoutError(), message="").status == 408


def test_asyncio_has_the_state_of_tls() -> None:
    """What tells an end that TLS told of from one that it did not; `test_upstream_connections` shows both."""
    assert sslproto.SSLProtocolState.SHUTDOWN
    assert "_ssl_protocol" in sslproto._SSLProtocolTransport.__init__.__code__.co_names


async def test_the_size_is_set(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Every downstream connection reads in pieces of that size."""
    up = await upstream(answer(body=MESSAGE))
    p = await proxy(up)
    client = await p.connect()
    await client.send(post("/anthropic/v1/messages", asked()))
    await client.response()
    assert p.server._downstream is not None
    (connection,) = p.server._downstream.connections
    assert connection.transport is not None
    assert connection.transport.max_size == door.RECEIVE_BYTES
