"""What systemd hands over.

Facts
  - Sockets come as file descriptors from 3 on; ``LISTEN_FDS`` counts them, and ``LISTEN_PID`` names the
    process they are meant for (sd_listen_fds(3)).

Not here: listening on them (`server`).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

FIRST = 3


def passed_sockets(environ: Mapping[str, str]) -> list[socket.socket]:
    """The listening sockets that this process was given; none when it was not started by a socket unit."""
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(environ.get("LISTEN_FDS", "0"))
    return [socket.socket(fileno=FIRST + number) for number in range(count)]
