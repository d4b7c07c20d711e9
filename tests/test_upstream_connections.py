"""Connections to providers: when one is used again, when it must not be, and what TLS adds to that.

Not here: what upstream sends behind an answer (`test_upstream_faults`), whom TLS lets in and what a cut is
over it (`test_upstream_tls`).
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import socket
import ssl
from typing import Any

import pytest
import trustme
from rawclient import asked, post, request_head
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
    streamed,
)

from proxy import upstream as upstream_room

MESSAGES = "/anthropic/v1/messages"
GOOD = answer(body=MESSAGE)
ONCE = {"max_retries": 0}


async def ask(p: Proxy) -> None:
    """One request, which must be answered well."""
    response = await p.post(MESSAGES, asked())
    assert (response.status, response.body, response.complete) == (200, MESSAGE, True)


def connection_numbers(up: Upstream) -> list[int]:
    return [request.connection_number for request in up.requests]


# Reuse.


async def test_a_connection_is_used_again(upstream: StartUpstream, proxy: StartProxy) -> None:
    """JSON answers, streams and answers without a body all give their connection back."""
    up = await upstream(
        GOOD,
        streamed(MESSAGE_EVENTS),
        refusal(400),
        head(204, []),
        answer(body=b"{}"),
        b"HTTP/1.1 100 Continue\r\n\r\n" + GOOD,
        GOOD,
    )
    p = await proxy(up)
    await ask(p)
    assert (await p.post(MESSAGES, asked(stream=True))).body == b"".join(MESSAGE_EVENTS)
    assert (await p.post(MESSAGES, asked())).status == 400
    assert (await p.post(MESSAGES, asked())).status == 204
    assert (await p.get("/anthropic/v1/models")).status == 200
    await ask(p)
    await ask(p)
    assert connection_numbers(up) == [0] * 7


async def test_the_newest_idle_connection_is_taken(upstream: StartUpstream, proxy: StartProxy) -> None:
    """The one that was used last is the least likely to be closed by the provider."""
    turns = [asyncio.Event() for _ in range(3)]

    async def wait_turn(conn: Conn, _: Request) -> None:
        await turns[conn.number].wait()
        await conn.send(GOOD)

    up = await upstream(wait_turn, wait_turn, wait_turn, GOOD, GOOD)
    p = await proxy(up)
    clients = [await p.connect() for _ in turns]
    for number, client in enumerate(clients):
        await client.send(post(MESSAGES, asked()))
        await up.received(number + 1)
    for number in (0, 2, 1):
        turns[number].set()
        assert (await clients[number].response()).status == 200
    await ask(p)
    await ask(p)
    assert connection_numbers(up) == [0, 1, 2, 1, 1]


async def test_there_is_no_limit_on_connections(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Many slow calls at once all reach upstream; none waits for another's end."""
    count = 150
    everyone = asyncio.Event()

    async def step(conn: Conn, _: Request) -> None:
        if len(up.requests) == count:
            everyone.set()
        await everyone.wait()
        await conn.send(GOOD)

    steps: list[Step] = [step] * count
    up = await upstream(*steps)
    p = await proxy(up)
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(ask(p))
    assert up.connections == count


