"""Which header fields pass, which stay, which are ours.

Facts
  - Hop-by-hop fields are those of RFC 9110 section 7.6.1, and every field that ``Connection`` names.
  - A field value is bytes; 0x80 to 0xFF are legal in it (RFC 9110 section 5.5). The parsers on both
    sides refuse CR, LF and NUL, so what arrives here can be written out as it is.
  - CGI and its kin read ``_`` in a name as ``-`` (RFC 3875 section 4.1.18), so ``x_api_key`` may be a
    credential to a provider.
  - nginx acts on ``X-Accel-*`` fields of its upstream, redirects to internal locations included.

Rules
  1. Strip first, set after. A client's ``Connection: x-api-key`` cannot remove our key.
  2. Hop-by-hop names, credential names and our own names stand here and nowhere else.
  3. What is not named here passes: order, case, repeats, unknown names, any bytes.

Not here: the length and the chunking of a body. Those who write a body frame it.
"""

from __future__ import annotations

import base64
import functools
import operator
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress

from . import values

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

VIRTUAL_KEY_PREFIX = values.VIRTUAL_KEY_PREFIX.encode()

JSON = (b"Content-Type", b"application/json")

_CONTROL_PREFIX = b"x-bf-"

VIRTUAL_KEY = b"x-bf-vk"

KEY_NAME = b"x-bf-api-key"

JOB_PREFIX = b"x-bf-async"
"""What the names of the fields begin with that are about jobs."""

_WRITTEN_BY_US = frozenset((b"host", b"content-length", b"expect"))

_SERVED_BY = (
    b"x-bifrost-provider",
    b"x-bifrost-resolved-model",
    b"x-bifrost-original-model",
    b"x-bifrost-fallback-index",
    b"x-bifrost-attempts",
)

JOB_STATUS = b"x-bf-async-status"

JOB_ID = b"x-bf-async-id"

MAX_NAME = 200
"""Characters of a model's name that stand in a field of ours."""

_VISIBLE = re.compile(r"[!-$&-+\--~]*")

_BEARER = re.compile(rb"(?i)\A\s*bearer\s")

_NEVER_NEWS = HOP_BY_HOP | {b"close"}
"""What ``Connection`` may name without a field more to strip."""

_MEMO = 1024
"""Names whose fate is remembered. Clients choose names, so there is a bound."""

_MEMO_LINES = 256
"""Other things that are remembered: the last of each, and short ones only."""


_PASSES, _ENCODING, _CREDENTIAL, _STAYS, _CONNECTION, _VIRTUAL_KEY, _KEY_NAME, _JOB = range(8)
"""What happens to a request's field because of its name. Numbers: they are compared once per field."""

_LENGTH, _DATE, _CONTENT_TYPE, _REQUEST_ID = range(8, 12)
"""The same for an answer's field, which may also pass, stay, or be a ``Connection``."""

_TO_UPSTREAM = {
    (credentials, encoding): frozenset(
        (_PASSES, *[_CREDENTIAL] * credentials, *[_ENCODING] * encoding),
    )
    for credentials in (False, True)
    for encoding in (False, True)
}
"""By whether the client's credentials and its ``Accept-Encoding`` pass: the fates that go upstream."""

_LOOKED_AT = frozenset((_CREDENTIAL, _CONNECTION, _VIRTUAL_KEY, _KEY_NAME, _JOB))

_OF_A_JOB = frozenset((_PASSES, _ENCODING, _KEY_NAME))

_TO_CLIENT = frozenset((_PASSES, _LENGTH, _DATE, _CONTENT_TYPE, _REQUEST_ID))

_SAID = {
    b"content-length": _LENGTH,
    b"date": _DATE,
    b"content-type": _CONTENT_TYPE,
    b"request-id": _REQUEST_ID,
}

_NAME = operator.itemgetter(0)

_LINE = b": ".join
"""A field as a line."""


@functools.lru_cache(_MEMO)
def _out(key: bytes) -> int:
    """The fate of a request's field."""
    name = key.lower().replace(b"_", b"-")
    if name == b"connection":
        return _CONNECTION
    if name == VIRTUAL_KEY:
        return _VIRTUAL_KEY
    if name == KEY_NAME:
        return _KEY_NAME
    if name.startswith(JOB_PREFIX):
        return _JOB
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
    ours = name.startswith(b"x-accel-") or name.replace(b"_", b"-").startswith(JOB_PREFIX)
    if name in HOP_BY_HOP or name in _SERVED_BY or ours:
        return _STAYS
    return _SAID.get(name, _PASSES)


