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
        ("gzip", gzip.compress(BODY, mtime=0)),
        (" GZIP ", gzip.compress(BODY, mtime=0)),
        ("x-gzip", gzip.compress(BODY, mtime=0)),
        ("deflate", zlib.compress(BODY)),
    ],
)
def test_the_known_codings(coding: str, data: bytes) -> None:
    """gzip under both names, and the zlib format, in any case."""
    assert decoded(data, coding, len(BODY)) == BODY


@pytest.mark.parametrize(
    ("coding", "data", "status"),
    [
        ("br", BODY, 415),
        ("zstd", BODY, 415),
        ("gzip, gzip", gzip.compress(BODY, mtime=0), 415),
        ("gzip", BODY, 400),
        ("gzip", gzip.compress(BODY, mtime=0)[:-1], 400),
        ("gzip", gzip.compress(BODY, mtime=0) + b"x", 400),
        ("gzip", gzip.compress(bytes(50_000_000), mtime=0), 413),
    ],
)
def test_what_cannot_be_looked_into_is_refused(coding: str, data: bytes, status: int) -> None:
    """Unknown codings, damaged and trailing data, and bombs."""
    with pytest.raises(ProxyError) as caught:
        decoded(data, coding, 1_000_000)
    assert caught.value.status == status
