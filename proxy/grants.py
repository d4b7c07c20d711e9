"""Grants: virtual keys, teams and customers as they are written down.

Facts
  - The names are Bifrost's. There a key belongs to a team or to a customer, a team may belong to a customer,
    and the limits of all of them hold at once.
  - An empty list allows nothing, ``*`` allows everything (Bifrost since v1.5).

Rules
  1. One table for the config, the management API and the store: the dataclasses here.
  2. A key's value is not here. What is kept of it is its digest.

Not here: what follows from it for a request (`access`), who is asking (`holders`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import values
from .limits import DURATION
from .schema import BROKEN, ConfigError, Document, Path, from_json
from .shapes import boolean, number, optional, record, row, sequence, setting, text

PREFIX = values.VIRTUAL_KEY_PREFIX


def _duration(value: str) -> str:
    if not DURATION.fullmatch(value):
        raise ValueError("wanted a duration: 1m, 1h, 1d, 1w, 1M, 1Q, 1Y or a multiple, such as 5m")
    return value


def _pattern(value: str) -> str:
    if value.startswith("regex:"):
        raise ValueError("regular expressions are not supported; * stands for any text")
    return value


_STRING = text()
_NAMES = sequence(text(_pattern))
_COUNT = optional(number(1, 10**15, whole=True))


@dataclass(frozen=True, slots=True)
class Budget:
    """So many pico-dollars in each window."""

    max_limit: int = field(metadata=row(values.dollars, "US dollars in each window, as an exact decimal."))
    reset_duration: str = field(
        metadata=row(text(_duration), "The window: 1m, 1h, 1d, 1w, 1M, 1Q, 1Y or a multiple, in UTC.")
    )


@dataclass(frozen=True, slots=True)
class RateLimit:
    """So many requests and tokens in each window; None is no limit."""

    request_max_limit: int | None = setting(None, _COUNT, "Requests in each window.")
    request_reset_duration: str | None = setting(None, optional(text(_duration)), "The window of requests.")
    token_max_limit: int | None = setting(
        None, _COUNT, "Tokens in each window, those of input, cache and output together."
    )
    token_reset_duration: str | None = setting(None, optional(text(_duration)), "The window of tokens.")


_BUDGETS = sequence(record(Budget))
_RATE_LIMIT = optional(record(RateLimit))


@dataclass(frozen=True, slots=True)
class ProviderConfig:
    """What a key may use of one provider."""

    provider: str = field(metadata=row(_STRING, "The provider's name."))
    allowed_models: tuple[str, ...] = setting(
        (), _NAMES, "The models, by exact name or with *; an empty list allows none."
    )
    blacklisted_models: tuple[str, ...] = setting((), _NAMES, "Models that are refused all the same.")
    key_ids: tuple[str, ...] | None = setting(
        None, optional(_NAMES), "The names of the provider's keys that may be used. null: all of them."
    )
    budgets: tuple[Budget, ...] = setting((), _BUDGETS, "What may be spent at this provider.")
    rate_limit: RateLimit | None = setting(None, _RATE_LIMIT, "How much may be asked of this provider.")


@dataclass(frozen=True, slots=True)
class Customer:
    """Who pays for teams and keys."""

    name: str = field(metadata=row(None, "The customer's name."))
    budgets: tuple[Budget, ...] = setting((), _BUDGETS, "What its teams and keys may spend together.")
    rate_limit: RateLimit | None = setting(None, _RATE_LIMIT, "What its teams and keys may ask together.")


@dataclass(frozen=True, slots=True)
class Team:
    """Who shares budgets."""

    name: str = field(metadata=row(None, "The team's name."))
    customer_id: str | None = setting(None, optional(_STRING), "The customer that the team belongs to.")
    budgets: tuple[Budget, ...] = setting((), _BUDGETS, "What the team's keys may spend together.")
    rate_limit: RateLimit | None = setting(None, _RATE_LIMIT, "What the team's keys may ask together.")


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualKey:
    """What one credential of ours allows."""

    name: str = field(metadata=row(None, "The key's name: what logs and metrics say instead of its value."))
    description: str | None = setting(None, optional(_STRING), "For people.")
    is_active: bool = setting(True, boolean, "false refuses every request with 403.")
    expires_at: int | None = setting(
        None, optional(values.instant), "When it stops to be valid, as 2027-01-31T00:00:00Z. null: never."
    )
    allow_all_providers: bool = setting(
        False, boolean, "true: every provider and model, but for what provider_configs say."
    )
    provider_configs: tuple[ProviderConfig, ...] = setting(
        (), sequence(record(ProviderConfig)), "The providers that may be used; an empty list allows none."
    )
    budgets: tuple[Budget, ...] = setting((), _BUDGETS, "What the key may spend.")
    rate_limit: RateLimit | None = setting(None, _RATE_LIMIT, "How much the key may ask.")
    team_id: str | None = setting(
        None, optional(_STRING), "The team that it belongs to; a key has a team or a customer, or neither."
    )
    customer_id: str | None = setting(None, optional(_STRING), "The customer that the key belongs to.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfiguredKey(VirtualKey):
    """A virtual key that stands in the config."""

    value: bytes = field(
        metadata=row(
            values.key_digest,
            "The key itself as env.NAME or file:PATH, or the SHA-256 of it as sha256:HEX.",
        )
    )


Holds = VirtualKey | Team | Customer

KINDS: Mapping[str, type] = {"virtual_key": VirtualKey, "team": Team, "customer": Customer}
"""What the store keeps, and how its documents are read."""


def parse(kind: str, name: str, text: str) -> Holds:
    """What a JSON object says of a customer, a team or a virtual key, without `check`.

    Raises `ConfigError` with every problem at once.
    """
    document = Document({}, _no_files)
    holds: Holds = document.read(record(KINDS[kind]), from_json(text), (name,))
    if document.problems:
        raise ConfigError(document.problems)
    return holds


def _no_files(name: str) -> str:
    raise OSError(name)


def check(
    document: Document, path: Path, holds: Any, keys_of: Mapping[str, Iterable[str]], *, priced: bool
) -> None:
    """Note what the shapes of a customer, a team or a key cannot see: names, pairs, doubles.

    `keys_of` has the names of each provider's keys. `priced` says whether there are prices, without which
    money cannot be counted.
    """
    if holds is BROKEN:
        return
    _check_limits(document, path, holds, priced=priced)
    if not isinstance(holds, VirtualKey):
        return
    if holds.team_id is not None and holds.customer_id is not None:
        document.problem((*path, "customer_id"), "a key has a team or a customer, not both")
    configs = () if holds.provider_configs is BROKEN else holds.provider_configs
    seen: set[str] = set()
    for index, each in enumerate(configs):
        inside: Path = (*path, "provider_configs", index)
        if each is BROKEN or each.provider is BROKEN:
            continue
        if each.provider in seen:
            document.problem((*inside, "provider"), "this provider stands here twice")
        seen.add(each.provider)
        if each.provider not in keys_of:
            document.problem((*inside, "provider"), values.dangling("provider", each.provider, keys_of))
        elif each.key_ids and each.key_ids is not BROKEN:
            names = keys_of[each.provider]
            for place, name in enumerate(each.key_ids):
                if name is not BROKEN and name != "*" and name not in names:
                    wrong = values.dangling("key of this provider", name, names)
                    document.problem((*inside, "key_ids", place), wrong)
        _check_limits(document, inside, each, priced=priced)


def has_limits(holds: Any) -> bool:
    """Whether a customer, a team or a key has any limit, as far as it could be read."""
    inner = getattr(holds, "provider_configs", ())
    parts = [holds, *(() if inner is BROKEN else inner)]
    return any(
        part is not BROKEN
        and any(each not in (None, (), BROKEN, RateLimit()) for each in (part.budgets, part.rate_limit))
        for part in parts
    )


def _check_limits(document: Document, path: Path, holds: Any, *, priced: bool) -> None:
    rate = holds.rate_limit
    if rate is not None and rate is not BROKEN:
        for kind in ("request", "token"):
            most, window = getattr(rate, f"{kind}_max_limit"), getattr(rate, f"{kind}_reset_duration")
            if (most is None) != (window is None):
                missing = f"{kind}_reset_duration" if window is None else f"{kind}_max_limit"
                document.problem((*path, "rate_limit", missing), "is missing; the two go together")
    windows = [each.reset_duration for each in holds.budgets] if document.sound((*path, "budgets")) else []
    if len(set(windows)) < len(windows):
        document.problem((*path, "budgets"), "two of them have the same window")
    if holds.budgets and holds.budgets is not BROKEN and not priced:
        document.problem((*path, "budgets"), "need prices: name a file of them in the config (prices: PATH)")
