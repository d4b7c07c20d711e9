"""Answers that name the provider's host: those about batches are held, and changed; others in a field only.

Facts
  - SDKs fetch a batch's results from its ``results_url``, and send their key there.

Rules
  1. The answer is held whole, up to ``max_body_bytes``, and counted among the held bodies.
  2. What replaces the provider's origin is the one under which this client reaches the proxy.

Not here: which bytes are replaced (`results`).
"""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from . import headers, inbound, results
from .attempt import Served
from .config import Config
from .errors import ProxyError, Source
from .reply import Reply


async def relay(
    served: Served,
    head: inbound.Head,
    reply: Reply,
    request: web.BaseRequest,
    config: Config,
    prefix: bytes,
    hold: Callable[[int], None],
) -> None:
    """Relay a batch answer below `prefix`; `hold` is told of its bytes as they come.

    Raises `ProxyError`: 400 without a Host, 502 for an answer that is compressed or too large.
    """
    answer = served.answer
    if answer.fields.get(b"content-encoding") is not None:
        raise ProxyError(502, "The provider compressed a batch answer unasked.", source=Source.UPSTREAM)
    body = served.held + await answer.body(config.max_body_bytes, hold)
    body = results.localized(body, _own_origin(config, request) + prefix)
    head.set_length(len(body))
    reply.begin(answer.status, answer.reason, head, body)
    # A list of batches can be megabytes, and its reader slow.
    await reply.drain(last=True)
    reply.end()


def relocate(
    head: inbound.Head, names: tuple[bytes, ...], request: web.BaseRequest, config: Config, prefix: bytes
) -> None:
    """Have the fields with these names lead to the proxy, below `prefix`; clients send no key there.

    So not where virtual keys are required; and without a Host nobody knows where the proxy is.
    """
    known = config.public_url or headers.get(request.raw_headers, b"host")
    if known and not config.require_virtual_key and head.names(names):
        head.relocate(names, _own_origin(config, request) + prefix)


def _own_origin(config: Config, request: web.BaseRequest) -> bytes:
    """The origin under which this client reaches the proxy."""
    if config.public_url:
        return config.public_url.encode()
    fields = request.raw_headers
    secure = headers.get(fields, b"x-forwarded-proto") == b"https" or request.secure
    host = headers.get(fields, b"host") or b""
    if not host:
        raise ProxyError(
            400, "The Host header names no host, so results_url cannot.", source=Source.DOWNSTREAM
        )
    return (b"https://" if secure else b"http://") + host
