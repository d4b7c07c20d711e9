"""What one attempt came to, and what that means.

Facts
  - Nothing of the request was seen by the provider when connecting failed; most likely nothing when a
    pooled connection closed without a response byte. A request that timed out may have been billed.
  - Providers answer 529 when overloaded, and may open a 200 stream with an ``error`` event.

Rules
  1. What moves a plan on is an *event*: a failure's name or a status as text. The table is data.

Not here: what follows from it (`tries` at the same target, `attempt` at the next).
"""

from __future__ import annotations

import dataclasses

from .answer import Answer
from .errors import ProxyError
from .plan import Target

SAME_TARGET = frozenset(("connect", "reset", "408", "429", "500", "502", "503", "504", "529"))
"""Events after which the same target is tried again, up to its ``max_retries``."""

REFUSED_KEY = frozenset(("401", "402", "403"))
"""Events that mean the key, not the request: the provider's next key is tried at once."""


@dataclasses.dataclass(slots=True)
class Outcome:
    """What one attempt came to: an answer or an error, and the event it means, ``""`` for none."""

    target: Target
    event: str
    answer: Answer | None = None
    error: ProxyError | None = None
    key: str = ""
    """The name of our key that was used."""
    held: bytes = b""
    """Bytes of the body that were read already."""

    def drop(self) -> None:
        if self.answer is not None:
            self.answer.abort()
