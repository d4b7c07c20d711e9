"""Event boundaries, over every chunking and line end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import sse
from proxy.formats import ANTHROPIC

LINE_ENDS = (b"\n", b"\r\n", b"\r")


def event(end: bytes) -> bytes:
    return b"event: completion" + end + b'data: {"a": 1}' + end + end


@pytest.mark.parametrize("end", LINE_ENDS)
def test_a_stream_stands_between_events_only_after_an_empty_line(end: bytes) -> None:
    """Fed byte by byte, the boundary is seen exactly at the start and after each event."""
    boundary = sse.Boundary()
    assert boundary.between
    stream = event(end) * 2
    ends = [position for position in range(1, len(stream) + 1) if stream[:position].endswith(end * 2)]
    for position in range(1, len(stream) + 1):
        boundary.feed(stream[position - 1 : position])
        assert boundary.between == (position in ends), (position, stream[:position])


@given(
    st.lists(st.sampled_from([b"data: x", b": comment", b"", b"event: y"]), max_size=12),
    st.sampled_from(LINE_ENDS),
    st.data(),
)
def test_the_chunking_makes_no_difference(lines: list[bytes], end: bytes, data: st.DataObject) -> None:
    """Any split of the same bytes gives the same answer as the whole."""
    stream = end.join(lines)
    whole, split = sse.Boundary(), sse.Boundary()
    whole.feed(stream)
    position = 0
    while position < len(stream):
        size = data.draw(st.integers(1, len(stream) - position))
        split.feed(stream[position : position + size])
        position += size
    assert (split.between, split.finished) == (whole.between, whole.finished)


@pytest.mark.parametrize("tail", [b"\r\n\r", b"\n", b"\r\n", b"x\n\rx", b"data: x"])
def test_half_an_empty_line_is_no_boundary(tail: bytes) -> None:
    """CR LF CR waits for its LF; one line end ends a line, not an event."""
    boundary = sse.Boundary()
    boundary.feed(b"data: x" + tail)
    assert not boundary.between


@pytest.mark.parametrize(
    ("last", "finished"),
    [
        (b'event: message_stop\ndata: {"type":"message_stop"}\n\n', True),
        (b'event: message_stop\r\ndata: {"type": "message_stop" }\r\n\r\n', True),
        (b"data: [DONE]\n\n", True),
        (b'event: content_block_delta\ndata: {"text":"data: [DONE]"}\n\n', False),
        (b'event: message_delta\ndata: {"type":"message_delta"}\n\n', False),
    ],
)
def test_the_end_of_a_stream_is_known(last: bytes, finished: bool) -> None:
    """After `message_stop` or `[DONE]` there is no place for a ping; words inside data do not count."""
    boundary = sse.Boundary()
    boundary.feed(event(b"\n"))
    boundary.feed(last)
    assert boundary.finished is finished


@pytest.mark.parametrize("end", LINE_ENDS)
def test_the_first_event_is_found_when_it_is_whole(end: bytes) -> None:
    """Nothing before its empty line, the event exactly after it."""
    first = event(end)
    assert sse.first_event(first[: -len(end)]) is None
    assert sse.first_event(first + b"data: more") == first


@pytest.mark.parametrize(
    ("data", "is_error"),
    [
        (b'event: error\ndata: {"type":"error"}\n\n', True),
        (b'event:error\r\ndata: {"type":"error"}\r\n\r\n', True),
        (b": hello\nevent: error\ndata: {}\n\n", True),
        (b"event: errors\ndata: {}\n\n", False),
        (b'event: message_start\ndata: {"x":"event: error\\n"}\n\n', False),
    ],
)
def test_an_error_event_is_told_by_its_name(data: bytes, is_error: bool) -> None:
    """The `event` field decides, wherever it stands among the lines."""
    assert bool(ANTHROPIC.is_error.search(data)) is is_error


def test_an_error_event_is_one_event() -> None:
    """Line ends in upstream's JSON would end the event early; they become spaces."""
    assert (
        ANTHROPIC.error_event(b'{\n "type": "error"\r\n}') == b'event: error\ndata: {  "type": "error"  }\n\n'
    )
