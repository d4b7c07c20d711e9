"""One virtual key, team or customer, and the record that the store keeps of it.

Not here: how one is made and changed (`registry`), how it is shown (`views`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import NamedTuple

import orjson

from . import holders, values
from .access import limits_of
from .errors import ProxyError
from .grants import Holds, ProviderConfig, VirtualKey
from .limits import Limit
from .ports import Record
from .schema import ConfigError, printable

IN_WORDS = {"virtual_key": "virtual key", "team": "team", "customer": "customer"}


class Entry(NamedTuple):
    """A virtual key, a team or a customer."""

    kind: str
    """A key of `grants.KINDS`."""
    id: str
    holds: Holds
    source: str = "config"
    """``config`` or ``store``."""
    created_at: str | None = None
    updated_at: str | None = None
    """Both are RFC 3339, and None in the config."""

    @property
    def name(self) -> str:
        return self.holds.name

    def owners(self) -> Iterator[tuple[str, Holds | ProviderConfig]]:
        """Who has limits here, by the name under which they are counted."""
        yield f"{self.kind}/{self.id}", self.holds
        if isinstance(self.holds, VirtualKey):
            for each in self.holds.provider_configs:
                yield f"{self.kind}/{self.id}/{each.provider}", each

    def limits(self) -> list[Limit]:
        return [limit for owner, holds in self.owners() for limit in limits_of(owner, holds)]


class Spent(NamedTuple):
    """What is used up at one moment."""

    counters: Mapping[str, int]
    """By the names of counters; what is not there is 0."""
    now: float


def entry_of(there: Record) -> Entry:
    """What a record says. Raises `ProxyError` 500 when another program wrote it, or a later version."""
    try:
        document = orjson.loads(there.document)
        times = document["created_at"], document["updated_at"]
        return Entry(there.kind, there.id, holders.read(there), "store", *times)
    except (ConfigError, ValueError, KeyError, TypeError):
        what = f'{IN_WORDS[there.kind]} "{printable(there.name)}" (id {there.id})'
        message = f"the record of the {what} cannot be read; it can be deleted"
        raise ProxyError(500, message) from None


def spec_of(there: Record) -> str:
    return str(orjson.loads(there.document)["spec"])


def document_of(spec: str, created_at: str | None, updated_at: str | None) -> str:
    return orjson.dumps({"spec": spec, "created_at": created_at, "updated_at": updated_at}).decode()


def instant(seconds: int) -> str:
    """A point in time as RFC 3339 writes it, or the nearest one that it can write."""
    at = datetime.fromtimestamp(min(max(seconds, 0), values.LAST_SECOND), UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
