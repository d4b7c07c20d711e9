"""What hostile clients send is answered rightly, and goes upstream as the one request it is or not at all.

Facts
  - The cases are data, in the modules ``hostile_*``; `hostile_case.Case` says what each of them states.

Rules
  1. Every case is played twice: its bytes in as few reads as possible, and in many. Each byte of a short one
     is a read of its own.
  2. After each case a good request on a fresh connection is answered, and on the same one where that goes on.
"""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from hostile_case import CHUNKED, OWN_KEY, UPLOAD, Case, Do, Sent
from hostile_chunks import CHUNKS
from hostile_fields import CONNECTION, CREDENTIALS, UNDERSCORES
from hostile_framing import CODINGS, LENGTHS
from hostile_heads import CONTROL_BYTES, HOSTS, LIMITS, LINES, METHODS, NAMES, VERSIONS
from hostile_targets import TARGETS
from hostile_turns import ENDS, EXPECTATIONS, PIPELINES, UPGRADES
from rawclient import Body, Client, Gone, Response, asked, get, post
from refusals import error_message
from running import Proxy, StartProxy, StartUpstream, keyed
from scripted import Conn, Request, Upstream, answer

from proxy import accesslog

TABLES = {
    "length": LENGTHS,
    "coding": CODINGS,
    "chunked": CHUNKS,
    "control byte": CONTROL_BYTES,
    "name": NAMES,
    "line": LINES,
    "version": VERSIONS,
    "method": METHODS,
    "host": HOSTS,
    "limit": LIMITS,
    "target": TARGETS,
    "Connection": CONNECTION,
    "credential": CREDENTIALS,
    "underscore": UNDERSCORES,
    "pipeline": PIPELINES,
    "Expect": EXPECTATIONS,
    "Upgrade": UPGRADES,
    "end": ENDS,
}
CASES = {f"{table}: {name}": case for table, cases in TABLES.items() for name, case in cases.items()}

HIDDEN = get("/anthropic/v1/evil")
"""A good request behind a bad one; it must never be answered."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

SHORT = 700
"""Bytes up to which a case is sent byte by byte; a longer one comes in about as many pieces."""


@pytest.fixture(autouse=True)
def _log_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The access log collects lines for a while, which would be most of the time that a case takes."""
    monkeypatch.setattr(accesslog, "BATCH_SECONDS", 0)


async def echo(conn: Conn, request: Request) -> None:
    """Answers with what came, so that an answer cannot be taken for another one's."""
    sent = Sent(request.method, request.target, body=request.body)
    body = sent.echo
    whole = answer(body=body)
    await conn.send(whole.removesuffix(body) if request.method == "HEAD" else whole)


def test_the_tables_hold_what_they_say() -> None:
    """No case hides behind another of the same name, and there are as many as the suite promises."""
    assert len(CASES) == sum(map(len, TABLES.values()))
    assert len(CASES) - len(CONTROL_BYTES) >= 170


@pytest.mark.parametrize("pieces", [False, True], ids=["whole", "in pieces"])
@pytest.mark.parametrize("name", CASES)
async def test_hostile(upstream: StartUpstream, proxy: StartProxy, name: str, pieces: bool) -> None:
    """The client gets what the case says, and so does upstream; nothing of it is served twice."""
    case = CASES[name]
    up = await upstream(*[echo] * (len(case.upstream) + 5))
    up.allow_unused = True
    p = await proxy(keyed(up, "main") if case.own_key else up, **case.settings)
    play = Play(case, p, up, pieces)
    await play.run()


