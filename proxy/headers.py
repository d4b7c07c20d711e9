"""Which header fields of a request pass, which stay, which are ours; and the names of all that matter.

Facts
  - Hop-by-hop fields are those of RFC 9110 section 7.6.1, and every field that ``Connection`` names.
  - A field value is bytes; 0x80 to 0xFF are legal in it (RFC 9110 section 5.5). The parsers on both
    sides refuse CR, LF and NUL, so what arrives here can be written out as it is.
  - CGI and its kin read ``_`` in a name as ``-`` (RFC 3875 section 4.1.18), so ``x_api_key`` may be a
    credential to a provider.

Rules
  1. Strip first, set after. A client's ``Connection: x-api-key`` cannot remove our key.
  2. Hop-by-hop names, credential names and our own names stand here and nowhere else.
  3. What is not named here passes: order, case, repeats, unknown names, any bytes.

Not here: the fields of answers (`inbound`); the length and the chunking of a body: who writes it frames it;
which credential a provider expects (`formats`).
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

CREDENTIALS = frozenset(
    (
        *(b"authorization", b"x-api-key", b"x-goog-api-key", b"api-key"),
        *(b"ocp-apim-subscription-key", b"x-goog-iam-authorization-token"),
    )
)

VIRTUAL_KEY_PREFIX = values.VIRTUAL_KEY_PREFIX.encode()

JSON = (b"Content-Type", b"application/json")

_CONTROL_PREFIX = b"x-bf-"

VIRTUAL_KEY = b"x-bf-vk"

KEY_NAME = b"x-bf-api-key"

FALLBACKS = b"x-bf-fallbacks"

PROVIDER = b"x-model-provider"

JOB_PREFIX = b"x-bf-async"
"""What the names of the fields begin with that are about jobs."""

_WRITTEN_BY_US = frozenset((b"host", b"content-length", b"expect"))

_OF_A_SIGNATURE = frozenset((b"x-amz-date", b"x-amz-security-token", b"x-amz-content-sha256"))
"""They belong to a client's signature (AWS Signature Version 4), which no proxy can hand on."""

_OVERRIDES = frozenset((b"x-http-method-override", b"x-http-method", b"x-method-override"))
"""A request that was judged by its method must have it at the provider, too."""

_NOT_FORWARDED = HOP_BY_HOP | _WRITTEN_BY_US | _OF_A_SIGNATURE | _OVERRIDES

_SIGNATURE = re.compile(rb"(?i)\s*AWS4-")

JOB_STATUS = b"x-bf-async-status"

JOB_ID = b"x-bf-async-id"

_SHORT = 200
"""A longer value of ``Connection`` is not remembered."""

_BEARER = re.compile(rb"(?i)\A\s*bearer\s")

_NEVER_NEWS = HOP_BY_HOP | {b"close"}
"""What ``Connection`` may name without a field more to strip."""

_MEMO = 1024
"""Names whose fate is remembered. Clients choose names, so there is a bound."""

_MEMO_LINES = 256
"""Other things that are remembered: the last of each, and short ones only."""


PASSES, STAYS, CONNECTION = range(3)
"""What happens to a field because of its name. Numbers: they are compared once per field."""

_ENCODING, _CREDENTIAL, _VIRTUAL_KEY, _KEY_NAME, _JOB, _FALLBACKS, _PROVIDER = range(3, 10)
"""The same for a request's field only."""

_TO_UPSTREAM = {
    (credentials, encoding): frozenset(
        (PASSES, *[_CREDENTIAL] * credentials, *[_ENCODING] * encoding),
    )
    for credentials in (False, True)
    for encoding in (False, True)
}
"""By whether the client's credentials and its ``Accept-Encoding`` pass: the fates that go upstream."""

_ASKED = {KEY_NAME: _KEY_NAME, FALLBACKS: _FALLBACKS, PROVIDER: _PROVIDER}

_LOOKED_AT = frozenset(
    (_CREDENTIAL, CONNECTION, _VIRTUAL_KEY, _KEY_NAME, _JOB, _FALLBACKS, _PROVIDER),
)

_OF_A_JOB = frozenset((PASSES, _ENCODING, _KEY_NAME, _FALLBACKS))

NAME = operator.itemgetter(0)

LINE = b": ".join
"""A field as a line."""


@functools.lru_cache(_MEMO)
def _out(key: bytes) -> int:
    """The fate of a request's field."""
    name = key.lower().replace(b"_", b"-")
    if name == b"connection":
        return CONNECTION
    if name == VIRTUAL_KEY:
        return _VIRTUAL_KEY
    if name in _ASKED:
        return _ASKED[name]
    if name.startswith(JOB_PREFIX):
        return _JOB
    if name in CREDENTIALS:
        return _CREDENTIAL
    if name == b"accept-encoding":
        return _ENCODING
    if name in _NOT_FORWARDED or name.startswith(_CONTROL_PREFIX):
        return STAYS
    return PASSES


