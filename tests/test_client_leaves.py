"""A client that leaves takes its upstream request with it, at any moment: generation and billing stop.

It leaves with FIN (it closed, or only said that it will send no more) or with RST; both count as leaving.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
from rawclient import Client, asked, get, post, request_head
from running import Proxy, StartProxy, StartUpstream
from scripted import (
    JSON_TYPE,
    MESSAGE,
    MESSAGE_EVENTS,
    Conn,
    Request,
    Step,
    Upstream,
    answer,
    chunk,
    head,
    raw,
    refusal,
    stream_head,
)

MESSAGES = "/anthropic/v1/messages"
FIRST = MESSAGE_EVENTS[0]
PROMPTLY = 1.0
"""Seconds; far less than any timer of the proxy in these tests."""

Promptly = Callable[[], AbstractContextManager[None]]

LEAVE: dict[str, Callable[[Client], None]] = {
    "FIN": Client.close,
    "half-close": Client.finish_sending,
    "RST": Client.reset,
}


async def stays(conn: Conn) -> None:
    await conn.request()
    await conn.gone()


@pytest.fixture
def promptly(machine: Callable[[], float]) -> Promptly:
    """What is done ``with promptly():`` takes so long at most, beside what the machine itself is late."""

    @contextlib.contextmanager
    def bounded() -> Iterator[None]:
        started, late = time.monotonic(), machine()
        yield
        assert time.monotonic() - started < PROMPTLY + machine() - late

    return bounded


async def leaves(up: Upstream, client: Client, how: str, promptly: Promptly) -> None:
    """The client leaves, and upstream sees it promptly."""
    with promptly():
        LEAVE[how](client)
        await up.quiet()


async def works_still(p: Proxy, up: Upstream) -> None:
    """The next request, on a new connection, is answered as if nothing had been."""
    up.then(answer(body=MESSAGE))
    response = await p.post(MESSAGES, asked())
    assert (response.status, response.body) == (200, MESSAGE)


@pytest.mark.parametrize("how", LEAVE)
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_while_upstream_thinks(
    upstream: StartUpstream, proxy: StartProxy, promptly: Promptly, stream: bool, how: str
) -> None:
    """Before upstream's head: the connection is closed at once, and nobody else is asked."""
    up, backup = await upstream(raw(stays)), await upstream()
    p = await proxy(providers={"anthropic": up, "backup": backup}, network={"max_retries": 5})
    client = await p.connect()
    await client.send(post(MESSAGES, asked(stream=stream, fallbacks=["backup/x"])))
    await up.received()
    await leaves(up, client, how, promptly)
    line = await p.line()
    assert (line["ending"], line["status"], line["bytes_out"]) == ("DH", 0, 0)
    assert backup.arrived == 0
    await works_still(p, up)


MID: dict[str, tuple[bytes, bytes]] = {
    "between events": (stream_head() + chunk(FIRST), FIRST),
    "in an event": (stream_head() + chunk(FIRST[:20]), FIRST[:20]),
    "before an event": (stream_head(), b""),
    "in a JSON answer": (head(200, [JSON_TYPE, (b"Content-Length", b"100")]) + b'{"a":', b'{"a":'),
}


@pytest.mark.parametrize("how", LEAVE)
@pytest.mark.parametrize("where", MID)
async def test_in_the_middle_of_an_answer(
    upstream: StartUpstream, proxy: StartProxy, promptly: Promptly, where: str, how: str
) -> None:
    """After the head: the same, though no byte is waiting to be written."""
    sent, seen = MID[where]

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(sent)
        await conn.gone()

    up = await upstream(step)
    p = await proxy(up, ping_interval=0)
    client = await p.connect()
    await client.send(post(MESSAGES, asked(stream=True)))
    await client.head()
    if seen:
        await client.read_until(seen)
    await leaves(up, client, how, promptly)
    line = await p.line()
    assert (line["ending"], line["status"]) == ("DD", 200)
    await works_still(p, up)


