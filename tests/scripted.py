"""A scripted upstream: a real socket that plays a list of steps and keeps what was sent to it.

Facts
  - Message streams, legacy streams and errors look as in Anthropic's API pages: LF only, one JSON line per
    event; version 2023-06-01 of /v1/complete has named, incremental events and just ends, version 2023-01-01
    has data-only, cumulative events and ends with ``data: [DONE]``.

Rules
  1. Step i answers the i-th request over all connections, counted by the arrival of its first byte.
  2. A request for which there is no step, a step that nobody asked for, and a step that raises, fail the test
     in `Upstream.check`. The first is answered with a closed connection.
  3. Requests are kept byte for byte. Keep-alive is honoured, so the proxy's pool is under test as well.

Not here: any judgement on the requests; the tests look at `Upstream.requests`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from http import HTTPStatus

from rawclient import PATIENCE, Body, Gone, Headers, Wire, header_pairs, header_values


@dataclass(frozen=True)
class Request:
    """One request as upstream received it. `raw` is head and body exactly as they came."""

    raw: bytes
    method: str
    target: bytes
    version: bytes
    headers: Headers
    body: bytes
    chunked: bool
    connection_number: int

    def header(self, name: str) -> bytes | None:
        """The only value of `name`, or None; repeats are an error, `values` shows them."""
        values = self.values(name)
        assert len(values) < 2, f"{name} came {len(values)} times: {values}"
        return values[0] if values else None

    def values(self, name: str) -> list[bytes]:
        return header_values(self.headers, name)


class Conn:
    """One connection of the proxy to the scripted upstream, as steps see it."""

    def __init__(self, upstream: Upstream, wire: Wire, number: int) -> None:
        self.number = number
        self._upstream = upstream
        self._wire = wire
        self._closing = False
        self._sent = 0

    async def send(self, data: bytes) -> None:
        """Returns when the kernel has taken all of `data`, however long that takes.

        Raises `Gone` where the proxy has left; a step may let it pass, it just ends the connection.
        """
        self._sent += len(data)
        await self._wire.send(data, forever=True)

    @property
    def sent(self) -> int:
        """How many bytes the kernel has taken so far."""
        return self._sent - self._wire.transport.get_write_buffer_size()

    async def close(self) -> None:
        """FIN. What the proxy sends after it is answered with RST, as by a socket that is closed."""
        self._closing = True
        self._wire.finish_sending()

    def reset(self) -> None:
        """RST."""
        self._closing = True
        self._wire.reset()

    async def gone(self) -> None:
        """Returns when the proxy has closed or reset this connection."""
        await self._wire.until(lambda: self._wire.over, f"the proxy leaving connection {self.number}")

    def reads(self) -> bytes:
        """Everything that came on this connection so far, taken or not."""
        return bytes(self._wire.everything)

    async def read_until(self, mark: bytes) -> bytes:
        """For `raw` steps: the bytes up to and with `mark`, taken off."""
        return await self._wire.read_until(mark)

    async def read_exactly(self, count: int) -> bytes:
        """For `raw` steps: the next `count` bytes, taken off."""
        return await self._wire.read_exactly(count)

    def stop_reading(self) -> None:
        """For `raw` steps: from now on the kernel's buffers fill, first ours, then the proxy's."""
        self._wire.transport.pause_reading()

    def go_on_reading(self) -> None:
        self._wire.transport.resume_reading()

    async def request(self) -> Request:
        """The next request whole; it is kept in `Upstream.requests`. Ordinary steps have it already."""
        raw = await self._wire.read_until(b"\r\n\r\n")
        first, *lines = raw.removesuffix(b"\r\n\r\n").split(b"\r\n")
        line = re.fullmatch(rb"([A-Z]+) (\S+) (HTTP/1\.[01])", first)
        assert line, f"not a request line: {first!r}"
        headers = header_pairs(lines)
        codings = header_values(headers, "transfer-encoding")
        lengths = header_values(headers, "content-length")
        assert len(codings) + len(lengths) < 2, f"two framings: {codings} {lengths}"
        assert codings in ([], [b"chunked"]), f"Transfer-Encoding {codings} upstream"
        body = Body(length=int(lengths[0]) if lengths else 0, chunked=bool(codings))

        def whole() -> bool:
            body.pull(self._wire.received)
            return body.done or self._wire.over

        await self._wire.until(whole, "the request's body")
        if not body.done:
            raise Gone(f"the proxy left after {len(body.data)} bytes of a request's body")
        request = Request(
            raw=raw + bytes(body.raw),
            method=line[1].decode(),
            target=line[2],
            version=line[3],
            headers=headers,
            body=bytes(body.data),
            chunked=bool(codings),
            connection_number=self.number,
        )
        self._upstream.keep(request)
        return request

    async def play(self) -> None:
        """Answers the requests of this connection until either side ends it."""
        wire = self._wire
        played = 0
        while True:
            await wire.until(lambda: bool(wire.received) or wire.over, "a request", forever=True)
            # What a `raw` step left unread before the proxy went is no request.
            if not wire.received or wire.closed or (played and wire.over):
                break
            played += 1
            if self._closing:
                wire.reset()
                break
            step = self._upstream.next_step()
            if step is None:
                request = await self.request()
                self._upstream.problems.append(
                    f"no step for request {self._upstream.arrived}: {request.raw[:300]!r}"
                )
                await self.close()
            elif isinstance(step, Raw):
                await step.play(self)
            elif isinstance(step, bytes):
                request = await self.request()
                await self.send(step)
                if ends_connection(step, request):
                    await self.close()
            else:
                await step(self, await self.request())

    @property
    def open(self) -> bool:
        """The proxy has not ended this connection, and we have not dropped it."""
        return not self._wire.over

    def drop(self) -> None:
        """Ends what is left of this connection when the test is over."""
        self._wire.transport.abort()


@dataclass(frozen=True)
class Raw:
    """A step that takes over at the first byte of a request, before it was read."""

    play: Callable[[Conn], Awaitable[object]]


def raw(play: Callable[[Conn], Awaitable[object]]) -> Raw:
    """A step that is called with the connection alone, at the first byte of a request.

    It reads what it likes: `Conn.read_until`, `Conn.read_exactly`, or `Conn.request` for the whole.
    """
    return Raw(play)


Step = bytes | Raw | Callable[[Conn, Request], Awaitable[object]]


class Upstream:
    """The scripted upstream. Made by the fixture of the same name, which also stops and checks it.

    `connected` is called with each new connection before anything is read, to reset it at once, say.
    `requests` holds the requests that were read whole, `arrived` counts those of which a byte came.
    """

    def __init__(
        self,
        *steps: Step,
        tls: ssl.SSLContext | None = None,
        connected: Callable[[Conn], object] | None = None,
    ) -> None:
        self.requests: list[Request] = []
        self.arrived = 0
        self.problems: list[str] = []
        self.allow_unused = False
        self.conns: list[Conn] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self._steps = list(steps)
        self._tls = tls
        self._connected = connected
        self._kept = asyncio.Event()

    async def start(self) -> None:
        """Begins to listen on a free port of 127.0.0.1."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Wire(self._opened), "127.0.0.1", 0, ssl=self._tls)
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stops listening, and drops every connection and every step that is still running."""
        self._server.close()
        for conn in self.conns:
            conn.drop()
        for task in self.tasks:
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks)
        await self._server.wait_closed()

    def check(self) -> None:
        """Fails where the script and what happened differ."""
        problems = list(self.problems)
        if self._steps and not self.allow_unused:
            problems.append(f"{len(self._steps)} step(s) were never asked for, {self.arrived} were")
        assert not problems, "scripted upstream: " + "; ".join(problems)

    @property
    def url(self) -> str:
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """How many connections were made to this upstream in all."""
        return len(self.conns)

    @property
    def open(self) -> int:
        """How many of them are open now."""
        return sum(conn.open for conn in self.conns)

    async def quiet(self) -> None:
        """Returns when the proxy has ended all its connections."""
        for conn in self.conns:
            await conn.gone()

    async def received(self, count: int = 1) -> None:
        """Returns when so many requests were read whole."""
        try:
            async with asyncio.timeout(PATIENCE):
                while len(self.requests) < count:
                    self._kept.clear()
                    await self._kept.wait()
        except TimeoutError:
            came = len(self.requests)
            raise AssertionError(f"{came} requests came upstream, not {count}, within {PATIENCE} s") from None

    def keep(self, request: Request) -> None:
        """Takes note of a request that was read whole."""
        self.requests.append(request)
        self._kept.set()

    def then(self, *steps: Step) -> None:
        """Adds steps to the end of the script."""
        self._steps += steps

    def next_step(self) -> Step | None:
        """Counts a request and takes its step off the script; None where there is none left."""
        self.arrived += 1
        return self._steps.pop(0) if self._steps else None

    def _opened(self, wire: Wire) -> None:
        conn = Conn(self, wire, len(self.conns))
        self.conns.append(conn)
        if self._connected is not None:
            self._connected(conn)
        task = asyncio.get_running_loop().create_task(self._played(conn))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _played(self, conn: Conn) -> None:
        try:
            await conn.play()
        except Gone:
            # The proxy left in the middle of a step: many tests want just that, and look at the other side.
            pass
        except Exception as error:
            self.problems.append(f"a step raised {type(error).__name__}: {error}")
            conn.reset()
            return
        conn.drop()


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """A port of 127.0.0.1 that refuses connections. It is bound, so nobody else can get it meanwhile."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def head(status: int, headers: Iterable[tuple[bytes, bytes]], reason: str | None = None) -> bytes:
    """A response head, with the blank line."""
    phrase = reason if reason is not None else HTTPStatus(status).phrase if status in set(HTTPStatus) else ""
    lines = [f"HTTP/1.1 {status} {phrase}".encode(), *(name + b": " + value for name, value in headers)]
    return b"\r\n".join(lines) + b"\r\n\r\n"


