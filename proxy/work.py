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

from . import errors, headers, inbound, jobheads, relay
from .attempt import Served
from .bodies import Bodies
from .errors import ProxyError, Source
from .exchange import Exchange, Phase
from .formats import ANTHROPIC, FORMATS
from .handle import Handler
from .job import Ending, Held, Job
from .original import Original
from .ports import StoreError
from .rules import Rules

PACK_BYTES = 1024
"""A result below this size is kept as it is."""

INTERRUPTED = ProxyError(
    500,
    "job_interrupted: the worker that did this job ended before the answer was kept. The provider may have"
    " answered and billed it, so it is not sent again; submit it anew if you want that.",
)

NEVER_SENT = ProxyError(
    500,
    "job_interrupted: the workers that took this job ended again and again before they could send it. It has"
    " not gone to the provider; submit it anew if you want that.",
)

STOPPING = ProxyError(503, "The proxy is stopping.")

UNREADABLE = ProxyError(
    500,
    "job_unreadable: another version of the proxy has kept this job, and this one cannot do it; submit it"
    " anew.",
)

logger = logging.getLogger(__name__)


class LostLease(Exception):
    """The job is another worker's now, or nobody's."""


class NotNow(Exception):
    """The job cannot be done at this moment; it has not gone upstream."""


