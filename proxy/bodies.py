"""Held bodies: how much memory all of them may take together.

Facts
  - Ten bodies of 32 MB at once cost a sketch of this proxy 745 MiB.

Rules
  1. What has come is counted, not what was announced: an announcement costs its sender nothing.
  2. A body is counted until it has gone upstream for the last time.

Not here: the limit of one body (`incoming`).
"""

from __future__ import annotations

from .errors import RETRY_SOON, ProxyError
from .exchange import Exchange


class Bodies:
    """The bodies that are held at the moment; their sizes are kept in `Exchange.held`."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        """Bytes, all bodies together."""
        self.bytes = 0

    def expect(self, size: int) -> None:
        """Raises `ProxyError` 503 when so much more has no room."""
        if self.bytes + size > self.limit:
            raise ProxyError(
                503, "The proxy holds too many large requests; send this one again.", headers=(RETRY_SOON,)
            )

    def hold(self, exchange: Exchange, size: int) -> None:
        """Count `size` bytes that have come. Raises as `expect`."""
        self.expect(size)
        self.bytes += size
        exchange.held += size

    def grow(self, exchange: Exchange, size: int) -> None:
        """Count `size` bytes that are kept whether there is room or not: they have been paid for."""
        self.bytes += size
        exchange.held += size

    @property
    def full(self) -> bool:
        """Whether nothing more should be taken in that can wait."""
        return self.bytes >= self.limit

    def let_go(self, exchange: Exchange, size: int | None = None) -> None:
        """So many bytes of this request are not held any more; None is all of them."""
        size = exchange.held if size is None else size
        self.bytes -= size
        exchange.held -= size
