"""One request's record: written along the path, read once at its end.

Facts
  - The ending has two letters, as in HAProxy's log: who ended it, and in which phase. A lower-case
    first letter means that a timer of ours ran out waiting for that side.

    ====== ============================  ====== ==========================================
    first  who                           second  phase
    ====== ============================  ====== ==========================================
    ``-``  nobody: it is complete        ``R``  reading the request
    ``D``  downstream left or sent bad   ``P``  planning: routes, keys, body rules
    ``U``  upstream failed or cut        ``C``  connecting upstream
    ``P``  this proxy                    ``H``  waiting for upstream's head
    ..                                   ``D``  relaying the answer
    ====== ============================  ====== ==========================================

Rules
  1. No secret is ever put in here: of headers, query and body only the model's name and upstream's
     request id.
  2. The first ending stays: what follows it is a consequence.

Not here: how it is printed (`accesslog`) or counted (`metrics`).
"""

from __future__ import annotations

import enum
from typing import Protocol

from .errors import ProxyError, Source
from .formats import ANTHROPIC, FORMATS, Format
from .plan import Target
from .routes import Route, wire_format_of
from .usage import Usage


class Phase(enum.Enum):
    """Where on the path a request is; the second letter of the ending."""

    READ = "R"
    PLAN = "P"
    CONNECT = "C"
    HEAD = "H"
    DATA = "D"


class Lease(Protocol):
    """What a request of a virtual key has reserved, and what it is charged to."""

    def begin_attempt(self, provider: str) -> None: ...

    def charge(self) -> None: ...


class Exchange:
    """All that is known of one request. Times are in seconds of the loop's clock."""

    route: Route | None = None
    phase = Phase.READ
    ending = ""
    error = ""
    """Our own message, when an answer or an abort was ours."""
    status = 0
    """What went downstream; 0 when no head did."""
    model = ""
    """As the client named it."""
    stream = False
    target: Target | None = None
    """Who serves, or tried last."""
    virtual_key = ""
    """The name of the virtual key; its value is nowhere here."""
    key = ""
    """The name of the provider key that was used last."""
    job = ""
    """The id of the job that it makes, asks for, or is."""
    lease: Lease | None = None
    cost = 0
    """In pico-dollars, once the exchange is over."""
    tried = 0
    """Attempts that were made; those skipped are not."""
    upstream_id = ""
    bytes_in = 0
    held = 0
    """Bytes of bodies that `bodies` counts for it now."""
    bytes_out = 0
    head_at = 0.0
    first_at = 0.0
    ended = 0.0
    pings = 0
    committed = False
    """A response head went downstream: nothing is retried any more."""

    def __init__(self, request_id: str, method: str, path: str, started: float, at: float) -> None:
        self.request_id = request_id
        self.method = method
        self.path = path
        """Without the query, which may hold a key."""
        self.started = started
        self.at = at
        """Wall-clock time of the start, seconds since the epoch."""
        self.attempts: list[tuple[str, str]] = []
        """Target and outcome of each attempt: a status, an event, or why it was skipped."""
        self.usage = Usage(ANTHROPIC.usage)
        self.tokens: dict[str, int] = {}
        """What `usage` counted, once the exchange is over."""

    @property
    def format(self) -> Format:
        """The wire format in which it is answered."""
        return FORMATS[self.route.wire_format if self.route is not None else wire_format_of(self.path)]

    def take(self, route: Route) -> None:
        """It goes this way."""
        self.route = route
        shape = FORMATS[route.wire_format].usage
        if shape is not self.usage.shape:
            self.usage = Usage(shape)

    def begin_attempt(self, target: Target) -> None:
        """Another attempt; what an earlier one used up is charged, and no more is heard of it."""
        self.target = target
        if self.tried:
            self.usage = self.usage.anew()
            self.tokens, self.cost = {}, 0
        self.tried += 1
        if self.lease is not None:
            self.lease.begin_attempt(target.provider.name)

    def finish(self, who: str, phase: Phase | None = None) -> None:
        """Set the ending, unless one is set."""
        if not self.ending:
            self.ending = who + (phase or self.phase).value

    def finish_whole(self) -> None:
        """The reply is complete; that it is an error of ours may have been said before."""
        self.ending = self.ending or "--"

    def fail(self, error: ProxyError) -> None:
        """Set the ending that `error` means."""
        who = error.source.value
        timed_out = error.event == "timeout" or error.status in (408, 504)
        phase = Phase.CONNECT if error.event == "connect" else None
        self.finish(who.lower() if timed_out and error.source is not Source.PROXY else who, phase)
        if not self.error:
            self.error = error.message
