"""A hostile upstream: what it may answer, and how it may fail to.

What a client gets is whole, or an error of ours, or a reset, and never half an answer that looks whole. The
next request is not touched by it, upstream is asked as often as is allowed, one line is logged for each
request, and nothing stays open.

Not here: the answers themselves (`hostile_answers`), TLS (`test_upstream_tls`), answers that end too early or
stand still (`test_upstream_cut`), answers without end (`test_hostile_upstream`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from hostile_answers import HOSTILE, SHAPES, TO_HEAD, Hostile, spelt
from hostile_modes import (
    GOOD,
    MESSAGES,
    MODES,
    PATIENT,
    Came,
    Mode,
    ask_in_all_modes,
    check_endings,
    let_go,
    then,
)
from rawclient import Client, Response, asked, get, post
from running import StartProxy, StartUpstream
from scripted import MESSAGE, Conn, Raw, Request, Step


async def next_is_good(client: Client) -> None:
    """The next request on this connection of a client gets its own answer and nothing else."""
    await client.send(post(MESSAGES, asked()))
    response = await client.response()
    assert (response.status, response.body, response.complete) == (200, MESSAGE, True)
    assert client.leftover == b""


# Answers.


def plays(case: Hostile, shape: str, seen: asyncio.Event) -> Step:
    """A step that gives this answer; what comes later, when `seen` is set."""

    async def play(conn: Conn, _: Request) -> None:
        await conn.send(spelt(case.sends, shape))
        if case.later:
            await seen.wait()
            await conn.send(spelt(case.later, shape))
        if case.ends == "FIN":
            await conn.close()
        elif case.ends == "RST":
            conn.reset()

    return play


def event_of(case: Hostile, mode: Mode) -> str:
    return case.held if case.held and mode == ("stream", True) else case.event


def must_come(case: Hostile, mode: Mode) -> Came:
    event = event_of(case, mode)
    if event and (mode.fallback or case.gets is None):
        return Came.failed(mode, case.status, event, case.calls)
    body = spelt(case.gets or b"", mode.shape)
    # An event of ours has its place between two of a stream's, and nowhere else.
    between = mode.shape == "stream" and (body.endswith(b"\n\n") or not body)
    attempts = ",".join([f"anthropic/claude-2:{case.status}"] * case.calls)
    return Came(mode, case.status, body, case.cut and between, "reset" if case.cut else "whole", attempts)


def ending(came: Came) -> str:
    return "UD" if came.how == "reset" else "UH" if came.body is None else "--"


async def read(client: Client, case: Hostile, mode: Mode, seen: asyncio.Event) -> Response:
    """The answer; `seen` is set when as much of it is there as upstream sent at first."""
    await client.head()
    if case.later:
        first = spelt(case.gets or b"", mode.shape)[: len(SHAPES[mode.shape][1])]
        await client.wire.until(lambda: client.received.startswith(first), "what was sent at first")
    seen.set()
    return await client.rest()


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_answer(upstream: StartUpstream, proxy: StartProxy, name: str) -> None:
    """It comes down whole, or as an error of ours, or is reset; the next request gets its own answer."""
    case = HOSTILE[name]
    up, backup = await upstream(), await upstream()
    p = await proxy(providers={"anthropic": up, "backup": backup}, network=PATIENT, ping_interval=0)
    expected = []
    for mode in MODES:
        seen = asyncio.Event()
        up.then(*[plays(case, mode.shape, seen)] * case.calls, GOOD)
        backup.then(*[GOOD] * (mode.fallback and bool(event_of(case, mode))))
        async with await p.connect() as client:
            await client.send(mode.request())
            came = Came.of(mode, await read(client, case, mode, seen))
            assert came == must_come(case, mode)
            if not case.reusable:
                await let_go(up)
            connections = up.connections
            async with await p.connect() as another:
                await next_is_good(client if came.how == "whole" else another)
        assert up.connections == connections + (not case.reusable)
        expected += [ending(came), "--"]
    await p.stop()
    assert [line["ending"] for line in p.lines] == expected


@pytest.mark.parametrize("name", TO_HEAD)
async def test_a_hostile_answer_to_head(upstream: StartUpstream, proxy: StartProxy, name: str) -> None:
    """Whatever an answer to HEAD says or brings, no body comes down, and no other request gets it."""
    case, seen, mode = TO_HEAD[name], asyncio.Event(), Mode("json", fallback=False)
    up = await upstream(plays(case, mode.shape, seen), GOOD)
    p = await proxy(up, network=PATIENT)
    async with await p.connect() as client:
        await client.send(get("/anthropic/v1/models", method="HEAD"))
        response = await client.response("HEAD")
        assert response.status == case.status
        seen.set()
        if not case.reusable:
            await let_go(up)
        connections = up.connections
        await next_is_good(client)
    assert up.connections == connections + (not case.reusable)
    await p.stop()
    assert [line["ending"] for line in p.lines] == ["UH" if case.gets is None else "--", "--"]


# Connections that fail.

PADDING = "x" * 4_000_000
"""More than the kernel's buffers hold: half of such a body is read while the other is still being sent."""


