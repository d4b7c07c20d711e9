"""A hostile upstream: what it may answer, how it may fail to, and whom it may claim to be.

What a client gets is whole, or an error of ours, or a reset, and never half an answer that looks whole. The
next request is not touched by it, upstream is asked as often as is allowed, one line is logged for each
request, and nothing stays open.

Not here: the answers themselves (`hostile_answers`), answers that end too early or stand still
(`test_upstream_cut`), answers without end (`test_hostile_upstream`).
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme
from hostile_answers import HOSTILE, SHAPES, TO_HEAD, Hostile, spelt
from rawclient import Client, Response, asked, get, post
from running import Proxy, StartProxy, StartUpstream
from scripted import (
    JSON_TYPE,
    MESSAGE,
    Conn,
    Raw,
    Request,
    Step,
    Upstream,
    answer,
    chunk,
    head,
    raw,
    stream_head,
)

MESSAGES = "/anthropic/v1/messages"
GOOD = answer(body=MESSAGE)
PATIENT = {"max_retries": 1, "connect_timeout": 20, "first_byte_timeout": 20, "idle_timeout": 20}
"""No timer ends what these tests are about, where they do not say so."""

AT_ONCE = 1.0
"""Seconds within which the proxy must have closed a connection that carries no further request."""


class Mode(NamedTuple):
    """What a client asks for, and whether the plan has another target."""

    shape: str
    fallback: bool

    def request(self, **more: object) -> bytes:
        fallbacks = ["backup/claude-2"] if self.fallback else None
        return post(MESSAGES, asked(stream=self.shape == "stream", fallbacks=fallbacks, **more))


MODES = [Mode(shape, fallback) for shape in SHAPES for fallback in (False, True)]


class Came(NamedTuple):
    """What a client got. `body` is None for an error of ours; an `error_event` of ours stood behind it."""

    mode: Mode
    status: int
    body: bytes | None
    error_event: bool
    how: str
    attempts: str

    @classmethod
    def of(cls, mode: Mode, response: Response) -> Came:
        body, error_event, rest = response.body.partition(b'event: error\ndata: {"type":"error","error":{')
        assert not rest or rest.endswith(b'"}\n\n')
        assert response.values("x-not") == []
        our_id = b'"request_id":"%b"}' % (response.header("request-id") or b"none")
        return cls(
            mode,
            response.status,
            None if body.endswith(our_id) else body,
            bool(error_event),
            "whole" if response.complete else "reset" if response.reset else "ended",
            (response.header("x-bifrost-attempts") or b"").decode(),
        )

    @classmethod
    def failed(cls, mode: Mode, status: int, outcome: str, calls: int) -> Came:
        """What must come where the primary fails `calls` times and has answered nothing that is relayed."""
        attempts = [f"anthropic/claude-2:{outcome}"] * calls
        if mode.fallback:
            attempts.append("backup/claude-2:200")
            return cls(mode, 200, MESSAGE, False, "whole", ",".join(attempts))
        return cls(mode, status, None, False, "whole", ",".join(attempts))


async def let_go(up: Upstream) -> None:
    """Returns when the proxy has closed all its connections to `up`; at once, or the test fails."""
    async with asyncio.timeout(AT_ONCE):
        await up.quiet()


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


def then(read: Callable[[Conn], Awaitable[object]], how: str) -> Raw:
    """A step that reads so much of a request, and then ends the connection, or does nothing more."""

    async def play(conn: Conn) -> None:
        await read(conn)
        if how == "FIN":
            await conn.close()
        elif how == "RST":
            conn.reset()
        await conn.gone()

    return raw(play)


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


async def ask_in_all_modes(p: Proxy, padding: str = "") -> list[Came]:
    async with asyncio.TaskGroup() as group:
        asking = [group.create_task(p.ask(mode.request(padding=padding))) for mode in MODES]
    return [Came.of(mode, task.result()) for mode, task in zip(MODES, asking, strict=True)]


async def check_endings(p: Proxy, ending: str) -> None:
    """One line for each request: the fallback served half of them, and the others ended so."""
    await p.stop()
    assert Counter(line["ending"] for line in p.lines) == {ending: 2, "--": 2}


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
    p = await proxy(providers={"anthropic": up, "backup": backup}, network=PATIENT | timer)
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
        primary = {"base_urls": {"anthropic": url}}
        timer = {"connect_timeout": 0.3} if status == 504 else {}
        p = await proxy(providers={"anthropic": primary, "backup": backup}, network=PATIENT | timer)
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


# TLS.

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


@pytest.fixture
def authority(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> trustme.CA:
    """The only authority that this machine trusts during the test."""
    authority = trustme.CA()
    trusted = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(trusted))
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    return authority


class TlsSide:
    """Upstream's side of TLS on a plain connection, record by record (RFC 8446 section 5.1).

    asyncio's own transport would say goodbye where these tests must not.
    """

    def __init__(self, conn: Conn, context: ssl.SSLContext) -> None:
        self.conn = conn
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    async def _record(self) -> None:
        prefix = await self.conn.read_exactly(5)
        self._incoming.write(prefix + await self.conn.read_exactly(int.from_bytes(prefix[3:])))

    async def _flush(self) -> None:
        await self.conn.send(self._outgoing.read())

    async def handshake(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._record()
            else:
                await self._flush()
                return

    async def request(self) -> None:
        """Takes off one request with a JSON body."""
        data = b""
        while not data.endswith(b"}"):
            try:
                data += self._tls.read(65536)
            except ssl.SSLWantReadError:
                await self._record()

    async def send(self, data: bytes, *, cut: int = 0) -> None:
        """Sends `data`, less the last `cut` bytes of the record that holds it."""
        self._tls.write(data)
        record = self._outgoing.read()
        await self.conn.send(record[: len(record) - cut])

    async def goodbye(self) -> None:
        """A close_notify: the data was all there is (RFC 8446 section 6.1)."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        await self._flush()


