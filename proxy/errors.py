"""Errors of ours: the one exception type of the path.

Facts
  - SDKs choose the exception class by status, and read ``error.type`` for mid-stream errors,
    where the status is already 200.

Rules
  1. Inside the path only `ProxyError` travels; foreign exceptions are mapped where they arise.
  2. An error knows the status for the client, who caused it, and whether a retry is allowed.
  3. A message says what is wrong and what to do about it. It never holds a secret or an
     exception's text, because exception texts hold URLs, header lines and keys.

Not here: how they look on the wire (`formats`); upstream's own error answers, which are relayed untouched and
never become a `ProxyError`.
"""

from __future__ import annotations

import enum
import errno
import traceback

EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""What an OSError says when this machine is out of descriptors or memory: nobody else's fault."""

RETRY_SOON = (b"retry-after", b"1")
"""A field of a 503 that will have passed in a moment."""


def frames(failure: BaseException) -> str:
    """An exception that nobody expected, for the log. Frames only: its text may hold what a client sent."""
    return f"{type(failure).__name__}\n{''.join(traceback.format_tb(failure.__traceback__))}"


class Source(enum.Enum):
    """Who caused an error; the first letter of the ending in the access log."""

    DOWNSTREAM = "D"
    UPSTREAM = "U"
    PROXY = "P"


class ProxyError(Exception):
    """What went wrong on the path, as much as the client may know.

    `event` names the failure for the plan's fallback table and the attempt header: ``connect``,
    ``reset``, ``timeout``, ``protocol``, ``stream_error``; it is empty when no retry may follow.
    `reused` says that the connection came from the pool, so that upstream most likely never saw
    the request. `offset` is the byte of the request body at fault. `headers` go out with the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        source: Source = Source.PROXY,
        event: str = "",
        reused: bool = False,
        offset: int | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.source = source
        self.event = event
        self.reused = reused
        self.offset = offset
        self.headers = headers