@pytest.mark.parametrize("how", LEAVE)
async def test_while_upstream_pours(
    upstream: StartUpstream, proxy: StartProxy, promptly: Promptly, how: str
) -> None:
    """An upstream that never stops sending is stopped by the client's leaving."""

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(stream_head())
        while True:
            await conn.send(chunk(FIRST * 20))

    up = await upstream(step)
    p = await proxy(up)
    client = await p.connect()
    await client.send(post(MESSAGES, asked(stream=True)))
    await client.head()
    await client.read_until(FIRST)
    await leaves(up, client, how, promptly)
    assert (await p.line())["ending"] == "DD"
    await works_still(p, up)


@pytest.mark.parametrize("how", LEAVE)
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_while_it_sends_a_model_request(
    upstream: StartUpstream, proxy: StartProxy, framing: str, how: str
) -> None:
    """Half a body is no request: upstream never hears of it."""
    up = await upstream()
    p = await proxy(up)
    client = await p.connect()
    body = asked()
    if framing == "length":
        await client.send(post(MESSAGES, body)[:-5])
    else:
        fields = [(b"Host", b"h"), (b"Transfer-Encoding", b"chunked")]
        await client.send(request_head("POST", MESSAGES, fields) + chunk(body))
    LEAVE[how](client)
    assert (await p.line())["ending"] == "DR"
    assert up.connections == 0
    await works_still(p, up)


@pytest.mark.parametrize("how", LEAVE)
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_while_it_uploads(
    upstream: StartUpstream, proxy: StartProxy, promptly: Promptly, framing: str, how: str
) -> None:
    """A body that streams through is broken off upstream too; it never looks whole there."""
    ended: list[bool] = []

    async def step(conn: Conn) -> None:
        await conn.read_until(b"0123456789")
        come.set()
        await conn.gone()
        ended.append(b"\r\n0\r\n\r\n" in conn.reads())

    come = asyncio.Event()
    up = await upstream(raw(step))
    p = await proxy(up)
    client = await p.connect()
    coding = (b"Content-Length", b"100") if framing == "length" else (b"Transfer-Encoding", b"chunked")
    part = b"0123456789" if framing == "length" else chunk(b"0123456789")
    await client.send(request_head("POST", "/anthropic/v1/files", [(b"Host", b"h"), coding]) + part)
    async with asyncio.timeout(10):
        await come.wait()
    await leaves(up, client, how, promptly)
    assert ended == [False]
    assert (await p.line())["ending"][0] == "D"
    await works_still(p, up)


@pytest.mark.parametrize("how", LEAVE)
async def test_while_it_does_not_read(
    upstream: StartUpstream, proxy: StartProxy, promptly: Promptly, how: str
) -> None:
    """What waits for it does not keep the request alive."""

    async def pours(conn: Conn, _: Request) -> None:
        await conn.send(stream_head())
        while True:
            await conn.send(chunk(FIRST * 200))

    up = await upstream(pours)
    p = await proxy(up, send_timeout=60)
    client = await p.connect(receive_buffer=4096)
    client.stop_reading()
    await client.send(post(MESSAGES, asked(stream=True)))
    await up.received()
    await asyncio.sleep(0.3)
    with promptly():
        await leaves(up, client, how, promptly)
        assert (await p.line())["ending"] == "DD"


BEHIND = {
    "forty requests": get("/anthropic/v1/models") * 40,
    "an upgrade's bytes": b"x" * 1_000_000,
}


@pytest.mark.parametrize("behind", BEHIND)
async def test_with_much_behind_its_request(
    upstream: StartUpstream, proxy: StartProxy, promptly: Promptly, behind: str
) -> None:
    """What waits behind a request, unread, does not hide that its client has gone."""
    up = await upstream(raw(stays))
    p = await proxy(up)
    client = await p.connect()
    upgrade = [(b"Upgrade", b"websocket"), (b"Connection", b"upgrade")] if "upgrade" in behind else []
    request = post(MESSAGES, asked(), upgrade)
    sending = asyncio.ensure_future(client.send(request + BEHIND[behind]))
    await up.received()
    await asyncio.sleep(0.2)
    sending.cancel()
    await leaves(up, client, "RST", promptly)
    assert (await p.line())["ending"] == "DH"


