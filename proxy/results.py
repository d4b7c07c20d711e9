"""``results_url`` of batch answers: the one place where a byte of an answer changes.

Facts
  - A batch object names the provider's host in ``results_url``, and SDKs send their key there,
    whatever their base URL is (anthropic SDK, messages/batches). Where the proxy has the keys, that
    request would fail, and would show the client's credential to a host that must not see it.

Rules
  1. Only what stands before ``/v1/messages/batches/`` in that value is replaced; all else stays.

Not here: when this applies. `handle` asks for it where the provider has keys of its own.
"""

from __future__ import annotations

import re

_RESULTS_URL = re.compile(rb'("results_url"\s*:\s*")[^"]*?(\\?/v1\\?/messages\\?/batches\\?/)')


def localized(answer: bytes, base: bytes) -> bytes:
    """`answer` with its ``results_url`` values below `base`, an origin and prefix without a final slash."""
    return _RESULTS_URL.sub(lambda found: found[1] + base + found[2], answer)
