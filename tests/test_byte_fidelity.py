"""What left the client is what reached upstream, and what upstream sent is what came down: byte for byte.

Bodies, chunkings, line ends and framings are random; a failing case is found again by its seed.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import ssl
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import trustme
from rawclient import Client, asked, get, post, request_head
from running import StartProxy, StartUpstream, keyed
from scripted import (
    COMPLETION_EVENTS,
    COMPLETION_EVENTS_2023_01_01,
    JSON_TYPE,
    LAST_CHUNK,
    MESSAGE,
    MESSAGE_EVENTS,
    PING,
    SSE_TYPE,
    Conn,
    Request,
    Step,
    answer,
    chunk,
    head,
    stream_head,
    streamed,
)

from proxy.body import scan, splice

MESSAGES = "/anthropic/v1/messages"
GOOD = answer(body=MESSAGE)


def cut(rng: random.Random, data: bytes, largest: int) -> Iterator[bytes]:
    """`data` in random pieces of 1 to `largest` bytes."""
    position = 0
    while position < len(data):
        size = rng.randint(1, largest)
        yield data[position : position + size]
        position += size


def random_string(rng: random.Random) -> str:
    """A JSON string as text: raw UTF-8, every kind of escape, lone surrogates, words that matter."""
    pieces = [
        "é",
        "字",
        "😀",
        r"\"",
        r"\\",
        r"\/",
        r"\n",
        "\\u0041",
        r"\ud83d\ude00",
        r"\ud800",
        "model",
        "{",
        "]",
    ]
    pieces += ["stream", "\x7f", " ", "a", r"\u0000", "\u2028", ",", ":", "fallbacks", "\u00a0"]
    return '"' + "".join(rng.choices(pieces, k=rng.randrange(8))) + '"'


def random_value(rng: random.Random, depth: int = 0) -> str:
    """A JSON value as text, with blanks wherever they may be."""
    kinds = ["string", "number", "word"] + (["list", "object"] if depth < 5 else [])
    kind = rng.choice(kinds)
    if kind == "string":
        return random_string(rng)
    if kind == "number":
        return rng.choice(["0", "-0", "1.0", "1e2", "1E+400", "-12.5e-3", "123456789012345678901234567890"])
    if kind == "word":
        return rng.choice(["true", "false", "null"])
    if kind == "list":
        return "[" + joined(rng, [random_value(rng, depth + 1) for _ in range(rng.randrange(4))]) + "]"
    names = ['"model"', '"stream"', '"fallbacks"', random_string(rng)]
    members = [f"{rng.choice(names)}:{random_value(rng, depth + 1)}" for _ in range(rng.randrange(4))]
    return "{" + joined(rng, members) + "}"


def joined(rng: random.Random, parts: list[str]) -> str:
    """`parts` between commas, with random blanks around them."""
    blanks = ["", "", " ", "\n", "\t", "\r\n  "]
    return ",".join(rng.choice(blanks) + part + rng.choice(blanks) for part in parts)


def random_body(rng: random.Random) -> bytes:
    """A model request whose `model` stands anywhere among the members, none of which needs rewriting."""
    members = [f'"member{i}" : {random_value(rng)}' for i in range(rng.randrange(6))]
    members.insert(rng.randint(0, len(members)), '"model":"claude-2"')
    return ("{" + joined(rng, members) + "}").encode()


async def send_in_pieces(client: Client, rng: random.Random, data: bytes, largest: int) -> None:
    """Sends `data` as random pieces, with a turn for the proxy between them."""
    for piece in cut(rng, data, largest):
        await client.send(piece)
        await asyncio.sleep(0)


def sends(rng: random.Random, data: bytes, largest: int) -> Step:
    """A step that sends `data` as random pieces."""

    async def play(conn: Conn, _: Request) -> None:
        for piece in cut(rng, data, largest):
            await conn.send(piece)
            await asyncio.sleep(0)

    return play


# Upstream.


@pytest.mark.parametrize("seed", range(40))
async def test_a_model_requests_body_is_not_changed(
    upstream: StartUpstream, proxy: StartProxy, seed: int
) -> None:
    """A body that needs no rewriting reaches upstream as the identical bytes, whatever its chunking was."""
    rng = random.Random(seed)
    bodies = [random_body(rng) for _ in range(5)]
    up = await upstream(*[GOOD] * len(bodies))
    p = await proxy(up)
    client = await p.connect()
    for body in bodies:
        request = post(MESSAGES, body)
        if rng.random() < 0.5:
            fields = [(b"Host", b"h"), (b"Transfer-Encoding", b"chunked")]
            framed = b"".join(map(chunk, cut(rng, body, rng.choice([1, 7, 1000])))) + LAST_CHUNK
            request = request_head("POST", MESSAGES, fields) + framed
        await send_in_pieces(client, rng, request, rng.choice([1, 13, 4096]))
        response = await client.response()
        assert response.status == 200, body
        if response.header("connection") == b"close":
            client = await p.connect()
    assert [request.body for request in up.requests] == bodies
    assert [request.values("content-length") for request in up.requests] == [
        [b"%d" % len(body)] for body in bodies
    ]


@pytest.mark.parametrize("seed", range(10))
async def test_other_bodies_are_not_looked_into(
    upstream: StartUpstream, proxy: StartProxy, seed: int
) -> None:
    """On all other routes any bytes pass: declared lengths stay declared, chunked bodies stay chunked."""
    rng = random.Random(seed)
    bodies = [rng.randbytes(rng.choice([1, 100, 70_000])) for _ in range(4)]
    chunked = [rng.random() < 0.5 for _ in bodies]
    up = await upstream(*[answer(body=b"{}")] * len(bodies))
    p = await proxy(up)
    client = await p.connect()
    for body, is_chunked in zip(bodies, chunked, strict=True):
        if is_chunked:
            fields = [(b"Host", b"h"), (b"Transfer-Encoding", b"chunked")]
            framed = b"".join(map(chunk, cut(rng, body, 5000))) + LAST_CHUNK
            request = request_head("POST", "/anthropic/v1/files", fields) + framed
        else:
            request = post("/anthropic/v1/files", body)
        await send_in_pieces(client, rng, request, rng.choice([100, 4096]))
        response = await client.response()
        assert response.status == 200
        if response.header("connection") == b"close":
            client = await p.connect()
    assert [request.body for request in up.requests] == bodies
    assert [request.chunked for request in up.requests] == chunked


async def test_a_large_body_with_its_model_at_the_end(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Megabytes before `model`, and megabytes of answer, are the same bytes on both sides."""
    content = "\\ud83d\\ude00 model é" * 400_000
    body = b'{"messages":[{"role":"user","content":"' + content.encode() + b'"}],"model":"claude-2"}'
    big = json.dumps({"content": "é" * 4_000_000}).encode()
    up = await upstream(answer(body=big))
    p = await proxy(up)
    response = await p.post(MESSAGES, body)
    assert response.body == big
    assert up.requests[0].body == body


