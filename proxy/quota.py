"""Quota: admit a request of a virtual key, and charge it at its end.

Facts
  - What a request uses up is known when it is over. So a limit on tokens or money is passed by what is in
    flight at that moment, and by no more; requests are counted before.
  - Official SDKs ask again soon when ``retry-after`` is above 60 seconds, unless ``x-should-retry`` says no.

Rules
  1. Provider, model, active, expiry, rate limits, budgets: the first that refuses gives the answer.
  2. A target that is refused is passed over; when none is left, the first refusal is the answer.
  3. A request is counted when it is admitted; its tokens and its cost are charged as they are seen in a
     stream, and at its end, whatever the end is. A cut answer is charged for what was seen.
  4. What is allowed although the store cannot be asked is charged when it can be.

Not here: who is asking (`holders`), what a key allows (`access`), how counters are kept (`ledger`).
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from .access import Access, Holder, Refusal
from .config import Config
from .errors import RETRY_SOON, ProxyError, Source
from .exchange import Exchange
from .formats import FORMATS
from .ledger import Ledger
from .limits import Kind, Limit
from .plan import Plan, Target
from .ports import Change, StoreError
from .prices import cost
from .routes import Kind as RouteKind
from .routes import Route

FULL_SECONDS = 1.0
"""How long a full limit is taken for full without looking again."""

MAX_RETRY_AFTER = 60
"""The longest ``retry-after`` that SDKs obey, in seconds."""

MAX_WARNED = 1024

BYTES_PER_TOKEN = 4
"""Where no usage is reported. With its head and the frames of a stream it is too much, not too little."""

_TOKENS = (
    "input_tokens",
    "output_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
)

logger = logging.getLogger(__name__)


class Quota:
    """Admits and charges. One per config."""

    def __init__(self, config: Config, ledger: Ledger | None, clock: Callable[[], float] = time.time) -> None:
        self._prices = config.prices
        self._allow = config.on_store_failure == "allow"
        self._ledger = ledger
        self._clock = clock
        self._warned: set[tuple[str, str]] = set()

    async def admit(self, holder: Holder, plan: Plan, route: Route, exchange: Exchange) -> Plan:
        """The plan without the targets that are refused. Raises `ProxyError` 402, 403, 429, 503."""
        plan = self.permit(holder, plan, route, exchange)
        if not holder.limited:
            return plan
        if self._ledger is None:
            raise ProxyError(503, "The store of limits was added to the config: that takes a restart.")
        return await Lease(self, self._ledger, holder, exchange).reserve(plan, self._clock())

    def permit(self, holder: Holder, plan: Plan, route: Route, exchange: Exchange) -> Plan:
        """As `admit`, by what needs no counting: provider, model, active, expiry. Raises `ProxyError` 403."""
        plan = _permitted(holder, plan, route, exchange)
        self.check(holder)
        return plan

    def check(self, holder: Holder) -> None:
        """Whether the key is valid at all. Raises `ProxyError` 403."""
        refusal = holder.refusal(self._clock())
        if refusal is not None:
            raise _error(refusal)

    def end(self, exchange: Exchange) -> None:
        """Charge what is left to charge of an exchange that is over."""
        lease = exchange.lease
        if lease is None or not exchange.usage.is_told:
            self.settle(exchange)
        if lease is None:
            return
        if _reports_nothing(exchange):
            self._warn(exchange, "no usage from %s: it is charged by the bytes that passed")
            form, operation = exchange.format, exchange.route.operation if exchange.route else ""
            taken = 0 if operation in form.media_in else exchange.bytes_in // BYTES_PER_TOKEN
            given = 0 if operation in form.media_out else exchange.bytes_out // BYTES_PER_TOKEN
            self._price(exchange, {"input_tokens": taken, "output_tokens": given})
            lease.charge()
        # They hold each other: a cycle.
        exchange.lease = exchange.usage.on_sight = None

    def settle(self, exchange: Exchange) -> None:
        """Charge what the exchange has used up so far."""
        usage = exchange.usage
        if exchange.method != "POST" or (usage.is_whole and not usage.ended):
            # What others have used up can be read as often as one likes, the results of a batch for one. And
            # a JSON answer that is not whole may have shown what is no usage at all.
            return
        self._price(exchange, usage.counts())
        if exchange.lease is not None:
            exchange.lease.charge()

    def _price(self, exchange: Exchange, tokens: dict[str, int]) -> None:
        exchange.tokens = tokens
        target = exchange.target
        if tokens and target is not None and self._prices is not None:
            price, known = self._prices.of(target.provider.name, target.model)
            exchange.cost = cost(price, tokens)
            if not known:
                self._warn(exchange, "no price for %s: it is charged at the default price")

    @property
    def allows_unasked(self) -> bool:
        """Whether requests are allowed while the store cannot be asked."""
        return self._allow

    def _warn(self, exchange: Exchange, message: str) -> None:
        """Log something about a target, once."""
        name = exchange.target.name[:200] if exchange.target is not None else ""
        if (message, name) not in self._warned and len(self._warned) < MAX_WARNED:
            self._warned.add((message, name))
            logger.warning(message, ascii(name))


class Lease:
    """What one admitted request has reserved, and what it has been charged."""

    __slots__ = (
        *("_cost", "_exchange", "_holder", "_inner", "_ledger"),
        *("_own", "_quota", "_tokens", "_tried"),
    )

    def __init__(self, quota: Quota, ledger: Ledger, holder: Holder, exchange: Exchange) -> None:
        self._quota = quota
        self._ledger = ledger
        self._holder = holder
        self._exchange = exchange
        self._tokens = 0
        self._cost = 0
        self._tried: set[str] = set()
        self._own: list[Change] = []
        self._inner: list[tuple[str, Limit, Change]] = []
        """The counters of the windows in which it was admitted: all that it uses up is charged there."""

    async def reserve(self, plan: Plan, now: float) -> Plan:
        """Count the request, unless a limit is full; returns the plan without the targets that have one."""
        own = self._holder.limits
        for limit in own:
            if limit.is_full(now):
                raise _full(limit, now)
        self._own = reserved = [_change(limit, now, int(limit.kind is Kind.REQUESTS)) for limit in own]
        self._inner = inner = self._limits_inside(plan, now) if self._holder.limited_inside else []
        blocked: dict[str, Limit] = {}
        first: Limit | None = None

        def judge(used: Mapping[str, int]) -> bool:
            nonlocal first
            for limit, change in zip(own, reserved, strict=True):
                if used[change.name] >= limit.maximum:
                    limit.close(now, FULL_SECONDS)
                    first = first or limit
            for provider, limit, change in inner:
                if used[change.name] >= limit.maximum:
                    blocked.setdefault(provider, limit)
            if blocked and first is None and all(each.provider.name in blocked for each in plan.targets):
                first = blocked[plan.targets[0].provider.name]
            return first is None

        asked = [*reserved, *(change for *_, change in inner)] if inner else reserved
        try:
            await self._ledger.reserve(asked, judge)
        except StoreError:
            if not self._quota.allows_unasked:
                raise ProxyError(
                    503, "The limits of this virtual key cannot be looked up now.", headers=(RETRY_SOON,)
                ) from None
            self._ledger.charge(asked)
        if first is not None:
            raise _full(first, now)
        self._exchange.lease = self
        self._exchange.usage.on_sight = self._seen
        if not blocked:
            return plan
        if plan.targets[0].provider.name in blocked:
            # It is counted there, and will not go there.
            self._ledger.charge([change._replace(amount=-change.amount) for *_, change in inner])
            self._tried.clear()
        return plan.narrowed(
            lambda target: blocked[target.provider.name].code if target.provider.name in blocked else target
        )

    def _limits_inside(self, plan: Plan, now: float) -> list[tuple[str, Limit, Change]]:
        """The limits for each provider of the plan alone; at the first one the request is counted already."""
        first, *others = dict.fromkeys(target.provider.name for target in plan.targets)
        self._tried.add(first)
        return [
            (provider, limit, _change(limit, now, int(provider is first and limit.kind is Kind.REQUESTS)))
            for provider in (first, *others)
            for limit in self._holder.limits_at(provider)
        ]

    def begin_attempt(self, provider: str) -> None:
        """The request goes to this provider now; what it is charged there comes on top."""
        self._tokens = self._cost = 0
        if self._inner and provider not in self._tried:
            self._tried.add(provider)
            self._ledger.charge(
                change._replace(amount=1)
                for name, limit, change in self._inner
                if name == provider and limit.kind is Kind.REQUESTS
            )

    def charge(self) -> None:
        """Charge what the exchange has used up since the last time."""
        exchange, target = self._exchange, self._exchange.target
        seen = exchange.tokens
        if target is None or not (seen or self._tokens):
            return
        tokens = sum([seen[name] for name in _TOKENS if name in seen])
        more, cost = tokens - self._tokens, exchange.cost - self._cost
        self._tokens, self._cost = tokens, exchange.cost
        counters = list(zip(self._holder.limits, self._own, strict=True))
        if self._inner:
            counters += [each[1:] for each in self._inner if each[0] == target.provider.name]
        self._ledger.charge(
            [
                Change(name, ends, cost if limit.kind is Kind.COST else more)
                for limit, (name, ends, _) in counters
                if limit.kind is not Kind.REQUESTS
            ]
        )

    def _seen(self) -> None:
        # At once: who is killed in the next moment has charged it.
        self._quota.settle(self._exchange)


def without_native_fallbacks(holder: Holder, plan: Plan) -> Plan:
    """The plan for a request with fallbacks of Anthropic's own, which may name any model.

    Raises `ProxyError` 403 when no target is left.
    """

    def judge(target: Target) -> Target | str:
        access = holder.access(target.provider.name)
        return target if access is None or access.open else "model_blocked"

    narrowed = plan.narrowed(judge)
    if not narrowed.targets:
        why = "this virtual key may not use every model; send fallbacks as a list of names, not of objects"
        raise _error(Refusal(403, "model_blocked", why))
    return narrowed


def _reports_nothing(exchange: Exchange) -> bool:
    """Whether a model has answered, and nothing was seen of what that used up.

    The legacy API may report none, a compressed answer hides it, and a cut one has not come to it.
    """
    route = exchange.route
    if exchange.tokens or route is None or route.kind is not RouteKind.MODEL:
        return False
    # Upstream's status: an early stream is our own 200, whatever comes of it.
    answered = bool(exchange.attempts) and exchange.attempts[-1][1] == "200" and exchange.status == 200
    return answered and route.operation not in FORMATS[route.wire_format].free


def _change(limit: Limit, now: float, amount: int) -> Change:
    counter = limit.counter(now)
    return Change(counter.name, counter.ends, amount)


def _permitted(holder: Holder, plan: Plan, route: Route, exchange: Exchange) -> Plan:
    """The plan without the targets that the key may not use. Raises `ProxyError` 403."""
    if route.unseen and holder.metered:
        why = "what this request costs cannot be seen, so a virtual key with limits on that cannot make it"
        raise _error(Refusal(403, "model_blocked", why))
    if all(map(holder.allows, plan.targets)):
        return plan
    reads = exchange.method in ("GET", "HEAD")
    first: Refusal | None = None

    def judge(target: Target) -> Target | str:
        nonlocal first
        allowed = _allowed(holder.access(target.provider.name), target, reads=reads)
        if isinstance(allowed, Refusal):
            first = first or allowed
            return allowed.code
        return allowed

    narrowed = plan.narrowed(judge)
    if not narrowed.targets and first is not None:
        raise _error(first)
    return narrowed


def _allowed(access: Access | None, target: Target, *, reads: bool) -> Target | Refusal:
    """The target as the key may use it."""
    if access is None:
        return Refusal(403, "provider_blocked", f"this virtual key may not use {target.provider.name}")
    if not access.allows(target.model) if target.model else not (access.open or reads):
        what = f"the model {target.name[:200]!r}" if target.model else "a route that names no model"
        return Refusal(403, "model_blocked", f"this virtual key may not use {what}")
    if access.key_ids is None:
        return target
    keys = tuple(key for key in target.keys if key.name in access.key_ids)
    if target.provider.keys and not keys:
        why = "this virtual key may use none of the provider's keys for this"
        return Refusal(403, "key_blocked", why)
    return dataclasses.replace(target, keys=keys, direct=False)


def _full(limit: Limit, now: float) -> ProxyError:
    """A limit is reached."""
    _, ends = limit.counter(now)
    seconds = max(1, math.ceil(ends - now))
    again = datetime.fromtimestamp(ends, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    owner = limit.owner.partition("/")[0].replace("_", " ")
    message = f"the limit of this {owner} is reached: {limit.in_words}; it begins anew at {again}"
    fields = [(b"retry-after", b"%d" % seconds)]
    if seconds > MAX_RETRY_AFTER:
        fields.append((b"x-should-retry", b"false"))
    return _error(Refusal(402 if limit.kind is Kind.COST else 429, limit.code, message), tuple(fields))


def _error(refusal: Refusal, fields: tuple[tuple[bytes, bytes], ...] = ()) -> ProxyError:
    return ProxyError(
        refusal.status, f"{refusal.code}: {refusal.message}.", source=Source.DOWNSTREAM, headers=fields
    )
