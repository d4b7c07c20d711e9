"""Cuts through an input, and changes to it token by token, which lead further into a grammar than bytes do.

A token is a string in quotes, a word or a number, a line end, a run of blanks, or any other byte.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from random import Random

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\w.+-]+|\r\n|[ \t]+|.', re.DOTALL)

_SEPARATORS = (b"{", b"[", b",", b":", b";", b"\n", b"\r", b"\r\n")

_ODD_BYTES = b'\x00\x01\t\n\r "0,:;[]{}\\\x7f\x80\xc3\xff'


def pieces_of(data: bytes, random: Random) -> list[bytes]:
    """`data` in two to five pieces, or fewer where it is short."""
    edges = sorted({0, len(data), *(random.randint(0, len(data)) for _ in range(random.randint(1, 4)))})
    return [data[start:end] for start, end in pairwise(edges)]


def mutated(data: bytes, words: Sequence[bytes], random: Random) -> bytes:
    """`data` with a few changes, most often one."""
    tokens = _TOKEN.findall(data)
    for _ in range(random.choice((1, 1, 1, 1, 2, 3))):
        _CHANGES[random.randrange(len(_CHANGES))](tokens, words, random)
    return b"".join(tokens)


def _replace(tokens: list[bytes], words: Sequence[bytes], random: Random) -> None:
    """A token that is no separator becomes a word, or another token."""
    places = [place for place, token in enumerate(tokens) if token not in _SEPARATORS]
    if places:
        tokens[random.choice(places)] = random.choice([*words, *tokens])


def _insert(tokens: list[bytes], words: Sequence[bytes], random: Random) -> None:
    """A word comes in behind a separator."""
    places = [0, *(place + 1 for place, token in enumerate(tokens) if token in _SEPARATORS)]
    tokens.insert(random.choice(places), random.choice(words))


def _insert_anywhere(tokens: list[bytes], words: Sequence[bytes], random: Random) -> None:
    tokens.insert(random.randint(0, len(tokens)), random.choice(words))


def _delete(tokens: list[bytes], words: Sequence[bytes], random: Random) -> None:
    start, end = _range(tokens, random)
    del tokens[start:end]


def _copy(tokens: list[bytes], words: Sequence[bytes], random: Random) -> None:
    """Some tokens come once more, there or elsewhere."""
    start, end = _range(tokens, random)
    place = random.choice((start, random.randint(0, len(tokens))))
    tokens[place:place] = tokens[start:end]


def _change_a_byte(tokens: list[bytes], words: Sequence[bytes], random: Random) -> None:
    if tokens:
        place = random.randrange(len(tokens))
        token = bytearray(tokens[place])
        at = random.randrange(len(token))
        token[at : at + random.randint(0, 1)] = bytes([random.choice((*_ODD_BYTES, random.randrange(256)))])
        tokens[place] = bytes(token)


def _range(tokens: list[bytes], random: Random) -> tuple[int, int]:
    start = random.randint(0, len(tokens))
    return start, min(len(tokens), start + random.choice((1, 1, 2, 4, 8)))


_CHANGES = (_replace, _replace, _insert, _insert, _insert_anywhere, _delete, _copy, _change_a_byte)
