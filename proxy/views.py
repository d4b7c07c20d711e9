"""Views: virtual keys, teams and customers as the management shows them, for `orjson.dumps`.

Facts
  - The members are Bifrost's; ``next_reset`` and ``source`` are ours.

Rules
  1. Money is whole pico-dollars until it is a JSON number: no float on the way.
  2. No value of a key is here, nor its digest.

Not here: who may see it (`governance`), what there is (`registry`).
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from .access import Holder, limits_of
from .entry import Entry, Spent, instant
from .grants import KINDS, ProviderConfig, VirtualKey
from .limits import MOST, Kind, Limit, dollars, window_start
from .registry import SLICE, Registry


async def show(registry: Registry, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Entries for `orjson.dumps`, with what is used up of their limits."""
    usage = await registry.used(limit for entry in entries for limit in entry.limits())
    shown: list[dict[str, Any]] = []
    for entry in entries:
        shown.append(shown_as(entry, usage))
        if len(shown) % SLICE == 0:
            await asyncio.sleep(0)
    return shown


def shown_as(entry: Entry, usage: Spent) -> dict[str, Any]:
    holds = entry.holds
    shown: dict[str, Any] = {"id": entry.id, "name": entry.name}
    # The fields of its kind: a key of the config has its digest besides.
    for field in dataclasses.fields(KINDS[entry.kind]):
        value = getattr(holds, field.name)
        if field.name == "expires_at":
            value = instant(value) if value is not None else None
        if field.name not in ("name", "budgets", "rate_limit", "provider_configs"):
            shown[field.name] = value
    own, *inner = ((part, _limits(limits_of(owner, part), usage)) for owner, part in entry.owners())
    if isinstance(holds, VirtualKey):
        shown["provider_configs"] = [
            {**_allowed(part), "key_ids": part.key_ids, **limits}
            for part, limits in inner
            if isinstance(part, ProviderConfig)
        ]
    times = {"created_at": entry.created_at, "updated_at": entry.updated_at}
    return {**shown, **own[1], "source": entry.source, **times}


async def quota(registry: Registry, holder: Holder) -> dict[str, Any]:
    """What its holder may know of a virtual key, for `orjson.dumps`."""
    key = holder.key
    groups: dict[str, list[Limit]] = {}
    for limit in (
        *holder.limits,
        *(limit for each in key.provider_configs for limit in _inner(holder, each)),
    ):
        # Made anew: a request may meanwhile take the holder's own over the end of its window.
        fresh = Limit(limit.owner, limit.kind, limit.maximum, limit.duration)
        groups.setdefault(limit.owner, []).append(fresh)
    usage = await registry.used(limit for limits in groups.values() for limit in limits)
    own = f"virtual_key/{holder.id}"
    return {
        "virtual_key_name": key.name,
        "is_active": key.is_active,
        "expires_at": instant(key.expires_at) if key.expires_at is not None else None,
        **_limits(groups.get(own, ()), usage),
        "provider_configs": [
            {**_allowed(each), **_limits(groups.get(f"{own}/{each.provider}", ()), usage)}
            for each in key.provider_configs
        ],
        "team": _group("team", key.team_id, groups, usage),
        "customer": _group("customer", key.customer_id, groups, usage),
    }


def _inner(holder: Holder, config: ProviderConfig) -> tuple[Limit, ...]:
    access = holder.access(config.provider)
    return access.limits if access is not None else ()


def _group(
    kind: str, id: str | None, groups: Mapping[str, list[Limit]], usage: Spent
) -> dict[str, Any] | None:
    """The team or the customer of a key; the customer may be the team's, which the key does not name."""
    named = f"{kind}/{id}" if id is not None else None
    owner = next((owner for owner in groups if owner.startswith(f"{kind}/")), named)
    if owner is None:
        return None
    return {"id": owner.partition("/")[2], **_limits(groups.get(owner, ()), usage)}


def _allowed(config: ProviderConfig) -> dict[str, Any]:
    return {
        "provider": config.provider,
        "allowed_models": config.allowed_models,
        "blacklisted_models": config.blacklisted_models,
    }


def _limits(limits: Iterable[Limit], usage: Spent) -> dict[str, Any]:
    """The members ``budgets`` and ``rate_limit`` of one owner."""
    budgets: list[dict[str, Any]] = []
    rates: dict[str, Any] = {}
    for limit in limits:
        counter, ends = limit.counter(usage.now)
        # Of requests there may be a few more for a moment: those that are being refused.
        used = min(usage.counters.get(counter, 0), limit.maximum if limit.kind is Kind.REQUESTS else MOST)
        window = {
            "reset_duration": limit.duration,
            "last_reset": instant(window_start(limit.duration, usage.now)),
            "next_reset": instant(ends),
        }
        if limit.kind is Kind.COST:
            budgets.append({"max_limit": _money(limit.maximum), "current_usage": _money(used), **window})
        else:
            members = {"max_limit": limit.maximum, "current_usage": used, **window}
            # The prefixes are Bifrost's: request_ and token_.
            rates |= {f"{limit.kind.value[:-1]}_{name}": value for name, value in members.items()}
    return {"budgets": budgets, "rate_limit": rates or None}


def _money(pico: int) -> orjson.Fragment:
    return orjson.Fragment(dollars(pico))