BODIES: dict[str, tuple[bytes, bytes]] = {
    "gzip": (b"gzip", gzip.compress(asked())),
    "deflate": (b"deflate", zlib.compress(asked())),
    "identity": (b"identity", asked()),
}


@pytest.mark.parametrize("coding", BODIES)
async def test_a_compressed_request_passes_as_it_is(
    upstream: StartUpstream, proxy: StartProxy, coding: str
) -> None:
    """A compressed body that needs no rewriting goes on with its coding and its bytes."""
    value, body = BODIES[coding]
    up = await upstream(GOOD)
    p = await proxy(up)
    assert (await p.post(MESSAGES, body, [(b"Content-Encoding", value)])).status == 200
    assert up.requests[0].body == body
    assert up.requests[0].values("content-encoding") == [value]


TARGETS = [
    "/anthropic/v1/models",
    "/anthropic/v1/models?limit=1000&limit=2&after_id=%7Ex&&",
    "/anthropic/v1/a%2Fb//c///?x=%7e&y=%zz&z=%2f",
    "/anthropic/v1/models/",
    "/anthropic/v1/%e2%82%ac/;p=1/@:!$&'()*+,=",
    "/anthropic/v1/models?",
    "/anthropic/v1/files/file_1/content?beta=true",
    "/anthropic//v1/models",
    "/anthropic/v2/future?q=/../x",
]