def of(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


def self_signed() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own = trustme.CA()
    with own.private_key_pem.tempfile() as key, own.cert_pem.tempfile() as certificate:
        context.load_cert_chain(certificate, key)
    return context


IMPOSTORS: dict[str, Callable[[trustme.CA], ssl.SSLContext]] = {
    "expired": lambda a: of(a.issue_cert("127.0.0.1", not_before=NOW - 2 * DAY, not_after=NOW - DAY)),
    "not valid yet": lambda a: of(a.issue_cert("127.0.0.1", not_before=NOW + DAY, not_after=NOW + 2 * DAY)),
    "another name": lambda a: of(a.issue_cert("upstream.test")),
    "another address": lambda a: of(a.issue_cert("127.0.0.2")),
    "the address as a name only": lambda a: of(a.issue_cert(common_name="127.0.0.1")),
    "self-signed": lambda a: self_signed(),
    "another authority": lambda a: of(trustme.CA().issue_cert("127.0.0.1")),
}


@pytest.mark.parametrize("name", IMPOSTORS)
async def test_an_impostor_is_told_nothing(
    upstream: StartUpstream, proxy: StartProxy, authority: trustme.CA, name: str
) -> None:
    """A certificate that does not prove the name ends the handshake; no byte of a request goes out."""
    context = IMPOSTORS[name](authority)
    trusted_by = []

    async def play(conn: Conn) -> None:
        await TlsSide(conn, context).handshake()
        trusted_by.append(conn)

    await fails_to_connect(upstream, proxy, raw(play), 502, "UC")
    assert trusted_by == []


async def fails_to_connect(
    upstream: StartUpstream, proxy: StartProxy, step: Raw, status: int, ended: str
) -> None:
    up, backup = await upstream(*[step] * 2 * len(MODES)), await upstream(GOOD, GOOD)
    # On a busy machine the time may be over before the greeting has come.
    up.allow_unused = status == 504
    secure = {"base_urls": {"anthropic": f"https://127.0.0.1:{up.port}"}}
    timer = {"connect_timeout": 0.3} if status == 504 else {}
    p = await proxy(providers={"anthropic": secure, "backup": backup}, network=PATIENT | timer)
    came = await ask_in_all_modes(p)
    assert came == [Came.failed(mode, status, "connect", 2) for mode in MODES]
    await let_go(up)
    await check_endings(p, ended)


async def greeting_read(conn: Conn) -> None:
    await conn.read_exactly(5)


async def answered_in_plain(conn: Conn) -> None:
    await conn.read_exactly(5)
    await conn.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


NO_HANDSHAKE: dict[str, tuple[Raw, int, str]] = {
    "a plain answer": (then(answered_in_plain, ""), 502, "UC"),
    "a plain answer, then FIN": (then(answered_in_plain, "FIN"), 502, "UC"),
    "RST": (then(greeting_read, "RST"), 502, "UC"),
    "FIN": (then(greeting_read, "FIN"), 502, "UC"),
    "silence": (then(greeting_read, ""), 504, "uC"),
}


@pytest.mark.parametrize("name", NO_HANDSHAKE)
async def test_a_handshake_that_fails(upstream: StartUpstream, proxy: StartProxy, name: str) -> None:
    """Whatever a TLS greeting is answered with, it is a failure to connect, and in time."""
    await fails_to_connect(upstream, proxy, *NO_HANDSHAKE[name])


HELLO = MESSAGE[:40]
OVER_TLS = {
    "length": head(200, [JSON_TYPE, (b"Content-Length", b"%d" % len(MESSAGE))]) + HELLO,
    "chunked": stream_head([JSON_TYPE]) + chunk(HELLO),
    "until close": head(200, [JSON_TYPE]) + HELLO,
}


async def says_goodbye(tls: TlsSide) -> None:
    await tls.goodbye()
    await tls.conn.close()


async def sends_half_a_record(tls: TlsSide) -> None:
    await tls.send(b"x" * 100, cut=20)
    await tls.conn.close()


def sends_in_plain(data: bytes) -> Callable[[TlsSide], Awaitable[None]]:
    async def end(tls: TlsSide) -> None:
        await tls.conn.send(data)
        await tls.conn.gone()

    return end


async def resets(tls: TlsSide) -> None:
    tls.conn.reset()


async def closes(tls: TlsSide) -> None:
    await tls.conn.close()


TLS_ENDS: dict[str, Callable[[TlsSide], Awaitable[None]]] = {
    "FIN": closes,
    "RST": resets,
    "goodbye": says_goodbye,
    "half a record": sends_half_a_record,
    "a forged record": sends_in_plain(b"\x17\x03\x03\x00\x20" + b"x" * 32),
    "a forged goodbye": sends_in_plain(b"\x15\x03\x03\x00\x02\x01\x00"),
    "plain text": sends_in_plain(b"0\r\n\r\n"),
}


@pytest.mark.parametrize("end", TLS_ENDS)
@pytest.mark.parametrize("framing", OVER_TLS)
async def test_an_answer_that_is_cut_over_tls(
    upstream: StartUpstream, proxy: StartProxy, authority: trustme.CA, framing: str, end: str
) -> None:
    """It is reset; where only the end of the connection ends a body, TLS must have said goodbye."""
    context, seen = of(authority.issue_cert("127.0.0.1")), asyncio.Event()

    async def play(conn: Conn) -> None:
        tls = TlsSide(conn, context)
        await tls.handshake()
        await tls.request()
        await tls.send(OVER_TLS[framing])
        await seen.wait()
        await TLS_ENDS[end](tls)

    up = await upstream(raw(play))
    p = await proxy({"base_urls": {"anthropic": f"https://127.0.0.1:{up.port}"}}, network=PATIENT)
    client = await p.connect()
    await client.send(post(MESSAGES, asked()))
    await client.head()
    await client.read_until(HELLO)
    seen.set()
    response = await client.rest()
    whole = (framing, end) == ("until close", "goodbye")
    assert (response.body, response.complete, response.reset) == (HELLO, whole, not whole)
    await let_go(up)
    assert (await p.line())["ending"] == ("--" if whole else "UD")


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
