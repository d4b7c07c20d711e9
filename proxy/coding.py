"""Content codings of request bodies: looking inside without changing anything.

Facts
  - ``gzip`` and ``x-gzip`` are the same, ``deflate`` means the zlib format (RFC 9110 section 8.4.1).
  - A few kilobytes can decode to gigabytes.

Rules
  1. The bytes that go upstream are the client's own; what is decoded here is only scanned.
  2. Decoding stops at the limit that holds for plain bodies.

Not here: other codings. A body that cannot be looked into cannot be planned for.
"""

from __future__ import annotations

import zlib

from .errors import ProxyError, Source

_WBITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}


def decoded(body: bytes, coding: str, limit: int) -> bytes:
    """`body` without its coding, at most `limit` bytes.

    Blocks while it decodes, but lets other threads run meanwhile.
    Raises `ProxyError` 415 for an unknown coding, 400 for damaged data, 413 beyond the limit.
    """
    wbits = _WBITS.get(coding.strip().lower())
    if wbits is None:
        raise _error(415, "This content coding is not supported; send the body uncompressed, or as gzip.")
    inflater = zlib.decompressobj(wbits)
    try:
        plain = inflater.decompress(body, limit + 1)
    except zlib.error:
        raise _error(400, "The request body is not what its Content-Encoding says.") from None
    if len(plain) > limit:
        raise _error(413, f"The decoded request body is larger than {limit} bytes.")
    if not inflater.eof or inflater.unused_data:
        raise _error(400, "The request body is not what its Content-Encoding says.")
    return plain


def beginning(body: bytes, codings: str, limit: int) -> bytes:
    """What can be read of an answer of which `body` is the beginning, at most `limit` bytes."""
    wbits = _WBITS.get(codings.strip().lower())
    if wbits is None:
        return body
    try:
        return zlib.decompressobj(wbits).decompress(body, limit)
    except zlib.error:
        return body


def _error(status: int, message: str) -> ProxyError:
    return ProxyError(status, message, source=Source.DOWNSTREAM)
