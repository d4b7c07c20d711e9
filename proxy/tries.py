"""What may still be tried at one target: its keys and its retries.

Facts
  - ``retry-after`` is seconds or an HTTP date (RFC 9110 section 10.2.3); ``retry-after-ms`` is finer.

Rules
  1. 429 takes the next key, if there is one, else it waits. 401, 402 and 403 take the next key, and the
     refused one is out.
  2. A client's own key that is refused ends it all: the client must know, and no other target may help.

Not here: the plan's loop (`attempt`), which keys are out (`keys`).
"""

from __future__ import annotations

import random
import time
from email.utils import parsedate_to_datetime

from . import inbound, keys
from .config import Key
from .keys import Cooling
from .outcome import REFUSED_KEY, SAME_TARGET, Outcome
from .plan import Target


class Tries:
    """What may still be tried at one target: its keys and its retries."""

    def __init__(self, target: Target, cooling: Cooling, rng: random.Random, *, direct: bool) -> None:
        """`direct`: the client's own key is used instead of ours."""
        drawn = [] if direct else keys.draw(cooling.usable(target), rng)
        self._target = target
        self._cooling = cooling
        self._keys = drawn
        self._rng = rng
        self.lacks_key = bool(target.keys) and not direct and not drawn
        """Whether all keys are out."""
        self._refused: list[tuple[Key, str]] = []
        self._retries = 0
        self.replayed = False
        self.key = drawn.pop(0) if drawn else None

    def note(self, outcome: Outcome) -> None:
        """Learn from an outcome what it says of the key."""
        if self.key is None:
            return
        outcome.key = self.key.name
        if outcome.event in REFUSED_KEY and outcome.answer is not None:
            self._refused.append((self.key, outcome.event))
        elif outcome.answer is not None and outcome.answer.status < 500:
            self._cooling.worked(self._target, self.key)
            self.end(all_were=False)

    def end(self, *, all_were: bool = True) -> None:
        """Take the refused keys out; unless another one then worked, it may have been the request."""
        for key, status in self._refused:
            self._cooling.refused(self._target, key, status, all_were=all_were)
        self._refused.clear()

    def wait_after(self, outcome: Outcome) -> float | None:
        """Seconds to wait before the target is tried again with `key`; None when it is not."""
        network = self._target.provider.network_config
        event = outcome.event
        if event in REFUSED_KEY and self.key is None and not self._target.provider.is_key_less:
            # The client's own key was refused: the client must know, and no other target may help.
            outcome.event = ""
        elif (event in REFUSED_KEY or event == "429") and self._keys:
            self.key = self._keys.pop(0)
            return 0.0
        elif outcome.error is not None and outcome.error.reused and not self.replayed:
            self.replayed = True
            return 0.0
        elif event in SAME_TARGET and self._retries < network.max_retries:
            backoff: float = min(network.retry_backoff_initial * 2**self._retries, network.retry_backoff_max)
            backoff = min(backoff * self._rng.uniform(0.8, 1.2), network.retry_backoff_max)
            asked = _retry_after(outcome.answer.fields) if outcome.answer else 0.0
            if asked <= network.retry_backoff_max:
                self._retries += 1
                return max(backoff, asked)
        return None


def _retry_after(fields: inbound.Inbound) -> float:
    """Seconds that upstream asks to wait; 0 when it says nothing that can be read."""
    milliseconds = fields.get(b"retry-after-ms")
    seconds = fields.get(b"retry-after") or b"0"
    try:
        asked = float(milliseconds) / 1000 if milliseconds is not None else float(seconds)
    except ValueError:
        asked = _until(seconds)
    return max(0.0, asked)


def _until(date: bytes) -> float:
    """Seconds from now to an HTTP date; 0 for anything else."""
    try:
        return parsedate_to_datetime(date.decode("latin-1")).timestamp() - time.time()
    except (ValueError, OverflowError):
        return 0.0
