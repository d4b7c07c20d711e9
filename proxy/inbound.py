"""Which header fields of an upstream answer pass, and those that we add to it.

Facts
  - nginx acts on ``X-Accel-*`` fields of its upstream, redirects to internal locations included.
  - Anthropic calls the id of a request ``request-id``, OpenAI ``x-request-id``, AWS ``x-amzn-RequestId``.

Rules
  1. What is not named here or in `headers` passes: order, case, repeats, unknown names, any bytes.

Not here: the fields of requests (`headers`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from itertools import compress

from . import headers
from .headers import CONNECTION, LINE, NAME, PASSES, STAYS, Fields, get

_SERVED_BY = (
    b"x-bifrost-provider",
    b"x-bifrost-resolved-model",
    b"x-bifrost-original-model",
    b"x-bifrost-fallback-index",
    b"x-bifrost-attempts",
)

MAX_NAME = 200
"""Characters of a model's name that stand in a field of ours."""

_VISIBLE = re.compile(r"[!-$&-+\--~]*")

_ORIGIN = re.compile(rb"^([^:]*:[ \t]*)https?://[^/?#]*")
"""The origin of a URL, in a field's line."""

_MEMO = 1024
"""Names whose fate is remembered. Providers choose names, so there is a bound."""

_MEMO_LINES = 256

_LENGTH, _DATE, _CONTENT_TYPE, _REQUEST_ID = range(3, 7)
"""What an answer's field may be besides, because of its name."""

_TO_CLIENT = frozenset((PASSES, _LENGTH, _DATE, _CONTENT_TYPE, _REQUEST_ID))

_SAID = {
    b"content-length": _LENGTH,
    b"date": _DATE,
    b"content-type": _CONTENT_TYPE,
    **dict.fromkeys((b"request-id", b"x-request-id", b"x-amzn-requestid"), _REQUEST_ID),
}


@functools.lru_cache(_MEMO)
def _in(key: bytes) -> int:
    """The fate of an answer's field."""
    name = key.lower()
    if name == b"connection":
        return CONNECTION
    ours = name.startswith(b"x-accel-") or name.replace(b"_", b"-").startswith(headers.JOB_PREFIX)
    if name in headers.HOP_BY_HOP or name in _SERVED_BY or ours:
        return STAYS
    return _SAID.get(name, PASSES)


class Head:
    """The field lines of a reply, and what was found out about them on the way."""

    __slots__ = ("has_date", "has_length", "lines")

    def __init__(self, fields: Fields = ()) -> None:
        """`fields` are our own, neither length nor date; those of an answer come through `Inbound`."""
        self.lines = list(map(LINE, fields))
        self.has_length = False
        self.has_date = False

    def names(self, names: tuple[bytes, ...]) -> bool:
        """Whether there is a field with one of these lower-case names."""
        return any(line.lower().startswith(names) for line in self.lines)

    def relocate(self, names: tuple[bytes, ...], base: bytes) -> None:
        """Put `base`, an origin and a prefix, for the origin in the URLs of the fields with these names."""
        self.lines = [
            _ORIGIN.sub(lambda found: found[1] + base, line) if line.lower().startswith(names) else line
            for line in self.lines
        ]

    def set_length(self, length: int) -> None:
        """Say the length of a body of ours, in bytes."""
        self.lines.append(b"Content-Length: %d" % length)
        self.has_length = True


class Inbound:
    """The fields of an upstream answer, sorted once."""

    __slots__ = ("_fates", "_fields")

    def __init__(self, fields: Fields) -> None:
        self._fields = fields
        self._fates = tuple(map(_in, map(NAME, fields)))

    def get(self, name: bytes) -> bytes | None:
        """The value of the first field with this lower-case name."""
        return get(self._fields, name)

    @property
    def request_id(self) -> bytes:
        return self._said(_REQUEST_ID)

    @property
    def is_plain_stream(self) -> bool:
        """Whether the answer is server-sent events whose boundaries are visible: not compressed."""
        return self.is_plain(b"text/event-stream")

    def is_plain(self, content_type: bytes) -> bool:
        """Whether the answer has this type, in lower case, and is not compressed."""
        return (
            self._said(_CONTENT_TYPE).partition(b";")[0].strip().lower() == content_type and not self.codings
        )

    @property
    def codings(self) -> str:
        """The content codings of the body; empty when there is none."""
        values = [value for name, value in self._fields if name.lower() == b"content-encoding"]
        if all(value.strip().lower() == b"identity" for value in values):
            return ""
        return b", ".join(values).decode("latin-1")

    def head(self, *, stream: bool, sized: bool = True) -> Head:
        """The fields that go downstream; for a `stream` nginx is told not to buffer.

        Without upstream's length where the body is not `sized`: pings are no part of it, and 204 has none.
        """
        fates = self._fates
        going = _TO_CLIENT if sized else _TO_CLIENT - {_LENGTH}
        head = Head(tuple(compress(self._fields, map(going.__contains__, fates))))
        head.has_length = sized and _LENGTH in fates
        head.has_date = _DATE in fates
        if CONNECTION in fates:
            pairs = zip(self._fields, fates, strict=True)
            named = frozenset[bytes]().union(
                *(headers.hop_by_hop(value) for (_, value), fate in pairs if fate == CONNECTION)
            )
            if named:
                head.lines = list(headers.without(named, head.lines))
                head.has_length = head.has_length and b"content-length" not in named
                head.has_date = head.has_date and b"date" not in named
        if stream:
            head.lines.append(b"X-Accel-Buffering: no")
        return head

    def _said(self, fate: int) -> bytes:
        fates = self._fates
        return self._fields[fates.index(fate)][1] if fate in fates else b""


def served_by(
    provider: str, original: str, resolved: str, index: str, attempts: Sequence[tuple[str, str]]
) -> tuple[bytes, ...]:
    """The field lines that say who answered, under Bifrost's names; empty values are left out."""
    tried = tuple((name[:MAX_NAME], outcome) for name, outcome in attempts)
    return _served_by(provider, original[:MAX_NAME], resolved[:MAX_NAME], index, tried)


@functools.lru_cache(_MEMO_LINES)
def _served_by(
    provider: str, original: str, resolved: str, index: str, attempts: tuple[tuple[str, str], ...]
) -> tuple[bytes, ...]:
    tried = b",".join(_escaped(name) + b":" + outcome.encode() for name, outcome in attempts)
    values = (_escaped(provider), _escaped(resolved), _escaped(original), index.encode(), tried)
    return tuple(name + b": " + value for name, value in zip(_SERVED_BY, values, strict=True) if value)


def _escaped(value: str) -> bytes:
    """Client text as a field value: what is not visible ASCII, or separates attempts, as ``%XX``."""
    if _VISIBLE.fullmatch(value):
        return value.encode("ascii")
    raw = value.encode("utf-8", "surrogatepass")
    return b"".join(bytes((byte,)) if _VISIBLE.fullmatch(chr(byte)) else b"%%%02X" % byte for byte in raw)
