"""Provider keys: which one an attempt uses, and which are out for a while.

Facts
  - A provider may have several keys; each has a weight and allows some models.
  - 401 and 402 are about a key; 403 may also be about one key and one model (Anthropic, API errors page).

Rules
  1. The order is drawn once per target, weighted and random; an attempt that loses its key takes
     the next one and never comes back to a lost one.
  2. A key that the provider refused is out for everybody, for a time that doubles with each further refusal
     and is forgotten with the first success. A 403 takes it out for the one model only.
  3. No client can take keys out for others: what a route that names no model answers takes none out, and a
     request for which every key is refused only those that have not just worked for somebody.
  4. Each worker learns for itself; a reload forgets.

Not here: header names (`headers`), virtual keys (`holders`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from .config import Key
from .plan import Target

COOLING_SECONDS = 5.0
"""How long a key is out after its first refusal."""

MAX_COOLING_SECONDS = 600.0

PROVEN_SECONDS = 30.0
"""How long a key is known to be good after it has worked."""

MAX_REMEMBERED = 1024
"""Keys and models that are remembered as refused."""


def draw(keys: Sequence[Key], rng: random.Random) -> list[Key]:
    """`keys` in a weighted random order; those of weight 0 come last.

    Each key gets the variate ``u ** (1 / weight)``, and the largest goes first, which is weighted
    sampling without replacement (Efraimidis and Spirakis, 2006).
    """
    if len(keys) < 2:
        return list(keys)
    return sorted(
        keys, key=lambda key: rng.random() ** (1 / key.weight) if key.weight else -1.0, reverse=True
    )


class Cooling:
    """The keys that are out. One per config."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._worked: dict[tuple[str, str], float] = {}
        """By provider and key: when it worked last."""
        self._refused: dict[tuple[str, str, str], tuple[float, int]] = {}
        """By provider, key and model (``""`` for all): until when it is out, and how often it was refused."""

    def usable(self, target: Target) -> Sequence[Key]:
        """The keys of a target that are not out."""
        if not self._refused or not target.model:
            return target.keys
        return [key for key in target.keys if not self._is_out(target, key)]

    def refused(self, target: Target, key: Key, status: str, *, all_were: bool = False) -> None:
        """The provider refused `key` for `target` with this status, or `all_were` that the request tried."""
        now = self._clock()
        proven = self._worked.get((target.provider.name, key.name), -PROVEN_SECONDS)
        if not target.model or (all_were and now < proven + PROVEN_SECONDS):
            return
        place = (target.provider.name, key.name, target.model if status == "403" else "")
        until, times = self._refused.pop(place, (0.0, 0))
        if now >= until:
            # Of the requests that were under way together only the first counts.
            until = now + min(COOLING_SECONDS * 2**times, MAX_COOLING_SECONDS)
            times = min(times + 1, 16)
        if len(self._refused) >= MAX_REMEMBERED:
            del self._refused[next(iter(self._refused))]
        self._refused[place] = until, times

    def worked(self, target: Target, key: Key) -> None:
        """The provider took `key` for `target`."""
        self._worked[target.provider.name, key.name] = self._clock()
        if self._refused:
            self._refused.pop((target.provider.name, key.name, target.model), None)
            self._refused.pop((target.provider.name, key.name, ""), None)

    def out(self) -> list[tuple[str, str]]:
        """Provider and name of each key that is out as a whole, for metrics."""
        now = self._clock()
        return [
            (provider, name)
            for (provider, name, model), (until, _) in self._refused.items()
            if not model and now < until
        ]

    def _is_out(self, target: Target, key: Key) -> bool:
        now = self._clock()
        places = ((target.provider.name, key.name, model) for model in ("", target.model))
        return any(now < self._refused.get(place, (0.0, 0))[0] for place in places)
