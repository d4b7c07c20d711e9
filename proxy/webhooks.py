"""Webhooks: the ends of jobs are told to whoever the config names.

Facts
  - 2xx is success, 410 says that nobody wants to hear it, and everything else is a failure, redirects
    included (Standard Webhooks 1.0.0, "Delivery success and failure").
  - A receiver may close a kept connection in the very moment in which it is used again, and a POST may not
    just be sent again. So every try has a connection of its own.
  - aiohttp waits with closing until all is sent, for ever where the receiver does not read.
  - It looks up a host once, however many wait for that.

Rules
  1. At least once: the store hides what is under way for `HELD_SECONDS`, and whoever is killed has not told
     the store that it is done.
  2. Only the config's URLs are asked, without cookies, without what the environment says of proxies and
     passwords. Of an answer only the status counts, and only that is logged.
  3. A receiver has `MOST_OPEN_OF_ONE` tries at a time here: a slow one leaves room for the others.

Not here: what is sent and when again (`notices`), whose job names which webhook (`jobs`).
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import StreamWriter
from yarl import URL

from . import errors, notices
from .config import Config
from .job import Delivery
from .notices import Webhook
from .ports import JobStore, StoreError

TRY_SECONDS = 10.0
"""A whole try: name lookup, connect, TLS, request, answer."""

HELD_SECONDS = 30.0
"""How long nobody else gets what is under way: a try, and time to tell the store."""

LOOK_SECONDS = 1.0
"""How often the store is asked for what is due."""

MOST_OPEN = 64
"""Tries at a time."""

MOST_OPEN_OF_ONE = 10
"""As many as Bifrost."""

MOST_ANSWER_BYTES = 4096
"""So much of an answer's body is read, so that a short one has come whole before its connection ends."""

CLOSE_SECONDS = 3.0
"""How long the end waits for tries that are under way."""

logger = logging.getLogger(__name__)


class _End(NamedTuple):
    """A job's end that is to be told, without its body, which may be large."""

    webhook: str
    id: str
    tries: int
    expires: float

    @classmethod
    def of(cls, delivery: Delivery) -> _End:
        name, found, tries = delivery
        if found.ending is None:
            raise AssertionError("the job is not over")
        return cls(name, found.id, tries, found.ending.expires)


