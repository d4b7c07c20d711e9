"""The process around the path: sockets, start, stop.

Facts
  - aiohttp's own error answers echo the line that it could not parse, key included, and its logger
    prints it. `Downstream` answers and logs in its place.
  - The pure-Python parser of aiohttp fails cases that the C parser passes, and releases before 3.14.5
    have known request-smuggling holes; both are checked at the start.

Rules
  1. What is started here is stopped here, in the reverse order.

Not here: the path (`handle`), signals and the command line (`__main__`).
"""

from __future__ import annotations

import asyncio
import errno
import random
import secrets
import socket
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any, cast

from aiohttp import http_parser, web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong

from . import errors
from .accesslog import AccessLog
from .attempt import Runner
from .config import Config
from .errors import ProxyError, Source
from .exchange import Exchange
from .handle import Handler
from .metrics import Metrics
from .scanner import Scanner
from .upstream import Upstream

AIOHTTP_FLOOR = (3, 14, 5)

BACKLOG = 1024
"""Connections that may wait to be accepted; the kernel has its own limit (``net.core.somaxconn``)."""

RECEIVE_BYTES = 65536
"""The most that one read from downstream brings."""

LINGER_SECONDS = 2

CLOSE_SECONDS = 1
"""How long idle connections may take to close."""


class Server:
    """One worker: listens where the config says and serves until `stop`."""

    def __init__(self, config: Config, *, log: AccessLog, sockets: Sequence[socket.socket] = ()) -> None:
        self._config = config
        self._sockets = sockets
        self._log = log
        self._runner: web.ServerRunner | None = None
        self._upstream: Upstream | None = None
        self._scanner = Scanner()
        self._handler: Handler | None = None
        self.addresses: list[str] = []
        """Where it listens: ``HOST:PORT`` or ``unix:PATH``."""

    async def start(self) -> None:
        """Listen. Raises OSError when an address cannot be bound, RuntimeError on an unsafe aiohttp."""
        _check_aiohttp()
        config = self._config
        self._upstream = Upstream()
        metrics = Metrics(config)
        runner = Runner(config, self._upstream, random.Random(secrets.randbits(64)))
        self._handler = Handler(config, self._scanner, runner, metrics, self._log)
        door = Downstream(self._handler, metrics, self._log, config)
        # Open requests are our own to drain: aiohttp would wait twice, and then end them with a plain close.
        self._runner = web.ServerRunner(door, shutdown_timeout=CLOSE_SECONDS)
        await self._runner.setup()
        for inherited in self._sockets:
            await web.SockSite(self._runner, inherited, backlog=BACKLOG).start()
            self.addresses.append(_name(inherited.getsockname()))
        for address in () if self._sockets else config.listen:
            await self._listen(address)

    async def stop(self) -> None:
        """Stop listening, let open requests finish for ``drain_timeout``, close everything."""
        if self._runner is not None and self._handler is not None:
            for site in tuple(self._runner.sites):
                await site.stop()
            if self._runner.server is not None:
                self._runner.server.pre_shutdown()
            await self._handler.drain(self._config.drain_timeout)
            await self._runner.cleanup()
        if self._upstream is not None:
            await self._upstream.close()
        self._scanner.close()
        await self._log.close()

    def hurry(self) -> None:
        """Let `stop` wait for nobody any more."""
        if self._handler is not None:
            self._handler.end_open()

    async def _listen(self, address: str) -> None:
        runner = self._runner
        if runner is None:
            raise AssertionError("started")
        if address.startswith("unix:"):
            await web.UnixSite(runner, address.removeprefix("unix:"), backlog=BACKLOG).start()
            self.addresses.append(address)
            return
        host, _, port = address.rpartition(":")
        await web.TCPSite(runner, host.strip("[]"), int(port), backlog=BACKLOG).start()
        self.addresses.append(_name(runner.addresses[-1]))


class Downstream(web.Server):
    """aiohttp's low-level server, with our answer to what cannot be parsed."""

    def __init__(self, handler: Handler, metrics: Metrics, log: AccessLog, config: Config) -> None:
        super().__init__(handler)
        self.handler_cancellation = True
        self.loop = asyncio.get_running_loop()
        self.max_waiting = config.max_buffer_bytes // 4
        self.metrics = metrics
        self.log = log
        # aiohttp takes None for no access log of its own, which its annotation does not say.
        self.settings: dict[str, Any] = {
            "access_log": None,
            "auto_decompress": False,
            # How long an answer that came before the end of its request may still be read.
            "lingering_time": LINGER_SECONDS,
            "keepalive_timeout": config.keepalive_timeout,
        }

    def __call__(self) -> web.RequestHandler:
        return Door(self)


class Door(web.RequestHandler):
    """One downstream connection."""

    __slots__ = ("_door",)

    def __init__(self, downstream: Downstream) -> None:
        super().__init__(downstream, loop=downstream.loop, **downstream.settings)
        self._door = downstream

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # asyncio reads into a new buffer of 256 KiB each time, which malloc maps and unmaps; 64 KiB it keeps.
        transport.max_size = RECEIVE_BYTES  # type: ignore[attr-defined]
        cast(asyncio.Transport, transport).set_write_buffer_limits(self._door.max_waiting)
        super().connection_made(transport)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is not a request, without repeating a byte of it."""
        now = asyncio.get_running_loop().time()
        exchange = Exchange("req_" + secrets.token_hex(12), "-", "-", now, time.time())
        exchange.ended = now
        if isinstance(exc, LineTooLong):
            error = ProxyError(431, "A header line is longer than 8190 bytes.", source=Source.DOWNSTREAM)
        elif isinstance(exc, BadHttpMessage) and exc.message == "Too many headers received":
            error = ProxyError(431, "There are more than 128 header fields.", source=Source.DOWNSTREAM)
        elif status == 400:
            error = ProxyError(400, "This is not a well-formed HTTP/1.1 request.", source=Source.DOWNSTREAM)
        else:
            error = ProxyError(500, "Internal error of the proxy.")
        exchange.status = error.status
        exchange.fail(error)
        self._door.metrics.begin()
        self._door.metrics.observe(exchange)
        self._door.log.log(exchange)
        if request.writer.output_size > 0:
            raise ConnectionResetError
        response = web.Response(
            status=error.status,
            body=errors.body(error, exchange.request_id),
            content_type="application/json",
            headers={"request-id": exchange.request_id, "Server": "verbatim"},
        )
        response.force_close()
        return response


def start_failure(error: OSError | RuntimeError) -> str:
    """Why `Server.start` failed, for a person."""
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return "another program listens there; choose another address with --listen"
    return str(getattr(error, "strerror", None) or error)


def _name(address: Any) -> str:
    """A socket's address as the config writes it."""
    if isinstance(address, str):
        return f"unix:{address}"
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _check_aiohttp() -> None:
    version = tuple(int(part) for part in metadata.version("aiohttp").split(".")[:3] if part.isdigit())
    if version < AIOHTTP_FLOOR:
        raise RuntimeError("aiohttp is older than 3.14.5, which fixes request smuggling; upgrade it")
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        raise RuntimeError("aiohttp runs without its C parser; install a wheel that has it")
