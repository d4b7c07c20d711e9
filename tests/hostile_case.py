"""What a hostile case is: bytes that a client sends, what it gets for them, and what goes upstream.

Facts
  - `MODEL` begins a request to a route whose body is held and looked into, `UPLOAD` one to a route whose
    body streams through. `BODY` is a body that both take.

Not here: the cases (``hostile_*``), and how one is played (`test_hostile_downstream`).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from rawclient import Headers


class Do(enum.Enum):
    """What a client does instead of sending bytes."""

    FIN = enum.auto()
    RESET = enum.auto()
    AWAIT_100 = enum.auto()
    """Waits for ``100 Continue``."""
    AWAIT_ANSWER = enum.auto()
    """Waits for a 200."""
    AWAIT_READ = enum.auto()
    """Lets the proxy read what was sent, and begin with it."""


Step = bytes | Do


@dataclass(frozen=True)
class Sent:
    """One request as upstream must get it.

    `fields` are its header fields in order, without ``Host``, which is upstream's own, and without the
    framing. `body` None means that it has none; else it has a ``Content-Length``, or is `chunked`.
    """

    method: str
    target: bytes
    fields: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes | None = None
    chunked: bool = False

    def head(self, host: bytes) -> bytes:
        """The head, byte for byte."""
        framing: Headers = []
        if self.chunked:
            framing = [(b"Transfer-Encoding", b"chunked")]
        elif self.body is not None:
            framing = [(b"Content-Length", b"%d" % len(self.body))]
        fields = [(b"Host", host), *self.fields, *framing]
        lines = [self.method.encode() + b" " + self.target + b" HTTP/1.1", *map(b": ".join, fields)]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    @property
    def echo(self) -> bytes:
        """The body of the answer, in which upstream says what it got."""
        return self.method.encode() + b" " + self.target + b"\n" + (self.body or b"")


@dataclass(frozen=True)
class Case:
    """`steps` are played on one connection; `statuses` are the final answers to them, in order.

    A 200 is upstream's, to the next request of `upstream`; every other answer is the proxy's own.
    """

    steps: tuple[Step, ...]
    statuses: tuple[int, ...]
    upstream: tuple[Sent, ...] = ()
    """What arrives upstream whole, in this order."""
    begun: Sent | None = None
    """What may begin to arrive upstream behind that, and is broken off before its end."""
    goes_on: bool | None = False
    """Whether the connection carries further requests; if not it is closed. None: as the answer says."""
    in_pieces: tuple[int, ...] | None = None
    """`statuses` where the same bytes come in pieces, if they differ; so do then the 200s of `upstream`."""
    continues: int = 0
    """How many ``100 Continue`` there may be before the first final answer."""
    logged: tuple[int, ...] | None = None
    """The statuses in the access log, where they are not those of the answers."""
    hides: bool = False
    """Whether a good request is sent in one with the last bytes, where it must never be served."""
    lingers: bool = False
    """The rest of what was declared may still come, so the connection only closes after the client's FIN."""
    own_key: bool = False
    """Whether the provider has a key of its own, `OWN_KEY`."""
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Of the config file."""


END = b"\r\n\r\n"
VERSION = b" HTTP/1.1\r\nHost: h\r\n"
MODEL = b"POST /anthropic/v1/messages" + VERSION
UPLOAD = b"POST /anthropic/v1/files" + VERSION
GET = b"GET /anthropic/v1/models" + VERSION
BODY = b'{"model":"m"}'
CHUNKED_BODY = b"d\r\n" + BODY + b"\r\n0\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
SIZED = b"Content-Length: 13\r\n\r\n"
OWN_KEY = (b"x-api-key", b"sk-test-main")


def refused(*steps: Step, status: int = 400, **more: Any) -> Case:
    """One answer of the proxy's and a closed connection; upstream hears nothing."""
    hides = more.pop("hides", "lingers" not in more and "goes_on" not in more)
    return Case(steps, (status,), hides=hides, **more)


def relayed(
    *steps: Step, upstream: Sent | tuple[Sent, ...], goes_on: bool | None = True, **more: Any
) -> Case:
    """Every request is answered by upstream; the connection goes on unless the case says otherwise."""
    sent = (upstream,) if isinstance(upstream, Sent) else upstream
    return Case(steps, (200,) * len(sent), sent, goes_on=goes_on, **more)


def model(*fields: tuple[bytes, bytes], body: bytes = BODY) -> Sent:
    """The request to the model route as upstream gets it."""
    return Sent("POST", b"/v1/messages", fields, body)


def upload(*fields: tuple[bytes, bytes], body: bytes | None = BODY, chunked: bool = False) -> Sent:
    """The request to the streaming route as upstream gets it."""
    return Sent("POST", b"/v1/files", fields, body, chunked)


def got(*fields: tuple[bytes, bytes], target: bytes = b"/v1/models") -> Sent:
    """The GET as upstream gets it."""
    return Sent("GET", target, fields)
