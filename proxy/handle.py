"""THE PATH: what happens to a request, read top to bottom.

::

    check -> route -> holder -> intake.read (limited, scanned) -> rules.choose: plan, admit
          -> attempt.run [ Original.sent, target_path -> Outgoing.head -> signing -> upstream.open ]*
          ---- commit point: nothing below is retried ----
          -> relay.copy
    finally: quota.end, metrics.observe, accesslog.log

    A poll of a job leaves it before the body is read, and a submit after the plan (`jobs`); the job comes
    back there without a client (`work`). The list of all models (`models`) goes it once for each provider.

Facts
  - aiohttp cancels this handler when downstream closes its connection, a half-close included. The
    cancellation runs through every wait here and closes the upstream connection.

Rules
  1. One `ProxyError` ends a request; before the commit point it becomes an answer, after it a reset.
  2. Every request ends in one `finally`.

Not here: how anything is done. Each step has its room.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import secrets
import time
from collections.abc import Coroutine
from typing import Any, cast

from aiohttp import web

from . import batches, errors, headers, inbound, incoming, jobheads, models, relay, routes
from .access import Holder
from .attempt import Served
from .bodies import Bodies
from .config import Config
from .errors import ProxyError
from .exchange import Exchange, Phase
from .holders import FRESH_SECONDS, Holders
from .incoming import Intake
from .jobheads import Order
from .jobs import Jobs
from .ledger import Ledger
from .original import Original
from .ports import Api, Log, Metrics
from .reply import Reply
from .routes import Kind, Route
from .rules import Rules
from .scanner import Scanner
from .upstream import Upstream

MAX_API_BYTES = 65536
"""The largest body that the management takes."""

logger = logging.getLogger(__name__)


class Handler:
    """Handles requests. One per server."""

    def __init__(
        self,
        config: Config,
        scanner: Scanner,
        upstream: Upstream,
        metrics: Metrics,
        log: Log,
        holders: Holders,
        ledger: Ledger | None,
        api: Api,
        jobs: Jobs,
    ) -> None:
        self._rng = random.Random(secrets.randbits(64))
        self._upstream = upstream
        self.bodies = Bodies(config.max_buffered_bytes)
        self.scanner = scanner
        self._results = Bodies(0)
        """Results of jobs on their way to clients: who reads slowly takes no room of other requests."""
        self.intake = Intake(scanner, self.bodies)
        self._metrics = metrics
        self._log = log
        self.holders = holders
        self._ledger = ledger
        self._api = api
        self._jobs = jobs
        self._loop = asyncio.get_running_loop()
        self._open: dict[asyncio.Task[Any], tuple[Exchange, Reply]] = {}
        self._retired = False
        self.use(config)

    def use(self, config: Config) -> None:
        """Handle every new request by this config."""
        self.rules = Rules(config, self._upstream, self._ledger, self._rng)
        self.holders.use(config)
        self._api.use(config)
        self.bodies.limit = config.max_buffered_bytes
        self._results.limit = config.max_buffered_bytes // 2

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        loop = self._loop
        exchange = self.begin(request.method, request.raw_path.partition("?")[0])
        rules = self.rules
        reply = Reply(request, exchange, rules.config, loop)
        if self._retired:
            reply.close()
        task = cast(asyncio.Task[Any], asyncio.current_task(loop))
        self._open[task] = exchange, reply
        try:
            try:
                await self._serve(request, rules, exchange, reply)
            except ProxyError as error:
                error.__traceback__ = None  # Its frames hold the request, and they hold it: a cycle.
                exchange.fail(error)
                if exchange.committed:
                    await relay.cut(reply, exchange, error)
                else:
                    relay.refuse(reply, exchange, error)
        except ConnectionError:
            exchange.finish("D")
            reply.abort()
        except asyncio.CancelledError:
            exchange.finish("D")
            raise
        except Exception as failure:
            logger.error("%s: %s", exchange.request_id, errors.frames(failure))
            refusal = ProxyError(500, "Internal error of the proxy; it is logged.")
            exchange.fail(refusal)
            relay.stop(reply, exchange, refusal)
        finally:
            del self._open[task]
            reply.stop()
            if exchange.held:
                self.bodies.let_go(exchange)
            self.end(exchange, rules)
        return cast(web.StreamResponse, reply)

    def refuse(self, request: web.BaseRequest, error: ProxyError) -> web.StreamResponse:
        """Answer what came instead of a request that could be read."""
        exchange = self.begin("-", "-")
        exchange.fail(error)
        reply = Reply(request, exchange, self.rules.config, self._loop)
        try:
            relay.refuse(reply, exchange, error)
        finally:
            self.end(exchange, self.rules)
        return cast(web.StreamResponse, reply)

    def begin(self, method: str, path: str) -> Exchange:
        self._metrics.begin()
        return Exchange(
            request_id=f"req_{self._rng.getrandbits(96):024x}",
            method=method,
            path=path,
            started=self._loop.time(),
            at=time.time(),
        )

    def end(self, exchange: Exchange, rules: Rules) -> None:
        exchange.ended = self._loop.time()
        rules.quota.end(exchange)
        self._metrics.observe(exchange)
        self._log.log(exchange)

    def buffered(self) -> int:
        """Bytes of bodies that are held, all requests together."""
        return self.bodies.bytes + self._results.bytes

    def keys_out(self) -> list[tuple[str, str]]:
        """Provider and name of the provider keys that are out."""
        return self.rules.runner.cooling.out()

    def retire(self) -> None:
        """Let every connection end with the next reply that can say so; ``/health`` says so too."""
        self._retired = True
        for exchange, reply in self._open.values():
            # A head that is out has promised that the connection goes on: its client may ask at once again.
            if not exchange.committed:
                reply.close()

    def end_open(self) -> list[asyncio.Task[Any]]:
        """End every open request now: with an error before its commit point, with a reset after it."""
        error = ProxyError(503, "The proxy is stopping; send the request again.")
        for task, (exchange, reply) in self._open.items():
            exchange.fail(error)
            relay.stop(reply, exchange, error)
            task.cancel()
        return list(self._open)

    async def _serve(self, request: web.BaseRequest, rules: Rules, exchange: Exchange, reply: Reply) -> None:
        config = rules.config
        target, keys = routes.without_keys(request.raw_path.encode("utf-8", "surrogateescape"))
        incoming.check(request, target)
        exchange.phase = Phase.PLAN
        route = exchange.route = _route(request, request.method, target)
        if route.kind in (Kind.PROBE, Kind.HEALTH, Kind.METRICS):
            self._answer(route, reply)
            return
        outgoing = headers.Outgoing(request.raw_headers, keys)
        if route.kind is Kind.API:
            await self._manage(request, config, outgoing, exchange, reply)
            return
        holder = await self.holders.authenticate(outgoing)
        exchange.virtual_key = holder.name if holder is not None else ""

        asked = None
        if outgoing.job_fields or route.by_job_path:
            if headers.JOB_ID in outgoing.job_fields and route.kind is Kind.OPEN:
                # Whatever the method, it is the route that the job was made on.
                route = exchange.route = _route(request, "POST", target)
            asked = jobheads.read(route, outgoing)
            if asked is not None and asked.id:
                await self._about(asked, request, rules, holder, outgoing, exchange, reply)
                return
        exchange.take(route)
        if route.kind is Kind.MODELS:
            hold = functools.partial(self.bodies.hold, exchange)
            body = await models.listed(rules, holder, outgoing, exchange, hold)
            request_id = exchange.format.request_id, exchange.request_id.encode()
            reply.whole(200, inbound.Head((headers.JSON, request_id)), body)
            return

        exchange.phase = Phase.READ
        original = await self.intake.read(request, route, outgoing, exchange, config)
        if holder is not None and self._loop.time() > exchange.started + FRESH_SECONDS:
            # A body may take its time, and the key be revoked meanwhile.
            holder = await self.holders.authenticate(outgoing)
        exchange.phase = Phase.PLAN
        chosen = await rules.choose(original, holder, route, exchange, later=asked is not None)
        if asked is not None:
            await self._jobs.submit(asked, original, route, holder, chosen, exchange, config, reply)
            return

        running = rules.runner.run(original, chosen, exchange)
        if exchange.stream and route.events and config.early_stream_after:
            running = self._early(running, original, config.early_stream_after, exchange, reply)
        served = await running
        del original, chosen, running  # A body may be megabytes, and a stream may last for minutes.
        if served.answer.sending:
            served.answer.when_sent(functools.partial(self.bodies.let_go, exchange))
        else:
            self.bodies.let_go(exchange)
        try:
            await self._relay(request, route, config, served, exchange, reply)
        finally:
            served.answer.abort()

    async def _about(
        self,
        asked: Order,
        request: web.BaseRequest,
        rules: Rules,
        holder: Holder | None,
        outgoing: headers.Outgoing,
        exchange: Exchange,
        reply: Reply,
    ) -> None:
        """A poll of a job, or its end."""
        if exchange.route is None:
            raise AssertionError("what is asked about a job has a route")
        exchange.phase = Phase.READ
        await self.intake.skip(request, exchange, rules.config)
        exchange.phase = Phase.PLAN
        if holder is not None:
            rules.quota.check(holder)
        hold = functools.partial(self._results.hold, exchange)
        try:
            await self._jobs.about(
                asked, request.method, exchange.route, holder, outgoing, exchange, reply, hold
            )
        finally:
            self._results.let_go(exchange)

    async def _early(
        self,
        running: Coroutine[Any, Any, Served],
        original: Original,
        seconds: float,
        exchange: Exchange,
        reply: Reply,
    ) -> Served:
        """Commit to a stream while upstream is still thinking."""
        task = asyncio.ensure_future(running)
        try:
            await asyncio.wait([task], timeout=seconds)
            if not task.done():
                reply.stream(original.format.ping)
                await relay.commit_early(task, reply, exchange)
            return await task
        except BaseException:
            # It may end in the very turn in which the client leaves: nobody else holds its answer then.
            task.add_done_callback(_drop)
            task.cancel()
            await asyncio.wait([task])
            raise

    async def _relay(
        self,
        request: web.BaseRequest,
        route: Route,
        config: Config,
        served: Served,
        exchange: Exchange,
        reply: Reply,
    ) -> None:
        """The commit point, and everything after it."""
        answer = served.answer
        exchange.upstream_id = answer.fields.request_id.decode("latin-1")
        if exchange.committed:
            await relay.copy_early(answer, served.held, reply, exchange)
            return
        stream = answer.fields.is_plain_stream
        has_batch = route.kind is Kind.BATCH and answer.status == 200 and request.method != "HEAD"
        rewritten = has_batch and bool(served.target.provider.keys)
        if stream and not rewritten:
            reply.stream(exchange.format.ping)
        sized = not stream and not rewritten and answer.status != 204
        head = answer.fields.head(stream=stream, sized=sized)
        head.lines += relay.served_by(exchange)
        if exchange.format.locations and served.target.is_default and served.target.provider.keys:
            # What follows an upload's beginning goes to the default provider, whatever the beginning said.
            batches.relocate(head, exchange.format.locations, request, config, route.prefix)
        if not rewritten:
            await relay.copy(answer, served.held, head, reply)
            return
        hold = functools.partial(self.bodies.hold, exchange)
        await batches.relay(served, head, reply, request, config, route.prefix, hold)

    async def _manage(
        self,
        request: web.BaseRequest,
        config: Config,
        outgoing: headers.Outgoing,
        exchange: Exchange,
        reply: Reply,
    ) -> None:
        """The routes of the management."""
        if config.admin_key is None:
            raise routes.nothing()
        body = functools.partial(self.intake.held, request, exchange, config, MAX_API_BYTES)
        answer = await self._api.answer(request.method, request.raw_path, request.raw_headers, outgoing, body)
        reply.whole(answer.status, inbound.Head((headers.JSON, *answer.fields)), answer.body)

    def _answer(self, route: Route, reply: Reply) -> None:
        """The proxy's own routes without a body."""
        if route.kind is Kind.METRICS:
            content_type = self._metrics.content_type.encode()
            reply.whole(200, inbound.Head([(b"Content-Type", content_type)]), self._metrics.text())
        elif self._retired:
            reply.whole(503, inbound.Head([headers.JSON]), b'{"status":"draining"}')
        else:
            reply.whole(200, inbound.Head([headers.JSON]), b'{"status":"ok"}')


def _route(request: web.BaseRequest, method: str, target: bytes) -> Route:
    return routes.match(method, target, anthropic_version="anthropic-version" in request.headers)


def _drop(task: asyncio.Future[Served]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().answer.abort()
