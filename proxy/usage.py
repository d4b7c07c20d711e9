"""Token usage, picked out of bytes that pass.

Facts
  - A message answer, and the ``message_start`` and ``message_delta`` events of a stream, carry
    ``"usage":{"input_tokens":N,...,"output_tokens":N}``; the counts in ``message_delta`` are
    cumulative, so the last value seen is the value (Anthropic, streaming messages page).
  - The word also stands inside answers that talk about usage; there its quotes are escaped.

Rules
  1. Per chunk one byte search. What follows a hit is looked at when the answer is over.

Not here: prices. What passes is counted, not judged.
"""

from __future__ import annotations

import re

_MARK = b'"usage"'

_WINDOW = 1024
"""Bytes kept behind a hit; Anthropic's usage objects measure 100 to 600."""

_COUNT = re.compile(
    rb'"(input_tokens|output_tokens|cache_creation_input_tokens|cache_read_input_tokens)"\s*:\s*(\d{1,15})'
)


class Usage:
    """Feed it what passes; ask `counts` at the end."""

    __slots__ = ("_carry", "_filling", "_seen")

    def __init__(self) -> None:
        self._carry = b""
        self._seen: list[bytes] = []
        self._filling = False
        """Whether a window has room left."""

    def feed(self, chunk: bytes) -> None:
        """Look at one chunk; a mark or an object may be split over chunks."""
        seen = self._seen
        if self._filling:
            for index, held in enumerate(seen):
                seen[index] = held + chunk[: _WINDOW - len(held)]
            self._filling = len(seen[-1]) < _WINDOW
        data = self._carry + chunk if self._carry else chunk
        at = data.find(_MARK)
        while at >= 0:
            # The first names the input, the last is final; those between are replaced.
            del seen[1:]
            seen.append(data[at : at + _WINDOW])
            self._filling = True
            at = data.find(_MARK, at + len(_MARK))
        # No mark goes over the end of a line, where most chunks of a stream end.
        self._carry = b"" if data.endswith(b"\n") else data[1 - len(_MARK) :]

    def counts(self) -> dict[str, int]:
        """Tokens by Anthropic's field names, later ones over earlier; empty when none were seen."""
        found: dict[str, int] = {}
        for seen in self._seen:
            end = seen.find(b"}}")
            for name, value in _COUNT.findall(seen if end < 0 else seen[:end]):
                found[name.decode()] = int(value)
        return found
