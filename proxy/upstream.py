"""The door to the providers: opening requests, the pool of idle connections, TLS.

Facts
  - A pooled connection may be closed by the provider at the moment it is used. No response byte then
    means that the request most likely was never seen; the error says ``reused``.

Rules
  1. `Upstream.open` gives an `Answer` with a head, or raises `ProxyError`.
  2. The newest idle connection is used first, so that the pool shrinks when load does.
  3. Certificates are verified in every full handshake, and a session is resumed for an hour at most.

Not here: framing (`framing`), retries (`attempt`).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time

from aiohappyeyeballs import start_connection

from .answer import Answer
from .connection import Connection, Origin
from .errors import EXHAUSTED, RETRY_SOON, ProxyError, Source
from .sending import Request

RECEIVE_BYTES = 65536
"""The one receive buffer of all connections; also the most that one read brings."""

TLS_RECEIVE_BYTES = 1048576
"""The same over TLS. asyncio reads once more when the connection ends, and drops what finds no room."""

TLS_WAITING_BYTES = 65536
"""Where asyncio stops reading from the socket while its TLS layer has undelivered bytes."""

SESSION_SECONDS = 3600.0
"""A TLS session is resumed for so long; then the certificate is verified again."""

POOL_SIZE = 256
"""Idle connections kept per origin."""

POOL_SECONDS = 15.0
"""An idle connection is closed after this; shorter than any provider's own limit we know of."""


class Upstream:
    """All connections to all providers; owns the pool."""

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(RECEIVE_BYTES))
        self.tls_buffer = memoryview(bytearray(TLS_RECEIVE_BYTES))
        self._loop = asyncio.get_running_loop()
        self._idle: dict[tuple[bool, str, int], list[Connection]] = {}
        self._open: set[Connection] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        # Now: read when no descriptor is left, it would trust nobody for ever.
        self._tls = _Tls.trusting_this_machine()
        self._closing = False
        self._empty = asyncio.Event()

    async def open(self, request: Request) -> Answer:
        """Send `request` and wait for the head of its answer.

        Raises `ProxyError` with the event ``connect``, ``reset``, ``timeout`` or ``protocol``; 503 without
        one when this machine is out of descriptors.
        """
        connection = None if request.fresh else self._take(request.origin)
        if connection is None:
            connection = await self._connect(request)
        answer = Answer(connection, request, self._loop)
        try:
            if request.about_to_send is not None:
                await request.about_to_send()
            await answer.start()
        except BaseException:
            answer.abort()
            raise
        return answer

    async def close(self) -> None:
        """Close every connection, idle or not."""
        self._closing = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in tuple(self._open):
            connection.abort()
        if self._open:
            await self._empty.wait()

    def opened(self, connection: Connection) -> None:
        self._open.add(connection)

    def lost(self, connection: Connection) -> None:
        """Forget a connection that closed."""
        self._open.discard(connection)
        if self._closing and not self._open:
            self._empty.set()
        idle = self._idle.get(connection.key)
        if idle is not None and connection in idle:
            idle.remove(connection)

    def release(self, connection: Connection) -> None:
        """Take back a clean connection; newest first."""
        idle = self._idle.setdefault(connection.key, [])
        if len(idle) >= POOL_SIZE or self._closing:
            connection.abort()
            return
        if not connection.reused:
            self._tls.remember(connection.key[1], connection.transport)
        connection.idle_since = self._loop.time()
        idle.append(connection)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(POOL_SECONDS, self._sweep)

    def _take(self, origin: Origin) -> Connection | None:
        idle = self._idle.get((origin.secure, origin.host, origin.port))
        oldest = self._loop.time() - POOL_SECONDS
        while idle:
            connection = idle.pop()
            if connection.idle_since >= oldest and not connection.transport.is_closing():
                connection.reused = True
                return connection
            connection.abort()
        return None

    def _sweep(self) -> None:
        self._sweeper = None
        oldest = self._loop.time() - POOL_SECONDS
        for key, idle in tuple(self._idle.items()):
            kept = [connection for connection in idle if connection.idle_since > oldest]
            for connection in idle:
                if connection.idle_since <= oldest:
                    connection.abort()
            if kept:
                self._idle[key] = kept
            else:
                del self._idle[key]
        if self._idle:
            first = min(connection.idle_since for idle in self._idle.values() for connection in idle)
            self._sweeper = self._loop.call_at(first + POOL_SECONDS, self._sweep)

    def _spare(self, _: Origin) -> bool:
        """Close the connection that has been idle longest; whether there was one."""
        firsts = [idle[0] for idle in self._idle.values() if idle]
        if firsts:
            oldest = min(firsts, key=lambda connection: connection.idle_since)
            self._idle[oldest.key].remove(oldest)
            oldest.abort()
        return bool(firsts)

    def _forget_session(self, origin: Origin) -> bool:
        """Offer no old TLS session to this host; whether there was one."""
        return self._tls.forget(origin.host)

    async def _connect(self, request: Request) -> Connection:
        origin = request.origin
        try:
            async with asyncio.timeout(request.network.connect_timeout):
                while True:
                    try:
                        return await self._dial(origin)
                    except OSError as error:
                        # Without what stood in the way: a connection that is idle and holds a descriptor, or
                        # else the TLS session that was offered, perhaps.
                        helped = self._spare if error.errno in EXHAUSTED else self._forget_session
                        if not helped(origin):
                            raise
                    # A socket that was spared is closed in the next turn.
                    await asyncio.sleep(0)
        except TimeoutError:
            raise _error(504, "The provider could not be connected to in time.") from None
        except ssl.SSLError:
            raise _error(502, "The provider's TLS certificate or handshake is not valid.") from None
        except (OSError, UnicodeError) as error:
            if isinstance(error, OSError) and error.errno in EXHAUSTED:
                # No other target could be connected to either.
                raise ProxyError(
                    503,
                    "The proxy is out of file descriptors; send the request again.",
                    headers=(RETRY_SOON,),
                ) from None
            raise _error(502, "The provider cannot be reached.") from None

    async def _dial(self, origin: Origin) -> Connection:
        resolved = await self._loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
        # RFC 8305: a host with a dead IPv6 address costs a quarter of a second, not a timeout.
        # asyncio's own happy_eyeballs_delay loses a socket when it is cancelled as it connects.
        connected = await start_connection(resolved, happy_eyeballs_delay=0.25, interleave=1)
        try:
            transport, connection = await self._loop.create_connection(
                lambda: Connection(self, origin, self._loop),
                sock=connected,
                ssl=self._tls if origin.secure else None,
                server_hostname=origin.host if origin.secure else None,
            )
        except BaseException:
            connected.close()
            raise
        if origin.secure:
            # Only the TLS layer's transport has this; it keeps 256 KiB otherwise.
            transport.set_read_buffer_limits(TLS_WAITING_BYTES)  # type: ignore[attr-defined]
        return connection


