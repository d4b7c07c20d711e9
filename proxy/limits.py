"""Limits: windows of time, the counter of each, and when it is full.

Facts
  - The durations are Bifrost's: ``1m`` ``1h`` ``1d`` ``1w`` ``1M`` ``1Q`` ``1Y``, or a multiple of one.

Rules
  1. Windows stand still: they begin with the minute, hour, day, Monday, month, quarter or year of UTC. So a
     counter's name says its window, workers need not agree on a beginning, and nothing is ever reset.
  2. Money is whole pico-dollars (10**-12). A price per million tokens with six decimals is a whole number
     of them per token, so no sum is ever rounded.

Not here: who has which limits (`grants`), how the counters are kept (`ledger`), who is admitted (`quota`).
"""

from __future__ import annotations

import enum
import functools
import re
from datetime import UTC, datetime
from typing import NamedTuple

PICO = 10**12
"""Pico-dollars in a dollar."""

MOST = 10**18
"""The largest maximum of money, a million dollars, and the most that a batch adds. Counters have 64 bits."""

MOST_PER_REQUEST = 10**16
"""The most that one request is charged, ten thousand dollars: whatever an upstream may report."""

DURATION = re.compile("([1-9][0-9]{0,2})([mhdwMQY])")

_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 604800}
_MONTHS = {"M": 1, "Q": 3, "Y": 12}
_MONDAY = 345600
"""The first Monday after the epoch, in seconds."""


class Kind(enum.Enum):
    """What a limit counts; the value is part of its counters' names."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    COST = "cost"


class Counter(NamedTuple):
    """The counter of one window."""

    name: str
    ends: int
    """When its window ends, in seconds since the epoch."""


class Limit:
    """At most `maximum` of a kind in each window of an owner. Costs are in pico-dollars."""

    __slots__ = ("_counter", "_full_until", "duration", "kind", "maximum", "owner")

    def __init__(self, owner: str, kind: Kind, maximum: int, duration: str) -> None:
        self.owner = owner
        self.kind = kind
        self.maximum = maximum
        self.duration = duration
        self._counter = Counter("", 0)
        self._full_until = 0.0

    def counter(self, now: float) -> Counter:
        """The counter at `now`, in seconds since the epoch."""
        if now >= self._counter.ends:
            ends = window_end(self.duration, now)
            self._counter = Counter(f"{self.owner}/{self.kind.value}/{self.duration}/{ends}", ends)
        return self._counter

    def close(self, now: float, seconds: float) -> None:
        """Take the limit for full so long, or until its window ends."""
        self._full_until = min(now + seconds, self.counter(now).ends)

    def is_full(self, now: float) -> bool:
        """Whether the limit was found full a moment ago."""
        return now < self._full_until

    @property
    def code(self) -> str:
        """Bifrost's word for a request that this limit refuses."""
        return _CODES[self.kind]

    @property
    def in_words(self) -> str:
        """The limit, for a person."""
        if self.kind is Kind.COST:
            return f"${dollars(self.maximum)} per {self.duration}"
        return f"{self.maximum} {self.kind.value} per {self.duration}"


_CODES = {Kind.REQUESTS: "request_limited", Kind.TOKENS: "token_limited", Kind.COST: "budget_exceeded"}


def window_end(duration: str, now: float) -> int:
    """When the window of `duration` ends that holds `now`; both are seconds since the epoch."""
    return _window(duration, int(now) // 60)[1]


def window_start(duration: str, now: float) -> int:
    """When that window began."""
    return _window(duration, int(now) // 60)[0]


@functools.lru_cache(64)
def _window(duration: str, minute: int) -> tuple[int, int]:
    match = DURATION.fullmatch(duration)
    if match is None:
        raise ValueError(f"no duration: {duration}")
    count, unit = int(match[1]), match[2]
    now = minute * 60
    if unit in _SECONDS:
        size = count * _SECONDS[unit]
        offset = _MONDAY if unit == "w" else 0
        start = (now - offset) // size * size + offset
        return start, start + size
    size = count * _MONTHS[unit]
    today = datetime.fromtimestamp(now, UTC)
    month = (today.year * 12 + today.month - 1) // size * size
    return _first_of(month), _first_of(month + size)


def _first_of(month: int) -> int:
    """The first second of a month, which is counted from the year 0."""
    return int(datetime(month // 12, month % 12 + 1, 1, tzinfo=UTC).timestamp())


def dollars(pico: int) -> str:
    """An amount as an exact decimal number of dollars, without exponent and idle zeros."""
    if not pico:
        return "0"
    whole, fraction = divmod(pico, PICO)
    return f"{whole}.{fraction:012d}".rstrip("0").rstrip(".")
