"""Compressed request bodies are looked into within a limit, and never trusted."""

from __future__ import annotations

import gzip
import zlib

import pytest

from proxy.coding import decoded
from proxy.errors import ProxyError

BODY = b'{"model":"claude-2"}'


@pytest.mark.parametrize(
    ("coding", "data"),
    [
        (b"gzip", gzip.compress(BODY)),
        (b" GZIP ", gzip.compress(BODY)),
        (b"x-gzip", gzip.compress(BODY)),
        (b"deflate", zlib.compress(BODY)),
    ],
)
def test_the_known_codings(coding: bytes, data: bytes) -> None:
    """gzip under both names, and the zlib format, in any case."""
    assert decoded(data, coding, len(BODY)) == BODY


@pytest.mark.parametrize(
    ("coding", "data", "status"),
    [
        (b"br", BODY, 415),
        (b"zstd", BODY, 415),
        (b"gzip, gzip", gzip.compress(BODY), 415),
        (b"gzip", BODY, 400),
        (b"gzip", gzip.compress(BODY)[:-1], 400),
        (b"gzip", gzip.compress(BODY) + b"x", 400),
        (b"gzip", gzip.compress(bytes(50_000_000)), 413),
    ],
)
def test_what_cannot_be_looked_into_is_refused(coding: bytes, data: bytes, status: int) -> None:
    """Unknown codings, damaged and trailing data, and bombs."""
    with pytest.raises(ProxyError) as caught:
        decoded(data, coding, 1_000_000)
    assert caught.value.status == status