async def test_a_trailer_is_no_field_of_the_next_request(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Clients may share a connection in front of the proxy; none must write into another's head."""
    up = await upstream(echo, echo)
    up.allow_unused = True
    client = await (await proxy(up)).connect()
    trailers = b"0\r\nX-A: 1\r\nX-Evil: 2\r\n\r\n"
    await client.send(UPLOAD + CHUNKED + b"1\r\nx\r\n" + trailers + HIDDEN)
    assert (await client.response()).status == 200
    # The second request is served as it came, or the connection is closed before it.
    second = await client.response("GET")
    assert second.status in (0, 200)
    assert len(up.requests) == (2 if second.status else 1)
    for request in up.requests:
        assert request.values("x-a") + request.values("x-evil") == []


class Play:
    """One case on one connection of a proxy of its own."""

    def __init__(self, case: Case, p: Proxy, up: Upstream, pieces: bool) -> None:
        self.case = case
        self.p = p
        self.up = up
        self.pieces = pieces
        self.statuses = case.in_pieces if pieces and case.in_pieces is not None else case.statuses
        self.upstream = list(case.upstream[: self.statuses.count(200)])
        self.messages: list[str] = []

    async def run(self) -> None:
        case = self.case
        client = await self.p.connect()
        # An answer can come before all has been sent, and must be read meanwhile.
        sending = asyncio.ensure_future(self.send(client))
        last = await self.read_answers(client)
        await sending
        ended = case.steps[-1] in (Do.FIN, Do.RESET)
        if not ended and self.goes_on(last):
            await self.good(client)
        elif case.steps[-1] is not Do.RESET:
            await self.is_closed(client, ended=ended)
        fresh = await self.p.connect()
        await self.good(fresh)
        await self.check_upstream()
        await self.check_log()

    async def send(self, client: Client) -> None:
        """Plays the steps. What cannot be sent any more because the connection was closed is left."""
        steps = self.case.steps
        last = steps[-1]
        if self.case.hides and isinstance(last, bytes):
            steps = (*steps[:-1], last + HIDDEN)
        with contextlib.suppress(Gone):
            for step in steps:
                if isinstance(step, bytes):
                    await self.send_bytes(client, step)
                elif step is Do.FIN:
                    client.finish_sending()
                elif step is Do.RESET:
                    client.reset()
                elif step is Do.AWAIT_100:
                    await client.wire.until(lambda: CONTINUE in client.wire.everything, "100 Continue")
                elif step is Do.AWAIT_ANSWER:
                    await client.wire.until(lambda: b"HTTP/1.1 200 " in client.wire.everything, "a 200")
                else:
                    await turns(20)

    async def send_bytes(self, client: Client, data: bytes) -> None:
        if not self.pieces:
            await client.send(data)
            return
        size = 1 if len(data) <= SHORT else len(data) // SHORT + 1
        for start in range(0, len(data), size):
            await client.send(data[start : start + size])
            # One turn in which the proxy is told that there is something, and one in which it reads.
            await turns(2)

    async def read_answers(self, client: Client) -> Response | None:
        """Every final answer is the one that the case states."""
        waiting = iter(self.upstream)
        response = None
        for number, status in enumerate(self.statuses):
            sent = next(waiting) if status == 200 else None
            response = await client.response(sent.method if sent is not None else "POST")
            assert response.status == status, (self.statuses, number, response)
            seen = [informational.status for informational in response.informational]
            assert seen in ([100] * count for count in range((self.case.continues if number == 0 else 0) + 1))
            if sent is None:
                self.messages.append(error_message(response, status))
                assert b"sk-" not in response.raw
            else:
                assert response.complete
                assert response.body == (b"" if sent.method == "HEAD" else sent.echo)
        return response

    def goes_on(self, last: Response | None) -> bool:
        """Whether the connection must carry another request."""
        said = False
        if last is not None:
            # Without a word 1.1 goes on, 1.0 does not (RFC 9112 section 9.3).
            options = last.header("connection") or b""
            said = options != b"close" if last.version == b"HTTP/1.1" else options == b"keep-alive"
        if self.case.goes_on is not None:
            assert said == self.case.goes_on, last
        return said

    async def is_closed(self, client: Client, *, ended: bool) -> None:
        """Neither bytes that came already nor those that come now get another answer."""
        if not ended:
            with contextlib.suppress(Gone):
                await client.send(HIDDEN)
            if self.case.lingers:
                client.finish_sending()
        assert await client.eof() in ("fin", "reset")
        interim = CONTINUE * self.case.continues if not self.statuses else b""
        assert client.leftover == interim

    async def good(self, client: Client) -> None:
        """The next good request is answered, alone."""
        body = asked(f"good-{len(self.upstream)}")
        key = OWN_KEY if self.case.own_key else (b"x-api-key", b"sk-test-client")
        fields = ((b"Content-Type", b"application/json"), (b"anthropic-version", b"2023-06-01"), key)
        sent = Sent("POST", b"/v1/messages", fields, body)
        self.upstream.append(sent)
        await client.send(post("/anthropic/v1/messages", body))
        response = await client.response()
        assert (response.status, response.body, response.informational) == (200, sent.echo, []), response
        assert client.leftover == b""

    async def check_upstream(self) -> None:
        """Upstream has what the case states, byte for byte, and of the rest at most a part."""
        host = b"127.0.0.1:%d" % self.up.port
        heads = [request.raw.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" for request in self.up.requests]
        assert heads == [sent.head(host) for sent in self.upstream]
        bodies = [request.body for request in self.up.requests]
        assert bodies == [sent.body or b"" for sent in self.upstream]
        begun = self.case.begun
        assert self.up.arrived - len(self.upstream) <= (begun is not None)
        if begun is not None and self.up.arrived > len(self.upstream):
            await check_begun(self.up, begun, host)

    async def check_log(self) -> None:
        """One line for each request that was taken for one."""
        logged = self.statuses if self.case.logged is None else self.case.logged
        good = len(self.upstream) - self.statuses.count(200)
        expected = [*logged, *[200] * good]
        # `line` for each of a thousand would read all of them a thousand times.
        await self.p._lines.at_least(len(expected))
        lines = self.p.lines
        assert [line["status"] for line in lines] == expected
        errors = [line["error"] for line in lines if line["status"] not in (0, 200)]
        assert errors == self.messages


async def check_begun(up: Upstream, begun: Sent, host: bytes) -> None:
    """On one connection this request begins, behind whole ones if any, and the connection ends within it."""
    (conn,) = (conn for conn in up.conns if unfinished(up, conn))
    await conn.gone()
    came = unfinished(up, conn)
    head = begun.head(host)
    assert head.startswith(came[: len(head)])
    length = None if begun.chunked or begun.body is None else len(begun.body)
    body = Body(length=length, chunked=begun.chunked)
    body.pull(rest := bytearray(came[len(head) :]))
    assert (begun.body or b"").startswith(body.data)
    assert not body.done
    assert rest == b""


def unfinished(up: Upstream, conn: Conn) -> bytes:
    """What came on this connection behind the requests that came whole."""
    came = conn.reads()
    for request in up.requests:
        if request.connection_number == conn.number:
            came = came.removeprefix(request.raw)
    return came


async def turns(count: int) -> None:
    """Lets the loop turn so many times, in which the proxy reads and acts."""
    for _ in range(count):
        await asyncio.sleep(0)
