"""Which header fields pass, which stay, which are ours.

Facts
  - Hop-by-hop fields are those of RFC 9110 section 7.6.1, and every field that ``Connection`` names.
  - A field value is bytes; 0x80 to 0xFF are legal in it (RFC 9110 section 5.5). The parsers on both
    sides refuse CR, LF and NUL, so what arrives here can be written out as it is.
  - nginx acts on ``X-Accel-*`` fields of its upstream, redirects to internal locations included.

Rules
  1. Strip first, set after. A client's ``Connection: x-api-key`` cannot remove our key.
  2. Hop-by-hop names, credential names and our own names stand here and nowhere else.
  3. What is not named here passes: order, case, repeats, unknown names, any bytes.

Not here: the length and the chunking of a body. Those who write a body frame it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

Fields = Sequence[tuple[bytes, bytes]]
"""Header fields in the order they came, names in their own case."""

HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)

CREDENTIALS = frozenset((b"authorization", b"x-api-key", b"x-goog-api-key", b"api-key"))

VIRTUAL_KEY_PREFIX = b"sk-bf-"

_CONTROL_PREFIX = b"x-bf-"

VIRTUAL_KEY = b"x-bf-vk"

_WRITTEN_BY_US = frozenset((b"host", b"content-length", b"expect"))

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

_NEVER_NEWS = HOP_BY_HOP | {b"close"}
"""What ``Connection`` may name without a field more to strip."""

_MEMO = 4096
"""Names whose fate is remembered. Clients choose names, so there is a bound."""


_PASSES, _STAYS, _CONNECTION, _CREDENTIAL, _ENCODING = range(5)
"""What happens to a field because of its name. Plain numbers: they are compared once per field."""


@functools.lru_cache(_MEMO)
def _out(key: bytes) -> int:
    """The fate of a request's field."""
    name = key.lower()
    if name == b"connection":
        return _CONNECTION
    if name in CREDENTIALS:
        return _CREDENTIAL
    if name == b"accept-encoding":
        return _ENCODING
    if name in HOP_BY_HOP or name in _WRITTEN_BY_US or name.startswith(_CONTROL_PREFIX):
        return _STAYS
    return _PASSES


@functools.lru_cache(_MEMO)
def _in(key: bytes) -> int:
    """The fate of an answer's field."""
    name = key.lower()
    if name == b"connection":
        return _CONNECTION
    if name in HOP_BY_HOP or name in _SERVED_BY or name.startswith(b"x-accel-"):
        return _STAYS
    return _PASSES


def get(fields: Fields, name: bytes) -> bytes | None:
    """The value of the first field with this lower-case name."""
    for key, value in fields:
        if key.lower() == name:
            return value
    return None


def is_plain_stream(fields: Fields) -> bool:
    """Whether an answer is server-sent events whose boundaries are visible: not compressed."""
    content_type = get(fields, b"content-type") or b""
    if content_type.partition(b";")[0].strip().lower() != b"text/event-stream":
        return False
    return all(
        value.strip().lower() == b"identity" for key, value in fields if key.lower() == b"content-encoding"
    )


def credential(wire_format: str, key: str) -> tuple[bytes, bytes]:
    """The field in which a provider expects its own key.

    An Anthropic OAuth token goes as a bearer, everything else as ``x-api-key``
    (platform.claude.com, authentication page).
    """
    value = key.encode("latin-1")
    if wire_format == "anthropic" and not key.startswith("sk-ant-oat"):
        return b"x-api-key", value
    return b"Authorization", b"Bearer " + value