class Work:
    """Does jobs. One per server."""

    def __init__(self, handler: Handler, clock: Callable[[], float] = time.time) -> None:
        self._handler = handler
        self._clock = clock
        self._bodies = Bodies(0)
        """Those of jobs: however slowly their answers come, they take no room of other requests."""
        self._alone: Exchange | None = None
        """Who reads on although there is no room."""
        self._moved = asyncio.Event()
        """Set when there may be room."""
        self._stopping = False

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._clock()

    @property
    def has_room(self) -> bool:
        """Whether another job may be begun."""
        self._bodies.limit = self._handler.rules.config.max_buffered_bytes // 2
        return not self._bodies.full

    @property
    def buffered(self) -> int:
        """Bytes of bodies that are held."""
        return self._bodies.bytes

    def stop(self) -> None:
        """Who is cancelled from now on is so because the proxy stops."""
        self._stopping = True

    async def do(self, job: Job, begin: Callable[[], Awaitable[None]]) -> Ending:
        """The job's ending. `begin` is awaited before anything is written upstream.

        Raises what `begin` raises, `LostLease` or `StoreError`, and `NotNow`: nothing was sent then.
        """
        handler = self._handler
        rules = handler.rules
        try:
            request = jobheads.Request.loads(job.head)
        except ValueError:
            return self._ending(job.ttl, UNREADABLE.status, *_refusal(UNREADABLE, "anthropic", job.id))
        exchange = handler.begin("POST", request.route.label)
        exchange.job = job.id
        exchange.take(request.route)
        exchange.bytes_in = len(job.body)
        self._bodies.grow(exchange, len(job.body))
        first = _First(begin)
        try:
            return await self._ask(job, request, exchange, rules, first)
        except ProxyError as error:
            error.__traceback__ = None
            if error.status == 503 and error.source is Source.PROXY and not first.begun:
                # As a client would be told: again, soon.
                exchange.fail(error)
                raise NotNow from None
            return self._failed(error, job.ttl, request, exchange)
        except (LostLease, StoreError):
            exchange.finish("P")
            raise
        except asyncio.CancelledError:
            if self._stopping:
                exchange.fail(STOPPING)
            exchange.finish("D")
            raise
        except Exception as failure:
            logger.error("%s: %s", job.id, errors.frames(failure))
            refusal = ProxyError(500, "Internal error of the proxy; it is logged.")
            return self._failed(refusal, job.ttl, request, exchange)
        finally:
            self._bodies.let_go(exchange)
            if self._alone is exchange:
                self._alone = None
            self._moved.set()
            handler.end(exchange, rules)

    def interrupted(self, held: Held) -> Ending:
        """The ending of a job that a worker left behind, and that is not done any more."""
        wire_format = held.operation.split("/")[1] if "/" in held.operation else "anthropic"
        error = _interruption(held)
        return self._ending(held.ttl, error.status, *_refusal(error, wire_format, held.lease.id))

    def report(self, held: Held) -> None:
        """Log and count that it was interrupted."""
        exchange = self._handler.begin("POST", jobheads.label(held.operation))
        exchange.job = held.lease.id
        error = _interruption(held)
        exchange.phase, exchange.status = Phase.HEAD if held.begins else Phase.PLAN, error.status
        exchange.fail(error)
        self._handler.end(exchange, self._handler.rules)

    async def _ask(
        self,
        job: Job,
        request: jobheads.Request,
        exchange: Exchange,
        rules: Rules,
        first: Callable[[], Awaitable[None]],
    ) -> Ending:
        handler, config = self._handler, rules.config
        original = Original("POST", request.route, headers.Outgoing(request.fields))
        original.identity = request.identity
        original.about_to_send = first
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
        lines = [*head.lines, *relay.served_by(exchange)]
        is_object = await handler.scanner.is_object(body)
        kept = jobheads.Answer(
            answer.reason, lines, head.has_date, answer.fields.codings, b"", is_object=is_object
        )
        return await asyncio.to_thread(self._ending, job.ttl, answer.status, kept, body)

    async def _read(self, served: Served, exchange: Exchange, most: int) -> bytes:
        """The body; a little more than `most` of one that is larger."""
        parts, size = [served.held], len(served.held)
        while size <= most:
            await self._room(exchange)
            part = await served.answer.read()
            if not part:
                break
            self._bodies.grow(exchange, len(part))
            parts.append(part)
            size += len(part)
        return b"".join(parts)

    async def _room(self, exchange: Exchange) -> None:
        """Wait for room. One goes on without it, to its end: what it asked for has been paid for."""
        while self._bodies.full and self._alone is not exchange:
            if self._alone is None:
                self._alone = exchange
                return
            self._moved.clear()
            await self._moved.wait()

    def _failed(
        self, error: ProxyError, ttl: int, request: jobheads.Request, exchange: Exchange, part: bytes = b""
    ) -> Ending:
        """An ending of ours; `part` is what there is of an answer that is not whole."""
        exchange.fail(error)
        exchange.status = error.status
        kept, body = _refusal(error, request.route.wire_format, exchange.request_id)
        kept.lines.extend(relay.served_by(exchange))
        if part:
            kept, body = kept._replace(error=body), part
        return self._ending(ttl, error.status, kept, body)

    def _ending(self, ttl: int, status: int, kept: jobheads.Answer, body: bytes) -> Ending:
        packed = False
        kept = kept._replace(size=len(body))
        if len(body) >= PACK_BYTES and not kept.codings:
            shorter = zlib.compress(body, 1)
            packed = len(shorter) < len(body)
            body = shorter if packed else body
        now = self._clock()
        return Ending(status >= 400, status, kept.dumps(), body, packed, now, now + ttl)


def _interruption(held: Held) -> ProxyError:
    return INTERRUPTED if held.begins else NEVER_SENT


def _refusal(error: ProxyError, wire_format: str, request_id: str) -> tuple[jobheads.Answer, bytes]:
    form = FORMATS.get(wire_format, ANTHROPIC)
    own = ((form.request_id, request_id.encode()), *form.error_fields(error))
    fields = (headers.JSON, *own, *error.headers)
    lines = inbound.Head(fields).lines
    return jobheads.Answer(b"", lines, False, "", b""), form.body(error, request_id)


class _First:
    """`begin`, at its first call only: what comes after it are retries."""

    def __init__(self, begin: Callable[[], Awaitable[None]]) -> None:
        self._begin = begin
        self.begun = False

    async def __call__(self) -> None:
        if not self.begun:
            await self._begin()
            self.begun = True