def get(fields: Fields, name: bytes) -> bytes | None:
    """The value of the first field with this lower-case name."""
    size = len(name)
    for key, value in fields:
        if len(key) == size and key.lower() == name:
            return value
    return None


class Outgoing:
    """A request's fields, sorted once; each attempt writes its head from them."""

    __slots__ = (
        *("_fates", "_fields", "_named"),
        *("fallbacks", "has_credential", "is_signed", "job_fields", "key_name", "provider", "virtual_keys"),
    )

    def __init__(self, fields: Fields, found: Fields = ()) -> None:
        """`found` are credentials as fields that were none in the request; one key twice is one."""
        if found:
            have = {value for name, value in fields if _out(name) == _CREDENTIAL}
            fields = (*fields, *(field for field in dict.fromkeys(found) if field[1] not in have))
        self._fields = fields
        self._fates = fates = list(map(_out, map(NAME, fields)))
        self._named: frozenset[bytes] = frozenset()
        self.virtual_keys: frozenset[bytes] = frozenset()
        """The virtual keys that the request carries, wherever clients put one; one key twice is one."""
        self.has_credential = False
        """Whether it carries a credential that is no virtual key."""
        self.key_name: bytes | None = None
        """The name of the provider key that the request asks for."""
        self.fallbacks: tuple[bytes, ...] = ()
        """The targets that it asks for besides those of its body."""
        self.provider: bytes | None = None
        """The provider that a request asks for which names no model."""
        self.is_signed = False
        """Whether it was signed by the client: that is a credential for nobody else."""
        self.job_fields: dict[bytes, bytes] = {}
        """The fields that are about jobs, by lower-case name; the values of a repeated one as one list."""
        for place in compress(range(len(fates)), map(_LOOKED_AT.__contains__, fates)):
            fate, value = fates[place], fields[place][1]
            if fate == CONNECTION:
                self._named |= hop_by_hop(value)
            elif fate == _KEY_NAME:
                self.key_name = value
            elif fate == _FALLBACKS:
                names = (name.strip() for name in value.split(b","))
                self.fallbacks += tuple(name for name in names if name)
            elif fate == _PROVIDER:
                self.provider = value
            elif fate == _CREDENTIAL and _SIGNATURE.match(value):
                self.is_signed = True
                fates[place] = STAYS
            elif fate == _JOB:
                name = fields[place][0].lower().replace(b"_", b"-")
                before = self.job_fields.get(name)
                self.job_fields[name] = value if before is None else before + b", " + value
            elif fate == _VIRTUAL_KEY or VIRTUAL_KEY_PREFIX in (plain := _unpacked(value)):
                plain = value if fate == _VIRTUAL_KEY else plain
                before, prefix, rest = plain.partition(VIRTUAL_KEY_PREFIX)
                self.virtual_keys |= {(prefix + rest or before).strip(b" \t\"':")}
                fates[place] = STAYS
            else:
                self.has_credential = True

    def get(self, name: bytes) -> bytes | None:
        """The value of the first field with this lower-case name."""
        return get(self._fields, name)

    def credentials(self) -> list[tuple[bytes, bytes]]:
        """The fields with the client's own credentials."""
        return list(compress(self._fields, map(_CREDENTIAL.__eq__, self._fates)))

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
        lines: Iterable[bytes] = map(LINE, compress(self._fields, map(going.__contains__, self._fates)))
        if self._named:
            lines = without(self._named, lines)
        out = [b"Host: " + host, *lines]
        if identity:
            out.append(b"Accept-Encoding: identity")
        if own is not None:
            out.append(LINE(own))
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


def _unpacked(value: bytes) -> bytes:
    """A credential as it is; one of the Basic scheme decoded (RFC 7617 section 2)."""
    if value[:6].lower() != b"basic ":
        return value
    try:
        return base64.b64decode(value[6:])
    except ValueError:
        return value


def hop_by_hop(value: bytes) -> frozenset[bytes]:
    """Lower-case names that a ``Connection`` field declares hop-by-hop, beyond those that always are."""
    return _nominated(value) if len(value) <= _SHORT else _nominated.__wrapped__(value)


@functools.lru_cache(_MEMO_LINES)
def _nominated(value: bytes) -> frozenset[bytes]:
    return frozenset(name.strip().lower() for name in value.split(b",")) - _NEVER_NEWS


def without(names: frozenset[bytes], lines: Iterable[bytes]) -> Iterator[bytes]:
    """The field lines that do not have one of these lower-case names."""
    return (line for line in lines if line.partition(b":")[0].lower() not in names)