JSON_TYPE = (b"Content-Type", b"application/json")
SSE_TYPE = (b"Content-Type", b"text/event-stream; charset=utf-8")


def answer(
    status: int = 200,
    headers: Iterable[tuple[bytes, bytes]] = (JSON_TYPE,),
    body: bytes = b"",
    reason: str | None = None,
) -> bytes:
    """A whole answer with Content-Length."""
    return head(status, [*headers, (b"Content-Length", b"%d" % len(body))], reason) + body


def refusal(
    status: int, kind: str = "api_error", headers: Iterable[tuple[bytes, bytes]] = (), message: str = "no"
) -> bytes:
    """An error answer in Anthropic's shape."""
    error = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_upstream"}
    return answer(status, [JSON_TYPE, (b"request-id", b"req_upstream"), *headers], json.dumps(error).encode())


def stream_head(headers: Iterable[tuple[bytes, bytes]] = (SSE_TYPE,), status: int = 200) -> bytes:
    """The head of an SSE answer whose body is chunked."""
    return head(status, [*headers, (b"Transfer-Encoding", b"chunked")])


LAST_CHUNK = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """`data` as one chunk. Empty data would be the last chunk, so it is an error."""
    assert data
    return b"%x\r\n%b\r\n" % (len(data), data)


def streamed(events: Iterable[bytes], headers: Iterable[tuple[bytes, bytes]] = (SSE_TYPE,)) -> bytes:
    """A whole SSE answer, one chunk per event."""
    return stream_head(headers) + b"".join(map(chunk, events)) + LAST_CHUNK


