"""Ports: what the path asks of the rooms around it.

Not here: what they do for it (`store`, `governance`, `metrics`, `accesslog`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

from . import headers
from .config import Config
from .exchange import Exchange


class Log(Protocol):
    """Where a finished exchange is written."""

    def log(self, exchange: Exchange) -> None: ...


class Metrics(Protocol):
    """Where a finished exchange is counted; `text` is what ``/metrics`` answers."""

    content_type: str

    def begin(self) -> None: ...

    def observe(self, exchange: Exchange) -> None: ...

    def text(self) -> bytes: ...


class ApiAnswer(Protocol):
    """What the management answers."""

    @property
    def status(self) -> int: ...

    @property
    def body(self) -> bytes: ...

    @property
    def fields(self) -> tuple[tuple[bytes, bytes], ...]: ...


class Api(Protocol):
    """The management of virtual keys."""

    def use(self, config: Config) -> None: ...

    async def answer(
        self,
        method: str,
        target: str,
        raw_headers: headers.Fields,
        outgoing: headers.Outgoing,
        body: Callable[[], Awaitable[bytes]],
    ) -> ApiAnswer: ...


class Change(NamedTuple):
    """What is added to a counter. `ends` is when its window ends, in seconds since the epoch."""

    name: str
    ends: int
    amount: int
    """May be 0, which only asks, or negative, which gives back."""


class Record(NamedTuple):
    """A customer, a team or a virtual key, as the store keeps it."""

    kind: str
    """A key of `grants.KINDS`."""
    id: str
    name: str
    digest: bytes | None
    """Of a virtual key: the SHA-256 of its value."""
    document: str
    """JSON: the string ``spec`` is what `grants.parse` reads; ``created_at``, ``updated_at`` are RFC 3339."""


class StoreError(Exception):
    """The store cannot be asked, or did not answer; whether it did what was asked is not known."""


class Taken(Exception):
    """A record's name, or its digest, is another's already."""


class Store(Protocol):
    """Where the state of all workers is. Every method may raise `StoreError`."""

    async def add(self, changes: Sequence[Change]) -> list[int]:
        """Make all changes or none; returns the counters' new values, in order. No name comes twice."""
        ...

    async def read(self, names: Sequence[str]) -> list[int]:
        """The values of counters; one that nobody has changed is 0."""
        ...

    async def purge(self, now: int) -> None:
        """Forget counters whose window ended long ago."""
        ...

    async def find(self, digest: bytes) -> Record | None:
        """The virtual key with this digest."""
        ...

    async def get(self, kind: str, id: str) -> Record | None: ...

    async def named(self, kind: str, name: str) -> Record | None: ...

    async def records(self, kind: str) -> list[Record]:
        """All of a kind, by name."""
        ...

    async def create(self, record: Record) -> None:
        """Keep a new record. Raises `Taken`."""
        ...

    async def replace(self, record: Record, was: Record) -> bool:
        """Keep another version of a record if it still is what it `was`: returns whether. Raises `Taken`."""
        ...

    async def delete(self, kind: str, id: str) -> bool:
        """Forget a record; returns whether it was there."""
        ...

    async def close(self) -> None: ...
