"""Listening: the sockets where downstream connects, and taking its connections in.

Facts
  - asyncio's own server can lose connections that it accepts in the turn in which it is closed (CPython issue
    109564), and cannot be told to wait.
  - Where no descriptor is left, accept(2) fails and the connection stays in the backlog, so that the
    socket stays readable: a loop that goes on listening to it spins.
  - A socket that systemd passed stays open there: who comes when ours is closed waits for the next process.

Rules
  1. At most `limit` connections are open, so that each finds a descriptor for its way upstream. Further ones
     wait in the backlog, idle ones are closed for them; nobody is refused, and it goes on by itself.
  2. `close` leaves nobody behind: who waits in the backlog is taken in first.

Not here: what is said on a connection (`door`).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
import sys
from collections.abc import Callable

logger = logging.getLogger(__name__)

BACKLOG = 1024
"""Connections that may wait to be accepted; the kernel has its own limit (``net.core.somaxconn``)."""

TURN = 64
"""Connections accepted in one turn of the loop."""

REST_SECONDS = 0.5
"""How long accepting rests when the machine is out of something."""

QUIET_SECONDS = 60.0
"""How long trouble that was logged is not logged again."""

_LEFT_ALREADY = (errno.ECONNABORTED, errno.EPROTO, errno.EPERM)


class Listener:
    """All listening sockets of a server, and the count of what they brought."""

    def __init__(self, limit: int) -> None:
        self.open = 0
        """Connections that were accepted and are not lost yet."""
        self.addresses: list[str] = []
        """Where it listens: ``HOST:PORT`` or ``unix:PATH``."""
        self.all_left = asyncio.Event()
        """Set while no connection is open."""
        self.all_left.set()
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._factory: Callable[[], asyncio.Protocol] | None = None
        self._make_room: Callable[[], None] | None = None
        self._sockets: list[socket.socket] = []
        self._paths: list[tuple[str, int]] = []
        self._connecting: set[asyncio.Task[None]] = set()
        self._resting: asyncio.TimerHandle | None = None
        self._accepting = False
        self._quiet_until = 0.0

    def add(self, listening: socket.socket) -> None:
        """Listen on this socket."""
        listening.setblocking(False)
        self._sockets.append(listening)
        self.addresses.append(_name(listening.getsockname()))

    async def bind(self, address: str) -> None:
        """Listen on ``HOST:PORT`` or ``unix:PATH``. Raises OSError when it cannot be had."""
        if address.startswith("unix:"):
            self.add(self._bound_path(address.removeprefix("unix:")))
            return
        host, _, port = address.rpartition(":")
        found = await self._loop.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, _, _, _, name in dict.fromkeys(found):
            self.add(socket.create_server(name[:2], family=family, backlog=BACKLOG))

    def start(self, factory: Callable[[], asyncio.Protocol], make_room: Callable[[], None]) -> None:
        """Accept connections, each for a protocol of its own, whose end `left` must be told.

        `make_room` is called, again and again, while somebody waits because there are so many.
        """
        self._factory = factory
        self._make_room = make_room
        self._go_on()

    def left(self) -> None:
        """A connection was lost."""
        self.open -= 1
        if not self.open:
            self.all_left.set()
        if not self._accepting:
            self._go_on()

    async def close(self) -> None:
        """Listen no more."""
        self._pause()
        if self._resting is not None:
            self._resting.cancel()
        factory, self._factory = self._factory, None
        self._limit = sys.maxsize
        for path, inode in self._paths:
            # First: who finds the file must find somebody behind it.
            _unlink(path, inode)
        for listening in self._sockets:
            if factory is not None:
                self._take_in(listening, factory, BACKLOG)
            listening.close()
        self._sockets.clear()
        while self._connecting:
            await asyncio.wait(self._connecting)

    def _bound_path(self, path: str) -> socket.socket:
        if os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode):
            # The one of a process that is gone, or that is about to go.
            os.unlink(path)
        listening = socket.socket(socket.AF_UNIX)
        try:
            listening.bind(path)
            listening.listen(BACKLOG)
            self._paths.append((path, os.stat(path).st_ino))
        except BaseException:
            listening.close()
            raise
        return listening

    def _go_on(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None
        factory = self._factory
        if factory is None:
            return
        self._accepting = True
        for listening in self._sockets:
            self._loop.add_reader(listening.fileno(), self._take_in, listening, factory, TURN)

    def _pause(self) -> None:
        self._accepting = False
        for listening in self._sockets:
            self._loop.remove_reader(listening.fileno())

    def _take_in(self, listening: socket.socket, factory: Callable[[], asyncio.Protocol], most: int) -> None:
        for _ in range(most):
            if self.open >= self._limit:
                self._rest(f"{self.open} connections are open, as many as there may be; further ones wait")
                if self._make_room is not None:
                    self._make_room()
                return
            try:
                accepted, _ = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _LEFT_ALREADY:
                    continue
                self._rest(f"connections have to wait: {error.strerror}")
                return
            accepted.setblocking(False)
            self.open += 1
            self.all_left.clear()
            task = self._loop.create_task(self._connect(accepted, factory))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    def _rest(self, trouble: str) -> None:
        """Accept nobody until somebody leaves, or for a moment. It is logged once a minute."""
        self._pause()
        if self._resting is None and self._factory is not None:
            self._resting = self._loop.call_later(REST_SECONDS, self._go_on)
        now = self._loop.time()
        if now >= self._quiet_until:
            self._quiet_until = now + QUIET_SECONDS
            logger.warning("%s", trouble)

    async def _connect(self, accepted: socket.socket, factory: Callable[[], asyncio.Protocol]) -> None:
        try:
            await self._loop.connect_accepted_socket(factory, accepted)
        except BaseException:
            accepted.close()
            self.left()
            raise


def _name(address: str | bytes | tuple[str, int]) -> str:
    """A socket's address as the config writes it; an abstract one with ``@``, as systemd does."""
    if isinstance(address, bytes):
        return "unix:@" + address[1:].decode(errors="backslashreplace")
    if isinstance(address, str):
        return f"unix:{address}"
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _unlink(path: str, inode: int) -> None:
    """Remove our socket's file, unless a successor has put its own there."""
    try:
        if os.stat(path).st_ino == inode:
            os.unlink(path)
    except FileNotFoundError:
        return
