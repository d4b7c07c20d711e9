"""A job walks the path: as a request does in `handle`, for a client that is not there.

Rules
  1. It is the path: plan, limits, attempts, usage, log line. Only its beginning and its end differ: the
     request comes from the store, the answer goes there.
  2. Whatever happens there is an ending. What is raised says that there is none: the job did not go upstream.

Not here: which jobs are done, and when (`dispatcher`).
"""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from collections.abc import Awaitable, Callable

from . import errors, headers, order
from .attempt import Served
from .errors import ProxyError
from .exchange import Exchange, Phase
from .handle import Handler, served_by
from .incoming import Original
from .job import Ending, Held, Job
from .ports import StoreError
from .rules import Rules

PACK_BYTES = 1024
"""A result below this size is kept as it is."""

INTERRUPTED = ProxyError(
    500,
    "job_interrupted: the worker that did this job ended before the answer was kept. The provider may have"
    " answered and billed it, so it is not sent again; submit it anew if you want that.",
)

UNREADABLE = ProxyError(
    500,
    "job_unreadable: another version of the proxy has kept this job, and this one cannot do it; submit it"
    " anew.",
)

_JSON = (b"Content-Type", b"application/json")

logger = logging.getLogger(__name__)


class LostLease(Exception):
    """The job is another worker's now, or nobody's."""


class Work:
    """Does jobs. One per server."""

    def __init__(self, handler: Handler, clock: Callable[[], float] = time.time) -> None:
        self._handler = handler
        self._clock = clock

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._clock()

    @property
    def has_room(self) -> bool:
        """Whether another request may be held."""
        return not self._handler.bodies.half_full

    async def do(self, job: Job, begin: Callable[[], Awaitable[None]]) -> Ending:
        """The job's ending. `begin` is awaited before anything is written upstream.

        Raises what `begin` raises, `LostLease` or `StoreError`: nothing was sent then.
        """
        handler = self._handler
        rules = handler.rules
        try:
            request = order.Request.loads(job.head)
        except ValueError:
            return self._ending(job.ttl, UNREADABLE.status, *_refusal(UNREADABLE, "anthropic", job.id))
        exchange = handler.begin("POST", request.route.label)
        exchange.job = job.id
        exchange.take(request.route)
        exchange.bytes_in = len(job.body)
        handler.bodies.grow(exchange, len(job.body))
        try:
            return await self._ask(job, request, exchange, rules, begin)
        except ProxyError as error:
            error.__traceback__ = None
            return self._failed(error, job.ttl, request, exchange)
        except (LostLease, StoreError, asyncio.CancelledError):
            exchange.finish("D")
            raise
        except Exception as failure:
            logger.error("%s: %s", job.id, errors.frames(failure))
            refusal = ProxyError(500, "Internal error of the proxy; it is logged.")
            return self._failed(refusal, job.ttl, request, exchange)
        finally:
            handler.bodies.let_go(exchange)
            handler.end(exchange, rules)

    def interrupted(self, held: Held) -> Ending:
        """The ending of a job that a worker left behind after it had gone upstream."""
        try:
            wire_format = order.Request.loads(held.head).route.wire_format
        except ValueError:
            wire_format = "anthropic"
        return self._ending(held.ttl, INTERRUPTED.status, *_refusal(INTERRUPTED, wire_format, held.lease.id))

    async def _ask(
        self,
        job: Job,
        request: order.Request,
        exchange: Exchange,
        rules: Rules,
        begin: Callable[[], Awaitable[None]],
    ) -> Ending:
        handler, config = self._handler, rules.config
        original = Original("POST", request.route, headers.Outgoing(request.fields))
        original.identity = request.identity
        original.about_to_send = _once(begin)
        exchange.phase = Phase.PLAN
        holder = await handler.holders.by_id(request.holder) if request.holder else None
        exchange.virtual_key = holder.name if holder is not None else ""
        await handler.intake.scan(original, job.body, request.codings, exchange, config)
        chosen = await rules.choose(original, holder, request.route, exchange)
        served = await rules.runner.run(original, chosen, exchange)
        del original, chosen
        answer, most = served.answer, config.jobs.max_result_bytes
        try:
            exchange.upstream_id = answer.fields.request_id.decode("latin-1")
            exchange.phase = Phase.DATA
            body = await self._read(served, exchange, most)
        finally:
            answer.abort()
        exchange.bytes_out = min(len(body), most)
        if len(body) > most:
            error = ProxyError(
                502,
                f"job_result_too_large: the provider's answer has more than {most} bytes; /v1/async shows"
                " their beginning.",
            )
            return self._failed(error, job.ttl, request, exchange, body[:most])
        exchange.status = answer.status
        exchange.finish_whole()
        head = answer.fields.head(stream=False, sized=False)
        lines = [*head.lines, *served_by(exchange)]
        kept = order.Answer(answer.reason, lines, head.has_date, answer.fields.codings, b"")
        return await asyncio.to_thread(self._ending, job.ttl, answer.status, kept, body)

    async def _read(self, served: Served, exchange: Exchange, most: int) -> bytes:
        """The body; a little more than `most` of one that is larger."""
        parts, size = [served.held], len(served.held)
        while size <= most and (part := await served.answer.read()):
            self._handler.bodies.grow(exchange, len(part))
            parts.append(part)
            size += len(part)
        return b"".join(parts)

    def _failed(
        self, error: ProxyError, ttl: int, request: order.Request, exchange: Exchange, part: bytes = b""
    ) -> Ending:
        """An ending of ours; `part` is what there is of an answer that is not whole."""
        exchange.fail(error)
        exchange.status = error.status
        kept, body = _refusal(error, request.route.wire_format, exchange.request_id)
        kept.lines.extend(served_by(exchange))
        if part:
            kept, body = kept._replace(error=body), part
        return self._ending(ttl, error.status, kept, body)

    def _ending(self, ttl: int, status: int, kept: order.Answer, body: bytes) -> Ending:
        packed = False
        if len(body) >= PACK_BYTES and not kept.codings:
            shorter = zlib.compress(body, 1)
            packed = len(shorter) < len(body)
            body = shorter if packed else body
        now = self._clock()
        return Ending(status >= 400, status, kept.dumps(), body, packed, now, now + ttl)


def _refusal(error: ProxyError, wire_format: str, request_id: str) -> tuple[order.Answer, bytes]:
    fields = (_JSON, (b"request-id", request_id.encode()), *error.headers)
    lines = headers.Head(fields).lines
    return order.Answer(b"", lines, False, "", b""), errors.body(error, request_id, wire_format)


def _once(begin: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """`begin`, at its first call only: what comes after it are retries."""
    begun = False

    async def first() -> None:
        nonlocal begun
        if not begun:
            await begin()
            begun = True

    return first
