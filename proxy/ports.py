"""Ports: what the path asks of the rooms around it.

Not here: what they do for it (`store`, `governance`, `metrics`, `accesslog`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from . import headers
from .config import Config
from .exchange import Exchange
from .job import Bounds, Claim, Delivery, Ending, Found, Held, Job, Lease, State


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


class Dispatch(Protocol):
    """Who has the jobs done."""

    def come(self) -> None:
        """A job waits."""

    def drop(self, id: str) -> None:
        """This job is gone: what is done for it here ends now."""

    def forget(self, id: str) -> None:
        """Remove this job if it is in the store: nobody knows of it."""


class JobStore(Protocol):
    """Where the jobs of all workers are. Every method but `urgently` may raise `StoreError`.

    Every method is one transaction. What it did is durable when it returns. `now` and all other times are
    seconds since the epoch.

    Where an answer was lost the same may be asked again: `submit` keeps no job twice, `begin` counts once for
    a lease, and `finish` says True where this lease's end is kept.
    """

    def urgently(self) -> JobStore:
        """The same, for calls that go before others: what keeps a worker alive waits for no client."""
        ...

    async def submit(self, job: Job, bounds: Bounds) -> str:
        """Keep a new job as pending; returns ``""``.

        Where that would exceed `bounds` nothing is kept; returns the first bound's name, in their order.
        """
        ...

    async def claim(self, worker: str, most_of_owner: int) -> Claim | None:
        """Take the oldest pending job whose owner has less than `most_of_owner` in processing.

        The oldest is the one that was created first, of several the one that was submitted first. A worker
        that holds a job is known: if it has not beaten yet, with 0 beats.
        """
        ...

    async def begin(self, lease: Lease) -> bool:
        """Note that the job goes upstream now. False: the lease is lost, or the job is gone."""
        ...

    async def hand_back(self, lease: Lease) -> bool:
        """Make the job pending again, as if it had not begun; False as for `begin`."""
        ...

    async def finish(self, lease: Lease, ending: Ending) -> bool:
        """Keep how the job ended, and forget its request; False as for `begin`. Its webhook is due then."""
        ...

    async def peek(self, id: str, now: float) -> Found | None:
        """The job without the body of its ending, unless it has expired."""
        ...

    async def look(self, id: str, now: float) -> Found | None:
        """The job, unless it has expired."""
        ...

    async def remove(self, id: str) -> State | None:
        """Forget a job and its result; returns the state that it was in, None for no such job."""
        ...

    async def beat(self, worker: str) -> Mapping[str, int]:
        """Count the beats of this worker one up; returns those of all workers by name."""
        ...

    async def held(self, worker: str) -> list[Held]:
        """The jobs in processing that are this worker's."""
        ...

    async def adopt(self, worker: str, dead: str, beat: int) -> None:
        """Give the jobs of a worker that has not beaten since `beat` to `worker`, with new leases.

        `worker` is known then, as after `claim`.
        """
        ...

    async def leave(self, worker: str) -> None:
        """Forget a worker, if it holds no job."""
        ...

    async def pending(self) -> int:
        """How many jobs wait."""
        ...

    async def purge(self, now: float) -> bool:
        """Forget some of the jobs that have expired; returns whether there may be more."""
        ...

    async def due(self, now: float, again: float) -> Delivery | None:
        """An end that a webhook is to be told, as `peek` has it; until `again` nobody else gets it.

        An end is due from its completion until it has expired.
        """
        ...

    async def told(self, id: str, again: float | None) -> None:
        """The webhook has been told, or is to be told `again` later."""
        ...

    async def close(self) -> None: ...
