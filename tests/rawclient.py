"""A raw HTTP/1.1 client: it sends the bytes it is told to send and shows the bytes that came.

Facts
  - How long a response body is: RFC 9112 section 6.3. No body for HEAD, 1xx, 204 and 304; else chunked; else
    Content-Length; else until the connection ends.
  - A connection ends with FIN ("I have said all") or with RST ("this is broken"). Behind an HTTP/1.0 hop
    only RST tells a cut answer from a whole one, so the two are never mixed up here.

Rules
  1. Every wait is bounded by `PATIENCE`. A hang becomes an AssertionError that says what was waited for.
  2. Nothing is normalised: names, values, order and chunk borders are shown as they came.

Not here: redirects, decompression, retries, any opinion on what the other side should have sent.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
import struct
from collections.abc import Callable, Iterable
from typing import Literal, Self

PATIENCE = 10.0
"""Seconds that a wait may take before it fails the test."""

Headers = list[tuple[bytes, bytes]]
End = Literal["fin", "reset"]

CLIENT_KEY = b"sk-test-client"
"""What the client sends as x-api-key."""


class Gone(ConnectionError):
    """The peer ended the connection before the awaited bytes came, or while bytes were being sent."""


class Wire(asyncio.Protocol):
    """One end of a connection, as bytes: what came and is not taken yet, and how the peer ended it."""

    def __init__(self, opened: Callable[[Wire], object] | None = None) -> None:
        self.received = bytearray()
        self.everything = bytearray()
        self.end: End | None = None
        self.closed = False
        self.patience = PATIENCE
        self._opened = opened
        self._changed = asyncio.Event()
        self._full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if transport.get_extra_info("sslcontext") is None:
            # The kernel is the only buffer: `send` returns when it has taken everything. A TLS transport
            # does not say again that there is room when the limit is 0.
            transport.set_write_buffer_limits(high=0)
        if self._opened is not None:
            self._opened(self)

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.everything += data
        self._pulse()

    def eof_received(self) -> bool:
        self.end = self.end or "fin"
        self._pulse()
        # True keeps our own direction open, which TLS cannot do.
        return self.transport.get_extra_info("sslcontext") is None

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self.end = self.end or "reset"
        self.closed = True
        self._pulse()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._pulse()

    def _pulse(self) -> None:
        self._changed.set()
        self._changed.clear()

    @property
    def over(self) -> bool:
        """Nothing more will come: the peer has ended the connection, or we have closed it."""
        return self.end is not None or self.closed

    async def until(self, condition: Callable[[], bool], what: str, *, forever: bool = False) -> None:
        """Waits until `condition` holds; it is asked again after everything that happens on this wire."""
        try:
            async with asyncio.timeout(None if forever else self.patience):
                while not condition():
                    await self._changed.wait()
        except TimeoutError:
            state = f"end={self.end}, came={bytes(self.everything[-400:])!r}"
            raise AssertionError(f"{what}: not within {self.patience} s ({state})") from None

    async def send(self, data: bytes, *, forever: bool = False) -> None:
        """Returns when the kernel has taken all of `data`. Raises `Gone` where the connection is no more."""
        if self.transport.is_closing():
            raise Gone("sending on a connection that is closed")
        self.transport.write(data)
        await self.until(lambda: not self._full or self.closed, "room to send", forever=forever)
        if self.closed:
            raise Gone("the peer went while bytes were being sent")

    async def read_until(self, mark: bytes) -> bytes:
        """The bytes up to and with `mark`, taken off."""
        await self.until(lambda: mark in self.received or self.over, f"bytes up to {mark!r}")
        if mark not in self.received:
            raise Gone(f"the connection ended before {mark!r}; left: {bytes(self.received)!r}")
        return take(self.received, self.received.index(mark) + len(mark))

    async def read_exactly(self, count: int) -> bytes:
        """The next `count` bytes, taken off."""
        await self.until(lambda: len(self.received) >= count or self.over, f"{count} bytes")
        if len(self.received) < count:
            raise Gone(f"the connection ended {count - len(self.received)} bytes early")
        return take(self.received, count)

    def finish_sending(self) -> None:
        """FIN, while the other direction stays open; over TLS both directions close."""
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def reset(self) -> None:
        """RST: linger time zero makes the kernel drop the connection instead of closing it."""
        if not self.transport.is_closing():
            endpoint = self.transport.get_extra_info("socket")
            endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


def take(buffer: bytearray, count: int) -> bytes:
    """The first `count` bytes of `buffer` (fewer where there are fewer), removed from it."""
    taken = bytes(buffer[:count])
    del buffer[:count]
    return taken


class Body:
    """The body of one message, taken off a buffer piece by piece as it comes.

    `length` None and not chunked means that the body lasts until the connection ends.
    `data` is the content, `chunks` the content of each whole chunk, `raw` the bytes as they came.
    """

    def __init__(self, *, length: int | None, chunked: bool) -> None:
        self.data = bytearray()
        self.chunks: list[bytes] = []
        self.trailers: Headers = []
        self.raw = bytearray()
        self.until_end = length is None and not chunked
        self.done = length == 0 and not chunked
        self._chunked = chunked
        self._left = length or 0
        self._expects: Literal["size", "data", "data end", "trailers"] = "size"

    def pull(self, buffer: bytearray) -> None:
        """Takes off `buffer` what has come of this body, and nothing of what follows it."""
        if self.until_end:
            self._take_data(buffer, len(buffer))
        elif self._chunked:
            while not self.done and self._pull_chunked(buffer):
                pass
        elif not self.done:
            self._take_data(buffer, self._left)
            self.done = self._left == 0

    def _take_data(self, buffer: bytearray, count: int) -> bool:
        part = take(buffer, count)
        self.raw += part
        self.data += part
        self._left -= len(part)
        return bool(part)

    def _pull_chunked(self, buffer: bytearray) -> bool:
        """One step over a chunked body; False where more bytes must come first."""
        if self._expects == "data":
            came = self._take_data(buffer, self._left)
            if self._left == 0:
                self._expects = "data end"
            return came
        if b"\r\n" not in buffer:
            return False
        line = take(buffer, buffer.index(b"\r\n") + 2)
        self.raw += line
        if self._expects == "size":
            size = re.fullmatch(rb"([0-9A-Fa-f]+)(;.*)?\r\n", line)
            assert size, f"not a chunk size: {line!r}"
            self._left = self._size = int(size[1], 16)
            self._expects = "data" if self._left else "trailers"
        elif self._expects == "data end":
            assert line == b"\r\n", f"after a chunk: {line!r}"
            self.chunks.append(bytes(self.data[-self._size :]))
            self._expects = "size"
        elif line == b"\r\n":
            self.done = True
        else:
            self.trailers.append(header_pair(line.removesuffix(b"\r\n")))
        return True


def header_pair(line: bytes) -> tuple[bytes, bytes]:
    """Name and value of one header line; the value without the blanks around it."""
    name, colon, value = line.partition(b":")
    assert colon, f"not a header line: {line!r}"
    return name, value.strip(b" \t")


def header_pairs(lines: list[bytes]) -> Headers:
    """The header lines of a head, in order."""
    return [header_pair(line) for line in lines]


def header_values(headers: Headers, name: str) -> list[bytes]:
    """Every value of `name`, in any case of letters, in order."""
    return [value for key, value in headers if key.lower() == name.lower().encode()]


class Response:
    """What came down: the head, and as much of the body as came.

    `status` is 0 where the connection ended before a head. `complete` says that the framing was finished:
    the last chunk came, or Content-Length bytes, or FIN where the body lasts until the connection ends.
    `reset` says that the connection was reset before that.
    """

    def __init__(self, status: int = 0, reason: bytes = b"", version: bytes = b"") -> None:
        self.status = status
        self.reason = reason
        self.version = version
        self.headers: Headers = []
        self.informational: list[Response] = []
        self.body = b""
        self.chunks: list[bytes] = []
        self.trailers: Headers = []
        self.raw = b""
        self.complete = False
        self.reset = False

    def header(self, name: str) -> bytes | None:
        """The only value of `name`, or None; repeats are an error, `values` shows them."""
        values = self.values(name)
        assert len(values) < 2, f"{name} came {len(values)} times: {values}"
        return values[0] if values else None

    def values(self, name: str) -> list[bytes]:
        return header_values(self.headers, name)

    def __repr__(self) -> str:
        state = "complete" if self.complete else "reset" if self.reset else "incomplete"
        return f"<Response {self.status} {state} {self.headers} {self.body[:300]!r}>"


class Client:
    """One downstream connection. Read a response whole with `response`, or step by step after `head`."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self._response = Response()
        self._body = Body(length=0, chunked=False)
        self._seen = 0
        self._seen_chunks = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def send(self, data: bytes) -> None:
        await self.wire.send(data)

    async def response(self, method: str = "POST") -> Response:
        """The next response whole, or as much of it as came before the connection ended."""
        try:
            await self.head(method)
        except Gone:
            self._response = Response()
            self._response.raw = bytes(self.wire.received)
            self._response.reset = self.wire.end == "reset"
            return self._response
        return await self.rest()

    async def head(self, method: str = "POST") -> Response:
        """The next response's head; heads of 1xx answers before it are its `informational`."""
        informational = []
        while True:
            raw = await self.wire.read_until(b"\r\n\r\n")
            first, *lines = raw.removesuffix(b"\r\n\r\n").split(b"\r\n")
            line = re.fullmatch(rb"(HTTP/\d\.\d) (\d{3}) ?(.*)", first)
            assert line, f"not a status line: {first!r}"
            response = Response(int(line[2]), line[3], line[1])
            response.raw = raw
            response.headers = header_pairs(lines)
            if response.status == 101 or not 100 <= response.status < 200:
                break
            informational.append(response)
        response.informational = informational
        self._response, self._body = response, body_after(response, method)
        self._seen = self._seen_chunks = 0
        return response

    async def rest(self) -> Response:
        """What is left of the response whose head was read."""
        await self._advance(lambda: False, "the end of the response")
        response, body = self._response, self._body
        response.complete = body.done or (body.until_end and self.wire.end == "fin")
        response.reset = not response.complete and self.wire.end == "reset"
        response.body, response.chunks, response.trailers = bytes(body.data), body.chunks, body.trailers
        response.raw += bytes(body.raw)
        return response

    async def read_until(self, mark: bytes) -> bytes:
        """The next bytes of the body's content up to and with `mark`."""
        await self._advance(lambda: self._body.data.find(mark, self._seen) >= 0, f"{mark!r} in the body")
        found = self._body.data.find(mark, self._seen)
        if found < 0:
            raise Gone(f"the body ended before {mark!r}; left: {bytes(self._body.data[self._seen :])!r}")
        start, self._seen = self._seen, found + len(mark)
        return bytes(self._body.data[start : self._seen])

    def chunks(self) -> Self:
        """For `async for`: each whole chunk as it comes, until the last one."""
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        await self._advance(lambda: len(self._body.chunks) > self._seen_chunks, "a chunk")
        if len(self._body.chunks) > self._seen_chunks:
            self._seen_chunks += 1
            return self._body.chunks[self._seen_chunks - 1]
        if not self._body.done:
            raise Gone("the connection ended between two chunks or in one")
        raise StopAsyncIteration

    async def _advance(self, enough: Callable[[], bool], what: str) -> None:
        """Takes the body as it comes, until there is `enough` or nothing more can come."""

        def ready() -> bool:
            self._body.pull(self.wire.received)
            return enough() or self._body.done or self.wire.over

        await self.wire.until(ready, what)

    async def eof(self) -> End:
        """How the proxy ended the connection; waits until it has."""
        await self.wire.until(lambda: self.wire.over, "the end of the connection")
        assert self.wire.end is not None, "this side closed the connection itself"
        return self.wire.end

    @property
    def received(self) -> bytes:
        """The body's content as far as it has come, read or not."""
        self._body.pull(self.wire.received)
        return bytes(self._body.data)

    @property
    def leftover(self) -> bytes:
        """What came beyond the responses that were read."""
        return bytes(self.wire.received)

    def stop_reading(self) -> None:
        """From now on the kernel's receive buffer fills, and then the proxy's send buffer."""
        self.wire.transport.pause_reading()

    def go_on_reading(self) -> None:
        self.wire.transport.resume_reading()

    def finish_sending(self) -> None:
        """FIN, while the answer can still come."""
        self.wire.finish_sending()

    def close(self) -> None:
        self.wire.transport.close()

    def reset(self) -> None:
        self.wire.reset()


