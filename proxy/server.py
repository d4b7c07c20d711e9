"""The process around the path: start, reload, stop.

Facts
  - The pure-Python parser of aiohttp fails cases that the C parser passes, and releases before 3.14.5
    have known request-smuggling holes; both are checked at the start.
  - A client may send its next request in the moment in which its connection is closed; HTTP has no remedy but
    to say ``Connection: close`` first. So every reply says so that still can, and what is closed without
    that has been idle for `GRACE_SECONDS`.

Rules
  1. What is started here is stopped here, in the reverse order.
  2. A reload swaps everything that a request goes by in one step; what belongs to the process stays.

Not here: accepting (`listener`), a connection (`door`), the path (`handle`), signals and the command line
(`__main__`).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import socket
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from aiohttp import http_parser

from .accesslog import AccessLog
from .config import Config
from .dispatcher import Dispatcher
from .door import Downstream
from .governance import Governance
from .handle import Handler
from .holders import Holders
from .jobs import Jobs
from .journal import Journal
from .ledger import Ledger
from .listener import Listener
from .metrics import Metrics
from .ports import JobStore, Store
from .scanner import Scanner
from .store import open_jobs, open_store
from .upstream import Upstream
from .webhooks import MOST_OPEN, Webhooks
from .work import Work

logger = logging.getLogger(__name__)

AIOHTTP_FLOOR = (3, 14, 5)

GRACE_SECONDS = 0.2
"""How long a connection must have been idle before a stopping server closes it."""

CLOSE_SECONDS = 1
"""How long what was ended may take to close."""

RESERVED_DESCRIPTORS = 64
"""For files, listening sockets and name lookups. Idle connections to providers go when theirs are needed."""


class Server:
    """One worker: listens where the config says and serves until `stop`."""

    def __init__(
        self,
        config: Config,
        *,
        log: AccessLog,
        sockets: Sequence[socket.socket] = (),
        state: Path | None = None,
    ) -> None:
        """`state` is a directory for what this machine alone must remember when the store is elsewhere."""
        self._config = config
        self._state_directory = state
        self._store: Store | None = None
        self._ledger: Ledger | None = None
        self._job_store: JobStore | None = None
        self._dispatcher: Dispatcher | None = None
        self._webhooks: Webhooks | None = None
        self._sockets = sockets
        self._log = log
        self._scanner = Scanner()
        self._hurried = asyncio.Event()
        self._state = "serving"
        self._refused = False
        self._upstream: Upstream | None = None
        self._metrics: Metrics | None = None
        self._handler: Handler | None = None
        self._downstream: Downstream | None = None
        self._listener: Listener | None = None

    @property
    def addresses(self) -> list[str]:
        """Where it listens: ``HOST:PORT`` or ``unix:PATH``."""
        return self._listener.addresses if self._listener is not None else []

    @property
    def drain_timeout(self) -> float:
        """Seconds that `stop` waits for open requests."""
        return self._config.drain_timeout

    @property
    def connections(self) -> int:
        """How many downstream connections are open."""
        return self._listener.open if self._listener is not None else 0

    @property
    def status(self) -> str:
        """How it is, in a line for a person."""
        refused = "; the config on disk was refused, see the log" if self._refused else ""
        return f"{self._state} on {', '.join(self.addresses)}; open connections: {self.connections}{refused}"

    async def start(self) -> None:
        """Listen. Raises OSError when an address cannot be bound, RuntimeError on an unsafe aiohttp."""
        _check_aiohttp()
        config = self._config
        self._upstream = Upstream()
        self._metrics = metrics = Metrics(config)
        if config.store is not None:
            password = config.store_password.reveal() if config.store_password is not None else None
            self._store = open_store(config.store, password)
            self._ledger = Ledger(self._store, Journal(self._journal_directory(config.store), config.store))
            self._ledger.start()
            self._job_store = open_jobs(config.store, password)
            self._dispatcher = Dispatcher(self._job_store.urgently(), config)
            metrics.gauge(
                "verbatim_unsettled_counters",
                "Counters with charges that the store has not taken yet.",
                lambda: self._ledger.waiting if self._ledger is not None else 0,
            )
        holders = Holders(self._store)
        self._handler = Handler(
            config,
            self._scanner,
            self._upstream,
            metrics,
            self._log,
            holders,
            self._ledger,
            Governance(self._store, holders),
            Jobs(self._job_store, self._dispatcher, self._scanner),
        )
        if self._job_store is not None and self._dispatcher is not None:
            self._start_jobs(self._job_store, self._dispatcher, self._handler, metrics)
        metrics.watch_keys(self._handler.keys_out)
        self._listener = Listener(_connection_limit(MOST_OPEN if config.webhooks else 0))
        self._metrics.gauge(
            "verbatim_connections", "Downstream connections that are open.", lambda: self.connections
        )
        self._metrics.gauge(
            "verbatim_buffered_bytes", "Bytes of bodies that are held.", self._handler.buffered
        )
        for inherited in self._sockets:
            self._listener.add(inherited)
        for address in () if self._sockets else config.listen:
            await self._listener.bind(address)
        self._downstream = Downstream(self._handler, config, left=self._listener.left)
        self._listener.start(self._downstream, self._downstream.make_room)

    def _start_jobs(
        self, store: JobStore, dispatcher: Dispatcher, handler: Handler, metrics: Metrics
    ) -> None:
        self._webhooks = webhooks = Webhooks(store)
        webhooks.use(self._config)
        webhooks.start()
        work = Work(handler)
        dispatcher.take(work, ended=webhooks.come)
        dispatcher.start()
        metrics.gauge("verbatim_jobs_running", "Jobs that this worker does.", lambda: dispatcher.running)
        metrics.gauge("verbatim_jobs_pending", "Jobs that wait, for any worker.", lambda: dispatcher.pending)
        metrics.gauge("verbatim_jobs_buffered_bytes", "Bytes of bodies of jobs.", lambda: work.buffered)
        metrics.counter(
            "verbatim_webhooks_delivered", "Ends of jobs that were told.", lambda: webhooks.delivered
        )
        metrics.counter("verbatim_webhooks_failed", "Tries to tell in vain.", lambda: webhooks.failed)
        metrics.counter(
            "verbatim_webhooks_given_up", "Ends of jobs that are not told.", lambda: webhooks.given_up
        )

    def use(self, config: Config) -> None:
        """Serve every new request by this config. Where it listens stays."""
        if self._handler is None or self._downstream is None or self._metrics is None:
            raise AssertionError("not started")
        # First what is made of it: were that to fail, nothing would have changed.
        self._handler.use(config)
        self._downstream.use(config)
        self._metrics.use(config)
        if self._dispatcher is not None and self._webhooks is not None:
            self._dispatcher.use(config)
            self._webhooks.use(config)
        self._config = config
        self._metrics.reloaded(good=True)
        self._refused = False

    def keep_config(self) -> None:
        """Take note that another config was not good."""
        if self._metrics is not None:
            self._metrics.reloaded(good=False)
        self._refused = True

    async def stop(self) -> None:
        """Stop listening, let open requests finish for ``drain_timeout``, close everything."""
        self._state = "draining"
        if self._handler is not None:
            self._handler.retire()
        if self._dispatcher is not None:
            self._dispatcher.retire()
        if self._listener is not None:
            await self._listener.close()
        if self._listener is not None and self._downstream is not None and self._handler is not None:
            await self._drain(self._listener.all_left, self._downstream)
            ended = self._handler.end_open()
            if ended:
                await asyncio.wait(ended)
            await self._downstream.shutdown(CLOSE_SECONDS)
        if self._dispatcher is not None:
            await self._dispatcher.close()
        if self._webhooks is not None:
            await self._webhooks.close()
        if self._upstream is not None:
            await self._upstream.close()
        if self._ledger is not None:
            await self._ledger.close()
        if self._store is not None:
            await self._store.close()
        if self._job_store is not None:
            await self._job_store.close()
        self._scanner.close()
        await self._log.close()

    def hurry(self) -> None:
        """Let `stop` wait for nobody any more."""
        self._hurried.set()

    def _journal_directory(self, store: str) -> Path | None:
        if store.startswith("sqlite:"):
            return Path(store.removeprefix("sqlite:")).absolute().parent
        if self._state_directory is None:
            logger.warning("no STATE_DIRECTORY: a killed worker forgets what Redis has not taken yet")
        return self._state_directory

    async def _drain(self, all_left: asyncio.Event, downstream: Downstream) -> None:
        """Wait for connections and jobs to end, for ``drain_timeout``; close those that stay idle."""
        clock = asyncio.get_running_loop().time
        until = clock() + self._config.drain_timeout
        while True:
            downstream.close_idle()
            left = until - clock()
            idle = self._dispatcher.idle if self._dispatcher is not None else all_left
            awaited = idle if all_left.is_set() else all_left
            if awaited.is_set() or self._hurried.is_set() or left <= 0:
                return
            await self._patience(awaited, min(GRACE_SECONDS, left))

    async def _patience(self, enough: asyncio.Event, seconds: float) -> None:
        """Wait for `enough`, so many seconds at most, and not at all in a hurry."""
        events = [asyncio.ensure_future(event.wait()) for event in (enough, self._hurried)]
        try:
            await asyncio.wait(events, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for event in events:
                event.cancel()
            await asyncio.wait(events)


def start_failure(error: OSError | RuntimeError) -> str:
    """Why `Server.start` failed, for a person."""
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return "another program listens there; choose another address with --listen"
    return str(getattr(error, "strerror", None) or error)


def _connection_limit(more: int = 0) -> int:
    """As many as can have a descriptor downstream and one upstream; `more` are wanted besides."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(1, (descriptors - RESERVED_DESCRIPTORS - more) // 2)


def _check_aiohttp() -> None:
    version = tuple(int(part) for part in metadata.version("aiohttp").split(".")[:3] if part.isdigit())
    if version < AIOHTTP_FLOOR:
        raise RuntimeError("aiohttp is older than 3.14.5, which fixes request smuggling; upgrade it")
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        raise RuntimeError("aiohttp runs without its C parser; install a wheel that has it")
