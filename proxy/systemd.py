"""What systemd hands over, and what it is told.

Facts
  - Sockets come as file descriptors from 3 on; ``LISTEN_FDS`` counts them, and ``LISTEN_PID`` names the
    process they are meant for (sd_listen_fds(3)).
  - Messages are datagrams of ``NAME=value`` lines to the socket in ``NOTIFY_SOCKET``, whose name begins
    with ``@`` where it is an abstract one (sd_notify(3)).
  - A process with ``WATCHDOG_USEC`` is killed when it does not say ``WATCHDOG=1`` so often;
    ``WATCHDOG_PID`` names the process that is meant (sd_watchdog_enabled(3)).

Rules
  1. Where there is no systemd nothing is said, and nothing is missing.
  2. The watchdog is fed from the event loop: a loop that is blocked starves it.

The protocol is a handful of lines. Its libraries on PyPI bring a C extension, or had their last release
in 2017.

Not here: listening on sockets (`listener`), when what is said (`__main__`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping

logger = logging.getLogger(__name__)

FIRST = 3

FEEDS = 3
"""The watchdog is fed so many times in its period."""


def passed_sockets(environ: Mapping[str, str]) -> list[socket.socket]:
    """The listening sockets that this process was given; none when it was not started by a socket unit."""
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(environ.get("LISTEN_FDS", "0"))
    return [socket.socket(fileno=FIRST + number) for number in range(count)]


class Supervisor:
    """systemd as the one who watches over this process, if it does."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if address else None
        if self._socket is not None:
            self._socket.setblocking(False)
        meant = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._watchdog_seconds = int(environ.get("WATCHDOG_USEC", "0")) / 1e6 if meant else 0.0
        self._timer: asyncio.TimerHandle | None = None

    def ready(self, status: str) -> None:
        """The service is up, or has reloaded. `status` is for ``systemctl status``."""
        self._tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """A reload begins; `ready` ends it."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=reloading")

    def stopping(self, status: str, seconds: float) -> None:
        """The service goes down, and may take so long, whatever its unit's ``TimeoutStopSec`` says."""
        self._tell("STOPPING=1", f"STATUS={status}", f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def watch(self, status: Callable[[], str]) -> None:
        """Feed the watchdog from now on, and tell it the status."""
        if not self._watchdog_seconds:
            return
        self._tell("WATCHDOG=1", f"STATUS={status()}")
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._watchdog_seconds / FEEDS, self.watch, status)

    def close(self) -> None:
        """Say nothing more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def _tell(self, *lines: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            logger.warning("systemd cannot be told %s: %s", lines[0], error.strerror)