def body_after(response: Response, method: str) -> Body:
    """The body that RFC 9112 section 6.3 says must follow this head."""
    if method == "HEAD" or response.status < 200 or response.status in (204, 304):
        return Body(length=0, chunked=False)
    if (coding := response.header("transfer-encoding")) is not None:
        assert coding == b"chunked", f"Transfer-Encoding {coding!r} downstream"
        return Body(length=None, chunked=True)
    length = response.header("content-length")
    return Body(length=None if length is None else int(length), chunked=False)


def asked(
    model: str = "claude-2", *, stream: bool = False, fallbacks: object = None, **more: object
) -> bytes:
    """The body of a message request in the Python SDK's order: `model` late, `stream` last."""
    messages = [{"role": "user", "content": "Hi"}]
    body: dict[str, object] = {"max_tokens": 64, "messages": messages, "model": model}
    if fallbacks is not None:
        body["fallbacks"] = fallbacks
    body |= more
    if stream:
        body["stream"] = True
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def post(
    path: str, body: bytes, headers: Iterable[tuple[bytes, bytes]] = (), *, key: bytes | None = CLIENT_KEY
) -> bytes:
    """The bytes of a POST as an SDK sends it; `headers` are added, `key` goes as x-api-key."""
    fields = [
        (b"Host", b"proxy.test"),
        (b"Content-Type", b"application/json"),
        (b"anthropic-version", b"2023-06-01"),
        *([(b"x-api-key", key)] if key is not None else []),
        *headers,
        (b"Content-Length", b"%d" % len(body)),
    ]
    return request_head("POST", path, fields) + body


