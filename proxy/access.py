"""Access: what a virtual key, its team and its customer together mean for a request.

Rules
  1. The limits of the key, of its team and of its customer hold at once; those of one provider besides.
  2. What is not allowed in so many words is refused.

Not here: how grants are written (`grants`), who is asking (`holders`), how much is used up (`quota`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .grants import Customer, ProviderConfig, Team, VirtualKey
from .limits import Kind, Limit
from .plan import Target
from .values import glob

MAX_REMEMBERED = 1024
"""Models whose fate is remembered, per key and provider. Clients choose models, so there is a bound."""


MAX_NAME = 256
"""Characters of a model's name that is remembered."""


class Refusal(NamedTuple):
    """Why a request is refused: its status, Bifrost's code for it, and words."""

    status: int
    code: str
    message: str


class Access:
    """One provider, as a key may use it."""

    __slots__ = ("_allowed", "_blacklisted", "_known", "key_ids", "limits", "open")

    def __init__(
        self,
        allowed: Iterable[str],
        blacklisted: Iterable[str] = (),
        key_ids: tuple[str, ...] | None = None,
        limits: tuple[Limit, ...] = (),
    ) -> None:
        self._allowed = tuple(allowed)
        self._blacklisted = tuple(blacklisted)
        self._known: dict[str, bool] = {}
        self.key_ids = None if key_ids is not None and "*" in key_ids else key_ids
        self.limits = limits
        self.open = "*" in self._allowed and not self._blacklisted
        """Whether every model is allowed, those that have no name yet included."""

    def allows(self, model: str) -> bool:
        if self.open:
            return True
        known = self._known.get(model)
        if known is None:
            known = _matches(model, self._allowed) and not _matches(model, self._blacklisted)
            if len(self._known) < MAX_REMEMBERED and len(model) <= MAX_NAME:
                self._known[model] = known
        return known


class Holder:
    """A virtual key with all that holds for it: its own limits, its team's and its customer's."""

    __slots__ = ("_access", "_others", "id", "key", "limited", "limited_inside", "limits", "metered", "name")

    def __init__(
        self,
        id: str,
        key: VirtualKey,
        team: tuple[str, Team] | None = None,
        customer: tuple[str, Customer] | None = None,
    ) -> None:
        self.id = id
        self.key = key
        self.name = key.name
        own = (
            *limits_of(f"virtual_key/{id}", key),
            *(limits_of(f"team/{team[0]}", team[1]) if team else ()),
            *(limits_of(f"customer/{customer[0]}", customer[1]) if customer else ()),
        )
        self.limits = tuple(sorted(own, key=lambda limit: limit.kind is Kind.COST))
        """In the order in which they are checked: rate limits, then budgets."""
        self._others = Access(("*",)) if key.allow_all_providers else None
        self._access = {
            each.provider: Access(
                each.allowed_models,
                each.blacklisted_models,
                each.key_ids,
                tuple(limits_of(f"virtual_key/{id}/{each.provider}", each)),
            )
            for each in key.provider_configs
        }
        every = (*self.limits, *(limit for access in self._access.values() for limit in access.limits))
        self.limited = bool(every)
        self.limited_inside = len(every) > len(self.limits)
        """Whether there are limits for one provider alone."""
        self.metered = any(limit.kind is not Kind.REQUESTS for limit in every)
        """Whether it matters what a request uses up."""

    def access(self, provider: str) -> Access | None:
        """What the key may use of a provider; None when it is nothing."""
        return self._access.get(provider, self._others)

    def allows(self, target: Target) -> bool:
        """Whether the key may use a target as it is, with every provider key that it has."""
        access = self._access.get(target.provider.name, self._others)
        return (
            access is not None
            and access.key_ids is None
            and bool(target.model)
            and access.allows(target.model)
        )

    def limits_at(self, provider: str) -> tuple[Limit, ...]:
        """The limits for one provider alone."""
        access = self._access.get(provider)
        return access.limits if access is not None else ()

    def refusal(self, now: float) -> Refusal | None:
        """Why the key as such is not valid at `now`, in seconds since the epoch."""
        key = self.key
        if not key.is_active:
            return Refusal(403, "virtual_key_blocked", "this virtual key is not active")
        if key.expires_at is not None and now >= key.expires_at:
            return Refusal(403, "virtual_key_blocked", "this virtual key has expired")
        return None


def limits_of(owner: str, holds: VirtualKey | Team | Customer | ProviderConfig) -> Iterator[Limit]:
    """The limits of one owner, in the order in which they are checked."""
    rate = holds.rate_limit
    if rate is not None and rate.request_max_limit is not None and rate.request_reset_duration:
        yield Limit(owner, Kind.REQUESTS, rate.request_max_limit, rate.request_reset_duration)
    if rate is not None and rate.token_max_limit is not None and rate.token_reset_duration:
        yield Limit(owner, Kind.TOKENS, rate.token_max_limit, rate.token_reset_duration)
    for budget in holds.budgets:
        yield Limit(owner, Kind.COST, budget.max_limit, budget.reset_duration)


def _matches(model: str, patterns: Iterable[str]) -> bool:
    return any(glob(pattern).fullmatch(model) for pattern in patterns)
