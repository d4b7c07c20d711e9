"""The plan's loop: every retry is decided here, and nowhere else.

Rules
  1. Every attempt starts from the original bytes and fields.
  2. Once a reply is committed nothing is tried again.
  3. When all fail, the primary's answer is the answer. It is kept open, unread, until then.
  4. What cannot be sent again is not: a streamed body that was begun, a method with effects on a
     route that names no model.

Not here: which targets there are (`plan`), what else may be tried at one (`tries`), how an answer is
read (`answer`).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from typing import NamedTuple

from . import coding
from .answer import Answer
from .config import Config, Key
from .connection import Origin
from .errors import ProxyError, Source
from .exchange import Exchange, Phase
from .formats import Format
from .keys import Cooling
from .original import Original
from .outcome import REFUSED_KEY, SAME_TARGET, Outcome
from .plan import Plan, Target
from .sending import Request
from .signing import NO_CREDENTIALS, NoCredentials, Signer
from .tries import Tries
from .upstream import Upstream

MAX_HELD_BYTES = 65536
"""How much of a stream is held back while its first event is looked for."""


MAX_REFUSAL_BYTES = 8192
"""How much of an answer is read to see whether it refuses our key. Those that do have about 500."""

REFUSAL_SECONDS = 1.0
"""How long that may take; then the answer is relayed, whatever it is."""


class Served(NamedTuple):
    """What is relayed: an open answer, and the bytes of its body that were read already."""

    target: Target
    answer: Answer
    held: bytes


class Runner:
    """Runs plans. One per config."""

    def __init__(self, config: Config, upstream: Upstream, rng: random.Random, signer: Signer | None) -> None:
        self._config = config
        self._upstream = upstream
        self._rng = rng
        self._signer = signer
        self.cooling = Cooling(time.monotonic)
        self._events = SAME_TARGET | REFUSED_KEY | frozenset(config.fallback_on)
        self._looks = "stream_error" in config.fallback_on
        self._origins = {
            (provider.name, wire_format): Origin.parse(url)
            for provider in config.providers.values()
            for wire_format, url in provider.base_urls.items()
        }

    async def run(self, original: Original, plan: Plan, exchange: Exchange) -> Served:
        """What to relay. Raises `ProxyError` when no target answered."""
        primary: Outcome | None = None
        try:
            for target in plan.targets:
                outcome = await self._target(original, target, exchange, last=target is plan.targets[-1])
                if primary is None:
                    primary = outcome
                elif outcome.answer is not None and not outcome.event and outcome.answer.status < 400:
                    primary.drop()
                    return Served(target, outcome.answer, outcome.held)
                else:
                    outcome.drop()
                if exchange.committed or not outcome.event or outcome.event not in self._config.fallback_on:
                    break
                if not _replayable(original, outcome):
                    break
        except BaseException:
            if primary is not None:
                primary.drop()
            raise
        if primary is None:
            raise AssertionError("a plan has targets")
        exchange.target, exchange.key = primary.target, primary.key
        if primary.answer is None:
            raise primary.error or AssertionError("an attempt has an answer or an error")
        exchange.head_at = primary.answer.head_at
        return Served(primary.target, primary.answer, primary.held)

    async def _target(self, original: Original, target: Target, exchange: Exchange, *, last: bool) -> Outcome:
        """Try one target with its keys and retries."""
        direct = target.direct and original.outgoing.has_credential
        tries = Tries(target, self.cooling, self._rng, direct=direct)
        if tries.lacks_key:
            exchange.target = target
            exchange.attempts.append((target.name, "no_key_left"))
            return Outcome(target, "401", error=_no_key_left(target))
        answered: Outcome | None = None
        try:
            while True:
                exchange.begin_attempt(target)
                request = self._request(original, target, tries.key, exchange, fresh=tries.replayed)
                outcome = await self._once(request, target, tries.key, original.format, exchange, last=last)
                tries.note(outcome)
                exchange.key = outcome.key
                if answered is not None and outcome.answer is not None:
                    answered.drop()
                    answered = None
                if not outcome.event or exchange.committed or not _replayable(original, outcome):
                    break
                seconds = tries.wait_after(outcome)
                if seconds is None:
                    break
                answered = outcome if outcome.answer is not None else answered
                if seconds:
                    await asyncio.sleep(seconds)
                if exchange.committed:
                    break
        except BaseException:
            if answered is not None:
                answered.drop()
            raise
        tries.end()
        refused = REFUSED_KEY if target.model else REFUSED_KEY - {"403"}
        if answered is not None and answered.key and answered.event in refused:
            # It is about a key of ours; see below.
            answered.drop()
            answered = None
        if outcome.answer is None and answered is not None:
            # What the provider last said is worth more to the client than that it then said nothing.
            answered.event = outcome.event
            return answered
        if outcome.key and outcome.event in refused:
            # Relayed, it would tell the client that its own key is bad. (Where no model is named a 403 may be
            # about what the path names.)
            outcome.drop()
            error = outcome.error or _no_key_left(target)
            return Outcome(target, outcome.event, error=error, key=outcome.key)
        return outcome

    async def _once(
        self,
        request: Request,
        target: Target,
        key: Key | None,
        form: Format,
        exchange: Exchange,
        *,
        last: bool,
    ) -> Outcome:
        """One attempt."""
        exchange.phase = exchange.phase if exchange.committed else Phase.HEAD
        try:
            if key is not None and key.signs and self._signer is not None:
                request = await self._signer.sign(key, request)
            answer = await self._upstream.open(request)
        except ProxyError as error:
            # Its frames hold the request and, through it, the error itself: a cycle with a body in it.
            error.__traceback__ = None
            lacks = isinstance(error, NoCredentials)
            exchange.attempts.append((target.name, NO_CREDENTIALS if lacks else error.event or "failed"))
            return Outcome(target, error.event, error=error)
        exchange.head_at = answer.head_at
        status = str(answer.status)
        outcome = Outcome(target, status if status in self._events else "", answer)
        try:
            if key is not None and answer.status == 400 and form.refused_key is not None:
                await _look_for_key(outcome, form.refused_key)
            if not last and answer.status == 200 and self._looks and not exchange.committed:
                await self._look(outcome, form)
        except BaseException:
            answer.abort()
            raise
        exchange.attempts.append((target.name, outcome.event or status))
        return outcome

    async def _look(self, outcome: Outcome, form: Format) -> None:
        """Hold the first event of a stream back, to see whether it is an error."""
        answer = outcome.answer
        if answer is None or not answer.fields.is_plain(form.stream_type):
            return
        # A client that waits longer than a ping interval gets its head and its pings instead.
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._config.ping_interval if self._config.ping_interval else None
        while len(outcome.held) < MAX_HELD_BYTES:
            try:
                chunk = await answer.read(None if deadline is None else max(0.0, deadline - clock()))
            except ProxyError:
                outcome.event = "stream_error"
                return
            if chunk is None:
                return
            outcome.held += chunk
            event = form.first_event(outcome.held)
            if event is not None or not chunk:
                outcome.event = "stream_error" if event is None or form.is_error_event(event) else ""
                return

    def _request(
        self, original: Original, target: Target, key: Key | None, exchange: Exchange, *, fresh: bool
    ) -> Request:
        provider, form = target.provider, original.format
        origin = self._origins[provider.name, form.name]
        body, length = original.sent(target.model)
        chunked = body is not None and length is None
        own = None
        if key is not None and key.value is not None:
            own = form.own_credential(key.value.reveal(), bearer=form.name in provider.bearers)
        head = original.outgoing.head(
            host=origin.host_field,
            own=own,
            keep_credentials=key is None and target.is_default and not provider.is_key_less,
            identity=original.identity,
            length=length,
            chunked=chunked,
        )
        path = original.target_path(target.model)
        line = b"%b %b%b HTTP/1.1\r\n" % (original.method.encode(), origin.path, path)
        return Request(
            origin=origin,
            method=original.method,
            head=line + head,
            body=body,
            chunked=chunked,
            network=provider.network_config,
            buffer_bytes=self._config.side_bytes,
            fresh=fresh or original.upload is not None,
            hear=exchange.usage.feed,
            hear_end=exchange.usage.end,
            about_to_send=original.about_to_send,
        )


async def _look_for_key(outcome: Outcome, refused: re.Pattern[bytes]) -> None:
    """Read an answer that may be about our key, to see whether it is."""
    answer = outcome.answer
    if answer is None:
        return
    clock = asyncio.get_running_loop().time
    until = clock() + REFUSAL_SECONDS
    # Who relays it meets its error again.
    with contextlib.suppress(ProxyError):
        while len(outcome.held) < MAX_REFUSAL_BYTES:
            chunk = await answer.read(max(0.0, until - clock()))
            if not chunk:
                break
            outcome.held += chunk
    if refused.search(coding.beginning(outcome.held, answer.fields.codings, MAX_REFUSAL_BYTES)):
        outcome.event = "401"


def _no_key_left(target: Target) -> ProxyError:
    return ProxyError(
        502,
        f"upstream_credentials_exhausted: {target.provider.name} takes none of the keys that the proxy has"
        " for it; whoever runs the proxy must look at them.",
        source=Source.UPSTREAM,
    )


def _replayable(original: Original, outcome: Outcome) -> bool:
    """Whether the request may be sent once more after `outcome`."""
    if original.once:
        return False
    if outcome.event == "connect" or isinstance(outcome.error, NoCredentials):
        # Nothing was sent.
        return True
    if original.upload is not None:
        return False
    stale = outcome.error is not None and outcome.error.reused
    if original.lasting and outcome.answer is None:
        # It may have been begun.
        return stale
    if original.body is not None and original.place is not None:
        return True
    return stale or original.method in ("GET", "HEAD")
