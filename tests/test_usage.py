"""Token usage is read from the bytes that pass, whatever their chunking."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.usage import Usage

STREAM = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","usage":{"input_tokens":25,'
    b'"cache_creation_input_tokens":7,"cache_read_input_tokens":3,"output_tokens":1}}}\n\n'
    b'event: content_block_delta\ndata: {"delta":{"text":"the \\"usage\\":{\\"input_tokens\\":999}"}}\n\n'
    b'event: message_delta\ndata: {"delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":15}}\n\n'
)
EXPECTED = {
    "input_tokens": 25,
    "cache_creation_input_tokens": 7,
    "cache_read_input_tokens": 3,
    "output_tokens": 15,
}


def counted(*chunks: bytes) -> dict[str, int]:
    usage = Usage()
    for chunk in chunks:
        usage.feed(chunk)
    return usage.counts()


def test_a_whole_stream_in_one_chunk() -> None:
    """The first usage names the input, the last one the final output; escaped text is not usage."""
    assert counted(STREAM) == EXPECTED


@given(st.lists(st.integers(1, len(STREAM) - 1), max_size=8))
def test_any_chunking_gives_the_same_counts(cuts: list[int]) -> None:
    """A mark or a number may be split anywhere."""
    edges = [0, *sorted(set(cuts)), len(STREAM)]
    assert counted(*(STREAM[a:b] for a, b in itertools.pairwise(edges))) == EXPECTED


def test_byte_by_byte() -> None:
    """The smallest chunks there are."""
    assert counted(*(STREAM[i : i + 1] for i in range(len(STREAM)))) == EXPECTED


def test_a_json_answer() -> None:
    """Spaces do not matter, and the usage at the end wins over a tool input of the same name."""
    body = b'{"x":[{"usage":{"input_tokens":9}}], "usage" : { "input_tokens" : 4, "output_tokens": 2 } }'
    assert counted(body) == {"input_tokens": 4, "output_tokens": 2}


@pytest.mark.parametrize("body", [b"", b"{}", b'{"usage":null}', b'"usage"'])
def test_nothing_seen_is_nothing_counted(body: bytes) -> None:
    """No usage, no counts."""
    assert counted(body) == {}
