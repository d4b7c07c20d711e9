"""Which wire format a request has, and which path goes upstream.

Facts
  - A request target in origin form is ``/path?query`` (RFC 9112 section 3.2.1). It is matched on the
    path, never with the query: SDKs add ``?beta=true``.
  - Below a prefix the path list is open: the remainder goes upstream exactly as it came.
  - Coding agents probe a base URL with ``HEAD /`` or ``HEAD {base}/api/hello``.

Rules
  1. The string that is matched decides; the string that is forwarded is the raw one. A target whose
     decoded form could mean another path to the upstream (dot segments, backslashes, a fragment) is
     refused, not repaired; a backslash counts as a slash.
  2. A path that an upstream may read as a model route is one: ``%6d`` for ``m``, another case, ``;x=1``
     and doubled or trailing slashes do not lead past the body rules.

Not here: methods of the upstream API. An unknown path below a prefix is relayed, and upstream judges.
"""

from __future__ import annotations

import enum
import functools
import re
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from .errors import ProxyError, Source


class Kind(enum.Enum):
    """What the path does with a request."""

    MODEL = "model"
    """The body is read whole and scanned; plan, fallbacks and retries apply."""
    OPEN = "open"
    """The body is streamed to the default provider."""
    BATCH = "batch"
    """As `OPEN`, but the answer may name the provider's host in ``results_url``."""
    JOB = "job"
    """A job is asked for, or is to be forgotten; never relayed."""
    PROBE = "probe"
    HEALTH = "health"
    METRICS = "metrics"
    API = "api"
    """The management of virtual keys; there only where the config has an admin key."""


class Route(NamedTuple):
    """Where a request goes. `path` is what follows the base URL, query included, as it came."""

    kind: Kind
    wire_format: str
    prefix: bytes
    path: bytes
    label: str
    """A name from a closed set, for metrics."""
    operation: str = ""
    """Of a model route: what it is called whichever path leads to it. A job belongs to its operation."""
    job: str = ""
    """The id of the job that the path names."""
    unified: bool = False
    """Whether it is a route to jobs, and not a provider's own."""


ASYNC = b"/v1/async/"

ASYNC_PATHS = MappingProxyType(
    {
        b"messages": ("anthropic", b"/v1/messages"),
        b"messages/count_tokens": ("anthropic", b"/v1/messages/count_tokens"),
        b"complete": ("anthropic", b"/v1/complete"),
        b"chat/completions": ("openai", b"/chat/completions"),
        b"completions": ("openai", b"/completions"),
        b"responses": ("openai", b"/responses"),
        b"embeddings": ("openai", b"/embeddings"),
        b"images/generations": ("openai", b"/images/generations"),
        b"audio/speech": ("openai", b"/audio/speech"),
    }
)
"""What follows `ASYNC`: wire format and path upstream of the request that is done later. Its body is JSON."""

MODEL_PATHS = {"anthropic": (b"/v1/messages", b"/v1/messages/count_tokens", b"/v1/complete")}
"""By wire format: the POST paths whose top-level body names the model."""

PREFIXES = {b"/anthropic": "anthropic"}

OWN = {b"/health": Kind.HEALTH, b"/metrics": Kind.METRICS}

BATCHES = re.compile(rb"/v1/messages/batches(/[^/]+(/cancel)?)?")

MAX_REMEMBERED = 256
"""Routes kept. Clients choose paths, so there is a bound."""

_DOT_SEGMENT = re.compile(rb"(^|[/\\])\.{1,2}(;[^/\\]*)?([/\\]|$)")

_OVERLONG = re.compile(rb"[\xc0\xc1]|\xe0[\x80-\x9f]|\xf0[\x80-\x8f]")
"""What begins a character in more bytes than it needs; lax readers take some for dots and slashes."""

_SEGMENT_END = re.compile(rb"[;?#\x00-\x20]")

_SEGMENT_REST = re.compile(rb"[;?#\x00-\x20][^/\\]*")

_SIMPLE = re.compile(rb"(/[a-z0-9_-][a-z0-9_.-]*)+")
"""A path that all readers read alike."""


def match(method: str, target: bytes, *, anthropic_version: bool) -> Route:
    """The route of a request; `anthropic_version` says whether it has that header.

    Raises `ProxyError`: 400 for a target that is refused, 404 for a path nobody serves, 405 for a
    method that is never relayed or that an own route lacks.
    """
    path, mark, query = target.partition(b"?")
    if b"#" in target:
        raise _bad_target()
    # Without the query: it may hold a key, which nothing may remember.
    route = _match(method, path, anthropic_version)
    return route._replace(path=route.path + mark + query) if mark else route