@pytest.mark.parametrize("target", TARGETS)
async def test_the_path_goes_on_as_it_came(upstream: StartUpstream, proxy: StartProxy, target: str) -> None:
    """Percent-encoding, doubled slashes, the query and its order: upstream gets the raw remainder."""
    up = await upstream(answer(body=b"{}"))
    p = await proxy({"base_urls": {"anthropic": up.url + "/base%20path"}})
    assert (await p.get(target)).status == 200
    assert up.requests[0].target == b"/base%20path" + target.removeprefix("/anthropic").encode()


@pytest.mark.parametrize(
    "path",
    ["/v1/messages", "/v1/messages?beta=true", "/v1/complete", "/v1/messages/count_tokens", "/v1/models"],
)
async def test_bare_paths_are_the_same(upstream: StartUpstream, proxy: StartProxy, path: str) -> None:
    """An SDK whose base URL is the proxy's root reaches the same places."""
    up = await upstream(GOOD)
    p = await proxy(up)
    body = asked()
    assert (await p.post(path, body)).body == MESSAGE
    assert (up.requests[0].target, up.requests[0].body) == (path.encode(), body)


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_every_method_is_relayed(upstream: StartUpstream, proxy: StartProxy, method: str) -> None:
    """Below a prefix the methods are open too, with and without a body."""
    up = await upstream(answer(body=b"1"), answer(body=b"2"))
    p = await proxy(up)
    client = await p.connect()
    for body in (b"", b"body"):
        fields = [(b"Host", b"h"), *([(b"Content-Length", b"4")] if body else [])]
        await client.send(request_head(method, "/anthropic/v1/x", fields) + body)
        assert (await client.response(method)).status == 200
    assert [(request.method, request.body) for request in up.requests] == [(method, b""), (method, b"body")]


# Downstream.


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("seed", range(8))
async def test_a_stream_is_not_changed(
    upstream: StartUpstream, proxy: StartProxy, seed: int, line_end: bytes
) -> None:
    """Events of any size, over any chunking on the wire, come down as the bytes that upstream sent."""
    rng = random.Random(seed)
    steps, streams = [], []
    for _ in range(4):
        events = [
            line_end.join([b"event: " + name, b"data: " + random_value(rng).encode(), b"", b""])
            for name in rng.choices([b"content_block_delta", b"future_event", b"message_start"], k=6)
        ]
        data = b"".join(events)
        wire = b"".join(map(chunk, cut(rng, data, rng.choice([1, 5, 300]))))
        steps.append(sends(rng, stream_head() + wire + LAST_CHUNK, rng.choice([1, 9, 5000])))
        streams.append(data)
    up = await upstream(*steps)
    p = await proxy(up, ping_interval=0)
    client = await p.connect()
    for data in streams:
        await client.send(post(MESSAGES, asked(stream=True)))
        response = await client.response()
        assert (response.body, response.complete) == (data, True)


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("seed", range(8))
async def test_with_the_pings_taken_out_a_stream_is_not_changed(
    upstream: StartUpstream, proxy: StartProxy, seed: int, line_end: bytes
) -> None:
    """Pings stand between events only: without them the stream is what upstream sent, event for event."""
    rng = random.Random(seed)
    events = [
        line_end.join([b"event: delta", b"data: " + random_value(rng).encode(), b"", b""]) for _ in range(5)
    ]

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(stream_head())
        for number, event in enumerate(events):
            for piece in cut(rng, event, 12):
                await conn.send(chunk(piece))
                await asyncio.sleep(0)
            if number % 2 == 0:
                # Silence between two events, until one ping more has come.
                seen = client.wire.everything.count(PING)
                await client.wire.until(partial(more_pings, client, seen), "a ping")
        await conn.send(LAST_CHUNK)

    up = await upstream(step)
    p = await proxy(up, ping_interval=0.01)
    client = await p.connect()
    await client.send(post(MESSAGES, asked(stream=True)))
    response = await client.response()
    assert response.complete
    left = list(events)
    rest = response.body
    while rest:
        if rest.startswith(PING):
            rest = rest.removeprefix(PING)
            continue
        assert rest.startswith(left[0]), rest
        rest = rest.removeprefix(left.pop(0))
    assert left == []
    assert response.body.count(PING) >= 3


