"""What downstream sends: is it a request we take, and its body, held or streamed.

Facts
  - aiohttp takes HTTP/0.9 and HTTP/2.0 request lines and codings like ``gzip, chunked``. The next hop
    may read such a request as another one (RFC 9112 section 6.1), so they are refused here.
  - aiohttp has no limit on a body's size where it is read as here.
  - A client that sent ``Expect: 100-continue`` waits before it sends the body (RFC 9110 section 10.1.1).

Rules
  1. Held are a model route's body, of a form what comes before its model, and what has to be signed, up to
     ``max_body_bytes``. Every other body is passed on as it arrives, with backpressure.
  2. ``100 Continue`` is sent when the body is wanted, after all checks that need no body.
  3. The bytes are the client's own from here to the provider.

Not here: what the body says (`body`, `form`, `scanner`), how long it may take (`arrival`), what is sent of it
(`original`), who may send it (`holders`).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncGenerator
from urllib.parse import unquote_to_bytes

from aiohttp import hdrs, web

from . import coding, headers
from .arrival import HELD_SHARE, Arrival
from .bodies import Bodies
from .body import Scan
from .config import Config
from .errors import ProxyError, Source
from .exchange import Exchange, Phase
from .form import Search
from .formats import Place
from .headers import VIRTUAL_KEY_PREFIX
from .original import Original
from .routes import Kind, Route
from .scanner import Scanner

LARGE_BYTES = 1048576
"""A body above this size is put together in a thread."""

_FORM = re.compile(r"(?i)multipart/")

_HOST = re.compile(r"(?:[A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
"""RFC 9110 section 7.2, and no name that is not one of DNS or an address."""

_MOST_DIGITS = 19
"""A length with more digits is more than any reader's integers hold."""


async def _looked_at(arrival: Arrival, search: Search) -> AsyncGenerator[bytes, None]:
    """The rest of a form; one that names a second model never comes to its end."""
    async with contextlib.aclosing(arrival.rest()) as rest:
        async for part in rest:
            search.feed(part)
            yield part
    search.end()


def check(request: web.BaseRequest, target: bytes) -> None:
    """Refuse what is not a plain HTTP/1.1 or 1.0 request. Raises `ProxyError` 400, 417, 501, 505.

    `target` is the request's, without the credentials that may stand in it.
    """
    fields = request.headers
    lower = target.lower()
    if VIRTUAL_KEY_PREFIX in lower or (b"%" in lower and VIRTUAL_KEY_PREFIX in unquote_to_bytes(lower)):
        # It would go upstream, and into the logs of whoever stands in front of us.
        raise _bad(400, "A virtual key belongs in a header field, not in the request target.")
    if request.version not in ((1, 0), (1, 1)):
        raise _bad(505, "Only HTTP/1.1 and HTTP/1.0 are spoken here.")
    if not _HOST.fullmatch(fields.get(hdrs.HOST, "")):
        raise _bad(400, "The Host field is not a host, with or without a port.")
    codings = fields.getall(hdrs.TRANSFER_ENCODING, ())
    if codings and (len(codings) > 1 or codings[0].strip().lower() != "chunked"):
        raise _bad(501, "The only transfer coding spoken here is chunked.")
    if codings and request.version < (1, 1):
        raise _bad(400, "HTTP/1.0 has no transfer codings.")
    declared = fields.get(hdrs.CONTENT_LENGTH, "")
    if len(declared) > _MOST_DIGITS and len(declared.lstrip("0")) > _MOST_DIGITS:
        # Before it has a route: behind what is refused so early the connection carries nothing.
        raise _bad(400, "The Content-Length is beyond all bounds.")
    if hdrs.EXPECT in fields and any(
        expected.lower() != "100-continue" for expected in fields.getall(hdrs.EXPECT)
    ):
        raise _bad(417, "The only expectation known here is 100-continue.")


