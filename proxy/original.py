"""The request as it came, and what each target gets of it.

Facts
  - The model stands in the JSON body, in a field of a form, or in the path; a body may name the path's again.

Rules
  1. The bytes are the client's own; what differs between targets is the model's name, and nothing else.
  2. Every target's request is made from what came, never from another target's.

Not here: how it came (`incoming`), where in a body the names stand (`body`, `form`, `inner`), its fields
(`headers`).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from urllib.parse import quote, unquote_to_bytes

from . import headers
from .body import Scan, splice, spliced
from .formats import FORMATS
from .routes import Kind, Route
from .sending import SEND_BYTES, Body

_SLASH = re.compile(rb"/|%2[fF]")


class Original:
    """The request as it came. At most one of `body` and `upload` is set."""

    __slots__ = (
        *("about_to_send", "body", "fallbacks", "format", "held", "identity", "lasting", "length", "method"),
        *("model", "once", "outgoing", "again", "path", "place", "plain", "scan", "span", "upload"),
    )

    def __init__(self, method: str, route: Route, outgoing: headers.Outgoing) -> None:
        self.method = method
        self.format = FORMATS[route.wire_format]
        self.path = route.path
        self.span = route.span
        """Where in `path` a model is named, if it is."""
        self.place = route.place
        self.lasting = route.lasting
        self.again = self.format.inner_model.get(route.operation, ())
        """Where in `body` the path's model is named again."""
        self.outgoing = outgoing
        self.model = route.model if route.span[1] else ""
        """The model that is asked for; empty when none is named."""
        self.fallbacks: tuple[str, ...] = ()
        self.identity = route.kind is Kind.BATCH or route.stream
        """Whether the answer must come uncompressed."""
        self.length: int | None = None
        """The declared length of the body, in bytes."""
        self.body: bytes | None = None
        self.scan: Scan | None = None
        """What was found in `body`, or in `held`; see `plain`."""
        self.plain = True
        """Whether `body` can be rewritten: it has no content coding."""
        self.held = b""
        """The beginning of a form whose rest is `upload`."""
        self.upload: AsyncGenerator[bytes, None] | None = None
        self.once = False
        """Whether it is asked of one target with one key, and never again."""
        self.about_to_send: Callable[[], Awaitable[None]] | None = None
        """Awaited before it is written to an upstream connection."""

    def target_path(self, model: str) -> bytes:
        """The path for a target with this model; percent-encoding stays where the name stays."""
        begin, end = self.span
        if not end or not model or model == self.model:
            return self.path
        rest = _SLASH.split(self.path[begin:end], maxsplit=1)[-1]
        if unquote_to_bytes(rest) != model.encode("utf-8", "surrogatepass"):
            rest = quote(model, safe=self.format.safe, errors="surrogatepass").encode()
        return self.path[:begin] + rest + self.path[end:]

    def rewritten(self, model: str) -> bool:
        """Whether a target with this model gets another body than the one that came."""
        scan = self.scan
        if scan is None:
            return False
        renamed = self._named(scan, model) != scan.model or bool(scan.again and self._again(model))
        return renamed or bool(scan.fallbacks_cut)

    def sent(self, model: str) -> tuple[Body, int | None]:
        """What a target with this model gets, and its length in bytes; None: chunked, or no body.

        In parts where a copy would be large.
        """
        body, scan = self.body, self.scan
        if body is not None:
            if scan is None or not self.plain:
                return body, len(body)
            named, again = self._named(scan, model), self._again(model)
            if len(body) <= SEND_BYTES:
                body = splice(body, scan, named, again)
                return body, len(body)
            parts = spliced(body, scan, named, again)
            return parts, sum(map(len, parts))
        upload = self.upload
        if upload is None or scan is None:
            return upload, self.length
        begun = b"".join(spliced(self.held, scan, self._named(scan, model)))
        length = None if self.length is None else self.length + len(begun) - len(self.held)
        return _after(begun, upload), length

    def _named(self, scan: Scan, model: str) -> str:
        """What the body must name, if it names anything, for a target with this model."""
        if not self.span[1]:
            return model
        again = self.format.body_model
        if again is None or model == self.model or scan.model != again + self.model:
            return scan.model
        return again + model

    def _again(self, model: str) -> str:
        """What the parts of the body must name for a target with this model; empty: what they do."""
        return (self.format.body_model or "") + model if model and model != self.model else ""


async def _after(begun: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with contextlib.aclosing(rest):
        yield begun
        async for part in rest:
            yield part