def more_pings(client: Client, than: int) -> bool:
    return client.wire.everything.count(PING) > than


STREAMS = {
    "messages": (MESSAGES, MESSAGE_EVENTS),
    "complete 2023-06-01": ("/anthropic/v1/complete", COMPLETION_EVENTS),
    "complete 2023-01-01": ("/v1/complete", COMPLETION_EVENTS_2023_01_01),
}


@pytest.mark.parametrize("framing", ["chunked", "until close"])
@pytest.mark.parametrize("kind", STREAMS)
async def test_streams_of_every_version(
    upstream: StartUpstream, proxy: StartProxy, kind: str, framing: str
) -> None:
    """Messages and both legacy versions are relayed untouched, chunked or until close."""
    path, events = STREAMS[kind]
    whole = head(200, [SSE_TYPE]) + b"".join(events)
    up = await upstream(streamed(events) if framing == "chunked" else whole)
    p = await proxy(up)
    response = await p.post(path, asked(stream=True, prompt="\n\nHuman: Hi\n\nAssistant:"))
    assert (response.body, response.complete) == (b"".join(events), True)
    assert response.header("content-type") == SSE_TYPE[1]


FRAMINGS: dict[str, Callable[[bytes], bytes]] = {
    "length": lambda body: answer(body=body),
    "chunked": lambda body: (
        head(200, [JSON_TYPE, (b"Transfer-Encoding", b"chunked")]) + chunk(body) + LAST_CHUNK
    ),
    "until close": lambda body: head(200, [JSON_TYPE]) + body,
    "HTTP/1.0": lambda body: (head(200, [JSON_TYPE]) + body).replace(b"HTTP/1.1", b"HTTP/1.0", 1),
    "HTTP/1.0 with length": lambda body: answer(body=body).replace(b"HTTP/1.1", b"HTTP/1.0", 1),
}


@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"], ids=["client 1.1", "client 1.0"])
@pytest.mark.parametrize("framing", FRAMINGS)
async def test_every_framing_of_an_answer(
    upstream: StartUpstream, proxy: StartProxy, framing: str, version: bytes
) -> None:
    """However upstream shows the end of a body, the client sees the body and its end, in its own version."""
    up = await upstream(FRAMINGS[framing](MESSAGE))
    if "1.0" in framing:
        up.allow_unused = True
    p = await proxy(up)
    response = await p.ask(post(MESSAGES, asked()).replace(b"HTTP/1.1", version, 1))
    assert (response.status, response.body, response.complete) == (200, MESSAGE, True)
    if version == b"HTTP/1.0":
        assert response.values("transfer-encoding") == []


@pytest.mark.parametrize("coding", ["gzip", "br"])
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_a_compressed_answer_is_not_touched(
    upstream: StartUpstream, proxy: StartProxy, coding: str, stream: bool
) -> None:
    """Content-Encoding stays with its bytes; nothing is decoded, and nothing is put between."""
    data = gzip.compress(b"".join(MESSAGE_EVENTS) if stream else MESSAGE) + b"\n\n"
    headers = [SSE_TYPE if stream else JSON_TYPE, (b"Content-Encoding", coding.encode())]
    up = await upstream(answer(200, headers, data))
    p = await proxy(up, ping_interval=0.001)
    response = await p.post(MESSAGES, asked(stream=stream), [(b"Accept-Encoding", b"gzip, br")])
    assert (response.body, response.complete) == (data, True)
    assert response.header("content-encoding") == coding.encode()
    assert response.header("content-length") == b"%d" % len(data)


STATUS_LINES = [
    (200, "Fine"),
    (201, "Created"),
    (207, ""),
    (299, "Multi word reason; (odd)"),
    (418, "I'm a teapot"),
    (451, "\xe9"),
    (599, "Last"),
]