class Intake:
    """Takes requests in. One per server."""

    def __init__(self, scanner: Scanner, bodies: Bodies) -> None:
        self._scanner = scanner
        self._bodies = bodies

    async def read(
        self,
        request: web.BaseRequest,
        route: Route,
        outgoing: headers.Outgoing,
        exchange: Exchange,
        config: Config,
    ) -> Original:
        """The request as it came; on a model route with its body, scanned.

        Raises `ProxyError`: 400 for a body that breaks the rules, 408, 413, 415, 503.
        """
        if request.version < (1, 1) and request.get_extra_info("socket").family == socket.AF_UNIX:
            # Without chunks only a reset tells a cut answer from a whole one, and a unix socket has none.
            raise _bad(505, "Over a unix socket only HTTP/1.1 is spoken; in nginx: proxy_http_version 1.1.")
        original = Original(request.method, route, outgoing)
        original.identity = original.identity or "text/event-stream" in request.headers.get(hdrs.ACCEPT, "")
        original.length = _length(request)
        exchange.stream = route.stream
        codings = ""
        if hdrs.CONTENT_ENCODING in request.headers:
            codings = ", ".join(request.headers.getall(hdrs.CONTENT_ENCODING))
        if route.kind is Kind.MODEL and route.place is Place.FORM and _FORM.match(request.content_type):
            if not _is_plain(codings):
                raise _bad(415, "A compressed form cannot be looked into; send it uncompressed.")
            await self._search(request, original, exchange, config)
        elif route.kind is Kind.MODEL and route.place is Place.FORM and not _is_json(outgoing):
            raise _bad(415, "This takes multipart/form-data, or JSON.")
        elif route.kind is Kind.MODEL:
            body = await self.held(request, exchange, config, config.max_body_bytes)
            await self.scan(original, body, codings, exchange, config)
        elif route.kind is Kind.HELD:
            original.body = await self.held(request, exchange, config, config.max_body_bytes)
        elif request.body_exists:
            original.upload = _upload(request, exchange, config)
        return original

    async def scan(
        self, original: Original, body: bytes, codings: str, exchange: Exchange, config: Config
    ) -> None:
        """Take `body`, which is held, as the one of `original`. Raises `ProxyError` 400, 413, 415, 503."""
        exchange.phase = Phase.PLAN
        original.body = plain = body
        if original.place is Place.PATH and not _is_json(original.outgoing):
            # The model's own business: its path says all that matters here.
            self._asked(original, None, exchange)
            return
        original.plain = _is_plain(codings)
        if not original.plain:
            plain = await self._scanner.decode(coding.decoded, body, codings, config.max_body_bytes)
            # Small bodies can become large ones, and then wait for the scanner in numbers.
            self._bodies.hold(exchange, len(plain))
        try:
            scanned = await self._scanner.scan(plain, named=original.place is Place.BODY)
            if original.again and _may_change(original, scanned, config):
                name = f"{original.format.body_model}{original.model}"
                spans = await self._scanner.named(plain, original.again, name)
                scanned = scanned._replace(again=tuple(spans))
        finally:
            if not original.plain:
                self._bodies.let_go(exchange, len(plain))
        self._asked(original, scanned, exchange)

    def _asked(self, original: Original, scanned: Scan | None, exchange: Exchange) -> None:
        """Take note of what `original` asks for."""
        asked = original.outgoing.fallbacks
        if asked:
            try:
                original.fallbacks = tuple(name.decode() for name in asked)
            except UnicodeDecodeError:
                raise _bad(400, "x-bf-fallbacks is not UTF-8.") from None
        if scanned is not None:
            original.scan = scanned
            original.fallbacks = scanned.fallbacks + original.fallbacks
            if not original.span[1]:
                original.model = scanned.model
            exchange.stream = exchange.stream or scanned.stream
        exchange.model = original.model
        original.identity = original.identity or exchange.stream

    async def _search(
        self, request: web.BaseRequest, original: Original, exchange: Exchange, config: Config
    ) -> None:
        """Hold a form until its model is known. Raises `ProxyError` 400, 408, 413, 503."""
        types = [value for name, value in request.raw_headers if _is_content_type(name)]
        if len(types) != 1:
            # Another reader may take the other one, and with it another boundary.
            raise _bad(400, "The Content-Type comes a second time; send it once.")
        search = Search(types[0])
        original.identity = True  # Whether it is to be a stream may be said behind the model.
        limit = config.max_body_bytes
        await _continue(request)
        parts = []
        arrival = Arrival(request, exchange, config, share=HELD_SHARE)
        ended = False
        # What may have to be sent twice is held: what has fallbacks, and what is small.
        small = original.length is not None and original.length <= min(LARGE_BYTES, limit)
        whole = small or bool(original.outgoing.fallbacks)
        while not ended and (whole or search.span is None):
            part = await arrival.part()
            if exchange.bytes_in > limit:
                if search.span is not None:
                    raise _too_large(limit)
                raise _bad(413, f"The form does not name its model within {limit} bytes; send `model` first.")
            self._bodies.hold(exchange, len(part))
            parts.append(part)
            ended = not part
            search.end() if ended else search.feed(part)
        exchange.phase = Phase.PLAN
        held = (
            await asyncio.to_thread(b"".join, parts) if exchange.bytes_in > LARGE_BYTES else b"".join(parts)
        )
        if ended:
            original.body = held
        else:
            original.held, original.upload = held, _looked_at(arrival, search)
        span = search.span
        scanned = Scan(search.model, span or (0, 0), (), None, search.stream, is_json=False)
        self._asked(original, scanned, exchange)

    async def skip(self, request: web.BaseRequest, exchange: Exchange, config: Config) -> None:
        """Read the body to its end and keep nothing of it. Raises `ProxyError` 400, 408, 413."""
        if not request.body_exists:
            return
        async for _ in _upload(request, exchange, config):
            if exchange.bytes_in > config.max_body_bytes:
                raise _too_large(config.max_body_bytes)

    async def held(self, request: web.BaseRequest, exchange: Exchange, config: Config, limit: int) -> bytes:
        """The body, whole. Raises `ProxyError` 400, 408, 413, 503."""
        length = _length(request) or 0
        if length > limit:
            raise _too_large(limit)
        content = request.content
        if content.is_eof() and content.exception() is None:
            # It came with its head: no wait, no timer.
            body = content.read_nowait()
            exchange.bytes_in = len(body)
            if len(body) > limit:
                raise _too_large(limit)
            self._bodies.hold(exchange, len(body))
            return body
        self._bodies.expect(length)
        await _continue(request)
        parts = []
        arrival = Arrival(request, exchange, config, share=HELD_SHARE)
        while part := await arrival.part():
            if exchange.bytes_in > limit:
                raise _too_large(limit)
            self._bodies.hold(exchange, len(part))
            parts.append(part)
        if exchange.bytes_in > LARGE_BYTES:
            # Python lets others run while it joins so much, but only in another thread.
            return await asyncio.to_thread(b"".join, parts)
        return parts[0] if len(parts) == 1 else b"".join(parts)