def get(path: str, headers: Iterable[tuple[bytes, bytes]] = (), *, method: str = "GET") -> bytes:
    """The bytes of a GET as an SDK sends it; `headers` are added."""
    fields = [
        (b"Host", b"proxy.test"),
        (b"anthropic-version", b"2023-06-01"),
        (b"x-api-key", CLIENT_KEY),
        *headers,
    ]
    return request_head(method, path, fields)


def request_head(method: str, path: str, fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A request head with exactly these fields, and the blank line."""
    lines = [f"{method} {path} HTTP/1.1".encode(), *(b"%b: %b" % field for field in fields)]
    return b"\r\n".join(lines) + b"\r\n\r\n"


async def connect(
    port: int = 0,
    host: str = "127.0.0.1",
    unix: str | None = None,
    *,
    tls: ssl.SSLContext | None = None,
    receive_buffer: int | None = None,
) -> Client:
    """A new connection to `host`:`port`, or to the socket file `unix`.

    `receive_buffer` sets SO_RCVBUF (bytes) before connecting, for clients that read slowly.
    """
    loop = asyncio.get_running_loop()
    endpoint = socket.socket(socket.AF_INET if unix is None else socket.AF_UNIX)
    try:
        endpoint.setblocking(False)
        if receive_buffer is not None:
            endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        async with asyncio.timeout(PATIENCE):
            await loop.sock_connect(endpoint, (host, port) if unix is None else unix)
            name = host if tls is not None else None
            _, wire = await loop.create_connection(Wire, sock=endpoint, ssl=tls, server_hostname=name)
    except BaseException:
        endpoint.close()
        raise
    return Client(wire)