@pytest.mark.parametrize(("status", "reason"), STATUS_LINES)
async def test_status_and_reason_are_upstreams(
    upstream: StartUpstream, proxy: StartProxy, status: int, reason: str
) -> None:
    """Known or not, the status and its reason are upstream's own."""
    line = b"HTTP/1.1 %d %b\r\n" % (status, reason.encode("latin-1"))
    up = await upstream(line + b"Content-Length: 2\r\n\r\n{}")
    p = await proxy(up)
    response = await p.post(MESSAGES, asked())
    assert (response.status, response.body) == (status, b"{}")
    if reason:
        assert response.reason == reason.encode("latin-1")


BODILESS = {
    "HEAD with length": ("HEAD", head(200, [JSON_TYPE, (b"Content-Length", b"1234")])),
    "HEAD chunked": ("HEAD", head(200, [JSON_TYPE, (b"Transfer-Encoding", b"chunked")])),
    "HEAD of an error": ("HEAD", head(404, [JSON_TYPE, (b"Content-Length", b"10")])),
    "204": ("DELETE", head(204, [(b"x-a", b"1")])),
    "304": ("GET", head(304, [(b"etag", b'"1"'), (b"Content-Length", b"1234")])),
    "empty": ("GET", answer(200, [], b"")),
}


@pytest.mark.parametrize("case", BODILESS)
async def test_answers_without_a_body(upstream: StartUpstream, proxy: StartProxy, case: str) -> None:
    """No body byte after HEAD, 204 and 304, and the next request gets its own answer."""
    method, raw_answer = BODILESS[case]
    up = await upstream(raw_answer, answer(body=b"next"))
    p = await proxy(up)
    client = await p.connect()
    await client.send(get("/anthropic/v1/x", method=method))
    response = await client.response(method)
    assert (response.status, response.body) == (int(raw_answer[9:12]), b"")
    for name in ("content-length", "etag", "x-a"):
        sent = [line for line in raw_answer.split(b"\r\n") if line.lower().startswith(name.encode() + b":")]
        assert [
            b"%b: %b" % (key, value) for key, value in response.headers if key.lower() == name.encode()
        ] == sent
    await client.send(get("/anthropic/v1/y"))
    assert (await client.response("GET")).body == b"next"
    assert client.leftover == b""
    # Behind a HEAD that speaks of chunks nobody can tell whether any follow.
    assert up.connections == (2 if case == "HEAD chunked" else 1)


async def test_pipelined_requests_are_answered_in_order(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Requests sent at once on one connection are two requests upstream, with two answers in their order."""
    up = await upstream(answer(body=b"one"), answer(body=b"two"))
    p = await proxy(up)
    client = await p.connect()
    bodies = [asked("first"), asked("second")]
    await client.send(b"".join(post(MESSAGES, body) for body in bodies))
    assert [(await client.response()).body for _ in bodies] == [b"one", b"two"]
    assert [request.body for request in up.requests] == bodies


async def test_own_keys_change_no_byte_of_a_body(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Our key is a header; the body is as it came with it, too."""
    up = await upstream(GOOD)
    p = await proxy(keyed(up, "main"))
    body = b'{"model"\t: "claude-2" , "x":[ 1.0 ] }\n'
    assert (await p.post(MESSAGES, body)).status == 200
    assert up.requests[0].body == body


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("first", [True, False], ids=["model first", "model last"])
async def test_a_large_body_is_rewritten_as_a_small_one_is(
    upstream: StartUpstream,
    proxy: StartProxy,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    first: bool,
    secure: bool,
) -> None:
    """It goes up in parts: what stays is the client's, and length, model and fallbacks are right."""
    ours: dict[str, object] = {"model": "backup/claude-2", "fallbacks": ["backup/claude-3"]}
    text = {"messages": [{"role": "user", "content": "caf\u00e9 \\n" * 400_000}]}
    body = json.dumps({**ours, **text} if first else {**text, **ours}).encode()
    tls = None
    if secure:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(tls)
    up = await upstream(answer(body=MESSAGE), tls=tls)
    p = await proxy(providers={"anthropic": await upstream(), "backup": keyed(up, "main")})
    response = await p.post("/anthropic/v1/messages", body)
    assert (response.status, response.body) == (200, MESSAGE)
    sent = up.requests[0].body
    assert json.loads(sent) == {"model": "claude-2", **text}
    assert sent == splice(body, scan(body), "claude-2")