def get(fields: Fields, name: bytes) -> bytes | None:
    """The value of the first field with this lower-case name."""
    size = len(name)
    for key, value in fields:
        if len(key) == size and key.lower() == name:
            return value
    return None


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

    __slots__ = (
        *("_fates", "_fields", "_named"),
        *("has_credential", "job_fields", "key_name", "virtual_keys"),
    )

    def __init__(self, fields: Fields) -> None:
        self._fields = fields
        self._fates = fates = list(map(_out, map(_NAME, fields)))
        self._named: frozenset[bytes] = frozenset()
        self.virtual_keys: frozenset[bytes] = frozenset()
        """The virtual keys that the request carries, wherever clients put one; one key twice is one."""
        self.has_credential = False
        """Whether it carries a credential that is no virtual key."""
        self.key_name: bytes | None = None
        """The name of the provider key that the request asks for."""
        self.job_fields: dict[bytes, bytes] = {}
        """The fields that are about jobs, by lower-case name; the values of a repeated one as one list."""
        for place in compress(range(len(fates)), map(_LOOKED_AT.__contains__, fates)):
            fate, value = fates[place], fields[place][1]
            if fate == _CONNECTION:
                self._named |= _hop_by_hop(value)
            elif fate == _KEY_NAME:
                self.key_name = value
            elif fate == _JOB:
                name = fields[place][0].lower().replace(b"_", b"-")
                before = self.job_fields.get(name)
                self.job_fields[name] = value if before is None else before + b", " + value
            elif fate == _VIRTUAL_KEY or VIRTUAL_KEY_PREFIX in (plain := _unpacked(value)):
                plain = value if fate == _VIRTUAL_KEY else plain
                before, prefix, rest = plain.partition(VIRTUAL_KEY_PREFIX)
                self.virtual_keys |= {(prefix + rest or before).strip(b" \t\"':")}
                fates[place] = _STAYS
            else:
                self.has_credential = True

    def kept(self, *, credentials: bool) -> list[tuple[bytes, bytes]]:
        """The fields without which a job cannot be done, the client's `credentials` among them or not."""
        going = _OF_A_JOB | {_CREDENTIAL} if credentials else _OF_A_JOB
        return [
            field
            for field in compress(self._fields, map(going.__contains__, self._fates))
            if field[0].lower() not in self._named and VIRTUAL_KEY_PREFIX not in b"\0".join(field)
        ]

    def credential_digest(self) -> str:
        """The same for the same credentials, in whichever fields they stand; empty without one."""
        held = {
            _BEARER.sub(b"", value).strip()
            for (_, value), fate in zip(self._fields, self._fates, strict=True)
            if fate == _CREDENTIAL
        }
        return values.digest(b"\0".join(sorted(held))).hex() if held else ""

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
        going = _TO_UPSTREAM[keep_credentials, not identity]
        lines: Iterable[bytes] = map(_LINE, compress(self._fields, map(going.__contains__, self._fates)))
        if self._named:
            lines = _without(self._named, lines)
        out = [b"Host: " + host, *lines]
        if identity:
            out.append(b"Accept-Encoding: identity")
        if own is not None:
            out.append(_LINE(own))
        if chunked:
            out.append(b"Transfer-Encoding: chunked")
        elif length is not None:
            out.append(b"Content-Length: %d" % length)
        out.append(b"")
        head = b"\r\n".join(out)
        if VIRTUAL_KEY_PREFIX not in head:
            return head
        # In a field of any name, of a client without one or with another, it is a secret all the same.
        return b"\r\n".join(line for line in out if VIRTUAL_KEY_PREFIX not in line)


class Head:
    """The field lines of a reply, and what was found out about them on the way."""

    __slots__ = ("has_date", "has_length", "lines")

    def __init__(self, fields: Fields = ()) -> None:
        """`fields` are our own, neither length nor date; those of an answer come through `Inbound`."""
        self.lines = list(map(_LINE, fields))
        self.has_length = False
        self.has_date = False

    def set_length(self, length: int) -> None:
        """Say the length of a body of ours, in bytes."""
        self.lines.append(b"Content-Length: %d" % length)
        self.has_length = True


class Inbound:
    """The fields of an upstream answer, sorted once."""

    __slots__ = ("_fates", "_fields")

    def __init__(self, fields: Fields) -> None:
        self._fields = fields
        self._fates = tuple(map(_in, map(_NAME, fields)))

    def get(self, name: bytes) -> bytes | None:
        """The value of the first field with this lower-case name."""
        return get(self._fields, name)

    @property
    def request_id(self) -> bytes:
        return self._said(_REQUEST_ID)

    @property
    def is_plain_stream(self) -> bool:
        """Whether the answer is server-sent events whose boundaries are visible: not compressed."""
        content_type = self._said(_CONTENT_TYPE)
        if content_type.partition(b";")[0].strip().lower() != b"text/event-stream":
            return False
        return not self.codings

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
        if _CONNECTION in fates:
            pairs = zip(self._fields, fates, strict=True)
            named = frozenset[bytes]().union(
                *(_hop_by_hop(value) for (_, value), fate in pairs if fate == _CONNECTION)
            )
            if named:
                head.lines = list(_without(named, head.lines))
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


def _unpacked(value: bytes) -> bytes:
    """A credential as it is; one of the Basic scheme decoded (RFC 7617 section 2)."""
    if value[:6].lower() != b"basic ":
        return value
    try:
        return base64.b64decode(value[6:])
    except ValueError:
        return value


def _hop_by_hop(value: bytes) -> frozenset[bytes]:
    """Lower-case names that a ``Connection`` field declares hop-by-hop, beyond those that always are."""
    return _nominated(value) if len(value) <= MAX_NAME else _nominated.__wrapped__(value)


@functools.lru_cache(_MEMO_LINES)
def _nominated(value: bytes) -> frozenset[bytes]:
    return frozenset(name.strip().lower() for name in value.split(b",")) - _NEVER_NEWS


def _without(names: frozenset[bytes], lines: Iterable[bytes]) -> Iterator[bytes]:
    """The field lines that do not have one of these lower-case names."""
    return (line for line in lines if line.partition(b":")[0].lower() not in names)