def sse(name: str | None, data: object) -> bytes:
    """One event; `data` that is no string becomes JSON on one line."""
    text = data if isinstance(data, str) else json.dumps(data)
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


def ends_connection(response: bytes, request: Request) -> bool:
    """Whether an upstream that sent `response` must close: it said so, or only FIN can end the body."""
    block, _, rest = response.partition(b"\r\n\r\n")
    while block.startswith(b"HTTP/1.1 1"):
        block, _, rest = rest.partition(b"\r\n\r\n")
    headers = header_pairs(block.split(b"\r\n")[1:])
    if b"close" in (value.lower() for value in header_values(headers, "connection")):
        return True
    framed = header_values(headers, "content-length") or header_values(headers, "transfer-encoding")
    bodiless = request.method == "HEAD" or block.split(b" ")[1] in (b"204", b"304")
    return not framed and not bodiless


PING = sse("ping", {"type": "ping"})

MESSAGE = json.dumps(
    {
        "id": "msg_01XFDUDYJgAACzvnptvVoYEL",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-4-5",
        "content": [{"type": "text", "text": "Hello there."}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 12, "output_tokens": 6},
    },
    separators=(",", ":"),
).encode()
"""A message that is not streamed; 12 tokens in, 6 out."""

MESSAGE_EVENTS = [
    sse(
        "message_start",
        {
            "type": "message_start",
            "message": {
                "id": "msg_01XFDUDYJgAACzvnptvVoYEL",
                "type": "message",
                "role": "assistant",
                "model": "claude-haiku-4-5",
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": {"input_tokens": 12, "output_tokens": 1},
            },
        },
    ),
    sse(
        "content_block_start",
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    ),
    PING,
    sse(
        "content_block_delta",
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}},
    ),
    sse(
        "content_block_delta",
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": " there."}},
    ),
    sse("content_block_stop", {"type": "content_block_stop", "index": 0}),
    sse(
        "message_delta",
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": 6},
        },
    ),
    sse("message_stop", {"type": "message_stop"}),
]
"""A streamed message; 12 tokens in, 6 out; with a ping of the provider's own."""

