"""A hostile upstream over TLS: whom it may claim to be, how a handshake may fail, and how an answer may end.

No byte of a request goes to an upstream that did not prove its name, and an answer that TLS did not end is
not whole.

Not here: answers and failures without TLS (`test_upstream_faults`), a good upstream over TLS
(`test_upstream_connections`).
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ssl
from collections.abc import Awaitable, Callable

import pytest
import trustme
from hostile_modes import GOOD, MESSAGES, MODES, PATIENT, Came, ask_in_all_modes, check_endings, let_go, then
from rawclient import asked, post
from running import StartProxy, StartUpstream
from scripted import JSON_TYPE, MESSAGE, Conn, Raw, chunk, head, raw, stream_head

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


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
    timer = {"connect_timeout": 0.3} if status == 504 else {}
    secure = {"base_urls": {"anthropic": f"https://127.0.0.1:{up.port}"}, "network_config": PATIENT | timer}
    p = await proxy(providers={"anthropic": secure, "backup": backup})
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
    "a stream": stream_head() + chunk(HELLO),
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
    await client.send(post(MESSAGES, asked(stream=framing == "a stream")))
    await client.head()
    await client.read_until(HELLO)
    seen.set()
    response = await client.rest()
    whole = (framing, end) == ("until close", "goodbye")
    assert (response.body, response.complete, response.reset) == (HELLO, whole, not whole)
    await let_go(up)
    assert (await p.line())["ending"] == ("--" if whole else "UD")