class Outgoing:
    """A request's fields, sorted once; each attempt writes its head from them."""

    __slots__ = ("_fates", "_fields", "_named")

    def __init__(self, fields: Fields) -> None:
        self._fields = fields
        self._fates = [_out(key) for key, _ in fields]
        self._named = _nominated(fields, self._fates)

    def virtual_key(self) -> bytes | None:
        """The virtual key that the request carries, wherever clients put one."""
        for (key, value), fate in zip(self._fields, self._fates, strict=True):
            if fate == _CREDENTIAL and VIRTUAL_KEY_PREFIX in value:
                return value
            if fate == _STAYS and key.lower() == VIRTUAL_KEY:
                return value
        return None

    def head(
        self,
        *,
        host: bytes,
        own: tuple[bytes, bytes] | None,
        keep_credentials: bool,
        identity: bool,
        length: int | None,
        chunked: bool,
    ) -> bytes:
        """The header section of an upstream request, without the empty line.

        `own` is our credential field; `keep_credentials` lets the client's pass instead. `identity` asks
        for an uncompressed answer, because a compressed stream has no visible event boundary. `length`
        is the body's length in bytes, None when there is no body or it is chunked.
        """
        going = {_PASSES}
        if keep_credentials:
            going.add(_CREDENTIAL)
        if not identity:
            going.add(_ENCODING)
        kept = [field for field, fate in zip(self._fields, self._fates, strict=True) if fate in going]
        if self._named:
            kept = [field for field in kept if field[0].lower() not in self._named]
        out = [b"Host: " + host]
        out += [key + b": " + value for key, value in kept]
        if identity:
            out.append(b"Accept-Encoding: identity")
        if own is not None:
            out.append(b"%b: %b" % own)
        if chunked:
            out.append(b"Transfer-Encoding: chunked")
        elif length is not None:
            out.append(b"Content-Length: %d" % length)
        out.append(b"")
        return b"\r\n".join(out)


def inbound(fields: Fields, *, stream: bool) -> list[tuple[bytes, bytes]]:
    """The fields of an upstream answer that go downstream; for a `stream` nginx is told not to buffer."""
    fates = [_in(key) for key, _ in fields]
    named = _nominated(fields, fates)
    kept = [field for field, fate in zip(fields, fates, strict=True) if fate == _PASSES]
    if named:
        kept = [(key, value) for key, value in kept if key.lower() not in named]
    if stream:
        # Pings are no part of upstream's length; the stream is chunked anew.
        kept = without_length(kept)
        kept.append((b"X-Accel-Buffering", b"no"))
    return kept


def without_length(fields: Fields) -> list[tuple[bytes, bytes]]:
    """`fields` less the length of a body that was changed."""
    return [(name, value) for name, value in fields if name.lower() != b"content-length"]


def served_by(
    provider: str, original: str, resolved: str, index: str, attempts: Sequence[tuple[str, str]]
) -> list[tuple[bytes, bytes]]:
    """The fields that say who answered, under Bifrost's names; empty values are left out."""
    tried = b",".join(_printable(name) + b":" + outcome.encode() for name, outcome in attempts)
    values = (_printable(provider), _printable(resolved), _printable(original), index.encode(), tried)
    return [(name, value) for name, value in zip(_SERVED_BY, values, strict=True) if value]


def _printable(value: str) -> bytes:
    return _escaped(value[:MAX_NAME])


@functools.lru_cache(_MEMO)
def _escaped(value: str) -> bytes:
    """Client text as a field value: what is not visible ASCII, or separates attempts, as ``%XX``."""
    if _VISIBLE.fullmatch(value):
        return value.encode("ascii")
    raw = value.encode("utf-8", "surrogatepass")
    return b"".join(bytes((byte,)) if _VISIBLE.fullmatch(chr(byte)) else b"%%%02X" % byte for byte in raw)


def _nominated(fields: Fields, fates: Sequence[int]) -> set[bytes]:
    """Lower-case names that ``Connection`` fields declare hop-by-hop, beyond those that always are."""
    names: set[bytes] = set()
    if _CONNECTION in fates:
        for (_, value), fate in zip(fields, fates, strict=True):
            if fate == _CONNECTION:
                names.update(name.strip().lower() for name in value.split(b","))
    return names - _NEVER_NEWS
