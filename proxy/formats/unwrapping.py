"""Bedrock's streams as their model wrote them, for who counts tokens.

Facts
  - InvokeModelWithResponseStream puts each event of the model into a frame as ``{"bytes":"BASE64","p":...}``
    (API reference, PayloadPart; ``p`` is padding). ConverseStream has plain JSON in its frames.
  - The last of these events, whichever the model, has a member of AWS' own beside what the model says:
    ``"amazon-bedrock-invocationMetrics":{"inputTokenCount":N,...}``.

Rules
  1. A frame's length and checksum are nobody's business here: the bytes are looked through for the member.
  2. At most `_HELD` bytes are held, and the time for a chunk grows with its length only.

Not here: what the counts are called (`bedrock`), how they are found (`usage`).
"""

from __future__ import annotations

import binascii

_MARK = b'"bytes":"'

_METRICS = b'"amazon-bedrock-invocationMetrics"'

_HELD = 8192
"""The most decoded bytes that wait for the end of their event. The one with the metrics measures 300."""


class Unwrapping:
    """Call it with each chunk: it returns the same with every ``"bytes":"BASE64"`` decoded.

    The metrics are called ``"usage"`` in it, as the counts of all models are.
    """

    __slots__ = ("_carry", "_event", "_inside")

    def __init__(self) -> None:
        self._carry = b""
        """The end of what came: maybe the member's beginning, or base64 that is no four characters yet."""
        self._event = bytearray()
        """What is decoded of an event that is not whole."""
        self._inside = False

    def __call__(self, chunk: bytes) -> bytes:
        data, at = self._carry + chunk, 0
        out: list[bytes | bytearray] = []
        while True:
            end = data.find(b'"' if self._inside else _MARK, at)
            if self._inside:
                stop = end if end >= 0 else len(data) - (len(data) - at) % 4
                self._event += _decoded(data[at:stop])
                if end >= 0 or len(self._event) > _HELD:
                    out.append(self._event.replace(_METRICS, b'"usage"'))
                    self._event = bytearray()
            else:
                stop = end + len(_MARK) if end >= 0 else len(data) - _begun(data)
                out.append(data[at:stop])
            if end < 0:
                self._carry = data[stop:]
                return b"".join(out)
            at, self._inside = stop, not self._inside


def _decoded(text: bytes) -> bytes:
    try:
        return binascii.a2b_base64(text)
    except binascii.Error:
        # No base64 of Bedrock's: no counts either.
        return b""


def _begun(data: bytes) -> int:
    """How many bytes at the end of `data` may be the beginning of the member."""
    if b'"' not in data[1 - len(_MARK) :]:
        return 0
    return next((size for size in range(len(_MARK) - 1, 0, -1) if data.endswith(_MARK[:size])), 0)
