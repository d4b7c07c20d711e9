"""Behind the real nginx, running the shipped ``conf/nginx.conf``: nothing that the proxy promises gets lost.

Streams are not delayed, pings pass, bytes stay, who leaves is noticed, a cut answer never looks finished, a
POST is never sent twice, and neither a restart of a worker nor a reload of nginx is seen by anybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import logging
import random
import re
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import trustme
from fronting import CONF, FIELDS, NAME, Http1, Http2, Nginx, Worker
from rawclient import PATIENCE, asked, connect, get, post, request_head
from running import Proxy, StartProxy, StartUpstream, keyed
from scripted import (
    JSON_TYPE,
    LAST_CHUNK,
    MESSAGE,
    MESSAGE_EVENTS,
    PING,
    Conn,
    Request,
    Step,
    answer,
    chunk,
    head,
    raw,
    sse,
    stream_head,
)

from proxy import routes
from proxy.config import Config, NetworkConfig
from proxy.server import GRACE_SECONDS

MESSAGES = "/anthropic/v1/messages"
PROTOCOLS = ["1.1", "2"]
MIB = 1048576

StartNginx = Callable[..., Awaitable[Nginx]]
StartBoth = Callable[..., Awaitable[tuple[Nginx, Proxy]]]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def nginx(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> AsyncIterator[StartNginx]:
    """Starts nginx with the shipped file: ``front = await nginx({"shipped text": "other text"})``."""
    # It tells every field that it encodes, and what our own client sends is not what the proxy logs.
    hpack = logging.getLogger("hpack")
    hpack.setLevel(logging.INFO)
    async with contextlib.AsyncExitStack() as ends:
        ends.callback(hpack.setLevel, logging.NOTSET)

        async def start(changes: Mapping[str, str] | None = None) -> Nginx:
            # Not named after the test: a socket's path may have 108 bytes.
            one = Nginx(tmp_path_factory.mktemp("nginx"), authority)
            await one.start(changes or {})
            ends.callback(one.check)
            ends.push_async_callback(one.stop)
            return one

        yield start


@pytest.fixture
async def both(proxy: StartProxy, nginx: StartNginx) -> StartBoth:
    """Starts nginx, and one proxy that is all its workers: ``front, p = await both(up, ping_interval=0)``."""

    async def start(
        provider: Any, *, changes: Mapping[str, str] | None = None, **settings: Any
    ) -> tuple[Nginx, Proxy]:
        front = await nginx(changes)
        return front, await proxy(provider, listen=front.listen, **settings)

    return start


@pytest.fixture
async def workers(nginx: StartNginx) -> AsyncIterator[Callable[..., Awaitable[tuple[Nginx, list[Worker]]]]]:
    """Starts nginx before scripted workers: a list of steps for each, or None for a socket without one."""
    started: list[Worker] = []

    async def start(*scripts: list[Step] | None) -> tuple[Nginx, list[Worker]]:
        front = await nginx()
        for path, script in zip(front.sockets, scripts, strict=True):
            if script is not None:
                worker = Worker(*script)
                worker.allow_unused = True
                await worker.start_at(path)
                started.append(worker)
        return front, started

    yield start
    for worker in started:
        await worker.stop()
        worker.check()


def directives(text: str) -> list[str]:
    """The lines of a configuration, without comments and blanks."""
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines())
    return [line for line in lines if line]


def setting(name: str, indent: int = 4) -> str:
    """The value of a directive that the shipped file has once at this indent."""
    pattern = rf"^{' ' * indent}{name} (\S+);"
    (value,) = re.findall(pattern, CONF.read_text("utf-8"), re.MULTILINE)
    return value


def seconds(name: str, indent: int = 4) -> float:
    number, unit = re.fullmatch(r"(\d+)([a-z]+)", setting(name, indent)).groups()
    return int(number) * {"ms": 0.001, "s": 1, "h": 3600}[unit]


# The file.


def placeless(directive: str) -> str:
    """A directive without the user, the directories, and the addresses at which nginx listens."""
    return re.sub(r"(?<=^user )\S+|(?<=^listen )[^\s;]+|/[\w./-]*(?=/)", "", directive)


async def test_the_file_is_good(tmp_path: Path, authority: trustme.CA) -> None:
    """`nginx -t` has nothing against it, and no test runs it with other than another user, place and port."""
    front = Nginx(tmp_path, authority)
    process = await front.run("-t", changes={})
    said = (tmp_path / "stderr").read_text
    assert await process.wait() == 0, said()
    # Who is not root is told that `user` does nothing.
    assert [line for line in said().splitlines() if "[warn]" in line and '"user" directive' not in line] == []
    shipped, used = directives(CONF.read_text("utf-8")), directives(front.text({}))
    assert shipped != used
    assert [*map(placeless, shipped)] == [*map(placeless, used)]


def test_its_limits_fit_those_of_the_proxy() -> None:
    """nginx takes the same bodies, is no less patient, and is the one who closes idle connections."""
    config, network = Config(providers={}), NetworkConfig()
    assert int(setting("client_max_body_size").removesuffix("m")) * MIB == config.max_body_bytes
    assert seconds("client_header_timeout") == config.head_timeout
    assert seconds("client_body_timeout") == config.body_timeout
    assert seconds("send_timeout") == config.send_timeout
    assert seconds("keepalive_timeout", indent=8) < min(config.keepalive_timeout, GRACE_SECONDS)
    assert seconds("worker_shutdown_timeout", indent=0) > config.drain_timeout
    assert seconds("proxy_read_timeout") >= 5 * (network.connect_timeout + network.first_byte_timeout)
    assert seconds("proxy_read_timeout") > max(network.idle_timeout, config.ping_interval)


# Streams.


def event(number: int) -> bytes:
    return sse("content_block_delta", {"type": "content_block_delta", "index": number})


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_each_event_arrives_at_once(upstream: StartUpstream, both: StartBoth, protocol: str) -> None:
    """Every event is here before the next one is sent, and no timer is waited for on the way.

    That would be 40 ms for every event (tcp(7), TCP_QUICKACK); a machine that is busy delays not all of them.
    """
    count = 100
    sent: list[float] = []
    seen = [asyncio.Event() for _ in range(count)]

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(stream_head())
        for number in range(count):
            sent.append(time.monotonic())
            await conn.send(chunk(event(number)))
            await seen[number].wait()
        await conn.send(LAST_CHUNK)

    front, _ = await both(await upstream(step))
    client = await front.client(protocol)
    await client.ask("POST", MESSAGES, body=asked(stream=True))
    assert (await client.head()).status == 200
    delays = []
    for number in range(count):
        await client.read_until(event(number))
        delays.append(time.monotonic() - sent[number])
        seen[number].set()
    assert (await client.rest()).complete
    assert sorted(delays)[count // 10] < 0.02


async def test_other_answers_are_not_held_either(upstream: StartUpstream, both: StartBoth) -> None:
    """The first part of a plain answer is here before the rest of it is sent."""
    seen = asyncio.Event()

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(answer(body=MESSAGE)[:-1])
        await seen.wait()
        await conn.send(MESSAGE[-1:])

    front, _ = await both(await upstream(step))
    client = await front.client("1.1")
    await client.ask("POST", MESSAGES, body=asked())
    await client.head()
    await client.read_until(MESSAGE[:-1])
    seen.set()
    assert (await client.rest()).body == MESSAGE


async def test_pings_keep_an_idle_stream_through_read_timeout(
    upstream: StartUpstream, both: StartBoth
) -> None:
    """nginx waits for 5 s, and a stream is silent for 6.5 s: with pings it is whole, without it is cut."""

    async def idle(ping_interval: float) -> tuple[bool, bytes]:
        async def step(conn: Conn, _: Request) -> None:
            await conn.send(stream_head() + chunk(MESSAGE_EVENTS[0]))
            await asyncio.sleep(6.5)
            await conn.send(chunk(MESSAGE_EVENTS[-1]) + LAST_CHUNK)

        front, _ = await both(
            await upstream(step),
            ping_interval=ping_interval,
            changes={"proxy_read_timeout 1h;": "proxy_read_timeout 5s;"},
        )
        response = await front.ask("1.1", "POST", MESSAGES, body=asked(stream=True))
        return response.complete, response.body

    (pinged, kept), (quiet, cut) = await asyncio.gather(idle(1), idle(0))
    assert pinged
    # Six, where the machine does not stand still for a moment.
    assert kept.count(PING) >= 2
    assert kept.replace(PING, b"") == MESSAGE_EVENTS[0] + MESSAGE_EVENTS[-1]
    assert (quiet, cut) == (False, MESSAGE_EVENTS[0])


OVER_TCP = {
    f"server unix:/run/verbatim/{number}.sock max_fails=0;": "server 127.0.0.1:{port} max_fails=0;"
    for number in (1, 2)
}


async def old(proxy: StartProxy, nginx: StartNginx, up: Any, **settings: Any) -> Nginx:
    """nginx as it was before 1.29.7 where nobody said otherwise: HTTP/1.0, buffering, TCP."""
    p = await proxy(up, **settings)
    changes = {shipped: other.format(port=p.port) for shipped, other in OVER_TCP.items()}
    changes["proxy_http_version 1.1;"] = "proxy_http_version 1.0;"
    changes["proxy_buffering off;"] = "proxy_buffering on;"
    # The last word on buffering is then the proxy's X-Accel-Buffering.
    changes[" X-Accel-Buffering X"] = " X"
    return await nginx(changes)


async def test_an_old_nginx_does_not_buffer_either(
    upstream: StartUpstream, proxy: StartProxy, nginx: StartNginx
) -> None:
    """Events and pings pass at once with nginx's old defaults, because the proxy asks for it."""
    seen = asyncio.Event()

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(stream_head() + chunk(MESSAGE_EVENTS[0]))
        await seen.wait()
        await conn.send(chunk(MESSAGE_EVENTS[-1]) + LAST_CHUNK)

    front = await old(proxy, nginx, await upstream(step), ping_interval=0.05)
    client = await front.client("1.1")
    await client.ask("POST", MESSAGES, body=asked(stream=True))
    await client.head()
    await client.read_until(MESSAGE_EVENTS[0] + PING)
    seen.set()
    assert (await client.rest()).body.endswith(MESSAGE_EVENTS[-1])


