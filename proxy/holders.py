"""Virtual key to holder: who is asking.

Facts
  - A key is 256 random bits. What is kept is its SHA-256, so whoever reads the store cannot use it.
  - Clients put it into ``x-bf-vk``, or where their SDK puts a provider's key.

Rules
  1. Digests are compared, in constant time; the value goes no further than here.
  2. The config's keys come first, then the store's. What the store said holds for `FRESH_SECONDS`, and
     `ASK_SECONDS` more while it is asked anew. So a request costs no store access, and a change reaches every
     worker within `CHANGE_SECONDS`.
  3. While the store cannot be asked, whoever was known stays known for `STALE_SECONDS`. Nobody else is let
     in.

Not here: what a holder may do (`access`), what is used up (`quota`).
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hmac
import secrets
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

from . import grants, values
from .access import Holder
from .config import Config
from .errors import RETRY_SOON, ProxyError, Source
from .grants import Customer, Team, VirtualKey
from .headers import Outgoing
from .ports import Record, Store, StoreError

FRESH_SECONDS = 2.0

STALE_SECONDS = 3600.0

ASK_SECONDS = 1.0
"""While one request asks the store anew, the others go by what was known for so long at most."""

STORE_SECONDS = 10.0
"""How long the store may take; both stores have shorter times of their own, but a disk may hang."""

CHANGE_SECONDS = FRESH_SECONDS + ASK_SECONDS

MAX_REMEMBERED = 10_000
"""Holders kept, and as many digests that nobody holds."""


class _Known(NamedTuple):
    holder: Holder
    digest: bytes
    fresh_until: float
    asked_at: float


def new_value() -> str:
    """A new virtual key."""
    return grants.PREFIX + base64.urlsafe_b64encode(secrets.token_bytes(32)).decode().rstrip("=")


class Holders:
    """Knows the holders of virtual keys. One per server."""

    def __init__(self, store: Store | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._required = False
        self._config: Config | None = None
        self._configured: dict[bytes, tuple[Holder, bytes]] = {}
        self._known: dict[bytes, _Known] = {}
        self._unknown: dict[bytes, float] = {}

    def use(self, config: Config) -> None:
        """Go by this config from now on."""
        self._config = config
        self._required = config.require_virtual_key
        self._configured = {
            key.value: (Holder(name, key, *configured_groups(config, key)), key.value)
            for name, key in config.virtual_keys.items()
        }
        self.forget()

    def forget(self) -> None:
        """Ask the store anew about everybody: something has changed."""
        self._known.clear()
        self._unknown.clear()

    async def authenticate(self, outgoing: Outgoing) -> Holder | None:
        """Who holds the virtual key of a request; None for a request without one, where that may be.

        Raises `ProxyError`: 400 for two different keys, 401 for none or an unknown one, 503 when that
        cannot be found out.
        """
        carried = outgoing.virtual_keys
        if not carried:
            if self._required:
                raise _refused(
                    401, "virtual_key_required: send a virtual key (sk-bf-...) in x-bf-vk or as the API key."
                )
            return None
        if len(carried) > 1:
            raise _refused(400, "The request carries two different virtual keys; send one.")
        (value,) = carried
        digest = values.digest(value)
        configured = self._configured.get(digest)
        if configured is not None and hmac.compare_digest(configured[1], digest):
            return configured[0]
        now = self._clock()
        known = self._known.get(digest)
        if known is not None and now < known.fresh_until and hmac.compare_digest(known.digest, digest):
            return known.holder
        if self._store is None or now < self._unknown.get(digest, 0.0):
            raise _unknown()
        return await self._ask(self._store, digest, known, now)

    async def by_id(self, id: str) -> Holder:
        """The holder of a virtual key that was authenticated before. Raises `ProxyError` 401, 503."""
        if self._config is None:
            raise AssertionError("no config is used yet")
        for holder, _ in self._configured.values():
            if holder.id == id:
                return holder
        if self._store is None:
            raise _unknown()
        try:
            async with asyncio.timeout(STORE_SECONDS):
                record = await self._store.get("virtual_key", id)
                if record is None:
                    raise _unknown()
                return await holder_of(self._store, self._config, record.id, read(record))
        except (StoreError, TimeoutError):
            raise _unanswered() from None

    async def _ask(self, store: Store, digest: bytes, known: _Known | None, now: float) -> Holder:
        if known is not None and now < known.asked_at + CHANGE_SECONDS:
            self._known[digest] = known._replace(fresh_until=known.asked_at + CHANGE_SECONDS)
        try:
            async with asyncio.timeout(STORE_SECONDS):
                holder = await self._find(store, digest)
        except (StoreError, TimeoutError):
            if known is not None and now < known.asked_at + STALE_SECONDS:
                return known.holder
            raise _unanswered() from None
        if holder is None:
            self._known.pop(digest, None)
            _bound(self._unknown)
            self._unknown[digest] = self._clock() + FRESH_SECONDS
            raise _unknown()
        _bound(self._known)
        # By when it was asked: what a slow store answers was so then.
        self._known[digest] = _Known(holder, digest, now + FRESH_SECONDS, now)
        return holder

    async def _find(self, store: Store, digest: bytes) -> Holder | None:
        record = await store.find(digest)
        if record is None or record.digest is None or not hmac.compare_digest(record.digest, digest):
            return None
        if self._config is None:
            raise AssertionError("no config is used yet")
        return await holder_of(store, self._config, record.id, read(record))


async def holder_of(store: Store, config: Config, id: str, key: VirtualKey) -> Holder:
    """A virtual key of the store with its team and its customer, wherever those are kept.

    Without one that it names it is not active.
    """
    team, customer = configured_groups(config, key)
    if key.team_id is not None and team is None:
        found = await store.get("team", key.team_id)
        team = (key.team_id, read(found)) if found is not None else None
    customer_id = key.customer_id or (team[1].customer_id if team is not None else None)
    if customer_id is not None and customer is None:
        paying = config.customers.get(customer_id)
        if paying is None and (found := await store.get("customer", customer_id)) is not None:
            paying = read(found)
        customer = (customer_id, paying) if paying is not None else None
    if (team is None) != (key.team_id is None) or (customer is None) != (customer_id is None):
        # Their limits are not known, so there would be none.
        key = dataclasses.replace(key, is_active=False)
    return Holder(id, key, team, customer)


def configured_groups(
    config: Config, key: VirtualKey
) -> tuple[tuple[str, Team] | None, tuple[str, Customer] | None]:
    """The team and the customer of a key, those that the config has."""
    team = config.teams.get(key.team_id or "")
    customer_id = key.customer_id or (team.customer_id if team is not None else None) or ""
    customer = config.customers.get(customer_id)
    return (
        (key.team_id or "", team) if team is not None else None,
        (customer_id, customer) if customer is not None else None,
    )


def read(record: Record) -> Any:
    """What a record of the store says: a virtual key, a team or a customer."""
    return grants.parse(record.kind, record.name, orjson.loads(record.document)["spec"])


def _bound(known: dict[bytes, Any]) -> None:
    if len(known) >= MAX_REMEMBERED:
        del known[next(iter(known))]


def _unknown() -> ProxyError:
    return _refused(401, "virtual_key_not_found: this virtual key is not known here.")


def _unanswered() -> ProxyError:
    return ProxyError(503, "The virtual key cannot be looked up now; try again.", headers=(RETRY_SOON,))


def _refused(status: int, message: str) -> ProxyError:
    # To ask again helps nobody, and Claude Code would for minutes.
    return ProxyError(status, message, source=Source.DOWNSTREAM, headers=((b"x-should-retry", b"false"),))
