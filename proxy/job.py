"""Jobs: a request that is answered later, and what is kept of it.

Facts
  - Names, states and headers are Bifrost's (docs.getbifrost.ai/features/async-inference).
  - The time that a result is kept is counted from its completion.

Rules
  1. An answer costs money. What was sent upstream is not sent again unless the config says so.

Not here: what clients send and get (`jobheads`, `jobviews`), where jobs are kept (`store`), who does them
(`dispatcher`).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

from . import values
from .shapes import number, setting, text

ON_RESTART = ("fail", "retry")


@dataclass(frozen=True, slots=True)
class Settings:
    """What jobs may take. Times are seconds, sizes are bytes."""

    concurrent: int = setting(32, number(1, whole=True), "How many jobs a worker does at a time.")
    concurrent_per_key: int = setting(
        16,
        number(1, whole=True),
        "How many jobs of one virtual key, or of one client's own credentials, are done at a time, by all"
        " workers together.",
    )
    max_pending: int = setting(
        1000, number(1, whole=True), "How many jobs may wait; beyond it the answer is 429."
    )
    max_pending_per_key: int = setting(
        500, number(1, whole=True), "How many of them may be of one key; beyond it the answer is 429."
    )
    max_pending_bytes: int = setting(
        1073741824,
        number(1, whole=True),
        "How large the bodies of all jobs that wait may be together; beyond it the answer is 429.",
    )
    max_result_bytes: int = setting(
        33554432,
        number(1, whole=True),
        "The largest answer that is kept. Of a larger one this much is kept, and the job has failed.",
    )
    result_ttl: int = setting(
        3600,
        number(1, 999_999_999, whole=True),
        "Seconds from its end that a result is kept, where the request does not say.",
    )
    max_result_ttl: int = setting(
        604800, number(1, 999_999_999, whole=True), "The most seconds that a request may ask for."
    )
    on_restart: str = setting(
        "fail",
        text(values.one_of(ON_RESTART)),
        "fail or retry: what becomes of a job that was at the provider when its worker was killed. To send"
        " it again may cost a second time; retry does so twice at most.",
    )


class State(enum.Enum):
    """How far a job is; the values are what clients see."""

    PENDING = "pending"
    """Nobody does it yet."""
    PROCESSING = "processing"
    """A worker does it."""
    COMPLETED = "completed"
    FAILED = "failed"
    """It ended with a status of 400 or more, or was interrupted."""


class Job(NamedTuple):
    """A request that was accepted. Times are seconds since the epoch."""

    id: str
    owner: str
    """Whose it is, as a text that only says the same or another."""
    operation: str
    """Which route it came by; a poll must come by the same."""
    created: float
    ttl: int
    """Seconds that its result is kept."""
    webhook: str
    """The name of the webhook that is told of its end; empty for none."""
    head: bytes
    """The request but for its body, as JSON."""
    body: bytes
    """The request's body as it came."""


class Lease(NamedTuple):
    """A worker's claim to a job. Whoever has an older one than the store knows has lost it."""

    id: str
    """The job's."""
    worker: str
    number: int
    """Counts how often the job was claimed or adopted."""


class Claim(NamedTuple):
    """A job that a worker has taken."""

    lease: Lease
    job: Job


class Held(NamedTuple):
    """What the store knows of a job that a worker holds."""

    lease: Lease
    operation: str
    ttl: int
    begun: bool
    """Whether it went upstream under this claim or one that was adopted from."""
    begins: int
    """How often it went upstream."""


class Ending(NamedTuple):
    """How a job ended. Times are seconds since the epoch."""

    failed: bool
    status: int
    head: bytes
    """The answer but for its body, as JSON."""
    body: bytes
    """The answer's body, deflated with zlib if `packed`."""
    packed: bool
    completed: float
    expires: float


class Found(NamedTuple):
    """What a poll finds."""

    id: str
    owner: str
    operation: str
    state: State
    created: float
    ending: Ending | None
    """There when the state is completed or failed. Where only a `peek` was asked for, it has no body."""


class Delivery(NamedTuple):
    """An end that a webhook is to be told."""

    webhook: str
    found: Found
    tries: int
    """How often it was tried, this time included."""


class Bounds(NamedTuple):
    """How much may wait, all pending jobs together."""

    jobs: int
    jobs_of_owner: int
    bytes: int
    """Of their bodies; a head has a megabyte at most."""