class _Tls(ssl.SSLContext):
    """TLS with verified certificates, and short handshakes with hosts that were spoken to before.

    A resumed session (RFC 8446 section 2.2) vouches for the certificate that its full handshake verified.
    So only sessions of full handshakes are kept, per host, in memory, for `SESSION_SECONDS`.
    """

    sessions: dict[str, tuple[ssl.SSLSession, float]]

    @classmethod
    def trusting_this_machine(cls) -> _Tls:
        """Verify against the authorities that the system, or ``SSL_CERT_FILE``, names."""
        context = cls(ssl.PROTOCOL_TLS_CLIENT)  # It requires certificates, and checks the host's name.
        context.load_default_certs()
        context.set_alpn_protocols(["http/1.1"])
        context.sessions = {}
        return context

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        # asyncio asks for no session.
        kept, since = self.sessions.get(str(server_hostname), (None, 0.0))
        if time.monotonic() > since + SESSION_SECONDS:
            kept = None
        return super().wrap_bio(incoming, outgoing, server_side, server_hostname, session or kept)

    def remember(self, host: str, transport: asyncio.BaseTransport) -> None:
        """Keep the session of a connection that has been read from: the ticket comes behind the handshake."""
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.session is not None and not tls.session_reused:
            self.sessions[host] = tls.session, time.monotonic()

    def forget(self, host: str) -> bool:
        """Drop the session of a host; whether there was one."""
        return self.sessions.pop(host, None) is not None


def _error(status: int, message: str) -> ProxyError:
    return ProxyError(status, message, source=Source.UPSTREAM, event="connect")
