"""Names of models deeper in a body than `body` looks.

Facts
  - Some requests name the path's model again in each of their parts (`formats.genai`).

Rules
  1. The body is JSON: `body` has read it. A member whose name is spelt with escapes is not found.

Not here: what a found name is replaced with (`incoming`).
"""

from __future__ import annotations

import re
from collections.abc import Generator

import orjson

from . import grammar

_TOKEN = re.compile(rb'"[^"\\]*+(?>(?:\\.[^"\\]*+)*)"|[{}\[\]:,]', re.DOTALL)

MOST = 1000
"""Names at most: each becomes two parts of what is sent."""

_PAUSE = 4096
"""Tokens between two pauses: about a millisecond."""


def steps(body: bytes, path: tuple[bytes, ...], text: str) -> Generator[None, None, list[tuple[int, int]]]:
    """The spans, with quotes, of the strings `text` at `path`: keys; lists on the way do not count."""
    wanted = [b'"%b"' % key for key in path]
    found, brackets, keys, last = list[tuple[int, int]](), bytearray(), list[bytes](), b""
    for count, token in enumerate(_TOKEN.finditer(body)):
        if not count % _PAUSE:
            yield
        item = token[0]
        if item == b"{":
            brackets += item
            keys.append(b"")
        elif item == b"[":
            brackets += item
        elif item in (b"}", b"]"):
            brackets.pop()
            if item == b"}":
                keys.pop()
        elif item[:1] == b'"' and brackets[-1:] == b"{":
            if last in (b"{", b","):
                keys[-1] = item
            elif len(keys) == len(wanted) and keys == wanted and orjson.loads(item) == text:
                if len(found) == MOST:
                    raise grammar.bad(
                        token.start(), "the path's model is named too often", f"send {MOST} parts at most"
                    )
                found.append(token.span())
        last = item
    return found