COMPLETION_EVENTS = [
    sse("completion", {"type": "completion", "completion": text, "stop_reason": None, "model": "claude-2.1"})
    for text in (" Hello", " there", ".")
]
COMPLETION_EVENTS.insert(1, PING)
COMPLETION_EVENTS.append(
    sse(
        "completion",
        {"type": "completion", "completion": "", "stop_reason": "stop_sequence", "model": "claude-2.1"},
    )
)
"""A legacy stream of version 2023-06-01: named and incremental; the connection's end is its end."""

COMPLETION_EVENTS_2023_01_01 = [
    sse(
        None,
        {
            "completion": text,
            "stop": None,
            "stop_reason": reason,
            "truncated": False,
            "log_id": "4a7e8e3d",
            "model": "claude-v1.3",
            "exception": None,
        },
    )
    for text, reason in ((" Hello", None), (" Hello there", None), (" Hello there.", "stop_sequence"))
]
COMPLETION_EVENTS_2023_01_01.append(sse(None, "[DONE]"))
"""A legacy stream of version 2023-01-01: data only, each event the whole text so far, then [DONE]."""

ERROR_EVENT = sse("error", {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})
"""What the provider sends where a stream fails; the status is 200 already."""

__all__ = [
    "COMPLETION_EVENTS",
    "COMPLETION_EVENTS_2023_01_01",
    "ERROR_EVENT",
    "JSON_TYPE",
    "LAST_CHUNK",
    "MESSAGE",
    "MESSAGE_EVENTS",
    "PATIENCE",
    "PING",
    "SSE_TYPE",
    "Conn",
    "Gone",
    "Raw",
    "Request",
    "Step",
    "Upstream",
    "answer",
    "chunk",
    "closed_port",
    "head",
    "raw",
    "refusal",
    "sse",
    "stream_head",
    "streamed",
]