async def test_between_retries(upstream: StartUpstream, proxy: StartProxy) -> None:
    """A client that leaves during a backoff is not worth another attempt."""
    up, backup = await upstream(refusal(503)), await upstream()
    network = {"max_retries": 5, "retry_backoff_initial": 30, "retry_backoff_max": 30}
    p = await proxy(providers={"anthropic": up, "backup": backup}, network=network)
    client = await p.connect()
    await client.send(post(MESSAGES, asked(fallbacks=["backup/x"])))
    await up.received()
    client.close()
    line = await p.line()
    assert line["ending"][0] == "D"
    assert (up.arrived, backup.arrived) == (1, 0)


@pytest.fixture
def full_port() -> Iterator[int]:
    """A port that neither accepts nor refuses: its queue of connections is full, so the kernel drops more."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        for queued in waiting:
            queued.setblocking(False)
            queued.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]
        for queued in waiting:
            queued.close()


async def test_while_upstream_is_being_connected_to(
    proxy: StartProxy, promptly: Promptly, full_port: int
) -> None:
    """Connecting is given up at once; it does not go on until `connect_timeout`."""
    p = await proxy(
        {"base_urls": {"anthropic": f"http://127.0.0.1:{full_port}"}}, network={"connect_timeout": 60}
    )
    client = await p.connect()
    await client.send(post(MESSAGES, asked()))
    # What the proxy was sent later is answered: it has taken up the request before.
    assert (await p.get("/health")).status == 200
    assert (await p.line())["path"] == "/health"
    with promptly():
        client.close()
        line = await p.line()
    assert line["ending"] in ("DC", "DH")


async def test_a_connect_that_takes_too_long_is_504(proxy: StartProxy, full_port: int) -> None:
    """`connect_timeout` ends it otherwise."""
    p = await proxy(
        {"base_urls": {"anthropic": f"http://127.0.0.1:{full_port}"}},
        network={"connect_timeout": 0.1, "max_retries": 0},
    )
    response = await p.post(MESSAGES, asked())
    assert response.status == 504
    assert response.header("x-bifrost-attempts") == b"anthropic/claude-2:connect"


async def test_a_client_that_leaves_after_its_answer_has_not_left_early(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """A complete answer is complete, and the upstream connection stays for the next request."""
    up = await upstream(answer(body=MESSAGE), answer(body=MESSAGE))
    p = await proxy(up)
    for _ in range(2):
        client = await p.connect()
        await client.send(post(MESSAGES, asked()))
        assert (await client.response()).complete
        client.reset()
        assert (await p.line())["ending"] == "--"
    assert up.connections == 1


async def test_one_client_that_leaves_takes_no_other_with_it(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """Streams beside it go on to their end."""
    go_on = asyncio.Event()

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(stream_head() + chunk(FIRST))
        await go_on.wait()
        await conn.send(chunk(MESSAGE_EVENTS[-1]) + b"0\r\n\r\n")

    steps: list[Step] = [step] * 3
    up = await upstream(*steps)
    p = await proxy(up)
    clients = [await p.connect() for _ in range(3)]
    for client in clients:
        await client.send(post(MESSAGES, asked(stream=True)))
        await client.head()
        await client.read_until(FIRST)
    clients[1].reset()
    assert (await p.line())["ending"] == "DD"
    go_on.set()
    for client in (clients[0], clients[2]):
        response = await client.rest()
        assert (response.body, response.complete) == (FIRST + MESSAGE_EVENTS[-1], True)


async def test_many_clients_that_leave_leave_nothing_behind(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """Fifty at once: no connection and no task remains, which the fixtures look at as well."""
    count = 50
    steps: list[Step] = [raw(stays)] * count
    up = await upstream(*steps)
    p = await proxy(up)
    before = len(asyncio.all_tasks())
    clients = [await p.connect() for _ in range(count)]
    for client in clients:
        await client.send(post(MESSAGES, asked(stream=True)))
    await up.received(count)
    assert up.open == count
    for client in clients:
        client.reset()
    await up.quiet()
    endings = [(await p.line())["ending"] for _ in range(count)]
    assert endings == ["DH"] * count
    await works_still(p, up)
    assert len(asyncio.all_tasks()) <= before + 2