# Cut answers.


CUT: dict[str, bytes] = {
    "between events": stream_head() + chunk(MESSAGE_EVENTS[0]),
    "in an event": stream_head() + chunk(MESSAGE_EVENTS[0] + b"event: content_bl"),
    "of known length": head(200, [JSON_TYPE, (b"Content-Length", b"1000")]) + MESSAGE,
    "of unknown length": head(200, [JSON_TYPE, (b"Transfer-Encoding", b"chunked")]) + chunk(MESSAGE),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("what", CUT)
async def test_a_cut_answer_does_not_look_finished(
    upstream: StartUpstream, both: StartBoth, what: str, protocol: str
) -> None:
    """The client sees what came, and a broken end: no last chunk, or RST_STREAM instead of END_STREAM."""

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(CUT[what])
        conn.reset()

    front, p = await both(await upstream(step))
    response = await front.ask(protocol, "POST", MESSAGES, body=asked(stream="event" in what))
    assert (response.status, response.complete) == (200, False)
    assert response.reset or protocol == "1.1"
    assert (b"event: error\n" in response.body) is (what == "between events")
    assert (await p.line())["ending"] == "UD"


async def test_a_cut_stream_does_not_look_finished_to_an_old_nginx(
    upstream: StartUpstream, proxy: StartProxy, nginx: StartNginx
) -> None:
    """Where HTTP/1.0 knows no end but the connection's, the reset tells."""

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(CUT["in an event"])
        conn.reset()

    front = await old(proxy, nginx, await upstream(step))
    response = await front.ask("1.1", "POST", MESSAGES, body=asked(stream=True))
    assert (response.status, response.complete) == (200, False)


async def test_http_1_0_is_not_spoken_to_clients(upstream: StartUpstream, both: StartBoth) -> None:
    """Such a client could not be shown a cut, so it is refused, and nobody is asked."""
    front, _ = await both(await upstream())
    client = await front.client("1.1")
    assert isinstance(client, Http1)
    request = request_head("GET", "/anthropic/v1/models", [(b"Host", NAME.encode())])
    await client.send(request.replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert (await client.response()).status == 505


# Clients that leave.


LEAVE: dict[str, tuple[str, Callable[[Any], None]]] = {
    "1.1 FIN": ("1.1", Http1.close),
    "1.1 RST": ("1.1", Http1.reset),
    "2 FIN": ("2", Http2.close),
    "2 RST": ("2", Http2.reset),
    "2 RST_STREAM": ("2", Http2.cancel),
}


@pytest.mark.parametrize("how", LEAVE)
@pytest.mark.parametrize("begun", [False, True], ids=["before the head", "in the stream"])
async def test_a_client_that_leaves_stops_upstream(
    upstream: StartUpstream, both: StartBoth, machine: Callable[[], float], begun: bool, how: str
) -> None:
    """Upstream's connection is closed within a second."""

    async def step(conn: Conn, _: Request) -> None:
        if begun:
            await conn.send(stream_head() + chunk(MESSAGE_EVENTS[0]))
        await conn.gone()

    up = await upstream(step)
    front, p = await both(up)
    protocol, leave = LEAVE[how]
    client = await front.client(protocol)
    await client.ask("POST", MESSAGES, body=asked(stream=True))
    await up.received()
    if begun:
        await client.head()
        await client.read_until(MESSAGE_EVENTS[0])
    left = time.monotonic()
    leave(client)
    await up.quiet()
    assert time.monotonic() - left < 1 + machine()
    assert (await p.line())["ending"] == ("DD" if begun else "DH")


# Bodies.


def body_of(size: int) -> bytes:
    """A message request of so many bytes; what fills it does not repeat."""
    empty = asked(system="")
    filler = random.Random(size).randbytes(size // 2 + 1).hex()[: size - len(empty)]
    return empty.replace(b'"system":""', b'"system":"' + filler.encode() + b'"')


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("size", [30_000_000, 32 * MIB], ids=["30 MB", "the limit"])
async def test_a_large_body_passes(
    upstream: StartUpstream, both: StartBoth, size: int, protocol: str
) -> None:
    """Up to the last byte that is allowed, it arrives as it was sent."""
    up = await upstream(answer(body=MESSAGE))
    front, _ = await both(up)
    body = body_of(size)
    assert len(body) == size
    response = await front.ask(protocol, "POST", MESSAGES, body=body)
    assert (response.status, response.body) == (200, MESSAGE)
    assert up.requests[0].body == body


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_body_above_the_limit_is_refused(
    upstream: StartUpstream, both: StartBoth, protocol: str
) -> None:
    """One byte more is a 413 in the shape of the API, before the body is sent; no worker hears of it."""
    front, p = await both(await upstream())
    client = await front.client(protocol)
    await client.ask("POST", MESSAGES, length=32 * MIB + 1)
    response = await client.response()
    assert response.status == 413
    error = json.loads(response.body)
    assert error["error"]["type"] == "request_too_large"
    assert error["request_id"] == (response.header("request-id") or b"").decode()
    await p.stop()
    assert p.lines == []


@pytest.mark.parametrize("path", ["/anthropic/v1/files", "/v1/files", "/anthropic/v1/messages/batches"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_an_upload_is_larger_and_not_held(
    upstream: StartUpstream, both: StartBoth, path: str, protocol: str
) -> None:
    """The provider has its beginning before its end was sent."""
    begun = asyncio.Event()
    first, rest = b"the first bytes", random.Random(1).randbytes(40 * MIB)

    async def step(conn: Conn) -> None:
        await conn.read_until(b"\r\n\r\n")
        assert await conn.read_exactly(len(first)) == first
        begun.set()
        assert await conn.read_exactly(len(rest)) == rest
        await conn.send(answer(body=b"{}"))

    up = await upstream(raw(step))
    front, _ = await both(up)
    client = await front.client(protocol)
    await client.ask("POST", path, body=first, length=len(first + rest))
    async with asyncio.timeout(PATIENCE):
        await begun.wait()
    await client.send(rest)
    assert (await client.response()).status == 200


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("who", ["provider", "proxy"])
async def test_a_refusal_comes_before_the_body_is_through(
    upstream: StartUpstream, both: StartBoth, who: str, protocol: str
) -> None:
    """An early answer to a large body reaches the client as it is, and not as a 502 of nginx."""

    async def step(conn: Conn) -> None:
        await conn.read_until(b"\r\n\r\n")
        await conn.send(answer(401, body=b"no"))
        await conn.gone()

    up = await upstream(*([raw(step)] if who == "provider" else []))
    front, _ = await both(up)
    body = random.Random(1).randbytes(30 * MIB)
    if who == "provider":
        response = await front.ask(protocol, "POST", "/anthropic/v1/files", body=body)
        assert (response.status, response.body) == (401, b"no")
    else:
        fields = [(b"x-bf-vk", b"sk-bf-none")]
        response = await front.ask(protocol, "POST", MESSAGES, fields, body)
        assert (response.status, json.loads(response.body)["type"]) == (401, "error")


# Bytes.


TARGETS = [
    "/v1/models/a%2Fb//c?x=%7e&y=%zz+1&x=",
    "//v1///%C3%A9%c3%a9",
    "/v1/a;b=c,d'(e)*!@$&|{}?q=[]{}|^`\"<>\\#"[:-1],
    "/v1/x?",
    "/v1/messages/batches?limit=1&after_id=a%2Fb",
    "/v1/files?beta=true&beta=true",
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_paths_and_queries_stay_as_they_are(
    upstream: StartUpstream, both: StartBoth, protocol: str
) -> None:
    """Escapes, slashes, order: the provider is asked for what the client asked for."""
    up = await upstream(*[answer(body=b"{}")] * len(TARGETS))
    front, _ = await both(up)
    client = await front.client(protocol)
    for target in TARGETS:
        await client.ask("GET", "/anthropic" + target)
        assert (await client.response()).status == 200
    assert [request.target.decode() for request in up.requests] == TARGETS


PASSED = [
    (b"X-Zebra", b"1"),
    (b"anthropic-beta", b"a-2024-01-01"),
    (b"ANTHROPIC-Beta", b"b-2025-01-01, c"),
    (b"x-Request-ID", b"The.Client's_own/1"),
    (b"X-Empty", b""),
    (b"accept-encoding", b"gzip, br"),
    (b"X-Bytes", b"a  b\t\xc3\xa9\xff"),
]

DROPPED = [
    (b"X-Forwarded-For", b"192.0.2.1"),
    (b"X-Forwarded-Proto", b"gopher"),
    (b"Proxy-Authorization", b"Basic eDp5"),
    (b"x_api_key", b"under"),
]

HOP_BY_HOP = [
    (b"Connection", b"keep-alive, Upgrade, HTTP2-Settings"),
    (b"Upgrade", b"h2c"),
    (b"HTTP2-Settings", b"AAMAAABk"),
    (b"Proxy-Connection", b"keep-alive"),
    (b"TE", b"trailers"),
    (b"Trailer", b"X-Sum"),
    (b"Keep-Alive", b"timeout=5"),
]
"""Those that are an error in HTTP/2 (RFC 9113 section 8.2.2)."""


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_request_stays_as_it_is(upstream: StartUpstream, both: StartBoth, protocol: str) -> None:
    """Fields keep order, case (HTTP/2 has none), repeats and bytes; the body is the same."""
    up = await upstream(answer(body=b"{}"))
    front, _ = await both(up)
    body = bytes(range(256)) * 300
    dropped = DROPPED + (HOP_BY_HOP if protocol == "1.1" else [])
    response = await front.ask(protocol, "PUT", "/anthropic/v1/any", [*dropped, *PASSED], body)
    assert response.status == 200
    request = up.requests[0]
    assert (request.method, request.body) == ("PUT", body)
    expected = [*FIELDS, *PASSED]
    if protocol == "2":
        expected = [(name.lower(), value) for name, value in expected]
    ours = (b"host", b"content-length", b"x-forwarded-proto")
    assert [field for field in request.headers if field[0].lower() not in ours] == expected
    assert request.header("x-forwarded-proto") == b"https"


async def test_hop_by_hop_fields_end_at_nginx(workers: Any) -> None:
    """A worker need not even hear of them; and its connection is kept, whatever the client's is."""
    front, heard = await workers([answer(body=b"{}")], [answer(body=b"{}")])
    response = await front.ask("1.1", "GET", "/anthropic/v1/any", [*DROPPED, *HOP_BY_HOP])
    assert response.status == 200
    (request,) = heard[0].requests + heard[1].requests
    assert request.version == b"HTTP/1.1"
    names = {name.lower() for name, _ in request.headers}
    assert names == {b"host", b"x-forwarded-proto", *(name.lower() for name, _ in FIELDS)}


ANSWERED = [
    (b"Date", b"Mon, 02 Nov 2026 10:00:00 GMT"),
    (b"Server", b"cloudflare"),
    (b"Content-Type", b"application/json; charset=UTF-8"),
    (b"Content-Encoding", b"gzip"),
    (b"ReQuest-Id", b"req_011CSHoEeqs5C35K2UUqR7Fy"),
    (b"retry-after", b"3"),
    (b"x-should-retry", b"true"),
    (b"anthropic-ratelimit-requests-remaining", b"0"),
    (b"Set-Cookie", b"a=1; Path=/"),
    (b"Set-Cookie", b"b=2"),
    (b"Cache-Control", b"no-store"),
    (b"Location", b"http://verbatim/elsewhere"),
    (b"ETag", b'W/"x"'),
    (b"Last-Modified", b"Mon, 02 Nov 2026 09:00:00 GMT"),
    (b"Vary", b"Accept-Encoding"),
    (b"X-Bytes", b"\xc3\xa9\xff"),
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_an_answer_stays_as_it_is(upstream: StartUpstream, both: StartBoth, protocol: str) -> None:
    """Status, fields and the compressed body arrive as sent; nginx only moves some fields to the front."""
    body = gzip.compress(b"slow down " * 1000)
    up = await upstream(answer(529, ANSWERED, body, reason="Site is overloaded"))
    front, _ = await both(up, network={"max_retries": 0})
    response = await front.ask(protocol, "GET", "/anthropic/v1/models", [(b"If-None-Match", b'W/"x"')])
    assert (response.status, response.body) == (529, body)
    length = (b"Content-Length", b"%d" % len(body))

    def known(name: bytes) -> bytes:
        # nginx spells the names that it knows in its own way.
        return name.lower() if protocol == "2" or name.lower() == b"etag" else name

    came = [(known(name), value) for name, value in response.headers if not _ours(name)]
    assert sorted(came) == sorted((known(name), value) for name, value in [*ANSWERED, length])
    moved = (b"date", b"server", b"content-type", b"content-length", b"location", b"last-modified", b"vary")
    expected = [(known(name), value) for name, value in ANSWERED if name.lower() not in moved]
    assert [field for field in came if field[0].lower() not in moved] == expected
    if protocol == "1.1":
        assert response.reason == b"Site is overloaded"


def _ours(name: bytes) -> bool:
    return name.lower() == b"connection" or name.lower().startswith(b"x-bifrost-")


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_large_answer_head_passes(upstream: StartUpstream, both: StartBoth, protocol: str) -> None:
    """As large as the proxy lets it be: nginx's own limit would turn a paid answer into a 502."""
    fields = [(b"X-%d" % number, bytes(b"v" * 6000)) for number in range(10)]
    up = await upstream(answer(200, [JSON_TYPE, *fields], MESSAGE))
    front, _ = await both(up)
    response = await front.ask(protocol, "POST", MESSAGES, body=asked())
    assert (response.status, response.body) == (200, MESSAGE)
    assert len([name for name, _ in response.headers if name.lower().startswith(b"x-")]) >= 10


@pytest.mark.parametrize("status", [400, 404, 413, 429, 500, 502, 503, 504])
async def test_an_error_of_the_provider_is_shown_as_it_is(
    upstream: StartUpstream, both: StartBoth, status: int
) -> None:
    """nginx has pages of its own for such a status, and none of them stands in."""
    up = await upstream(answer(status, body=b'{"type":"error","mine":true}'))
    front, _ = await both(up, network={"max_retries": 0})
    response = await front.ask("2", "GET", "/anthropic/v1/models")
    assert (response.status, response.body) == (status, b'{"type":"error","mine":true}')


async def test_a_plain_answer_is_not_compressed(upstream: StartUpstream, both: StartBoth) -> None:
    """Though its client would take it, and it would pay: the bytes are the provider's."""
    body = b'{"text":"' + b"slow down " * 10_000 + b'"}'
    front, _ = await both(await upstream(answer(body=body)))
    response = await front.ask("1.1", "GET", "/anthropic/v1/models", [(b"Accept-Encoding", b"gzip")])
    assert (response.body, response.header("content-length")) == (body, b"%d" % len(body))


async def test_results_url_names_the_public_origin(upstream: StartUpstream, both: StartBoth) -> None:
    """https and the name that the client used, whatever the client says of the scheme."""
    body = b'{"results_url":"https://api.anthropic.com/v1/messages/batches/b_1/results"}'
    up = await upstream(*[answer(body=body)] * 2)
    front, _ = await both(keyed(up, "main"))
    for protocol in PROTOCOLS:
        response = await front.ask(
            protocol, "GET", "/anthropic/v1/messages/batches/b_1", [(b"X-Forwarded-Proto", b"http")]
        )
        assert json.loads(response.body) == {
            "results_url": f"https://{NAME}/anthropic/v1/messages/batches/b_1/results"
        }


# What is public.


HIDDEN = [
    *(
        "/metrics",
        "/metrics/",
        "//metrics",
        "/%6detrics",
        "/METRICS",
        "/metrics;x",
        "/metrics?x",
        "/metrics%00",
    ),
    *(
        "/%256detrics",
        "/%25256detrics",
        "/./metrics",
        "/v1/../metrics",
        "/anthropic/..%2fmetrics",
        "/metrics/1",
    ),
    *(
        "/anthropic/%2e%2e/metrics",
        "/v1/\\..\\..\\metrics",
        "/v1/%5c..%5c..%5cmetrics",
        "/v1/;/../..;/metrics",
    ),
    *("/api/", "/api/keys", "/api/hello/../keys", "//api/keys", "/API/keys"),
    *("/api/governance/virtual-keys", "/api/governance/virtual-keys/quota/", "/api/governance/teams"),
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_metrics_and_admin_routes_are_not_public(
    upstream: StartUpstream, both: StartBoth, protocol: str
) -> None:
    """No spelling of them reaches them from outside; this machine reads each worker's own."""
    front, _ = await both(await upstream())
    for path in HIDDEN:
        response = await front.ask(protocol, "GET", path)
        assert response.status in (400, 404), path
        assert b"# HELP" not in response.body, path
    for number in (1, 2):
        local = await connect(front.metrics_port)
        await local.send(get(f"/metrics/{number}"))
        assert b"# HELP" in (await local.response("GET")).body
        local.close()
    local = await connect(front.metrics_port)
    await local.send(get("/api/governance/virtual-keys"))
    assert b"request_id" in (await local.response("GET")).body
    local.close()


async def test_every_route_of_the_proxy_is_public(upstream: StartUpstream, both: StartBoth) -> None:
    """A prefix that the proxy learns must be let through here as well; so must what it answers itself."""
    front, p = await both(await upstream())
    # The proxy refuses such a path, so it need not be one that is served; but it is the one who does.
    refused = [prefix.decode() + "/..;x/" for prefix in sorted({root.begins[:-1] for root in routes.ROOTS})]
    for path in refused:
        assert (await front.ask("1.1", "GET", path)).status == 400
    own = [("HEAD", "/"), ("HEAD", "/api/hello"), ("HEAD", "/anthropic/api/hello"), ("GET", "/health")]
    for method, path in own:
        assert (await front.ask("1.1", method, path)).status == 200
    own.append(("GET", "/api/governance/virtual-keys/quota"))
    quota = await front.ask("1.1", *own[-1])
    # The proxy's 404, for it has no admin key here.
    assert (quota.status, quota.header("server")) == (404, None)
    assert [(await p.line())["path"] for _ in (*refused, *own)] == [*refused, *(path for _, path in own)]


REFUSED: dict[str, tuple[str, str, int, str]] = {
    "unknown path": ("GET", "/elsewhere", 404, "not_found_error"),
    "CONNECT": ("CONNECT", f"{NAME}:443", 405, "invalid_request_error"),
    "TRACE": ("TRACE", "/anthropic/v1/models", 405, "invalid_request_error"),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_what_nginx_refuses_looks_like_the_api(
    upstream: StartUpstream, both: StartBoth, what: str
) -> None:
    """Its own errors have the shape that SDKs read, an id, and no version of anything."""
    method, target, status, kind = REFUSED[what]
    front, p = await both(await upstream())
    response = await front.ask("1.1", method, target)
    assert (response.status, response.header("server")) == (status, b"nginx")
    assert response.header("content-type") == b"application/json"
    error = json.loads(response.body)
    assert (error["type"], error["error"]["type"]) == ("error", kind)
    assert error["request_id"] == (response.header("request-id") or b"").decode()
    await p.stop()
    assert p.lines == []


async def test_heads_have_a_limit(upstream: StartUpstream, both: StartBoth) -> None:
    """A line of 8190 bytes passes, as in the proxy; beyond it nginx says 431."""
    front, _ = await both(await upstream(answer(body=b"{}")))
    name = b"X-Long"
    longest = b"v" * (8190 - len(name) - 2)
    assert (await front.ask("1.1", "GET", "/anthropic/v1/x", [(name, longest)])).status == 200
    response = await front.ask("1.1", "GET", "/anthropic/v1/x", [(name, longest + b"vvv")])
    assert (response.status, json.loads(response.body)["type"]) == (431, "error")


async def test_one_address_has_a_limit(upstream: StartUpstream, both: StartBoth) -> None:
    """Who asks for too much at once gets a 429 that says so; one request less is served."""
    asked_for, go = asyncio.Event(), asyncio.Event()

    async def step(conn: Conn, _: Request) -> None:
        asked_for.set()
        await go.wait()
        await conn.send(answer(body=b"{}"))

    front, _ = await both(await upstream(step), changes={"limit_conn address 256;": "limit_conn address 1;"})
    client = await front.client("2")
    await client.ask("GET", "/anthropic/v1/models")
    await asked_for.wait()
    refused = await front.ask("1.1", "GET", "/anthropic/v1/models")
    assert (refused.status, json.loads(refused.body)["error"]["type"]) == (429, "rate_limit_error")
    go.set()
    assert (await client.response()).status == 200


async def test_plain_http_is_sent_to_https(nginx: StartNginx) -> None:
    """With method, path and query kept."""
    front = await nginx()
    client = await connect(front.plain_port)
    await client.send(request_head("POST", "/v1/a%2Fb//c?x=%7e", [(b"Host", NAME.encode())]))
    response = await client.response()
    assert (response.status, response.header("location")) == (
        308,
        f"https://{NAME}/v1/a%2Fb//c?x=%7e".encode(),
    )
    client.close()


async def test_the_log_names_no_secret(upstream: StartUpstream, both: StartBoth) -> None:
    """One JSON line per request: the path, the answer's id; no query and no field of the client."""

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(stream_head([(b"Content-Type", b"text/event-stream"), (b"request-id", b"req_9")]))
        await conn.send(chunk(b'event: "'))
        conn.reset()

    up = await upstream(answer(200, [JSON_TYPE, (b"request-id", b"req_8")], b"{}"), step)
    front, _ = await both(up)
    secrets = [
        (b"Authorization", b"Bearer sk-test-other"),
        (b"User-Agent", b"sk-test"),
    ]
    await front.ask("2", "GET", "/anthropic/v1/a%22%0ab?key=sk-test-query", secrets)
    await front.ask("1.1", "POST", MESSAGES, secrets, asked(stream=True))
    await front.stop()
    whole, cut = front.lines()
    assert (whole["path"], whole["status"], whole["request_id"]) == ('/anthropic/v1/a"\nb', "200", "req_8")
    assert (whole["method"], whole["protocol"]) == ("GET", "HTTP/2.0")
    assert (cut["path"], cut["status"], cut["request_id"]) == (MESSAGES, "200", "req_9")
    assert "sk-test" not in json.dumps([whole, cut])


# Several workers.


async def unanswered(conn: Conn, _: Request) -> None:
    """Dies with the whole request in hand."""
    await conn.close()


@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_a_request_that_was_sent_is_not_sent_again(workers: Any, method: str) -> None:
    """The worker that has it dies: the client gets a 502, and the other worker is not asked."""
    front, (one, other) = await workers([unanswered] * 2, [unanswered] * 2)
    response = await front.ask("1.1", method, MESSAGES, body=asked())
    assert (response.status, json.loads(response.body)["error"]["type"]) == (502, "api_error")
    assert one.arrived + other.arrived == 1


async def test_what_may_be_repeated_is_sent_to_the_other_worker(workers: Any) -> None:
    """A GET is sent again when a worker dies with it (RFC 9110 section 9.2.2)."""
    front, (one, other) = await workers([unanswered] * 2, [unanswered] * 2)
    assert (await front.ask("1.1", "GET", "/anthropic/v1/models")).status == 502
    assert (one.arrived, other.arrived) == (1, 1)


async def test_nor_is_it_where_the_connection_was_kept(workers: Any) -> None:
    """A POST on a kept connection that ends under it: nobody can know whether it was taken."""
    front, (one, other) = await workers([answer(body=b"{}"), unanswered], [answer(body=b"{}"), unanswered])
    statuses = [(await front.ask("1.1", "POST", MESSAGES, body=asked())).status for _ in range(3)]
    assert statuses.count(200) == 2
    assert statuses.count(502) == 1
    assert one.arrived + other.arrived == 3


@pytest.mark.parametrize("gone", ["no socket", "nobody at the socket", "a full backlog"])
async def test_who_cannot_be_connected_to_is_passed_over(workers: Any, gone: str) -> None:
    """Nothing was sent, so every POST goes to the other worker, once, and none fails."""
    front, (other,) = await workers(None, [answer(body=b"{}")] * 20)
    with socket.socket(socket.AF_UNIX) as dead, socket.socket(socket.AF_UNIX) as waiting:
        if gone != "no socket":
            dead.bind(str(front.sockets[0]))
        if gone == "a full backlog":
            dead.listen(0)
            waiting.connect(str(front.sockets[0]))
        client = await front.client("1.1")
        for _ in range(20):
            await client.ask("POST", MESSAGES, body=asked())
            assert (await client.response()).status == 200
    assert other.arrived == 20


async def test_health_is_that_of_any_worker(workers: Any) -> None:
    """A worker that drains says 503; asked through nginx the other one answers."""
    draining = answer(503, body=b'{"status":"draining"}')
    front, _ = await workers([draining] * 4, [answer(body=b'{"status":"ok"}')] * 4)
    statuses = [(await front.ask("1.1", "GET", "/health")).status for _ in range(4)]
    assert statuses == [200] * 4


async def test_no_worker_at_all(workers: Any) -> None:
    """A 502 in the shape of the API."""
    front, _ = await workers(None, None)
    response = await front.ask("2", "POST", MESSAGES, body=asked())
    assert (response.status, json.loads(response.body)["error"]["type"]) == (502, "api_error")


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_reload_of_nginx_cuts_no_stream(
    upstream: StartUpstream, both: StartBoth, protocol: str
) -> None:
    """The old nginx worker ends when its streams do; new connections have a new one at once."""
    told = asyncio.Event()

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(stream_head() + chunk(MESSAGE_EVENTS[0]))
        await told.wait()
        for one in MESSAGE_EVENTS[1:]:
            await conn.send(chunk(one))
        await conn.send(LAST_CHUNK)

    up = await upstream(step, *[answer(body=b"{}")] * 10)
    front, _ = await both(up)
    client = await front.client(protocol)
    await client.ask("POST", MESSAGES, body=asked(stream=True))
    await client.head()
    await client.read_until(MESSAGE_EVENTS[0])
    # Kept connections, to each of the nginx workers most likely: they are closed when the reload is heard of.
    idle = [await front.client("1.1") for _ in range(8)]
    for other in idle:
        await other.ask("GET", "/anthropic/v1/models")
        assert (await other.response()).status == 200
    front.reload()
    for other in idle:
        await other.told_to_end()
    if protocol == "2":
        await client.told_to_end()
    assert (await front.ask("1.1", "GET", "/anthropic/v1/models")).status == 200
    told.set()
    response = await client.rest()
    assert response.complete
    assert response.body == b"".join(MESSAGE_EVENTS)
    assert (await front.ask(protocol, "GET", "/anthropic/v1/models")).status == 200


# Restarts of the workers.


CONFIG = """
listen: ["unix:{path}"]
providers:
  anthropic:
    base_urls: {{anthropic: "{url}"}}
"""

ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.executable, [sys.executable, "-m", "proxy", "serve", "--config", sys.argv[2]])
"""
"""What systemd does for a service that has a socket unit."""

DELTAS = 6


def told(number: int) -> list[bytes]:
    """The stream that answers the request of this number."""
    return [sse("content_block_delta", {"index": index, "request": number}) for index in range(DELTAS)]


def number_of(request: Request) -> int:
    return int(json.loads(request.body)["metadata"]["user_id"])


async def provide(conn: Conn, request: Request) -> None:
    """A provider: it answers with the request's number, or streams it for half a second."""
    number = number_of(request)
    if b'"stream":true' not in request.body:
        await conn.send(answer(body=b"%d" % number))
        return
    await conn.send(stream_head())
    for part in told(number):
        await conn.send(chunk(part))
        await asyncio.sleep(0.08)
    await conn.send(LAST_CHUNK)


class Load:
    """Clients that ask one thing after the other, on connections that they keep, until it is over."""

    def __init__(self, front: Nginx) -> None:
        self.answered = 0
        self.streamed = 0
        self.failed: list[str] = []
        self.over = False
        self.numbers: list[int] = []
        self._front = front

    async def client(self, protocol: str, *, stream: bool) -> None:
        client: Http1 | Http2 | None = None
        while not self.over:
            number = len(self.numbers)
            self.numbers.append(number)
            if client is None:
                client = await self._front.client(protocol)
            await client.ask("POST", MESSAGES, body=asked(stream=stream, metadata={"user_id": str(number)}))
            response = await client.response()
            expected = b"".join(told(number)) if stream else b"%d" % number
            if (response.status, response.complete, response.body) != (200, True, expected):
                self.failed.append(f"{number} over {protocol}: {response}")
            self.streamed += stream
            self.answered += not stream
            ended = (
                client.told_last if isinstance(client, Http2) else response.header("connection") == b"close"
            )
            if ended or client.wire.over:
                # nginx ends a connection after so many requests, and says so.
                client.close()
                client = None


class Workers:
    """Two real workers, each a process on a socket of its own; with `held` the sockets outlive them."""

    def __init__(self, front: Nginx, url: str, *, held: bool) -> None:
        self._front = front
        self._held = [socket.socket(socket.AF_UNIX) for _ in front.sockets] if held else []
        self._configs = [front.directory / f"{number}.yaml" for number in (1, 2)]
        for path, config in zip(front.sockets, self._configs, strict=True):
            config.write_text(CONFIG.format(path=path, url=url))
        for path, held_open in zip(front.sockets, self._held, strict=False):
            held_open.bind(str(path))
            held_open.listen(4096)
        self._processes: dict[int, asyncio.subprocess.Process] = {}

    async def start(self, index: int) -> None:
        """Returns when it serves."""
        config = str(self._configs[index])
        command, descriptors = ["-m", "proxy", "serve", "--config", config], []
        if self._held:
            descriptors = [self._held[index].fileno()]
            command = ["-c", ACTIVATE, str(descriptors[0]), config]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=descriptors,
        )
        self._processes[index] = process
        assert process.stderr is not None
        async with asyncio.timeout(20):
            while b"serving on" not in (line := await process.stderr.readline()):
                assert line, "it ended without serving"

    async def stop(self, index: int) -> None:
        """SIGTERM; returns when it has drained and is gone."""
        process = self._processes.pop(index)
        process.send_signal(signal.SIGTERM)
        _, said = await process.communicate()
        assert process.returncode == 0, said

    async def kill(self) -> None:
        for process in self._processes.values():
            process.kill()
            await process.communicate()
        for held in self._held:
            held.close()


BEGUN = {
    "stream": (stream_head() + chunk(MESSAGE_EVENTS[0]), chunk(MESSAGE_EVENTS[-1]) + LAST_CHUNK),
    "JSON": (answer(body=MESSAGE)[: -len(MESSAGE)], MESSAGE),
}


@pytest.mark.parametrize("kind", BEGUN)
async def test_a_worker_that_stops_keeps_what_its_answer_promised(
    upstream: StartUpstream, proxy: StartProxy, kind: str
) -> None:
    """Where a head did not say `Connection: close`, nginx may send the next request when the answer ends.

    A worker that closes the connection at that moment makes it a 502.
    """
    asked_to_stop = asyncio.Event()
    first, rest = BEGUN[kind]

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(first)
        await asked_to_stop.wait()
        await conn.send(rest)

    up = await upstream(step, answer(body=MESSAGE))
    up.allow_unused = True
    p = await proxy(up)
    client = await p.connect()
    await client.send(post(MESSAGES, asked(stream=kind == "stream")))
    promised = (await client.head()).header("connection") != b"close"
    stopping = asyncio.create_task(p.stop())
    await asyncio.sleep(0)
    asked_to_stop.set()
    assert (await client.rest()).complete
    if promised:
        await client.send(post(MESSAGES, asked()))
        response = await client.response()
        assert (response.status, response.header("connection")) == (200, b"close")
    await stopping


@pytest.mark.parametrize("held", [False, True], ids=["sockets of their own", "sockets of systemd"])
async def test_restarts_of_the_workers_are_not_seen(
    upstream: StartUpstream, nginx: StartNginx, *, held: bool
) -> None:
    """Each worker is stopped and started, in turn, again and again, under load: nobody sees it.

    No request fails, every stream is whole, and every request was sent to the provider exactly once.
    """
    up = await upstream(*[provide] * 50_000)
    up.allow_unused = True
    front = await nginx()
    load = Load(front)
    workers = Workers(front, up.url, held=held)
    try:
        await asyncio.gather(*map(workers.start, (0, 1)))
        async with asyncio.TaskGroup() as clients:
            for protocol in PROTOCOLS:
                for stream in (False, False, True, True, True):
                    clients.create_task(load.client(protocol, stream=stream))
            for _ in range(3):
                for index in (0, 1):
                    await workers.stop(index)
                    await workers.start(index)
            load.over = True
        for index in (0, 1):
            await workers.stop(index)
    finally:
        await workers.kill()
    assert load.failed == []
    assert load.answered > 100
    assert load.streamed > 20
    assert sorted(map(number_of, up.requests)) == load.numbers