async def _upload(
    request: web.BaseRequest, exchange: Exchange, config: Config
) -> AsyncGenerator[bytes, None]:
    await _continue(request)
    async for part in Arrival(request, exchange, config).rest():
        yield part


def _is_plain(codings: str) -> bool:
    return codings.strip().lower() in ("identity", "")


def _may_change(original: Original, scanned: Scan, config: Config) -> bool:
    """Whether a target may have another model than the one that the path names."""
    provider, slash, _ = original.model.partition("/")
    renamed = original.model in config.models or (slash and provider in config.providers)
    return bool(renamed or scanned.fallbacks or original.outgoing.fallbacks)


def _is_content_type(name: bytes) -> bool:
    return name.lower().replace(b"_", b"-") == b"content-type"


def _is_json(outgoing: headers.Outgoing) -> bool:
    """Whether the body may be JSON, as far as its type tells."""
    declared = outgoing.get(b"content-type")
    return declared is None or b"json" in declared.lower()


def _length(request: web.BaseRequest) -> int | None:
    """The declared length of the body, in bytes."""
    declared = request.headers.get(hdrs.CONTENT_LENGTH)
    # Python reads no more than 4300 digits, and leading zeros are digits.
    return int(declared[-_MOST_DIGITS:]) if declared is not None else None


async def _continue(request: web.BaseRequest) -> None:
    if hdrs.EXPECT in request.headers and request.version >= (1, 1):
        # Written here and not by `reply`: it is no part of the reply, which may still be anything.
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def _too_large(limit: int) -> ProxyError:
    return _bad(413, f"The request body is larger than {limit} bytes; send less, or raise max_body_bytes.")


def _bad(status: int, message: str) -> ProxyError:
    return ProxyError(status, message, source=Source.DOWNSTREAM)
