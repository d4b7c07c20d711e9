"""Is a request signed? AWS Signature Version 4, checked from the bytes that came, as a provider would.

Facts
  - What is signed, and how, is written in AWS' IAM User Guide, "Create a signed AWS API request": a canonical
    request, a string to sign with its hash, a key derived by date, region and service.
  - The path in the canonical request is that of the wire, normalised (RFC 3986 section 6.2.2.3, and one slash
    for several), with each segment percent-encoded once more.
  - ``host``, ``content-type`` and every ``x-amz-*`` field of the request must be signed.
  - A request is good for five minutes around its ``x-amz-date``.

Rules
  1. Nothing here is botocore's: what signs must not judge itself.

Not here: the answers to such requests (`bedrock_upstream`).
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, unquote_to_bytes

from rawclient import Headers, header_values
from scripted import Request

LASTS = timedelta(minutes=5)

_AUTHORIZATION = re.compile(
    rb"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/([^/]+)/aws4_request, "
    rb"SignedHeaders=([a-z0-9;-]+), Signature=([0-9a-f]{64})"
)


@dataclass(frozen=True)
class Credentials:
    """What a signer has, and the provider knows."""

    access_key: str
    secret_key: str
    token: str | None = None


class Refused(Exception):
    """A request is not signed as it must be: Bedrock's name for that, and what is wrong."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Signed:
    """What a good signature says."""

    access_key: str
    region: str
    service: str
    fields: tuple[str, ...]
    """The names of the fields that it covers."""


def check(request: Request, known: Mapping[str, Credentials], now: datetime | None = None) -> Signed:
    """What the signature of `request` says, by one of the `known` access keys. Raises `Refused`."""
    given = request.values("authorization")
    if len(given) != 1:
        raise Refused("MissingAuthenticationTokenException", f"{len(given)} Authorization fields")
    match = _AUTHORIZATION.fullmatch(given[0])
    if match is None:
        raise Refused("IncompleteSignatureException", "not a signature of version 4")
    access_key, day, region, service, names, signature = (part.decode() for part in match.groups())
    credentials = known.get(access_key)
    if credentials is None:
        raise Refused("UnrecognizedClientException", "the access key is nobody's")
    _check_time(request, day, now or datetime.now(UTC))
    if (token := request.header("x-amz-security-token")) != (credentials.token or "").encode() and (
        token is not None or credentials.token
    ):
        raise Refused("UnrecognizedClientException", "the security token is not that of the access key")
    signed = tuple(names.split(";"))
    _check_fields(request.headers, signed)
    digest = hashlib.sha256(request.body).hexdigest()
    if request.header("x-amz-content-sha256") not in (None, digest.encode()):
        raise Refused("InvalidSignatureException", "x-amz-content-sha256 is not the hash of the body")
    canonical = canonical_request(request, signed, digest)
    when = _date(request)
    scope = f"{day}/{region}/{service}/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{when}\n{scope}\n{hashlib.sha256(canonical).hexdigest()}"
    key = f"AWS4{credentials.secret_key}".encode()
    for part in (day, region, service, "aws4_request", text):
        key = hmac.digest(key, part.encode(), "sha256")
    if not hmac.compare_digest(key.hex(), signature):
        raise Refused("InvalidSignatureException", "the signature is not the one that was calculated here")
    return Signed(access_key, region, service, signed)


def canonical_request(request: Request, signed: tuple[str, ...], digest: str) -> bytes:
    path, _, query = request.target.partition(b"?")
    lines = [request.method.encode(), canonical_path(path), canonical_query(query)]
    lines += [name.encode() + b":" + _value(request.headers, name) for name in signed]
    lines += [b"", ";".join(signed).encode(), digest.encode()]
    return b"\n".join(lines)


def canonical_path(path: bytes) -> bytes:
    """A path as it is signed: normalised, and percent-encoded once more."""
    kept: list[bytes] = []
    for segment in path.split(b"/"):
        if segment == b"..":
            del kept[-1:]
        elif segment not in (b"", b"."):
            kept.append(segment)
    rooted = b"".join(b"/" + quote(segment, safe="-_.~").encode() for segment in kept)
    slash = b"/" if not kept or path.endswith((b"/", b"/.", b"/..")) else b""
    return rooted + slash


def canonical_query(query: bytes) -> bytes:
    """A query as it is signed: each part decoded and encoded again, in order."""
    pairs = [pair.partition(b"=")[::2] for pair in query.split(b"&") if pair]
    encoded = [tuple(quote(unquote_to_bytes(part), safe="-_.~") for part in pair) for pair in pairs]
    return "&".join(f"{name}={value}" for name, value in sorted(encoded)).encode()


def _value(headers: Headers, name: str) -> bytes:
    return b",".join(re.sub(rb" +", b" ", value.strip()) for value in header_values(headers, name))


def _date(request: Request) -> str:
    dates = request.values("x-amz-date")
    if len(dates) != 1:
        raise Refused("IncompleteSignatureException", f"{len(dates)} X-Amz-Date fields")
    return dates[0].decode()


def _check_time(request: Request, day: str, now: datetime) -> None:
    when = _date(request)
    try:
        at = datetime.strptime(when, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        raise Refused("IncompleteSignatureException", "X-Amz-Date is no date") from None
    if not when.startswith(day):
        raise Refused("InvalidSignatureException", "the scope is of another day than the request")
    if abs(now - at) > LASTS:
        raise Refused("InvalidSignatureException", "the signature has expired, or is of the future")


def _check_fields(headers: Headers, signed: tuple[str, ...]) -> None:
    if list(signed) != sorted(set(signed)):
        raise Refused("IncompleteSignatureException", "the signed fields are not in order")
    there = {name.lower().decode() for name, _ in headers}
    if missing := set(signed) - there:
        raise Refused("InvalidSignatureException", f"signed, and not there: {sorted(missing)}")
    must = {name for name in there if name in ("host", "content-type") or name.startswith("x-amz-")}
    if open_ := must - set(signed):
        raise Refused("InvalidSignatureException", f"there, and not signed: {sorted(open_)}")
