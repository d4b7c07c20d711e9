"""The relay: an upstream answer goes downstream, chunk by chunk, to its end or to a reset; or our error does.

Facts
  - A client that sees a stream end cleanly takes it for whole, whatever is missing.

Rules
  1. A chunk goes out when it comes in, as it came, without a turn of the loop in between.
  2. A cut answer is reset, after an ``error`` event where the stream stands between events.
  3. Nothing here retries.

Not here: how bytes are framed (`reply`), when a ping is due (`pulse`), which fields pass (`headers`).
"""

from __future__ import annotations

import asyncio
import contextlib

from . import headers, inbound
from .answer import Answer
from .attempt import Served
from .errors import ProxyError, Source
from .exchange import Exchange
from .reply import Reply

MAX_ERROR_BYTES = 65536
"""An upstream error that becomes an event is read up to this size."""

CUT_SECONDS = 5
"""How long the end of a cut reply may take to leave; a reset throws away what has not."""

_EARLY_HEAD = (
    (b"Content-Type", b"text/event-stream; charset=utf-8"),
    (b"Cache-Control", b"no-cache"),
    (b"X-Accel-Buffering", b"no"),
)


async def copy(answer: Answer, held: bytes, head: inbound.Head, reply: Reply) -> None:
    """Relay an answer: its head as `head`, the bytes `held` back so far, then the rest.

    Raises `ProxyError` when upstream fails; the reply is committed then.
    """
    first = held + answer.ready() if held else answer.ready()
    if first:
        reply.note(first)
    reply.begin(answer.status, answer.reason, head, first)
    if answer.ended and not reply.waiting:
        # It came whole, and the kernel has it.
        reply.end()
    else:
        await _rest(answer, reply)


async def commit_early(outcome: asyncio.Future[Served], reply: Reply, exchange: Exchange) -> None:
    """Begin a stream of ours, and keep it alive until `outcome` is there."""
    request_id = exchange.format.request_id, exchange.request_id.encode()
    reply.begin(200, b"", inbound.Head((*_EARLY_HEAD, request_id)))
    await asyncio.wait([outcome])


async def copy_early(answer: Answer, held: bytes, reply: Reply, exchange: Exchange) -> None:
    """Relay an answer into a stream that has begun; one that is no stream becomes an ``error`` event."""
    if answer.status == 200 and answer.fields.is_plain_stream:
        if held:
            reply.pass_on(held)
        await _rest(answer, reply)
        return
    error = ProxyError(
        502, f"The provider answered {answer.status} without a stream.", source=Source.UPSTREAM
    )
    exchange.fail(error)
    body = held + await answer.body(MAX_ERROR_BYTES)
    form = exchange.format
    if form.event is None:
        # Nothing in such a stream would say that it has failed.
        reply.abort()
        return
    is_error = answer.status >= 400 and form.is_error_body(body)
    reply.push(form.error_event(body) if is_error else _event(error, exchange))
    if form.in_stream is None:
        reply.end()
    else:
        # What it is there may pass for the end of an answer.
        await _flush(reply)
        reply.abort()


def refuse(reply: Reply, exchange: Exchange, error: ProxyError) -> None:
    """Say what went wrong, as a whole answer."""
    if exchange.route is None:
        # What could not be routed may not be framed as we think: CONNECT has no body, whatever it says.
        reply.close()
    form = exchange.format
    fields = (headers.JSON, (form.request_id, exchange.request_id.encode()), *form.error_fields(error))
    head = inbound.Head((*fields, *error.headers))
    head.lines += served_by(exchange)
    reply.whole(error.status, head, form.body(error, exchange.request_id))


def stop(reply: Reply, exchange: Exchange, error: ProxyError) -> None:
    """End a request now, without waiting for its reader."""
    if exchange.committed:
        break_off(reply, exchange, error)
        return
    reply.close()
    try:
        refuse(reply, exchange, error)
    except ConnectionError:
        # The client left in this very turn: its cancellation is on the way.
        reply.abort()


def served_by(exchange: Exchange) -> tuple[bytes, ...]:
    """The field lines that say who answered."""
    target = exchange.target
    if target is None:
        return inbound.served_by("", exchange.model, "", "", exchange.attempts)
    return inbound.served_by(
        target.provider.name, exchange.model, target.model, str(target.index), exchange.attempts
    )


async def cut(reply: Reply, exchange: Exchange, error: ProxyError) -> None:
    """End a committed reply that cannot be completed: an error event where one fits, then a reset."""
    if error.source is Source.DOWNSTREAM:
        reply.abort()
        return
    if reply.between_events:
        reply.push(_event(error, exchange))
    await _flush(reply)
    reply.abort()


def break_off(reply: Reply, exchange: Exchange, error: ProxyError) -> None:
    """As `cut`, without waiting for a slow reader."""
    if reply.between_events:
        reply.push(_event(error, exchange))
    reply.abort()


async def _flush(reply: Reply) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CUT_SECONDS):
            await reply.flush()


def _event(error: ProxyError, exchange: Exchange) -> bytes:
    """`error` as the last event of a stream."""
    form = exchange.format
    return form.error_event(form.body(error, exchange.request_id))


async def _rest(answer: Answer, reply: Reply) -> None:
    while not await answer.pour(reply):
        await reply.drain()
    if reply.waiting:
        await reply.drain(last=True)
    reply.end()