async def test_an_idle_connection_is_closed_in_time(
    upstream: StartUpstream, proxy: StartProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the provider would do it; and without a request that makes the proxy look."""
    monkeypatch.setattr(upstream_room, "POOL_SECONDS", 0.1)
    up = await upstream(GOOD, GOOD)
    p = await proxy(up)
    await ask(p)
    await up.quiet()
    await ask(p)
    assert connection_numbers(up) == [0, 1]


async def test_a_connection_that_upstream_closed_is_not_used(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """A FIN while it is idle is noticed at once, and the proxy closes its side."""

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(GOOD)
        await asyncio.sleep(0)
        await conn.close()

    up = await upstream(step, GOOD)
    p = await proxy(up, network=ONCE)
    await ask(p)
    await up.quiet()
    await ask(p)
    assert connection_numbers(up) == [0, 1]


async def test_bytes_on_an_idle_connection_are_nobodys(upstream: StartUpstream, proxy: StartProxy) -> None:
    """An answer to no request closes the connection, and reaches no client."""

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(GOOD)
        await idle.wait()
        await conn.send(answer(body=b"poison"))
        await conn.gone()

    idle = asyncio.Event()
    up = await upstream(step, GOOD)
    p = await proxy(up)
    await ask(p)
    idle.set()
    await up.quiet()
    await ask(p)
    assert connection_numbers(up) == [0, 1]


async def test_an_answer_before_the_request_is_sent(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Upstream may refuse an upload while it still comes: the client gets that answer at once."""

    async def early(conn: Conn) -> None:
        await conn.read_until(b"\r\n\r\n")
        await conn.send(refusal(413, "request_too_large"))
        await conn.gone()

    up = await upstream(raw(early), GOOD)
    p = await proxy(up)
    client = await p.connect()
    fields = [(b"Host", b"h"), (b"Content-Length", b"1000000")]
    await client.send(request_head("POST", "/anthropic/v1/files", fields) + b"part")
    response = await client.response()
    assert (response.status, response.complete) == (413, True)
    assert response.header("connection") == b"close"
    client.close()
    await up.quiet()
    await ask(p)


async def test_what_one_client_got_another_does_not_send(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Cookies pass through and are not kept."""
    up = await upstream(answer(200, [(b"Set-Cookie", b"session=1")], MESSAGE), GOOD)
    p = await proxy(up)
    await ask(p)
    await ask(p)
    assert up.requests[1].values("cookie") == []
    assert connection_numbers(up) == [0, 0]


# A connection that goes stale at the moment of its use.


async def resets(conn: Conn) -> None:
    await conn.read_until(b"\r\n\r\n")
    conn.reset()


async def closes(conn: Conn) -> None:
    await conn.read_until(b"\r\n\r\n")
    await conn.close()


STALE = {"RST": raw(resets), "FIN": raw(closes)}


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("how", STALE)
async def test_a_stale_connection_is_replaced_invisibly(
    upstream: StartUpstream, proxy: StartProxy, how: str, stream: bool
) -> None:
    """Upstream almost surely never saw the request: it is sent once more, though no retry is allowed."""
    good = streamed(MESSAGE_EVENTS) if stream else GOOD
    up, backup = await upstream(GOOD, STALE[how], good), await upstream()
    p = await proxy(providers={"anthropic": up, "backup": backup}, network=ONCE)
    await ask(p)
    body = asked(stream=stream, fallbacks=["backup/x"])
    response = await p.post(MESSAGES, body)
    assert (response.status, response.complete) == (200, True)
    assert response.body == (b"".join(MESSAGE_EVENTS) if stream else MESSAGE)
    assert response.header("x-bifrost-provider") == b"anthropic"
    assert up.connections == 2
    assert backup.arrived == 0


@pytest.mark.parametrize("how", STALE)
async def test_a_request_is_replayed_once_only(upstream: StartUpstream, proxy: StartProxy, how: str) -> None:
    """A fresh connection that ends the same way is a failure of upstream's."""
    up = await upstream(GOOD, STALE[how], STALE[how])
    p = await proxy(up, network=ONCE)
    await ask(p)
    assert (await p.post(MESSAGES, asked())).status == 502
    assert (up.arrived, up.connections) == (3, 2)


@pytest.mark.parametrize("how", STALE)
async def test_a_fresh_connection_is_not_replayed(
    upstream: StartUpstream, proxy: StartProxy, how: str
) -> None:
    """There upstream may have seen the request, and billed it."""
    up = await upstream(STALE[how])
    p = await proxy(up, network=ONCE)
    assert (await p.post(MESSAGES, asked())).status == 502
    assert up.arrived == 1


async def test_all_idle_connections_may_be_stale(upstream: StartUpstream, proxy: StartProxy) -> None:
    """After a restart of the provider every idle connection is dead: a replay takes a new one."""
    together = asyncio.Event()

    async def step(conn: Conn, _: Request) -> None:
        if len(up.requests) == 3:
            together.set()
        await together.wait()
        await conn.send(GOOD)

    up = await upstream(step, step, step)
    p = await proxy(up, network=ONCE)
    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(ask(p))
    assert up.connections == 3
    up.then(raw(resets), GOOD)
    await ask(p)
    assert connection_numbers(up)[-1] == 3


async def test_an_answer_that_began_is_not_replayed(upstream: StartUpstream, proxy: StartProxy) -> None:
    """A byte of an answer means that upstream saw the request."""

    async def begins(conn: Conn, _: Request) -> None:
        await conn.send(b"HTTP/1.1 2")
        conn.reset()

    up = await upstream(GOOD, begins)
    p = await proxy(up, network=ONCE)
    await ask(p)
    assert (await p.post(MESSAGES, asked())).status == 502
    assert up.arrived == 2


async def test_an_upload_does_not_meet_a_stale_connection(upstream: StartUpstream, proxy: StartProxy) -> None:
    """What cannot be sent again takes a new connection."""
    up = await upstream(GOOD, answer(body=b"{}"))
    p = await proxy(up)
    await ask(p)
    assert (await p.post("/anthropic/v1/files", b"x" * 1000)).status == 200
    assert connection_numbers(up) == [0, 1]


# TLS.


def closing(data: bytes) -> bytes:
    """`data`, an answer, on a connection that carries no further request."""
    return data.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)


def server_context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


async def test_a_trusted_upstream_is_used(
    upstream: StartUpstream, proxy: StartProxy, authority: trustme.CA
) -> None:
    """Over TLS everything is as without: requests, streams, and connections that are used again."""
    tls = server_context(authority.issue_cert("127.0.0.1"))
    up = await upstream(GOOD, streamed(MESSAGE_EVENTS), GOOD, tls=tls)
    p = await proxy(up)
    await ask(p)
    assert (await p.post(MESSAGES, asked(stream=True))).body == b"".join(MESSAGE_EVENTS)
    await ask(p)
    assert up.connections == 1
    assert up.requests[0].values("host") == [f"127.0.0.1:{up.port}".encode()]


async def test_the_next_handshake_is_a_short_one(
    upstream: StartUpstream, proxy: StartProxy, authority: trustme.CA
) -> None:
    """A further connection to the same host resumes the session of the first (RFC 8446 section 2.2)."""
    up = await upstream(GOOD, closing(GOOD), GOOD, tls=server_context(authority.issue_cert("127.0.0.1")))
    p = await proxy(up)
    for _ in range(3):
        await ask(p)
    resumed = [conn._wire.transport.get_extra_info("ssl_object").session_reused for conn in up.conns]
    assert resumed == [False, True]


async def test_a_host_that_refuses_its_own_tickets_is_asked_in_full(
    upstream: StartUpstream, proxy: StartProxy, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handshake that fails with a session is made once more without one, and no client sees it."""
    tls = server_context(authority.issue_cert("127.0.0.1"))
    up = await upstream(GOOD, closing(GOOD), GOOD, tls=tls)
    p = await proxy(up, network={"max_retries": 0})
    await ask(p)
    await ask(p)
    wrap = upstream_room._Tls.wrap_bio
    offered = []

    def alert() -> None:
        raise ssl.SSLError("the host answers the ticket with an alert")

    def refuses(context: upstream_room._Tls, *arguments: Any, **named: Any) -> ssl.SSLObject:
        offered.append(bool(context.sessions))
        tls = wrap(context, *arguments, **named)
        if context.sessions:
            monkeypatch.setattr(tls, "do_handshake", alert)
        return tls

    monkeypatch.setattr(upstream_room._Tls, "wrap_bio", refuses)
    await ask(p)
    assert offered == [True, False]


async def test_a_session_ages(
    upstream: StartUpstream, proxy: StartProxy, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `SESSION_SECONDS` the certificate is verified again."""
    monkeypatch.setattr(upstream_room, "SESSION_SECONDS", 0.0)
    up = await upstream(GOOD, closing(GOOD), GOOD, tls=server_context(authority.issue_cert("127.0.0.1")))
    p = await proxy(up)
    for _ in range(3):
        await ask(p)
    resumed = [conn._wire.transport.get_extra_info("ssl_object").session_reused for conn in up.conns]
    assert resumed == [False, False]


async def test_nothing_of_a_tls_answer_is_lost_when_its_reader_is_slow(
    upstream: StartUpstream, proxy: StartProxy, authority: trustme.CA
) -> None:
    """The provider ends while bytes wait in asyncio's TLS layer: every byte comes, to the last."""
    sent = bytearray()
    waiting = 0
    done = asyncio.Event()

    async def until_close(conn: Conn, _: Request) -> None:
        nonlocal waiting
        await conn.send(head(200, [JSON_TYPE]))
        server = p.server
        assert server is not None
        assert server._upstream is not None
        (connection,) = server._upstream._open
        tls = connection.transport._ssl_protocol  # type: ignore[attr-defined]
        while waiting < upstream_room.RECEIVE_BYTES + 1000 and len(sent) < 8_000_000:
            piece = len(sent).to_bytes(4) * 4000
            sent.extend(piece)
            conn._wire.transport.write(piece)
            await asyncio.sleep(0.002)
            waiting = tls._incoming.pending
        await conn.close()
        done.set()

    up = await upstream(until_close, tls=server_context(authority.issue_cert("127.0.0.1")))
    p = await proxy(up)
    client = await p.connect(receive_buffer=4096)
    client.stop_reading()
    await client.send(post(MESSAGES, asked()))
    await up.received()
    await done.wait()
    await asyncio.sleep(0.1)
    client.go_on_reading()
    response = await client.response()
    assert waiting > upstream_room.RECEIVE_BYTES
    assert response.body == bytes(sent)
    assert response.complete


@pytest.mark.parametrize("told", [True, False], ids=["closed", "cut off"])
async def test_the_end_of_a_body_until_close_is_told_by_tls(
    upstream: StartUpstream, proxy: StartProxy, authority: trustme.CA, *, told: bool
) -> None:
    """With its last byte: where the words that close the connection are missing, something else is, too."""

    async def until_close(conn: Conn, _: Request) -> None:
        await conn.send(head(200, [JSON_TYPE]) + MESSAGE)
        if told:
            await conn.close()
        else:
            # The kernel's end of it, below TLS.
            conn._wire.transport.get_extra_info("socket").shutdown(socket.SHUT_WR)

    up = await upstream(until_close, tls=server_context(authority.issue_cert("127.0.0.1")))
    p = await proxy(up)
    response = await p.post(MESSAGES, asked())
    assert response.body == MESSAGE
    assert (response.complete, response.reset) == (told, not told)
    assert (await p.line())["ending"] == ("--" if told else "UD")


# Names and surroundings.


async def test_a_name_with_a_dead_address_first(upstream: StartUpstream, proxy: StartProxy) -> None:
    """localhost is ::1 and 127.0.0.1 on many machines; upstream listens on one of them only."""
    up = await upstream(GOOD)
    await ask(await proxy({"base_urls": {"anthropic": f"http://localhost:{up.port}"}}))
    assert up.requests[0].values("host") == [f"localhost:{up.port}".encode()]


async def test_proxies_of_the_environment_are_not_asked(
    upstream: StartUpstream, proxy: StartProxy, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    """A variable that happens to be set must not send keys elsewhere."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port}")
        monkeypatch.setenv(name.lower(), f"http://127.0.0.1:{closed_port}")
    await ask(await proxy(await upstream(GOOD)))


async def test_a_large_head_within_the_limit_passes(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Forty kilobytes of response headers are unusual, and allowed."""
    headers = [(b"X-%d" % i, b"v" * 1000) for i in range(40)]
    p = await proxy(await upstream(answer(200, headers, MESSAGE)))
    response = await p.post(MESSAGES, asked())
    assert [
        pair for pair in response.headers if pair[0].startswith(b"X-") and pair[0][2:].isdigit()
    ] == headers


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_no_descriptor_is_left_open(upstream: StartUpstream, proxy: StartProxy) -> None:
    """After answers, failures, cuts and clients that left, as many descriptors are open as before."""

    async def cut(conn: Conn, _: Request) -> None:
        await conn.send(stream_head() + chunk(b"event: x\n"))
        await conn.close()

    async def silent(conn: Conn) -> None:
        await conn.request()
        await conn.gone()

    rounds = 10
    up = await upstream(*[GOOD, cut, raw(resets), raw(silent)] * rounds)
    p = await proxy(up, network=ONCE)
    # The thread that writes the log, and what it opens, come with the first request.
    await p.get("/health")
    before = descriptors()
    for number in range(rounds):
        await ask(p)
        assert not (await p.post(MESSAGES, asked(stream=True))).complete
        assert (await p.post(MESSAGES, asked())).status == 502
        client = await p.connect()
        await client.send(post(MESSAGES, asked()))
        await up.received(number * 3 + 3)
        client.reset()
        await up.quiet() if up.open > 1 else None
    await p.stop()
    await up.quiet()
    for client in p.clients:
        client.close()
    await asyncio.sleep(0)
    gc.collect()
    # The sockets on which the proxy listened are closed now; nothing else may have been added.
    assert descriptors() <= before


async def test_without_descriptors_it_is_503_with_retry_after(
    upstream: StartUpstream, proxy: StartProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the proxy that cannot: no retry, no other target, and the client may come again in a moment."""
    up, backup = await upstream(answer(body=MESSAGE)), await upstream()
    p = await proxy(providers={"anthropic": up, "backup": backup})

    async def exhausted(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(upstream_room, "start_connection", exhausted)
        response = await p.post(MESSAGES, asked(fallbacks=["backup/x"]))
    assert (response.status, response.header("retry-after")) == (503, b"1")
    assert response.header("x-bifrost-attempts") == b"anthropic/claude-2:failed"
    assert (await p.line())["ending"][0] == "P"
    assert (await p.post(MESSAGES, asked())).status == 200
