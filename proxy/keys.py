"""Credential to key: which provider key an attempt uses.

Facts
  - A provider may have several keys; each has a weight and allows some models.

Rules
  1. The order is drawn once per target, weighted and random; an attempt that loses its key takes
     the next one and never comes back to a lost one.
  2. A virtual key is never valid upstream. None is issued yet, so any that comes is unknown: 401.

Not here: header names. They stand in `headers`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from .config import Config, Key
from .errors import ProxyError, Source
from .headers import Outgoing


def authenticate(config: Config, outgoing: Outgoing) -> None:
    """Refuse a request whose virtual key is unknown, or that lacks one where the config asks for it."""
    if outgoing.virtual_key is not None:
        raise ProxyError(401, "This virtual key is not known here.", source=Source.DOWNSTREAM)
    if config.require_virtual_key:
        raise ProxyError(401, "A virtual key is required, in x-bf-vk or x-api-key.", source=Source.DOWNSTREAM)


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
