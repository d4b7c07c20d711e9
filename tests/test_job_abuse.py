"""Jobs in the hands of those who want more than their share: others go on, and memory stays bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from backends import Backend, backend
from rawclient import Response, asked, get
from running import Proxy, StartProxy, StartUpstream
from scripted import MESSAGE, Conn, answer, raw

from proxy.errors import ProxyError

__all__ = ["backend"]

MESSAGES = "/anthropic/v1/messages"
SUBMIT = (b"x-bf-async", b"true")
KEY = (b"x-api-key", b"sk-test-client")
LARGE = b'{"text": "%b"}' % bytes(range(48, 58)).replace(b"0", b"x" * 4_000_000)
"""Four megabytes: more than the kernel's buffers take."""


async def submit(p: Proxy) -> bytes:
    response = await p.post(MESSAGES, asked("claude-2"), [SUBMIT])
    id = response.header("x-bf-async-id")
    assert id is not None, response.body
    return id


async def over(p: Proxy, id: bytes) -> Response:
    async with asyncio.timeout(20):
        while True:
            response = await p.ask(get(MESSAGES, [(b"x-bf-async-id", id), KEY], method="HEAD"), "HEAD")
            if response.header("x-bf-async-status") not in (b"pending", b"processing"):
                return response
            await asyncio.sleep(0.01)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("path", [MESSAGES, "/v1/async/messages"])
async def test_a_result_that_is_read_slowly_is_counted(
    backend: Backend, upstream: StartUpstream, proxy: StartProxy, path: str
) -> None:
    """It has room of its own: the next one is a 503, others go on, and in the end nothing is held."""
    up = await upstream(answer(body=LARGE), answer(body=MESSAGE))
    p = await proxy(up, store=backend.url, max_buffered_bytes=24_000_000, max_body_bytes=1_000_000)
    id = await submit(p)
    assert (await over(p, id)).status == 200
    handler = p.server._handler
    assert handler is not None
    target = path if path == MESSAGES else f"{path}/{id.decode()}"
    slow = await p.connect(receive_buffer=4096)
    slow.stop_reading()
    await slow.send(get(target, [(b"x-bf-async-id", id), KEY]))
    await until(lambda: handler.buffered() >= 2 * len(LARGE))
    refused = await p.get(target, [(b"x-bf-async-id", id), KEY])
    assert (refused.status, refused.header("retry-after")) == (503, b"1")
    assert (await p.post(MESSAGES, asked("claude-2"))).body == MESSAGE
    slow.go_on_reading()
    assert LARGE in (await slow.response("GET")).body
    await until(lambda: handler.buffered() == 0)
    assert LARGE in (await p.get(target, [(b"x-bf-async-id", id), KEY])).body


async def test_who_asks_for_the_head_gets_no_body_read(
    backend: Backend, upstream: StartUpstream, proxy: StartProxy
) -> None:
    """Nor who deletes, nor who may not have it: a body is read for nobody else."""
    p = await proxy(await upstream(answer(body=LARGE)), store=backend.url)
    id = await submit(p)
    jobs: Any = p.server._job_store

    async def look(id: str, now: float) -> None:
        raise AssertionError("the body was read")

    jobs.look = look
    head = await over(p, id)
    assert (head.status, head.header("content-length")) == (200, b"%d" % len(LARGE))
    unified = await p.ask(get(f"/v1/async/messages/{id.decode()}", [KEY], method="HEAD"), "HEAD")
    assert (unified.status, unified.header("content-length")) == (200, None)
    other = await p.ask(get(MESSAGES, [(b"x-bf-async-id", id), (b"x-api-key", b"sk-test-other")]), "GET")
    assert other.status == 404
    assert (
        await p.ask(get(MESSAGES, [(b"x-bf-async-id", id), KEY], method="DELETE"), "DELETE")
    ).status == 200


async def test_results_that_come_slowly_take_nobodys_room(
    backend: Backend, upstream: StartUpstream, proxy: StartProxy
) -> None:
    """However much jobs hold, ordinary requests go on; of jobs one at a time does, so that all end."""
    go_on = asyncio.Event()

    async def stalls(conn: Conn) -> None:
        await conn.request()
        await conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(LARGE) + LARGE[:3_000_000])
        await go_on.wait()
        await conn.send(LARGE[3_000_000:])

    async def plain(conn: Conn) -> None:
        await conn.request()
        await conn.send(answer(body=MESSAGE))

    up = await upstream(*[raw(stalls)] * 3)
    quick = await upstream(raw(plain))
    p = await proxy(
        up,
        providers={"quick": {"base_urls": {"anthropic": quick.url}, "is_key_less": True}},
        store=backend.url,
        max_buffered_bytes=8_000_000,
        max_body_bytes=1_000_000,
    )
    ids = [await submit(p) for _ in range(3)]
    await up.received(3)
    assert (await p.post(MESSAGES, asked("quick/claude-2"))).body == MESSAGE
    go_on.set()
    for id in ids:
        assert (await over(p, id)).header("content-length") == b"%d" % len(LARGE)
    assert p.server._handler is not None
    assert p.server._handler.buffered() == 0


async def test_a_job_that_cannot_be_done_at_this_moment_waits(
    backend: Backend, upstream: StartUpstream, proxy: StartProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own 503 before anything was sent is no ending: the job is done once, when it can be."""
    monkeypatch.setattr("proxy.dispatcher.REST_SECONDS", 0.01)
    p = await proxy(await upstream(answer(body=MESSAGE)), store=backend.url)
    handler = p.server._handler
    assert handler is not None
    choose: Callable[..., Awaitable[Any]] = handler.rules.choose
    refused = 0

    async def choose_later(*arguments: Any, later: bool = False) -> Any:
        nonlocal refused
        if not later and refused < 2:
            refused += 1
            raise ProxyError(503, "The limits of this virtual key cannot be looked up now.")
        return await choose(*arguments, later=later)

    monkeypatch.setattr(handler.rules, "choose", choose_later)
    response = await over(p, await submit(p))
    assert (response.status, refused) == (200, 2)
