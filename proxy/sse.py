"""Server-sent events, seen from outside: where one ends, and which is the last.

Facts
  - A line ends with LF, CR LF or CR; an event ends with an empty line (WHATWG HTML, section 9.2.6).
  - A transport chunk may hold half an event or ten of them; only the bytes tell.
  - A message stream ends with ``message_stop``, a 2023-01-01 completion stream with ``[DONE]``.

Rules
  1. Nothing is parsed but the last bytes of what passed. `Boundary.feed` is on the hot path.
  2. ``CR LF CR`` is no boundary: the LF that follows belongs to it, and line readers split there.

Not here: writing (`relay` decides when), what a ping is and how an error looks (`formats`).
"""

from __future__ import annotations

import re

ENDS = (b"\n\n", b"\r\r", b"\n\r\n", b"\r\r\n")

TAIL = 512
"""Bytes kept of small chunks: enough to hold the last event of a finished stream."""

MAX_TAIL = 4096
"""Bytes kept of a large one; to keep it costs no copy up to here."""

_FINISHED = re.compile(
    rb"[\r\n](event:[ ]?message_stop|data:[ ]?\[DONE\]|data:[ ]?\{\s*\"type\":\s*\"message_stop\")"
)

_EVENT_END = re.compile(rb"\r\n\r\n|\n\r\n|\n\n|\r\r(?!\n)|\r\r\n")

_COMMENTS = re.compile(rb"(?>(?:(?::[^\r\n]*+|)[\r\n]++)*)")
"""Comments and empty lines."""


class Boundary:
    """Whether a stream stands between two events. A fresh stream does."""

    __slots__ = ("tail",)

    def __init__(self) -> None:
        self.tail = b"\n\n"

    def feed(self, chunk: bytes) -> None:
        """Take note of bytes that passed, in any chunking."""
        self.tail = chunk[-MAX_TAIL:] if len(chunk) >= TAIL else (self.tail + chunk)[-TAIL:]

    @property
    def between(self) -> bool:
        """True when the bytes so far end with an empty line."""
        return self.tail.endswith(ENDS)

    @property
    def finished(self) -> bool:
        """True when the last event was the stream's own end, after which a ping has no place."""
        return _FINISHED.search(self.tail) is not None


def first_event(data: bytes) -> bytes | None:
    """The first event of `data` with what stands before it, or None while it is not whole.

    Comments are no event (WHATWG HTML, section 9.2.6): some providers send them while they wait.
    """
    comments = _COMMENTS.match(data)
    end = _EVENT_END.search(data, comments.end() if comments else 0)
    return data[: end.end()] if end else None