class Webhooks:
    """Tells the ends of jobs. One per server, made in its event loop."""

    def __init__(self, jobs: JobStore, clock: Callable[[], float] = time.time) -> None:
        self._jobs = jobs
        self._clock = clock
        self._rng = random.Random()
        self._webhooks: Mapping[str, Webhook] = MappingProxyType({})
        self._tls: ssl.SSLContext | None = None
        self._session: aiohttp.ClientSession | None = None
        self._open: set[asyncio.Task[None]] = set()
        self._open_of: Counter[str] = Counter()
        self._troubled: set[str] = set()
        """Webhooks whose last try was in vain."""
        self._ill = False
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.delivered = 0
        """Ends that were told."""
        self.failed = 0
        """Tries in vain."""
        self.given_up = 0
        """Ends that nobody will be told of."""

    def use(self, config: Config) -> None:
        """Tell by this config from now on."""
        self._webhooks = config.webhooks
        if config.webhooks and self._tls is None:
            # It takes a tenth of a second, so not where nobody is told.
            self._tls = ssl.create_default_context()

    def start(self) -> None:
        """Look for what is due from now on."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def come(self) -> None:
        """A job has ended: look at once."""
        self._wanted.set()

    async def step(self) -> None:
        """Begin to tell what is due, as far as there is room. Raises what the store raises."""
        while len(self._open) < MOST_OPEN:
            now = self._clock()
            delivery = await self._jobs.due(now, now + HELD_SECONDS)
            if delivery is None:
                return
            end = _End.of(delivery)
            webhook = self._webhooks.get(end.webhook)
            if end.tries > notices.MOST_TRIES:
                await self._give_up(end, "no try came to its end")
            elif webhook is None:
                # Other workers may have read a newer config already.
                await self._put_off(end, "the config has no such webhook", most=notices.MOST_TRIES_UNKNOWN)
            elif self._open_of[end.webhook] >= MOST_OPEN_OF_ONE:
                await self._put_off(end, "the receiver is too slow", first=notices.BUSY_WAIT)
            else:
                found = await self._jobs.look(end.id, now) if notices.fits(delivery.found) else None
                payload = notices.payload(found or delivery.found, whole=found is not None)
                self._begin(end, webhook, payload)

    async def settle(self, seconds: float | None = None) -> set[asyncio.Task[None]]:
        """Wait for what is under way; returns what is not done after so many seconds."""
        if not self._open:
            return set()
        _, late = await asyncio.wait(self._open, timeout=seconds)
        return late

    async def close(self) -> None:
        """Begin nothing more, and end what does not end in `CLOSE_SECONDS`: it is given out again."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for task in await self.settle(CLOSE_SECONDS):
            task.cancel()
        await self.settle()
        if self._session is not None:
            await self._session.close()

    async def _run(self) -> None:
        while True:
            try:
                self._wanted.clear()
                await self.step()
                self._ill = False
            except Exception as failure:
                # Whatever it is, the next look may do better.
                if not self._ill:
                    logger.error("webhooks cannot be told: %s", _shown(failure))
                self._ill = True
            if len(self._open) >= MOST_OPEN:
                await asyncio.wait(self._open, return_when=asyncio.FIRST_COMPLETED)
                continue
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._wanted.wait()
            except TimeoutError:
                continue

    def _begin(self, end: _End, webhook: Webhook, body: bytes) -> None:
        self._open_of[end.webhook] += 1
        task = asyncio.get_running_loop().create_task(self._tell(end, webhook, body))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _tell(self, end: _End, webhook: Webhook, body: bytes) -> None:
        try:
            status, reason = await self._post(webhook, end.id, body)
            await self._note(end, status, reason)
        except Exception as failure:
            # The store gives it out again.
            logger.error("webhook %s: job %s is told again: %s", end.webhook, end.id, _shown(failure))
        finally:
            self._open_of[end.webhook] -= 1
            if not self._open_of[end.webhook]:
                del self._open_of[end.webhook]

    async def _note(self, end: _End, status: int, reason: str) -> None:
        """What comes of a try."""
        name = end.webhook
        if 200 <= status < 300:
            self.delivered += 1
            if name in self._troubled:
                self._troubled.discard(name)
                logger.warning("webhook %s answers again", name)
            await self._jobs.told(end.id, None)
            return
        self.failed += 1
        if status == 410:
            await self._give_up(end, reason)
            return
        if name not in self._troubled:
            self._troubled.add(name)
            logger.warning("webhook %s: %s; it is tried again", name, reason)
        await self._put_off(end, reason)

    async def _put_off(
        self, end: _End, reason: str, *, first: float = notices.FIRST_WAIT, most: int = notices.MOST_TRIES
    ) -> None:
        draw = self._rng.random()
        again = notices.again(self._clock(), end.tries, end.expires, draw, first=first, most=most)
        if again is None:
            await self._give_up(end, reason)
        else:
            await self._jobs.told(end.id, again)

    async def _give_up(self, end: _End, reason: str) -> None:
        await self._jobs.told(end.id, None)
        self.given_up += 1
        logger.error(
            "webhook %s is not told of job %s, try %d was the last: %s",
            end.webhook,
            end.id,
            end.tries,
            reason,
        )

    async def _post(self, webhook: Webhook, id: str, body: bytes) -> tuple[int, str]:
        """Send `body` once; returns the answer's status, 0 without one, and what to call that in the log."""
        outgoing = _Body(body, content_type="application/json")
        fields = notices.signed(webhook.secret, id, self._clock(), body)
        status, failed = 0, ""
        try:
            async with (
                asyncio.timeout(TRY_SECONDS),
                self._connecting().post(
                    URL(webhook.url, encoded=True), data=outgoing, headers=fields, allow_redirects=False
                ) as answer,
            ):
                status = answer.status
                left = MOST_ANSWER_BYTES
                while left and (part := await answer.content.read(left)):
                    left -= len(part)
        except (aiohttp.ClientError, OSError, UnicodeError) as failure:
            # By its type: its text may hold the URL.
            failed = type(failure).__name__
        finally:
            outgoing.drop()
        return status, f"status {status}" if status else failed

    def _connecting(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=MOST_OPEN, force_close=True, ssl=self._tls or True),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
                headers={"user-agent": "verbatim-proxy"},
                skip_auto_headers=("accept", "accept-encoding"),
                auto_decompress=False,
            )
        return self._session


class _Body(aiohttp.BytesPayload):
    """A body that knows where it goes, and can be dropped on its way."""

    _transport: asyncio.Transport | None = None

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        if isinstance(writer, StreamWriter):
            self._transport = writer.transport
        await super().write_with_length(writer, content_length)

    def drop(self) -> None:
        """Send no more of it."""
        if self._transport is not None:
            self._transport.abort()


def _shown(failure: Exception) -> str:
    return str(failure) if isinstance(failure, StoreError) else errors.frames(failure)