async def half_read(conn: Conn) -> None:
    await conn.read_exactly(len(PADDING) // 2)


async def nothing_read(conn: Conn) -> None:
    pass


async def head_read(conn: Conn) -> None:
    await conn.read_until(b"\r\n\r\n")


async def whole_read(conn: Conn) -> None:
    await conn.request()


def at_once(how: str) -> Callable[[Conn], object]:
    """Ends a connection as soon as it is there."""

    def end(conn: Conn) -> None:
        if how == "RST":
            conn.reset()
        else:
            conn._wire.finish_sending()

    return end


class Fault(NamedTuple):
    """How a connection fails, and what it comes to after how many calls of a target with one retry."""

    plays: Raw | Callable[[Conn], object]
    status: int
    event: str
    calls: int
    ending: str
    padding: str = ""


FAULTS = {
    "RST at once": Fault(at_once("RST"), 502, "reset", 2, "UH"),
    "FIN at once": Fault(at_once("FIN"), 502, "reset", 2, "UH"),
    "RST behind the head": Fault(then(head_read, "RST"), 502, "reset", 2, "UH"),
    "FIN behind the head": Fault(then(head_read, "FIN"), 502, "reset", 2, "UH"),
    "RST in the body": Fault(then(half_read, "RST"), 502, "reset", 2, "UH", PADDING),
    "FIN in the body": Fault(then(half_read, "FIN"), 502, "reset", 2, "UH", PADDING),
    "RST behind the body": Fault(then(whole_read, "RST"), 502, "reset", 2, "UH"),
    "FIN behind the body": Fault(then(whole_read, "FIN"), 502, "reset", 2, "UH"),
    "silence behind the head": Fault(then(head_read, ""), 504, "timeout", 1, "uH"),
    "silence in the body": Fault(then(half_read, ""), 504, "timeout", 1, "uH", PADDING),
    "silence behind the body": Fault(then(whole_read, ""), 504, "timeout", 1, "uH"),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_a_connection_that_fails(upstream: StartUpstream, proxy: StartProxy, name: str) -> None:
    """An error of ours, or the next target's answer; the retry is made where the table allows one."""
    fault = FAULTS[name]
    calls = fault.calls * len(MODES)
    if isinstance(fault.plays, Raw):
        up = await upstream(*[fault.plays] * calls)
    else:
        up = await upstream(*[then(nothing_read, "")] * calls, connected=fault.plays)
        # The end may be seen before or after the request is written.
        up.allow_unused = True
    backup = await upstream(GOOD, GOOD)
    timer = {"first_byte_timeout": 0.2} if fault.event == "timeout" else {}
    # Of the backup no time is short: on a slow machine it would be over.
    primary = {"base_urls": {"anthropic": up.url}, "network_config": PATIENT | timer}
    p = await proxy(providers={"anthropic": primary, "backup": backup})
    came = await ask_in_all_modes(p, fault.padding)
    assert came == [Came.failed(mode, fault.status, fault.event, fault.calls) for mode in MODES]
    await let_go(up)
    assert up.connections == calls
    await check_endings(p, fault.ending)


@contextlib.contextmanager
def refused() -> Iterator[str]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@contextlib.contextmanager
def deaf() -> Iterator[str]:
    """Its queue is full: the kernel drops what would connect to it, and says nothing."""
    with socket.socket() as listening, socket.socket() as first:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        first.connect(listening.getsockname())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextlib.contextmanager
def nobody(name: str) -> Iterator[str]:
    yield f"http://{name}:9"


UNREACHABLE: dict[str, tuple[Callable[[], contextlib.AbstractContextManager[str]], int, str]] = {
    "refused": (refused, 502, "UC"),
    "a queue that is full": (deaf, 504, "uC"),
    "a name that does not resolve": (lambda: nobody("upstream.invalid"), 502, "UC"),
    "a name that is no name": (lambda: nobody("a" * 64 + ".invalid"), 502, "UC"),
    "an address of IPv6": (lambda: nobody("[::1]"), 502, "UC"),
}


@pytest.mark.parametrize("name", UNREACHABLE)
async def test_an_upstream_that_cannot_be_reached(
    upstream: StartUpstream, proxy: StartProxy, name: str
) -> None:
    """Nothing was sent: the target is tried once more, then the next one is."""
    where, status, ended = UNREACHABLE[name]
    backup = await upstream(GOOD, GOOD)
    with where() as url:
        timer = {"connect_timeout": 0.3} if status == 504 else {}
        primary = {"base_urls": {"anthropic": url}, "network_config": PATIENT | timer}
        p = await proxy(providers={"anthropic": primary, "backup": backup})
        came = await ask_in_all_modes(p)
    assert came == [Came.failed(mode, status, "connect", 2) for mode in MODES]
    await check_endings(p, ended)


async def test_an_address_of_ipv6(upstream: StartUpstream, proxy: StartProxy) -> None:
    """It stands in brackets in the URL and in Host; where there is no such network it is unreachable."""
    asked_for, over = [], asyncio.Event()

    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked_for.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(GOOD)
        await reader.read()
        writer.close()
        over.set()

    try:
        server = await asyncio.start_server(answers, "::1", 0)
    except OSError:
        p = await proxy({"base_urls": {"anthropic": "http://[::1]:9"}}, network=PATIENT)
        assert (await p.post(MESSAGES, asked())).status == 502
        return
    port = server.sockets[0].getsockname()[1]
    p = await proxy({"base_urls": {"anthropic": f"http://[::1]:{port}"}}, network=PATIENT)
    assert (await p.post(MESSAGES, asked())).body == MESSAGE
    assert b"\r\nHost: [::1]:%d\r\n" % port in asked_for[0]
    await p.stop()
    await over.wait()
    server.close()
    await server.wait_closed()


# Connections that upstream closes while they are idle.


@pytest.mark.parametrize("how", ["FIN", "RST"])
async def test_connections_that_go_stale_cost_nobody_anything(
    upstream: StartUpstream, proxy: StartProxy, how: str
) -> None:
    """Whenever upstream ends an idle connection, no client sees it, and no request is read twice.

    Each client asks again 50 ms after its answer; upstream ends a connection 0 to 100 ms after it was used.
    """
    posts, lanes, pause = 2000, 40, 0.05
    loop = asyncio.get_running_loop()
    ends: dict[int, asyncio.TimerHandle] = {}

    def end(conn: Conn) -> None:
        if how == "RST":
            conn.reset()
        else:
            closing.append(loop.create_task(conn.close()))

    async def step(conn: Conn, request: Request) -> None:
        if conn.number in ends:
            ends[conn.number].cancel()
        await conn.send(GOOD)
        phase = json.loads(request.body)["top_k"] % 100
        ends[conn.number] = loop.call_later(2 * pause * phase / 100, end, conn)

    async def lane(first: int) -> None:
        async with await p.connect() as client:
            for number in range(first, posts, lanes):
                await client.send(post(MESSAGES, asked(top_k=number)))
                response = await client.response()
                assert (response.status, response.body, response.complete) == (200, MESSAGE, True)
                await asyncio.sleep(pause)

    closing: list[asyncio.Task[None]] = []
    up = await upstream(*[step] * posts)
    p = await proxy(up, network={"max_retries": 0})
    async with asyncio.TaskGroup() as group:
        for first in range(lanes):
            group.create_task(lane(first))
    for timer in ends.values():
        timer.cancel()
    assert sorted(json.loads(request.body)["top_k"] for request in up.requests) == list(range(posts))
    await p.stop()
    attempts = Counter(attempt for line in p.lines for attempt in line["attempts"])
    replays = attempts["anthropic/claude-2:reset"]
    assert attempts == {"anthropic/claude-2:200": posts, "anthropic/claude-2:reset": replays}
    # What the test is about did happen: a connection ended at the moment of its use.
    assert 0 < replays < posts
    assert len(p.lines) == posts