@functools.lru_cache(MAX_REMEMBERED)
def _match(method: str, target: bytes, anthropic_version: bool) -> Route:
    if method in ("CONNECT", "TRACE"):
        # CONNECT would make us a tunnel; TRACE would echo our own key back (RFC 9110 section 9.3.8).
        raise ProxyError(405, f"{method} is not served.", source=Source.DOWNSTREAM)
    if target in OWN:
        # In this one spelling: who keeps a path from the public in front of us names it so.
        if method not in ("GET", "HEAD"):
            raise _not_allowed("GET, HEAD")
        return Route(OWN[target], "anthropic", b"", target, target.decode())
    path = _checked(target)
    if method == "HEAD" and (path == b"/" or path.endswith(b"/api/hello")):
        return Route(Kind.PROBE, "anthropic", b"", target, "probe")
    if target.startswith(b"/api/governance/"):
        return Route(Kind.API, "anthropic", b"", target, "/api/*")
    if target.startswith(ASYNC):
        return _job(method, target.removeprefix(ASYNC))
    for prefix, wire_format in PREFIXES.items():
        if path.startswith(prefix + b"/"):
            return _below(method, wire_format, prefix, target, path[len(prefix) :])
    bare = path in (b"/v1/messages", b"/v1/complete") or path.startswith(b"/v1/messages/")
    if bare or (anthropic_version and path.startswith(b"/v1/")):
        return _below(method, "anthropic", b"", target, path)
    raise nothing()


def _job(method: str, rest: bytes) -> Route:
    """The route to jobs by paths of their own."""
    prefix = ASYNC.rstrip(b"/")
    if rest in ASYNC_PATHS:
        wire_format, path = ASYNC_PATHS[rest]
        label, operation = f"/v1/async/{rest.decode()}", f"/{wire_format}/v1/{rest.decode()}"
        if method != "POST":
            raise _not_allowed("POST")
        return Route(Kind.MODEL, wire_format, prefix, path, label, operation, unified=True)
    name, _, job = rest.rpartition(b"/")
    if name not in ASYNC_PATHS or not job:
        raise nothing()
    if method not in ("GET", "HEAD", "DELETE"):
        raise _not_allowed("GET, HEAD, DELETE")
    route = _job("POST", name)
    return route._replace(kind=Kind.JOB, path=b"", job=job.decode("latin-1"))


def nothing() -> ProxyError:
    """What a path is answered at which nothing is."""
    return ProxyError(
        404,
        "Nothing is served at this path. Use /anthropic/v1/..., or a bare /v1/... path with an "
        "anthropic-version header.",
        source=Source.DOWNSTREAM,
    )


def _below(method: str, wire_format: str, prefix: bytes, target: bytes, path: bytes) -> Route:
    raw = target[len(prefix) :]
    kind, label, operation = Kind.OPEN, f"/{wire_format}/*", ""
    if method == "POST" and path in MODEL_PATHS[wire_format]:
        kind, label = Kind.MODEL, f"/{wire_format}{path.decode()}"
        operation = label
    elif BATCHES.fullmatch(path):
        kind, label = Kind.BATCH, f"/{wire_format}/v1/messages/batches"
    return Route(kind, wire_format, prefix, raw, label, operation)


def _checked(path: bytes) -> bytes:
    """`path` as the laxest upstream may read it."""
    if not path.startswith(b"/"):
        raise _bad_target()
    if _SIMPLE.fullmatch(path):
        return path
    if _DOT_SEGMENT.search(unquote_to_bytes(path)):
        raise _bad_target()
    readings = _readings(path)
    if any(map(_DOT_SEGMENT.search, readings)):
        raise _bad_target()
    for prefix in PREFIXES:
        # A prefix that is only one after decoding would not be cut off the raw target.
        if not path.startswith(prefix + b"/") and any(read.startswith(prefix + b"/") for read in readings):
            raise _bad_target()
    return next(filter(_is_known, readings), readings[0])


def _is_known(read: bytes) -> bool:
    """Whether it is a path that is no open one."""
    return any(
        read.startswith(prefix) and _is_known_below(wire_format, read[len(prefix) :])
        for prefix, wire_format in (*PREFIXES.items(), (b"", "anthropic"))
    )


def _is_known_below(wire_format: str, path: bytes) -> bool:
    return path in MODEL_PATHS[wire_format] or BATCHES.fullmatch(path) is not None


def _readings(path: bytes) -> list[bytes]:
    """What `path` may be to an upstream, in lower case, with single slashes and none at the end.

    Decoded up to three times. What stands behind parameters, a NUL, a space, ``?`` or ``#`` is dropped before
    any decoding, after it, or not at all; to the end of the segment, or to the end. Raises `ProxyError` 400
    for what is no UTF-8 (RFC 3629 section 3) in a way that is only used to hide something.
    """
    readings = {path.lower()}
    for _ in range(3):
        readings |= {unquote_to_bytes(each).lower() for each in _cut(readings)}
    if any(map(_OVERLONG.search, readings)):
        raise _bad_target()
    found = (b"/" + b"/".join(filter(None, re.split(rb"[/\\]", each))) for each in _cut(readings))
    return sorted(found, key=len, reverse=True)


def _cut(readings: set[bytes]) -> set[bytes]:
    return {
        short
        for each in readings
        for short in (each, _SEGMENT_REST.sub(b"", each), _SEGMENT_END.split(each, maxsplit=1)[0])
    }


def _bad_target() -> ProxyError:
    return ProxyError(
        400,
        "The request target must be a path that starts with / and has no dot segments and no fragment.",
        source=Source.DOWNSTREAM,
    )


def _not_allowed(allowed: str) -> ProxyError:
    return ProxyError(
        405,
        f"This method is not served here; allowed: {allowed}.",
        source=Source.DOWNSTREAM,
        headers=((b"Allow", allowed.encode()),),
    )
