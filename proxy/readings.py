"""How a path may be read: by a provider, and by whoever stands in front of it.

Facts
  - Servers decode a path once or more, drop parameters behind ``;``, merge slashes, take a backslash for one,
    ignore case, or end it at a NUL, a space, ``?`` or ``#``; each in an order of its own.

Rules
  1. A path that may be read as leading up (dot segments in any spelling) is refused, not repaired.
  2. A model in a path has one reading, or is refused.

Not here: which path leads where (`routes`).
"""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from .errors import ProxyError, Source

_PLAIN_MODEL = re.compile(rb"[A-Za-z0-9._:@+=,~()-]+(/[A-Za-z0-9._:@+=,~()-]+)*")
"""A model in a path: nothing that one reader takes for the end of it, and another does not."""

_RESOURCE = re.compile(rb"(?i)(^|/)(models?|deployments)/")
"""What stands before a model in a path: inside of one it may lead to another one."""

_DOT_SEGMENT = re.compile(rb"(^|[/\\])\.{1,2}(;[^/\\]*)?([/\\]|$)")

_OVERLONG = re.compile(rb"[\xc0\xc1]|\xe0[\x80-\x9f]|\xf0[\x80-\x8f]")
"""What begins a character in more bytes than it needs; lax readers take some for dots and slashes."""

_SEGMENT_END = re.compile(rb"[;?#\x00-\x20]")

_SEGMENT_REST = re.compile(rb"[;?#\x00-\x20][^/\\]*")

_SIMPLE = re.compile(rb"(/[a-z0-9_-][a-z0-9_.-]*)+")
"""A path that all readers read alike."""


def of(path: bytes) -> list[bytes]:
    """What `path` may be to the laxest reader; the first is the likeliest. Raises `ProxyError` 400."""
    if not path.startswith(b"/"):
        raise bad_target()
    if _SIMPLE.fullmatch(path):
        return [path]
    if _DOT_SEGMENT.search(unquote_to_bytes(path)):
        raise bad_target()
    readings = _readings(path)
    if any(map(_DOT_SEGMENT.search, readings)):
        raise bad_target()
    return readings


def is_plain(name: bytes) -> bool:
    """Whether a model, decoded, can stand in a path and has one reading there."""
    plain = _PLAIN_MODEL.fullmatch(name) is not None
    return plain and not _DOT_SEGMENT.search(name) and not _RESOURCE.search(name)


def bad_target() -> ProxyError:
    """What a request target is answered with that is none, or may be read as another."""
    return ProxyError(
        400,
        "The request target must be a path that starts with / and has no dot segments and no fragment.",
        source=Source.DOWNSTREAM,
    )


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
        raise bad_target()
    found = (b"/" + b"/".join(filter(None, re.split(rb"[/\\]", each))) for each in _cut(readings))
    return sorted(found, key=len, reverse=True)


def _cut(readings: set[bytes]) -> set[bytes]:
    return {
        short
        for each in readings
        for short in (each, _SEGMENT_REST.sub(b"", each), _SEGMENT_END.split(each, maxsplit=1)[0])
    }
